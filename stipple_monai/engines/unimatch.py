"""UniMatch: what a slice is taken for must not depend on its intensities, or on single features.

The method of Yang et al. (CVPR 2023, arXiv:2208.09910), after their code for medical slices (ACDC).
An unlabelled slice is seen four times. The *weak view* is the slice as it comes, varied in geometry
alone; its most probable classes, where they are sure enough, are the *pseudo-label*. Two *strong
views* have other intensities and, by *CutMix*, a box of another slice. The *perturbed stream* is
the weak view, of whose features some channels are dropped before the decoder. All three learn the
pseudo-label. A slice is *unlabelled* if its label is the ignored value throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.transforms import Compose
from torch import Tensor

from stipple_monai.engines.checks import check_shares, check_weights
from stipple_monai.engines.unlabelled import unlabelled_slices
from stipple_monai.label_values import IGNORED

__all__ = ["UniMatchTrainer", "confident_classes", "draw_boxes", "strong_view"]

AREA = (0.02, 0.4)
"""Least and greatest share of a slice that a box of CutMix has, by the authors."""
RATIO = (0.3, 1 / 0.3)
"""Of the box's height to its width, likewise."""


def confident_classes(logits: Tensor, *, threshold: float, ignore_index: int = IGNORED) -> Tensor:
    """The most probable class of each voxel whose probability reaches a threshold.

    Args:
        logits: ``(B, K+1, *spatial)``.
        threshold: in [0, 1].
        ignore_index: what the other voxels get.

    Returns:
        ``(B, 1, *spatial)``, int64.

    Example:
        >>> logits = torch.tensor([[[0.9, 0.5], [0.1, 0.5]]]).log()
        >>> confident_classes(logits, threshold=0.8)
        tensor([[[  0, 255]]])
    """
    probability, classes = logits.float().softmax(1).max(1, keepdim=True)
    return torch.where(probability >= threshold, classes, ignore_index)


