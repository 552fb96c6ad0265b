"""Dice and cross-entropy on partly labelled volumes.

A voxel is *ignored* where its label is `ignore_index` and *known* elsewhere. Only known voxels
enter the loss: an ignored one changes neither its value nor its gradient, and neither does a
sample of the batch that is ignored throughout. A step makes no GPU wait (see
:mod:`stipple_monai.losses.labels`): samples are weighed, not picked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import nn

from stipple_monai.errors import DatasetError
from stipple_monai.label_values import IGNORED
from stipple_monai.losses.labels import LabelCheck

__all__ = ["PartialDiceCELoss"]


class PartialDiceCELoss(nn.Module):
    """Weighted sum of soft Dice loss and cross-entropy over the known voxels.

    Where every voxel is known it equals `monai.losses.DiceCELoss` of the same options, with
    integer labels instead of one-hot. It fits into `monai.losses.DeepSupervisionLoss`, whose
    nearest-neighbour reduction of the label keeps `ignore_index`; it takes labels of a float dtype
    or uint8, since torch reduces no others.

    Args:
        softmax: logits ``(B, K+1, *spatial)`` of background and K organs, labels 0 to K.
        sigmoid: logits ``(B, 1, *spatial)`` of one organ, labels 0 and 1. Exactly one of
            `softmax` and `sigmoid` is True.
        include_background: whether Dice counts channel 0 of the softmax form; cross-entropy
            always does. The sigmoid form has no background channel.
        batch: whether Dice sums over the batch before it divides; otherwise it is averaged
            over the samples that have a known voxel.
        smooth_nr: added to Dice's numerator, at least 0.
        smooth_dr: added to Dice's denominator, above 0.
        weight: one non-negative number per channel. Softmax: class weights of both parts.
            Sigmoid: weight of the organ's voxels in the cross-entropy.
        lambda_dice: factor of Dice, at least 0.
        lambda_ce: factor of the cross-entropy, at least 0.
        ignore_index: label of ignored voxels.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> loss = PartialDiceCELoss(softmax=True)
        >>> logits = torch.tensor([[[2.0, 0.0, -1.0]], [[0.0, 1.0, 4.0]]])[None]
        >>> partly = loss(logits, torch.tensor([[[[0, 1, 255]]]]))
        >>> torch.equal(partly, loss(logits[..., :2], torch.tensor([[[[0, 1]]]])))
        True
        >>> loss(logits, torch.full((1, 1, 1, 3), 255))
        tensor(0.)
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        *,
        softmax: bool = False,
        sigmoid: bool = False,
        include_background: bool = True,
        batch: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        weight: Sequence[float] | torch.Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        ignore_index: int = IGNORED,
    ) -> None:
        super().__init__()
        _check_activation(softmax=softmax, sigmoid=sigmoid)
        _check_numbers(lambda_dice, lambda_ce, smooth_nr, smooth_dr)
        self.register_buffer("weight", _channel_weights(weight))
        self.softmax = softmax
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.ignore_index = ignore_index
        self.check = LabelCheck(ignore_index, name="`label`")
        self.dice = DiceLoss(
            include_background=include_background or sigmoid,
            to_onehot_y=softmax,
            softmax=softmax,
            sigmoid=sigmoid,
            batch=batch,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            reduction="none",
            ignore_index=ignore_index,
        )

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            logits: ``(B, C, *spatial)``, C = K+1 (softmax) or 1 (sigmoid); float16 and bfloat16
                are computed in float32.
            label: ``(B, 1, *spatial)`` of classes and `ignore_index`, any integer or float dtype.

        Returns:
            Scalar, float32 or float64. Zero with zero gradient where no voxel is known.

        Raises:
            ValueError: the number of channels does not fit the activation or `weight`.
            DatasetError: `label` is not of the shape of `logits`, or holds a value that is
                neither a class nor `ignore_index`; on a GPU that may be said some calls later.
        """
        # MetaTensors would run every operation through their metadata code.
        logits, label = logits.as_subclass(torch.Tensor), label.as_subclass(torch.Tensor)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        label = self._classes(logits, label)
        known = label != self.ignore_index
        cross_entropy = self._softmax_ce if self.softmax else self._sigmoid_ce
        dice = self._dice(logits, label, known)
        return self.lambda_dice * dice + self.lambda_ce * cross_entropy(logits, label, known)

    def _dice(self, logits: torch.Tensor, label: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        dice = self.dice(logits, label).reshape(1 if self.dice.batch else len(label), -1)
        # MONAI's own weighting asks the GPU for the least weight.
        if self.weight is not None and dice.shape[1] > 1:
            dice = dice * self.weight[-dice.shape[1] :].to(dice)
        # An ignored sample would count as 1 - smooth_nr / smooth_dr in the mean.
        labelled = known.flatten(1).any(1)
        labelled = labelled.any()[None] if self.dice.batch else labelled
        labelled = labelled.to(dice)
        return (labelled * dice.mean(1)).sum() / labelled.sum().clamp_min(1)

    def _softmax_ce(
        self, logits: torch.Tensor, label: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.to(logits)
        total = F.cross_entropy(
            logits, label[:, 0], weight=weight, ignore_index=self.ignore_index, reduction="sum"
        )
        # torch's own mean is 0/0 where no voxel is known, or those known are of weight 0.
        if weight is None:
            return total / known.sum().clamp_min(1)
        mass = (weight[torch.where(known, label, 0)] * known).sum()
        return total / mass.clamp_min(torch.finfo(mass.dtype).tiny)

    def _sigmoid_ce(
        self, logits: torch.Tensor, label: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        total = F.binary_cross_entropy_with_logits(
            logits,
            label.to(logits),
            weight=known.to(logits),
            pos_weight=None if self.weight is None else self.weight.to(logits),
            reduction="sum",
        )
        return total / known.sum().clamp_min(1)

    def _classes(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Check both against each other and return the label as int64."""
        channels = logits.shape[1] if logits.ndim > 2 else 0
        if channels < 1 or (channels > 1) != self.softmax:
            expected = "(B, K+1, *spatial), K >= 1" if self.softmax else "(B, 1, *spatial)"
            form = "softmax" if self.softmax else "sigmoid"
            raise ValueError(
                f"`logits` must be {expected} with {form}=True, got {tuple(logits.shape)}."
            )
        if self.weight is not None and len(self.weight) != channels:
            raise ValueError(
                f"`weight` must hold one number per channel ({channels}), got {len(self.weight)}."
            )
        if label.shape != (logits.shape[0], 1, *logits.shape[2:]):
            raise DatasetError(
                f"`label` must be (B, 1, *spatial) on the grid of `logits` {tuple(logits.shape)}, "
                f"got {tuple(label.shape)}; it holds class numbers, not one channel per class."
            )
        return self.check(label, highest=max(channels - 1, 1))


