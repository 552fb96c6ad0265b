"""Leave-one-out likelihood, and the width that it chooses."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from stipple_monai.priors.cases import Cases, pack
from stipple_monai.priors.kernel import blurred
from stipple_monai.priors.likelihood import (
    FLOOR,
    ONE_LABEL_MM,
    WIDTHS_MM,
    best_width,
    climb,
    coarser,
    leave_one_out,
    log_likelihood,
)

SPACING = (2.5, 2.0, 3.0)


def blobs(n, *, spread=2.0, shape=(23, 21, 19), seed=0):
    """Balls about somewhat different centres, as what is kept of labels."""
    rng = np.random.default_rng(seed)
    grid = np.moveaxis(np.indices(shape), 0, -1) * SPACING
    items = []
    for _ in range(n):
        center = (np.array(shape) - 1) / 2 * SPACING + rng.normal(size=3) * spread
        inside = ((grid - center) ** 2).sum(-1) < rng.uniform(8, 11) ** 2
        items.append(inside.astype(np.float32))
    cases = [pack(v, exact=False, volume_ml=1.0, name="") for v in items]
    return items, Cases(tuple(cases), shape, SPACING)


def plainly(labels, width):
    """Every label under the mean of the others' densities, on a box with room."""
    room = [int(np.ceil(3 * width / s)) for s in SPACING]
    box = [slice(-r, n + r) for r, n in zip(room, labels[0].shape, strict=True)]
    sigma = [width / s for s in SPACING]
    total = []
    for i, label in enumerate(labels):
        others = [q for j, q in enumerate(labels) if j != i]
        p = np.mean([blurred(q, (0, 0, 0), box=box, sigma=sigma) for q in others], axis=0)
        p = np.clip(p.astype(np.float64), FLOOR, 1 - FLOOR)
        y = np.pad(label, [(r, r) for r in room])
        total.append(stats.bernoulli.logpmf(y, p).sum() - stats.bernoulli.logpmf(y, FLOOR).sum())
    return np.mean(total) * np.prod(SPACING) / 1000


@pytest.mark.parametrize("width", [0.0, 2.0, 5.0, 12.0])
@pytest.mark.parametrize("n", [2, 5])
def test_leave_one_out_is_that_of_estimating_anew(n, width):
    labels, cases = blobs(n)
    found = leave_one_out(replace(cases, smoothing_mm=width))
    assert found == pytest.approx(plainly(labels, width), rel=1e-4, abs=1e-4)


def test_the_likelihood_of_one_label():
    rng = np.random.default_rng(0)
    y, p = (rng.random((4, 5, 6)) > 0.6).astype(float), rng.random((4, 5, 6))
    p[0], p[1] = 0, 1
    q = np.clip(p, FLOOR, 1 - FLOOR)
    expected = stats.bernoulli.logpmf(y, q).sum() - stats.bernoulli.logpmf(y, FLOOR).sum()
    assert log_likelihood(y, p, voxel_ml=0.5) == pytest.approx(0.5 * expected)
    assert log_likelihood(y, np.zeros_like(p), voxel_ml=1.0) == pytest.approx(0)
    half = np.full((1, 1, 1), 0.5)
    one, none = (log_likelihood(np.full((1, 1, 1), v), half, voxel_ml=1.0) for v in (1.0, 0.0))
    assert log_likelihood(half, half, voxel_ml=1.0) == pytest.approx((one + none) / 2)


def test_a_single_label_has_no_likelihood_and_a_documented_width():
    _, cases = blobs(1)
    assert leave_one_out(cases) is None
    assert best_width(cases) == (ONE_LABEL_MM, None) == (10.0, None)


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_the_width_is_the_best_of_all(spread):
    _, cases = blobs(5, spread=spread, shape=(31, 35, 27))
    every = [leave_one_out(replace(cases, smoothing_mm=w)) for w in WIDTHS_MM]
    assert best_width(cases) == (WIDTHS_MM[int(np.argmax(every))], pytest.approx(max(every)))


def test_labels_that_differ_more_are_blurred_more():
    widths = [best_width(blobs(6, spread=s, shape=(41, 45, 37))[1])[0] for s in (0.2, 3, 8)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_the_likelihood_does_not_depend_on_the_size_of_voxels_or_box():
    grid = np.moveaxis(np.indices((60, 60, 60)), 0, -1) - 29.5
    fine = [((grid - c) ** 2).sum(-1) < 100 for c in (0, 2, -3)]
    found = []
    for k, room in ((1, 0), (2, 0), (2, 5)):
        n = 60 // k
        halves = [v.reshape(n, k, n, k, n, k).mean((1, 3, 5)).astype(np.float32) for v in fine]
        halves = [np.pad(v, room) for v in halves]
        items = [pack(v, exact=False, volume_ml=1, name="") for v in halves]
        cases = Cases(tuple(items), halves[0].shape, (1.0 * k,) * 3, 5.0)
        found.append(leave_one_out(cases))
    assert found[1] == pytest.approx(found[0], rel=0.01)
    assert found[2] == pytest.approx(found[1], rel=1e-3)


def test_a_large_grid_is_made_coarser_and_keeps_its_labels():
    rng = np.random.default_rng(0)
    shape = (90, 91, 92)
    values = np.zeros(shape, np.float32)
    values[13:40, 7:50, 60:91] = rng.random((27, 43, 31))
    items = [pack(values, exact=True, volume_ml=1.0, name="")]
    cases = Cases(tuple(items), shape, (1.0, 1.0, 2.5))
    small = coarser(cases)
    assert np.prod(small.shape) <= 150_000
    factor = np.round(np.array(small.spacing_mm) / cases.spacing_mm).astype(int)
    assert 2 <= factor.max() <= 3
    padded = np.pad(values, [(0, -n % f) for n, f in zip(shape, factor, strict=True)])
    w, h, d = (n // f for n, f in zip(padded.shape, factor, strict=True))
    expected = padded.reshape(w, factor[0], h, factor[1], d, factor[2]).mean((1, 3, 5))
    np.testing.assert_allclose(small.total(), expected, atol=1e-6)
    assert coarser(small) is small


@pytest.mark.parametrize("top", range(9))
@pytest.mark.parametrize("start", [0, 4, 8])
def test_climbing_finds_the_top_and_asks_each_place_once(top, start):
    asked = []

    def height(place):
        asked.append(place)
        return -abs(place - top)

    assert climb(height, 9, start=start) == top
    assert len(asked) == len({*asked})
