"""The report of a training: its curves, its files and its priors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from stipple_monai.bundle import CURVE, MODEL, RECORD, WEIGHTS, read_model, trained_knobs
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv, read_json, sha256
from stipple_monai.priors import prior_files
from stipple_monai.report.calibration import calibration_blocks
from stipple_monai.report.cases import Case, counted, name_colours
from stipple_monai.report.page import Block, Page, Picture, Section, Table, Text
from stipple_monai.report.plots import curves
from stipple_monai.report.priors import prior_blocks, read_prior_files
from stipple_monai.report.provenance import FILE_HEADER, file_rows, settings_blocks, versions_table
from stipple_monai.report.summary import filled
from stipple_monai.visualize import CONVENTION

EVENTS = "events.out.tfevents.*"
EVALUATION = Path("evaluation") / "scores.csv"
SUMMARY_HEADER = [
    *("organ", "labels", "volume in the labels (ml)", "test scans", "Dice (%)", "HD95 (mm)"),
    "position error (mm)",
]
SUMMARY_NOTE = "Volume: the mean of the training's labels, and the least and the greatest."
TEST_NOTE = "Dice: mean and standard deviation over test scans; HD95 and position error: medians."


def training_page(
    models: Path,
    folder: Path,
    *,
    organs: Mapping[int, str],
    references: Sequence[Case],
    logs: Path | None = None,
) -> Page:
    """Report on a folder of models.

    Args:
        models: with ``curve.csv``, checkpoints and priors, as far as they are there.
        folder: for the pictures.
        organs: names by label value.
        references: labelled cases, on which priors are drawn.
        logs: folder of TensorBoard's events; without it, ``models`` and the folder ``eval`` beside
            it are looked into.
    """
    weights = sorted(models.glob("*.pt"))
    blocks: list[Block] = []
    priors, _ = read_prior_files(prior_files(models))
    if priors:
        blocks += prior_blocks(priors, folder, organs=organs, references=references)
    else:
        blocks.append(Text("The folder has no priors: a network without, or moved away.", "lead"))
    lead = [f"Folder {models}.", f"{CONVENTION} Positions and sizes are in mm, RAS."]
    kept = [parent / "settings.json" for parent in (models, models.parent, models.parent.parent)]
    settings = settings_blocks([models / RECORD, *kept])
    values = trained_knobs(models).get("organs", list(priors))
    fitted = calibration_blocks(models, folder, values=values, organs=organs)
    curve = models / CURVE
    rows = read_csv(curve) if curve.is_file() else []
    content = [
        Section("Summary", _trained_blocks(models, organs, rows)),
        Section("Learning curves", _curve_blocks(curve, rows, folder)),
        Section("Priors", blocks),
        Section("Calibration", fitted),
        Section("Weights", _weights(weights)),
        Section("TensorBoard", _events(models, logs, folder)),
        Section("Settings and versions", [*settings, versions_table()]),
    ]
    title = f"Training {models.parent.name}/{models.name}"
    return Page(title, lead, content, colours=name_colours(organs))


def _trained_blocks(
    models: Path, organs: Mapping[int, str], curve: list[dict[str, str]]
) -> list[Block]:
    """A sentence, and a row an organ with the scores of ``evaluation``, if there are any.

    Args:
        models: folder of the run.
        organs: names by label value; those of the folder where empty.
        curve: rows of the learning curve.
    """
    known = read_model(models) if (models / MODEL).is_file() else None
    facts = dict(known.training) if known is not None else {}
    names = {**(known.organs if known is not None else {}), **organs}
    said = []
    if facts.get("labelled"):
        said.append(f"Trained on {counted(int(facts['labelled']), 'labelled scan')}")
        said[0] += f" ({facts['modality']})." if facts.get("modality") in ("CT", "MR") else "."
    if curve:
        said.append(f"{counted(len(curve), 'epoch')}.")
        scores = [float(row["validation_dice"]) for row in curve if row.get("validation_dice")]
        if scores:
            said.append(f"Best mean Dice on validation scans: {100 * max(scores):.1f} %.")
    path = models / EVALUATION
    rows = read_csv(path) if path.is_file() else []
    if rows and _tested_before(models, path.with_name(RECORD)):
        said.append("The scores below are of other weights: run stipple evaluate again.")
    if not rows:
        said.append("Not tested yet: stipple evaluate RUN DATALIST scores it on test scans.")
    blocks: list[Block] = [Text(" ".join(said), "summary")]
    body = [_summary_row(k, name, facts, rows) for k, name in names.items()]
    if body and any(any(row[1:]) for row in body):
        note = f"{SUMMARY_NOTE} {TEST_NOTE}" if rows else SUMMARY_NOTE
        blocks.append(Table("", *filled(SUMMARY_HEADER, body, always=1), note))
    if rows:
        page = path.with_name("report.html")
        blocks.append(Text(f"Scans, pictures and scores of the test: {page}", "lead"))
    return blocks


def _tested_before(models: Path, record: Path) -> bool:
    """Whether an evaluation's record tells of other weights than those that are there now."""
    if not record.is_file() or not (models / WEIGHTS).is_file():
        return False
    tested = read_json(record).get("weights", {}).get("model")
    return tested is not None and tested != sha256(models / WEIGHTS)


