"""The report of a training: its curves, its files and its priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from stipple_monai.bundle import trained_knobs
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv
from stipple_monai.report.calibration import calibration_blocks
from stipple_monai.report.cases import Case
from stipple_monai.report.page import Block, Page, Picture, Section, Table, Text
from stipple_monai.report.plots import curves
from stipple_monai.report.priors import prior_blocks, read_prior_files
from stipple_monai.report.provenance import FILE_HEADER, file_rows, settings_blocks, versions_table
from stipple_monai.visualize import CONVENTION

CURVE = "curve.csv"
EVENTS = "events.out.tfevents.*"


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
    weights = sorted(p for p in models.glob("*.pt"))
    prior_files = sorted(models.glob("prior_*.nii.gz"))
    blocks: list[Block] = []
    if prior_files:
        priors, files = read_prior_files(prior_files)
        blocks += prior_blocks(priors, files, folder, organs=organs, references=references)
    else:
        priors = {}
        blocks.append(Text("The folder has no priors: a network without, or moved away.", "lead"))
    lead = [f"Folder {models}.", f"{CONVENTION} Positions and sizes are in mm, RAS."]
    kept = [parent / "settings.json" for parent in (models, models.parent, models.parent.parent)]
    settings = settings_blocks([models / "provenance.json", *kept])
    content = [
        *_rounds(models),
        Section("Learning curves", _curve_blocks(models, folder)),
        Section("TensorBoard", _events(models, logs, folder)),
        Section("Weights", _weights(weights)),
        Section("Priors", blocks),
        Section(
            "Calibration",
            calibration_blocks(
                models,
                folder,
                values=trained_knobs(models).get("organs", list(priors)),
                organs=organs,
            ),
        ),
        Section("Settings and versions", [*settings, versions_table()]),
    ]
    return Page(f"Training {models.parent.name}/{models.name}", lead, content)


def _rounds(models: Path) -> list[Section]:
    """What self-training found of all its rounds, where ``models`` is of one of them."""
    if models.name != "models" or not models.parent.name.startswith("round_"):
        return []
    blocks: list[Block] = []
    for title, name in (("Dice on validation scans", "comparison"), ("Pseudo-labels", "rounds")):
        path = models.parent.parent / f"{name}.csv"
        rows = read_csv(path) if path.is_file() else []
        if rows:
            cells = [[Path(value).name for value in row.values()] for row in rows]
            blocks.append(Table(title, list(rows[0]), cells))
    return [Section("Rounds", blocks)] if blocks else []


def _curve_blocks(models: Path, folder: Path) -> list[Block]:
    path = models / CURVE
    rows = read_csv(path) if path.is_file() else []
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
            blocks.append(Picture(title, target, f"From {CURVE}.", alt, small=True))
    if not found["validation_dice"]:
        blocks.append(Text("Nothing was validated: model.pt is of the last epoch.", "lead"))
    else:
        best = max(found["validation_dice"], key=lambda e: found["validation_dice"][e])
        said = f"Best validation Dice {found['validation_dice'][best]:.4f} after epoch {best:.0f}."
        blocks.append(Text(said))
    names = ["epoch", "loss", "train_dice", "validation_dice"]
    header = ["epoch", "loss", "training Dice (0–1)", "validation Dice (0–1)"]
    blocks.append(Table("Epochs", header, [[row.get(n) or "" for n in names] for row in rows]))
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
    blocks: list[Block] = [Table("", header, rows, note)]
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
    return [Table("", header, rows, note)]


def _content(file: Path) -> tuple[str, str]:
    """Number of tensors and of their values, of the network in a file; empty where unreadable."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError, OSError, EOFError, KeyError, ValueError):
        return "not readable", ""
    state = state.get("model", state) if isinstance(state, dict) else {}
    tensors = [v for v in state.values() if isinstance(v, torch.Tensor)]
    return str(len(tensors)), str(sum(t.numel() for t in tensors))
