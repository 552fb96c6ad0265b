"""Whether a label lies on its organ: scores of its flips, on real and simulated scans."""

import nibabel as nib
import numpy as np
import pytest
from helpers.real_data import DATA, real
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

from stipple_monai import DatasetError
from stipple_monai.data.grids import Grid
from stipple_monai.ingest.alignment_check import FLIPS, check_alignment
from stipple_monai.ingest.label_files import read_label
from stipple_monai.ingest.series import open_series, read_series
from stipple_monai.simulation import simulate_ct


def blob(contrast=60.0, noise=20.0, shape=(48, 40, 24)):
    """A scan with an organ in one corner, and its label."""
    rng = np.random.default_rng(0)
    label = np.zeros(shape, np.uint8)
    label[6:20, 5:16, 3:10] = 1
    return rng.normal(0, noise, shape) + contrast * label, label


def test_all_flips_are_tried_once():
    assert sorted(FLIPS) == sorted({(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)})
    assert FLIPS[0] == ()


@pytest.mark.parametrize("flip", FLIPS)
def test_a_reversed_label_is_found_along_its_axes(flip):
    image, label = blob()
    found = check_alignment(image, np.flip(label, flip), spacing_mm=(2, 2, 3))
    assert found.verdict == ("contradicted" if flip else "confirmed")
    assert found.best == flip
    assert [s.flip for s in found.scores] == list(FLIPS)


@pytest.mark.slow
def test_statistics_are_those_of_the_voxels():
    image, label = blob()
    found = check_alignment(image, label, spacing_mm=(2, 2, 3)).scores[0].organs[1]
    inside = image[label == 1]
    assert found.mean_inside == pytest.approx(inside.mean())
    assert found.sd_inside == pytest.approx(inside.std())
    # the slow way: distance of every voxel to the nearest one of the organ
    points = np.argwhere(label == 1) * (2, 2, 3)
    near = [
        np.linalg.norm(points - np.array(p) * (2, 2, 3), axis=1).min()
        for p in np.ndindex(label.shape)
    ]
    shell = (np.array(near).reshape(label.shape) <= 8) & (label == 0)
    assert found.mean_around == pytest.approx(image[shell].mean())
    assert found.sd_around == pytest.approx(image[shell].std())


def test_weak_evidence_is_undecided():
    image, label = blob(contrast=0)
    assert check_alignment(image, label, spacing_mm=(2, 2, 3)).verdict == "undecided"


def test_an_organ_in_the_middle_fits_both_ways():
    image = np.random.default_rng(0).normal(size=(30, 30, 30))
    label = np.zeros(image.shape, np.uint8)
    label[10:20, 4:12, 3:10] = 1
    image += 5 * label
    found = check_alignment(image, label, spacing_mm=(2, 2, 2))
    assert (found.verdict, found.ratio) == ("undecided", pytest.approx(1, abs=0.1))


def test_scaling_and_units_do_not_matter():
    image, label = blob()
    one = check_alignment(image, label, spacing_mm=(2, 2, 3))
    two = check_alignment(5 * image + 300, label, spacing_mm=(2, 2, 3))
    assert [s.score for s in two.scores] == pytest.approx([s.score for s in one.scores])


def test_ignored_voxels_are_no_organ():
    image, label = blob()
    label[30:40, 20:30] = 255
    assert list(check_alignment(image, label, spacing_mm=(2, 2, 3)).scores[0].organs) == [1]


def test_an_organ_that_coarse_samples_miss_is_measured():
    image, label = blob(contrast=0)
    label[:] = 0
    label[7, 7, 7] = 1
    image[7, 7, 7] = 500
    found = check_alignment(image, label, spacing_mm=(0.5, 0.5, 0.5)).scores[0].organs[1]
    assert found.mean_inside == 500


def test_a_label_that_fills_the_scan_has_no_score():
    image, label = blob()
    found = check_alignment(image, np.ones_like(label), spacing_mm=(2, 2, 3))
    assert (found.verdict, found.scores[0].score) == ("undecided", 0)
    assert np.isnan(found.scores[0].organs[1].mean_around)


def test_an_axis_of_one_voxel_has_no_flip():
    image, label = blob()
    found = check_alignment(image[..., 5:6], label[..., 5:6], spacing_mm=(2, 2, 3))
    assert (found.verdict, len(found.scores)) == ("confirmed", 4)


def test_nothing_to_check_is_an_error():
    image, label = blob()
    with pytest.raises(DatasetError, match="hold an organ, got none"):
        check_alignment(image, 0 * label, spacing_mm=(2, 2, 3))
    with pytest.raises(DatasetError, match=r"image's shape \(W, H, D\), got \(48, 40, 23\)"):
        check_alignment(image, label[..., 1:], spacing_mm=(2, 2, 3))


@real("dicom/chaos_ct")
def test_the_liver_of_chaos():
    series = open_series(DATA / "dicom/chaos_ct/DICOM_anon")
    voxels, _ = read_series(series)
    label = read_label(
        DATA / "dicom/chaos_ct/Ground", Grid(voxels, series.affine), series=series
    ).array
    right = check_alignment(voxels, label, spacing_mm=voxel_sizes(series.affine))
    assert right.verdict == "confirmed"
    organ = right.scores[0].organs[1]
    assert (round(organ.mean_inside), round(organ.sd_inside)) == (141, 34)
    # all other answers follow: the flips of the reversed label are those of the right one
    reversed_ = next(s for s in right.scores if s.flip == (2,)).organs[1]
    assert (round(reversed_.mean_inside), round(reversed_.sd_inside)) == (36, 248)


@real("nih_pancreas_slices")
def test_real_slices_of_the_pancreas():
    folder = DATA / "nih_pancreas_slices"
    for number in range(15):
        image = np.load(folder / f"img_{number:03d}.npy")[..., None]
        label = np.load(folder / f"mask_{number:03d}.npy")[..., None].astype(np.uint8)
        for flip in ((), (0,), (1,), (0, 1)):
            found = check_alignment(image, np.flip(label, flip), spacing_mm=(0.8, 0.8, 1))
            assert found.best == flip
            assert found.verdict == ("contradicted" if flip else "confirmed"), number


@real("btcv_labels")
def test_a_pancreas_in_simulated_ct():
    file = nib.load(DATA / "btcv_labels" / "label0001.nii.gz")
    label = np.asarray(file.dataobj)[::4, ::4, ::2]
    affine = file.affine @ np.diag([4, 4, 2, 1])
    image = simulate_ct(MetaTensor(label[None].astype(np.float32), affine=affine), seed=0)
    pancreas = (label == 11).astype(np.uint8)
    for flip in ((), (1,)):
        found = check_alignment(
            image.numpy()[0], np.flip(pancreas, flip), spacing_mm=voxel_sizes(affine)
        )
        assert (found.best, found.ratio > 3) == (flip, True)


@real("chaos_mr_t2")
def test_four_organs_of_a_real_mr_scan():
    """Kidneys look alike: reversed along W, each falls near the other."""
    folder = DATA / "chaos_mr_t2"
    image, label = (
        np.asarray(nib.load(next((folder / kind).glob("*_01.nii.gz"))).dataobj)
        for kind in ("imagesTr", "labelsTr")
    )
    found = check_alignment(image, label[::-1], spacing_mm=(1.25, 1.25, 7.7))
    assert (found.verdict, found.best) == ("contradicted", (0,))