def _summary_row(organ: int, name: str, facts: Mapping, rows: list[dict[str, str]]) -> list[str]:
    mine = [row for row in rows if row["organ"] == str(organ)]
    volumes = facts.get("volumes_ml", {}).get(str(organ), {})
    dice = [100 * v for v in _numbers(mine, "dice")]
    spread = f" ± {np.std(dice, ddof=1):.1f}" if len(dice) > 1 else ""
    return [
        name,
        str(facts.get("cases", {}).get(str(organ), "")),
        "{mean:.0f} ({least:.0f} to {greatest:.0f})".format(**volumes) if volumes else "",
        str(len(mine)) if mine else "",
        f"{np.mean(dice):.1f}{spread}" if dice else "",
        _median(mine, "hd95_mm"),
        _median(mine, "position_error_mm"),
    ]


def _numbers(rows: list[dict[str, str]], measure: str) -> list[float]:
    return [float(row[measure]) for row in rows if row.get(measure)]


def _median(rows: list[dict[str, str]], measure: str) -> str:
    found = float(np.median(_numbers(rows, measure) or [math.nan]))
    return "" if math.isnan(found) else f"{found:.1f}"


def _curve_blocks(path: Path, rows: Sequence[dict[str, str]], folder: Path) -> list[Block]:
    if not rows:
        return [Text(f"There is no {CURVE}: the training wrote none, or ended early.", "warning")]
    try:
        found = {
            name: {float(row["epoch"]): float(row[name]) for row in rows if row.get(name)}
            for name in ("loss", "train_dice", "validation_dice")
        }
    except (KeyError, ValueError) as error:
        raise DatasetError(f"{path} must be a table as the bundle writes it: {error!r}.") from error
    blocks: list[Block] = []
    dice = {
        "training slices": found["train_dice"],
        "validation scans": found["validation_dice"],
    }
    for title, lines, measure in (
        ("Loss", {"training": found["loss"]}, "loss (mean of an epoch)"),
        ("Dice", dice, "Dice (0–1, mean of the organs)"),
    ):
        target = folder / f"curve_{title.lower()}.png"
        alt = curves(lines, target, x="epoch", measure=measure)
        if alt is not None:
            blocks.append(Picture(title, target, "", alt, small=True))
    if not found["validation_dice"]:
        blocks.append(Text("Nothing was validated: model.pt is of the last epoch.", "lead"))
    else:
        best = max(found["validation_dice"], key=lambda e: found["validation_dice"][e])
        said = f"Best validation Dice {found['validation_dice'][best]:.4f} after epoch {best:.0f}."
        blocks.append(Text(said))
    names = ["epoch", "loss", "train_dice", "validation_dice"]
    header = ["epoch", "loss", "training Dice (0–1)", "validation Dice (0–1)"]
    body = [[row.get(n) or "" for n in names] for row in rows]
    blocks.append(Table("Epochs", header, body, folded=True))
    return blocks


def _events(models: Path, logs: Path | None, folder: Path) -> list[Block]:
    """What TensorBoard has kept."""
    places = [logs] if logs is not None else [models, models.parent / "eval"]
    files = [file for place in places for file in sorted(place.glob(EVENTS))]
    if not files:
        where = " and ".join(map(str, places))
        return [Text(f"There are no events of TensorBoard in {where}.", "lead")]
    scalars: dict[str, dict[float, float]] = {}
    for file in files:
        # 0: all that is there
        events = EventAccumulator(str(file), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()[SCALARS]:
            for event in events.Scalars(tag):
                scalars.setdefault(f"{tag}, {_short(file)}", {})[float(event.step)] = event.value
    rows = [
        [
            *(tag, str(len(points)), f"{min(points):.0f} to {max(points):.0f}"),
            *(f"{v:.5g}" for v in (*_ends(points), min(points.values()), max(points.values()))),
        ]
        for tag, points in sorted(scalars.items())
    ]
    header = ["scalar, file", "values", "steps", "first", "last", "least", "greatest"]
    note = (
        "Several trainings that write into one folder are told apart by the ends of their files' "
        "names. The greatest number of values is drawn, up to six lines."
    )
    blocks: list[Block] = [Table("Scalars", header, rows, note, folded=True)]
    longest = dict(sorted(scalars.items(), key=lambda item: -len(item[1]))[:6])
    target = folder / "tensorboard.png"
    alt = curves(longest, target, x="step (iterations or epochs)", measure="value")
    if alt is not None:
        blocks.append(Picture("TensorBoard's longest scalars", target, "As logged.", alt))
    return blocks


def _ends(points: Mapping[float, float]) -> tuple[float, float]:
    return points[min(points)], points[max(points)]


def _short(file: Path) -> str:
    return "…" + file.name.removeprefix("events.out.tfevents.")[-16:]


def _weights(files: Sequence[Path]) -> list[Block]:
    if not files:
        return [Text("There are no weights (*.pt): the training did not end an epoch.", "warning")]
    header = [*FILE_HEADER, "tensors", "parameters"]
    rows = [[*row, *_content(file)] for row, file in zip(file_rows(files), files, strict=True)]
    note = (
        "model.pt: the best on the validation scans, or the last where there are none; "
        "checkpoint_*.pt: to go on from. Parameters: those of the network, buffers among them."
    )
    return [Table("Files", header, rows, note, folded=True)]


def _content(file: Path) -> tuple[str, str]:
    """Number of tensors and of their values, of the network in a file; empty where unreadable."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError, OSError, EOFError, KeyError, ValueError):
        return "not readable", ""
    state = state.get("model", state) if isinstance(state, dict) else {}
    tensors = [v for v in state.values() if isinstance(v, torch.Tensor)]
    return str(len(tensors)), str(sum(t.numel() for t in tensors))
