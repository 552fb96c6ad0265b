"""What an ingest found, in a few lines: scans, labels and their values, and what to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.files import read_json
from stipple_monai.ingest.cases import Layout
from stipple_monai.ingest.qa_report import QA_JSON
from stipple_monai.ingest.volume_layouts import LABEL_FOLDERS, MASK_FOLDER
from stipple_monai.label_values import IGNORED

NAMED = 3
"""So many names are told of many."""
PLACES: Mapping[Layout, str] = {
    "pancreas-ct": "label….nii.gz below it",
    "dicom": "DICOM SEG, RTSTRUCT and pictures in it",
    "nifti": f"its folders {', '.join(LABEL_FOLDERS)} and beside the scans",
    "nnunet": "its folder labelsTr",
    "msd": "what its dataset.json lists",
    "totalsegmentator": f"the folder {MASK_FOLDER} of each scan",
}
"""Where the labels of a source are looked for, by its layout."""


def summary_lines(folder: str | Path) -> list[str]:
    """Tell what the QA report of a folder says.

    Args:
        folder: that ``ingest`` wrote.

    Returns:
        How many scans and labels there are, and warnings where labels are missing, or where their
        values and the names that were given do not go together; a note where there are no names.
    """
    content = read_json(Path(folder) / QA_JSON)
    usable = [record for record in content["cases"] if record["status"] != "refused"]
    bare = [record["name"] for record in usable if not record["label"]]
    names = {int(value): name for value, name in content["names"].items() if int(value) > 0}
    names.pop(IGNORED, None)
    found = _scans_by_value(usable)
    lines = [_counts(content, usable, bare, found)]
    if len(bare) == len(usable):
        lines.append(f"warning: {_no_labels(content)}")
        return lines
    missing = [f"{value} ({name})" for value, name in names.items() if value not in found]
    if missing:
        lines.append(
            f"warning: no label has {', '.join(missing)}, which was named; labels have "
            f"{', '.join(map(str, sorted(found)))}."
        )
    lines += _names_of_several(found, names)
    if found and not names:
        told = " ".join(f"{value}=NAME" for value in sorted(found)[:3])
        lines.append(
            f"note: organs have no names, and are called 'organ {min(found)}' and so on. Give them "
            f"by --names {told}, or as `labels` in dataset.json before it is split."
        )
    for value in sorted(found) if names else []:
        scans = [scan for scan, name in found[value] if not name]
        if scans:
            lines.append(
                f"warning: the value {value} of {_named(scans)} has no name and becomes "
                f"'organ {value}': give one by --names {value}=NAME, or choose values by --map."
            )
    return lines


def _names_of_several(
    found: Mapping[int, Sequence[tuple[str, str]]], names: Mapping[int, str]
) -> list[str]:
    """Warnings of values that are called alike, which a name does not tell apart."""
    told = {value: name for value, scans in found.items() for _, name in scans if name}
    called = {**told, **names}
    values: dict[str, list[int]] = {}
    for value, name in sorted(called.items()):
        values.setdefault(name.casefold(), []).append(value)
    return [
        f"warning: the values {', '.join(map(str, same))} have one name, {called[same[0]]}: give "
        "each its own by --names."
        for same in values.values()
        if len(same) > 1
    ]


def _scans_by_value(records: Iterable[Mapping[str, Any]]) -> dict[int, list[tuple[str, str]]]:
    """Names of the scans that have a label value, each with what the value is called there."""
    found: dict[int, list[tuple[str, str]]] = {}
    for record in records:
        for organ in (record["label"] or {"organs": []})["organs"]:
            found.setdefault(organ["value"], []).append((record["name"], organ["name"] or ""))
    return found


def _counts(
    content: Mapping[str, Any],
    usable: Sequence[Mapping[str, Any]],
    bare: Sequence[str],
    found: Mapping[int, Sequence[tuple[str, str]]],
) -> str:
    values = [
        f"{value} {scans[0][1]}".rstrip() + f" in {len(scans)}"
        for value, scans in sorted(found.items())
    ]
    labelled = len(usable) - len(bare)
    text = f"scans: {len(usable)}, with label: {labelled}"
    text += f" ({', '.join(values)})" if values else ""
    text += f", without: {len(bare)}"
    text += f" ({_named(bare)})" if bare and labelled else ""
    summary = content["summary"]
    more = [f"{name}: {summary[name]}" for name in ("refused", "skipped") if summary[name]]
    return ", ".join([text, *more])


def _no_labels(content: Mapping[str, Any]) -> str:
    """That there are no labels, and where they were looked for."""
    place = content["labels"] or f"{content['source']}: {PLACES[content['layout']]}"
    return f"no scan has a label; looked for in {place}. Give their folder by --labels."


def _named(scans: Sequence[str]) -> str:
    more = f" and {len(scans) - NAMED} more" if len(scans) > NAMED else ""
    return ", ".join(scans[:NAMED]) + more
