"""Whether probabilities come true: of the voxels said to be an organ with 0.7, are 70 % of it?

Words used here: *confidence* of a bin is the mean probability of its voxels, *frequency* the share
of them that is the organ. The *expected calibration error* is the mean of their distance over all
voxels that count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stipple_monai.errors import DatasetError
from stipple_monai.label_values import IGNORED

__all__ = ["Reliability", "reliability"]


class Reliability(NamedTuple):
    """Of each organ.

    Attributes:
        confidence: ``(K, bins)`` float64, NaN for an empty bin.
        frequency: ``(K, bins)`` float64, NaN for an empty bin.
        voxels: ``(K, bins)`` int64, voxels of the bin.
        error: ``(K,)`` float64, expected calibration error; NaN where no voxel counts.
    """

    confidence: Tensor
    frequency: Tensor
    voxels: Tensor
    error: Tensor


def reliability(
    probability: Tensor,
    label: Tensor,
    *,
    bins: int = 10,
    minimum: float = 0.01,
    ignore: int = IGNORED,
) -> Reliability:
    """Compare probabilities with what came true.

    Args:
        probability: ``(K + 1, *spatial)``, background first, or ``(1, *spatial)`` of one organ.
        label: ``(1, *spatial)``, 0 to K and ``ignore``.
        bins: of equal width in [0, 1].
        minimum: voxels below it do not count: most of a scan is surely background, and would
            hide what happens at the organ.
        ignore: label of voxels that do not count.

    Raises:
        DatasetError: ``label`` is not on the grid of ``probability``.
        ValueError: ``bins`` is below 1, or ``minimum`` not in [0, 1].

    Example:
        >>> organ = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.9]])
        >>> reliability(organ, torch.tensor([[1, 0, 0, 0, 1]]), bins=2).error
        tensor([0.0600], dtype=torch.float64)
    """
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    if not 0 <= minimum <= 1:
        raise ValueError(f"`minimum` must be a probability in [0, 1], got {minimum}.")
    if label.shape != (1, *probability.shape[1:]):
        raise DatasetError(
            f"`label` must be {(1, *probability.shape[1:])}, got {tuple(label.shape)}: it holds "
            "class numbers on the grid of the probabilities."
        )
    p = probability.detach().as_subclass(Tensor)
    p = (p if len(p) == 1 else p[1:]).flatten(1)
    classes = label.as_subclass(Tensor).flatten().to(p.device)
    weight = (classes != ignore).double()
    return weighted_reliability(p, classes, weight, bins=bins, minimum=minimum)


def weighted_reliability(
    probability: Tensor, classes: Tensor, weight: Tensor, *, bins: int = 10, minimum: float = 0.01
) -> Reliability:
    """Compare probabilities with what came true where each voxel stands for several.

    Args:
        probability: ``(K, N)``, the organs alone.
        classes: ``(N,)``, 0 to K.
        weight: ``(N,)`` float64, how many voxels each stands for; 0 does not count.
        bins: see `reliability`.
        minimum: likewise.
    """
    counts, sums, hits = torch.zeros(
        3, len(probability), bins, dtype=torch.float64, device=probability.device
    )
    for k, organ in enumerate(probability):
        counted = (weight > 0) & (organ >= minimum)
        values, voxels = organ[counted].double(), weight[counted]
        place = (values * bins).long().clamp(0, bins - 1)
        counts[k].index_add_(0, place, voxels)
        sums[k].index_add_(0, place, voxels * values)
        hits[k].index_add_(0, place, voxels * (classes[counted] == k + 1))
    error = (sums - hits).abs().sum(1) / counts.sum(1)
    return Reliability(sums / counts, hits / counts, counts.round().long(), error)
