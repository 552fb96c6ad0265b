"""KL positioning against the plain loop over translations."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.one_device import OneDevice
from helpers.real_data import DATA, real
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation
from scipy.special import rel_entr

from stipple_monai.errors import PositionError
from stipple_monai.positioning import single as positioning
from stipple_monai.positioning.single import (
    DEFAULT_EPSILON,
    cells_of,
    locate_organ,
    measure_position,
)
from stipple_monai.priors.organ import organ_position
from stipple_monai.priors.prior import SpatialPrior

PANCREAS = DATA / "pancreas_ct_labels"

OBLIQUE = Rotation.from_euler("xyz", [12, -20, 33], degrees=True).as_matrix()
AFFINES = {
    "RAS": np.diag([2.0, 2.0, 2.0]),
    "anisotropic LAI": np.diag([-1.5, 2.0, -3.0]),
    "SLP": np.array([[0, -2.0, 0], [0, 0, -1.5], [2.5, 0, 0]]),
    "oblique": OBLIQUE @ np.diag([1.5, 2.0, 2.5]),
}


def scan(array, linear=AFFINES["RAS"], origin=(-31.3, 12.7, 204.1), dtype=torch.float64):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    return MetaTensor(torch.as_tensor(np.array(array), dtype=dtype)[None], affine=affine)


def random_scan(rng, shape, linear, kind):
    probability = rng.random(shape) ** 3
    return scan(probability if kind == "soft" else probability > 0.4, linear)


def random_reference(rng, shape=(4, 3, 3), spacing_mm=(1.8, 2.1, 2.6)):
    return SpatialPrior(rng.random(shape), spacing_mm=spacing_mm)


def around_center(reference, affine):
    """The reference on the scan's axes, its centre on the middle voxel; the fewest voxels."""
    half = int(np.linalg.norm(reference.size_mm) / np.linalg.svd(affine[:3, :3])[1].min()) + 1
    centered = affine.copy()
    centered[:3, 3] = -affine[:3, :3] @ np.full(3, half)
    grid = MetaTensor(torch.zeros(1, *[2 * half + 1] * 3), affine=centered)
    values = reference.place((0, 0, 0), grid).numpy()[0].astype(np.float64)
    reach = np.abs(np.argwhere(values > 0) - half).max(0)
    return values[tuple(slice(half - r, half + r + 1) for r in reach)]


def divergences(q, kernel, epsilon):
    """``KL(R ‖ Q)`` with R centred on each voxel of q and beyond, as far as the two overlap.

    Returns the sum over the domain that R touches at any of them, and the first voxel's index.
    """
    reach = np.array(kernel.shape) // 2
    domain = np.pad(
        q.clip(epsilon, 1 - epsilon), [(2 * r,) * 2 for r in reach], constant_values=epsilon
    )
    absent = rel_entr(1, 1 - domain)
    kl = np.empty(np.array(q.shape) + 2 * reach)
    for t in itertools.product(*map(range, kl.shape)):
        window = tuple(slice(i, i + n) for i, n in zip(t, kernel.shape, strict=True))
        present = rel_entr(kernel, domain[window]) + rel_entr(1 - kernel, 1 - domain[window])
        kl[t] = absent.sum() - absent[window].sum() + present.sum()
    return kl, -reach


def best_point(kl, first, volume, *, minimum=0.5, max_shift_mm=np.inf):
    affine, q = volume.affine.numpy(), volume.numpy()[0]
    mean = apply_affine(affine, np.argwhere(q >= minimum).mean(0))
    points = apply_affine(affine, np.argwhere(np.isfinite(kl)) + first)
    distance = np.linalg.norm(points - mean, axis=1)
    values = np.where(distance <= max_shift_mm, kl.ravel(), np.inf)
    equal = values <= values.min() + 1e-9 * abs(values.min())
    return points[np.where(equal, distance, np.inf).argmin()]


def plain_loop(volume, reference, *, epsilon=DEFAULT_EPSILON, **limits):
    kernel = around_center(reference, volume.affine.numpy())
    kl, first = divergences(volume.numpy()[0].astype(np.float64), kernel, epsilon)
    return best_point(kl, first, volume, **limits)


