"""Uncertainty-aware mean teacher: unlabelled slices taught by an average of the network itself.

The method of Yu et al. (MICCAI 2019, arXiv:1907.07034). The *student* is the network that is
trained. The *teacher* has the student's layers and the exponential moving average of its weights.
A *pass* is one prediction of the teacher with dropout on and fresh noise on the image. A voxel is
*certain* where the entropy of the mean of several passes is low. The student learns the labels of
labelled slices and, at certain voxels of the unlabelled ones, to agree with one pass of the
teacher. A slice is *unlabelled* if its label is the ignored value throughout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from stipple_monai.engines.checks import check_weights
from stipple_monai.engines.schedule import done_share, ramp
from stipple_monai.engines.unlabelled import unlabelled_slices
from stipple_monai.label_values import IGNORED

__all__ = [
    "MeanTeacherTrainer",
    "clipped_noise",
    "entropy_threshold",
    "masked_consistency",
    "mean_prediction",
    "predictive_entropy",
    "teacher_decay",
]


def teacher_decay(step: int, *, highest: float) -> float:
    """Share of the teacher's old weights that it keeps after a step.

    It is the weight of a plain mean, 1 − 1 / (step + 1), until that exceeds ``highest``; so the
    teacher is the student after step 0, whatever its weights were.

    Args:
        step: of the training, from 0.
        highest: α of the exponential moving average, in (0, 1).
    """
    return min(1 - 1 / (step + 1), highest)


def clipped_noise(image: Tensor, *, sd: float, limit: float) -> Tensor:
    """Give Gaussian noise of an image's shape, drawn from torch's generator.

    Args:
        image: of any shape.
        sd: standard deviation, in units of the normalised intensity.
        limit: beyond ±``limit`` the noise is clipped.
    """
    return (torch.randn_like(image) * sd).clamp(-limit, limit)


@torch.no_grad()
def mean_prediction(
    network: nn.Module, image: Tensor, *, passes: int, noise_sd: float, noise_limit: float
) -> Tensor:
    """Average a network's class probabilities over passes, each with noise of its own.

    Args:
        network: gives logits ``(B, K+1, *spatial)``; in training mode, its dropout differs
            from pass to pass, too.
        image: ``(B, C, *spatial)``.
        passes: 1 or more.
        noise_sd: see `clipped_noise`.
        noise_limit: likewise.

    Returns:
        Probabilities ``(B, K+1, *spatial)``, float32.
    """
    total = torch.zeros((), device=image.device)
    for _ in range(passes):
        noise = clipped_noise(image, sd=noise_sd, limit=noise_limit)
        total = total + network(image + noise).float().softmax(1)
    return total / passes


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Entropy over the classes in nats, from 0 to ln(K+1).

    Args:
        probabilities: ``(B, K+1, *spatial)``, each in [0, 1].

    Returns:
        ``(B, 1, *spatial)``.

    Example:
        >>> predictive_entropy(torch.tensor([[[0.5, 1.0], [0.5, 0.0]]]))
        tensor([[[0.6931, 0.0000]]])
    """
    return torch.special.entr(probabilities).sum(1, keepdim=True)


def entropy_threshold(progress: float, *, classes: int) -> float:
    """Entropy below which a voxel is certain: from ¾ up to all of the highest entropy.

    Args:
        progress: share of the training done, see `ramp`.
        classes: K+1, the background included.
    """
    return (0.75 + 0.25 * ramp(progress)) * math.log(classes)


def masked_consistency(student: Tensor, teacher: Tensor, certain: Tensor) -> Tensor:
    """Mean squared difference of probabilities over the certain voxels and all classes.

    Args:
        student: probabilities ``(B, K+1, *spatial)``.
        teacher: likewise.
        certain: ``(B, 1, *spatial)``, bool.

    Returns:
        Scalar; zero with zero gradient where no voxel is certain.
    """
    squared = (student - teacher).square() * certain
    return squared.sum() / (certain.sum() * student.shape[1]).clamp_min(1)


class MeanTeacherTrainer(SupervisedTrainer):
    """MONAI's trainer with a mean teacher on the unlabelled slices of each batch.

    Labelled and unlabelled slices pass through the student together, so that batch norm sees both,
    as in the authors' code; the loss function must leave ignored voxels out, as
    `stipple_monai.PartialDiceCELoss` does. The loss in the engine's output is the whole one. The
    student is what is validated and kept (the authors test it and not the teacher).

    ignite's `EMAHandler` averages the weights. Its own warm-up of the decay is linear and counts
    from 0 in a resumed run, so the trainer sets the decay by its iteration. The teacher's batch
    norms keep statistics of what they see, as do the authors'. To resume, save `teacher` too.

    Args:
        decay: α of the moving average in (0, 1), see `teacher_decay`.
        noise_sd: of the noise on the teacher's images, see `clipped_noise`; 0 or more.
        noise_limit: likewise.
        passes: T, whose mean says what is certain; 1 or more. One more gives the target.
        consistency_weight: of the consistency at the end; it is ramped, see `ramp`. 0 or more.
        ignore_index: label of ignored voxels.
        **kwargs: as for ``monai.engines.SupervisedTrainer``.

    Raises:
        ValueError: an option is out of its range; in training, if a batch has no unlabelled slice.
    """

    def __init__(
        self,
        *,
        decay: float,
        noise_sd: float,
        noise_limit: float,
        passes: int,
        consistency_weight: float,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> None:
        if not 0 < decay < 1:
            raise ValueError(
                f"`decay` must lie in (0, 1), got {decay}: 0.99 averages about 100 steps."
            )
        if passes < 1:
            raise ValueError(f"`passes` must be 1 or more, got {passes}: the authors take 8.")
        noise = {"noise_sd": noise_sd, "noise_limit": noise_limit}
        check_weights(**noise, consistency_weight=consistency_weight)
        super().__init__(**kwargs)
        self.decay, self.passes = decay, passes
        self.noise, self.consistency_weight = noise, consistency_weight
        self.ignore_index = ignore_index
        average = EMAHandler(self.network, momentum=1 - decay, handle_buffers="ema_train")
        self.teacher: nn.Module = average.ema_model
        self.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_consistency)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._set_momentum)
        average.attach(self)

    def _add_consistency(self) -> None:
        output = self.state.output
        image, label, logits = (
            output[key].as_subclass(Tensor) for key in ("image", "label", "pred")
        )
        unlabelled = unlabelled_slices(label, ignore_index=self.ignore_index)
        image, student = image[unlabelled], logits[unlabelled].float().softmax(1)
        progress = done_share(self.state)
        target = mean_prediction(self.teacher, image, passes=1, **self.noise)
        mean = mean_prediction(self.teacher, image, passes=self.passes, **self.noise)
        threshold = entropy_threshold(progress, classes=student.shape[1])
        consistency = masked_consistency(student, target, predictive_entropy(mean) < threshold)
        weight = self.consistency_weight * ramp(progress)
        output["loss"] = output["loss"] + weight * consistency

    def _set_momentum(self) -> None:
        step = self.state.iteration - 1
        self.state.ema_momentum = 1 - teacher_decay(step, highest=self.decay)
