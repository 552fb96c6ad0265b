"""What happens while an engine runs: handlers for checkpoints, random numbers and tables."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, CheckpointSaver
from torch.nn import Module

from stipple_monai.bundle import NOT_WEIGHTS, reason
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv, whole_file, write_csv
from stipple_monai.handlers.epoch_loss import EpochLoss
from stipple_monai.handlers.soundness import not_finite
from stipple_monai.inferers import CONFIDENCE_META, POSITION_META
from stipple_monai.networks import PriorDrivenNet


class WholeCheckpointSaver(CheckpointSaver):
    """MONAI's saver that never leaves half a file, and whose best score can be part of one.

    MONAI writes over a checkpoint in place, and ignite removes the old one first; a run that is
    killed then has neither. And without the best score, a resumed training takes its first
    validation for the best and overwrites a better model.

    Args:
        *args: as for ``monai.handlers.CheckpointSaver``.
        **kwargs: likewise. ``n_saved`` should be 2 or more, so that one is always there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._told = False
        for part in (
            self._final_checkpoint,
            self._key_metric_checkpoint,
            self._interval_checkpoint,
        ):
            if part is not None:
                part.save_handler._save_func = _save_whole
                if part.save_handler.filename is not None:
                    part.save_handler.remove = lambda filename: None

    def metrics_completed(self, engine: Engine) -> None:
        """Save where the score is the best; an undefined one chooses nothing.

        As long as none was defined, the last epoch's weights are kept, as without validation.
        """
        best = self._key_metric_checkpoint
        if not math.isnan(engine.state.metrics[engine.state.key_metric_name]):
            super().metrics_completed(engine)
            return
        if not self._told:
            self._told = True
            warnings.warn(
                f"{engine.state.key_metric_name} is undefined: no validation scan has an organ. "
                "It chooses no epoch.",
                stacklevel=2,
            )
        if not best._saved:
            state = best._setup_checkpoint()
            whole = state if len(state) > 1 else next(iter(state.values()))
            best.save_handler(whole, best.save_handler.filename)

    def exception_raised(self, engine: Engine, e: Exception) -> None:
        """Raise the error; what MONAI would save here is no final model."""
        raise e

    def state_dict(self) -> dict[str, Any]:
        """Give what `load_state_dict` takes: the best score so far, empty before the first."""
        return self._key_metric_checkpoint.state_dict()


def _save_whole(checkpoint: Mapping[str, Any], path: str | Path, save: Callable[..., Any]) -> None:
    """Save as all files are written here; ignite's way leaves ``tmp…``, which may be anybody's.

    Raises:
        OSError: it cannot be written, where torch tells of its own file format.
    """
    try:
        # a file, since torch keeps the name of a path within
        with whole_file(path) as part, part.open("wb") as file:
            save(checkpoint, file)
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        raise OSError(f"{path} cannot be written: {error.__context__}") from error


class WeightsLoader(CheckpointLoader):
    """MONAI's loader with an error that names the file whose weights cannot be loaded.

    Args:
        *args: as for ``monai.handlers.CheckpointLoader``.
        calibrated: False takes away the calibration that came with the weights.
        **kwargs: likewise.
    """

    def __init__(self, *args: Any, calibrated: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calibrated = calibrated

    def __call__(self, engine: Engine) -> None:
        """Load the weights, or raise :class:`DatasetError`."""
        try:
            super().__call__(engine)
        except NOT_WEIGHTS as error:
            raise DatasetError(
                f"{self.load_path} must hold weights of this network, as this bundle saves them: "
                f"give the file and the knobs it was trained with. {reason(error)}"
            ) from error
        if not self.calibrated:
            for loaded in self.load_dict.values():
                for module in loaded.modules():
                    if isinstance(module, PriorDrivenNet):
                        module.calibrate(None)
        for loaded in self.load_dict.values():
            state = loaded.state_dict() if isinstance(loaded, Module) else {}
            name = next(not_finite(state), None)
            if name is not None:
                raise DatasetError(
                    f"{self.load_path} must hold finite weights, got NaN or infinity in {name}: "
                    "its training has diverged; train anew."
                )


class EpochSeed:
    """Seed every epoch by its number, so that a resumed training draws what it would have drawn.

    Seeding once before training makes an uninterrupted run reproducible; a run that starts from a
    checkpoint of epoch 7 would draw the slices of epoch 1 again.

    Args:
        seed: of the training. Each process of a group adds its rank.

    Raises:
        ValueError: ``seed`` is negative.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {seed}: choose another.")
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reseed)

    def _reseed(self, engine: Engine) -> None:
        entropy = [self.seed, idist.get_rank(), engine.state.epoch]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        manual_seed(seed)
        # Workers are seeded from torch's generator; without workers nobody seeds the transforms.
        set_rnd(engine.state.dataloader.dataset, seed)


class WholeBatch:
    """Keep what a training step gives together and on its device, with ``decollate=False``.

    MONAI takes a batch apart after each step, its loss being made a number, for which a GPU is
    waited for. Here the engine's output is a list of one item, the whole batch, so that
    ``monai.handlers.from_engine(…, first=True)`` finds what it looks for.
    """

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Make a list of the engine's output, without the graph of the step."""
        output = engine.state.output
        parts = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in output.items()}
        engine.state.output = [parts]


