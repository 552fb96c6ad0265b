"""A folder of results that knows the settings it was made with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.data import files_of_item
from stipple_monai.errors import DatasetError
from stipple_monai.files import fingerprint, whole_file
from stipple_monai.ownership import adopt, claim, refuse_inputs
from stipple_monai.results import RECORD, TABLES, first_file, read_records

SETTINGS = "settings.json"


def begin_results(
    out: Path,
    items: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    *,
    overwrite: bool,
    others: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Claim the folder for the settings, and tell which scans are to do.

    Settings that led to no result do not count: a run that failed at once may be repeated with
    others.

    Args:
        out: the folder.
        items: scans, with their names.
        settings: of JSON's types.
        overwrite: make results anew.
        others: names of further files that are to be written.

    Raises:
        DatasetError: it has results made with other settings or of other scans, or files that are
            not this package's.
    """
    path, text = out / SETTINGS, json.dumps(settings, indent=2, default=str) + "\n"
    ours = path.is_file() and path.read_text(encoding="utf-8") == text
    names = {item["name"] for item in items}
    records = read_records(out)
    results = _results(out, names)
    targets = [path, *(out / name for name in (*TABLES, *others)), *results]
    inputs = [file for item in items for file in files_of_item(item, ("image",))]
    refuse_inputs(targets, inputs)
    if not ours and not overwrite and (records or any(p.exists() for p in results)):
        there = next(p for p in [*targets, *out.glob(f"*{RECORD}")] if p.exists())
        raise DatasetError(
            f"`out` must have no results made with other settings, got {there}: choose another "
            "folder, or replace them with --overwrite."
        )
    if not ours and records.keys() - names:
        raise DatasetError(
            f"`out` has results of other scans made with other settings, such as "
            f"{min(records.keys() - names)}: choose another folder."
        )
    if ours:
        adopt(out, targets)
    claim(out, targets, inputs=inputs)
    if overwrite:
        # First of all, so that an interrupted run goes on without --overwrite.
        for name in names & records.keys():
            (out / f"{name}{RECORD}").unlink()
        records = {}
    for item in items:
        record = records.get(item["name"])
        if record is not None:
            _refuse_other_scan(record, item)
    if not ours:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    return [item for item in items if item["name"] not in records]


def _refuse_other_scan(record: Mapping[str, Any], item: Mapping[str, Any]) -> None:
    scan, files = first_file(item["image"]), files_of_item(item, ("image",))
    changed = record.get("fingerprint") != fingerprint(*files)
    if scan != record["scan"] or changed:
        what = f"{scan}, which was changed since" if scan == record["scan"] else record["scan"]
        raise DatasetError(
            f"`out` has a segmentation called {item['name']!r} of {what}: choose another folder, "
            "or replace it with --overwrite."
        )


def _results(out: Path, names: Iterable[str]) -> list[Path]:
    endings = ("_seg.nii.gz", "_prob.nii.gz", "_seg.dcm", RECORD)
    return [out / f"{name}{ending}" for name in sorted(names) for ending in endings]
