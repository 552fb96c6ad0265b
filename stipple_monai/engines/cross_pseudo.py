"""Cross pseudo supervision: two networks that teach each other their most probable classes.

The method of Chen et al. (CVPR 2021, arXiv:2106.01226). Both networks have the same layers and
different initial weights. Each learns the labels and, on labelled and unlabelled slices alike, the
other's *pseudo-label*, the most probable class of each voxel. The first network is the one that is
validated and kept. A slice is *unlabelled* if its label is the ignored value throughout.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from stipple_monai.engines.checks import check_shares, check_weights
from stipple_monai.engines.schedule import done_share, ramp
from stipple_monai.engines.unlabelled import unlabelled_slices
from stipple_monai.label_values import IGNORED

__all__ = ["CrossPseudoTrainer", "cross_pseudo_loss"]


def cross_pseudo_loss(first: Tensor, second: Tensor) -> Tensor:
    """Cross-entropy of each of two predictions against the other's most probable classes.

    Args:
        first: logits ``(B, K+1, *spatial)``.
        second: likewise.

    Returns:
        Scalar, the sum of both means over all voxels. No gradient goes through a pseudo-label.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[[9.0], [-9.0]]])
        >>> cross_pseudo_loss(sure, -sure)
        tensor(36.)
    """
    return F.cross_entropy(first, second.argmax(1)) + F.cross_entropy(second, first.argmax(1))


class CrossPseudoTrainer(SupervisedTrainer):
    """MONAI's trainer of two networks that teach each other.

    The loss is ``supervised(first) + supervised(second) + weight · cross_pseudo_loss``. Labelled
    and unlabelled slices pass through each network together; the loss function must leave ignored
    voxels out, as `stipple_monai.PartialDiceCELoss` does. One optimizer holds the parameters of
    both networks; with one that treats each parameter by itself, such as Adam or SGD, that equals
    the authors' two.

    The authors' weight is constant, and their networks begin with weights from ImageNet. Here they
    begin with random ones, whose pseudo-labels say nothing, so that the weight is ramped, as
    re-implementations on medical images do it (SSL4MIS).

    To resume, save ``second`` too.

    Args:
        second: the other network; ``network`` is the first.
        pseudo_weight: of the networks' teaching each other, at the end; 0 or more.
        ramp_share: share of the training over which the weight rises, see
            `stipple_monai.engines.schedule.ramp`; in [0, 1], 0: it is constant.
        ignore_index: label of ignored voxels.
        **kwargs: as for ``monai.engines.SupervisedTrainer``.

    Raises:
        ValueError: an option is out of its range, or the optimizer does not have all parameters;
            in training, if a batch has no unlabelled slice.
    """

    def __init__(
        self,
        *,
        second: nn.Module,
        pseudo_weight: float,
        ramp_share: float,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> None:
        check_weights(pseudo_weight=pseudo_weight)
        check_shares(ramp_share=ramp_share)
        super().__init__(**kwargs)
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        missing = [p for net in (self.network, second) for p in net.parameters()]
        missing = [p for p in missing if id(p) not in held]
        if missing:
            raise ValueError(
                "`optimizer` must have the parameters of both networks, got one without "
                f"{len(missing)} of them: make it of [*network.parameters(), "
                "*second.parameters()]."
            )
        self.second = second
        self.pseudo_weight, self.ramp_share = pseudo_weight, ramp_share
        self.ignore_index = ignore_index
        self.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_second)

    def weight(self) -> float:
        """Of the networks' teaching each other, in this step."""
        if self.ramp_share == 0:
            return self.pseudo_weight
        return self.pseudo_weight * ramp(done_share(self.state) / self.ramp_share)

    def _add_second(self) -> None:
        output = self.state.output
        unlabelled_slices(output["label"].as_subclass(Tensor), ignore_index=self.ignore_index)
        self.second.train()
        second = self.inferer(output["image"], self.second)
        supervised = output["loss"] + self.loss_function(second, output["label"]).mean()
        logits = (x.as_subclass(Tensor).float() for x in (output["pred"], second))
        output["loss"] = supervised + self.weight() * cross_pseudo_loss(*logits)
