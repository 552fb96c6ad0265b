"""Several organs positioned together, against loops over all translations and common centres."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.joint_scores import joint_marginals, joint_score_maps, score_maps
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from scipy import ndimage, signal
from scipy.spatial.transform import Rotation

from stipple_monai.errors import PositionError
from stipple_monai.positioning.joint import (
    APART_MM,
    DEFAULT_SPREAD_MM,
    JOINT_CELL_MM,
    coarse_affine,
    coarse_evidence,
    locate_organs,
    supported_shares,
)
from stipple_monai.positioning.orientation import check_orientation
from stipple_monai.positioning.references import random_references
from stipple_monai.positioning.single import DEFAULT_EPSILON, cells_of, locate_organ
from stipple_monai.positioning.star import best_together
from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.spatial import Votes

DATA = Path(__file__).parents[3] / "shared" / "data"
OBLIQUE = Rotation.from_euler("xyz", [12, -20, 33], degrees=True).as_matrix()
LINEAR = {
    "RAS": np.diag([4.0, 4.0, 4.0]),
    "LPS anisotropic": np.diag([-4.0, -4.0, 7.0]),
    "SLP": np.array([[0, -4.0, 0], [0, 0, -4.5], [5.0, 0, 0]]),
    "oblique": OBLIQUE @ np.diag([4.0, 4.5, 5.0]),
}
every_grid = pytest.mark.parametrize("linear", LINEAR.values(), ids=LINEAR)
CUBE = np.ones((5, 5, 5), np.float32)


CELL_MM = "stipple_monai.positioning.joint.JOINT_CELL_MM"


@pytest.fixture(autouse=True)
def cells_of_a_voxel(monkeypatch):
    """On these grids scores are computed by hand at every voxel: a cell is one."""
    monkeypatch.setattr(CELL_MM, 4.0)


def scan(maps, linear=LINEAR["RAS"], origin=(-31.3, 12.7, 204.1), dtype=torch.float32):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    return MetaTensor(torch.as_tensor(np.array(maps), dtype=dtype), affine=affine)


def cubes(shape, *organs):
    """One map per organ with a cube of five voxels at each ``(centre, probability)``."""
    maps = np.zeros((len(organs), *shape), np.float32)
    for k, places in enumerate(organs):
        for center, probability in places:
            maps[(k, *(slice(max(c - 2, 0), c + 3) for c in center))] = probability
    return maps


def cube_prior(organ, offset_mm=None, spacing_mm=(4, 4, 4)):
    return SpatialPrior(CUBE, spacing_mm=spacing_mm, organ=organ, offset_mm=offset_mm)


def random_priors(rng, offsets_mm):
    return [
        SpatialPrior(rng.random((4, 3, 3)), spacing_mm=(4.1, 5.3, 6.2), organ=k, offset_mm=o)
        for k, o in enumerate(offsets_mm, start=1)
    ]


def assert_same(found, expected, atol=1e-4):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# --- the joint score -----------------------------------------------------------------------------


def distances(shape, weight, offset, *, margin=0):
    """``Σ_a weight_a (t − c − μ)_a²`` for all t of an array and all c of one ``margin`` larger."""
    t = np.indices(shape).reshape(3, -1).T
    c = np.indices(np.array(shape) + 2 * margin).reshape(3, -1).T - margin
    return ((t[:, None] - c[None] - offset) ** 2) @ weight


def marginals_by_loop(share, offset, weight, *, margin=0, limited=True):
    """The best sum of all organs' terms with organ k at each cell, over every common centre."""
    shape, votes, costs = share.shape[1:], [], []
    centers = np.indices(np.array(shape) + 2 * margin).reshape(3, -1).T - margin
    for s, o in zip(share, offset, strict=True):
        cost = distances(shape, weight, o, margin=margin)
        vote = (s.reshape(-1, 1) - cost).max(0).clip(min=0)
        outside = ((centers + o < 0) | (centers + o >= shape)).any(1)
        if limited:
            vote[outside] = 0
        votes.append(vote)
        costs.append(cost)
    marginals = []
    for s, vote, cost, o in zip(share, votes, costs, offset, strict=True):
        others = (np.sum(votes, 0) - vote - cost).max(1).clip(min=0)
        t = np.indices(shape).reshape(3, -1).T
        if limited:
            others[((t - o < 0) | (t - o >= shape)).any(1)] = 0
        marginals.append(s + others.reshape(shape))
    return np.array(marginals)


@pytest.mark.parametrize("seed", range(6))
def test_marginals_are_the_best_of_all_translations_and_centres(seed):
    rng = np.random.default_rng(seed)
    shape = [(6, 5, 4), (9, 7, 1), (11, 2, 3)][seed % 3]
    share = rng.random((3, *shape)) * (rng.random((3, *shape)) > 0.8)
    offset = rng.integers(-3, 4, (3, 3)) if seed < 3 else rng.integers(-1, 2, (3, 3))
    offset = np.minimum(offset, np.array(shape) - 1)
    offset = np.maximum(offset, 1 - np.array(shape))
    weight = rng.random(3) * 0.3 + 0.01
    args = torch.from_numpy(share), torch.from_numpy(offset), torch.from_numpy(weight)
    found = joint_marginals(*args).numpy()
    np.testing.assert_allclose(found, marginals_by_loop(share, offset, weight), atol=1e-12)


