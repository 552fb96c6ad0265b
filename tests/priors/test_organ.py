"""One organ in a label map: voxels, position, reach."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.real_data import DATA, real
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.priors.organ import (
    center_and_reach,
    open_label,
    organ_masks,
    organ_position,
    spacing_along_ras,
    world_point,
)

BTCV = DATA / "btcv_labels"


def blob(shape=(12, 14, 10), seed=0):
    """A label map with an irregular organ 1 and a single voxel of organ 2."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[3:9, 2:7, 4:8] = rng.random((6, 5, 4)) > 0.3
    label[10, 1, 9] = 2
    return label


def position_by_hand(array, affine, organ, center):
    """The definition, voxel by voxel."""
    points = []
    for index in np.ndindex(*array.shape):
        if array[index] == organ:
            points.append(affine[:3, :3] @ np.array(index) + affine[:3, 3])
    points = np.array(points)
    if center == "mass":
        return points.sum(0) / len(points)
    return np.array([(min(p) + max(p)) / 2 for p in points.T])


def affine_of(spacing, angles=(0, 0, 0), origin=(-20, 30, 400)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zyx", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize("center", ["bbox", "mass"])
@pytest.mark.parametrize(
    "affine",
    [
        affine_of((1, 1, 1)),
        affine_of((-0.7, 0.7, 5)),
        affine_of((0.9, 0.8, -3), (15, 0, 10)),
        affine_of((1, 2, 3))[[2, 0, 1, 3]],
    ],
    ids=["RAS", "LAS", "oblique", "permuted"],
)
def test_position_is_that_of_the_definition(affine, center):
    label = blob()
    for organ in (1, 2):
        found = organ_position(MetaTensor(label[None], affine=affine), organ=organ, center=center)
        assert found.shape == (3,)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found, position_by_hand(label, affine, organ, center), atol=1e-9)


@pytest.mark.parametrize("codes", ["LAS", "LAI", "SAR", "PIL"])
@pytest.mark.parametrize("center", ["bbox", "mass"])
def test_position_does_not_depend_on_the_order_of_the_voxels(codes, center):
    image = nib.Nifti1Image(blob(), affine_of((0.7, 0.9, 5), (12, 0, 0)))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    first, second = (
        organ_position(MetaTensor(np.array(i.dataobj)[None].copy(), affine=i.affine), center=center)
        for i in (image, turned)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("shape", [(12, 14, 10), (12, 14, 10, 1)])
def test_file_path_and_metatensor_agree(tmp_path, name, shape):
    affine = affine_of((-0.7, 0.7, 5))
    nib.save(nib.Nifti1Image(blob().reshape(shape), affine), tmp_path / name)
    expected = organ_position(MetaTensor(blob()[None], affine=affine))
    for path in (tmp_path / name, str(tmp_path / name)):
        # The affine of a NIfTI file is float32.
        torch.testing.assert_close(organ_position(path), expected, rtol=0, atol=1e-4)
    no_channel = MetaTensor(blob(), affine=affine)
    torch.testing.assert_close(organ_position(no_channel), expected)


def masks_by_hand(array, affine, organs):
    """Each organ's box by the indices of its voxels, from the whole map."""
    found = []
    for organ in organs:
        index = np.argwhere(array == organ)
        if not len(index):
            found.append(None)
            continue
        low, high = index.min(0), index.max(0)
        box = array[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] == organ
        found.append((box, affine @ np.array([*np.eye(4)[:3], [*low, 1.0]]).T))
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
            continue
        assert one[0].dtype == bool
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_allclose(one[1], other[1], rtol=1e-6, atol=1e-5)


def scattered(values, dtype, seed=0, shape=(12, 14, 10)):
    """A map with many empty slices and each of the values somewhere."""
    rng = np.random.default_rng(seed)
    array = np.zeros(shape, dtype)
    for value in values:
        start = [int(rng.integers(1, n - 4)) for n in shape]
        box = tuple(slice(a, a + int(rng.integers(1, 5))) for a in start)
        array[box] = np.where(rng.random(array[box].shape) < 0.7, value, array[box])
        array[tuple(start)] = value
    return array


@pytest.mark.parametrize("slab_voxels", [1, 150, 420, 10**6])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=["C", "F", "turned"])
def test_masks_are_those_of_the_whole_map(monkeypatch, slab_voxels, order):
    monkeypatch.setattr("stipple_monai.priors.organ._SLAB_VOXELS", slab_voxels)
    affine = affine_of((0.7, -0.8, 5), (20, 0, 10))
    for seed in range(5):
        array = scattered([1, 2, 3, 255], np.uint8, seed)
        stored = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
        label = MetaTensor(torch.from_numpy(stored)[None], affine=affine)
        for organs in ([1], [3, 2, 7, 1], [255, 300], [2, 2], [0], [1, 0]):
            found = organ_masks(open_label(label), organs)
            assert_same(found, masks_by_hand(array, affine, organs))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, [1, 200]),
        (np.int16, [1, 300, -2]),
        (np.uint16, [1, 40000]),
        (np.int32, [1, 70000, -70000]),
        (np.float32, [1, 300]),
        (np.float64, [2, 300]),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_masks_of_files_of_any_kind(tmp_path, monkeypatch, name, dtype, values):
    monkeypatch.setattr("stipple_monai.priors.organ._SLAB_VOXELS", 400)
    array, affine = scattered(values, dtype), affine_of((-0.7, 0.7, 5))
    nib.save(nib.Nifti1Image(array, affine), tmp_path / name)
    label = open_label(tmp_path / name)
    organs = [*values, 0, 99]
    assert_same(organ_masks(label, organs), masks_by_hand(array, affine, organs))
    assert_same(organ_masks(label, values), masks_by_hand(array, affine, values))
    assert label.name == str(tmp_path / name)


