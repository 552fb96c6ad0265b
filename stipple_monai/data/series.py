"""A DICOM series: which files it has, whether they make a volume, and that volume.

Headers and pixels are read with ITK (GDCM), slice by slice. What a file is called and its
InstanceNumber mean nothing here: slices are ordered by their positions along their normal, and
the step between them is measured, not read from SliceThickness.

Step
    The vector from one slice to the next. Where it is not along the normal, the gantry was tilted,
    and the volume's affine has a shear.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np
from numpy.typing import NDArray

from stipple_monai.errors import DatasetError

_SOP = "1.2.840.10008.5.1.4.1.1."
SEG_CLASSES = (f"{_SOP}66.4", f"{_SOP}66.7")
"""Segmentation and Label Map Segmentation Storage."""
RTSTRUCT_CLASS = f"{_SOP}481.3"
"""RT Structure Set Storage."""
# What is no picture of a patient: radiotherapy, segmentations, reports, presentation states,
# registrations, documents and directories.
_NO_IMAGE = tuple(f"{_SOP}{part}." for part in ("481", "66", "88", "11", "104"))
_NO_IMAGE_BUT = (f"{_SOP}481.1",)
_DIRECTORY = "1.2.840.10008.1.3.10"
_DICOM_ENDINGS = (".dcm", ".ima", ".dicom")

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# a slice this close to another is the same place: headers are rounded
_SAME_PLACE_MM = 1e-3
# slices may lie this share of a step off: half a step where one is missing in the middle
_OFF = 0.25


class Slice(NamedTuple):
    """What the header of one file says; positions and directions are DICOM's, LPS mm."""

    file: str
    series_uid: str
    modality: str
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    position_mm: tuple[float, ...]
    direction: tuple[float, ...]
    thickness_mm: float | None
    slope: float
    intercept: float
    rescaled: bool
    padding: tuple[float, float] | None


class Series(NamedTuple):
    """Slices that make a volume.

    Args:
        files: in the order of their positions.
        uid: SeriesInstanceUID.
        modality: such as ``CT``.
        shape: voxels along W, H and D: columns, rows and slices.
        affine: voxel to RAS mm, ``(4, 4)``; sheared if the gantry was tilted.
        tilt_degrees: angle between the step and the slices' normal; 0 if upright.
        slices: headers in the order of ``files``.
        notes: what a person should know, each a sentence.
    """

    files: tuple[str, ...]
    uid: str
    modality: str
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    tilt_degrees: float
    slices: tuple[Slice, ...]
    notes: tuple[str, ...]


def sop_class(path: str | os.PathLike[str]) -> str | None:
    """Class UID of a DICOM file; ``None`` if it is not one that begins as the standard demands.

    The file's meta information is in the same encoding in every DICOM file.
    """
    with open(path, "rb") as file:
        start = file.read(2048)
    if start[128:132] != b"DICM":
        return None
    at = start.find(b"\x02\x00\x02\x00UI")
    if at < 0:
        return ""
    length = int.from_bytes(start[at + 6 : at + 8], "little")
    return start[at + 8 : at + 8 + length].decode("ascii", "replace").strip("\0 ")


def is_image_class(uid: str) -> bool:
    """Whether files of a class hold pictures, as far as its UID tells."""
    return uid != _DIRECTORY and (uid in _NO_IMAGE_BUT or not uid.startswith(_NO_IMAGE))


def image_files(folder: str | os.PathLike[str]) -> list[str]:
    """DICOM images right in a folder, by name; other files and other DICOM objects are left out.

    Raises:
        DatasetError: a file that looks like DICOM cannot be read.
    """
    found = []
    reader = itk.GDCMImageIO.New()
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith(".") or not path.is_file() or path.name == "DICOMDIR":
            continue
        if not os.access(path, os.R_OK):
            raise DatasetError(f"DICOM files must be readable, got {path}: check its permissions.")
        kind = sop_class(path)
        if kind is not None:
            if is_image_class(kind):
                found.append(str(path))
        elif path.suffix.lower() in _DICOM_ENDINGS or path.suffix == "":
            # files of the time before part 10 begin with the data itself
            if path.stat().st_size and reader.CanReadFile(str(path)):
                found.append(str(path))
            elif path.suffix:
                raise _unreadable(path)
    return found


