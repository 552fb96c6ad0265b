"""What a person should look at in a result, in the column ``remarks`` of the table and as warnings.

An organ's remarks: it was not found, its position was not certain, or its volume lies far outside
what the cases of its prior had. How far depends on their number: every second organ lies outside
what three others have. A scan's remarks: its intensities, its spacing or its length are unlike
those of the training. None of these says that a result is wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from stipple_monai.nifti import UNREADABLE
from stipple_monai.priors import SpatialPrior, spacing_along_ras
from stipple_monai.results.volumes import read_records, rewrite_record
from stipple_monai.transforms import ScanReader

LEAST_SHARED = 0.5
"""Of two ranges of intensities, the part of both that they must have in common."""
FACTOR = 3
"""A spacing that is so many times beyond the training's is far off."""
TIMES_AS_LONG = 2
"""A scan that is longer shows parts of the body that the network was not shown."""
AIR_HU = -500
VOXELS = 200_000
"""Of a scan that are looked at."""


def organ_remarks(row: Mapping[str, Any], volumes_ml: Mapping[str, float] | None) -> list[str]:
    """What is odd about an organ in a record.

    Args:
        row: of the record.
        volumes_ml: ``least`` and ``greatest`` volume of the cases, where known, and how many
            ``cases`` there are. Odd is what is beyond them by more than a factor of 1 + 1 / cases.

    Example:
        >>> row = {"volume_ml": 2.5, "position_mm": [0, 0, 0], "confidence": 0.9}
        >>> organ_remarks(row, {"least": 41.0, "greatest": 150.0, "cases": 3})
        ['volume 2.5 ml is far from the 41 to 150 ml of the 3 cases of its prior']
    """
    remarks = []
    if not row["volume_ml"]:
        remarks.append("not found")
    if row["confidence"] is not None and row["position_mm"] is None:
        remarks.append(f"no certain position (confidence {row['confidence']:.2f}), prior not used")
    if row["volume_ml"] and volumes_ml:
        least, greatest = volumes_ml["least"], volumes_ml["greatest"]
        cases = int(volumes_ml["cases"])
        beyond = 1 + 1 / max(1, cases)
        if not least / beyond <= row["volume_ml"] <= greatest * beyond:
            remarks.append(
                f"volume {_ml(row['volume_ml'])} ml is far from the {_ml(least)} to "
                f"{_ml(greatest)} ml of the {cases} case{'s' * (cases != 1)} of its prior"
            )
    return remarks


def _ml(volume: float) -> str:
    """Three digits, and of a litre the whole number."""
    return f"{volume:.3g}" if volume < 999 else f"{volume:.0f}"


def volumes_of(prior: SpatialPrior) -> dict[str, float]:
    """What :func:`organ_remarks` wants to know of a prior's cases; nothing where it knows none."""
    known = prior.volumes_ml
    if known is None:
        return {}
    return {"least": known.minimum, "greatest": known.maximum, "cases": prior.case_count}


def scan_remarks(scan: str, training: Mapping[str, Any]) -> list[str]:
    """What of a scan is unlike the training's.

    Args:
        scan: NIfTI file or folder of a DICOM series.
        training: what `stipple_monai.bundle.Model` knows of it; without figures nothing is odd.
    """
    if not training.get("scan_intensity") or not training.get("spacing_mm"):
        return []
    try:
        image: Any = ScanReader().read(Path(scan))
        values = np.asanyarray(image.dataobj)
    except UNREADABLE:
        return []
    values = values.reshape(*values.shape[:3], -1)[..., 0].ravel()
    values = values[:: max(1, len(values) // VOXELS)].astype(np.float64)
    low, high = np.percentile(values[np.isfinite(values)], [0.5, 99.5]).tolist()
    remarks = _intensity(low, high, training["scan_intensity"], str(training.get("modality")))
    spacing_mm = spacing_along_ras(image.affine).tolist()
    remarks += _spacing(spacing_mm, training["spacing_mm"])
    along = nib.io_orientation(image.affine)[:, 0].tolist().index(2)
    return remarks + _length(spacing_mm[2] * image.shape[along], training)


def _intensity(low: float, high: float, known: Mapping[str, float], modality: str) -> list[str]:
    least, greatest = known["p00_5"], known["p99_5"]
    shared = min(high, greatest) - max(low, least)
    whole = max(max(high, greatest) - min(low, least), 1e-6)
    # units of MR are arbitrary, and its scans are scaled one by one; a CT has air
    if modality != "CT" and not low < AIR_HU < least:
        return []
    # every CT has fat or air, also in a window
    without_air = modality == "CT" and least < 0 <= low
    if shared / whole >= LEAST_SHARED and not without_air:
        return []
    return [
        f"intensities {low:.4g} to {high:.4g} are unlike the {least:.4g} to {greatest:.4g} of the "
        f"training{'' if modality == 'unknown' else f' ({modality})'}"
    ]


def _spacing(found: Sequence[float], known: Mapping[str, Sequence[float]]) -> list[str]:
    bounds = zip(found, known["least"], known["greatest"], strict=True)
    if all(least / FACTOR <= x <= greatest * FACTOR for x, least, greatest in bounds):
        return []
    said = [" × ".join(f"{x:.3g}" for x in row) for row in (found, known["median"])]
    return [f"spacing {said[0]} mm is far from the {said[1]} mm of the training"]


def _length(found_mm: float, training: Mapping[str, Any]) -> list[str]:
    if not training.get("shape"):
        return []
    known_mm = training["spacing_mm"]["median"][2] * training["shape"]["median"][2]
    if found_mm <= TIMES_AS_LONG * known_mm:
        return []
    return [
        f"length {found_mm:.0f} mm along the body is far from the {known_mm:.0f} mm of the "
        "training: compare with --set scan_vote=false"
    ]


def add_remarks(
    folder: str | Path,
    *,
    priors: Sequence[SpatialPrior] = (),
    training: Mapping[str, Any] | None = None,
) -> None:
    """Put remarks into the records of a folder that have none yet, and warn of them.

    Args:
        folder: of the results; tables are not written anew.
        priors: whose cases had volumes.
        training: see :func:`scan_remarks`; its volumes count where a prior knows none.
    """
    training = training or {}
    counts = training.get("cases", {})
    volumes: dict[int, Any] = {
        int(organ): {**known, "cases": counts.get(organ, 1)}
        for organ, known in training.get("volumes_ml", {}).items()
    }
    volumes |= {prior.organ: volumes_of(prior) for prior in priors if prior.volumes_ml}
    for name, record in read_records(folder).items():
        if "remarks" in record:
            continue
        record["remarks"] = scan_remarks(record["scan"], training)
        for row in record["organs"]:
            row["remarks"] = organ_remarks(row, volumes.get(row["organ"]))
        rewrite_record(folder, name, record)
        said = [*record["remarks"]]
        said += [f"{r['name']}: {text}" for r in record["organs"] for text in r["remarks"]]
        if said:
            warnings.warn(f"Look at {record['scan']}: {'; '.join(said)}.", stacklevel=2)
