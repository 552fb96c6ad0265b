"""The report of a self-training: which round to use, and how good its pseudo-labels are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv, read_json
from stipple_monai.report.cases import counted, name_colours, organ_names, scan_stem
from stipple_monai.report.page import Block, Lines, Page, Picture, Section, Table, Text
from stipple_monai.report.plots import curves, dots
from stipple_monai.report.provenance import settings_blocks, versions_table
from stipple_monai.report.summary import filled
from stipple_monai.self_training import QUALITY, RoundComparison

HEADER = [
    *("round", "scans with labels", "scans with pseudo-labels", "Dice on validation scans (%)"),
    *("pseudo-labels: precision (%)", "recall (%)", "Dice (%)"),
]
QUALITY_HEADER = [
    *("round", "organ", "scans", "selected voxels, median", "precision (%)", "recall (%)"),
    "Dice (%)",
]
NOTE = (
    "Precision: the share of the selected voxels that is right; recall: the share of the organ's "
    "voxels that was selected; Dice: of both. They are known where the truth of unlabelled scans "
    "is, means over scans."
)
_MEASURES = ("precision", "recall", "dice")


def is_rounds(folder: Path) -> bool:
    """Whether a folder is that of a self-training."""
    return (folder / "round_0" / "models").is_dir()


def rounds_page(run: Path, folder: Path, *, labels: Mapping[int, str] | None = None) -> Page:
    """Report on the folder of a self-training.

    Args:
        run: the folder, with ``round_0``.
        folder: for the pictures.
        labels: names by label value.

    Raises:
        DatasetError: a table is none as the self-training writes it.
    """
    numbers = _numbers(run)
    rows = {n: _quality(run, n) for n in numbers}
    values = {int(row["organ"]) for found in rows.values() for row in found}
    organs = organ_names(labels, run / "round_0" / "datalist.json", values)
    content = [
        Section("Summary", _summary(run, rows)),
        Section("Pseudo-labels", _pseudo_label_blocks(rows, organs, folder)),
        Section("Learning curves", _curves(run, numbers, folder)),
        Section("Each round by itself", [Lines(_commands(run, numbers))]),
        Section(
            "Settings and versions", [*settings_blocks([run / "settings.json"]), versions_table()]
        ),
    ]
    lead = [f"Folder {run}. For research, not for diagnosis."]
    return Page(
        f"Self-training {run.parent.name}/{run.name}", lead, content, colours=name_colours(organs)
    )


def _numbers(run: Path) -> list[int]:
    """Of the rounds that are there, a last one perhaps with pseudo-labels alone."""
    return sorted(
        int(path.name.removeprefix("round_"))
        for path in run.glob("round_*")
        if path.name.removeprefix("round_").isdigit()
    )


def _quality(run: Path, number: int) -> list[dict[str, str]]:
    path = run / f"round_{number}" / "pseudo_labels" / QUALITY
    rows = read_csv(path) if path.is_file() else []
    for row in rows:
        try:
            int(row["organ"]), int(row["selected_voxels"])
            [float(row[measure] or "nan") for measure in _MEASURES]
        except (KeyError, ValueError, TypeError) as error:
            raise DatasetError(
                f"{path} must be a table as the self-training writes it, got the row {row}: "
                f"{error!r}."
            ) from error
    return rows


def _summary(run: Path, rows: Mapping[int, Sequence[Mapping[str, str]]]) -> list[Block]:
    # the last round may have pseudo-labels and no network yet
    trained = [n for n in rows if (run / f"round_{n}" / "models" / "curve.csv").is_file()]
    scored = RoundComparison.read(run, max(trained)) if trained else RoundComparison({})
    if scored.rounds:
        said: list[Block] = [
            Text(f"Best: round {scored.best()}.", "summary"),
            Lines(scored.lines()),
        ]
    else:
        said = [
            Text(
                "Which round is the best is not known: no scan was in the section validation. Test "
                "each on scans with known truth before using it.",
                "warning",
            )
        ]
    body = []
    for number, found in rows.items():
        score = scored.rounds.get(number)
        labelled, pseudo = _scans(run, number)
        body.append(
            [
                *(str(number), labelled, pseudo, f"{100 * score[1]:.1f}" if score else ""),
                *(_mean(found, measure) for measure in _MEASURES),
            ]
        )
    return [*said, Table("", *filled(HEADER, body, always=3), NOTE)]


def _scans(run: Path, number: int) -> tuple[str, str]:
    """How many scans a round trains on, with labels and with pseudo-labels."""
    place = run / f"round_{number}"
    path = place / "pseudo_labels" / "datalist.json" if number else place / "datalist.json"
    if not path.is_file():
        return "", ""
    # its scans may have been moved away since
    items = read_json(path).get("training", [])
    pseudo = sum("pseudo_label" in item for item in items)
    return str(len(items) - pseudo), str(pseudo)


def _mean(rows: Sequence[Mapping[str, str]], measure: str) -> str:
    values = [100 * float(row[measure]) for row in rows if row[measure]]
    return f"{np.mean(values):.1f}" if values else ""


def _pseudo_label_blocks(
    rows: Mapping[int, Sequence[Mapping[str, str]]], organs: Mapping[int, str], folder: Path
) -> list[Block]:
    if not any(rows.values()):
        return [Text("There are none yet.", "lead")]
    body, every = [], []
    for number, found in rows.items():
        for organ, name in organs.items():
            mine = [row for row in found if int(row["organ"]) == organ]
            if mine:
                voxels = float(np.median([int(row["selected_voxels"]) for row in mine]))
                means = [_mean(mine, measure) for measure in _MEASURES]
                body.append([str(number), name, str(len(mine)), f"{voxels:.0f}", *means])
        for row in found:
            name = organs.get(int(row["organ"]), f"organ {row['organ']}")
            numbers = [f"{100 * float(row[m]):.1f}" if row[m] else "" for m in _MEASURES]
            every.append(
                [str(number), scan_stem(row["scan"]), name, row["selected_voxels"], *numbers]
            )
    blocks: list[Block] = [Table("", QUALITY_HEADER, body)]
    last = max(number for number, found in rows.items() if found)
    values = {
        name: [
            100 * float(row["dice"] or math.nan) for row in rows[last] if int(row["organ"]) == organ
        ]
        for organ, name in organs.items()
    }
    path = folder / "pseudo_labels.png"
    measure = f"Dice of the pseudo-labels of round {last} (%)"
    alt = dots(values, path, measure=measure, colours=name_colours(organs))
    if alt is not None:
        blocks.append(
            Picture("", path, "A dot for each scan, a line at the median.", alt, small=True)
        )
    header = ["round", "scan", "organ", "selected voxels", *QUALITY_HEADER[-3:]]
    return [*blocks, Table("Every scan", header, every, folded=True)]


def _curves(run: Path, numbers: Sequence[int], folder: Path) -> list[Block]:
    """Loss and validation Dice of all rounds."""
    tables = {}
    for number in numbers:
        path = run / f"round_{number}" / "models" / "curve.csv"
        if path.is_file():
            tables[f"round {number}"] = read_csv(path)
    blocks: list[Block] = []
    for column, title in (("loss", "Loss"), ("validation_dice", "Dice on validation scans")):
        lines = {
            name: {float(row["epoch"]): float(row[column]) for row in table if row.get(column)}
            for name, table in tables.items()
        }
        path = folder / f"curve_{column}.png"
        alt = curves(lines, path, x="epoch", measure=title)
        if alt is not None:
            blocks.append(Picture(title, path, "", alt, small=True))
    return blocks or [Text("No round has been trained yet.", "lead")]


def _commands(run: Path, numbers: Sequence[int]) -> list[str]:
    trained = [run / f"round_{n}" / "models" for n in numbers]
    said = [
        f"round {n}: stipple report {path}"
        for n, path in zip(numbers, trained, strict=True)
        if path.is_dir()
    ]
    return [*said, f"{counted(sum(p.is_dir() for p in trained), 'round')} trained."]
