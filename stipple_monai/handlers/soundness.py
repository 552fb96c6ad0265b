"""What keeps a training from going on, or ending, with numbers that mean nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import MeanDice

from stipple_monai.errors import TrainingError


class FiniteTraining:
    """Stop at the first loss that is not finite, or at weights that are not after an epoch.

    A network that has diverged stays so: all that follows is NaN, and a checkpoint of it would be
    taken for a model. Epochs without a step are an error from the beginning: MONAI's trainer
    skips such a training, with a warning alone and without a model.

    Args:
        network: whose weights are looked at.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before the handlers that save.

        Raises:
            TrainingError: its epochs have no step.
        """
        if engine.state.epoch_length == 0:
            raise TrainingError(
                "An epoch must have at least one step, got fewer slices than `batch_size`: lower "
                "batch_size, or raise slices_per_scan or slices_per_epoch."
            )
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check_weights)

    def _check_loss(self, engine: Engine) -> None:
        for item in engine.state.output:
            loss = torch.as_tensor(item["loss"])
            # To ask a GPU in every step would make it wait; the weights tell at the epoch's end.
            if not loss.is_cuda and not bool(torch.isfinite(loss).all()):
                raise TrainingError(_diverged(engine, f"a loss of {float(loss)}"))

    def _check_weights(self, engine: Engine) -> None:
        name = next(not_finite(self.network.state_dict()), None)
        if name is not None:
            raise TrainingError(_diverged(engine, f"weights that are not in {name}"))


def _diverged(engine: Engine, what: str) -> str:
    state = engine.state
    return (
        f"A training must stay finite, got {what} in iteration {state.iteration}, epoch "
        f"{state.epoch}: it has diverged; lower learning_rate, and look at the scans' intensities."
    )


def not_finite(state: Mapping[str, Any]) -> Iterator[str]:
    """Names of the tensors of a state dict that hold NaN or infinity.

    Example:
        >>> list(not_finite({"a": torch.zeros(2), "b": torch.tensor([1.0, float("nan")])}))
        ['b']
    """
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
            yield name


class DefinedMeanDice(MeanDice):
    """MONAI's mean Dice, NaN where no scan has any of the organs: MONAI's is then 0.

    A 0 would be the best score of all epochs, and the first of them the best model.

    Args:
        *args: as for ``monai.handlers.MeanDice``.
        **kwargs: likewise.
    """

    def compute(self) -> Any:
        """Give the mean over what is defined."""
        result = super().compute()
        single = self.metric_fn.get_buffer()
        undefined = isinstance(single, torch.Tensor) and bool(torch.isnan(single).all())
        return math.nan if undefined else result
