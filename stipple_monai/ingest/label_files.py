"""A scan's labels on its grid, from what they are kept in: volumes, DICOM objects or pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from stipple_monai.data import Grid, onto_grid, read_grid
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.dicom_header import sop_class
from stipple_monai.ingest.dicom_labels import (
    is_label_object,
    label_frame,
    read_structures,
    referenced_series,
    structure_names,
)
from stipple_monai.ingest.matching import is_volume, stem
from stipple_monai.ingest.series import Series
from stipple_monai.label_values import IGNORED, whole_labels

itk, _ = optional_import("itk")

PICTURES = (".png",)
_MOST = IGNORED


class LabelMap(NamedTuple):
    """Label values on the scan's grid.

    Args:
        array: ``(W, H, D)`` uint8.
        names: of the values, where the file says so.
        by_header: whether a header said that the label lies there, not its voxels' order alone.
        notes: what a person should know, each a sentence.
    """

    array: NDArray[np.uint8]
    names: dict[int, str]
    by_header: bool
    notes: list[str]


def read_label(
    path: str | Path,
    scan: Grid,
    *,
    series: Series | None = None,
    choose: Mapping[str, int] | None = None,
    ignore_header: bool = False,
    ignore: int | None = None,
    structures: Mapping[str, int] | None = None,
) -> LabelMap:
    """Read labels onto the scan's grid; nothing is interpolated but the contours of an RTSTRUCT.

    Args:
        path: NIfTI, NRRD or MetaImage; DICOM SEG or RTSTRUCT; a folder of PNG masks, whose i-th
            by name belongs to the i-th file of the series by name; or a folder of ``structures``.
        scan: the scan.
        series: which it was read from.
        choose: what becomes which label, by value or by a structure's name: ``{"63": 1}``,
            ``{"Liver": 1}``. The rest becomes background. None for all, as they are.
        ignore_header: take the label's voxels for the scan's, whatever its header says, where the
            two headers differ and the shape is the same.
        ignore: value of voxels that were not annotated; it becomes 255, unless it is chosen.
        structures: values by the names of the masks in a folder, one volume each.

    Raises:
        DatasetError: the label cannot be read, has other values than whole numbers from 0 to 255,
            lies elsewhere, or lacks what is chosen.
        ImportError: a package for DICOM SEG or RTSTRUCT is missing.
    """
    path = Path(path)
    table = {key.casefold(): label for key, label in (choose or {}).items()}
    if path.is_dir() and structures and any(map(is_volume, path.iterdir())):
        read = _read_masks(path, scan, structures, table)
    elif path.is_dir():
        read = _read_folder(path, scan, series, whole=not table)
    elif is_label_object(path):
        read = _read_object(path, scan, series, table)
    else:
        read = _read_file(path, scan, ignore_header=ignore_header)
    array, names, by_header, notes = read
    if not table:
        if ignore is not None:
            array = np.where(array == ignore, IGNORED, array)
        return LabelMap(_as_labels(array, path), names, by_header, notes)
    numbers = [int(v) for v in np.unique(array)]
    notes = [*notes, *_absent(numbers, names, choose or {})]
    chosen = np.zeros(array.shape, np.int64)
    if ignore is not None:
        chosen[array == ignore] = IGNORED
    kept: dict[int, str] = {}
    for number, label in _chosen(numbers, names, table, path).items():
        chosen[array == number] = label
        if number in names:
            kept[label] = " + ".join(filter(None, [kept.get(label), names[number]]))
    return LabelMap(_as_labels(chosen, path), kept, by_header, notes)


class _FileContent(NamedTuple):
    """What a label's file holds, on the scan's grid, before anything is chosen."""

    array: NDArray[Any]
    names: dict[int, str]
    by_header: bool
    notes: list[str]


def _read_folder(path: Path, scan: Grid, series: Series | None, *, whole: bool) -> _FileContent:
    array = _read_pictures(path, scan.array.shape[:3], series)
    if whole and set(np.unique(array)) == {0, _MOST}:
        # a mask of 8 bits, whose 255 would mean "ignored" here
        array = (array > 0).astype(np.uint8)
    return _FileContent(
        array, {}, False, ["Pictures were matched to slices by the order of file names."]
    )


def _read_object(
    path: Path, scan: Grid, series: Series | None, table: Mapping[str, int]
) -> _FileContent:
    _refuse_other_series(path, series)
    names = structure_names(path)
    wanted = _chosen(names, names, table, path) if table else names
    grid = read_structures(path, scan, numbers=list(wanted))
    # reversed slices are usual in a DICOM SEG, and nothing to tell
    array, _ = onto_grid(grid, scan.array.shape[:3], scan.affine, name=str(path), part=True)
    return _FileContent(array, names, True, [])


def _read_file(path: Path, scan: Grid, *, ignore_header: bool) -> _FileContent:
    grid, shape = _read_volume(path), scan.array.shape[:3]
    notes = list(grid.notes)
    try:
        array, note = onto_grid(grid, shape, scan.affine, name=str(path))
    except DatasetError:
        if not ignore_header or grid.array.shape != shape:
            raise
        notes.append("The label's header puts it elsewhere; its voxels were taken as they lie.")
        return _FileContent(grid.array, {}, False, notes)
    return _FileContent(array, {}, True, [*notes, *([note] if note else [])])


def _read_masks(
    folder: Path, scan: Grid, structures: Mapping[str, int], table: Mapping[str, int]
) -> _FileContent:
    """One label map of the masks in a folder, those that are chosen."""
    names = {value: name for name, value in structures.items()}
    wanted = _chosen(names, names, table, folder) if table else names
    array: NDArray[np.uint8] = np.zeros(scan.array.shape[:3], np.uint8)
    notes: list[str] = []
    for path in sorted(filter(is_volume, folder.iterdir())):
        value = structures[stem(path)]
        if value not in wanted:
            continue
        mask = _read_file(path, scan, ignore_header=False)
        notes += [f"{path.name}: {note}" for note in mask.notes]
        inside = mask.array > 0
        if array[inside].any():
            raise DatasetError(
                f"`label` must have structures that do not overlap, got {path}, which does: choose "
                "with --map NAME=LABEL."
            )
        array[inside] = value
    return _FileContent(array, names, True, notes)


def _chosen(
    numbers: Iterable[int], names: Mapping[int, str], table: Mapping[str, int], path: Path
) -> dict[int, int]:
    """Labels by the numbers that a table chooses, each by itself or by its name."""
    found = {
        number: table[key]
        for number in numbers
        for key in (str(number), names.get(number, "").casefold())
        if key in table
    }
    if not found:
        there = ", ".join(names.values() or map(str, numbers))
        raise DatasetError(
            f"`choose` must name what is in the label, got {', '.join(table)} for {path}. There: "
            f"{there}."
        )
    return found


def _absent(
    numbers: Iterable[int], names: Mapping[int, str], choose: Mapping[str, int]
) -> list[str]:
    there = {text.casefold() for n in numbers for text in (str(n), names.get(n, ""))}
    absent = [key for key in choose if key.casefold() not in there]
    return [f"Chosen, but not in this label: {', '.join(absent)}."] if absent else []


def _as_labels(array: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if not (low >= 0 and high <= _MOST):
        raise DatasetError(
            f"`label` must have whole numbers from 0 to {_MOST}, got values from {low} to {high} "
            f"in {path}: choose with --map VALUE=LABEL."
        )
    return np.ascontiguousarray(array).astype(np.uint8)


def _read_volume(path: Path) -> Grid:
    if path.is_file() and (kind := sop_class(path)) is not None:
        raise DatasetError(
            f"`label` must be a DICOM SEG or RTSTRUCT, got a DICOM file of class {kind}: {path}."
        )
    grid = read_grid(path)
    if grid.array.ndim != 3:
        raise DatasetError(
            f"`label` must be a 3D map of values, got shape {grid.array.shape} in {path}: give "
            "classes as values, not as channels."
        )
    return grid._replace(array=whole_labels(grid.array, str(path)))


def _refuse_other_series(path: Path, series: Series | None) -> None:
    referenced = referenced_series(path)
    if series is not None and referenced not in (None, series.uid):
        raise DatasetError(
            f"`label` must be of the scan, got {path}, which refers to the series {referenced}, "
            f"not {series.uid}."
        )
    frame = label_frame(path) if series is not None and referenced is None else ""
    if series is not None and frame and series.frame_uid and frame != series.frame_uid:
        raise DatasetError(
            f"`label` must be of the scan, got {path}, whose frame of reference is {frame}, not "
            f"{series.frame_uid}."
        )


def _read_pictures(
    folder: Path, shape: tuple[int, ...], series: Series | None
) -> NDArray[np.uint8]:
    if series is None:
        raise DatasetError(
            f"Pictures must belong to a DICOM series, which says where they lie, got {folder}: "
            "give the scan as DICOM or the label as NIfTI."
        )
    files = sorted((f for f in folder.iterdir() if f.suffix.lower() in PICTURES), key=_natural_key)
    if len(files) != shape[2]:
        raise DatasetError(
            f"`label` must have a picture for each of {shape[2]} slices, got {len(files)} in "
            f"{folder}."
        )
    array = np.empty(shape, np.uint8)
    place = {file: k for k, file in enumerate(series.files)}
    # the i-th picture by name is of the i-th file by name, which may be any slice by position
    by_name = sorted(series.files, key=lambda file: _natural_key(Path(file)))
    for picture, file in zip(files, by_name, strict=True):
        try:
            pixels = itk.array_from_image(itk.imread(str(picture)))
        except (RuntimeError, TypeError, KeyError) as error:
            raise DatasetError(f"`label` must be whole pictures, got {picture}.") from error
        if pixels.shape != (shape[1], shape[0]) or pixels.dtype != np.uint8:
            raise DatasetError(
                f"`label` must be grey pictures of 8 bits and {shape[0]} × {shape[1]} pixels, got "
                f"{pixels.dtype} and shape {pixels.shape} in {picture}."
            )
        array[..., place[file]] = pixels.T
    return array


def _natural_key(path: Path) -> list[Any]:
    """Sort key by which 10 comes after 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
