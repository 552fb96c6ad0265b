"""Bidirectional copy-paste: labelled and unlabelled slices that carry a part of each other.

The method of Bai et al. (CVPR 2023, arXiv:2305.00673), as their code has it for slices (ACDC). The
*box* has two thirds of a slice's width and height and lies anywhere in it, the same for all slices
of a batch. A *mixed* slice is one slice outside the box and another inside. The *student* is the
network that is trained, the *teacher* has the moving average of its weights.

    pre-training: two labelled slices are mixed, in both directions.
    self-training: a labelled and an unlabelled slice are mixed, in half of the pairs with the
        labelled one inside, in the others outside. Where a mixed slice is unlabelled, the student
        learns the teacher's *pseudo-label*: of each organ, the largest connected part.

A slice is *unlabelled* if its label is the ignored value throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents, default_prepare_batch
from scipy import ndimage
from torch import Tensor, nn

from stipple_monai.engines.checks import check_shares, check_weights
from stipple_monai.engines.schedule import done_share
from stipple_monai.engines.unlabelled import unlabelled_slices
from stipple_monai.label_values import IGNORED

__all__ = ["CopyPasteTrainer", "draw_box", "largest_parts", "mix_labelled", "mix_unlabelled"]

Slices = tuple[Tensor, Tensor]
"""Images ``(B, C, W, H)`` and label maps ``(B, 1, W, H)``."""


def draw_box(width: int, height: int, *, share: float = 2 / 3) -> Tensor:
    """Draw where the box lies, from torch's generator.

    Args:
        width: of a slice, in voxels.
        height: likewise.
        share: of width and height that the box has, in (0, 1).

    Returns:
        Bool, ``(width, height)``: inside the box.
    """
    inside = torch.zeros(width, height, dtype=torch.bool)
    w, h = int(width * share), int(height * share)
    left, top = (int(torch.randint(n, ())) for n in (width - w + 1, height - h + 1))
    inside[left : left + w, top : top + h] = True
    return inside


def mix_labelled(labelled: Slices, box: Tensor) -> Slices:
    """Mix labelled slices with each other: each is once outside the box and once inside.

    Args:
        labelled: B of them, paired as the first half of the batch with the second.
        box: bool, ``(W, H)``.

    Returns:
        B mixed slices.
    """
    image, label = (torch.where(box, x.roll(len(x) // 2, 0), x) for x in labelled)
    return image, label


def mix_unlabelled(
    labelled: Slices, unlabelled: Slices, box: Tensor, *, ignore_index: int = IGNORED
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each labelled slice with an unlabelled one.

    Args:
        labelled: B of them. The first half, or one more, goes into the box.
        unlabelled: B images and pseudo-labels.
        box: bool, ``(W, H)``.
        ignore_index: label of ignored voxels.

    Returns:
        B mixed images, their labels, ignored where the slice is unlabelled, and their
        pseudo-labels, ignored where it is labelled.
    """
    (image, label), (other, pseudo) = labelled, unlabelled
    goes_inside = torch.arange(len(image), device=image.device) < (len(image) + 1) // 2
    is_labelled = box == goes_inside[:, None, None, None]
    mixed = torch.where(is_labelled, image, other)
    known = torch.where(is_labelled, label, ignore_index)
    return mixed, known, torch.where(is_labelled, ignore_index, pseudo)


def largest_parts(classes: Tensor, *, organs: int) -> Tensor:
    """Keep of each organ in each slice the largest connected part; the rest is background.

    Voxels that touch at a corner are connected, as by the authors. Of equal parts, the one that
    begins first stays.

    Args:
        classes: ``(B, W, H)``, 0 to ``organs``.
        organs: K.

    Example:
        >>> largest_parts(torch.tensor([[[1, 0, 1, 1], [2, 0, 0, 0]]]), organs=2)
        tensor([[[0, 0, 1, 1],
                 [2, 0, 0, 0]]])
    """
    array = classes.cpu().numpy()
    kept = np.zeros_like(array)
    within = np.zeros((3, 3, 3), bool)
    within[1] = True
    for organ in range(1, organs + 1):
        parts, found = ndimage.label(array == organ, structure=within)
        if not found:
            continue
        for label, part in zip(kept, parts, strict=True):
            sizes = np.bincount(part.ravel())
            sizes[0] = 0
            if sizes.any():
                label[part == sizes.argmax()] = organ
    return torch.from_numpy(kept).to(classes.device)