@pytest.mark.parametrize(("slope", "inter"), [(2, 0), (1, -3), (0.5, 4)])
def test_masks_of_scaled_labels(tmp_path, slope, inter):
    stored, affine = scattered([2, 6, 8], np.uint8), np.eye(4)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_slope_inter(slope, inter)
    # nibabel would scale back what it is given: the numbers stand in the file as they are.
    with (tmp_path / "scaled.nii").open("wb") as file:
        image.header["vox_offset"] = 352
        file.write(image.header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    array = stored.astype(float) * slope + inter
    np.testing.assert_array_equal(nib.load(tmp_path / "scaled.nii").get_fdata(), array)
    organs = [2 * slope + inter, 6 * slope + inter, inter, 0, 77]
    found = organ_masks(open_label(tmp_path / "scaled.nii"), organs)
    assert_same(found, masks_by_hand(array, affine, organs))
    assert_same(
        organ_masks(open_label(tmp_path / "scaled.nii"), organs[:2]),
        masks_by_hand(array, affine, organs[:2]),
    )


@pytest.mark.parametrize("value", [np.nan, 0.5, 1.002])
def test_what_is_no_whole_number_is_no_label(tmp_path, value):
    array = scattered([1], np.float32)
    array[0, 0, 0] = array[11, 13, 9] = value
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "odd.nii")
    with pytest.raises(DatasetError, match=r"must have whole numbers, got .* and 1 other .*odd"):
        organ_masks(open_label(tmp_path / "odd.nii"), [1])


def test_values_that_rounding_has_touched_are_whole(tmp_path):
    array = scattered([1, 2], np.float32)
    nib.save(nib.Nifti1Image(array * np.float32(0.9999999), np.eye(4)), tmp_path / "near.nii")
    found = organ_masks(open_label(tmp_path / "near.nii"), [1, 2])
    assert_same(found, masks_by_hand(array, np.eye(4), [1, 2]))


def test_masks_keep_nothing_of_the_map():
    array = blob()
    label = open_label(MetaTensor(array[None], affine=np.diag([1, 2, 3, 1.0])))
    ((mask, affine),) = organ_masks(label, [1])
    assert mask.shape == (6, 5, 4)
    assert mask.base is None
    np.testing.assert_array_equal(affine[:3, 3], [3, 4, 12])
    assert label.name == "the label map"


@pytest.mark.slow
def test_a_file_is_never_whole_in_memory(tmp_path):
    array = np.zeros((256, 256, 256), np.uint8)
    array[100:110, 90:110] = 1
    array[0, 0] = array[255, 255] = 2
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "large.nii.gz")
    tracemalloc.start()
    ((mask, _),) = organ_masks(open_label(tmp_path / "large.nii.gz"), [1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.shape == (10, 20, 256)
    assert peak < array.nbytes / 2


def test_a_file_is_decompressed_once(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(scattered([1], np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    monkeypatch.setattr("stipple_monai.priors.organ._SLAB_VOXELS", 1)
    label = open_label(tmp_path / "a.nii.gz")
    opened, opener = [], nib.openers.ImageOpener
    monkeypatch.setattr(
        nib.openers, "ImageOpener", lambda *a, **how: opened.append(a) or opener(*a, **how)
    )
    organ_masks(label, [1])
    assert len(opened) == 1


@pytest.mark.parametrize("angles", [(0, 0, 0), (15, 0, 0), (20, -10, 30)])
@pytest.mark.parametrize("center", ["bbox", "mass"])
def test_center_and_reach_are_those_of_all_voxels(angles, center):
    affine = affine_of((0.9, 0.8, -3), angles)
    ((mask, crop),) = organ_masks(open_label(MetaTensor(blob()[None], affine=affine)), [1])
    points = np.argwhere(mask) @ crop[:3, :3].T + crop[:3, 3]
    low, high = points.min(0), points.max(0)
    expected = (low + high) / 2 if center == "bbox" else points.mean(0)
    point, reach = center_and_reach(mask, crop, center)
    np.testing.assert_allclose(point, expected, atol=1e-9)
    half = np.linalg.norm(affine[:3, :3], axis=1) / 2
    np.testing.assert_allclose(reach, np.maximum(expected - low, high - expected) + half, atol=1e-9)


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (affine_of((-0.7, 0.8, 5)), (0.7, 0.8, 5)),
        (affine_of((1, 2, 3))[[2, 0, 1, 3]], (3, 1, 2)),
        (affine_of((0.7, 0.8, 5), (15, 0, 20)), (0.7, 0.8, 5)),
    ],
    ids=["LAS", "permuted", "oblique"],
)
def test_spacing_is_the_scans_own_in_world_order(affine, expected):
    np.testing.assert_allclose(spacing_along_ras(affine), expected)


def test_organ_that_is_not_there():
    with pytest.raises(PositionError, match=r"the label map does not contain organ 7.*skip"):
        organ_position(MetaTensor(blob()[None]), organ=7)


def test_unknown_center():
    with pytest.raises(PriorError, match="'bbox', 'mass' or 'groupwise', got 'middle'"):
        organ_position(MetaTensor(blob()[None]), center="middle")


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"There is no label map at .*gone\.nii\.gz"):
        organ_position(tmp_path / "gone.nii.gz")


def truncated(raw):
    return raw[: len(raw) // 2]


def damaged(raw):
    return raw[:40] + bytes(255 - b for b in raw[40:60]) + raw[60:]


def text(raw):
    return b"not an image"


@pytest.mark.parametrize("spoil", [truncated, damaged, text])
def test_unreadable_file(tmp_path, spoil):
    path = tmp_path / "bad.nii.gz"
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).integers(0, 9, (20, 20, 20), np.uint8), np.eye(4)),
        path,
    )
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"bad\.nii\.gz cannot be read as NIfTI"):
        organ_position(path)


