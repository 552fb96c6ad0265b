"""Scores of a trained model on scans whose labels are known."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from stipple_monai.bundle import (
    BUNDLE,
    RECORD,
    Model,
    check_weights,
    configs_of,
    only_process,
    read_model,
    run_bundle,
)
from stipple_monai.data import files_of_item, first_file, read_datalist, stem_of, unique_names
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv, read_json
from stipple_monai.ownership import adopt, made_anew
from stipple_monai.training.seen import scans_seen

EVALUATION = "evaluation"
SCORES = "scores.csv"
_COMMAND = "evaluate"
NAMED = 3
"""So many scans are told of many."""
TABLES = (
    *(SCORES, "positions.csv", RECORD),
    *("metrics.csv", "val_mean_dice_raw.csv", "val_mean_dice_summary.csv"),
)


def evaluate(
    models: str | Path,
    datalist: str | Path,
    out: str | Path | None = None,
    *,
    bundle: str | Path = BUNDLE,
    section: str = "test",
) -> Path:
    """Segment scans and compare them with their labels.

    An older evaluation in the same folder stays until the new one is whole, which takes its place.
    There is a warning if the run has learnt from some of the scans, unless ``section`` says so.

    Args:
        models: folder of the run, with what it knows.
        datalist: JSON in the style of the MSD.
        out: folder of the scores; ``evaluation`` in ``models`` if None.
        bundle: folder of the bundle.
        section: of the datalist; each item has a label.

    Returns:
        ``scores.csv``, a row a scan and organ.

    Raises:
        DatasetError: ``models`` is a file, has no weights or does not know its settings, a scan
            has no label, or ``out`` has files of somebody else that would be replaced.
    """
    if Path(models).is_file():
        raise DatasetError(
            f"`models`, the first argument, must be the folder of a run, got the file {models}: "
            "give the run first and then the datalist, as in `stipple evaluate RUN DATALIST`."
        )
    model, configs = read_model(models), configs_of(bundle)
    check_weights(model.folder)
    items = read_datalist(datalist, section)
    bare = [str(item["image"]) for item in items if "label" not in item]
    if bare:
        raise DatasetError(
            f"`section` must have labelled scans to be scored, got {bare[0]} without label in "
            f"{section!r} of {datalist}: segment it instead."
        )
    if section not in ("training", "validation"):
        _warn_of_seen(items, model)
    out = model.folder / EVALUATION if out is None else Path(out).resolve()
    with only_process(out), _in_place_of_the_older(out, items, model) as work:
        places = {
            "bundle_root": out,
            "datalist": Path(datalist),
            "models_dir": model.folder,
            "output_dir": work,
            "section": section,
        }
        names: list[str | Path] = ["inference", "evaluate", *model.overlays]
        run_bundle(configs, names, **{"lines": True, **model.knobs, **places})
    return out / SCORES


def _warn_of_seen(items: Sequence[Mapping[str, Any]], model: Model) -> None:
    """Warn where the network has learnt from some of the scans, which it then segments better."""
    images = [first_file(item["image"]) for item in items]
    seen = scans_seen(model.folder)
    found = [
        name
        for name, image in zip(unique_names(images), images, strict=True)
        if os.path.realpath(image) in seen
    ]
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        warnings.warn(
            f"The run in {model.folder} has learnt from {len(found)} of the {len(items)} scans to "
            f"be scored: {', '.join(found[:NAMED])}{more}. Their scores say nothing of new scans: "
            "score scans that are in neither `training` nor `validation` of the run.",
            stacklevel=3,
        )


def _in_place_of_the_older(
    out: Path, items: Sequence[Mapping[str, Any]], model: Model
) -> AbstractContextManager[Path]:
    """Give the folder in which an evaluation is made, whose files end up in ``out``."""
    scans = unique_names([first_file(item["image"]) for item in items])
    targets = [*TABLES, *(f"{scan}_seg.nii.gz" for scan in scans)]
    if out == model.folder / EVALUATION or _is_evaluation(out):
        # by a version that did not keep what it wrote
        adopt(out, [out / name for name in {*targets, *_older_maps(out)}], _COMMAND)
    return made_anew(
        out,
        command=_COMMAND,
        made_with={"evaluation": str(out)},
        targets=targets,
        inputs=[file for item in items for file in files_of_item(item)],
        last=SCORES,
    )


def _older_maps(folder: Path) -> set[str]:
    """Label maps of the scans in a folder's scores, as they were called after their files."""
    rows = read_csv(folder / SCORES) if (folder / SCORES).is_file() else []
    return {f"{stem_of(Path(row['scan']))}_seg.nii.gz" for row in rows if row.get("scan")}


def _is_evaluation(folder: Path) -> bool:
    with suppress(OSError, ValueError, TypeError, KeyError):
        return "scans" in read_json(folder / RECORD)["data"]
    return False


def mean_scores(scores: str | Path, organs: dict[int, str]) -> list[list[str]]:
    """Means of a table of scores, a row an organ: name, scans, Dice and distances."""
    rows = read_csv(scores)
    table = []
    for organ, name in organs.items():
        mine = [row for row in rows if row["organ"] == str(organ)]
        means = [_mean([row[key] for row in mine]) for key in ("dice", "hd95_mm", "asd_mm")]
        table.append([name, str(sum(bool(row["dice"]) for row in mine)), *means])
    return table


SCORE_HEADER = ("organ", "scans", "Dice", "HD95 mm", "ASD mm")


def _mean(texts: Sequence[str]) -> str:
    values = [float(text) for text in texts if text]
    mean = math.fsum(values) / len(values) if values else math.nan
    return "" if math.isnan(mean) else f"{mean:.3f}"
