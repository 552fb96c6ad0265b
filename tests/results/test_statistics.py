"""Statistics: against formulas by hand, and where they are undefined."""

import math

import numpy as np
import pytest
from scipy import stats

from stipple_monai.results.statistics import between_folds, compare_paired, holm


def test_a_paired_comparison_by_hand():
    first = np.array([0.71, 0.80, 0.93, 0.64, 0.77])
    second = np.array([0.60, 0.82, 0.85, 0.50, 0.70])
    found = compare_paired(first, second)
    d = first - second
    t = d.mean() / (d.std(ddof=1) / math.sqrt(5))
    assert found.pairs == 5
    assert found.difference == pytest.approx(d.mean())
    assert found.t_test == pytest.approx(2 * stats.t.sf(abs(t), 4))
    # of the 32 ways to give the ranks a sign, those at least as one-sided: the negative is rank 1
    ranks = stats.rankdata(abs(d))
    sums = [
        sum(r for r, bit in zip(ranks, f"{i:05b}", strict=True) if bit == "1") for i in range(32)
    ]
    below = sum(s <= ranks[d < 0].sum() for s in sums)
    assert found.wilcoxon == pytest.approx(2 * below / 32)
    draws = np.random.default_rng(1).choice(d, (20000, 5)).mean(1)
    assert [found.low, found.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.004)


def test_the_bootstrap_depends_on_its_seed_alone():
    x, y = np.random.default_rng(0).random((2, 12))
    assert compare_paired(x, y) == compare_paired(x, y)
    assert compare_paired(x, y) != compare_paired(x, y, seed=1)


def test_what_is_undefined_is_nan():
    assert compare_paired([], [])[0] == 0
    assert all(math.isnan(x) for x in compare_paired([], [])[1:])
    one = compare_paired([0.5], [0.25])
    assert one[:2] == (1, 0.25)
    assert all(math.isnan(x) for x in one[2:])
    same = compare_paired([0.5, 0.6], [0.5, 0.6])
    assert same[:4] == (2, 0, 0, 0)
    assert math.isnan(same.t_test)
    assert math.isnan(same.wilcoxon)


@pytest.mark.parametrize("pair", [([1, 2], [1]), ([1, math.nan], [1, 2]), ([[1]], [[1]])])
def test_scores_that_are_no_pairs(pair):
    with pytest.raises(ValueError, match="`first` and `second` must be as many finite scores"):
        compare_paired(*pair)


def test_the_spread_is_between_folds():
    found = between_folds({0: [1.0, 2.0, 3.0], 1: [4.0], 2: []})
    assert found == (3.0, pytest.approx(math.sqrt(2)), 2)
    one = between_folds({3: [1.0, 2.0]})
    assert one[0] == 1.5
    assert math.isnan(one.sd)
    assert between_folds({}).folds == 0


def test_holm_by_its_definition():
    """Reject the smallest p as long as the k-th of M is at most level / (M + 1 - k)."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(rng.integers(1, 7)) ** 3
        corrected = holm(p)
        for level in rng.random(10):
            rejected = set()
            for rank, index in enumerate(np.argsort(p)):
                if p[index] > level / (len(p) - rank):
                    break
                rejected.add(int(index))
            assert {i for i, value in enumerate(corrected) if value <= level} == rejected


def test_holm_leaves_out_what_was_not_tested():
    assert holm([]) == []
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == corrected[2] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