class LearningCurve:
    """Write an epoch's mean loss and scores as CSV with one row an epoch.

    The columns are ``epoch``, ``loss``, ``train_dice`` and ``validation_dice``, of which the last
    is empty where nothing was validated. A resumed training keeps the rows of the epochs before.

    Args:
        path: the file to write.
        validator: the evaluator whose ``val_mean_dice`` is written.
    """

    def __init__(self, path: str | Path, *, validator: Engine | None = None) -> None:
        self.path, self.validator = Path(path), validator
        self._loss = EpochLoss()
        self._validated = ""

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the handler that validates."""
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._keep)
        self._loss.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _begin(self) -> None:
        # an epoch without validation must not repeat the last one's score
        self._validated = ""

    def _keep(self, validator: Engine) -> None:
        dice = validator.state.metrics["val_mean_dice"]
        self._validated = "" if math.isnan(dice) else f"{dice:.5f}"

    def _write(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        rows = read_csv(self.path) if self.path.exists() else []
        numbers = self._loss.mean(), engine.state.metrics.get("train_mean_dice", math.nan)
        new = [epoch, *("" if math.isnan(x) else f"{x:.5f}" for x in numbers), self._validated]
        header = ["epoch", "loss", "train_dice", "validation_dice"]
        before = [list(row.values()) for row in rows if int(row["epoch"]) < epoch]
        write_csv(self.path, header, [*before, new])


class PositionTable:
    """Write where the prior was placed in each scan, as CSV with one row a scan and organ.

    The columns are ``scan``, ``organ``, ``r_mm``, ``a_mm`` and ``s_mm``, the world point in RAS
    mm, and ``confidence``; the point is empty where the prior was neutral.

    Args:
        path: the file to write, whole or not at all, when the engine completes.
        organs: label values in the order of the network's channels.
        pred_key: the prediction in the engine's output; what
            :class:`~stipple_monai.PriorDrivenInferer` found is in its metadata.
        image_key: the scan in the engine's output.
    """

    def __init__(
        self,
        path: str | Path,
        organs: Sequence[int],
        *,
        pred_key: str = "pred",
        image_key: str = "image",
    ) -> None:
        self.path, self.organs = path, list(organs)
        self.pred_key, self.image_key = pred_key, image_key
        self._rows: list[list[Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, lambda: self._write())

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:
            scan = item[self.image_key].meta["filename_or_obj"]
            meta = item[self.pred_key].meta
            found = self.organs, meta[POSITION_META].tolist(), meta[CONFIDENCE_META].tolist()
            for organ, point, confidence in zip(*found, strict=True):
                numbers = ["" if math.isnan(x) else f"{x:.2f}" for x in point]
                self._rows.append([scan, organ, *numbers, f"{confidence:.3f}"])

    def _write(self) -> None:
        header = ["scan", "organ", "r_mm", "a_mm", "s_mm", "confidence"]
        write_csv(self.path, header, self._rows)