def open_series(folder: str | os.PathLike[str]) -> Series:
    """Order and check the one series in a folder, without reading pixels.

    Args:
        folder: with the series' files right in it. Segmentations, structure sets and other objects
            that are no images may lie beside them.

    Raises:
        DatasetError: there is no series, or more than one; a file cannot be read, has several
            frames or colours, or says not where it lies; files differ in size, spacing or
            direction; slices are missing, doubled or lie unevenly.
    """
    slices = [_read_header(file) for file in image_files(folder)]
    series = {s.series_uid: s.file for s in slices}
    if len(series) != 1:
        raise DatasetError(
            f"A folder must hold one DICOM series, got {len(series)} in {folder}: "
            + (
                f"move each to a folder of its own, such as that of {min(series.values())}."
                if series
                else "give the folder of its files."
            )
        )
    _refuse_mixed(slices, folder)
    first = slices[0]
    along, down = np.array(first.direction).reshape(2, 3)
    normal = np.cross(along, down)
    slices.sort(key=lambda s: float(np.dot(s.position_mm, normal)))
    step, tilt = _step(slices, normal, folder)
    affine = np.eye(4)
    affine[:3, :3] = np.stack(
        [along * first.spacing_mm[0], down * first.spacing_mm[1], step], axis=1
    )
    affine[:3, 3] = slices[0].position_mm
    return Series(
        files=tuple(s.file for s in slices),
        uid=first.series_uid,
        modality=first.modality,
        shape=(*first.shape, len(slices)),
        affine=LPS_TO_RAS @ affine,
        tilt_degrees=tilt,
        slices=tuple(slices),
        notes=tuple(_notes(slices, float(abs(step @ normal)), tilt)),
    )


def read_series(series: Series) -> tuple[NDArray[Any], list[str]]:
    """Read a series' voxels: every slice with its own slope and intercept, padding taken out.

    Padding, which scanners write outside their field of view, becomes the lowest intensity that
    is none.

    Returns:
        ``(W, H, D)``, int16 where all values are whole and fit, float32 elsewhere; and what a
        person should know about them.

    Raises:
        DatasetError: a file's pixels cannot be read, are incomplete or not finite.
    """
    volume = np.empty(series.shape, np.float32)
    padded = np.zeros(series.shape, bool)
    for k, header in enumerate(series.slices):
        try:
            # GDCM applies slope and intercept of this very file
            pixels = itk.array_view_from_image(itk.imread(header.file, itk.F))
        except RuntimeError as error:
            raise _unreadable(header.file) from error
        pixels = pixels.reshape(pixels.shape[-2:]).T
        if pixels.shape != series.shape[:2] or not np.isfinite(pixels).all():
            raise _unreadable(header.file)
        volume[..., k] = pixels
        if header.padding is not None:
            low, high = (header.slope * value + header.intercept for value in header.padding)
            half = 0.5 * abs(header.slope)
            padded[..., k] = (pixels > min(low, high) - half) & (pixels < max(low, high) + half)
    notes = []
    if padded.any() and not padded.all():
        air = float(volume[~padded].min())
        volume[padded] = air
        notes.append(f"{padded.mean():.1%} of the voxels are padding and were set to {air:g}.")
    fits = -(2**15) <= volume.min() and volume.max() < 2**15
    if fits and np.array_equal(volume, np.rint(volume)):
        return volume.astype(np.int16), notes
    return volume, notes


def _unreadable(path: str | os.PathLike[str]) -> DatasetError:
    return DatasetError(
        f"DICOM files must be whole and readable, got {path}: its copy may have been cut short; "
        "download or export it again."
    )


def _read_header(file: str) -> Slice:
    reader = itk.GDCMImageIO.New()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(file) from error
    tags = reader.GetMetaDataDictionary()

    def text(tag: str) -> str:
        return str(tags[tag]).strip("\0 ") if tags.HasKey(tag) else ""

    def numbers(tag: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text(tag).split("\\") if part.strip())
        except ValueError:
            return ()
        return values if all(map(math.isfinite, values)) else ()

    if (numbers("0028|0008") or (1,))[0] > 1:
        raise DatasetError(
            f"A slice must be a file of one frame, got the multi-frame file {file}: convert it to "
            "single frames or to NIfTI, such as with dcm2niix."
        )
    if text("0028|0004") != "MONOCHROME2":
        raise DatasetError(
            f"DICOM images must be grey, MONOCHROME2, got {text('0028|0004')} in {file}: leave "
            "such files out."
        )
    position, direction = numbers("0020|0032"), numbers("0020|0037")
    spacing = numbers("0028|0030")
    if len(position) != 3 or len(direction) != 6 or len(spacing) != 2 or min(spacing) <= 0:
        raise DatasetError(
            "DICOM images must say where they lie, with ImagePositionPatient, "
            f"ImageOrientationPatient and PixelSpacing, got {file} without: leave such files out."
        )
    return Slice(
        file=file,
        series_uid=text("0020|000e"),
        modality=text("0008|0060"),
        shape=(reader.GetDimensions(0), reader.GetDimensions(1)),
        spacing_mm=(spacing[1], spacing[0]),
        position_mm=position,
        direction=direction,
        thickness_mm=next(iter(numbers("0018|0050")), None),
        slope=reader.GetRescaleSlope(),
        intercept=reader.GetRescaleIntercept(),
        rescaled=bool(numbers("0028|1053") and numbers("0028|1052")),
        padding=_padding(numbers("0028|0120"), numbers("0028|0121"), text("0028|0103"), numbers),
    )


