"""Labels that are DICOM objects themselves: segmentations and structure sets.

DICOM SEG needs highdicom (``pip install 'stipple-monai[dicom]'``). RTSTRUCT is rasterized by
plastimatch (``pip install 'stipple-monai[rtstruct]'``), which has done so in radiotherapy for years
and whose wheels the Imaging Data Commons keeps. What a *structure* is called here is a segment of
the one and a region of interest of the other; their numbers are label values.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from stipple_monai.data import LPS_TO_RAS, Grid, read_grid
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.dicom_header import RTSTRUCT_CLASS, SEG_CLASSES, sop_class

pydicom, has_pydicom = optional_import("pydicom")
hd, has_highdicom = optional_import("highdicom")

_DAMAGED = (RuntimeError, ValueError, AttributeError, KeyError, IndexError, EOFError, TypeError)
# the length of an element that ends with a delimiter
_UNDEFINED = 0xFFFFFFFF


def is_label_object(path: Path) -> bool:
    """Whether a file is a DICOM SEG or RTSTRUCT."""
    return path.is_file() and sop_class(path) in (*SEG_CLASSES, RTSTRUCT_CLASS)


def referenced_series(path: Path) -> str | None:
    """SeriesInstanceUID of the scan that a DICOM SEG or RTSTRUCT is of, if it says so.

    Raises:
        DatasetError: the file is damaged.
        ImportError: pydicom is missing.
    """
    dataset = _header(path)
    try:
        if "ReferencedSeriesSequence" in dataset:
            return str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
        frame = dataset.ReferencedFrameOfReferenceSequence[0]
        study = frame.RTReferencedStudySequence[0]
        return str(study.RTReferencedSeriesSequence[0].SeriesInstanceUID)
    except (AttributeError, IndexError):
        return None


def label_frame(path: Path) -> str:
    """FrameOfReferenceUID of a DICOM SEG or RTSTRUCT; empty where it says none."""
    dataset = _header(path)
    if "FrameOfReferenceUID" in dataset:
        return str(dataset.FrameOfReferenceUID)
    try:
        return str(dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID)
    except (AttributeError, IndexError):
        return ""


def structure_names(path: Path) -> dict[int, str]:
    """Names of the structures in a DICOM SEG or RTSTRUCT by their numbers.

    Raises:
        DatasetError: the file is damaged, or has no structures.
        ImportError: pydicom is missing.
    """
    dataset = _header(path)
    if sop_class(path) == RTSTRUCT_CLASS:
        found = dataset.get("StructureSetROISequence", [])
        named = {number: str(item.get("ROIName", "")) for number, item in enumerate(found, 1)}
    else:
        segments = dataset.get("SegmentSequence", [])
        named = {int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in segments}
        # the background of a label map segmentation
        named.pop(0, None)
    if not named:
        raise DatasetError(
            f"`label` must have structures, got {path} without any: download or export it again."
        )
    return named


def read_structures(path: Path, scan: Grid, *, numbers: Collection[int]) -> Grid:
    """Read structures as a label map of their numbers.

    Args:
        path: DICOM SEG or RTSTRUCT.
        scan: on whose grid an RTSTRUCT is rasterized, and a DICOM SEG of a tilted gantry is put,
            which is no volume by itself; else it has a grid of its own.
        numbers: of the structures, from :func:`structure_names`; the others are left out.

    Raises:
        DatasetError: the file is damaged, or the structures overlap or have no contours.
        ImportError: highdicom or plastimatch is missing.
    """
    if sop_class(path) == RTSTRUCT_CLASS:
        return _rasterize(path, scan, numbers)
    if not has_highdicom:
        raise _missing("highdicom", "dicom", path)
    if not _right_angled(scan.affine):
        return _by_frames(path, scan, numbers)
    try:
        segmentation = hd.seg.segread(path)
        volume = segmentation.get_volume(
            segment_numbers=sorted(numbers), combine_segments=True, allow_missing_positions=True
        )
    except _DAMAGED as error:
        raise DatasetError(
            f"`label` must be a DICOM SEG whose segments make one label map, got {path}: {error}"
        ) from error
    # highdicom counts slices, rows, columns
    affine = LPS_TO_RAS @ np.asarray(volume.affine)[:, [2, 1, 0, 3]]
    return Grid(np.asarray(volume.array).transpose(2, 1, 0), affine)


def _right_angled(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-3)


def _by_frames(path: Path, scan: Grid, numbers: Collection[int]) -> Grid:
    """A DICOM SEG on the scan's grid, frame by frame at the place that it says."""
    array: NDArray[np.uint8] = np.zeros(scan.array.shape[:3], np.uint8)
    try:
        dataset = pydicom.dcmread(path)
        shared = dataset.SharedFunctionalGroupsSequence[0]
        frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        if dataset.SegmentationType != "BINARY":
            raise ValueError(f"{dataset.SegmentationType} cannot be put on a tilted gantry's grid")
        for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
            segment = _group(groups, shared, "SegmentIdentificationSequence")
            number = int(segment.ReferencedSegmentNumber)
            if number not in numbers or not frame.any():
                continue
            plane = array[..., _slice_of(groups, shared, scan, frame.T.shape)]
            if plane[frame.T > 0].any():
                raise ValueError(f"segment {number} overlaps another")
            plane[frame.T > 0] = number
    except _DAMAGED as error:
        raise DatasetError(
            f"`label` must be a DICOM SEG whose segments make one label map, got {path}: {error}"
        ) from error
    return Grid(array, scan.affine)