def test_with_room_around_what_is_supported_no_centre_is_left_out():
    rng = np.random.default_rng(0)
    share = np.zeros((2, 16, 6, 5))
    share[:, 7:9, 2:4, 2:3] = rng.random((2, 2, 2, 1))
    offset = np.array([[3, 0, -1], [-3, 1, 1]])
    weight = np.array([0.2, 0.4, 0.7])
    args = torch.from_numpy(share), torch.from_numpy(offset), torch.from_numpy(weight)
    everywhere = marginals_by_loop(share, offset, weight, margin=3, limited=False)
    found = joint_marginals(*args).numpy()
    assert [m.argmax() for m in found] == [m.argmax() for m in everywhere]
    middle = (slice(None), slice(5, 11), slice(1, 5), slice(1, 4))
    np.testing.assert_allclose(found[middle], everywhere[middle], atol=1e-12)


def test_two_organs_by_hand():
    """One is seen, the other nowhere: it scores what the first leaves after their distance."""
    share = torch.zeros(2, 12, 1, 1, dtype=torch.float64)
    share[0, 3] = 0.8
    offset = torch.tensor([[-2, 0, 0], [2, 0, 0]])
    found = joint_marginals(share, offset, torch.tensor([0.1, 1.0, 1.0]))
    assert found[0].flatten().tolist() == share[0].flatten().tolist()
    # Deviations add up: from the first organ to the centre, and from there to the second.
    expected = [0.0] * 12
    for t in range(12):
        deviations = [abs(c - (t - 2)) ** 2 + abs(3 - (c - 2)) ** 2 for c in range(12)]
        expected[t] = max(0, 0.8 - 0.1 * min(deviations)) if t >= 2 else 0
    assert expected[7] == 0.8
    torch.testing.assert_close(found[1].flatten(), torch.tensor(expected, dtype=torch.float64))


def share_by_hand(volume, prior, first, shape):
    """Share of the prior's probability that the prediction supports, cell by cell."""
    linear = volume.affine.numpy()[:3, :3]
    half = [-a for a in (first + 0)]
    centered = np.eye(4)
    centered[:3, :3], centered[:3, 3] = linear, -linear @ half
    grid = MetaTensor(torch.zeros(1, *[2 * h + 1 for h in half]), affine=centered)
    kernel = prior.place((0, 0, 0), grid).numpy()[0].astype(np.float64)
    q = volume.numpy()[0].astype(np.float64).clip(DEFAULT_EPSILON, 1 - DEFAULT_EPSILON)
    least = np.log(DEFAULT_EPSILON / (1 - DEFAULT_EPSILON))
    evidence = (np.log(q / (1 - q)) - least) / (-2 * least)
    score = signal.correlate(evidence, kernel, method="direct") / kernel.sum()
    assert score.shape == shape
    return score


@pytest.mark.slow
@every_grid
def test_scores_are_the_shares_of_the_priors_that_are_supported(linear):
    rng = np.random.default_rng(3)
    offsets = [(6.0, -4, 3), (-5, 4, -3)]
    priors, q = random_priors(rng, offsets), rng.random((2, 4, 3, 3)).astype(np.float32)
    volume = scan(q, linear)
    assert cells_of(volume.affine) == (1, 1, 1)
    blocks = coarse_evidence(volume.as_tensor(), (1, 1, 1), epsilon=DEFAULT_EPSILON)
    coarse = coarse_affine(volume.affine.double(), (1, 1, 1))
    assert torch.equal(coarse, volume.affine.double())
    alone, start = score_maps(blocks, priors, coarse)
    expected = [
        share_by_hand(scan(q[k : k + 1], linear), prior, start.numpy(), alone[k].shape)
        for k, prior in enumerate(priors)
    ]
    np.testing.assert_allclose(alone.numpy(), expected, atol=1e-5)

    together, wider = joint_score_maps(alone, start, priors, coarse, 30.0)
    room = (start - wider).tolist()
    padded = np.pad(expected, [(0, 0), *[(r, r) for r in room]])
    offset = np.rint(np.array(offsets) @ np.linalg.inv(linear).T).astype(int)
    assert (np.abs(offset).max(0) <= room).all()
    weight = np.linalg.norm(linear, axis=0) ** 2 / (2 * 30.0**2)
    by_loop = marginals_by_loop(padded, offset, weight)
    np.testing.assert_allclose(together.numpy(), by_loop, atol=1e-5)


