"""Whether a datalist is fit to train and test on: what its cases are, and who stands in two places.

A *place* is a section, and within it a fold where items have one. The same scan under two names is
told by its *digest*: of the voxels' values in the order of the patient's axes, so that neither the
file's name, format and header nor the order in which its axes are stored matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from stipple_monai.data import files_of_item, first_file, patient_of, read_sections, unique_names
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.cases import Case
from stipple_monai.ingest.pairs import Options, Pair, read_pair
from stipple_monai.ingest.qa_report import mean_and_sd
from stipple_monai.progress import follow

DATASET_COLUMNS = (
    *("section", "fold", "case", "shape", "spacing_mm", "orientation", "labels", "volume_ml"),
    *("intensity", "label_check", "digest"),
)


class Checked(NamedTuple):
    """What a check found.

    Args:
        rows: of the table, by ``DATASET_COLUMNS``, as text; intensities are mean ± sd in each
            label.
        problems: what must not be, a sentence each.
        notes: what a person should look at.
    """

    rows: list[list[str]]
    problems: list[str]
    notes: list[str]


def check_dataset(
    datalist: str | Path, *, base_dir: str | Path | None = None, progress: bool = True
) -> Checked:
    """Read all scans and labels of a datalist, and compare them.

    These are problems:

    - a scan or a patient in two sections or two folds
    - a file that cannot be used
    - a label that does not lie on its scan's grid, or that fits it clearly better reversed
    - scans of different numbers of channels

    These are notes:

    - the same scan twice in one section and fold
    - a scan in ``training`` without label
    - a label of which intensities do not tell whether it lies right
    - what was odd about a file, and could be settled

    Args:
        datalist: JSON in the style of the MSD.
        base_dir: what paths are relative to; the datalist's folder if None.
        progress: tell how far it is.

    Raises:
        DatasetError: the datalist is empty, or cannot be used, see
            :func:`~stipple_monai.data.read_datalist`.
    """
    sections = read_sections(datalist, base_dir=base_dir)
    items = [(section, item) for section, found in sections.items() for item in found]
    if not items:
        raise DatasetError(f"`datalist` must have items, got none in {datalist}.")
    names = unique_names([first_file(item["image"]) for _, item in items])
    scans: dict[str, list[tuple[str, str]]] = {}
    patients: dict[str, list[tuple[str, str]]] = {}
    both = list(zip(items, names, strict=True))
    rows, problems, notes = [], [], _without_label(both)
    for (section, item), name in follow(both, "check", unit="case", shown=progress):
        fold = str(item.get("fold", ""))
        place = f"{section}, fold {fold}" if fold else section
        patients.setdefault(patient_of(item), []).append((name, place))
        label = item.get("label") or item.get("truth")
        images = tuple(map(Path, files_of_item(item, ("image",))))
        case = Case(name, images, Path(label) if label else None)
        try:
            pair = read_pair(case, Options())
        except DatasetError as error:
            problems.append(f"{name}: {error}")
            rows.append([section, fold, name, *[""] * (len(DATASET_COLUMNS) - 3)])
            continue
        digest = _digest(pair)
        scans.setdefault(digest, []).append((name, place))
        rows.append([section, fold, name, *_described(pair.record), digest])
        told = [*pair.record["image"]["notes"], *(pair.record["label"] or {"notes": []})["notes"]]
        notes += [f"{name}: {text}" for text in told]
    for what, groups in (("scan", scans), ("patient", patients)):
        for found in groups.values():
            here = ", ".join(f"{name} ({place})" for name, place in found)
            if len({place for _, place in found}) > 1:
                problems.append(f"One {what} must stand in one section and fold, got {here}.")
            elif len(found) > 1 and what == "scan":
                notes.append(f"The same scan under several names: {here}.")
    return Checked(rows, [*problems, *_other_channels(rows)], notes)


def _other_channels(rows: Sequence[Sequence[str]]) -> list[str]:
    """A problem where some scans have more channels than others, which no network takes."""
    found: dict[int, list[str]] = {}
    for row in rows:
        told = dict(zip(DATASET_COLUMNS, row, strict=True))
        if told["shape"]:
            channels = math.prod(map(int, told["shape"].split("x")[3:]))
            found.setdefault(channels, []).append(told["case"])
    if len(found) < 2:
        return []
    here = ", ".join(f"{count} in {len(names)} ({names[0]})" for count, names in found.items())
    return [
        f"Scans must have the same channels, got {here}: of a series over time, give one volume."
    ]


def _without_label(items: Sequence[tuple[tuple[str, Mapping[str, Any]], str]]) -> list[str]:
    """Notes on a training that has scans without label."""
    bare = [
        name for (section, item), name in items if section == "training" and "label" not in item
    ]
    return [
        f"{name}: in training without label, which `self-train` takes and `train` refuses."
        for name in bare
    ]


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text.

    Example:
        >>> print(table_text(["case", "ml"], [["a", "12.5"], ["long", "3"]]))
        case  ml
        a     12.5
        long  3
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = ("  ".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _described(record: Mapping[str, Any]) -> list[str]:
    image, organs = record["image"], (record["label"] or {"organs": []})["organs"]
    return [
        "x".join(map(str, image["shape"])),
        "x".join(f"{size:g}" for size in image["spacing_mm"]),
        image["orientation"],
        " ".join(str(organ["value"]) for organ in organs),
        " ".join(f"{organ['volume_ml']:.1f}" for organ in organs),
        ", ".join(mean_and_sd(organ, "inside") for organ in organs),
        (record["alignment"] or {"verdict": "no label"})["verdict"],
    ]


def _digest(pair: Pair) -> str:
    turned = nib.orientations.apply_orientation(
        pair.image, nib.io_orientation(np.asarray(pair.affine))
    )
    values = np.ascontiguousarray(turned, dtype=np.float32)
    digest = hashlib.sha256(str(values.shape).encode())
    digest.update(values.tobytes())
    return digest.hexdigest()[:12]
