"""The deep atlas prior: a loss whose voxels are weighed by a spatial prior.

The nearest relative of a prior-driven network. There, the prior enters the prediction; here, it
says only which voxels count in training, and the trained network needs none.

With ``p_y`` the network's probability of a voxel's true class and ``a_y`` the prior's (the atlas
has ``a_0 = 1 − Σ_k a_k`` for the background; where organs overlap, all are scaled to sum to 1),

``L_focal = mean_v (1 − p_y)^γ · (−log p_y)``,
``L_atlas = mean_v (1 − a_y)^γ_a · (−log p_y)``,
``L = L_focal + λ · L_atlas + L_region``.

The means are over the known voxels. A voxel where the atlas is sure of the true class counts for
nothing in the second part, and one that contradicts the atlas, such as an organ's tip or the
background inside its usual place, counts in full.

Source: Zheng et al., "Semi-supervised segmentation of liver using adversarial learning with deep
atlas prior", MICCAI 2019, pp. 148-156. Its abstract calls the focal loss, weighted by predicted
probabilities, a likelihood loss, combines it with a focal loss that is weighted by the probability
atlas, and calls both together a Bayesian loss. The equations above were written from the abstract
and from the summary in Petit et al. 2022 ("a focal loss … to weight examples based on their
difficulty"), not from the equations of the paper. Known to differ: the probabilities in ``L_focal``
are those of this step, there those of the previous epoch; the sum, its factor ``λ`` and ``γ_a`` are
choices of this module; the region term keeps the Dice loss of the networks that it is compared
with; and the adversarial part, on unlabelled scans, is left out.
"""

from __future__ import annotations

import torch
from torch import nn

from stipple_monai.errors import PriorError
from stipple_monai.label_values import IGNORED
from stipple_monai.losses.labels import LabelCheck

__all__ = ["AtlasPriorLoss"]


class AtlasPriorLoss(nn.Module):
    """Focal loss, atlas-weighted cross-entropy and a region loss over the known voxels.

    The prior comes in the channels behind the label's, so that trainers which know only prediction
    and label can be used as they are.

    Args:
        region: a further loss of logits and label ``(B, 1, *spatial)``, such as Dice; none if
            ``None``.
        gamma: ``γ``, 0 (cross-entropy) or at least 1; the lesser, the more an easy voxel counts.
        atlas_gamma: ``γ_a``, at least 0.
        atlas_factor: ``λ``, at least 0.
        ignore_index: label of ignored voxels.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> loss = AtlasPriorLoss(gamma=0)
        >>> logits, organ = torch.zeros(1, 2, 1, 2), torch.ones(1, 1, 1, 2)
        >>> loss(logits, torch.cat([organ, organ], dim=1))
        tensor(0.6931)
        >>> loss(logits, torch.cat([organ, 0 * organ], dim=1))
        tensor(1.3863)
    """

    def __init__(
        self,
        *,
        region: nn.Module | None = None,
        gamma: float = 2.0,
        atlas_gamma: float = 2.0,
        atlas_factor: float = 1.0,
        ignore_index: int = IGNORED,
    ) -> None:
        super().__init__()
        # Between 0 and 1, the focal weight's slope is infinite where a voxel is certain.
        if gamma != 0 and not gamma >= 1:
            raise ValueError(f"`gamma` must be 0 or at least 1, got {gamma}.")
        if not (atlas_gamma >= 0 and atlas_factor >= 0):
            raise ValueError(
                "`atlas_gamma` and `atlas_factor` must be at least 0, got "
                f"{atlas_gamma} and {atlas_factor}."
            )
        self.region = region
        self.gamma = gamma
        self.atlas_gamma = atlas_gamma
        self.atlas_factor = atlas_factor
        self.ignore_index = ignore_index
        self.check = LabelCheck(ignore_index, name="`target`'s first channel")

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            logits: ``(B, K + 1, *spatial)``, channel 0 is the background; float16 and bfloat16 are
                computed in float32.
            target: ``(B, 1 + K, *spatial)``: the label, classes 0 to K or `ignore_index`, and
                behind it the prior of each organ, in [0, 1].

        Returns:
            Scalar, float32 or float64. Zero with zero gradient where no voxel is known.

        Raises:
            PriorError: ``target`` has no or other prior channels than ``logits`` has organs, or
                another grid.
            DatasetError: a label is neither a class nor `ignore_index`; on a GPU that may be said
                some calls later.
        """
        # MetaTensors would run every operation through their metadata code.
        logits, target = logits.as_subclass(torch.Tensor), target.as_subclass(torch.Tensor)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if logits.ndim < 3 or target.shape != logits.shape:
            raise PriorError(
                "`target` must be (B, 1 + K, *spatial), the label and behind it the prior of each "
                f"organ of `logits` {tuple(logits.shape)}, got {tuple(target.shape)}: concatenate "
                "label and prior, label first."
            )
        label, atlas = target[:, :1], target[:, 1:].to(logits)
        label = self.check(label, highest=logits.shape[1] - 1)
        known = label != self.ignore_index
        classes = torch.where(known, label, 0)
        log_p = logits.log_softmax(1).gather(1, classes)
        difficulty = (-log_p.expm1()) ** self.gamma
        surprise = (1 - class_probability(atlas, classes)) ** self.atlas_gamma
        weight = (difficulty + self.atlas_factor * surprise) * known
        loss = -(weight * log_p).sum() / known.sum().clamp(min=1)
        return loss if self.region is None else loss + self.region(logits, label)


def class_probability(atlas: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The atlas's probability of each voxel's class, ``a_y``.

    Args:
        atlas: ``(B, K, *spatial)``, the prior of each organ in [0, 1].
        classes: ``(B, 1, *spatial)``, int64, 0 to K.

    Returns:
        ``(B, 1, *spatial)`` in [0, 1].

    Example:
        >>> atlas = torch.tensor([0.3, 0.9]).reshape(1, 1, 1, 2)
        >>> class_probability(atlas, torch.tensor([0, 1]).reshape(1, 1, 1, 2)).flatten()
        tensor([0.7000, 0.9000])
    """
    organs = atlas.clamp(0, 1)
    every = torch.cat([(1 - organs.sum(1, keepdim=True)).clamp(min=0), organs], dim=1)
    return (every / every.sum(1, keepdim=True)).gather(1, classes)
