"""Adversarial training: a discriminator says where a prediction on an unlabelled slice is right.

The method of Hung et al. (BMVC 2018, arXiv:1802.07934), close to Nie et al.'s ASDNet (MICCAI 2018,
arXiv:1805.05548). A *map* has one channel per class that sum to 1: the one-hot label or the
predicted probabilities; it is 0 throughout at ignored voxels. The *discriminator* gives each voxel
of a map its *confidence*, the probability that the map is a label. The segmentation network learns
to be taken for a label and, on unlabelled slices, to stand by its own classes where the confidence
is high. A slice is *unlabelled* if its label is the ignored value throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.networks import one_hot
from torch import Tensor, nn

from stipple_monai.engines.checks import check_shares, check_weights
from stipple_monai.engines.schedule import done_share
from stipple_monai.engines.unlabelled import unlabelled_slices
from stipple_monai.label_values import IGNORED

__all__ = [
    "AdversarialSegmentationTrainer",
    "Discriminator",
    "confidence_loss",
    "discriminator_loss",
    "label_map",
    "self_taught_loss",
]


class Discriminator(nn.Module):
    """Fully convolutional discriminator of Hung et al., for axial slices.

    4×4 convolutions of stride 2, each but the last with leaky ReLU of slope 0.2, and bilinear
    up-sampling to the size of the input. MONAI's ``PatchDiscriminator`` has batch norm, which would
    let the slices of a batch give each other away, and strides of 1 at its end.

    Args:
        in_channels: classes, the background included.
        channels: feature maps of all convolutions but the last, which has one.

    Raises:
        ValueError: ``channels`` is empty or not positive; in `forward`, a slice too small for the
            number of convolutions.

    Example:
        >>> Discriminator(2, (4, 8))(torch.zeros(3, 2, 20, 17)).shape
        torch.Size([3, 1, 20, 17])
    """

    def __init__(self, in_channels: int, channels: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        if len(channels) < 1 or min(channels) < 1:
            raise ValueError(
                "`channels` must hold at least one positive number, one per convolution but the "
                f"last, got {tuple(channels)}"
            )
        sizes = [in_channels, *channels, 1]
        self.smallest_size = 2 ** (len(sizes) - 1)
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(sizes):
            layers += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map maps ``(B, in_channels, W, H)`` to logits of the confidence ``(B, 1, W, H)``."""
        if min(x.shape[-2], x.shape[-1]) < self.smallest_size:
            raise ValueError(
                f"`x` must be at least {self.smallest_size} voxels wide and high, got "
                f"{list(x.shape)}; pad the slices or use fewer convolutions"
            )
        return F.interpolate(self.layers(x), size=x.shape[2:], mode="bilinear")


def label_map(label: Tensor, *, classes: int, ignore_index: int = IGNORED) -> Tensor:
    """One-hot map of a label, 0 throughout at ignored voxels.

    Args:
        label: ``(B, 1, *spatial)`` of classes and `ignore_index`.
        classes: K+1, the background included.
        ignore_index: label of ignored voxels.

    Returns:
        ``(B, K+1, *spatial)``, float32.

    Example:
        >>> label_map(torch.tensor([[[0, 1, 255]]]), classes=2)
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """
    known = label != ignore_index
    return one_hot(torch.where(known, label, 0), num_classes=classes) * known


def confidence_loss(logits: Tensor, *, is_label: bool, where: Tensor) -> Tensor:
    """Mean binary cross-entropy of the confidence against "all is label" or "nothing is".

    MONAI's ``PatchAdversarialLoss`` cannot leave voxels out.

    Args:
        logits: of the confidence, ``(B, 1, *spatial)``.
        is_label: whether the map is to be taken for a label.
        where: bool, ``(B, 1, *spatial)``: the voxels that count.

    Returns:
        Scalar; zero with zero gradient where no voxel counts.
    """
    wanted = torch.full_like(logits, float(is_label))
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (loss * where).sum() / where.sum().clamp_min(1)


def discriminator_loss(
    discriminator: nn.Module, predicted: Tensor, label: Tensor, *, ignore_index: int = IGNORED
) -> Tensor:
    """Loss of the discriminator on labelled slices, eq. 1 of Hung et al. as a mean over voxels.

    Ignored voxels are 0 in both maps, else they would tell the label, and do not count.

    Args:
        discriminator: gives logits of the confidence of a map.
        predicted: probabilities ``(B, K+1, *spatial)``.
        label: ``(B, 1, *spatial)`` of classes and `ignore_index`.
        ignore_index: label of ignored voxels.
    """
    known = label != ignore_index
    real = label_map(label, classes=predicted.shape[1], ignore_index=ignore_index)
    taken_for_real = confidence_loss(discriminator(real), is_label=True, where=known)
    fake = discriminator(predicted * known)
    return taken_for_real + confidence_loss(fake, is_label=False, where=known)