def _slice_of(groups: Any, shared: Any, scan: Grid, shape: tuple[int, ...]) -> int:
    """Which slice of a scan a frame is."""
    along, down = np.reshape(
        _group(groups, shared, "PlaneOrientationSequence").ImageOrientationPatient, (2, 3)
    )
    rows_mm, columns_mm = _group(groups, shared, "PixelMeasuresSequence").PixelSpacing
    place = _group(groups, shared, "PlanePositionSequence").ImagePositionPatient
    columns = np.stack([along * columns_mm, down * rows_mm, place], axis=1).astype(np.float64)
    voxels = np.linalg.inv(scan.affine)[:3] @ LPS_TO_RAS @ np.r_[columns, [[0.0, 0.0, 1.0]]]
    index = round(float(voxels[2, 2]))
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, index]]
    inside = shape == scan.array.shape[:2] and 0 <= index < scan.array.shape[2]
    if not inside or not np.allclose(voxels, expected, atol=0.05):
        raise ValueError("a frame lies on none of the scan's slices")
    return index


def _group(frame: Any, shared: Any, name: str) -> Any:
    """What is said of a frame, by itself or for all."""
    return getattr(frame if name in frame else shared, name)[0]


def _rasterize(path: Path, scan: Grid, numbers: Collection[int]) -> Grid:
    beside = str(Path(sys.executable).parent)
    program = shutil.which("plastimatch", path=beside) or shutil.which("plastimatch")
    if program is None:
        raise _missing("plastimatch", "rtstruct", path)
    dataset = _header(path)
    array: NDArray[np.uint8] = np.zeros(scan.array.shape[:3], np.uint8)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # plastimatch names its files after the structures, wherever such a name may lead
        for number, structure in enumerate(dataset.StructureSetROISequence, 1):
            structure.ROIName = f"structure{number}"
        dataset.save_as(folder / "structures.dcm")
        nib.save(nib.Nifti1Image(array, scan.affine), folder / "grid.nii")
        command = [program, "convert", "--input", "structures.dcm", "--fixed", "grid.nii"]
        command += ["--output-prefix", "masks", "--prefix-format", "nii"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        for number in sorted(numbers):
            mask = folder / "masks" / f"structure{number}.nii"
            if done.returncode or not mask.is_file():
                raise DatasetError(
                    f"`label` must be an RTSTRUCT with closed contours, got {path}, of which "
                    f"plastimatch cannot rasterize structure {number}."
                )
            inside = read_grid(mask).array > 0
            if (array[inside] > 0).any():
                raise DatasetError(
                    f"`label` must have structures that do not overlap, got {path}, where number "
                    f"{number} does: choose with --map NAME=LABEL."
                )
            array[inside] = number
    return Grid(array, scan.affine)


def _header(path: Path) -> Any:
    if not has_pydicom:
        raise _missing("pydicom", "dicom", path)
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, struct.error, OSError, *_DAMAGED) as error:
        raise DatasetError(f"`label` must be whole, got {path}: {error}") from error
    # pydicom takes what is there of the last element for the whole
    if any(len(e.value or b"") < e.length < _UNDEFINED for e in dataset.values() if _is_raw(e)):
        raise DatasetError(
            f"`label` must be whole, got {path}: its copy may have been cut short; download or "
            "export it again."
        )
    return dataset


def _is_raw(element: Any) -> bool:
    return isinstance(element, pydicom.dataelem.RawDataElement)


def _missing(package: str, extra: str, path: Path) -> ImportError:
    return ImportError(
        f"This label needs {package}, got {path}: pip install 'stipple-monai[{extra}]'."
    )
