"""Choosing pseudo-labels: the most confident voxels of a prediction (section 3.3 of the paper).

Words used here. A voxel is *predicted* as the class of its highest probability; equal
probabilities go to the lower channel, so that background wins. Its *confidence* is the
probability of that class. Voxels of equal confidence rank in the order of their flat (C-order)
index. With K organs the classes are 0 (background) to K.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from scipy import ndimage

from stipple_monai.label_values import IGNORED
from stipple_monai.pseudo_labels.checks import check_options, check_probability

__all__ = ["select_top_k"]


def select_top_k(
    probability: torch.Tensor,
    *,
    share: float | Sequence[float] | None = None,
    count: int | Sequence[int] | None = None,
    minimum: float = 0.0,
    background_minimum: float = 0.0,
    components: int | None = None,
    ignore: int = IGNORED,
) -> torch.Tensor:
    """Turn a prediction into a partly labelled volume that keeps its most confident voxels.

    Of the voxels predicted as an organ, the k most confident get that organ's label and the
    others `ignore`, so that a loss can leave them out. Voxels predicted as background are 0, or
    `ignore` where the background's probability is below `background_minimum`.
    An organ that is predicted nowhere gets no voxel; a k beyond the prediction takes all of it.

    Args:
        probability: ``(K+1, *spatial)``, background first, in [0, 1], each voxel summing to 1
            (softmax); or ``(1, *spatial)`` of one organ, predicted above 0.5 (sigmoid).
            There is no batch axis.
        share: part of the predicted voxels to keep, in (0, 1], for all organs or one per organ.
            k is rounded up, so that an organ that was predicted keeps at least one voxel.
        count: number k of voxels to keep, at least 0, for all organs or one per organ.
            Exactly one of `share` and `count` is given.
        minimum: confidence in [0, 1] below which a voxel is never kept. `share` still counts
            all predicted voxels.
        background_minimum: probability of the background in [0, 1] below which a voxel predicted
            as background is `ignore`. Missed parts of an organ mostly lie among these.
        components: of each predicted organ, only the so many largest connected components (voxels
            that share a face) count as predicted; the voxels of the others are `ignore`. None:
            all.
        ignore: value of voxels that are left out, in [K+1, 255].

    Returns:
        Labels, plain uint8 tensor ``(1, *spatial)`` on the device of `probability`.

    Raises:
        ValueError: `probability` has no channel or spatial axis, too many channels, values
            outside [0, 1], NaN, or sums other than 1; or an option is out of its range.

    Example:
        >>> organ = torch.tensor([[0.1, 0.6, 0.9, 0.7, 0.8, 0.5]])
        >>> select_top_k(torch.cat([1 - organ, organ]), share=0.5)
        tensor([[  0, 255,   1, 255,   1,   0]], dtype=torch.uint8)
    """
    probability = probability.detach().as_subclass(torch.Tensor)
    check_probability(probability)
    organs = max(probability.shape[0] - 1, 1)
    check_options(
        organs,
        minimum=minimum,
        background_minimum=background_minimum,
        components=components,
        ignore=ignore,
    )
    amounts = _amounts(share, count, organs)
    label = _predicted_class(probability)
    background = probability[0] if len(probability) > 1 else 1 - probability[0]
    label[(label == 0) & (background < background_minimum)] = ignore
    for organ, amount in enumerate(amounts, 1):
        predicted = label == organ
        if components is not None:
            largest = largest_components(predicted, components)
            label[predicted & ~largest] = ignore
            predicted = largest
        confidence = probability[organ % probability.shape[0]][predicted]
        kept = _most_confident(confidence, amount, minimum)
        label[predicted] = torch.where(kept, organ, ignore).to(torch.uint8)
    return label[None]


def _most_confident(
    confidence: torch.Tensor, amount: Fraction | int, minimum: float
) -> torch.Tensor:
    """Which voxels are kept: a share or a number of those with the highest confidence, ``(N,)``."""
    k = amount if isinstance(amount, int) else math.ceil(amount * confidence.numel())
    ranked, order = confidence.sort(descending=True, stable=True)
    kept = torch.zeros_like(confidence, dtype=torch.bool)
    kept[order[:k][ranked[:k] >= minimum]] = True
    return kept


def _predicted_class(probability: torch.Tensor) -> torch.Tensor:
    """Arg-max over channels as uint8 ``(*spatial)``, without argmax's int64 volume."""
    if probability.shape[0] == 1:
        return (probability[0] > 0.5).to(torch.uint8)
    best = probability[0].clone()
    label = torch.zeros_like(best, dtype=torch.uint8)
    for channel in range(1, probability.shape[0]):
        label.masked_fill_(probability[channel] > best, channel)
        torch.maximum(best, probability[channel], out=best)
    return label


def largest_components(mask: torch.Tensor, number: int) -> torch.Tensor:
    """The so many largest components of a mask; of equal ones, that which begins first."""
    found, _ = ndimage.label(mask.cpu().numpy())
    sizes = np.bincount(found.ravel())[1:]
    largest = np.argsort(-sizes, kind="stable")[:number] + 1
    return torch.from_numpy(np.isin(found, largest)).to(mask.device)


def _amounts(
    share: float | Sequence[float] | None, count: int | Sequence[int] | None, organs: int
) -> Sequence[Fraction | int]:
    """Check `share` and `count`; a share or a number of voxels per organ."""
    if (share is None) == (count is None):
        raise ValueError(
            f"exactly one of `share` and `count` must be given, got share={share}, count={count}."
        )
    if share is not None:
        listed = _per_organ(share, "share", organs)
        if not all(0 < value <= 1 for value in listed):
            raise ValueError(f"`share` must lie in (0, 1], got {share}.")
        # As a decimal fraction, since 0.1 * 30 in floating point rounds up to 4 voxels.
        return [Fraction(str(float(value))) for value in listed]
    listed = _per_organ(count, "count", organs)
    try:
        whole = [operator.index(value) for value in listed]
    except TypeError:
        whole = [-1]
    if min(whole) < 0:
        raise ValueError(f"`count` must be whole numbers of at least 0, got {count}.")
    return whole


def _per_organ(value: object, name: str, organs: int) -> list:
    listed = list(value) if isinstance(value, Sequence) else [value] * organs
    if len(listed) != organs:
        raise ValueError(
            f"`{name}` must be one number or one per organ ({organs}), got {len(listed)} numbers; "
            "background has none."
        )
    return listed
