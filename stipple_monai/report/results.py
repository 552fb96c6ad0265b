"""What a folder of predictions holds: its tables, its label maps, and the truth beside them."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from stipple_monai.data import first_file, organ_volumes, read_label_map, unique_names
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv
from stipple_monai.positioning import measure_position
from stipple_monai.priors import SpatialPrior
from stipple_monai.report.cases import Case, datalist_cases, scan_stem
from stipple_monai.results import (
    organ_remarks,
    read_records,
    score,
    volumes_of,
    where_known,
)
from stipple_monai.visualize import on_one_grid

SEGMENTATION = "_seg.nii.gz"
SCORES, POSITIONS = "scores.csv", "positions.csv"


@dataclass
class Found:
    """What is known of a case's organ."""

    dice: float = math.nan
    jaccard: float = math.nan
    hd95_mm: float = math.nan
    asd_mm: float = math.nan
    predicted_ml: float = math.nan
    true_ml: float = math.nan
    position_mm: Sequence[float] | None = None
    position_error_mm: float = math.nan
    confidence: float = math.nan
    seconds: float = math.nan
    remarks: Sequence[str] | None = None


@dataclass
class Predictions:
    """A folder's cases, what was measured of each organ, and what was amiss on the way."""

    cases: dict[str, Case]
    found: dict[tuple[str, int], Found] = field(default_factory=lambda: defaultdict(Found))
    amiss: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    remarks: dict[str, Sequence[str]] = field(default_factory=dict)


def is_prediction_set(folder: Path) -> bool:
    """Whether a folder looks like that of an inference."""
    if any((folder / name).is_file() for name in (SCORES, POSITIONS, "volumes.csv")):
        return True
    return next(folder.glob(f"*{SEGMENTATION}"), None) is not None


def collect(run: Path, datalist: Path | None) -> Predictions:
    """Find the cases of a folder and what its tables say of them.

    Args:
        run: written by ``segment`` or by the bundle's inference.
        datalist: with the truth, and the scans where no table names them.

    Raises:
        DatasetError: the datalist or a record cannot be read.
    """
    known = Predictions({})
    sections = {} if datalist is None else datalist_cases(datalist)
    listed = [case for cases in sections.values() for case in cases]
    scans: dict[str, Any] = {}
    for name, record in read_records(run).items():
        scans[name] = record["scan"]
        _add_record(known, name, record)
    for table in (POSITIONS, SCORES):
        path = run / table
        rows = read_csv(path) if path.is_file() else []
        by_scan = {**_names_of(rows), **{scan: name for name, scan in scans.items()}}
        for row in rows:
            try:
                name = by_scan[row["scan"]]
                _add_row(known.found[name, int(row["organ"])], row)
            except (KeyError, ValueError, TypeError) as error:
                raise DatasetError(
                    f"{path} must be a table as the bundle writes it, got the row {row}: {error!r}."
                ) from error
            scans[name] = row["scan"]
    files = {p.name.removesuffix(SEGMENTATION): p for p in sorted(run.glob(f"*{SEGMENTATION}"))}
    for name in sorted({*scans, *files}):
        given = _listed(listed, name, scans.get(name))
        image = scans.get(name) or (given.image if given else None)
        if image is not None and not Path(first_file(image)).exists():
            known.amiss.append(f"{name}: its scan {image} is not there.")
            image = given.image if given else None
        known.cases[name] = Case(
            name,
            image,
            given.truth if given else None,
            files.get(name),
            {k: f.position_mm for (n, k), f in known.found.items() if n == name and f.position_mm},
        )
    return known