def test_full_support_is_one():
    cells = torch.ones(1, 9, 9, 9)
    blocks = coarse_evidence(cells, (1, 1, 1), epsilon=DEFAULT_EPSILON)
    score, start = score_maps(blocks, [cube_prior(1)], torch.eye(4).double() * 4)
    assert float(score.max()) == pytest.approx(1, abs=1e-5)
    assert float(score[0, 4 - start[0], 4 - start[1], 4 - start[2]]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cells", [(1, 1, 1), (3, 2, 1), (4, 4, 4)])
def test_cells_are_means_at_their_middles(cells):
    rng = np.random.default_rng(1)
    shape = tuple(3 * c for c in cells)
    volume = scan(rng.random((2, *shape)), LINEAR["oblique"] / 3)
    found = coarse_evidence(volume.as_tensor(), cells, epsilon=0.01)
    evidence = torch.logit(volume.as_tensor().clamp(0.01, 0.99)) + np.log(99)
    blocks = evidence.reshape(2, 3, cells[0], 3, cells[1], 3, cells[2]).mean((2, 4, 6))
    torch.testing.assert_close(found, blocks / (2 * np.log(99)))
    coarse = coarse_affine(volume.affine.double(), cells).numpy()
    for j in np.ndindex(3, 3, 3):
        inside = np.indices(cells).reshape(3, -1).T + np.array(j) * cells
        middle = apply_affine(volume.affine.numpy(), inside).mean(0)
        np.testing.assert_allclose(apply_affine(coarse, j), middle, atol=1e-9)


# --- positions -----------------------------------------------------------------------------------

BODY = (50, 24, 16)
# liver, right kidney, spleen, left kidney
PLACES = [(10, 14, 9), (14, 7, 6), (40, 12, 9), (36, 7, 6)]
OFFSETS = [tuple(4.0 * (np.array(p) - np.mean(PLACES, 0))) for p in PLACES]


def body_priors(linear=LINEAR["RAS"]):
    offsets = [linear @ (np.array(p) - np.mean(PLACES, 0)) for p in PLACES]
    return [cube_prior(k, o, np.abs(linear).sum(1)) for k, o in enumerate(offsets, start=1)]


def test_organs_that_are_seen_are_found_where_they_are():
    volume = scan(cubes(BODY, *[[(p, 0.95)] for p in PLACES]))
    found = locate_organs(volume, body_priors())
    assert_same(found.position_mm, apply_affine(volume.affine.numpy(), PLACES))
    assert found.position_mm.dtype == found.confidence.dtype == torch.float64
    assert found.position_mm.device.type == found.confidence.device.type == "cpu"


def test_an_organ_on_the_wrong_side_is_outvoted():
    """The left kidney is predicted on the right, and but faintly where it is."""
    organs = [[(p, 0.95)] for p in PLACES[:3]]
    wrong = (12, 6, 6)
    volume = scan(cubes(BODY, *organs, [(wrong, 0.9), (PLACES[3], 0.2)]))
    places = apply_affine(volume.affine.numpy(), [*PLACES, wrong])
    alone = locate_organs(volume, [cube_prior(k) for k in range(1, 5)])
    assert_same(alone.position_mm[3], places[4])
    together = locate_organs(volume, body_priors())
    assert_same(together.position_mm, places[:4])


def test_an_organ_with_a_smaller_spread_is_held_closer():
    """A kidney seen 36 mm before its mean place stays there, or is pulled to where it belongs."""
    moved = (PLACES[3][0], PLACES[3][1] + 9, PLACES[3][2])
    organs = [[(p, 0.95)] for p in PLACES[:3]]
    volume = scan(cubes(BODY, *organs, [(moved, 0.9), (PLACES[3], 0.3)]))
    places = apply_affine(volume.affine.numpy(), [moved, PLACES[3]])
    loose = locate_organs(volume, body_priors(), spread_mm=100.0)
    assert_same(loose.position_mm[3], places[0])
    tight = locate_organs(volume, body_priors(), spread_mm=10.0)
    assert_same(tight.position_mm[3], places[1])


def test_an_organ_predicted_nowhere_gets_its_place_from_the_others():
    organs = [[(p, 0.95)] for p in PLACES[:3]]
    volume = scan(cubes(BODY, *organs, []))
    found = locate_organs(volume, body_priors())
    expected = apply_affine(volume.affine.numpy(), PLACES)
    assert_same(found.position_mm[:3], expected[:3])
    assert_same(found.position_mm[3], expected[3], atol=4.0 + 1e-6)


def test_of_what_nothing_supports_the_others_say_the_place_between_cells(monkeypatch):
    """Cells of three voxels, and rounding of a transform around the place."""
    monkeypatch.setattr(CELL_MM, 12.0)
    volume = scan(cubes(BODY, *[[(p, 0.95)] for p in PLACES[:3]], []))
    priors = body_priors()
    found = locate_organs(volume, priors).position_mm
    offsets = torch.tensor([p.offset_mm for p in priors], dtype=torch.float64)
    center = (found[:3] - offsets[:3]).mean(0)
    assert_same(found[3], center + offsets[3])


@pytest.mark.parametrize("offset_mm", [12.0, 20, 40, 60])
@pytest.mark.parametrize("side", [1, -1])
def test_an_organ_out_of_the_field_of_view_lies_beyond_its_own_edge(offset_mm, side):
    """And not beyond the opposite one."""
    place = (17, 4, 4) if side > 0 else (2, 4, 4)
    volume = scan(cubes((20, 9, 9), [(place, 1)], []), origin=(0, 0, 0))
    priors = [cube_prior(k, (o * side, 0, 0)) for k, o in [(1, -offset_mm), (2, offset_mm)]]
    found = locate_organs(volume, priors).position_mm
    assert_same(found[0], [4.0 * p for p in place])
    beyond = found[1, 0] - 76 if side > 0 else -found[1, 0]
    assert 0 < beyond <= 2 * offset_mm + 4


@pytest.mark.parametrize("seed", range(3))
@every_grid
def test_without_offsets_each_organ_is_located_by_itself(linear, seed):
    rng = np.random.default_rng(seed)
    volume = scan(rng.random((3, 7, 6, 5)) ** 3, linear)
    priors = random_priors(rng, [None] * 3)
    for options in ({}, {"max_shift_mm": 9.0}, {"epsilon": 0.1, "minimum": 0.3}):
        found = locate_organs(volume, priors, **options).position_mm
        for k, prior in enumerate(priors):
            one = volume[k : k + 1]
            assert_same(found[k], locate_organ(one, prior, **options))


def test_one_organ_without_an_offset_is_enough_to_locate_them_by_themselves():
    rng = np.random.default_rng(9)
    volume = scan(rng.random((2, 7, 6, 5)) ** 3)
    priors = random_priors(rng, [(1.0, 2, 3), None])
    for k, prior in enumerate(priors):
        found = locate_organs(volume, priors).position_mm[k]
        assert_same(found, locate_organ(volume[k : k + 1], prior))


def test_so_does_a_limited_shift():
    rng = np.random.default_rng(10)
    maps = rng.random((2, 7, 6, 5)) ** 3
    maps[1] *= 0.6
    priors = random_priors(rng, [(10.0, -4, 4), (-10.0, 4, -4)])
    found = locate_organs(scan(maps), priors, max_shift_mm=8.0).position_mm
    for k, prior in enumerate(priors):
        assert_same(found[k], locate_organ(scan(maps[k : k + 1]), prior, max_shift_mm=8.0))
    together = locate_organs(scan(maps), priors, spread_mm=10.0).position_mm
    assert not torch.equal(found, together)


@every_grid
def test_one_organ_alone_is_that_of_locate_organ(linear):
    rng = np.random.default_rng(6)
    volume = scan(rng.random((1, 8, 7, 6)) ** 3, linear)
    for offset in (None, (30.0, 0, 0)):
        (prior,) = random_priors(rng, [offset])
        found = locate_organs(volume, [prior])
        assert found.position_mm.shape == (1, 3)
        assert_same(found.position_mm[0], locate_organ(volume, prior))


def test_nothing_predicted_is_no_position_and_no_confidence():
    empty = scan(np.full((4, *BODY), 0.4))
    found = locate_organs(empty, body_priors())
    assert found.position_mm.isnan().all()
    assert found.confidence.tolist() == [0] * 4
    assert not locate_organs(empty, body_priors(), minimum=0.3).position_mm.isnan().any()
    one = scan(cubes(BODY, [(PLACES[0], 0.9)], []))
    found = locate_organs(one, [cube_prior(1), cube_prior(2)])
    assert not found.position_mm[0].isnan().any()
    assert found.position_mm[1].isnan().all()
    assert found.confidence[1] == 0


def test_the_refined_place_lies_between_the_middles_of_cells():
    """Voxels of 1 mm in cells of 4: the place is found to a voxel."""
    affine = np.diag([1.0, 1, 1])
    for shift in range(5):
        q = np.zeros((2, 60, 30, 30))
        q[0, 10 + shift : 19 + shift, 8:17, 11:20] = 0.9
        q[1, 40 : 45 + shift, 9:14, 9:14] = 0.9
        volume = scan(q, affine, origin=(0, 0, 0))
        priors = [
            SpatialPrior(np.ones((9, 9, 9)), spacing_mm=(1, 1, 1), organ=1, offset_mm=(-14, 2, 2)),
            SpatialPrior(np.ones((5, 5, 5)), spacing_mm=(1, 1, 1), organ=2, offset_mm=(14, -2, -2)),
        ]
        found = locate_organs(volume, priors).position_mm
        assert_same(found[0], [14 + shift, 12, 15], atol=0.6)
        assert 41.5 <= found[1, 0] <= 42.5 + shift
        assert_same(found[1, 1:], [11, 11], atol=0.6)


def reoriented(volume, codes):
    """The same volume with its arrays' axes flipped and exchanged."""
    axes = ["RAS".index(c) if c in "RAS" else "LPI".index(c) for c in codes]
    turn = np.array([[axes.index(i), 1 if "RAS"[i] in codes else -1] for i in range(3)])
    turned = [nib.orientations.apply_orientation(q, turn) for q in volume.numpy()]
    affine = volume.affine.numpy() @ nib.orientations.inv_ornt_aff(turn, volume.shape[1:])
    return MetaTensor(torch.from_numpy(np.stack(turned).copy()), affine=affine)


@pytest.mark.parametrize("codes", ["LPS", "RSA", "ILP", "SAR"])
@pytest.mark.parametrize("linear", [LINEAR["RAS"], LINEAR["oblique"]], ids=["RAS", "oblique"])
def test_flipped_and_permuted_arrays_give_the_same_positions(codes, linear):
    rng = np.random.default_rng(13)
    volume = scan(rng.random((3, 9, 8, 7)) ** 3, linear)
    priors = random_priors(rng, [(11.0, -3, 4), (-8, 9, 2), (-3, -6, -6)])
    expected, found = (
        locate_organs(volume, priors),
        locate_organs(reoriented(volume, codes), priors),
    )
    assert_same(found.position_mm, expected.position_mm)
    assert_same(found.confidence, expected.confidence, atol=1e-3)


@pytest.mark.parametrize("cell_mm", [4.0, JOINT_CELL_MM, 12.0])
@pytest.mark.parametrize("codes", ["LPI", "SLP"])
def test_where_cells_differ_positions_are_the_same_to_a_quarter_of_one(codes, cell_mm, monkeypatch):
    """Voxels of 1.5 mm that are no whole number of cells, so that a flip gives others."""
    monkeypatch.setattr(CELL_MM, cell_mm)
    q = np.zeros((2, 31, 27, 23))
    q[0, 5:10, 6:11, 7:12], q[1, 20:25, 13:18, 9:14] = 0.9, 0.8
    volume = scan(q, np.diag([1.5, 1.5, 1.5]))
    priors = [cube_prior(k, (o, o / 2, 1), (1.5,) * 3) for k, o in [(1, -11.0), (2, 11.0)]]
    found = locate_organs(reoriented(volume, codes), priors).position_mm
    expected = apply_affine(volume.affine.numpy(), [[7, 8, 9], [22, 15, 11]])
    assert_same(found, expected, atol=cell_mm / 4)


def test_a_turned_scan_of_the_same_body_has_the_same_positions():
    volume = scan(cubes(BODY, *[[(p, 0.95)] for p in PLACES]), LINEAR["RAS"])
    places = apply_affine(volume.affine.numpy(), PLACES)
    turned = scan(np.zeros((4, 56, 40, 40)), OBLIQUE @ np.diag([4.0, 4, 4]), (0, 0, 0))
    middle = apply_affine(turned.affine.numpy(), [28, 20, 20])
    turned.affine[:3, 3] += torch.from_numpy(places.mean(0) - middle)
    world = apply_affine(turned.affine.numpy(), np.indices(turned.shape[1:]).reshape(3, -1).T)
    for k, place in enumerate(places):
        inside = (np.abs(world - place) < 10).all(1)
        turned[k] = torch.from_numpy(inside.reshape(turned.shape[1:])).float() * 0.95
    found = locate_organs(turned, body_priors()).position_mm
    assert_same(found, places, atol=3.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_any_precision_goes_in_and_nothing_is_changed(dtype):
    volume = scan(cubes(BODY, *[[(p, 1)] for p in PLACES]), dtype=dtype)
    before = volume.clone()
    found = locate_organs(volume, body_priors())
    assert_same(found.position_mm, apply_affine(volume.affine.numpy(), PLACES))
    assert found.confidence.dtype == torch.float64
    assert torch.equal(volume, before)
    gradient = scan(cubes(BODY, *[[(p, 1)] for p in PLACES])).requires_grad_()
    assert not locate_organs(gradient, body_priors()).position_mm.requires_grad


def test_a_prior_with_a_hole_where_the_cells_are():
    """Its shares are 0, not undefined, and its place is that which the other organ gives it."""
    hollow = np.ones((3, 3, 3), np.float32)
    hollow[1, 1, 1] = 0
    q = np.zeros((2, 24, 24, 24))
    q[0, 4:7, 4:7, 4:7], q[1, 15:18, 4:7, 4:7] = 1, 1
    volume = scan(q, np.eye(3), (0, 0, 0))
    priors = [
        SpatialPrior(hollow, spacing_mm=(1, 1, 1), organ=1, offset_mm=(-5.5, 0, 0)),
        SpatialPrior(np.ones((3, 3, 3)), spacing_mm=(1, 1, 1), organ=2, offset_mm=(5.5, 0, 0)),
    ]
    found = locate_organs(volume, priors)
    assert not found.confidence.isnan().any()
    assert_same(found.position_mm, [[5.0, 5, 5], [16, 5, 5]], atol=5.0)


def top_of_parabolas(share, best):
    """Through a voxel and its neighbours along each axis, not farther than half a voxel."""
    padded, best = np.pad(share, 1), np.array(best)
    offset = np.zeros(3)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        values = [padded[tuple(best + 1 + n * step)] for n in (-1, 0, 1)]
        a, b, _ = np.polyfit([-1, 0, 1], values, 2)
        offset[axis] = np.clip(-b / (2 * a), -0.5, 0.5) if a < 0 else 0
    return best + offset


@pytest.mark.slow
@pytest.mark.parametrize("faint", [1.0, 0.05])
@every_grid
def test_positions_are_the_best_places_of_a_vote(linear, faint):
    """Shares over their greatest (or 0.3), all places and centres; then the best cell beside."""
    rng = np.random.default_rng(5)
    q = rng.random((2, 4, 3, 3)) ** 2
    q[1, :, :, 0] = 0.9
    q[1] *= faint
    volume = scan(q, linear)
    priors = random_priors(rng, [(6.0, -4, 3), (-5, 4, -3)])
    found = locate_organs(volume, priors, spread_mm=15.0).position_mm.numpy()

    blocks = coarse_evidence(volume.as_tensor(), (1, 1, 1), epsilon=DEFAULT_EPSILON)
    share, start = (x.numpy() for x in score_maps(blocks, priors, volume.affine.double()))
    offsets = np.array([p.offset_mm for p in priors]) @ np.linalg.inv(linear).T
    offset = np.rint(offsets).astype(int)
    room = np.abs(offset).max(0)
    share = np.pad(share, [(0, 0), *[(r, r) for r in room]])
    vote = share / np.array([max(s.max(), 0.3) for s in share]).reshape(-1, 1, 1, 1)
    weight = np.linalg.norm(linear, axis=0) ** 2 / (2 * 15.0**2)
    for s, m, point in zip(share, marginals_by_loop(vote, offset, weight), found, strict=True):
        best = np.array(np.unravel_index(m.argmax(), m.shape))
        beside = [c for c in np.ndindex(s.shape) if np.abs(c - best).max() <= 1]
        voxel = top_of_parabolas(s, max(beside, key=lambda c: s[c])) - room + start
        np.testing.assert_allclose(point, apply_affine(volume.affine.numpy(), voxel), atol=1e-3)


def test_an_organ_that_is_faint_everywhere_votes_as_far_as_it_is_seen():
    """Two half-seen organs outvote one that is seen wholly, but two faint traces do not."""
    wrong = [(x - 22, y, z) for x, y, z in (PLACES[2], PLACES[3])]
    for probability, together in ((0.5, True), (0.002, False)):
        maps = cubes(BODY, [(PLACES[0], 0.95)], *[[(p, probability)] for p in wrong])
        priors = [body_priors()[k] for k in (0, 2, 3)]
        found = locate_organs(scan(maps), priors, minimum=0.0).position_mm
        places = apply_affine(scan(maps).affine.numpy(), [wrong[0], PLACES[2]])
        distances = np.linalg.norm(places - found[1].numpy(), axis=1)
        assert (distances[0] < 8) == together
        assert (distances[1] < 8) != together


# --- the same answer as the joint score at every cell ---------------------------------------------


def assert_best_of_all(volume, priors, spread_mm=DEFAULT_SPREAD_MM):
    """The places are among the best of the joint scores of whole volumes, to rounding."""
    cells = cells_of(volume.affine, JOINT_CELL_MM)
    coarse = coarse_affine(volume.affine.double(), cells)
    blocks = coarse_evidence(volume.as_tensor(), cells, epsilon=DEFAULT_EPSILON)
    share, start = score_maps(blocks, priors, coarse)
    greatest = share.flatten(1).amax(1).clamp(min=0.3)
    score, first = joint_score_maps(
        share / greatest[:, None, None, None], start, priors, coarse, spread_mm
    )
    shares = supported_shares(blocks, priors, coarse)
    votes = [Votes(s.values / g, s.start) for s, g in zip(shares, greatest, strict=True)]
    found = best_together(votes, priors, coarse, spread_mm)
    assert found.worth == pytest.approx(float(score.max()), abs=1e-5)
    for s, place in zip(score, found.places, strict=True):
        index = tuple((torch.tensor(place) - first).tolist())
        assert min(index) >= 0
        assert float(s[index]) == pytest.approx(float(s.max()), abs=1e-5)
    return found


@pytest.mark.parametrize("spread_mm", [8.0, 40.0, 120.0])
@pytest.mark.parametrize("seed", range(3))
@every_grid
def test_places_are_those_of_the_joint_score_at_every_cell(linear, seed, spread_mm):
    rng = np.random.default_rng(seed)
    maps = rng.random((4, 12, 10, 9)) ** [2, 6, 20][seed]
    maps[seed] *= [1, 0.01, 0][seed]
    offsets = [tuple(rng.uniform(-15, 15, 3)) for _ in maps]
    assert_best_of_all(scan(maps, linear), random_priors(rng, offsets), spread_mm)


@pytest.mark.slow
def test_two_bodies_that_fit_equally_are_not_mixed():
    """Every organ is seen twice: all are placed in one body."""
    apart = 60
    maps = cubes((120, *BODY[1:]), *[[(p, 0.9), ((p[0] + apart, *p[1:]), 0.9)] for p in PLACES])
    volume = scan(maps, origin=(0, 0, 0))
    found = locate_organs(volume, body_priors()).position_mm / 4
    moved = found - torch.tensor(PLACES)
    assert_same(moved, moved[:1].expand(4, 3))
    assert moved[0].round(decimals=3).tolist() in ([0, 0, 0], [apart, 0, 0])
    assert_best_of_all(volume, body_priors())


def test_nothing_is_clipped_where_the_common_centre_lies_far_outside():
    """Whole volumes hear no centre whose organ lies beyond them; the place is that of the score."""
    volume = scan(cubes((20, 9, 9), [((17, 4, 4), 1)], []), origin=(0, 0, 0))
    priors = [cube_prior(1, (-60.0, 0, 0)), cube_prior(2, (60.0, 0, 0))]
    assert_same(locate_organs(volume, priors).position_mm[1], [17.0 * 4 + 120, 16, 16])


REAL = {
    # labels, every how many voxels, organs
    "MR": (DATA / "chaos_mr_t2" / "labelsTr", (8, 8, 1), [1, 2, 3, 4]),
    "CT, thirteen": (DATA / "btcv_ct" / "labelsTr", (7, 7, 3), list(range(1, 14))),
}


def coarse_predictions(label, organs, kind, rng):
    """Probabilities as a good network, or a poor one that is sure of itself, might give them."""
    spacing = np.linalg.norm(label.affine.numpy()[:3, :3], axis=0)
    maps = []
    for organ in organs:
        mask = ndimage.gaussian_filter((label.numpy()[0] == organ).astype(float), 8 / spacing)
        noise = ndimage.gaussian_filter(rng.standard_normal(mask.shape), 14 / spacing)
        noise /= noise.std()
        logit = {"easy": 14 * mask - 6 + 0.5 * noise, "hard": 14 * mask - 9 + 6 * noise}[kind]
        maps.append(1 / (1 + np.exp(-logit)))
    return MetaTensor(torch.from_numpy(np.array(maps, np.float32)), affine=label.affine)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["easy", "hard"])
@pytest.mark.parametrize("name", REAL)
def test_real_organs_have_the_places_of_the_joint_score_at_every_cell(name, kind):
    folder, step, organs = REAL[name]
    if not folder.is_dir():
        pytest.skip(f"real labels are not at {folder}")
    labels = []
    for path in sorted(folder.glob("*.nii.gz"))[:5]:
        image = nib.load(path).slicer[:: step[0], :: step[1], :: step[2]]
        values = torch.from_numpy(np.asarray(image.dataobj).astype(np.uint8))[None]
        labels.append(MetaTensor(values, affine=image.affine))
    priors = SpatialPrior.estimate_several(labels[1:], organs=organs)
    volume = coarse_predictions(labels[0], organs, kind, np.random.default_rng(4))
    assert_best_of_all(volume, priors)


# --- confidence ----------------------------------------------------------------------------------


def confidence_by_hand(share, points, position):
    """The organ's own support at a position against the best at any other answer."""
    distance = np.linalg.norm(points - position, axis=1)
    here, apart = share[distance.argmin()], share[distance > APART_MM].max()
    return (here + 0.01) / (here + apart + 0.02)


@pytest.mark.parametrize("spread_mm", [None, DEFAULT_SPREAD_MM, 12.0])
@every_grid
def test_confidence_is_the_support_against_that_of_the_best_position_apart(linear, spread_mm):
    rng = np.random.default_rng(21)
    volume = scan(rng.random((3, 14, 13, 12)) ** 4, linear)
    offsets = [None] * 3 if spread_mm is None else [(11.0, -3, 4), (-8, 9, 2), (-3, -6, -6)]
    priors = random_priors(rng, offsets)
    options = {} if spread_mm is None else {"spread_mm": spread_mm}
    found = locate_organs(volume, priors, **options)
    blocks = coarse_evidence(volume.as_tensor(), (1, 1, 1), epsilon=DEFAULT_EPSILON)
    share, start = score_maps(blocks, priors, volume.affine.double())
    cells = np.indices(share.shape[1:]).reshape(3, -1).T + start.numpy()
    points = apply_affine(volume.affine.numpy(), cells)
    for s, point, confidence in zip(share, found.position_mm, found.confidence, strict=True):
        expected = confidence_by_hand(s.double().numpy().ravel(), points, point.numpy())
        assert float(confidence) == pytest.approx(expected, abs=1e-5)
        assert 0.3 < float(confidence) < 0.9


def test_one_clear_organ_is_certain_and_two_equal_ones_are_a_tie():
    priors = [cube_prior(1)]
    clear = scan(cubes(BODY, [(PLACES[0], 1)]))
    assert locate_organs(clear, priors).confidence[0] > 0.98
    equal = scan(cubes(BODY, [(PLACES[0], 1), (PLACES[2], 1)]))
    assert locate_organs(equal, priors).confidence[0] == pytest.approx(0.5, abs=1e-5)
    # A probability of 0.5 supports half of what can be supported.
    fainter = scan(cubes(BODY, [(PLACES[0], 1), (PLACES[2], 0.5)]))
    expected = (1 + 0.01) / (1 + 0.5 + 0.02)
    assert locate_organs(fainter, priors).confidence[0] == pytest.approx(expected, abs=1e-3)


def test_an_outvoted_organ_is_less_than_a_tie():
    """The more so the fainter it is predicted where the others place it."""
    organs = [[(p, 0.95)] for p in PLACES[:3]]
    found = []
    for faint in (0.4, 0.2, 0.0):
        maps = cubes(BODY, *organs, [((12, 6, 6), 0.9), (PLACES[3], faint)])
        found.append(locate_organs(scan(maps), body_priors()).confidence)
    for confidence in found:
        assert (confidence[:3] > 0.9).all()
    assert 0.5 > found[0][3] > found[1][3] > found[2][3] >= 0
    assert found[2][3] < 0.02


def test_confidence_does_not_depend_on_the_size_of_the_organ():
    found = []
    for mm in (4.0, 8.0):
        volume = scan(cubes((60, 12, 12), [((10, 6, 6), 1), ((45, 6, 6), 0.7)]), np.eye(3) * mm)
        found.append(float(locate_organs(volume, [cube_prior(1, None, (mm,) * 3)]).confidence[0]))
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_a_position_that_was_limited_to_a_worse_place_is_less_than_a_tie():
    maps = cubes(BODY, [(PLACES[0], 0.6)])
    maps[0, 30:50] = 0.499  # more than the organ, but no prediction
    maps[0, PLACES[0][0], PLACES[0][1], PLACES[0][2]] = 0.4
    limited = locate_organs(scan(maps), [cube_prior(1)], max_shift_mm=8.0)
    maps[0, 8:13, 12:17, 7:9] = 0.01
    maps[0, 8, 14, 9] = 0.6
    worse = locate_organs(scan(maps), [cube_prior(1)], max_shift_mm=8.0)
    assert worse.confidence[0] < 0.5 < limited.confidence[0]


@pytest.mark.parametrize("seed", range(4))
def test_confidence_is_between_0_and_1(seed):
    rng = np.random.default_rng(seed)
    volume = scan((rng.random((2, 9, 8, 7)) > 0.7).astype(float))
    for offsets in ([None] * 2, [(9.0, 0, 0), (-9.0, 0, 0)]):
        found = locate_organs(volume, random_priors(rng, offsets))
        assert ((found.confidence >= 0) & (found.confidence <= 1)).all()


# --- where it runs, errors -----------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("together", [True, False])
def test_cuda_gives_the_positions_of_the_cpu(together):
    rng = np.random.default_rng(17)
    offsets = [(11.0, -3, 4), (-8, 9, 2), (-3, -6, -6)] if together else [None] * 3
    priors = random_priors(rng, offsets)
    for linear in LINEAR.values():
        volume = scan(rng.random((3, 9, 8, 7)) ** 3, linear)
        expected, found = locate_organs(volume, priors), locate_organs(volume.cuda(), priors)
        assert found.position_mm.device.type == "cpu"
        assert_same(found.position_mm, expected.position_mm)
        assert_same(found.confidence, expected.confidence, atol=1e-3)


VALID = np.full((2, 4, 4, 4), 0.7)


@pytest.mark.parametrize(
    ("probability", "options", "message"),
    [
        (scan(VALID), {"spread_mm": 0.0}, r"`spread_mm` must be a positive length, got 0\.0"),
        (scan(VALID), {"spread_mm": float("inf")}, "`spread_mm` must be a positive length"),
        (scan(VALID), {"spread_mm": float("nan")}, "`spread_mm` must be a positive length"),
        (scan(VALID), {"epsilon": 0.5}, r"`epsilon` must lie in"),
        (scan(VALID), {"max_shift_mm": -1}, "`max_shift_mm` must be positive or None, got -1"),
        (scan(VALID), {"minimum": 1.5}, r"`minimum` must be a probability in \[0, 1\], got 1\.5"),
        (torch.zeros(2, 4, 4, 4), {}, "`probability` must be a MetaTensor"),
        (scan(VALID[:1]), {}, r"a map of axes 2 W H D, got the shape \(1, 4, 4, 4\)"),
        (scan(VALID)[0], {}, r"a map of axes 2 W H D, got the shape \(4, 4, 4\)"),
        (scan(VALID * 2), {}, r"must lie in \[0, 1\], got \[1\.4, 1\.4\]: apply softmax"),
        (scan(np.where(VALID > 0, np.nan, 0)), {}, r"must lie in \[0, 1\], got \[nan"),
        (scan(VALID, np.diag([1.0, 0, 1])), {}, "must have an invertible 4 × 4 affine"),
    ],
)
def test_errors(probability, options, message):
    with pytest.raises(PositionError, match=message):
        locate_organs(probability, [cube_prior(1), cube_prior(2)], **options)


def three_organs(shift=0):
    """A label map whose second organ lies elsewhere in another scan."""
    maps = cubes((24, 18, 14), [((4, 5, 6), 1)], [((15 + shift, 5, 6), 1)], [((9, 12, 7), 1)])
    return scan((maps * np.array([1, 2, 3]).reshape(3, 1, 1, 1)).sum(0, keepdims=True))


def test_offsets_of_one_estimation_alone_position_organs_together():
    labels = [three_organs(), three_organs(2)]
    whole, pair, other = (
        SpatialPrior.estimate_several(labels, organs=organs)
        for organs in ([1, 2, 3], [1, 3], [2, 3])
    )
    maps = scan((labels[0].as_tensor() == torch.arange(1, 4).reshape(3, 1, 1, 1)).float())
    expected = locate_organs(maps, whole).position_mm
    subset = MetaTensor(maps.as_tensor()[[2, 0]], affine=maps.affine)
    found = locate_organs(subset, [whole[2], whole[0]]).position_mm
    torch.testing.assert_close(found, expected[[2, 0]])

    mixed = [whole[0], other[0], pair[1]]
    match = r"must be of one estimation, .* got those of organs \[\[1\], \[2\], \[3\]\] of 3: estim"
    with pytest.raises(PositionError, match=match):
        locate_organs(maps, mixed)
    with pytest.raises(PositionError, match=match):
        check_orientation(maps, mixed)
    alone = locate_organs(maps, mixed, max_shift_mm=50.0).position_mm
    torch.testing.assert_close(alone, expected, atol=4.0, rtol=0)
    # a scan of its own tells all offsets anew
    references = random_references(labels[:1], mixed, seed=0)
    torch.testing.assert_close(locate_organs(maps, references).position_mm, expected)


def test_estimations_of_the_same_organs_in_other_scans_are_told_apart(tmp_path):
    first, second = (
        SpatialPrior.estimate_several([three_organs(), three_organs(k)], organs=[1, 2, 3])
        for k in (0, 4)
    )
    again = SpatialPrior.estimate_several([three_organs()] * 2, organs=[3, 2, 1], bins=4)
    maps = scan((three_organs().as_tensor() == torch.arange(1, 4).reshape(3, 1, 1, 1)).float())
    with pytest.raises(PositionError, match=r"organs \[\[1, 2\], \[3\]\] of 2"):
        locate_organs(maps, [*first[:2], second[2]])
    # of the same offsets, also once they were saved or a label was left out
    again[0].save(tmp_path / "prior_3.nii")
    locate_organs(
        maps, [first[0], first[1].leave_out([0]), SpatialPrior.load(tmp_path / "prior_3.nii")]
    )
