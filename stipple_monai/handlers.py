"""What happens while an engine runs: ignite handlers for checkpoints, positions, pseudo-labels."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import CheckpointSaver

from stipple_monai.data.datalist import write_datalist
from stipple_monai.files import whole_file
from stipple_monai.inferer import POSITION_META
from stipple_monai.transforms.dictionary import POSITION_KEY


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


class _ScanRecord:
    """Collects something of each scan that an evaluator has done, and writes it at the end."""

    def __init__(self, path: str | Path, pred_key: str, image_key: str) -> None:
        self.path, self.pred_key, self.image_key = path, pred_key, image_key

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self._start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, lambda: self._write())

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:
            name = item[self.image_key].meta["filename_or_obj"]
            self._add(name, item[self.pred_key].meta)

    def _start(self) -> None:
        raise NotImplementedError

    def _add(self, scan: str, meta: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _write(self) -> None:
        raise NotImplementedError


class PseudoLabelDatalist(_ScanRecord):
    """Write the datalist that the next round of self-training trains on.

    It holds the sections of the old datalist; each scan that got a pseudo-label moves from
    ``unlabelled`` to ``training`` with its saved ``label``, the position that its prior had
    (``organ_position``; without it the partly labelled map would be measured instead), and under
    ``pseudo_label`` where the label comes from.

    Args:
        path: the datalist to write, whole or not at all, when the engine completes.
        sections: the old datalist's sections with absolute paths.
        provenance: what to record with every pseudo-label: model, γ, round.
        pred_key: the saved prediction in the engine's output; ``SaveImaged`` must have left the
            file name in its metadata (``savepath_in_metadict=True``).
        image_key: the scan in the engine's output.
        unlabelled: section that the scans come from.
    """

    def __init__(
        self,
        path: str | Path,
        sections: Mapping[str, Sequence[Mapping[str, Any]]],
        provenance: Mapping[str, Any],
        *,
        pred_key: str = "pred",
        image_key: str = "image",
        unlabelled: str = "unlabelled",
    ) -> None:
        super().__init__(path, pred_key, image_key)
        self.sections = {name: [dict(i) for i in items] for name, items in sections.items()}
        self.provenance = dict(provenance)
        self.unlabelled = unlabelled

    def _start(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}

    def _add(self, scan: str, meta: Mapping[str, Any]) -> None:
        record: dict[str, Any] = {
            "label": os.path.abspath(meta["saved_to"]),
            "pseudo_label": self.provenance,
        }
        if POSITION_META in meta:
            record[POSITION_KEY] = [
                [None if math.isnan(x) else x for x in point]
                for point in meta[POSITION_META].tolist()
            ]
        self._found[os.path.abspath(scan)] = record

    def _write(self) -> None:
        kept, moved = [], []
        for item in self.sections[self.unlabelled]:
            record = self._found.get(os.path.abspath(item["image"]))
            if record is None:
                kept.append(item)
            else:
                moved.append({**item, **record})
        sections = {**self.sections, self.unlabelled: kept}
        sections["training"] = [*self.sections.get("training", []), *moved]
        write_datalist(self.path, sections)


class PositionTable(_ScanRecord):
    """Write where the prior was placed in each scan, as CSV with one row a scan and organ.

    The columns are ``scan``, ``organ``, ``r_mm``, ``a_mm`` and ``s_mm``, the world point in RAS
    mm; the numbers are empty where the organ was predicted nowhere.

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
        super().__init__(path, pred_key, image_key)
        self.organs = list(organs)

    def _start(self) -> None:
        self._rows: list[list[Any]] = []

    def _add(self, scan: str, meta: Mapping[str, Any]) -> None:
        for organ, point in zip(self.organs, meta[POSITION_META].tolist(), strict=True):
            numbers = ["" if math.isnan(x) else f"{x:.2f}" for x in point]
            self._rows.append([scan, organ, *numbers])

    def _write(self) -> None:
        with whole_file(self.path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["scan", "organ", "r_mm", "a_mm", "s_mm"])
            writer.writerows(self._rows)
