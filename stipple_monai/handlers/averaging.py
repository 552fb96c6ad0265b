"""A moving average of a network's weights, which takes the network's place when it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """Average a network's weights over the steps of its training.

    After each step ``average = d · average + (1 − d) · weights``, running means and variances of
    the network's norms likewise. ``d`` is ``decay``, or less at the beginning, where the average is
    the plain mean of all steps so far. What counts the steps is in `state_dict`, so that a resumed
    training ends with the same average.

    Args:
        network: that is trained.
        decay: in (0, 1); None: no average, the network stands for itself.

    Raises:
        ValueError: ``decay`` is out of its range.
    """

    def __init__(self, network: Module, *, decay: float | None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"`decay` must lie in (0, 1), got {decay}: None takes no average.")
        self.trained = network
        self.decay = decay
        self._average: AveragedModel | None = None
        if decay is not None:
            bare = network.module if isinstance(network, DistributedDataParallel) else network
            self._average = AveragedModel(bare, multi_avg_fn=self._step, use_buffers=True)
            self._average.requires_grad_(False)

    @property
    def network(self) -> Module:
        """The network to validate and to save."""
        return self.trained if self._average is None else self._average.module

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before handlers that validate or save."""
        if self._average is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def state_dict(self) -> dict[str, Any]:
        """Give what `load_state_dict` takes; empty without an average."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        if self._average is not None:
            self._average.load_state_dict(state)

    def _update(self) -> None:
        assert self._average is not None
        network = self.trained
        bare = network.module if isinstance(network, DistributedDataParallel) else network
        self._average.update_parameters(bare)

    @torch.no_grad()
    def _step(self, average: Tensors, weights: Tensors, steps: Tensor | int) -> None:
        assert self.decay is not None
        share = (1 / (torch.as_tensor(steps) + 1)).clamp_min(1 - self.decay)
        for mean, now in zip(average, weights, strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, share.to(mean))
            else:
                mean.copy_(now)
