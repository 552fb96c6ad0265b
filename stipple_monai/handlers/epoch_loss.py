"""The mean loss of an epoch, for what tells or writes it."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events


class EpochLoss:
    """Keep the loss of each step of an epoch, where it lies: a GPU is asked once an epoch.

    Example:
        >>> engine = Engine(lambda engine, loss: [{"loss": loss + engine.state.epoch}])
        >>> loss = EpochLoss()
        >>> loss.attach(engine)
        >>> _ = engine.run([1.0, 2.0], max_epochs=2)
        >>> loss.mean()
        3.5
    """

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self._losses.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def mean(self) -> float:
        """Over the steps of this epoch so far, of which there must be one."""
        return float(torch.stack(self._losses).double().mean())

    def _collect(self, engine: Engine) -> None:
        self._losses.append(torch.as_tensor(engine.state.output[0]["loss"]).detach())