def draw_boxes(count: int, width: int, height: int, *, prob: float = 0.5) -> Tensor:
    """Draw boxes of CutMix, from torch's generator.

    Args:
        count: B.
        width: of a slice, in voxels.
        height: likewise.
        prob: of a slice's having a box.

    Returns:
        Bool, ``(B, 1, width, height)``: inside the box.
    """
    inside = torch.zeros(count, 1, width, height, dtype=torch.bool)
    for box in inside[:, 0]:
        if float(torch.rand(())) >= prob:
            continue
        area = width * height * _uniform(*AREA)
        while True:
            ratio = _uniform(*RATIO)
            w, h = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
            left, top = int(torch.randint(width, ())), int(torch.randint(height, ()))
            if left + w <= width and top + h <= height:
                break
        box[left : left + w, top : top + h] = True
    return inside


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def strong_view(image: Tensor, intensities: Callable[[Tensor], Tensor]) -> Tensor:
    """Vary each slice's intensities between its own least and greatest one.

    Args:
        image: ``(B, C, W, H)``.
        intensities: takes and gives ``(C, W, H)`` in [0, 1]; what it leaves beyond is clipped.

    Returns:
        ``(B, C, W, H)``.
    """
    low, high = (bound(image, (1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    scaled = (image - low) / (high - low).clamp_min(1e-6)
    varied = torch.stack([torch.as_tensor(intensities(x)).as_subclass(Tensor) for x in scaled])
    return low + (high - low) * varied.clamp(0, 1)


class UniMatchTrainer(SupervisedTrainer):
    """MONAI's trainer with UniMatch's three streams on the unlabelled slices of each batch.

    The loss is ``L(labelled) + ¼ L(first strong view) + ¼ L(second) + ½ L(perturbed stream)``,
    where L is the loss function, which must leave ignored voxels out, as
    `stipple_monai.PartialDiceCELoss` does. Labelled slices and weak views pass through the network
    together, and so do both strong views. The other slice of CutMix is the next unlabelled one of
    the batch; the authors load another, and predict it once more.

    Args:
        intensities: of the strong views, see `strong_view`; MONAI's random transforms, which are
            seeded from torch's generator in each step.
        threshold: probability from which a class is a pseudo-label, in [0, 1].
        strong_weight: of each strong view; 0 or more.
        perturbed_weight: of the perturbed stream; 0 or more.
        feature_dropout: probability in [0, 1) of dropping a channel of the encoder's features.
        cutmix_prob: of a box of CutMix in a strong view, in [0, 1].
        ignore_index: label of ignored voxels.
        **kwargs: as for ``monai.engines.SupervisedTrainer``, but for ``inferer``. ``network`` has
            ``encode`` and ``decode``, as `stipple_monai.SliceUNet`.

    Raises:
        TypeError: ``network`` has no ``encode`` and ``decode``.
        ValueError: an option is out of its range; in training, if a batch has no unlabelled slice.
    """

    def __init__(
        self,
        *,
        intensities: Compose,
        threshold: float,
        strong_weight: float,
        perturbed_weight: float,
        feature_dropout: float,
        cutmix_prob: float = 0.5,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> None:
        check_shares(threshold=threshold, cutmix_prob=cutmix_prob)
        if not 0 <= feature_dropout < 1:
            raise ValueError(
                f"`feature_dropout` must lie in [0, 1), got {feature_dropout}: 0 perturbs nothing."
            )
        check_weights(strong_weight=strong_weight, perturbed_weight=perturbed_weight)
        super().__init__(**{**kwargs, "inferer": self._both_streams})
        if not (hasattr(self.network, "encode") and hasattr(self.network, "decode")):
            raise TypeError(
                "`network` must have `encode` and `decode`, as SliceUNet has, got "
                f"{type(self.network).__name__}: train the U-Net by itself, in one process."
            )
        self.intensities, self.cutmix_prob = intensities, cutmix_prob
        self.threshold, self.feature_dropout = threshold, feature_dropout
        self.strong_weight, self.perturbed_weight = strong_weight, perturbed_weight
        self.ignore_index = ignore_index
        self._perturbed: Tensor | None = None
        self.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_streams)

    def _unlabelled(self) -> Tensor:
        label = self.state.output["label"].as_subclass(Tensor)
        return unlabelled_slices(label, ignore_index=self.ignore_index)

    def _both_streams(self, image: Tensor, network: Any) -> Tensor:
        """Logits of all slices as they come; those of the perturbed stream are kept."""
        free = self._unlabelled()
        features = [
            torch.cat([x, F.dropout2d(x[free], self.feature_dropout)])
            for x in network.encode(image.as_subclass(Tensor))
        ]
        logits = network.decode(features)
        self._perturbed = logits[len(image) :]
        return logits[: len(image)]

    def _add_streams(self) -> None:
        output, free = self.state.output, self._unlabelled()
        image = output["image"].as_subclass(Tensor)[free]
        pseudo = confident_classes(
            output["pred"][free].detach(), threshold=self.threshold, ignore_index=self.ignore_index
        )
        streams = [(self.perturbed_weight, self._perturbed, pseudo)]
        views, targets = zip(*(self._strong(image, pseudo) for _ in range(2)), strict=True)
        strong = self.network(torch.cat(views)).chunk(2)
        streams += [(self.strong_weight, *pair) for pair in zip(strong, targets, strict=True)]
        for weight, logits, target in streams:
            output["loss"] = output["loss"] + weight * self.loss_function(logits, target).mean()

    def _strong(self, image: Tensor, pseudo: Tensor) -> tuple[Tensor, Tensor]:
        """A strong view of each slice, and its pseudo-label."""
        self.intensities.set_random_state(seed=int(torch.randint(2**31, ())))
        view = strong_view(image, self.intensities)
        box = draw_boxes(len(image), *image.shape[-2:], prob=self.cutmix_prob).to(image.device)
        view, pseudo = (torch.where(box, x.roll(1, 0), x) for x in (view, pseudo))
        return view, pseudo
