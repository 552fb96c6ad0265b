"""Choosing pseudo-labels: all of the best label map, but for background that is not certain.

Words used here. The *best label map* is that of the highest expected Dice, see
:mod:`stipple_monai.calibration.decision`, of which the probabilities must be calibrated. Background
is *certain* where its own probability reaches `background_minimum`.

Why background alone: a network of few labels misses much of an organ, and what it misses it calls
background, mostly with some doubt. Organ voxels in doubt are worth more than they cost: to ignore
those too gained less (`docs/decisions.md` has the figures).
"""

from __future__ import annotations

import torch

from stipple_monai.calibration import CAUTION, decide, dice_threshold
from stipple_monai.label_values import IGNORED
from stipple_monai.pseudo_labels.checks import check_options, check_probability
from stipple_monai.pseudo_labels.selection import largest_components

__all__ = ["BACKGROUND_MINIMUM", "select_certain"]

BACKGROUND_MINIMUM = 0.7
"""Probability from which on background is certain."""

LEAST_THRESHOLD = 0.02
"""An organ that is nowhere probable has a best threshold of nearly 0, which noise exceeds."""


def select_certain(
    probability: torch.Tensor,
    *,
    minimum: float = 0.0,
    background_minimum: float = BACKGROUND_MINIMUM,
    components: int | None = None,
    caution: float = CAUTION,
    ignore: int = IGNORED,
) -> torch.Tensor:
    """Turn a prediction into the label map of the best Dice, without uncertain background.

    Args:
        probability: calibrated; ``(K+1, *spatial)``, background first, in [0, 1], each voxel
            summing to 1 (softmax); or ``(1, *spatial)`` of one organ (sigmoid). There is no batch
            axis.
        minimum: probability in [0, 1] of its organ below which an organ's voxel is `ignore`.
        background_minimum: probability of the background in [0, 1] below which a voxel decided as
            background is `ignore`.
        components: of each organ, only the so many largest connected components (voxels that share
            a face) are kept; the voxels of the others are `ignore`. None: all.
        caution: factor of thresholds, at least 1, see :func:`~stipple_monai.calibration.decide`; 1
            where the probabilities are calibrated.
        ignore: value of voxels that are left out, in [K+1, 255].

    Returns:
        Labels, plain uint8 tensor ``(1, *spatial)`` on the device of `probability`.

    Raises:
        ValueError: `probability` has no channel or spatial axis, too many channels, values
            outside [0, 1], NaN, or sums other than 1; or an option is out of its range.

    Example:
        >>> organ = torch.tensor([[0.9, 0.6, 0.4, 0.32, 0.2, 0.1]])
        >>> select_certain(torch.cat([1 - organ, organ]))
        tensor([[  1,   1, 255, 255,   0,   0]], dtype=torch.uint8)
    """
    probability = probability.detach().as_subclass(torch.Tensor)
    check_probability(probability)
    probability = probability.clamp(0, 1)
    organs = probability if len(probability) == 1 else probability[1:]
    check_options(
        len(organs),
        minimum=minimum,
        background_minimum=background_minimum,
        components=components,
        ignore=ignore,
    )
    best = [dice_threshold(organ, caution=caution) for organ in organs]
    label = decide(probability, [max(threshold, LEAST_THRESHOLD) for threshold in best])[0]
    background = probability[0] if len(probability) > 1 else 1 - probability[0]
    label[(label == 0) & (background < background_minimum)] = ignore
    for number, organ in enumerate(organs, 1):
        decided = label == number
        kept = decided if components is None else largest_components(decided, components)
        label[decided & ~(kept & (organ >= minimum))] = ignore
    return label[None]