def self_taught_loss(logits: Tensor, confidence: Tensor, *, threshold: float) -> Tensor:
    """Mean cross-entropy against the most probable class, over the confident voxels (eq. 5).

    Args:
        logits: of the classes, ``(B, K+1, *spatial)``.
        confidence: ``(B, 1, *spatial)`` in [0, 1].
        threshold: T_semi; a voxel counts if its confidence is above.

    Returns:
        Scalar; zero with zero gradient where no voxel counts.
    """
    confident = confidence[:, 0] > threshold
    loss = F.cross_entropy(logits, logits.argmax(1), reduction="none")
    return (loss * confident).sum() / confident.sum().clamp_min(1)


def _check_options(threshold: float, self_taught_start: float, **weights: float) -> None:
    check_weights(**weights)
    check_shares(self_taught_start=self_taught_start)
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must lie in [0, 1), got {threshold}: 0 takes all.")
    if idist.get_world_size() > 1:
        raise ValueError(
            f"Adversarial training must have one process, got {idist.get_world_size()}: "
            "start it without torchrun."
        )


class AdversarialSegmentationTrainer(SupervisedTrainer):
    """MONAI's trainer with adversarial and self-taught terms, and a discriminator's training.

    The loss in the engine's output is that of the segmentation network, eq. 2 of Hung et al.:
    supervised + adversarial (labelled, unlabelled) + self-taught. Labelled and unlabelled slices
    pass through it together; its loss function must leave ignored voxels out, as
    `stipple_monai.PartialDiceCELoss` does. The discriminator then takes a step on the labelled
    slices, in float32 also under ``amp``.

    MONAI's ``GanTrainer`` makes images from random codes. Its ``AdversarialTrainer`` shows the
    discriminator the *images* as the real ones, and its generator's loss sees neither label nor
    prediction, so that nothing could be ignored, weighted by labelled and unlabelled, or taught.

    To resume, save the discriminator and its optimizer too.

    Args:
        discriminator: gives logits ``(B, 1, *spatial)`` of the confidence of a map.
        discriminator_optimizer: of the discriminator's parameters alone.
        adversarial_weight: λ_adv on labelled slices, 0 or more.
        unlabelled_adversarial_weight: λ_adv on unlabelled slices, 0 or more.
        self_taught_weight: λ_semi, 0 or more.
        threshold: T_semi of `self_taught_loss`, in [0, 1).
        self_taught_start: share of the training without the self-taught term, in [0, 1].
        ignore_index: label of ignored voxels.
        **kwargs: as for ``monai.engines.SupervisedTrainer``.

    Raises:
        ValueError: an option is out of its range, or the training has several processes, whose
            discriminators would part ways; in training, if a batch has no unlabelled slice.
    """

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        discriminator_optimizer: torch.optim.Optimizer,
        adversarial_weight: float,
        unlabelled_adversarial_weight: float,
        self_taught_weight: float,
        threshold: float,
        self_taught_start: float,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> None:
        _check_options(
            threshold,
            self_taught_start,
            adversarial_weight=adversarial_weight,
            unlabelled_adversarial_weight=unlabelled_adversarial_weight,
            self_taught_weight=self_taught_weight,
        )
        super().__init__(**kwargs)
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.adversarial_weight = adversarial_weight
        self.unlabelled_adversarial_weight = unlabelled_adversarial_weight
        self.self_taught_weight = self_taught_weight
        self.threshold, self.self_taught_start = threshold, self_taught_start
        self.ignore_index = ignore_index
        self.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_terms)
        self.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._train_discriminator)

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, label and which slices of the batch are unlabelled."""
        label = self.state.output["label"].as_subclass(Tensor)
        logits = self.state.output["pred"].as_subclass(Tensor).float()
        return logits, label, unlabelled_slices(label, ignore_index=self.ignore_index)

    def _add_terms(self) -> None:
        logits, label, unlabelled = self._batch()
        known = label != self.ignore_index
        whole = unlabelled[:, None, None, None].expand_as(known)
        # The graph goes through the discriminator, but not into its weights.
        self.discriminator.requires_grad_(False)
        judged = self.discriminator(logits.softmax(1) * (known | whole)).float()
        weight, free_weight = self.adversarial_weight, self.unlabelled_adversarial_weight
        terms = weight * confidence_loss(judged, is_label=True, where=known)
        terms = terms + free_weight * confidence_loss(judged, is_label=True, where=whole)
        if done_share(self.state) >= self.self_taught_start:
            confidence = judged[unlabelled].detach().sigmoid()
            taught = self_taught_loss(logits[unlabelled], confidence, threshold=self.threshold)
            terms = terms + self.self_taught_weight * taught
        self.state.output["loss"] = self.state.output["loss"] + terms

    def _train_discriminator(self) -> None:
        logits, label, unlabelled = self._batch()
        predicted = logits[~unlabelled].detach().softmax(1)
        self.discriminator.requires_grad_(True)
        self.discriminator_optimizer.zero_grad()
        discriminator_loss(
            self.discriminator, predicted, label[~unlabelled], ignore_index=self.ignore_index
        ).backward()
        self.discriminator_optimizer.step()
