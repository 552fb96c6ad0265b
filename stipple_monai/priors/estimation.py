"""From label maps to priors: the histogram of the paper, or a density whose width is chosen."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai.errors import PriorError
from stipple_monai.priors.alignment import mean_offsets
from stipple_monai.priors.cases import Cases
from stipple_monai.priors.histogram import OrganHistogram, count_labels
from stipple_monai.priors.likelihood import best_width, coarser, leave_one_out
from stipple_monai.priors.organ import Center, Label, is_count, known_center
from stipple_monai.priors.values import known_organs

# wider than any organ: a blur of a metre would take minutes and say nothing
_MOST_SMOOTHING_MM = 100.0

Smoothing: TypeAlias = float | Literal["auto"] | None


class Estimate(NamedTuple):
    """A prior's values and what is known of them, see `stipple_monai.priors.prior`."""

    organ: int
    probability: NDArray[np.floating[Any]]
    cases: Cases
    log_likelihood: float | None
    offset_mm: list[float] | None
    offsets_id: str | None
    from_top_mm: list[float]


def estimate_organs(
    labels: Iterable[Label] | Label,
    *,
    organs: Sequence[int],
    bins: int | None,
    smoothing_mm: Smoothing,
    spacing_mm: NDArray[np.float64] | None,
    center: Center,
    num_workers: int,
) -> list[Estimate]:
    """Estimate several organs, reading every map once.

    Args:
        labels: label maps or files, or one.
        organs: label values.
        bins: of a histogram, or ``None``, see
            :meth:`~stipple_monai.priors.prior.SpatialPrior.estimate_several`.
        smoothing_mm: width of a density's Gaussian, see there.
        spacing_mm: three positive lengths, or ``None``, see there.
        center: what the organ's centre is, see there.
        num_workers: maps that are read at once.

    Raises:
        PriorError: no map contains one of the organs, or an argument is out of range.
        DatasetError: a map cannot be read.
    """
    if bins is not None and (not is_count(bins) or bins < 1):
        raise PriorError(f"`bins` must be a whole number of at least 1, got {bins}.")
    width = _width(smoothing_mm, bins)
    if num_workers < 0:
        raise PriorError(f"`num_workers` must be at least 0, got {num_workers}.")
    if isinstance(labels, MetaTensor | str | os.PathLike):
        labels = [labels]
    center = known_center(center)
    histograms = [OrganHistogram(k, center, spacing_mm) for k in known_organs(organs)]
    count_labels(labels, histograms, num_workers=num_workers)
    offsets = mean_offsets([histogram.centers_mm for histogram in histograms])
    offsets_id = _fingerprint({h.organ: o for h, o in zip(histograms, offsets, strict=True) if o})
    found = []
    for histogram, offset in zip(histograms, offsets, strict=True):
        if width == 0:
            probability: NDArray[np.floating[Any]]
            probability, cases = histogram.in_bins(bins, num_workers=num_workers)
            likelihood = leave_one_out(cases)
        else:
            cases, likelihood = _density(histogram.on_kernel_grid(num_workers=num_workers), width)
            probability = cases.mean()
        known = (likelihood, offset, offsets_id, histogram.from_top_mm)
        found.append(Estimate(histogram.organ, probability, cases, *known))
    return found


def _fingerprint(offsets: Mapping[int, Sequence[float]]) -> str | None:
    """The same for the same offsets of the same organs, whatever their order."""
    text = json.dumps(sorted(offsets.items())).encode()
    return hashlib.sha256(text).hexdigest()[:16] if offsets else None


def _density(cases: Cases, width: float | Literal["auto"]) -> tuple[Cases, float | None]:
    """The labels with the width of their Gaussian, and its likelihood."""
    if width == "auto":
        width, likelihood = best_width(cases)
    else:
        likelihood = leave_one_out(replace(coarser(cases), smoothing_mm=width))
    return replace(cases, smoothing_mm=width), likelihood


def _width(smoothing_mm: Smoothing, bins: int | None) -> float | Literal["auto"]:
    """Width of the Gaussian in mm, ``"auto"``, or 0 for a histogram; or :class:`PriorError`."""
    if isinstance(smoothing_mm, str):
        if smoothing_mm != "auto":
            raise PriorError(
                f"`smoothing_mm` must be a length, 'auto' or None, got {smoothing_mm!r}."
            )
        return "auto" if bins is None else 0.0
    if smoothing_mm is None:
        return 0.0
    try:
        width = float(smoothing_mm)
    except (TypeError, ValueError, RuntimeError):
        width = math.nan
    if not 0 <= width <= _MOST_SMOOTHING_MM:
        raise PriorError(
            f"`smoothing_mm` must be a length from 0 to {_MOST_SMOOTHING_MM:g} mm, got "
            f"{smoothing_mm}: it is the same for all organs and directions."
        )
    if bins is not None and width > 0:
        raise PriorError(
            f"A histogram in bins is not smoothed, got `bins` {bins} and `smoothing_mm` "
            f"{smoothing_mm}: give one of them, the other None."
        )
    return width
