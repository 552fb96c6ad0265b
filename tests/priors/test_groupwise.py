"""Priors about group-wise centres: from label maps to files, positions and transforms."""

import json
import math
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.real_data import DATA, real
from monai.data import MetaTensor
from nibabel.affines import apply_affine

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.positioning.single import locate_organ, measure_position
from stipple_monai.priors.alignment import CoarseMask, common_centers
from stipple_monai.priors.folder import estimate_priors, load_priors
from stipple_monai.priors.organ import organ_crop, organ_position
from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.transforms import OrganPosition, OrganPositiond

CHAOS = DATA / "chaos_mr_t2" / "labelsTr"

SPACING = (2.0, 2.5, 4.0)
SHAPE = (44, 32, 24)


def bean(points, stretch):
    """Two overlapping ellipsoids, alike under no reflection."""
    big = points / (stretch * np.array([17, 11, 14]))
    small = (points - stretch * np.array([11, 8, 12])) / (stretch * np.array([8, 8, 14]))
    return ((big**2).sum(-1) < 1) | ((small**2).sum(-1) < 1)


def scan(moves=(0.0, 0, 0), stretch=1.0, *, second=True, origin=(-40.0, 7, 300), linear=SPACING):
    """Organ 1, ``moves`` mm from its usual place, and organ 2, 40 mm to its right."""
    affine = np.diag([*linear, 1.0])
    affine[:3, 3] = origin
    points = apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1)) - origin
    label = bean(points - np.array([24, 34, 44]) - moves, stretch).astype(np.uint8)
    if second:
        label[bean(points[:, ::-1] - np.array([64, 36, 46]), 0.6)] = 2
    return MetaTensor(torch.from_numpy(label)[None], affine=affine)


def scans():
    """Six bodies, three of them with a tip, one without organ 2."""
    rng = np.random.default_rng(3)
    labels = [
        scan(rng.normal(size=3) * 2, 0.9 + 0.05 * i, second=i != 2, origin=rng.normal(size=3) * 99)
        for i in range(6)
    ]
    for label, length in ((labels[0], 24), (labels[3], 21), (labels[4], 27)):
        organ = label.as_tensor()[0]
        organ[12 : 12 + length, 13, 10] = 1
    return labels


@pytest.fixture(scope="module")
def labels():
    return scans()


@pytest.fixture(scope="module")
def prior(labels):
    return SpatialPrior.estimate(labels, smoothing_mm=None, center="groupwise")


def centers_of(labels, organ=1):
    crops = [organ_crop(label, organ) for label in labels]
    return crops, common_centers([CoarseMask(*crop) for crop in crops])


# --- estimation ----------------------------------------------------------------------------------


def test_the_prior_is_the_mean_of_the_organs_about_their_common_centres(labels, prior):
    """Sampled voxel by voxel at the nearest label, which differs at the organs' surfaces alone."""
    crops, centers = centers_of(labels)
    spacing = np.array(prior.spacing_mm)
    np.testing.assert_allclose(spacing, SPACING)
    shape = np.array(prior.probability.shape)
    about = spacing * (np.moveaxis(np.indices(shape), 0, -1) - (shape - 1) / 2)
    mean = np.zeros(shape)
    for (mask, affine), center in zip(crops, centers, strict=True):
        index = np.rint(apply_affine(np.linalg.inv(affine), about + center)).astype(int)
        inside = ((index >= 0) & (index < mask.shape)).all(-1)
        mean[inside] += mask[tuple(index[inside].T)] / len(labels)
    difference = np.abs(prior.probability.numpy() - mean)
    assert difference.mean() < 0.04
    assert difference[(mean == 0) | (mean == 1)].mean() < 0.02


def test_the_prior_keeps_the_organs_volume(labels, prior):
    voxels = np.mean([int((label == 1).sum()) for label in labels])
    assert float(prior.probability.sum()) == pytest.approx(voxels, rel=1e-3)
    in_bins = SpatialPrior.estimate(labels, bins=4, center="groupwise")
    volume = float(in_bins.probability.sum()) * math.prod(in_bins.spacing_mm)
    assert volume == pytest.approx(voxels * math.prod(SPACING), rel=0.05)


def test_the_box_holds_every_organ_about_its_centre(labels, prior):
    crops, centers = centers_of(labels)
    reach = np.zeros(3)
    for (mask, affine), center in zip(crops, centers, strict=True):
        points = apply_affine(affine, np.argwhere(mask)) - center
        reach = np.maximum(reach, np.abs(points).max(0) + np.array(SPACING) / 2)
    size = np.array(prior.size_mm)
    assert (size >= 2 * reach - 0.01 * np.array(SPACING)).all()
    assert (size <= 2 * reach + np.array(SPACING)).all()


def test_one_scan_has_the_box_centre():
    label = scan()
    one = SpatialPrior.estimate(label, smoothing_mm=None, center="groupwise")
    box = SpatialPrior.estimate(label, smoothing_mm=None)
    torch.testing.assert_close(one.probability, box.probability)
    assert one.center == "groupwise"
    assert one.case_count == 1


