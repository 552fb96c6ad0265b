"""What a person sees of a run: a line an epoch or a scan, and a picture of the curves."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events

from stipple_monai.files import read_csv
from stipple_monai.handlers.epoch_loss import EpochLoss
from stipple_monai.progress import clock
from stipple_monai.visualize import finish_plot, new_plot


class EpochLines:
    """Print a line an epoch: loss, Dice of each organ, learning rate, seconds and time left.

    Dice is that of the validation scans, where this epoch was validated.

    Args:
        optimizer: whose learning rate is told.
        organs: what organs are called, in the order of the network's channels.
        validator: the evaluator whose ``val_mean_dice`` is told, by organ.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        organs: Sequence[object],
        *,
        validator: Engine | None = None,
    ) -> None:
        self.optimizer, self.organs, self.validator = optimizer, list(organs), validator
        self._loss = EpochLoss()
        self._scores: list[float] = []
        self._seconds: list[float] = []
        self._started = self._rate = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the handler that validates."""
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._keep)
        self._loss.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self._begin())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)

    def _begin(self) -> None:
        self._scores.clear()
        self._started = time.monotonic()
        self._rate = float(self.optimizer.param_groups[0]["lr"])

    def _keep(self, validator: Engine) -> None:
        details = validator.state.metric_details["val_mean_dice"]
        self._scores = details.double().nanmean(0).tolist()

    def _tell(self, engine: Engine) -> None:
        epoch, last = engine.state.epoch, engine.state.max_epochs
        self._seconds.append(time.monotonic() - self._started)
        parts = [f"epoch {epoch}/{last}", f"loss {self._loss.mean():.4f}"]
        if self._scores:
            told = (f"{n} {x:.3f}" for n, x in zip(self.organs, self._scores, strict=True))
            parts.append(f"validation Dice {', '.join(told)}")
        left = float(np.mean(self._seconds)) * (last - epoch)
        parts += [f"lr {self._rate:.2g}", f"{self._seconds[-1]:.1f} s", f"{clock(left)} left"]
        print(" | ".join(parts), flush=True)


class ScanLines:
    """Print a line a scan on standard error, for a log, in which a bar would be a line an update.

    Args:
        image_key: the scan in the engine's output.
    """

    def __init__(self, image_key: str = "image") -> None:
        self.image_key = image_key

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._tell)

    def _tell(self, engine: Engine) -> None:
        scans = [item[self.image_key].meta["filename_or_obj"] for item in engine.state.output]
        # of a pool of scans that several processes share, nobody knows how many are left
        total = engine.state.epoch_length
        count = f"{engine.state.iteration}" + (f"/{total}" if total else "")
        named = ", ".join(Path(str(scan)).name for scan in scans)
        print(f"scan {count}: {named}", file=sys.stderr, flush=True)


class ProgressPicture:
    """Draw the table of :class:`LearningCurve` after each epoch.

    Args:
        path: the picture to write, PNG.
        curve: the table.
    """

    def __init__(self, path: str | Path, curve: str | Path) -> None:
        self.path, self.curve = Path(path), Path(curve)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the handler that writes the table."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.draw())

    def draw(self) -> None:
        """Draw the table as it is."""
        rows = read_csv(self.curve)
        figure, ax = new_plot()
        names = {
            "loss": "loss, training",
            "train_dice": "Dice, training slices",
            "validation_dice": "Dice, validation scans",
        }
        for name, label in names.items():
            points = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                ax.plot(*zip(*points, strict=True), label=label, marker="." * (len(points) < 60))
        ax.set_xlabel("epoch")
        ax.locator_params(axis="x", integer=True)
        ax.set_ylim(bottom=0)
        finish_plot(figure, ax, self.path, f"Loss and Dice of {len(rows)} epochs.", legend="above")
