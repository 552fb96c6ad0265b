"""What happens while an engine runs: ignite handlers for checkpoints and positions."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import CheckpointSaver

from stipple_monai.files import whole_file
from stipple_monai.inferer import CONFIDENCE_META, POSITION_META


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
        for part in (
            self._final_checkpoint,
            self._key_metric_checkpoint,
            self._interval_checkpoint,
        ):
            if part is not None:
                part.save_handler._atomic = True
                if part.save_handler.filename is not None:
                    part.save_handler.remove = lambda filename: None

    def state_dict(self) -> dict[str, Any]:
        """Give what `load_state_dict` takes: the best score so far, empty before the first."""
        return self._key_metric_checkpoint.state_dict()


class PositionTable:
    """Write where the prior was placed in each scan, as CSV with one row a scan and organ.

    The columns are ``scan``, ``organ``, ``r_mm``, ``a_mm`` and ``s_mm``, the world point in RAS
    mm, and ``confidence``; the point is empty where the prior was neutral.

    Args:
        path: the file to write, whole or not at all, when the engine completes.
        organs: label values in the order of the network's channels.
        pred_key: the prediction in the engine's output; what :class:`PriorDrivenInferer` found is
            in its metadata.
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
        with whole_file(self.path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["scan", "organ", "r_mm", "a_mm", "s_mm", "confidence"])
            writer.writerows(self._rows)