class CopyPasteTrainer(SupervisedTrainer):
    """MONAI's trainer that mixes the slices of a batch before the network sees them.

    The loss is ``L(prediction, label) + unlabelled_weight · L(prediction, pseudo-label)`` of the
    mixed slices, where L is the loss function, which must leave ignored voxels out, as
    `stipple_monai.PartialDiceCELoss` does. It is the authors' up to a factor; they take Dice of
    each direction by itself, here it is that of the batch, as for the other methods.

    Pre-training and self-training are two parts of one training, with one schedule. In the first
    the teacher is the student; from then on it is the moving average. The student is validated and
    kept, as by the authors. To resume, save `teacher` too.

    Args:
        pretraining_share: part of the steps for pre-training, in [0, 1].
        decay: of the teacher's moving average, in (0, 1).
        unlabelled_weight: of the pseudo-labels; 0 or more.
        box_share: of width and height that the box has, in (0, 1).
        ignore_index: label of ignored voxels.
        **kwargs: as for ``monai.engines.SupervisedTrainer``.

    Raises:
        ValueError: an option is out of its range; in training, if a batch has no unlabelled slice,
            or not as many labelled ones.
    """

    def __init__(
        self,
        *,
        pretraining_share: float,
        decay: float,
        unlabelled_weight: float,
        box_share: float = 2 / 3,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> None:
        _check_options(pretraining_share, decay, unlabelled_weight, box_share)
        self._prepare = kwargs.pop("prepare_batch", default_prepare_batch)
        super().__init__(prepare_batch=self._mixed_batch, **kwargs)
        self.pretraining_share, self.decay = pretraining_share, decay
        self.unlabelled_weight, self.box_share = unlabelled_weight, box_share
        self.ignore_index = ignore_index
        self._pseudo: Tensor | None = None
        average = EMAHandler(self.network, momentum=1 - decay, handle_buffers="ema_train")
        self.teacher: nn.Module = average.ema_model
        self.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_pseudo)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._set_momentum)
        average.attach(self)

    @property
    def pretrains(self) -> bool:
        """Whether this step belongs to pre-training."""
        return done_share(self.state) < self.pretraining_share

    def _mixed_batch(self, *args: Any, **kwargs: Any) -> Slices:
        image, label = (x.as_subclass(Tensor) for x in self._prepare(*args, **kwargs))
        free = unlabelled_slices(label, ignore_index=self.ignore_index)
        if int(free.sum()) * 2 != len(free):
            raise ValueError(
                "Batches must have as many labelled slices as unlabelled ones, got "
                f"{int((~free).sum())} and {int(free.sum())}: as configs/unlabelled.yaml gives."
            )
        labelled = image[~free], label[~free]
        box = draw_box(*image.shape[-2:], share=self.box_share).to(image.device)
        self._pseudo = None
        if self.pretrains:
            return mix_labelled(labelled, box)
        unlabelled = image[free], self._pseudo_label(image[free]).to(label)
        *mixed, self._pseudo = mix_unlabelled(
            labelled, unlabelled, box, ignore_index=self.ignore_index
        )
        return mixed[0], mixed[1]

    @torch.no_grad()
    def _pseudo_label(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=bool(self.amp)):
            logits = self.inferer(image, self.teacher)
        return largest_parts(logits.argmax(1), organs=logits.shape[1] - 1)[:, None]

    def _add_pseudo(self) -> None:
        if self._pseudo is not None:
            output = self.state.output
            taught = self.loss_function(output["pred"], self._pseudo).mean()
            output["loss"] = output["loss"] + self.unlabelled_weight * taught

    def _set_momentum(self) -> None:
        self.state.ema_momentum = 1.0 if self.pretrains else 1 - self.decay


def _check_options(
    pretraining_share: float, decay: float, unlabelled_weight: float, box_share: float
) -> None:
    check_shares(pretraining_share=pretraining_share)
    check_weights(unlabelled_weight=unlabelled_weight)
    for name, value in (("decay", decay), ("box_share", box_share)):
        if not 0 < value < 1:
            raise ValueError(
                f"`{name}` must lie in (0, 1), got {value}: the authors' are 0.99 and 2/3."
            )
