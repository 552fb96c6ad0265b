"""Raw rows of a study as they can be published: the numbers, and what they came from.

A row is a scan, an organ and a cell with all its scores. Scans have plain names instead of paths,
organs their names, and every row tells the commit and the training steps. What is the same for
many rows (versions, machine, settings) stands once in a JSON file beside the table. Unfinished
studies give the rows of the cells that are done.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stipple_monai.data import unique_names
from stipple_monai.errors import StudyError
from stipple_monai.files import read_csv, read_json, write_csv, write_json
from stipple_monai.results import SCORE_COLUMNS
from stipple_monai.study.report import names_of_study

ROW_COLUMNS = (
    *("method", "labelled", "proportion", "fold", "seed", "scan", "organ", "name"),
    *SCORE_COLUMNS[2:],
    *("steps", "commit"),
)
"""Of the table that `write_rows` writes."""

_PLACE = re.compile(r"p(\d+)_fold(\d+)_seed(\d+)")


def write_rows(folder: str | Path, out: str | Path, *, machine: str | None = None) -> int:
    """Write the rows of a study's finished cells, and a record of what they came from.

    Args:
        folder: of the study, which may be running; only read.
        out: the table, ``….csv``; the record is the same with ``.json``.
        machine: what computed the cells; that which this runs on where ``None``.

    Returns:
        The number of rows.

    Raises:
        StudyError: no cell is finished.
        OSError: a file of the study cannot be read.
    """
    folder, out = Path(folder), Path(out)
    study = read_json(folder / "study.json")["study"]
    names = names_of_study(folder, study["datalist"])
    rows, runs = [], _Runs(machine or this_machine())
    for cell in _cells(folder):
        table = read_csv(cell / "scores.csv")
        scans = dict.fromkeys(row["scan"] for row in table)
        short = dict(zip(scans, unique_names(list(scans)), strict=True))
        where, made_with = _cell_of(cell), runs.add(cell)
        for row in table:
            known = {**row, **where, **made_with, "scan": short[row["scan"]]}
            known["name"] = names.get(int(row["organ"]), "")
            rows.append([known.get(column, "") for column in ROW_COLUMNS])
    if not rows:
        raise StudyError(f"No cell is finished in {folder}: wait, or run the study.")
    write_csv(out, ROW_COLUMNS, rows)
    kept = {name: value for name, value in study.items() if name != "datalist"}
    write_json(out.with_suffix(".json"), {"study": kept, "runs": runs.found}, indent=1)
    return len(rows)


def this_machine() -> str:
    """Processor and system of this computer, in words."""
    cpu = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu = re.findall(r"^model name\s*: (.+)$", text, re.MULTILINE)[0]
    except (OSError, IndexError):
        pass
    return f"{cpu}, {platform.system()}"


class _Runs:
    """Records of cells, each once with the cells that it is of."""

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.found: list[dict[str, Any]] = []

    def add(self, cell: Path) -> dict[str, Any]:
        """Remember a cell; its steps and commit."""
        record = read_json(cell / "provenance.json")
        git = (record["git"] or {}).get("package") or {}
        config = record["config"]
        known = {
            "commit": git.get("revision", ""),
            "changed": git.get("changed"),
            "machine": self.machine,
            "device": config.get("device"),
            "versions": record["versions"],
        }
        place = f"{cell.parents[1].name}/{cell.name}"
        for run in self.found:
            if all(run[name] == value for name, value in known.items()):
                run["cells"].append(place)
                break
        else:
            self.found.append({**known, "cells": [place]})
        return {"steps": _steps(cell, config), "commit": known["commit"][:12]}


def _cells(folder: Path) -> Iterator[Path]:
    """Folders of finished cells; those in work have another ending."""
    for place in sorted((folder / "cells").glob("*")):
        if _PLACE.fullmatch(place.name):
            for cell in sorted((place / "methods").glob("*")):
                if not cell.name.endswith(".part") and (cell / "scores.csv").is_file():
                    yield cell


def _cell_of(cell: Path) -> dict[str, Any]:
    place = cell.parents[1]
    found = _PLACE.fullmatch(place.name)
    assert found is not None  # as `_cells` takes them
    percent, fold, seed = map(int, found.groups())
    labelled = len(read_json(place / "training.json")["training"])
    numbers = {"proportion": percent / 100, "labelled": labelled, "fold": fold, "seed": seed}
    return {"method": cell.name, **numbers}


def _steps(cell: Path, config: Mapping[str, Any]) -> int:
    """Steps of all trainings that led to a cell's network, from their records."""
    parts = Path(config["checkpoint"]).parts
    network = cell.parents[1] / "networks" / parts[parts.index("networks") + 1]
    last = int(read_json(cell / "network.json")["round"].removeprefix("round_"))
    return sum(
        _steps_of(read_json(network / f"round_{number}" / "models" / "provenance.json"))
        for number in range(last + 1)
    )


def _steps_of(record: Mapping[str, Any]) -> int:
    config = record["config"]
    scans = record["data"]["training"]["scans"]
    drawn = config.get("slices_per_epoch") or config["slices_per_scan"] * scans
    # the last batch is left out where it is not whole
    return int(config["max_epochs"]) * (int(drawn) // int(config["batch_size"]))