def _names_of(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What the results of a table's scans are called, by their paths."""
    scans = list(dict.fromkeys(row["scan"] for row in rows if row.get("scan")))
    return dict(zip(scans, unique_names(scans), strict=True))


def _listed(cases: Sequence[Case], name: str, scan: str | None) -> Case | None:
    """The case of a datalist that was predicted: of the same file, or else the only one named so.

    A file of that name in another folder may be another patient's, so of several none is taken.
    """
    same = [c for c in cases if scan is not None and first_file(c.image) == os.path.abspath(scan)]
    called = [c for c in cases if name in (c.name, scan_stem(c.image))]
    found = same or called
    return found[0] if len(found) == 1 else None


def _add_record(known: Predictions, name: str, record: Mapping[str, Any]) -> None:
    known.remarks[name] = [str(text) for text in record.get("remarks", [])]
    for row in record["organs"]:
        found = known.found[name, int(row["organ"])]
        found.remarks = [str(text) for text in row.get("remarks", [])]
        found.predicted_ml = float(row["volume_ml"])
        found.position_mm = row["position_mm"]
        found.confidence = math.nan if row["confidence"] is None else float(row["confidence"])
        known.names[int(row["organ"])] = str(row["name"])


def _add_row(found: Found, row: Mapping[str, str]) -> None:
    for name in ("dice", "jaccard", "hd95_mm", "asd_mm", "position_error_mm", "confidence"):
        if row.get(name):
            setattr(found, name, float(row[name]))
    if row.get("seconds"):
        found.seconds = float(row["seconds"])
    if row.get("r_mm"):
        found.position_mm = [float(row[axis]) for axis in ("r_mm", "a_mm", "s_mm")]


def measure_cases(
    known: Predictions,
    organs: Mapping[int, str],
    priors: Mapping[int, SpatialPrior] | None = None,
) -> None:
    """Volumes and, where the truth is known and no table has them, scores and position errors.

    Args:
        known: completed in place.
        organs: names by label value.
        priors: by organ; how far a position is off is told of the organs that have one.
    """
    for name, case in known.cases.items():
        if case.prediction is None:
            known.amiss.append(f"{name}: its prediction {name}{SEGMENTATION} is not there.")
            continue
        try:
            predicted = read_label_map(case.prediction)
            truth = None if case.truth is None else read_label_map(case.truth)
            volumes = on_one_grid(prediction=predicted, truth=truth)
        except DatasetError as error:
            known.amiss.append(f"{name}: {error}")
            continue
        # in one order of voxels, whatever that of the files is
        predicted, truth = volumes["prediction"], volumes.get("truth")
        for k, ml in zip(organs, organ_volumes(predicted, organs), strict=True):
            found = known.found[name, k]
            found.predicted_ml = ml
            if truth is not None:
                _measure(found, predicted, truth, k, (priors or {}).get(k))
            if found.remarks is None:
                found.remarks = _remarks(found, (priors or {}).get(k))


def _measure(
    found: Found, predicted: MetaTensor, truth: MetaTensor, k: int, prior: SpatialPrior | None
) -> None:
    """What a table has not: the true volume, and scores and the position's error."""
    (found.true_ml,) = organ_volumes(truth, [k])
    if math.isnan(found.dice):
        numbers = score(*where_known(predicted[0], truth[0], k), predicted.pixdim.tolist())
        found.dice, found.jaccard, found.hd95_mm, found.asd_mm = numbers
    if math.isnan(found.position_error_mm) and found.true_ml and prior is not None:
        found.position_error_mm = _position_error(found, truth, prior)


def _remarks(found: Found, prior: SpatialPrior | None) -> list[str]:
    """What `segment` would have said of an organ; an evaluation has no records."""
    row = {
        "volume_ml": found.predicted_ml,
        "position_mm": found.position_mm,
        "confidence": None if math.isnan(found.confidence) else found.confidence,
    }
    if found.true_ml == 0 and not found.predicted_ml:
        return []
    return organ_remarks(row, None if prior is None else volumes_of(prior))


def _position_error(found: Found, truth: MetaTensor, prior: SpatialPrior) -> float:
    """From where the prior was put to where the truth has it, mm; NaN where it was not put."""
    if found.position_mm is None:
        return math.nan
    true = measure_position(truth, prior)
    return float((torch.tensor(found.position_mm, dtype=true.dtype) - true).norm())
