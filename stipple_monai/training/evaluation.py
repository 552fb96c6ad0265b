"""Scores of a trained model on scans whose labels are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from stipple_monai.bundle import BUNDLE, WEIGHTS, configs_of, only_process, read_model, run_bundle
from stipple_monai.data import read_datalist
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv

EVALUATION = "evaluation"
SCORES = "scores.csv"


def evaluate(
    models: str | Path,
    datalist: str | Path,
    out: str | Path | None = None,
    *,
    bundle: str | Path = BUNDLE,
    section: str = "test",
) -> Path:
    """Segment scans and compare them with their labels.

    Args:
        models: folder of the run, with what it knows.
        datalist: JSON in the style of the MSD.
        out: folder of the scores; ``evaluation`` in ``models`` if None.
        bundle: folder of the bundle.
        section: of the datalist; each item has a label.

    Returns:
        ``scores.csv``, a row a scan and organ.

    Raises:
        DatasetError: ``models`` has no weights or does not know its settings, or a scan has no
            label.
    """
    model, configs = read_model(models), configs_of(bundle)
    if not (model.folder / WEIGHTS).is_file():
        raise DatasetError(f"`models` must have {WEIGHTS}, got {models}: train first.")
    items = read_datalist(datalist, section)
    bare = [str(item["image"]) for item in items if "label" not in item]
    if bare:
        raise DatasetError(
            f"`section` must have labelled scans to be scored, got {bare[0]} without label in "
            f"{section!r} of {datalist}: segment it instead."
        )
    out = model.folder / EVALUATION if out is None else Path(out).resolve()
    with only_process(out):
        places = {
            "bundle_root": out,
            "datalist": Path(datalist),
            "models_dir": model.folder,
            "output_dir": out,
            "section": section,
        }
        names: list[str | Path] = ["inference", "evaluate", *model.overlays]
        run_bundle(configs, names, **{"lines": True, **model.knobs, **places})
    return out / SCORES


def mean_scores(scores: str | Path, organs: dict[int, str]) -> list[list[str]]:
    """Means of a table of scores, a row an organ: name, scans, Dice and distances."""
    rows = read_csv(scores)
    table = []
    for organ, name in organs.items():
        mine = [row for row in rows if row["organ"] == str(organ)]
        means = [_mean([row[key] for row in mine]) for key in ("dice", "hd95_mm", "asd_mm")]
        table.append([name, str(len(mine)), *means])
    return table


SCORE_HEADER = ("organ", "scans", "Dice", "HD95 mm", "ASD mm")


def _mean(texts: Sequence[str]) -> str:
    values = [float(text) for text in texts if text]
    mean = math.fsum(values) / len(values) if values else math.nan
    return "" if math.isnan(mean) else f"{mean:.3f}"
