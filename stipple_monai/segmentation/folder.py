"""A folder of results that knows the settings it was made with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stipple_monai.bundle import MODEL
from stipple_monai.data import files_of_item, first_file
from stipple_monai.errors import DatasetError
from stipple_monai.files import fingerprint, write_text
from stipple_monai.ownership import adopt, begun_with, claim, owned, refuse_inputs
from stipple_monai.results import RECORD, TABLES, finished, outdate, read_records

SETTINGS = "settings.json"
_COMMANDS = "segment or fuse"
SEG, PROBABILITIES, DICOM = "_seg.nii.gz", "_prob.nii.gz", "_seg.dcm"


def begin_results(
    out: Path,
    items: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    *,
    overwrite: bool,
    endings: Sequence[str] = (SEG,),
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
        endings: of a scan's files besides its record, behind its name.
        others: names of further files that are to be written.

    Raises:
        DatasetError: it has results made with other settings or of other scans, or files that are
            not this package's.
    """
    refuse_training(out)
    path, text = out / SETTINGS, json.dumps(settings, indent=2, default=str) + "\n"
    ours = path.is_file() and path.read_text(encoding="utf-8") == text
    names = {item["name"] for item in items}
    records = read_records(out)
    _refuse_other_names(records, items)
    results = _results(out, names, (*endings, RECORD))
    targets = [path, *(out / name for name in (*TABLES, *others)), *results]
    inputs = [file for item in items for file in files_of_item(item, ("image",))]
    refuse_inputs(targets, inputs)
    if not ours:
        _refuse_others(out, targets, results, records, names, overwrite=overwrite)
    if ours:
        adopt(out, targets, _COMMANDS)
    claim(out, targets, inputs=inputs, command=_COMMANDS)
    if overwrite:
        # First of all, so that an interrupted run goes on without --overwrite.
        outdate(out, names)
    done = finished(out)
    for item in items:
        if item["name"] in done:
            _refuse_other_scan(records[item["name"]], item)
    if not ours:
        write_text(path, text)
    return [item for item in items if item["name"] not in done]


def refuse_training(out: Path) -> None:
    """Raise where a folder is that of a training, which alone is begun with a seed.

    Raises:
        DatasetError: so it is.
    """
    begun: Mapping[str, Any] | None = None
    # settings that are no JSON are nobody's, and `claim` says so
    with suppress(DatasetError):
        begun = begun_with(out / SETTINGS)
    if "seed" in (begun or {}) or (out / MODEL).is_file():
        raise DatasetError(
            f"`out` must be a folder of results, got {out}, the folder of a training: choose "
            "another, such as `results`."
        )


def remove_stale(out: Path, names: Iterable[str], endings: Iterable[str]) -> None:
    """Remove what older settings left beside finished results, and these settings do not make.

    Args:
        out: the folder.
        names: of scans.
        endings: of the files that the settings make.
    """
    stale, ours = {SEG, PROBABILITIES, DICOM} - set(endings), owned(out)
    for name in finished(out).intersection(names):
        for ending in stale:
            if f"{name}{ending}" in ours:
                (out / f"{name}{ending}").unlink(missing_ok=True)


def _refuse_others(
    out: Path,
    targets: Sequence[Path],
    results: Sequence[Path],
    records: Mapping[str, Any],
    names: set[str],
    *,
    overwrite: bool,
) -> None:
    if not overwrite and (records or any(p.exists() for p in results)):
        there = next(p for p in [*targets, *out.glob(f"*{RECORD}")] if p.exists())
        raise DatasetError(
            f"`out` must have no results made with other settings, got {there}: choose another "
            "folder, or replace them with --overwrite."
        )
    if records.keys() - names:
        raise DatasetError(
            f"`out` has results of other scans made with other settings, such as "
            f"{min(records.keys() - names)}: choose another folder."
        )


def _refuse_other_names(records: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> None:
    """Raise where a scan has results under another name: it would count twice in the tables."""
    known = {record["scan"]: name for name, record in records.items()}
    for item in items:
        scan = first_file(item["image"])
        name = known.get(scan, item["name"])
        if name != item["name"]:
            raise DatasetError(
                f"`out` has a segmentation of {scan} called {name!r}, which is {item['name']!r} "
                "beside another scan of that name: choose another folder."
            )


def _refuse_other_scan(record: Mapping[str, Any], item: Mapping[str, Any]) -> None:
    scan, files = first_file(item["image"]), files_of_item(item, ("image",))
    changed = record.get("fingerprint") != fingerprint(*files)
    if scan != record["scan"] or changed:
        what = f"{scan}, which was changed since" if scan == record["scan"] else record["scan"]
        raise DatasetError(
            f"`out` has a segmentation called {item['name']!r} of {what}: choose another folder, "
            "or replace it with --overwrite."
        )


def _results(out: Path, names: Iterable[str], endings: Iterable[str]) -> list[Path]:
    return [out / f"{name}{ending}" for name in sorted(names) for ending in endings]