def _padding(
    value: tuple[float, ...], limit: tuple[float, ...], signed: str, numbers: Any
) -> tuple[float, float] | None:
    """Least and greatest stored value that is padding."""
    if not value:
        return None
    bits = int((numbers("0028|0100") or (16,))[0])
    ends = [value[0], (limit or value)[0]]
    if signed == "1":
        # written as unsigned by some: 63536 for -2000
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    return min(ends), max(ends)


def _refuse_mixed(slices: Sequence[Slice], folder: str | os.PathLike[str]) -> None:
    first = slices[0]
    for other in slices[1:]:
        for name, tolerance in (("shape", 0.0), ("spacing_mm", 1e-3), ("direction", 1e-3)):
            one, two = getattr(first, name), getattr(other, name)
            if not np.allclose(one, two, rtol=0, atol=tolerance):
                raise DatasetError(
                    f"Slices of a DICOM series must have one size, spacing and direction, got "
                    f"{name} {one} in {first.file} and {two} in {other.file} of {folder}: leave "
                    "out what does not belong, such as the localizer."
                )


def _step(
    slices: Sequence[Slice], normal: NDArray[np.float64], folder: str | os.PathLike[str]
) -> tuple[NDArray[np.float64], float]:
    """Step between slices, LPS mm, and its angle to the normal in degrees."""
    if len(slices) == 1:
        return normal * (slices[0].thickness_mm or 1.0), 0.0
    places = np.array([s.position_mm for s in slices])
    heights = places @ normal
    rises = np.diff(heights)
    twice = int(np.argmin(rises))
    if rises[twice] < _SAME_PLACE_MM:
        raise DatasetError(
            f"Slices of a DICOM series must lie at places of their own, got {slices[twice].file} "
            f"and {slices[twice + 1].file} at the same: keep one of them, or one time point."
        )
    usual = float(np.median(rises))
    step = (places[-1] - places[0]) / (len(slices) - 1)
    off = np.linalg.norm(places - places[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if not off.max() <= _OFF * usual:
        at = int(np.argmax(np.abs(rises - usual)))
        if abs(rises[at] - usual) > _OFF * usual:
            raise DatasetError(
                f"Slices of a DICOM series must be {usual:.3g} mm apart along their normal, got "
                f"{rises[at]:.3g} mm between {slices[at].file} and {slices[at + 1].file}: slices "
                "are missing or too many; export the series again."
            )
        raise DatasetError(
            "Slices of a DICOM series must lie on one line at even steps, got one that is "
            f"{off.max():.3g} mm off in {folder}: leave out what does not belong."
        )
    drift = step - (step @ normal) * normal
    if np.linalg.norm(drift) * (len(slices) - 1) <= _OFF * usual:
        return normal * (step @ normal), 0.0
    return step, math.degrees(math.atan2(float(np.linalg.norm(drift)), float(step @ normal)))


def _notes(slices: Sequence[Slice], step_mm: float, tilt: float) -> list[str]:
    notes = []
    thickness = slices[0].thickness_mm
    if len(slices) == 1:
        notes.append(f"One slice: its SliceThickness of {thickness or 1.0:g} mm was believed.")
    elif thickness is not None and abs(thickness - step_mm) > 0.01 * step_mm:
        notes.append(f"SliceThickness is {thickness:g} mm, slices are {step_mm:.4g} mm apart.")
    if tilt:
        notes.append(f"The gantry was tilted by {tilt:.3g}°: the affine has a shear.")
    if slices[0].modality == "CT" and not all(s.rescaled for s in slices):
        notes.append("No rescale slope and intercept: intensities may not be in HU.")
    if len({(s.slope, s.intercept) for s in slices}) > 1:
        notes.append("Rescale slope or intercept differ between slices; each has its own.")
    return notes