def test_the_prior_is_sharper_than_about_box_centres(labels, prior):
    box = SpatialPrior.estimate(labels, smoothing_mm=None)
    squares = [float(p.probability.square().sum()) for p in (prior, box)]
    assert squares[0] > 1.05 * squares[1]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 3])
def test_the_number_of_workers_does_not_change_a_bit(labels, num_workers):
    options = {"organs": [1, 2], "center": "groupwise"}
    with pytest.warns(UserWarning, match="does not contain organ 2: skipped"):
        expected = SpatialPrior.estimate_several(labels, **options)
    with pytest.warns(UserWarning, match="does not contain organ 2: skipped"):
        found = SpatialPrior.estimate_several(labels, num_workers=num_workers, **options)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.probability, other.probability)
        assert one.offset_mm == other.offset_mm
        assert one.spacing_mm == other.spacing_mm
        assert one.case_count == other.case_count


def test_the_order_of_the_maps_does_not_matter(labels, prior):
    found = SpatialPrior.estimate(labels[::-1], smoothing_mm=None, center="groupwise")
    torch.testing.assert_close(found.probability, prior.probability, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_organs_know_their_offsets(labels):
    with pytest.warns(UserWarning, match="does not contain organ 2"):
        priors = SpatialPrior.estimate_several(labels, organs=[1, 2], center="groupwise")
    assert [p.case_count for p in priors] == [6, 5]
    first, second = (np.array(p.offset_mm) for p in priors)
    np.testing.assert_allclose(first + second, 0, atol=2e-3)
    both = [label for label in labels if (label == 2).any()]
    apart = [
        measure_position(label, priors[1]) - measure_position(label, priors[0]) for label in both
    ]
    np.testing.assert_allclose(second - first, torch.stack(apart).mean(0).numpy(), atol=3)
    assert second[0] - first[0] > 20


@pytest.mark.parametrize("center", ["bbox", "mass", "groupwise"])
def test_offsets_for_every_kind_of_centre_and_none_for_one_organ(labels, center):
    several = SpatialPrior.estimate_several(labels[:2], organs=[1, 2], center=center)
    assert all(len(p.offset_mm) == 3 for p in several)
    assert SpatialPrior.estimate(labels[:2], center=center).offset_mm is None
    if center != "groupwise":
        apart = [
            organ_position(v, organ=2, center=center) - organ_position(v, organ=1, center=center)
            for v in labels[:2]
        ]
        difference = np.subtract(several[1].offset_mm, several[0].offset_mm)
        np.testing.assert_allclose(difference, torch.stack(apart).mean(0).numpy(), atol=2e-3)


def test_organs_that_no_scan_has_in_common_have_no_offsets(labels):
    apart = [scan(second=False), labels[0].clone()]
    apart[1][apart[1] == 1] = 0
    with pytest.warns(UserWarning, match="does not contain"):
        priors = SpatialPrior.estimate_several(apart, organs=[1, 2], center="groupwise")
    assert [p.offset_mm for p in priors] == [None, None]


@pytest.mark.slow
def test_a_kept_organ_is_small():
    """Of each map, only the organ's voxels stay, packed, and its coarse copy."""
    shape = (80, 80, 60)

    def maps(number):
        for i in range(number):
            label = np.zeros(shape, np.uint8)
            label[8 : 68 + i % 3, 9:69, 8:48] = 1
            yield MetaTensor(torch.from_numpy(label)[None], affine=np.eye(4))

    def peak(number):
        tracemalloc.start()
        SpatialPrior.estimate(maps(number), center="groupwise")
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    peak(1)
    few, many = peak(3), peak(9)
    voxels = 62 * 60 * 40
    coarse = np.prod(np.ceil(np.array([62, 60, 40]) / 3) + 2) * 4
    assert (many - few) / 6 < 1.5 * coarse < 0.5 * voxels


# --- files ---------------------------------------------------------------------------------------


def test_centre_and_offset_are_saved(tmp_path, labels):
    folder = tmp_path / "priors"
    with pytest.warns(UserWarning, match="does not contain organ 2"):
        priors = estimate_priors(labels, organs=[1, 2], folder=folder, center="groupwise")
    for one, other in zip(load_priors(folder, [1, 2]), priors, strict=True):
        assert torch.equal(one.probability, other.probability)
        assert one.center == other.center == "groupwise"
        assert one.offset_mm == pytest.approx(other.offset_mm, abs=1e-9)
        assert one.case_count == other.case_count
        assert "center 'groupwise'" in repr(one)


def test_no_offset_is_saved_as_none(tmp_path, prior):
    prior.save(tmp_path / "prior.nii")
    assert SpatialPrior.load(tmp_path / "prior.nii").offset_mm is None


def with_record(source, target, change):
    """The same file with another record."""
    image = nib.load(source)
    (extension,) = image.header.extensions
    record = json.loads(extension.get_content())
    change(record)
    image.header.extensions.clear()
    image.header.extensions.append(
        nib.nifti1.Nifti1Extension("comment", json.dumps(record).encode())
    )
    nib.save(image, target)


@pytest.mark.parametrize("offset", [[1, 2], [1, 2, "x"], "near", 5, [1, 2, math.inf]])
def test_a_bad_offset_in_a_record_is_no_prior(tmp_path, prior, offset):
    prior.save(tmp_path / "prior.nii")
    bad = tmp_path / "bad.nii"
    with_record(tmp_path / "prior.nii", bad, lambda record: record.update(offset_mm=offset))
    with pytest.raises(PriorError, match=r"bad\.nii is not a valid prior: .*`offset_mm` must be"):
        SpatialPrior.load(bad)


@pytest.mark.parametrize("offset_mm", [(1, 2), (1, 2, math.nan), (1, 2, math.inf), "abc", 3.0])
def test_a_bad_offset_raises(offset_mm):
    with pytest.raises(PriorError, match=r"`offset_mm` must be three finite numbers \(RAS mm\) or"):
        SpatialPrior(np.ones((2, 2, 2)), spacing_mm=(1, 1, 1), offset_mm=offset_mm)


@pytest.mark.parametrize(
    "offset_mm", [(1, 2, 3), [1.0, 2, 3], np.arange(1.0, 4), torch.arange(1, 4)]
)
def test_an_offset_is_three_floats(offset_mm):
    prior = SpatialPrior(np.ones((2, 2, 2)), spacing_mm=(1, 1, 1), offset_mm=offset_mm)
    assert prior.offset_mm == (1.0, 2.0, 3.0)
    assert all(type(x) is float for x in prior.offset_mm)


def test_an_unknown_centre_raises():
    with pytest.raises(PriorError, match="`center` must be 'bbox', 'mass' or 'groupwise', got 'x'"):
        SpatialPrior(np.ones((2, 2, 2)), spacing_mm=(1, 1, 1), center="x")
    with pytest.raises(PriorError, match="`center` must be 'bbox', 'mass' or 'groupwise', got 'x'"):
        SpatialPrior.estimate(scan(), center="x")


# --- positions -----------------------------------------------------------------------------------


def test_a_training_label_lies_at_its_common_centre(labels, prior):
    _, centers = centers_of(labels)
    for label, center in zip(labels, centers, strict=True):
        found = measure_position(label, prior)
        assert found.dtype == torch.float64
        assert (np.abs(found.numpy() - center) <= 1.1 * np.array(SPACING)).all()


def test_a_position_is_measured_where_the_organ_fits_the_prior_best(labels, prior):
    label = labels[3]
    organ = MetaTensor((label.as_tensor() == 1).float(), affine=label.affine)
    assert torch.equal(measure_position(label, prior), locate_organ(organ, prior))


def test_a_file_is_measured_like_its_map(tmp_path, labels, prior):
    path = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(labels[1].numpy()[0], labels[1].affine.numpy()), path)
    found, expected = measure_position(path, prior), measure_position(labels[1], prior)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("center", ["bbox", "mass"])
