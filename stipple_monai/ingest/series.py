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
from typing import Any, NamedTuple

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from stipple_monai.data import LPS_TO_RAS, whole_numbers
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.dicom_header import (
    Slice,
    has_its_pixels,
    image_files,
    read_header,
    unreadable,
)

itk, _ = optional_import("itk")

# a slice this close to another is the same place: headers are rounded
_SAME_PLACE_MM = 1e-3
# slices may lie this share of a step off: half a step where one is missing in the middle
_OFF = 0.25


class Series(NamedTuple):
    """Slices that make a volume.

    Args:
        files: in the order of their positions.
        uid: SeriesInstanceUID.
        modality: such as ``CT``.
        patient: PatientID, or PatientName where there is none; empty without both.
        frame_uid: FrameOfReferenceUID.
        shape: voxels along W, H and D: columns, rows and slices.
        affine: voxel to RAS mm, ``(4, 4)``; sheared if the gantry was tilted.
        tilt_degrees: angle between the step and the slices' normal; 0 if upright.
        slices: headers in the order of ``files``.
        notes: what a person should know, each a sentence.
    """

    files: tuple[str, ...]
    uid: str
    modality: str
    patient: str
    frame_uid: str
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    tilt_degrees: float
    slices: tuple[Slice, ...]
    notes: tuple[str, ...]


def open_series(folder: str | os.PathLike[str]) -> Series:
    """Order and check the one series in a folder, without reading pixels.

    Args:
        folder: with the series' files right in it. Segmentations, structure sets and other objects
            that are no images may lie beside them.

    Raises:
        DatasetError: there is no series, or more than one; a file cannot be read, has several
            frames or colours, or says not where it lies; files differ in size, spacing or
            direction, or in patient, study or frame of reference; slices are missing, doubled or
            lie unevenly.
    """
    slices = [read_header(file) for file in image_files(folder)]
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
        patient=first.patient,
        frame_uid=first.frame_uid,
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
        if not has_its_pixels(header):
            raise unreadable(header.file)
        try:
            # GDCM applies slope and intercept of this very file
            pixels = itk.array_view_from_image(itk.imread(header.file, itk.F))
        except RuntimeError as error:
            raise unreadable(header.file) from error
        pixels = pixels.reshape(pixels.shape[-2:]).T
        if pixels.shape != series.shape[:2] or not np.isfinite(pixels).all():
            raise unreadable(header.file)
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
    return whole_numbers(volume), notes


def _refuse_mixed(slices: Sequence[Slice], folder: str | os.PathLike[str]) -> None:
    first = slices[0]
    for other in slices[1:]:
        for name in ("patient", "study_uid", "frame_uid"):
            if getattr(first, name) != getattr(other, name):
                raise DatasetError(
                    "Slices of a DICOM series must be of one patient, study and frame of "
                    f"reference, got another {name.removesuffix('_uid')} in {other.file} than in "
                    f"{first.file}: leave out what does not belong."
                )
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
        if slices[0].thickness_mm is None:
            raise DatasetError(
                f"A single slice must say how thick it is, got {slices[0].file} without "
                "SliceThickness: give the whole series."
            )
        return normal * slices[0].thickness_mm, 0.0
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
        notes.append(f"One slice: its SliceThickness of {thickness:g} mm was believed.")
    elif thickness is not None and abs(thickness - step_mm) > 0.01 * step_mm:
        notes.append(f"SliceThickness is {thickness:g} mm, slices are {step_mm:.4g} mm apart.")
    if tilt:
        notes.append(f"The gantry was tilted by {tilt:.3g}°: the affine has a shear.")
    if slices[0].modality == "CT" and not all(s.rescaled for s in slices):
        notes.append("No rescale slope and intercept: intensities may not be in HU.")
    if len({(s.slope, s.intercept) for s in slices}) > 1:
        notes.append("Rescale slope or intercept differ between slices; each has its own.")
    return notes