def test_header_that_points_nowhere(tmp_path):
    path = tmp_path / "bad.nii"
    nib.save(nib.Nifti1Image(blob(), np.eye(4)), path)
    raw = bytearray(path.read_bytes())
    raw[70:72] = (9999).to_bytes(2, "little")  # datatype
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"bad\.nii cannot be read as NIfTI: HeaderDataError"):
        organ_position(path)


def test_file_without_voxels(tmp_path):
    surface = nib.gifti.GiftiDataArray(np.zeros((4, 3), np.float32))
    nib.save(nib.GiftiImage(darrays=[surface]), tmp_path / "surface.gii")
    with pytest.raises(DatasetError, match=r"surface\.gii cannot be read as NIfTI"):
        organ_position(tmp_path / "surface.gii")


def test_compressed_twice_is_no_nifti(tmp_path):
    path = tmp_path / "twice.nii.gz"
    path.write_bytes(gzip.compress(gzip.compress(b"x" * 500)))
    with pytest.raises(DatasetError, match="cannot be read as NIfTI"):
        organ_position(path)


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (4, 4), (1, 1, 4, 4, 4), (2, 4, 4, 1)])
def test_not_one_3d_map(tmp_path, shape):
    with pytest.raises(DatasetError, match=r"must be one 3D label map, got the shape"):
        organ_position(MetaTensor(torch.ones(shape), affine=np.eye(4)))


def test_4d_file(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 2), np.uint8), np.eye(4)), tmp_path / "4d.nii")
    with pytest.raises(DatasetError, match=r"4d\.nii must be one 3D label map.*\(4, 4, 4, 2\)"):
        organ_position(tmp_path / "4d.nii")


@pytest.mark.parametrize("label", [torch.ones(1, 4, 4, 4), np.ones((4, 4, 4)), None])
def test_not_a_label_map(label):
    with pytest.raises(DatasetError, match="must be a MetaTensor or a file, got"):
        organ_position(label)


@pytest.mark.parametrize("last", [0.0, float("nan")])
def test_affine_that_cannot_be_inverted(last):
    with pytest.raises(DatasetError, match="the label map must have an invertible 4 × 4 affine"):
        organ_position(MetaTensor(blob()[None], affine=np.diag([1, 1, last, 1.0])))


@pytest.mark.parametrize("position", [(1, 2, 3), np.arange(3.0), torch.ones(3, 1), [1, 2.5, -3]])
def test_world_point(position):
    point = world_point(position)
    assert (point.shape, point.dtype, point.device.type) == ((3,), torch.float64, "cpu")
    np.testing.assert_array_equal(point, np.ravel(position))


@pytest.mark.parametrize("position", [None, "here", (1, 2), (1, 2, 3, 4), (0, float("nan"), 0)])
def test_no_world_point(position):
    with pytest.raises(PositionError, match="`position_mm` must be three finite numbers"):
        world_point(position)


@real("btcv_labels")
def test_real_pancreas_lies_left_of_the_vena_cava_and_in_front_of_it():
    path = BTCV / "label0001.nii.gz"
    pancreas, vena_cava = (organ_position(path, organ=k, center="mass") for k in (11, 9))
    assert float(pancreas[0]) < float(vena_cava[0])
    assert float(pancreas[1]) > float(vena_cava[1])
