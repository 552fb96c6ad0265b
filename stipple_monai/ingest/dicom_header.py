"""DICOM files one by one: which of them are images, and what their headers say.

Read with ITK (GDCM), which is there wherever MONAI reads DICOM.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import optional_import

from stipple_monai.errors import DatasetError

itk, _ = optional_import("itk")

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
_SYNTAX, _PIXELS = b"\x02\x00\x10\x00UI", b"\xe0\x7f\x10\x00"
# explicit and implicit VR, little endian
_PLAIN_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_DICOM_ENDINGS = (".dcm", ".ima", ".dicom")


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
    patient: str
    study_uid: str
    frame_uid: str
    pixel_bytes: int = 0


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
                raise unreadable(path)
    return found


def unreadable(path: str | os.PathLike[str]) -> DatasetError:
    """The error for a DICOM file that is damaged."""
    return DatasetError(
        f"DICOM files must be whole and readable, got {path}: its copy may have been cut short; "
        "download or export it again."
    )


def has_its_pixels(header: Slice) -> bool:
    """Whether a file's pixel data is as long as its size says, where it is not compressed.

    GDCM reads what is missing from memory that holds something else.
    """
    data = Path(header.file).read_bytes()
    at = data.find(_SYNTAX, 128, 2048)
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    syntax = data[at + 8 : at + 8 + length].decode("ascii", "replace").strip("\0 ")
    if at < 0 or syntax not in _PLAIN_SYNTAXES:
        return True
    # before the pixels stand tag, VR and 4 bytes of length, or tag and length; an icon is smaller
    begin, found = (12 if syntax == _PLAIN_SYNTAXES[0] else 8), []
    at = data.find(_PIXELS)
    while at >= 0:
        given = int.from_bytes(data[at + begin - 4 : at + begin], "little")
        found.append(min(given, len(data) - at - begin) >= header.pixel_bytes)
        at = -1 if found[-1] else data.find(_PIXELS, at + 1)
    return not found or found[-1]


def read_header(file: str) -> Slice:
    """Read what a file says of itself and its slice.

    Raises:
        DatasetError: it cannot be read, has several frames or colours, or does not say where it
            lies.
    """
    reader = itk.GDCMImageIO.New()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(file) from error
    tags = _Tags(reader.GetMetaDataDictionary())
    text, numbers = tags.text, tags.numbers
    _check_picture(tags, file)
    position, direction, spacing = _place(tags, file)
    return Slice(
        file=file,
        series_uid=text("0020|000e"),
        modality=text("0008|0060"),
        shape=(reader.GetDimensions(0), reader.GetDimensions(1)),
        spacing_mm=(spacing[1], spacing[0]),
        position_mm=position,
        direction=direction,
        thickness_mm=next(filter(None, (*numbers("0018|0050"), *numbers("0018|0088"))), None),
        slope=reader.GetRescaleSlope(),
        intercept=reader.GetRescaleIntercept(),
        rescaled=bool(numbers("0028|1053") and numbers("0028|1052")),
        padding=_padding(tags),
        # where there is no PatientID, a name tells patients apart as well
        patient=text("0010|0020") or text("0010|0010"),
        study_uid=text("0020|000d"),
        frame_uid=text("0020|0052"),
        pixel_bytes=math.prod(reader.GetDimensions(axis) for axis in (0, 1))
        * int((numbers("0028|0100") or (16,))[0])
        // 8,
    )


class _Tags:
    """A header's values by their tags; empty where there are none."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def text(self, tag: str) -> str:
        return str(self.values[tag]).strip("\0 ") if self.values.HasKey(tag) else ""

    def numbers(self, tag: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in self.text(tag).split("\\") if part.strip())
        except ValueError:
            return ()
        return values if all(map(math.isfinite, values)) else ()


def _check_picture(tags: _Tags, file: str) -> None:
    if (tags.numbers("0028|0008") or (1,))[0] > 1:
        raise DatasetError(
            f"A slice must be a file of one frame, got the multi-frame file {file}: convert it to "
            "single frames or to NIfTI, such as with dcm2niix."
        )
    if tags.text("0028|0004") != "MONOCHROME2":
        raise DatasetError(
            f"DICOM images must be grey, MONOCHROME2, got {tags.text('0028|0004')} in {file}: "
            "leave such files out."
        )


def _place(
    tags: _Tags, file: str
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Position, direction and spacing."""
    position, direction = tags.numbers("0020|0032"), tags.numbers("0020|0037")
    spacing = tags.numbers("0028|0030")
    if len(position) != 3 or len(direction) != 6 or len(spacing) != 2 or min(spacing) <= 0:
        raise DatasetError(
            "DICOM images must say where they lie, with ImagePositionPatient, "
            f"ImageOrientationPatient and PixelSpacing, got {file} without: leave such files out."
        )
    return position, direction, spacing


def _padding(tags: _Tags) -> tuple[float, float] | None:
    """Least and greatest stored value that is padding."""
    value, limit = tags.numbers("0028|0120"), tags.numbers("0028|0121")
    if not value:
        return None
    bits = int((tags.numbers("0028|0100") or (16,))[0])
    ends = [value[0], (limit or value)[0]]
    if tags.text("0028|0103") == "1":
        # written as unsigned by some: 63536 for -2000
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    return min(ends), max(ends)
