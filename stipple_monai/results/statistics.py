"""Statistics of a comparison: means between folds, and paired differences between methods."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_RESAMPLES = 9999


class Comparison(NamedTuple):
    """One method against another on the same patients.

    Attributes:
        pairs: number of patients.
        difference: mean of first − second; NaN without pairs.
        low, high: 95 % bootstrap interval of that mean, patients resampled; NaN below two pairs.
        t_test: two-sided p of the paired t-test; NaN below two pairs or where it is undefined.
        wilcoxon: two-sided p of the Wilcoxon signed-rank test, likewise.
    """

    pairs: int
    difference: float
    low: float
    high: float
    t_test: float
    wilcoxon: float


def compare_paired(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Comparison:
    """Compare two methods by their scores of the same patients.

    Args:
        first: ``(N,)`` scores of one method, a patient each.
        second: ``(N,)`` scores of the other, in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: the scores are not as many, or one is not finite.

    Example:
        >>> found = compare_paired([0.7, 0.8, 0.9], [0.5, 0.7, 0.6])
        >>> found.pairs, round(found.difference, 3), round(found.t_test, 3)
        (3, 0.2, 0.074)
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    if x.shape != y.shape or x.ndim != 1 or not np.isfinite([x, y]).all():
        raise ValueError(
            "`first` and `second` must be as many finite scores, got shapes "
            f"{x.shape} and {y.shape}: leave out patients that one of them has not."
        )
    difference = x - y
    nan = math.nan
    if len(x) < 2:
        return Comparison(len(x), float(difference.mean()) if len(x) else nan, nan, nan, nan, nan)
    interval = stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    with warnings.catch_warnings():  # what is said of constant differences: p is NaN then
        warnings.simplefilter("ignore")
        t_test = float(stats.ttest_rel(x, y).pvalue)
        wilcoxon = float(stats.wilcoxon(difference).pvalue) if difference.any() else nan
    low, high = float(interval.low), float(interval.high)
    return Comparison(len(x), float(difference.mean()), low, high, t_test, wilcoxon)


def holm(p_values: ArrayLike) -> list[float]:
    """Correct p-values of several tests, after Holm: the chance of one false alarm or more.

    Args:
        p_values: ``(N,)`` in [0, 1]. NaN, where a test is undefined, stays NaN and does not count.

    Returns:
        The corrected values in the same order, in [0, 1]. The k-th smallest of M is multiplied by
        ``M + 1 − k``, and is at least the one before (Holm, Scandinavian Journal of Statistics
        1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, float)
    corrected = given.copy()
    order = np.argsort(given)[: np.isfinite(given).sum()]
    times = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(given[order] * times), 1)
    return [float(p) for p in corrected]


class Spread(NamedTuple):
    """A mean and how it varies between folds.

    Attributes:
        mean: of the folds' means.
        sd: standard deviation (n − 1) between the folds; NaN for a single one.
        folds: their number.
    """

    mean: float
    sd: float
    folds: int


def between_folds(scores: Mapping[int, Sequence[float]]) -> Spread:
    """Mean and standard deviation between folds, as the paper reports its results.

    Args:
        scores: by fold, the scores of its cases, also of several seeds. Folds without are left
            out.

    Example:
        >>> between_folds({0: [0.5, 0.7], 1: [0.8]})
        Spread(mean=0.7, sd=0.141..., folds=2)
    """
    means = [float(np.mean(values)) for values in scores.values() if len(values)]
    if not means:
        return Spread(math.nan, math.nan, 0)
    sd = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    return Spread(float(np.mean(means)), sd, len(means))