def _check_activation(*, softmax: bool, sigmoid: bool) -> None:
    if softmax == sigmoid:
        raise ValueError(
            "exactly one of `softmax` and `sigmoid` must be True, got "
            f"softmax={softmax}, sigmoid={sigmoid}."
        )


def _check_numbers(
    lambda_dice: float, lambda_ce: float, smooth_nr: float, smooth_dr: float
) -> None:
    if not (lambda_dice >= 0 and lambda_ce >= 0):
        raise ValueError(
            f"`lambda_dice` and `lambda_ce` must be at least 0, got {lambda_dice} and {lambda_ce}."
        )
    # Without smooth_dr an organ neither labelled nor predicted would be 0/0.
    if not (smooth_nr >= 0 and smooth_dr > 0):
        raise ValueError(
            "`smooth_nr` must be at least 0 and `smooth_dr` above 0, got "
            f"{smooth_nr} and {smooth_dr}."
        )


def _channel_weights(given: Sequence[float] | torch.Tensor | None) -> torch.Tensor | None:
    if given is None:
        return None
    weight = torch.as_tensor(given, dtype=torch.float32)
    if weight.ndim != 1 or not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError(
            "`weight` must be a list of finite non-negative numbers, one per channel, "
            f"got {weight.tolist()}."
        )
    return weight