def assert_same_point(found, expected):
    assert found is not None
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("affine", ["anisotropic LAI", "oblique"])
def test_the_oracle_is_the_divergence_of_placed_references(affine):
    rng = np.random.default_rng(5)
    volume = random_scan(rng, (3, 4, 2), AFFINES[affine], "soft")
    reference = random_reference(rng, (2, 2, 2))
    kl, first = divergences(volume.numpy()[0], around_center(reference, volume.affine.numpy()), 0.1)
    margin = 9
    q = np.pad(volume.numpy()[0], margin).clip(0.1, 0.9)
    affine = volume.affine.numpy().copy()
    at = [apply_affine(affine, t + first) for t in np.ndindex(kl.shape)]
    affine[:3, 3] = apply_affine(affine, [-margin] * 3)
    grid = MetaTensor(torch.zeros(1, *q.shape), affine=affine)
    literal = []
    for point in at[::7]:
        r = reference.place(point, grid).numpy()[0].astype(np.float64)
        literal.append((rel_entr(r, q) + rel_entr(1 - r, 1 - q)).sum())
    # The domains differ, and with them a constant.
    np.testing.assert_allclose(
        np.array(literal) - literal[0], kl.ravel()[::7] - kl[0, 0, 0], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["soft", "binary"])
@pytest.mark.parametrize("affine", AFFINES)
def test_equals_the_plain_loop_on_random_volumes(affine, kind, seed):
    rng = np.random.default_rng(seed)
    shape = [(7, 6, 5), (4, 8, 6), (9, 3, 1)][seed]
    volume = random_scan(rng, shape, AFFINES[affine], kind)
    reference = random_reference(rng, [(4, 3, 3), (3, 3, 5), (2, 5, 4)][seed])
    assert_same_point(locate_organ(volume, reference), plain_loop(volume, reference))


@pytest.mark.parametrize("seed", range(6))
def test_narrowing_a_large_search_changes_nothing(seed, monkeypatch):
    monkeypatch.setattr(positioning, "_LARGE_BOX", 0)
    monkeypatch.setattr(positioning, "CELL_MM", 8.0)
    rng = np.random.default_rng(seed)
    volume = random_scan(rng, (9, 8, 6), AFFINES["anisotropic LAI"], "soft")
    reference = random_reference(rng)
    assert_same_point(locate_organ(volume, reference), plain_loop(volume, reference))


@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 0.2])
def test_equals_the_plain_loop_for_other_epsilon(epsilon):
    rng = np.random.default_rng(11)
    volume = random_scan(rng, (6, 6, 6), AFFINES["oblique"], "soft")
    reference = random_reference(rng)
    assert_same_point(
        locate_organ(volume, reference, epsilon=epsilon),
        plain_loop(volume, reference, epsilon=epsilon),
    )


def test_the_choice_depends_on_epsilon():
    """A confident speck wins where ε makes its evidence great, a broad faint patch elsewhere."""
    q = np.zeros((20, 5, 5))
    q[3, 2, 2], q[12:15, 1:4, 1:4] = 0.999, 0.2
    reference = SpatialPrior(np.full((3, 3, 3), 0.5), spacing_mm=(2, 2, 2))
    found = [locate_organ(scan(q), reference, epsilon=e)[0].item() for e in (1e-3, 0.19)]
    assert found[0] == pytest.approx(-31.3 + 2 * 13)
    assert found[1] < -31.3 + 2 * 6


