"""Voxels of held-out scans, collected while the bundle's inference runs over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from stipple_monai.calibration import Samples, draw_samples, join_samples
from stipple_monai.files import whole_file
from stipple_monai.inferers import PriorDrivenInferer
from stipple_monai.networks import DEFAULT_FLOOR

__all__ = ["PartsInferer", "SampleCollector", "read_samples", "write_samples"]


class PartsInferer(Inferer):
    """Give what a :class:`PriorDrivenInferer` would fuse: logits, and behind them the priors.

    Args:
        inferer: how networks are run, and priors located and placed.
    """

    def __init__(self, inferer: PriorDrivenInferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``(B, C + K, W, H, D)``, float32, with the metadata of ``inputs``."""
        logits, prior = self.inferer.parts(inputs, network, *args, **kwargs)
        both = torch.cat([logits.float(), prior.float()], dim=1)
        return MetaTensor(both).copy_meta_from(inputs)


class SampleCollector:
    """Draw voxels of every scan, and write those of all of them when the engine completes.

    Args:
        path: NPZ, whole or not at all, see `read_samples`.
        organs: K.
        activation: ``"softmax"`` or ``"sigmoid"``.
        strength: τ of the fusion.
        floor: lowest prior probability of the fusion.
        most: voxels of a stratum, see :func:`~stipple_monai.calibration.draw_samples`.
        seed: of the draw.
        pred_key: output of a `PartsInferer`.
        label_key: the truth on the same grid, class numbers.
    """

    def __init__(
        self,
        path: str | Path,
        organs: int,
        *,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        strength: float = 1.0,
        floor: float = DEFAULT_FLOOR,
        most: int | None = 2000,
        seed: int = 0,
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        self.path, self.organs, self.seed = path, organs, seed
        self.options: dict[str, Any] = {
            "activation": activation,
            "strength": strength,
            "floor": floor,
            "most": most,
        }
        self.pred_key, self.label_key = pred_key, label_key
        self._drawn: list[Samples] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self._drawn.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)
        engine.add_event_handler(
            Events.COMPLETED, lambda: write_samples(self.path, join_samples(self._drawn))
        )

    def _draw(self, engine: Engine) -> None:
        for item in engine.state.output:
            pred, label = item[self.pred_key], item[self.label_key]
            logits, prior = pred[: -self.organs], pred[-self.organs :]
            seed = self.seed + len(self._drawn)
            drawn = draw_samples(logits, prior, label.to(pred.device), seed=seed, **self.options)
            self._drawn.append(drawn)


def write_samples(path: str | Path, samples: Samples) -> None:
    """Write samples as NPZ, whole or not at all."""
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **samples._asdict())


def read_samples(path: str | Path) -> Samples:
    """Read what :func:`write_samples` wrote."""
    with np.load(path, allow_pickle=False) as columns:
        return Samples(**{name: columns[name] for name in Samples._fields})
