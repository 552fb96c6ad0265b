"""Grids: which are provably the same, and what becomes of the label's voxels."""

import gzip
import itertools

import itk
import nibabel as nib
import numpy as np
import pytest
from helpers.cifti import write_cifti
from hypothesis import given, settings
from hypothesis import strategies as st

from stipple_monai import DatasetError
from stipple_monai.data.grids import Grid, corner_distance_mm, onto_grid, read_grid, whole_numbers

SHAPE = (5, 4, 3)
OBLIQUE = np.array([[1.6, 0.9, 0.2, -30], [-1.2, 1.2, 0.1, 12], [0, 0.3, 4, 7], [0, 0, 0, 1.0]])


def values():
    return np.arange(np.prod(SHAPE)).reshape(SHAPE)


def stored(array, affine, order, flips):
    """The same volume with its axes stored in another order and direction, by nibabel."""
    turn = np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
    turned = nib.orientations.apply_orientation(array, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


@settings(max_examples=48, deadline=None)
@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_however_it_is_stored_the_label_comes_back(order, flips):
    array, affine = stored(values(), OBLIQUE, order, flips)
    found, note = onto_grid(Grid(array, affine), SHAPE, OBLIQUE, name="label")
    np.testing.assert_array_equal(found, values())
    assert (note is None) == (list(order) == [0, 1, 2] and not any(flips))


def test_headers_that_are_rounded_are_the_same_grid():
    rounded = OBLIQUE.copy()
    rounded[:3, 3] += 0.05
    found, note = onto_grid(Grid(values(), rounded), SHAPE, OBLIQUE, name="label")
    np.testing.assert_array_equal(found, values())
    assert note is None


@pytest.mark.parametrize("axis", range(3))
def test_half_a_voxel_off_is_another_grid(axis):
    shift = np.eye(4)
    shift[axis, 3] = 0.5
    with pytest.raises(DatasetError, match=r"lie on the scan's grid, got corners .* mm apart in l"):
        onto_grid(Grid(values(), OBLIQUE @ shift), SHAPE, OBLIQUE, name="label")


def test_a_whole_voxel_off_is_another_grid():
    """The headers may be right: then the label misses a slice."""
    shift = np.eye(4)
    shift[2, 3] = 1
    with pytest.raises(
        DatasetError, match=r"corners that are 4\.006 mm apart .* --ignore-label-header"
    ):
        onto_grid(Grid(values(), OBLIQUE @ shift), SHAPE, OBLIQUE, name="label")


def test_another_shape_is_another_grid():
    with pytest.raises(
        DatasetError, match=r"grid of shape \(5, 4, 3\), got shape \(5, 4, 2\) in l"
    ):
        onto_grid(Grid(values()[..., :2], OBLIQUE), SHAPE, OBLIQUE, name="label")


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_part_of_a_grid_is_put_where_it_belongs(flips):
    start = np.eye(4)
    start[:3, 3] = [1, 0, 2]
    array, affine = stored(values()[1:4, :3, 2:], OBLIQUE @ start, (0, 1, 2), flips)
    found, _ = onto_grid(Grid(array, affine), SHAPE, OBLIQUE, name="seg", part=True)
    expected = np.zeros(SHAPE, int)
    expected[1:4, :3, 2:] = values()[1:4, :3, 2:]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(DatasetError, match="lie on the scan's grid"):
        onto_grid(Grid(array, affine), (5, 4, 2), OBLIQUE, name="seg", part=True)


def test_distances_between_corners():
    other = OBLIQUE.copy()
    other[:3, 3] += [3, 4, 0]
    assert corner_distance_mm(OBLIQUE, other, SHAPE) == pytest.approx(5)
    assert corner_distance_mm(np.diag([1.0, 1, 1, 1]), np.diag([1.0, 1, 2, 1]), SHAPE) == 2


@pytest.mark.slow
def test_nifti_and_nrrd_are_read_alike(tmp_path):
    straight = np.diag([-0.7, -0.8, 2.5, 1])
    straight[:3, 3] = [20, -5, 100]
    nib.save(nib.Nifti1Image(values().astype(np.int16), straight), tmp_path / "a.nii.gz")
    itk.imwrite(itk.imread(str(tmp_path / "a.nii.gz")), str(tmp_path / "a.nrrd"))
    one, two = read_grid(tmp_path / "a.nii.gz"), read_grid(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(one.array, values())
    np.testing.assert_array_equal(two.array, values())
    np.testing.assert_allclose(one.affine, straight, atol=1e-6)
    np.testing.assert_allclose(two.affine, straight, atol=1e-5)


def test_channels_stay_on_the_fourth_axis(tmp_path):
    several = np.stack([values(), values() + 1], -1).astype(np.int16)
    nib.save(nib.Nifti1Image(several, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_grid(tmp_path / "a.nii").array, several)
    nib.save(nib.Nifti1Image(several[..., :1], np.eye(4)), tmp_path / "b.nii")
    assert read_grid(tmp_path / "b.nii").array.shape == SHAPE


def saved(path, *, array=None, affine=None, unit="mm"):
    image = nib.Nifti1Image(values().astype(np.int16) if array is None else array, affine)
    image.header.set_xyzt_units(unit)
    if affine is None:
        image.header["sform_code"], image.header["qform_code"] = 1, 0
        image.header["srow_x"] = image.header["srow_y"] = image.header["srow_z"] = 0
        image = nib.Nifti1Image(image.dataobj, None, image.header)
    nib.save(image, path)


def huge(path):
    header = nib.Nifti1Header()
    header.set_data_shape((32000, 32000, 30000))
    header.set_data_dtype(np.int16)
    start = header.binaryblock + bytes(104)
    path.write_bytes(gzip.compress(start) if path.suffix == ".gz" else start)


def cut_short(path):
    saved(path, affine=np.diag([2.0, 2, 2, 1]))
    path.write_bytes(path.read_bytes()[:-12])


def of_colours(path):
    pixels = itk.image_from_array(np.zeros((4, 3, 2, 3), np.uint8), is_vector=True)
    itk.imwrite(pixels, str(path))


def flat(path):
    itk.imwrite(itk.image_from_array(np.zeros((4, 3), np.uint8)), str(path))


@pytest.mark.parametrize(
    ("name", "make", "match"),
    [
        ("a.dtseries.nii", write_cifti, "a whole NIfTI file, got .*another format"),
        ("a.mha", of_colours, "one real number a voxel, got 3 axes and 3 a voxel in"),
        ("a.mha", flat, "3D volume of one real number a voxel, got 2 axes and 1 a voxel in"),
        ("a.nii", huge, "whole NIfTI file"),
        ("a.nii.gz", huge, "whole NIfTI file"),
        ("a.nii", cut_short, "whole NIfTI file"),
        ("a.nii.gz", cut_short, "whole NIfTI file"),
        ("a.nii", lambda p: None, "a file that exists, got"),
        ("a.txt", lambda p: p.write_text("x", encoding="utf-8"), "a file of .nii, .* convert it"),
        ("a.nii.gz", lambda p: p.write_bytes(b""), "a whole NIfTI file, got"),
        ("a.nrrd", lambda p: p.write_bytes(b"NRRD0004\n"), "a whole volume, got"),
        ("a.nii", lambda p: saved(p, affine=np.eye(4), unit="meter"), "in mm, got meter"),
        ("a.nii", saved, "invertible affine"),
        (
            "a.nii",
            lambda p: saved(p, array=np.zeros((4, 4)), affine=np.eye(4)),
            "3D volume, got sh",
        ),
        (
            "a.nii",
            lambda p: saved(p, array=np.zeros((2, 2, 2), np.complex64), affine=np.eye(4)),
            "one real number a voxel, got complex64",
        ),
    ],
)
def test_files_that_are_no_volume(tmp_path, name, make, match):
    make(tmp_path / name)
    with pytest.raises(DatasetError, match=match):
        read_grid(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([-1024.0, 3071]), np.int16),
        (np.array([0.5]), np.float32),
        (np.array([40000]), np.float32),
        (np.array([7], np.uint8), np.uint8),
        (np.array([np.nan]), np.float32),
    ],
)
def test_whole_numbers_are_kept_small(array, dtype):
    assert whole_numbers(array).dtype == dtype
    np.testing.assert_array_equal(whole_numbers(array), array)