def test_mean_divergence_over_references_is_the_divergence_from_their_mean():
    rng = np.random.default_rng(2)
    volume = random_scan(rng, (8, 7, 6), AFFINES["SLP"], "soft")
    singles = [(rng.random((4, 4, 3)) > 0.6).astype(np.float32) for _ in range(4)]
    affine, mean_kl = volume.affine.numpy(), 0
    full = SpatialPrior(np.ones((4, 4, 3)), spacing_mm=(2, 2, 2))
    reach = np.array(around_center(full, affine).shape) // 2
    for single in singles:
        kernel = around_center(SpatialPrior(single, spacing_mm=(2, 2, 2)), affine)
        margin = reach - np.array(kernel.shape) // 2
        kernel = np.pad(kernel, [(m, m) for m in margin])
        kl, first = divergences(volume.numpy()[0], kernel, DEFAULT_EPSILON)
        mean_kl = mean_kl + kl / len(singles)
    reference = SpatialPrior(np.mean(singles, axis=0), spacing_mm=(2, 2, 2))
    assert_same_point(locate_organ(volume, reference), best_point(mean_kl, first, volume))


@pytest.mark.parametrize("linear", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("center", ["bbox", "mass"])
def test_a_label_is_found_where_it_is_by_its_own_reference(linear, center):
    label = np.zeros((16, 15, 14), np.float32)
    label[3:8, 4:7, 5:12] = 1
    label[3:6, 4:5, 5:9] = 0
    volume = scan(label, linear, dtype=torch.float32)
    reference = SpatialPrior.estimate([volume], smoothing_mm=None, center=center)
    found = locate_organ(volume, reference)
    voxel_mm = np.linalg.norm(linear, axis=0).max()
    assert (found - organ_position(volume, center=center)).norm() <= voxel_mm * 0.9


@pytest.mark.parametrize("max_shift_mm", [0.5, 3.0, 5.0, 9.0])
@pytest.mark.parametrize("affine", ["anisotropic LAI", "oblique"])
def test_limited_search_equals_the_limited_loop(affine, max_shift_mm):
    rng = np.random.default_rng(7)
    q = rng.random((8, 7, 6)) ** 3
    q[0, 0, 0] = 1.0
    volume = scan(q, AFFINES[affine])
    reference = random_reference(rng, (2, 2, 2))
    mean = apply_affine(volume.affine.numpy(), np.argwhere(q >= 0.5).mean(0))
    grid = apply_affine(volume.affine.numpy(), np.indices(q.shape).reshape(3, -1).T)
    nearest = np.linalg.norm(grid - mean, axis=1).min()
    found = locate_organ(volume, reference, max_shift_mm=max_shift_mm)
    limit = max(max_shift_mm, nearest)
    assert_same_point(found, plain_loop(volume, reference, max_shift_mm=limit + 1e-9))
    assert (found - torch.from_numpy(mean)).norm() <= limit + 1e-9


def test_a_limit_is_in_mm_along_whatever_axis_of_the_array():
    """The organ lies 5 mm in front of the mean, which something else behind it draws away."""
    q, ball = torch.zeros(1, 20, 24, 10), SpatialPrior(torch.ones(5, 5, 12), spacing_mm=(1, 1, 1))
    q[0, 8:13, 4:9, 3:6], q[0, 8:13, 15:19, 3:6] = 0.9, 0.6
    affine = torch.diag(torch.tensor([1.0, 1, 4, 1]))
    for order in itertools.permutations(range(3)):
        turned = q.permute(0, *(1 + axis for axis in order))
        volume = MetaTensor(turned, affine=affine[:, [*order, 3]])
        assert locate_organ(volume, ball, max_shift_mm=6.0).tolist() == [10, 6, 16]


def line_scan(values, spacing=1.0, origin=-31.3):
    return scan(np.reshape(values, (-1, 1, 1)), np.eye(3) * spacing, (origin, 0.3, 0.7))


@pytest.mark.parametrize("origin", [0.0, 12.34, -301.7, 57.31, 1000.1])
@pytest.mark.parametrize("spacing", [0.1, 0.3, 0.7, 0.859375, 1.0, 1.17])
def test_the_limit_of_the_search_is_inclusive(spacing, origin):
    q = np.zeros(21)
    q[[5, 10, 15]] = 0.6, 0.7, 0.99
    point = SpatialPrior(np.ones((1, 1, 1)), spacing_mm=[spacing] * 3)
    volume = line_scan(q, spacing, origin)
    at_limit = locate_organ(volume, point, max_shift_mm=5 * spacing)
    inside = locate_organ(volume, point, max_shift_mm=4.99 * spacing)
    assert at_limit[0] == pytest.approx(origin + 15 * spacing)
    assert inside[0] == pytest.approx(origin + 10 * spacing)


def test_a_limit_below_the_voxel_size_leaves_the_voxel_nearest_to_the_centre_of_mass():
    q = np.zeros(10)
    q[[2, 3, 3 + 3]] = 0.9  # centre of mass at 11 / 3
    point = SpatialPrior(np.ones((1, 1, 1)), spacing_mm=(1, 1, 1))
    found = locate_organ(line_scan(q, origin=0.0), point, max_shift_mm=1e-3)
    assert found.tolist() == [4, 0.3, 0.7]


def test_where_nothing_speaks_for_any_position_within_the_limit_the_centre_of_mass_wins():
    q = np.zeros((41, 7, 7))
    q[0, 3, 3] = q[40, 3, 3] = 1
    reference = SpatialPrior(np.random.default_rng(0).random((3, 3, 3)), spacing_mm=(2, 2, 2))
    volume = scan(q)
    found = locate_organ(volume, reference, max_shift_mm=12)
    assert_same_point(found, apply_affine(volume.affine.numpy(), [20, 3, 3]))


def test_of_equals_the_nearest_to_the_centre_of_mass_wins():
    q = np.zeros(16)
    q[[2, 10, 11]] = 1  # centre of mass at 7.67
    point = SpatialPrior(np.ones((1, 1, 1)), spacing_mm=(1, 1, 1))
    assert locate_organ(line_scan(q, origin=0.0), point)[0] == 10
    assert locate_organ(line_scan(q[::-1], origin=0.0), point)[0] == 5


def test_a_slightly_better_position_wins_over_a_nearer_one():
    q = np.zeros(16)
    q[[2, 10, 11]] = 0.90001, 0.9, 0.9
    point = SpatialPrior(np.ones((1, 1, 1)), spacing_mm=(1, 1, 1))
    assert locate_organ(line_scan(q, origin=0.0), point)[0] == 2


def test_a_plateau_of_equals_is_resolved_to_its_middle():
    q = np.zeros((15, 15, 15))
    q[6:9, 6:9, 6:9] = 1
    block = SpatialPrior(np.ones((7, 7, 7)), spacing_mm=(2, 2, 2))
    volume = scan(q)
    assert_same_point(locate_organ(volume, block), apply_affine(volume.affine.numpy(), [7, 7, 7]))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_the_centre_of_an_organ_cut_by_the_field_of_view_may_lie_outside(cut):
    """Only the top slices of an organ that widens upwards are seen."""
    organ = np.zeros((9, 9, 9), np.float32)
    for z in range(9):
        half = z // 2
        organ[4 - half : 5 + half, 4 - half : 5 + half, z] = 1
    reference = SpatialPrior(organ, spacing_mm=(2, 2, 2))
    q = np.zeros((15, 15, 12))
    q[3:12, 3:12, :cut] = organ[:, :, 9 - cut :]
    volume = scan(q)
    found = locate_organ(volume, reference)
    assert_same_point(found, plain_loop(volume, reference))
    voxel = apply_affine(np.linalg.inv(volume.affine.numpy()), found.numpy())
    assert voxel[2] < 0


def test_nothing_predicted_is_no_position():
    reference = random_reference(np.random.default_rng(0))
    q = np.zeros((5, 5, 5))
    assert locate_organ(scan(q), reference) is None
    q[2, 2, 2] = 0.49
    assert locate_organ(scan(q), reference) is None
    assert locate_organ(scan(q), reference, minimum=0.49) is not None
    assert locate_organ(scan(np.zeros((5, 5, 5))), reference, minimum=0) is None
    assert locate_organ(scan(np.full((5, 5, 5), 1e-3)), reference, minimum=0) is None


def test_reaching_the_minimum_is_a_prediction():
    q = np.zeros((5, 5, 5))
    q[1, 2, 3] = 0.5
    volume = scan(q)
    point = SpatialPrior(np.ones((1, 1, 1)), spacing_mm=(2, 2, 2))
    expected = apply_affine(volume.affine.numpy(), [1, 2, 3])
    assert_same_point(locate_organ(volume, point), expected)


def test_the_minimum_moves_the_centre_of_mass_of_a_limited_search():
    q = np.zeros(20)
    q[[3, 9, 15]] = 0.9, 0.4, 0.4
    point = SpatialPrior(np.ones((1, 1, 1)), spacing_mm=(1, 1, 1))
    volume = line_scan(q, origin=0.0)
    assert locate_organ(volume, point, max_shift_mm=2)[0] == 3
    assert locate_organ(volume, point, max_shift_mm=2, minimum=0.4)[0] == 9


@pytest.mark.parametrize("codes", ["LPS", "RSA", "ILP", "SAR"])
@pytest.mark.parametrize("linear", [AFFINES["RAS"], AFFINES["oblique"]], ids=["RAS", "oblique"])
def test_flipped_and_permuted_arrays_give_the_same_point(codes, linear):
    rng = np.random.default_rng(13)
    volume = random_scan(rng, (8, 7, 6), linear, "soft")
    reference = random_reference(rng)
    axes = ["RAS".index(c) if c in "RAS" else "LPI".index(c) for c in codes]
    turn = np.array([[axes.index(i), 1 if "RAS"[i] in codes else -1] for i in range(3)])
    image = nib.Nifti1Image(volume.numpy()[0], volume.affine.numpy())
    q = nib.orientations.apply_orientation(image.get_fdata(), turn)
    affine = image.affine @ nib.orientations.inv_ornt_aff(turn, image.shape)
    turned = MetaTensor(torch.from_numpy(q.copy())[None], affine=affine)
    found = locate_organ(turned, reference)
    assert_same_point(found, locate_organ(volume, reference).numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_any_precision_in_float64_point_out(dtype):
    q = np.zeros((9, 9, 9))
    q[2:5, 3:6, 4:7] = 1
    volume = scan(q, dtype=dtype)
    before = volume.clone()
    cube = SpatialPrior(np.ones((3, 3, 3)), spacing_mm=(2, 2, 2))
    found = locate_organ(volume, cube)
    assert found.dtype == torch.float64
    assert type(found) is torch.Tensor
    assert_same_point(found, apply_affine(volume.affine.numpy(), [3, 4, 5]))
    assert torch.equal(volume, before)


def test_gradients_and_autocast_change_nothing():
    rng = np.random.default_rng(3)
    volume, reference = random_scan(rng, (6, 6, 6), AFFINES["RAS"], "soft"), random_reference(rng)
    expected = locate_organ(volume, reference)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_point(locate_organ(volume, reference), expected)
    found = locate_organ(volume.clone().requires_grad_(), reference)
    assert not found.requires_grad
    assert_same_point(found, expected)


# --- the search through bounds -------------------------------------------------------------------


@pytest.mark.parametrize("cell_mm", [1.0, 4.0, 15.0])
@pytest.mark.parametrize("affine", ["anisotropic LAI", "oblique"])
def test_equals_the_plain_loop_whatever_the_cells(monkeypatch, affine, cell_mm):
    monkeypatch.setattr("stipple_monai.positioning.single.CELL_MM", cell_mm)
    rng = np.random.default_rng(23)
    for kind in ("soft", "binary"):
        volume = random_scan(rng, (9, 8, 7), AFFINES[affine], kind)
        reference = random_reference(rng)
        assert_same_point(locate_organ(volume, reference), plain_loop(volume, reference))


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_plain_loop_on_fine_voxels_with_several_to_a_cell(seed):
    rng = np.random.default_rng(seed)
    q = np.zeros((22, 19, 10))
    for probability in (0.6, 0.9, 0.7):
        x, y, z = (int(rng.integers(0, n - 5)) for n in q.shape)
        q[x : x + 5, y : y + 4, z : z + 3] = probability
    q += rng.random(q.shape) * 0.05
    volume = scan(q, np.diag([1.0, -0.9, 1.6]))
    reference = random_reference(rng, (5, 4, 3), (1.1, 1.0, 1.4))
    assert cells_of(volume.affine) == (4, 4, 2)
    assert_same_point(locate_organ(volume, reference), plain_loop(volume, reference))


def test_equals_far_apart_are_all_seen():
    """The nearest to the centre of mass wins, however far the cells of the others."""
    q = np.zeros((60, 9, 9))
    for x in (3, 33, 54):
        q[x : x + 3, 3:6, 3:6] = 0.9
    volume = scan(q, np.eye(3), (0, 0, 0))
    reference = SpatialPrior(np.ones((3, 3, 3)), spacing_mm=(1, 1, 1))
    assert locate_organ(volume, reference).tolist() == [34, 4, 4]


def test_cells_have_about_four_millimetres():
    affine = torch.diag(torch.tensor([-0.7, 1.25, 7.7, 1.0]).double())
    assert cells_of(affine) == (6, 3, 1)
    affine[:3, :3] = torch.from_numpy(OBLIQUE @ np.diag([2.0, 4.5, 0.5]))
    assert cells_of(affine) == (2, 1, 8)


# --- measured positions --------------------------------------------------------------------------


@pytest.mark.parametrize("linear", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("center", ["bbox", "mass"])
def test_a_label_is_measured_as_its_prior_defines_the_centre(linear, center):
    label = np.zeros((16, 15, 14))
    label[3:8, 4:7, 5:12], label[3:6, 4:5, 5:9], label[9, 9, 9] = 2, 0, 1
    volume = scan(label, linear, dtype=torch.uint8)
    prior = SpatialPrior.estimate([volume], organ=2, center=center)
    expected = organ_position(volume, organ=2, center=center)
    assert torch.equal(measure_position(volume, prior), expected)


@pytest.mark.parametrize("linear", AFFINES.values(), ids=AFFINES)
def test_the_group_wise_centre_is_where_the_label_fits_the_prior_best(linear):
    rng = np.random.default_rng(8)
    label = np.zeros((8, 9, 7))
    label[2:7, 3:6, 2:6] = rng.random((5, 3, 4)) > 0.3
    label[0, 0, 0] = 3
    volume = scan(label, linear)
    prior = random_reference(rng)
    prior.center = "groupwise"
    organ = scan(label == 1, linear)
    assert_same_point(measure_position(volume, prior), plain_loop(organ, prior))


@pytest.mark.parametrize("linear", [AFFINES["RAS"], AFFINES["oblique"]])
def test_a_reference_is_sampled_where_it_is_compared(linear):
    """On a GPU's processor that takes a third of a second, and on the GPU next to nothing."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.as_tensor(linear)
    reference = random_reference(np.random.default_rng(3))
    with OneDevice():
        kernel = positioning.around_center(reference, affine, device="meta")
    assert kernel.device.type == "meta"
    assert kernel.shape == positioning.around_center(reference, affine).shape


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("max_shift_mm", [None, 4.0])
def test_cuda_gives_the_point_of_the_cpu(max_shift_mm):
    rng = np.random.default_rng(17)
    reference = random_reference(rng)
    for linear in AFFINES.values():
        volume = random_scan(rng, (9, 8, 7), linear, "soft")
        found = locate_organ(volume.cuda(), reference, max_shift_mm=max_shift_mm)
        assert found.device.type == "cpu"
        assert_same_point(found, locate_organ(volume, reference, max_shift_mm=max_shift_mm))


VALID = np.full((4, 4, 4), 0.7)


@pytest.mark.parametrize(
    ("probability", "options", "message"),
    [
        (scan(VALID), {"epsilon": 0.0}, r"`epsilon` must lie in \(0, 0\.5\), got 0\.0"),
        (scan(VALID), {"epsilon": 0.5}, r"`epsilon` must lie in"),
        (scan(VALID), {"max_shift_mm": 0}, "`max_shift_mm` must be positive or None, got 0"),
        (scan(VALID), {"max_shift_mm": float("nan")}, "`max_shift_mm` must be positive"),
        (scan(VALID), {"minimum": 1.5}, r"`minimum` must be a probability in \[0, 1\], got 1\.5"),
        (scan(VALID), {"minimum": float("nan")}, "`minimum` must be a probability"),
        (torch.zeros(1, 4, 4, 4), {}, "`probability` must be a MetaTensor"),
        (scan(VALID)[0], {}, r"the axes 1 W H D, got the shape \(4, 4, 4\)"),
        (MetaTensor(torch.zeros(2, 4, 4, 4)), {}, r"one organ's map .* \(2, 4, 4, 4\)"),
        (scan(VALID * 2), {}, r"must lie in \[0, 1\], got \[1\.4, 1\.4\]: apply softmax"),
        (scan(VALID - 1), {}, r"must lie in \[0, 1\], got \[-0\.3"),
        (scan(np.where(VALID > 0, np.nan, 0)), {}, r"must lie in \[0, 1\], got \[nan"),
        (scan(VALID, np.diag([1.0, 0, 1])), {}, "must have an invertible 4 × 4 affine"),
        (scan(VALID, np.eye(3), (np.nan, 0, 0)), {}, "must have an invertible 4 × 4 affine"),
    ],
)
def test_errors(probability, options, message):
    reference = SpatialPrior(np.ones((2, 2, 2)), spacing_mm=(1, 1, 1))
    with pytest.raises(PositionError, match=message):
        locate_organ(probability, reference, **options)


def pooled(path, block_mm):
    """A real map averaged in blocks of about ``block_mm``."""
    image = nib.load(path)
    blocks = np.maximum(np.rint(block_mm / np.array(image.header.get_zooms())), 1).astype(int)
    n = np.array(image.shape) // blocks
    data = np.asarray(image.dataobj)[tuple(slice(0, s) for s in n * blocks)] > 0
    shape = np.stack([n, blocks], axis=1).ravel()
    affine = image.affine @ np.diag([*blocks, 1.0])
    affine[:3, 3] = apply_affine(image.affine, (blocks - 1) / 2)
    return MetaTensor(data.reshape(shape).mean((1, 3, 5))[None], affine=affine)


@pytest.fixture(scope="module")
def real_reference():
    names = ["305", "191", "385", "222"]
    labels = [pooled(PANCREAS / "labels" / f"{n}.nii.gz", 4.0) for n in names]
    return SpatialPrior.estimate([(v > 0.5).to(torch.uint8) for v in labels], bins=5)


@real("pancreas_ct_labels")
@pytest.mark.parametrize("network", ["coarse_predictions_wce", "coarse_predictions_ce"])
@pytest.mark.parametrize("case", ["040", "186", "422"])
def test_equals_the_plain_loop_on_real_predictions(real_reference, network, case):
    volume = pooled(PANCREAS / network / f"{case}.nii.gz", 9.0)
    found = locate_organ(volume, real_reference, minimum=0.2)
    # Outside the box of what is predicted the divergence is the same wherever the reference lies.
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(volume.numpy()[0]))
    affine = volume.affine.numpy().copy()
    affine[:3, 3] = apply_affine(affine, [s.start for s in box])
    seen = MetaTensor(torch.from_numpy(volume.numpy()[0][box].copy())[None], affine=affine)
    assert_same_point(found, plain_loop(seen, real_reference, minimum=0.2))


@real("pancreas_ct_labels")
def test_real_organs_are_found_nearer_than_by_the_centre_of_an_over_segmentation(real_reference):
    by_reference, by_center = [], []
    for case in ["040", "045", "186", "225", "312", "422"]:
        label = PANCREAS / "labels" / f"{case}.nii.gz"
        truth = organ_position(label)
        volume = pooled(PANCREAS / "coarse_predictions_wce" / f"{case}.nii.gz", 3.0)
        found = locate_organ(volume, real_reference)
        points = apply_affine(volume.affine.numpy(), np.argwhere(volume.numpy()[0] >= 0.5))
        box = (points.min(0) + points.max(0)) / 2
        by_reference.append((found - truth).norm().item())
        by_center.append(np.linalg.norm(box - truth.numpy()))
    assert np.mean(by_reference) < np.mean(by_center)
    assert max(by_reference) < 60
