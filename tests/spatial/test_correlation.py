"""Correlation by Fourier transform and the bounds on it, against loops over all translations."""

import itertools

import numpy as np
import pytest
import torch
from scipy import signal

from stipple_monai.spatial.correlation import (
    Box,
    bounds,
    correlate,
    in_blocks,
    parabola_top,
    peak_near,
    promising,
    reduced,
    score_at,
    scores_in,
    seen_box,
)

SHAPES = [(7, 6, 5), (1, 9, 4), (12, 1, 1), (3, 4, 11)]
KERNELS = [(3, 5, 1), (1, 1, 1), (5, 3, 7), (9, 1, 3)]
PAIRS = list(itertools.product(SHAPES, KERNELS))
BLOCKS = [(1, 1, 1), (2, 3, 1), (4, 2, 5), (20, 20, 20)]


def random_pair(seed, shape, kernel, *, sparse=0.0):
    rng = np.random.default_rng(seed)
    arrays = [rng.random(s) * (rng.random(s) >= sparse) for s in (shape, kernel)]
    arrays[0].flat[rng.integers(arrays[0].size)] = 1
    return tuple(torch.from_numpy(a) for a in arrays)


def score(volume, kernel, t):
    """Σ_u K(u) E(t + u − c), voxel by voxel."""
    total = 0.0
    for u in np.ndindex(*kernel.shape):
        v = [a + b - (n - 1) // 2 for a, b, n in zip(t, u, kernel.shape, strict=True)]
        if all(0 <= i < n for i, n in zip(v, volume.shape, strict=True)):
            total += float(kernel[u] * volume[tuple(v)])
    return total


def all_scores(volume, kernel):
    """Scores of every translation with an overlap, and the first of them."""
    padding = [(n - 1, n - 1) for n in kernel.shape]
    padded = np.pad(volume.numpy(), padding)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return (windows * kernel.numpy()).sum((3, 4, 5)), -(np.array(kernel.shape) - 1) // 2


@pytest.mark.parametrize("seed", range(4))
def test_the_oracles_agree(seed):
    volume, kernel = random_pair(seed, SHAPES[seed], KERNELS[seed])
    scores, first = all_scores(volume, kernel)
    for i in np.ndindex(scores.shape):
        assert scores[i] == pytest.approx(score(volume, kernel, first + i), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [*KERNELS, (2, 4, 6), (8, 2, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_correlate_is_scipys(shape, kernel, dtype):
    volume, kernel = random_pair(0, shape, kernel)
    found = correlate(volume.to(dtype), kernel.to(dtype))
    assert found.dtype == dtype
    expected = signal.correlate(volume.numpy(), kernel.numpy(), method="direct")
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance * kernel.numel())


@pytest.mark.parametrize("case", range(4))
def test_the_score_of_one_translation_is_that_of_the_loop(case):
    volume, kernel = random_pair(case, SHAPES[case], KERNELS[case])
    rng = np.random.default_rng(case)
    for _ in range(40):
        t = [int(rng.integers(-9, n + 9)) for n in SHAPES[case]]
        assert score_at(volume, kernel, t) == pytest.approx(score(volume, kernel, t), abs=1e-12)


def random_boxes(rng, shape, number):
    """Inside, across the edges, beyond them, around everything, one translation."""
    yield Box((-9,) * 3, tuple(n + 9 for n in shape))
    yield Box((-40,) * 3, (-35,) * 3)
    yield Box(tuple(n + 30 for n in shape), tuple(n + 31 for n in shape))
    yield Box((0, 0, 0), (1, 1, 1))
    yield Box((-2, shape[1] + 20, 0), (3, shape[1] + 22, 2))
    for _ in range(number):
        start = [int(rng.integers(-6, n + 6)) for n in shape]
        yield Box(tuple(start), tuple(a + int(rng.integers(1, 8)) for a in start))


@pytest.mark.parametrize("case", range(4))
def test_scores_in_a_box_are_those_of_the_loop(case):
    volume, kernel = random_pair(case, SHAPES[case], KERNELS[case])
    for box in random_boxes(np.random.default_rng(case), SHAPES[case], 12):
        found = scores_in(volume.float(), kernel.float(), box)
        assert found.dtype == torch.float64
        scores, first = all_scores(volume.float().double(), kernel.float().double())
        expected = np.zeros([b - a for a, b in zip(*box, strict=True)])
        for i in np.ndindex(*expected.shape):
            at = tuple(np.add(box.start, i) - first)
            if all(0 <= a < n for a, n in zip(at, scores.shape, strict=True)):
                expected[i] = scores[at]
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12 * kernel.numel())


def test_a_box_without_translations_has_no_scores():
    volume, kernel = random_pair(0, SHAPES[0], KERNELS[0])
    assert scores_in(volume, kernel, Box((2, 2, 2), (4, 2, 5))).shape == (2, 0, 3)


def test_scores_in_reads_no_more_than_the_kernel_meets():
    """What it does not read may be anything."""
    volume = torch.full((30, 30, 30), torch.nan)
    volume[8:15, 9:16, 10:17] = 1
    found = scores_in(volume, torch.ones(3, 5, 1), Box((9, 11, 10), (14, 14, 17)))
    assert found.shape == (5, 3, 7)
    np.testing.assert_allclose(found.numpy(), 15)


def test_scores_in_take_no_more_of_the_kernel_than_meets_the_volume():
    """What it does not read may be anything, and a transform is no longer than it must be."""
    volume = torch.ones(4, 4, 4)
    kernel = torch.full((31, 31, 31), torch.nan)
    kernel[10:17, 11:18, 12:19] = 1
    found = scores_in(volume, kernel, Box((2, 1, 0), (6, 5, 4)))
    np.testing.assert_allclose(found.numpy(), 64)


def test_the_top_of_a_parabola_is_that_of_the_polynomial():
    for scores in np.random.default_rng(0).normal(size=(50, 3)):
        square, slope, _ = np.polyfit([-1, 0, 1], scores, 2)
        top = -slope / (2 * square) if square < 0 else 0
        assert parabola_top(*scores) == pytest.approx(top)
    assert (parabola_top(1.0, 2.0, 3.0), parabola_top(1.0, 0.0, 1.0)) == (0, 0)


def bump(shape, top):
    """A parabola in each axis, positive around its top."""
    grid = torch.from_numpy(np.indices(shape)).double()
    away = (grid - torch.tensor(top).reshape(3, 1, 1, 1)) ** 2
    return (30 - (away * torch.tensor([1.0, 0.5, 2.0]).reshape(3, 1, 1, 1)).sum(0)).clamp(min=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top", [(4.0, 5.0, 3.0), (4.3, 4.8, 2.6), (3.55, 5.45, 3.0)])
def test_the_peak_of_a_parabola_is_found_between_cells_from_each_neighbour(top, dtype):
    score = bump((9, 11, 7), top).to(dtype)
    middle = torch.tensor(top).round().long()
    for beside in itertools.product((-1, 0, 1), repeat=3):
        found = peak_near(score, middle + torch.tensor(beside))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), top, atol=1e-5)


def test_the_peak_stays_beside_the_cell():
    score = bump((20, 20, 20), (10.0, 10.0, 10.0))
    found = peak_near(score, torch.tensor([6, 10, 10]))
    # the best of cells 5 to 7, and half a cell more
    assert found.tolist() == [7.5, 10, 10]


def test_of_equal_cells_the_nearest_is_the_peak():
    assert peak_near(torch.ones(5, 5, 5), torch.tensor([2, 2, 2])).tolist() == [2, 2, 2]
    assert peak_near(torch.zeros(5, 5, 5), torch.tensor([0, 4, 2])).tolist() == [0, 4, 2]
    two = torch.zeros(7, 7, 7)
    two[2, 3, 3] = two[3, 3, 3] = 1
    assert peak_near(two, torch.tensor([3, 3, 3])).tolist() == [2.5, 3, 3]
    assert peak_near(two, torch.tensor([2, 3, 3])).tolist() == [2.5, 3, 3]


@pytest.mark.parametrize("cell", [(-4, 2, 2), (2, 2, 9), (-40, 50, 0)])
def test_beyond_the_scores_the_cell_itself_is_the_peak(cell):
    assert peak_near(torch.ones(5, 5, 5), torch.tensor(cell)).tolist() == list(cell)


def test_at_the_edge_what_lies_beyond_is_zero():
    score = torch.zeros(5, 5, 5)
    score[0, 2, 2], score[1, 2, 2] = 2, 1
    for beside in (-1, 0, 1):
        found = peak_near(score, torch.tensor([beside, 2, 2])).tolist()
        # (0 − 1) / (2 · (0 − 4 + 1)) = 1/6
        assert found == pytest.approx([1 / 6, 2, 2])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_maxima_over_blocks_that_begin_before_the_values(shape, block):
    volume, _ = random_pair(2, shape, (1, 1, 1))
    front = [f - 1 for f in block]
    found = reduced(volume, block, front, torch.maximum)
    padding = [(a, -(n + a) % f) for n, a, f in zip(shape, front, block, strict=True)]
    padded = np.pad(volume.numpy(), padding)
    split = [m for n, f in zip(padded.shape, block, strict=True) for m in (n // f, f)]
    np.testing.assert_array_equal(found.numpy(), padded.reshape(split).max(axis=(1, 3, 5)))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_over_blocks(shape, block):
    volume, _ = random_pair(1, shape, (1, 1, 1))
    found = in_blocks(volume, block)
    assert found.shape == tuple(-(-n // f) for n, f in zip(shape, block, strict=True))
    for i in np.ndindex(*found.shape):
        part = volume[tuple(slice(a * f, a * f + f) for a, f in zip(i, block, strict=True))]
        assert float(found[i]) == pytest.approx(float(part.sum()))


def cell_of(translations, block):
    return np.floor_divide(translations, block)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("shape", "kernel"), PAIRS)
def test_no_translation_scores_more_than_the_bound_of_its_cell(shape, kernel, block):
    for seed, sparse in enumerate((0.0, 0.7, 0.95)):
        volume, weights = random_pair(seed, shape, kernel, sparse=sparse)
        bound, first = bounds(in_blocks(volume, block), weights, block)
        scores, start = all_scores(volume, weights)
        translations = np.indices(scores.shape).reshape(3, -1).T + start
        cells = cell_of(translations, block) - first.numpy()
        assert (cells >= 0).all()
        assert (cells < bound.shape).all()
        assert (scores.ravel() <= bound.numpy()[tuple(cells.T)] + 1e-9).all()
        if block == (1, 1, 1):
            np.testing.assert_allclose(bound.numpy()[tuple(cells.T)], scores.ravel(), atol=1e-9)


def test_the_bound_is_no_greater_than_it_must_be():
    """One voxel under a kernel with one peak: only the cells that can bring them together."""
    volume, kernel = torch.zeros(20, 1, 1), torch.zeros(9, 1, 1)
    volume[10], kernel[1] = 1.0, 1.0  # the peak is 3 voxels below the middle: best at 13
    bound, first = bounds(in_blocks(volume, (4, 1, 1)), kernel, (4, 1, 1))
    cells = first[0] + torch.nonzero(bound[:, 0, 0] > 1e-6).flatten()
    assert cells.tolist() == [2, 3]  # the peak meets voxels 8 to 11 from translations 11 to 14


def best_translations(scores, first, *, within=None):
    """All translations whose score is the greatest, to within rounding."""
    translations = np.indices(scores.shape).reshape(3, -1).T + first
    values = scores.ravel()
    if within is not None:
        inside = ((translations >= within.start) & (translations < within.stop)).all(1)
        translations, values = translations[inside], values[inside]
    return translations[values >= values.max() * (1 - 1e-12)]


def assert_holds(box, translations):
    assert ((translations >= box.start) & (translations < box.stop)).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("shape", "kernel"), PAIRS)
def test_every_best_translation_is_in_the_promising_box(shape, kernel, block):
    for seed, sparse in enumerate((0.0, 0.9)):
        volume, weights = random_pair(seed, shape, kernel, sparse=sparse)
        assert_holds(
            promising(volume, weights, block), best_translations(*all_scores(volume, weights))
        )


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("seed", range(6))
def test_so_are_all_of_many_equals(seed, block):
    """The same thing in several places, and a kernel that cannot tell where in it it lies."""
    rng = np.random.default_rng(seed)
    volume = torch.zeros(17, 12, 10)
    for _ in range(4):
        x, y, z = (int(rng.integers(0, n - 2)) for n in volume.shape)
        volume[x : x + 2, y : y + 3, z] = 1
    kernel = torch.ones(5, 3, 3) if seed % 2 else torch.ones(1, 1, 1)
    best = best_translations(*all_scores(volume, kernel))
    assert len(best) > 1
    assert_holds(promising(volume, kernel, block), best)


def test_a_kernel_of_zeros_leaves_every_translation():
    box = promising(torch.ones(5, 4, 3), torch.zeros(3, 1, 5), (2, 2, 2))
    assert box == Box((-1, 0, -2), (6, 4, 5))


@pytest.mark.parametrize("block", BLOCKS)
def test_promising_within_a_box(block):
    rng = np.random.default_rng(4)
    volume, kernel = random_pair(4, (12, 9, 7), (5, 3, 3))
    scores, first = all_scores(volume, kernel)
    for _ in range(25):
        start = tuple(int(rng.integers(-2, n)) for n in volume.shape)
        within = Box(start, tuple(a + int(rng.integers(1, 7)) for a in start))
        found = promising(volume, kernel, block, within=within)
        assert_holds(found, best_translations(scores, first, within=within))
        assert (np.array(found.start) >= within.start).all()
        assert (np.array(found.stop) <= within.stop).all()


def test_where_nothing_overlaps_the_limits_are_the_box():
    within = Box((50, 50, 50), (53, 54, 55))
    assert promising(torch.ones(5, 5, 5), torch.ones(3, 3, 3), (2, 2, 2), within=within) == within


def test_most_of_a_large_volume_is_not_promising():
    volume = torch.rand(64, 64, 32, generator=torch.Generator().manual_seed(0)) * 0.01
    volume[40:49, 20:29, 10:19] += 1
    box = promising(volume, torch.ones(9, 9, 9), (4, 4, 2))
    size = np.subtract(box.stop, box.start)
    assert_holds(box, np.array([[44, 24, 14]]))
    assert size.prod() < 0.02 * volume.numel()


@pytest.mark.parametrize("shape", SHAPES)
def test_seen_box_is_the_smallest(shape):
    rng = np.random.default_rng(sum(shape))
    for share in (0.02, 0.1, 0.9):
        volume = rng.random(shape) * (rng.random(shape) < share)
        volume.flat[rng.integers(volume.size)] = 0.3
        seen = np.argwhere(volume > 0)
        box = seen_box(torch.from_numpy(volume))
        assert box == (tuple(seen.min(0)), tuple(seen.max(0) + 1))
    assert seen_box(torch.zeros(shape)) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu():
    volume, kernel = (x.float() for x in random_pair(3, (20, 17, 9), (5, 7, 3)))
    box = Box((-3, 2, -20), (9, 30, 4))
    expected, found = scores_in(volume, kernel, box), scores_in(volume.cuda(), kernel.cuda(), box)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected)
    found = promising(volume.cuda(), kernel.cuda(), (2, 2, 1))
    assert_holds(found, best_translations(*all_scores(volume, kernel)))