def test_other_centres_are_those_of_the_label(labels, center):
    several = SpatialPrior.estimate_several(labels[:2], organs=[1, 2], center=center)
    for prior in several:
        expected = organ_position(labels[1], organ=prior.organ, center=center)
        assert torch.equal(measure_position(labels[1], prior), expected)


def test_a_label_without_the_organ_has_no_position(prior):
    empty = MetaTensor(torch.zeros(1, 4, 4, 4, dtype=torch.uint8), affine=torch.eye(4))
    with pytest.raises(PositionError, match="does not contain organ 1, so it has no position"):
        measure_position(empty, prior)


def test_a_label_by_itself_has_no_common_centre(labels):
    with pytest.raises(PriorError, match=r"got 'groupwise': use `measure_position`, which"):
        organ_position(labels[0], center="groupwise")


def test_the_transform_measures_positions_as_the_priors_define_them(labels):
    common = SpatialPrior.estimate_several(labels[:2], organs=[1, 2], center="groupwise")
    box = SpatialPrior.estimate(labels[:2], organ=2)
    priors = [*common, box]
    expected = torch.stack([measure_position(labels[1], p) for p in priors])
    assert torch.equal(OrganPosition(priors)(labels[1]), expected)
    item = OrganPositiond(keys="label", priors=priors, position_key="where")({"label": labels[1]})
    assert torch.equal(torch.as_tensor(item["where"]), expected)
    with pytest.warns(UserWarning, match="does not contain organ 2.* Its prior stays neutral"):
        positions = OrganPosition(priors)(labels[2])
    assert positions.isnan().all(1).tolist() == [False, True, True]


@real("chaos_mr_t2/labelsTr")
def test_real_training_labels_lie_at_their_common_centres():
    paths = sorted(CHAOS.glob("*.nii.gz"))[:4]
    priors = SpatialPrior.estimate_several(paths, organs=[2, 3], center="groupwise")
    for prior in priors:
        _, centers = centers_of(paths, prior.organ)
        spacing = nib.load(paths[0]).header.get_zooms()
        for path, center in zip(paths, centers, strict=True):
            found = measure_position(path, prior).numpy()
            # A voxel of the scan, or of the 3 mm on which common centres are found.
            assert (np.abs(found - center) <= np.maximum(spacing, 3)).all()
