"""The Dice of a training's own batches, which no GPU is made to wait for.

MONAI's ``MeanDice`` asks the GPU for a number per sample and organ, after a chain of transforms
per sample; in every training step that takes as long as the step itself.
"""

from __future__ import annotations

import torch
from monai.metrics import CumulativeIterationMetric, do_metric_reduction
from torch import Tensor

from stipple_monai.label_values import IGNORED


class SliceDice(CumulativeIterationMetric):
    """Mean Dice of the organs over slices or patches, for ``monai.handlers.IgniteMetricHandler``.

    It equals ``MeanDice`` without background of discrete predictions from which ignored voxels are
    left out. Of a sample, organs count that are in its label.

    Args:
        ignore_index: label of ignored voxels.

    Example:
        >>> dice = SliceDice()
        >>> logits = torch.tensor([[[0.0, 0.0, 2.0], [1.0, 1.0, 1.0]]])
        >>> dice(logits, torch.tensor([[[1, 0, 1]]]))
        tensor([[0.5000]])
    """

    def __init__(self, *, ignore_index: int = IGNORED) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        """``(B, K)``, NaN for an organ that is not in the label, of logits and label.

        Args:
            y_pred: logits ``(B, K + 1, *spatial)``, channel 0 is the background.
            y: label ``(B, 1, *spatial)`` or, with anything behind it, ``(B, 1 + …, *spatial)``.
        """
        assert y is not None
        label = y.as_subclass(Tensor)[:, 0].flatten(1)
        found = y_pred.as_subclass(Tensor).argmax(1).flatten(1)
        found = torch.where(label == self.ignore_index, 0, found)
        dice = []
        for organ in range(1, y_pred.shape[1]):
            here, there = found == organ, label == organ
            size = there.sum(1)
            value = 2 * (here & there).sum(1) / (here.sum(1) + size)
            dice.append(torch.where(size > 0, value, torch.nan))
        return torch.stack(dice, dim=1)

    def aggregate(self) -> Tensor:
        """The mean over all that was collected, of all processes."""
        return do_metric_reduction(self.get_buffer(), "mean")[0]
