"""The best common centre, against every centre and every place."""

import math

import numpy as np
import pytest
import torch

from stipple_monai.spatial import Votes, common_center
from stipple_monai.spatial.votes import _AT_ONCE, _extent, _levels, _worth


def worth_by_loop(votes, weight, center):
    """The worth of a centre, from the vote of every cell."""
    worth = 0.0
    for values, start in votes:
        cells = np.indices(values.shape).reshape(3, -1).T + start
        cost = ((cells - center) ** 2) @ np.array(weight)
        worth += max(0.0, float((values.double().numpy().ravel() - cost).max()))
    return worth


def best_by_loop(votes, weight):
    starts = np.array([v.start for v in votes])
    stops = starts + [v.values.shape for v in votes]
    low = starts.min(0) - 1
    centers = np.indices(stops.max(0) + 1 - low).reshape(3, -1).T + low
    return max(worth_by_loop(votes, weight, c) for c in centers)


def assert_best(votes, weight, expected=None):
    """Its worth is the greatest, and it is that of the centre and of the places."""
    found = common_center(votes, weight)
    tolerance = 2e-6 * len(votes)
    expected = best_by_loop(votes, weight) if expected is None else expected
    assert found.worth == pytest.approx(expected, abs=tolerance)
    assert worth_by_loop(votes, weight, found.center) == pytest.approx(expected, abs=tolerance)
    heard = 0.0
    for (values, start), place in zip(votes, found.places, strict=True):
        cell = np.array(place) - start
        inside = (cell >= 0).all() and (cell < values.shape).all()
        vote = float(values[tuple(cell)]) if inside else 0.0
        heard += vote - float(((np.array(place) - found.center) ** 2) @ np.array(weight))
    assert heard == pytest.approx(expected, abs=tolerance)
    return found


def random_votes(rng, count, power, dtype=torch.float32):
    return [
        Votes(
            torch.from_numpy(rng.random(rng.integers(1, 9, 3)) ** power).to(dtype),
            tuple(rng.integers(-6, 7, 3).tolist()),
        )
        for _ in range(count)
    ]


SEEDS = [pytest.param(n, marks=pytest.mark.slow) if n % 5 > 2 else n for n in range(12)]


@pytest.mark.parametrize("scale", [0.003, 0.05, 0.5, 5.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_the_best_of_all_centres(seed, scale):
    rng = np.random.default_rng(seed)
    votes = random_votes(rng, 1 + seed % 5, [1, 4, 20][seed % 3])
    assert_best(votes, (scale * (0.2 + rng.random(3))).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_more_than_is_worked_on_together_and_float64(seed):
    """Large arrays: the centre against the worth of all, which is a distance transform."""
    rng = np.random.default_rng(seed)
    votes = [
        Votes(
            torch.from_numpy(rng.random((90, 70, 60)) ** 6), tuple(rng.integers(-9, 9, 3).tolist())
        )
        for _ in range(3)
    ]
    weight = [0.01, 0.02, 0.004]
    level = _levels(votes, weight)[0]
    box = _extent(votes)
    everywhere = _worth(level, box)
    assert 3 * everywhere.numel() > _AT_ONCE
    some = [tuple(int(rng.integers(0, n)) for n in everywhere.shape) for _ in range(5)]
    for index in some:
        expected = worth_by_loop(votes, weight, np.array(box.start) + index)
        assert float(everywhere[index]) == pytest.approx(expected, abs=1e-12)
    assert_best(votes, weight, expected=float(everywhere.max()))


@pytest.mark.parametrize("seed", range(4))
def test_bounds_lie_above_what_their_blocks_hold(seed):
    rng = np.random.default_rng(seed)
    votes = random_votes(rng, 3, 3)
    weight = [0.004, 0.007, 0.002]
    levels = _levels(votes, weight)
    assert len(levels) > 2
    for level in levels[1:]:
        box = _extent(level.votes)
        bound = _worth(level, box)
        for block in np.ndindex(*bound.shape):
            first = (np.array(block) + box.start) * level.block
            for inside in rng.integers(0, level.block, (6, 3)):
                worth = worth_by_loop(votes, weight, first + inside)
                assert worth <= float(bound[block]) + 1e-5


def test_places_far_apart_are_not_heard_together():
    """Two arrays against one, 100 cells away on the other side."""
    one = torch.zeros(120, 1, 1)
    one[0] = 0.9
    other = torch.zeros(120, 1, 1)
    other[110] = 0.6
    found = assert_best([Votes(v, (0, 0, 0)) for v in (one, other, other)], (0.01, 0.01, 0.01))
    assert found.center == (110, 0, 0)
    assert found.places == [(110, 0, 0)] * 3


@pytest.mark.parametrize("shift", [0, 1, 5, 17])
def test_it_moves_with_the_votes(shift):
    rng = np.random.default_rng(3)
    votes = random_votes(rng, 4, 5)
    moved = [Votes(v.values, tuple(s - shift for s in v.start)) for v in votes]
    found, again = (common_center(v, [0.02, 0.01, 0.03]) for v in (votes, moved))
    assert found.worth == pytest.approx(again.worth, abs=1e-6)
    assert [tuple(c + shift for c in p) for p in again.places] == found.places


def test_ties_have_one_answer_for_all():
    """Either side is as good: every array's place is on the same one."""
    both = torch.zeros(41, 1, 1)
    both[3] = both[37] = 0.8
    found = assert_best([Votes(both, (0, 0, 0))] * 3, (0.01, 0.01, 0.01))
    assert found.worth == pytest.approx(2.4)
    assert len(set(found.places)) == 1
    assert found.places[0] in {(3, 0, 0), (37, 0, 0)}


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_everything_equal(value):
    votes = [Votes(torch.full((30, 20, 10), value), (a, 0, -a)) for a in range(3)]
    found = common_center(votes, (0.01, 0.01, 0.01))
    assert found.worth == pytest.approx(3 * value)


def test_an_array_without_votes_is_placed_at_the_centre():
    seen = torch.zeros(9, 9, 9)
    seen[2, 3, 4] = 0.7
    votes = [Votes(seen, (0, 0, 0)), Votes(torch.zeros(1, 1, 1), (40, 40, 40))]
    found = assert_best(votes, (0.01, 0.01, 0.01), expected=0.7)
    assert found.places == [(2, 3, 4)] * 2


@pytest.mark.parametrize("weight", [1e-12, 1e12])
def test_distances_that_cost_nothing_or_everything(weight):
    rng = np.random.default_rng(2)
    votes = [Votes(torch.from_numpy(rng.random((6, 5, 4))), (0, 0, 0)) for _ in range(3)]
    found = common_center(votes, [weight] * 3)
    values = torch.stack([v.values for v in votes])
    expected = values.flatten(1).amax(1).sum() if weight < 1 else values.sum(0).max()
    assert found.worth == pytest.approx(float(expected), abs=1e-6)
    assert math.isfinite(found.worth)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_centre_of_the_cpu():
    for seed in range(4):
        votes = random_votes(np.random.default_rng(seed), 4, 5)
        there = [Votes(v.values.cuda(), v.start) for v in votes]
        expected, found = (common_center(v, [0.02, 0.01, 0.03]) for v in (votes, there))
        assert found.places == expected.places
        assert found.worth == pytest.approx(expected.worth, abs=1e-6)
