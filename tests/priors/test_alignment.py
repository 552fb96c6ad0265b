"""The common centre of many organs, and where organs lie relative to each other."""

import nibabel as nib
import numpy as np
import pytest
from helpers.real_data import DATA, real
from scipy import ndimage, signal
from scipy.spatial.transform import Rotation

from stipple_monai.priors import alignment
from stipple_monai.priors.alignment import GRID_MM, CoarseMask, common_centers, mean_offsets
from stipple_monai.priors.organ import center_and_reach, open_label, organ_masks

CHAOS = DATA / "chaos_mr_t2" / "labelsTr"

LINEAR = {
    "RAS": np.diag([1.5, 1.5, 1.5]),
    "LPI": np.diag([-2.0, -2.0, -2.0]),
    "anisotropic": np.diag([1.0, -1.1, 6.0]),
    "SLP": np.array([[0, -2.0, 0], [0, 0, -1.5], [2.5, 0, 0]]),
    "oblique": Rotation.from_euler("xyz", [12, -20, 33], degrees=True).as_matrix() * 1.7,
}
every_grid = pytest.mark.parametrize("linear", LINEAR.values(), ids=LINEAR)


def affine_of(linear, origin=(0.0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    return affine


def cropped(mask, affine):
    """The organ's box, as it comes from a label map."""
    low, high = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
    crop = affine.copy()
    crop[:3, 3] = affine[:3] @ [*low, 1]
    return mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], crop


def scanned(inside, linear, *, at=(0.0, 0, 0), phase=(0.0, 0, 0), reach_mm=36):
    """The points around ``at`` where ``inside`` holds, on a grid shifted by ``phase`` voxels."""
    half = np.ceil(np.abs(np.linalg.inv(linear)) @ np.full(3, reach_mm)).astype(int)
    affine = affine_of(linear, at - linear @ (half + phase))
    index = np.stack(np.meshgrid(*[np.arange(2 * h + 1) for h in half], indexing="ij"), -1)
    world = index @ linear.T + affine[:3, 3]
    return cropped(inside(world - at), affine)


def bean(points, stretch=1.0):
    """Two overlapping ellipsoids, alike under no reflection or rotation."""
    big = points / (stretch * np.array([20, 13, 15]))
    small = (points - stretch * np.array([14, 9, 12])) / (stretch * np.array([9, 8, 14]))
    return ((big**2).sum(-1) < 1) | ((small**2).sum(-1) < 1)


def beans(linear, stretches=(0.9, 1.0, 1.1, 1.05), *, moves=None):
    moves = np.zeros((len(stretches), 3)) if moves is None else np.array(moves)
    somewhere = np.array([50.0, -30, 200])
    # Grids of their own, so that no two translations fit equally well.
    phases = np.random.default_rng(0).random(moves.shape) - 0.5
    return [
        scanned(lambda points, s=s: bean(points, s), linear, at=move + somewhere, phase=phase)
        for s, move, phase in zip(stretches, moves, phases, strict=True)
    ]


def centers(crops):
    return common_centers([CoarseMask(*crop) for crop in crops])


def whole_correlation_centers(masks):
    """`common_centers` with every translation of every round scored, in double precision."""
    center = np.array([alignment._center_of_mass(mask) for mask in masks])
    for _ in range(20):
        mean, first_mm = alignment._mean_about(masks, center)
        moved = []
        for mask in masks:
            score = signal.correlate(mask.occupied.astype(float), mean, method="fft")
            best = np.array(np.unravel_index(score.argmax(), score.shape))
            top = best - (np.array(mean.shape) - 1) + alignment._peak_offset(score, best)
            moved.append(mask.origin_mm + GRID_MM * top - first_mm)
        step = np.array(moved) - center
        step -= step.mean(0)
        center = center + step
        if np.linalg.norm(step, axis=1).max() < 0.1:
            break
    return center


# --- the coarse mask -----------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SLP", "AIR"])
@pytest.mark.parametrize("spacing", [3.0, 1.5, 1.0, 0.75, 0.6])
def test_where_the_grids_agree_a_coarse_voxel_is_a_mean(spacing, codes):
    width = round(GRID_MM / spacing)
    mask = np.random.default_rng(0).random((3 * width, 2 * width, 4 * width)) > 0.4
    means = mask.reshape(3, width, 2, width, 4, width).mean((1, 3, 5))
    image = nib.Nifti1Image(mask.astype(np.uint8), np.diag([spacing, spacing, spacing, 1]))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    coarse = CoarseMask(np.asarray(turned.dataobj) > 0, turned.affine)
    np.testing.assert_allclose(coarse.occupied, np.pad(means, 1), atol=1e-5)
    np.testing.assert_allclose(coarse.origin_mm, -spacing / 2 - GRID_MM / 2)
    np.testing.assert_allclose(coarse.box_mm[0], -spacing / 2)
    np.testing.assert_allclose(coarse.box_mm[1], spacing * np.array(mask.shape) - spacing / 2)


@every_grid
def test_the_coarse_mask_keeps_volume_and_centre_of_mass(linear):
    mask, affine = scanned(bean, linear, at=(7.3, -2.1, 4.4))
    coarse = CoarseMask(mask, affine)
    voxel_mm3 = abs(np.linalg.det(linear))
    assert coarse.occupied.sum() * GRID_MM**3 == pytest.approx(mask.sum() * voxel_mm3, rel=0.02)
    mass = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    found = coarse.origin_mm + GRID_MM * np.array(ndimage.center_of_mass(coarse.occupied))
    np.testing.assert_allclose(found, mass, atol=0.1)


# --- group-wise centres --------------------------------------------------------------------------


@every_grid
def test_the_centre_of_a_single_mask_is_the_middle_of_its_box(linear):
    mask, affine = scanned(bean, linear, at=(7.3, -2.1, 4.4))
    middle = affine[:3, :3] @ ((np.array(mask.shape) - 1) / 2) + affine[:3, 3]
    (center,) = centers([(mask, affine)])
    np.testing.assert_allclose(center, middle, atol=1e-9)
    if np.count_nonzero(linear) == 3:
        np.testing.assert_allclose(center, center_and_reach(mask, affine, "bbox")[0])


@every_grid
def test_the_same_mask_twice_has_the_same_centre(linear):
    crop = scanned(bean, linear)
    moved = crop[1].copy()
    moved[:3, 3] += [100.25, -7.5, 3.3]
    first, second = centers([crop, (crop[0], moved)])
    np.testing.assert_allclose(second - first, [100.25, -7.5, 3.3], atol=1e-6)
    np.testing.assert_allclose(first, centers([crop])[0], atol=1e-6)


@pytest.mark.slow
@every_grid
def test_a_mask_that_is_moved_takes_its_centre_along(linear):
    crops = beans(linear)
    before = centers(crops)
    for move in (linear @ [2, -1, 3], [0.4, -1.3, 0.77]):
        affine = crops[1][1].copy()
        affine[:3, 3] += move
        after = centers([crops[0], (crops[1][0], affine), *crops[2:]])
        np.testing.assert_allclose(after[1] - before[1], move, atol=1e-6)
        np.testing.assert_allclose(np.delete(after, 1, 0), np.delete(before, 1, 0), atol=1e-6)


def test_an_organ_moved_by_fractions_of_a_voxel_takes_its_centre_along():
    """Scanned anew, so that its voxels are others."""
    moves = np.array([[0, 0, 0], [0.3, 0.75, -0.5], [-0.6, 0.2, 1.1], [10.9, -4.4, 0.6]])
    found = centers(beans(LINEAR["RAS"], (1.0,) * 4, moves=moves))
    np.testing.assert_allclose(found - found[0], moves, atol=GRID_MM / 3)


def test_scans_on_any_grid_of_the_same_organ_have_the_same_centre():
    crops = [
        scanned(bean, linear, at=(5.0, 6, 7), phase=(0.3 * i, 0.1, 0.2 * i))
        for i, linear in enumerate(LINEAR.values())
    ]
    found = centers(crops)
    assert np.linalg.norm(found - found.mean(0), axis=1).max() < 0.6
    middles = np.array([affine[:3, :3] @ (np.array(m.shape) - 1) for m, affine in crops]) / 2
    middles += [affine[:3, 3] for _, affine in crops]
    assert np.linalg.norm(middles - middles.mean(0), axis=1).max() > 0.6


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_order_of_the_masks_does_not_matter(order):
    crops = beans(LINEAR["anisotropic"], moves=[[0, 0, 0], [9, 1, 0], [0, -40, 5], [3, 3, 3]])
    found = centers([crops[i] for i in order])
    np.testing.assert_allclose(found, centers(crops)[order], atol=1e-6)


def test_a_tip_moves_the_middle_of_the_box_but_not_the_common_centre():
    def with_tip(points):
        x, y, z = np.moveaxis(points, -1, 0)
        return bean(points) | ((x > -34) & (x < 0) & (y > -3) & (y < 0) & (abs(z) < 2))

    linear = LINEAR["RAS"]
    crops = [scanned(shape, linear) for shape in (bean, bean, bean, with_tip)]
    boxes = np.array([center_and_reach(*crop, "bbox")[0] for crop in crops])
    assert boxes[0, 0] - boxes[3, 0] > 6
    found = centers(crops)
    np.testing.assert_allclose(found[3], found[0], atol=0.5)


def test_the_common_box_has_the_centre_in_its_middle():
    crops = beans(LINEAR["RAS"], moves=[[0, 0, 0], [9, 1, 0], [0, -40, 5], [3, 3, 3]])
    ends = []
    for (mask, affine), center in zip(crops, centers(crops), strict=True):
        low = affine[:3, 3] - np.diag(affine)[:3] / 2
        ends.append([low - center, low + np.diag(affine)[:3] * mask.shape - center])
    low, high = np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))
    np.testing.assert_allclose(low, -high, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_centers_are_those_of_whole_correlations(seed):
    """Only relative to each other: the group as a whole is moved to the middle of its box."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(4):
        blob = ndimage.gaussian_filter(rng.standard_normal((30, 24, 20)), 3)
        masks.append(CoarseMask(*cropped(blob > blob.std(), affine_of(LINEAR["anisotropic"]))))
    found, expected = common_centers(masks), whole_correlation_centers(masks)
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=0, atol=1e-8)


def test_one_voxel_is_a_mask():
    voxel = np.ones((1, 1, 1), bool), affine_of(LINEAR["RAS"], (4, 5, 6))
    np.testing.assert_allclose(centers([voxel, voxel]), [[4, 5, 6]] * 2)


def sharpness(crops, points, step_mm=2.0, reach_mm=100):
    """Mean over all pairs of masks of their overlap, each mask about its point."""
    axis = np.arange(-reach_mm, reach_mm, step_mm)
    grid = affine_of(np.eye(3) * step_mm, [axis[0]] * 3)
    total = np.zeros([len(axis)] * 3, np.float32)
    for (mask, affine), point in zip(crops, points, strict=True):
        about = affine.copy()
        about[:3, 3] -= point
        index = np.linalg.inv(about) @ grid
        total += ndimage.affine_transform(
            mask.astype(np.float32), index, output_shape=total.shape, order=1
        )
    return float((total / len(crops)).ravel() @ (total / len(crops)).ravel())


@real("chaos_mr_t2/labelsTr")
def test_real_organs_overlap_more_about_their_common_centre_than_about_their_boxes():
    labels = [open_label(path) for path in sorted(CHAOS.glob("*.nii.gz"))[:6]]
    found = zip(*[organ_masks(label, [2, 3, 4]) for label in labels], strict=True)
    for crops in found:
        common = sharpness(crops, centers(crops))
        box, mass = (
            sharpness(crops, [center_and_reach(*crop, kind)[0] for crop in crops])
            for kind in ("bbox", "mass")
        )
        assert common > 1.01 * box
        # The grid of 3 mm is the limit where the centres of mass fit nearly as well.
        assert common > 0.995 * mass


# --- offsets -------------------------------------------------------------------------------------


def offsets_by_loop(centers_mm):
    """Least squares, by turns for the scans and for the organs."""
    offset = np.zeros((len(centers_mm), 3))
    scans = {scan for seen in centers_mm for scan in seen}
    for _ in range(1000):
        before = offset
        pairs = list(zip(centers_mm, offset, strict=True))
        middle = {s: np.mean([c[s] - o for c, o in pairs if s in c], axis=0) for s in scans}
        offset = np.array([np.mean([c[s] - middle[s] for s in c], axis=0) for c in centers_mm])
        offset -= offset.mean(0)
        if np.abs(offset - before).max() < 1e-9:
            break
    return offset


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_offsets_are_those_of_least_squares(seed, missing):
    rng = np.random.default_rng(seed)
    scans, organs = 7, 5
    common, offset = rng.normal(size=(scans, 3)) * 300, rng.normal(size=(organs, 3)) * 60
    seen = rng.random((organs, scans)) >= missing
    seen[:, 0] = seen[0] = True  # so that all are connected
    centers_mm = [
        {s: common[s] + offset[k] + rng.normal(size=3) * 10 for s in np.flatnonzero(seen[k])}
        for k in range(organs)
    ]
    found = np.array(mean_offsets(centers_mm))
    np.testing.assert_allclose(found, offsets_by_loop(centers_mm), atol=1e-3)
    np.testing.assert_allclose(found.sum(0), 0, atol=0.01)
    np.testing.assert_allclose(found, offset - offset.mean(0), atol=25)


def test_with_all_organs_everywhere_offsets_are_means():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(3, 4, 3)) * 50  # organ, scan
    expected = (points - points.mean(0)).mean(1)
    found = mean_offsets([dict(enumerate(organ)) for organ in points])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert all(isinstance(x, float) for offset in found for x in offset)


def test_scans_that_lack_an_organ_do_not_pull_the_others():
    """Organ 1 is 10 mm right of organ 0 wherever both are; the scans without it lie elsewhere."""
    centers_mm = [{s: np.array([100.0 * s, 0, 0]) for s in range(4)}, {3: np.array([310.0, 0, 0])}]
    np.testing.assert_allclose(mean_offsets(centers_mm), [[-5, 0, 0], [5, 0, 0]], atol=1e-3)


def test_organs_are_connected_through_others():
    point = np.zeros(3)
    chain = [{0: point}, {0: point + 10, 1: point}, {1: point + 4}]
    found = np.array(mean_offsets(chain))
    np.testing.assert_allclose(found - found[0], [[0] * 3, [10] * 3, [14] * 3], atol=2e-3)


@pytest.mark.parametrize(
    "scans",
    [[[0, 1]], [[0], [1]], [[0, 1], [0, 1], [2]], [[0, 1], [0, 1], []], [[0, 1], [1], [2, 3], [3]]],
    ids=["one organ", "apart", "one apart", "one nowhere", "two groups"],
)
def test_without_a_chain_of_scans_there_are_no_offsets(scans):
    centers_mm = [{s: np.arange(3.0) + s for s in seen} for seen in scans]
    assert mean_offsets(centers_mm) == [None] * len(scans)
