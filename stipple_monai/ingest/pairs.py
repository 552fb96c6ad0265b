"""One scan and its label, read, reconciled and judged: what ingest writes or refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from stipple_monai.data import (
    TOLERANCE_MM,
    Grid,
    axis_names,
    read_grid,
    whole_numbers,
)
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.alignment_check import Alignment, Flip, check_alignment
from stipple_monai.ingest.cases import Case
from stipple_monai.ingest.label_files import LabelMap, read_label
from stipple_monai.ingest.series import Series, open_series, read_series
from stipple_monai.nifti import corner_distance_mm, voxel_ml


class Options(NamedTuple):
    """How labels are read and judged.

    Args:
        choose: see `label_files.read_label`.
        flip: axes along which all labels are reversed before they are judged.
        repair: reverse a label that fits clearly better so; it is refused otherwise.
        ignore_header: see `label_files.read_label`.
        names: of the label values that the label's file does not name.
        ignore: see `label_files.read_label`.
    """

    choose: Mapping[str, int] | None = None
    flip: Flip = ()
    repair: bool = False
    ignore_header: bool = False
    names: Mapping[int, str] = MappingProxyType({})
    ignore: int | None = None


class Pair(NamedTuple):
    """A scan and its label on one grid.

    Args:
        image: ``(W, H, D)`` or ``(W, H, D, C)``.
        label: ``(W, H, D)`` uint8, or None.
        affine: voxel to RAS mm.
        record: what the QA report says of it, of JSON's types.
    """

    image: NDArray[Any]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    record: dict[str, Any]


def read_pair(case: Case, options: Options) -> Pair:
    """Read a case; the label is checked, and reversed where it must be and may.

    Raises:
        DatasetError: scan or label cannot be read or do not lie on one grid; the label is empty;
            or its intensities say that it lies on another place, and ``options`` do not allow to
            repair it.
    """
    scan, series, image_record = _read_scan(case)
    record: dict[str, Any] = {"name": case.name, "status": "ingested", "image": image_record}
    if case.label is None:
        return Pair(scan.array, None, scan.affine, {**record, "label": None, "alignment": None})
    label = read_label(
        case.label,
        scan,
        series=series,
        choose=options.choose,
        ignore_header=options.ignore_header,
        ignore=options.ignore,
        structures=case.structures,
    )
    notes = list(label.notes)
    array = np.flip(label.array, options.flip)
    if options.flip:
        notes.append(f"Reversed along {axis_names(options.flip)}, as asked for.")
    if not array.any():
        raise DatasetError(f"`label` must hold an organ, got an empty one: {case.label}.")
    # several channels show the same anatomy
    first = scan.array if scan.array.ndim == 3 else scan.array[..., 0]
    alignment = check_alignment(first, array, spacing_mm=voxel_sizes(scan.affine))
    reverse = _required_flip(alignment, label, options, case)
    if reverse:
        array = np.flip(array, reverse)
        record["status"] = "repaired"
    notes += _remarks(alignment, reverse)
    record["label"] = {
        "source": str(case.label),
        "organs": _organs(array, {**options.names, **label.names}, scan.affine, alignment, reverse),
        "notes": notes,
    }
    record["alignment"] = _alignment_record(alignment, reverse)
    return Pair(scan.array, np.ascontiguousarray(array), scan.affine, record)


def _required_flip(alignment: Alignment, label: LabelMap, options: Options, case: Case) -> Flip:
    """Along which axes the label must be reversed; an error where that is not allowed."""
    if alignment.verdict == "contradicted":
        if options.repair:
            return alignment.best
        raise DatasetError(
            f"`label` must lie on its organ, got {case.label}, which fits "
            f"{alignment.ratio:.1f} times better than any other way when reversed along "
            f"{axis_names(alignment.best)} ({_score(alignment, alignment.best):.2f} bits, as it is "
            f"{_score(alignment, ()):.2f}): look at it, then reverse it with `ingest --repair`."
        )
    if alignment.verdict == "undecided" and not label.by_header and not options.flip:
        raise DatasetError(
            f"`label` must lie on its organ, got {case.label}, whose header does not say where it "
            "lies, and intensities do not tell either (best "
            f"{_score(alignment, alignment.best):.2f} bits, {alignment.ratio:.1f} times the next): "
            "look at it, then say with `ingest --flip` how its axes run."
        )
    return ()


def _remarks(alignment: Alignment, reverse: Flip) -> list[str]:
    """What a person should know of how the label was judged."""
    if reverse:
        return [
            f"Repaired: reversed along {axis_names(reverse)}, where it scores "
            f"{_score(alignment, reverse):.2f} bits rather than {_score(alignment, ()):.2f}."
        ]
    if alignment.verdict == "undecided":
        return [
            "Intensities do not tell whether the label lies right: look at it. Scores: as it is "
            f"{_score(alignment, ()):.2f} bits, best {_score(alignment, alignment.best):.2f}."
        ]
    return []


def _alignment_record(alignment: Alignment, reverse: Flip) -> dict[str, Any]:
    return {
        "verdict": alignment.verdict,
        "best": axis_names(alignment.best) or "as it is",
        "ratio": round(alignment.ratio, 3),
        "reversed": axis_names(reverse),
        "scores": {axis_names(s.flip) or "as it is": round(s.score, 4) for s in alignment.scores},
    }


def _read_scan(case: Case) -> tuple[Grid, Series | None, dict[str, Any]]:
    notes: list[str] = []
    series, patient = None, case.patient or None
    if case.is_dicom:
        series = open_series(case.images[0])
        array, found = read_series(series)
        scan = Grid(array, series.affine)
        notes += [*series.notes, *found]
        # pseudonymous, so that scans of one patient can be kept together
        if series.patient and not patient:
            said = series.patient.encode(errors="surrogateescape")
            patient = hashlib.sha256(said).hexdigest()[:12]
    else:
        scan = _stack([read_grid(path) for path in case.images], case.images)
        notes += scan.notes
    if not np.isfinite(scan.array).all():
        raise DatasetError(f"`image` must be finite, got NaN or infinity in {case.images[0]}.")
    record = {
        "source": [str(path) for path in case.images],
        "patient": patient,
        "modality": series.modality if series else None,
        "shape": list(scan.array.shape),
        "spacing_mm": [round(size, 4) for size in voxel_sizes(scan.affine).tolist()],
        "orientation": "".join(str(c) for c in nib.aff2axcodes(scan.affine)),
        "lowest": float(scan.array.min()),
        "highest": float(scan.array.max()),
        "notes": notes,
    }
    return scan, series, record


def _stack(channels: Sequence[Grid], files: Sequence[Path]) -> Grid:
    first = channels[0]
    for grid, file in zip(channels[1:], files[1:], strict=True):
        same = grid.array.shape == first.array.shape and first.array.ndim == 3
        if not same or not (
            corner_distance_mm(grid.affine, first.affine, first.array.shape) <= TOLERANCE_MM
        ):
            raise DatasetError(
                f"Channels must lie on one grid, got {files[0]} and {file}, which do not: resample "
                "one to the other."
            )
    arrays = [whole_numbers(grid.array) for grid in channels]
    array = arrays[0] if len(arrays) == 1 else np.stack(arrays, -1)
    return Grid(array, first.affine, first.notes)


def _organs(
    label: NDArray[np.uint8],
    names: Mapping[int, str],
    affine: NDArray[np.float64],
    alignment: Alignment,
    reverse: Flip,
) -> list[dict[str, Any]]:
    size_ml = voxel_ml(affine)
    voxels = np.bincount(label.ravel(), minlength=1)
    found = next(score for score in alignment.scores if score.flip == reverse).organs
    return [
        {
            "value": value,
            "name": names.get(value),
            "voxels": int(voxels[value]),
            "volume_ml": round(int(voxels[value]) * size_ml, 4),
            # NaN is no JSON: a label that fills the scan has nothing around it
            **{
                key: None if np.isnan(number) else round(float(number), 3)
                for key, number in organ._asdict().items()
            },
        }
        for value, organ in found.items()
    ]


def _score(alignment: Alignment, flip: Flip) -> float:
    return next(s.score for s in alignment.scores if s.flip == flip)
