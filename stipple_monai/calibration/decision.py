"""From calibrated probabilities to the label map with the best Dice.

Words used here: *expected Dice* of a set S of voxels, given independent probabilities p, is
``2 Σ_{v∈S} p_v / (|S| + Σ_v p_v)``, the ratio of the expectations of Dice's numerator and
denominator. It grows with a voxel exactly if the voxel's p exceeds half of it, so the best set is
all voxels above a *threshold* that is half the Dice reached: below one half, always. A voxel adds
``2 (p_v − threshold) / (|S| + Σ_v p_v)`` to it. Of several organs that claim a voxel, the one to
which it adds most has it.

Source: Lipton, Elkan, Naryanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure",
ECML 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stipple_monai.calibration.likelihood import Likelihood
from stipple_monai.calibration.samples import Samples

__all__ = ["CAUTION", "best_thresholds", "decide", "dice_threshold"]

CAUTION = 1.25
"""Factor of the thresholds where nothing says that probabilities are calibrated: those that are
spread too far promise a low Dice, and a threshold of half of it makes organs too large. Chosen on
scans for development, see `docs/decisions.md`."""

GRID = np.linspace(0.02, 0.98, 97)
"""Thresholds that are tried."""


def dice_threshold(probability: Tensor, *, caution: float = 1.0) -> float:
    """The threshold of one organ whose set has the highest expected Dice.

    Dinkelbach's iteration: threshold at half the Dice of the last set until it no longer grows. It
    is exact, needs no sorting, and a few passes.

    Args:
        probability: of the organ, any shape, in ``[0, 1]``.
        caution: factor of the threshold, at least 1; the result is at most 0.5. See `CAUTION`.

    Returns:
        In [0, 0.5]; voxels above it are the organ's. 0.5 where no voxel has any probability.

    Raises:
        ValueError: ``probability`` is empty or has values outside [0, 1], or ``caution`` is
            below 1.

    Example:
        >>> dice_threshold(torch.tensor([0.9, 0.4, 0.1]))
        0.382...
    """
    if not 1 <= caution < math.inf:
        raise ValueError(f"`caution` must be at least 1, got {caution}: 1 is the expected Dice.")
    p = probability.detach().as_subclass(Tensor).flatten()
    if p.numel() == 0 or not bool((p.min() >= 0) & (p.max() <= 1 + 1e-2)):
        raise ValueError(
            f"`probability` must have values in [0, 1], got {tuple(probability.shape)} with others "
            "or none: apply the activation first."
        )
    total = float(p.sum(dtype=torch.float64))
    if total == 0:
        return 0.5
    best = 0.0
    while True:
        chosen = p[p > best / 2]
        dice = 2 * float(chosen.sum(dtype=torch.float64)) / (chosen.numel() + total)
        if dice <= best:
            return min(0.5, caution * best / 2)
        best = dice


def decide(
    probability: Tensor, thresholds: Sequence[float] | None = None, *, caution: float = 1.0
) -> Tensor:
    """Label map of calibrated probabilities.

    A voxel belongs to the organ to whose expected Dice it adds most,
    ``(p_k − threshold_k) / (n_k + Σ p_k)`` with the ``n_k`` voxels above its threshold; to the
    background where no organ is above its own. For one organ this is the set of the highest
    expected Dice.

    Args:
        probability: ``(K + 1, *spatial)``, background first, or ``(1, *spatial)`` of one organ.
        thresholds: one for each organ, in (0, 1); ``None`` takes `dice_threshold` of each.
        caution: of `dice_threshold`; given ``thresholds`` stay as they are.

    Returns:
        Plain uint8 ``(1, *spatial)``, 0 to K.

    Raises:
        ValueError: ``thresholds`` are not one for each organ or out of range, ``caution`` is below
            1, or there are more than 255 organs.

    Example:
        >>> organ = torch.tensor([[0.1, 0.3, 0.45, 0.9]])
        >>> decide(torch.cat([1 - organ, organ]), [0.4])
        tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    """
    p = probability.detach().as_subclass(Tensor)
    p = p if len(p) == 1 else p[1:]
    if thresholds is None:
        thresholds = [dice_threshold(organ, caution=caution) for organ in p]
    elif not all(0 < t < 1 for t in thresholds):
        raise ValueError(f"`thresholds` must lie in (0, 1), got {list(thresholds)}.")
    if len(thresholds) != len(p) or len(p) > 255:
        raise ValueError(
            f"`thresholds` must be one for each of {len(p)} organs, 255 at most, got "
            f"{len(thresholds)}."
        )
    label = torch.zeros(p.shape[1:], dtype=torch.uint8, device=p.device)
    best = torch.zeros(p.shape[1:], dtype=torch.float32, device=p.device)
    for k, threshold in enumerate(thresholds):
        organ = p[k].float()
        excess = organ - threshold
        gain = excess / ((excess > 0).sum() + organ.sum()).clamp(min=1)
        label.masked_fill_(gain > best, k + 1)
        torch.maximum(best, gain, out=best)
    return label[None]


def best_thresholds(
    samples: Samples, theta: NDArray[np.float64], *, activation: str
) -> NDArray[np.float64]:
    """Thresholds of the highest mean Dice over the scans that have the organ.

    Args:
        samples: of one scan or more.
        theta: a, b and c of each organ, ``(K, 3)``.
        activation: ``"softmax"`` or ``"sigmoid"``.

    Returns:
        ``(K,)`` of ``GRID``; the middle of equally good ones. An organ that no scan has gets 0.5.
    """
    odds = Likelihood(samples, activation=activation)
    p = odds.probabilities(theta)
    scan = samples.scan[odds.rows]
    result = np.full(odds.organs, 0.5)
    for k in range(odds.organs):
        curves = []
        for number in np.unique(scan):
            rows = (scan == number) & odds.known[:, k]
            weight, truth = odds.weight[rows], odds.target[rows, k]
            if truth.any():
                curves.append(_dice_curve(p[rows, k], truth * weight, weight))
        if curves:
            mean = np.mean(curves, axis=0)
            result[k] = GRID[mean >= mean.max() - 1e-9].mean()
    return result


def _dice_curve(
    p: NDArray[np.float64], hit: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Dice at every threshold of ``GRID``."""
    above = np.searchsorted(GRID, p, side="left")
    hits = hit.sum() - np.cumsum(np.bincount(above, hit, len(GRID) + 1))[: len(GRID)]
    size = weight.sum() - np.cumsum(np.bincount(above, weight, len(GRID) + 1))[: len(GRID)]
    return 2 * hits / (size + hit.sum())
