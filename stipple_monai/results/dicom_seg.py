"""A segmentation as DICOM SEG, for viewers and archives that speak DICOM.

It needs highdicom and pydicom, ``pip install stipple-monai[dicom]``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils import optional_import
from numpy.typing import NDArray

from stipple_monai.data import LPS_TO_RAS, label_names
from stipple_monai.errors import DatasetError
from stipple_monai.files import whole_file
from stipple_monai.ingest import open_series
from stipple_monai.results.volumes import ScanNames

itk, _ = optional_import("itk")
pydicom, _ = optional_import("pydicom")
hd, has_highdicom = optional_import("highdicom")
codes, _ = optional_import("pydicom.sr.codedict", name="codes")

# Attributes that a file must have but may leave empty; de-identified ones often lack them.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
# the cosine that a volume's axes may have
_RIGHT_ANGLE = 1e-4
# what these must look like; else they are left empty
_VALID = {
    "PatientBirthDate": r"(\d{8})?",
    "StudyDate": r"(\d{8})?",
    "StudyTime": r"(\d{2,6}(\.\d{1,6})?)?",
    "PatientSex": r"[MFO]?",
}


def series_files(folder: str | os.PathLike[str]) -> list[str]:
    """List the files of the DICOM series in a folder, in the order of their positions.

    Raises:
        DatasetError: there is no series, or more than one, or it is no grid, see
            :func:`open_series`.
    """
    return list(open_series(folder).files)


def write_dicom_seg(
    path: str | os.PathLike[str],
    label: MetaTensor,
    files: Sequence[str],
    *,
    organs: Mapping[int, str],
) -> None:
    """Write a label map as a binary DICOM SEG of the series that it was made of, whole or not.

    Patient, study and frame of reference are those of the series. Segments are numbered from 1 in
    the order of the label values; a segment's code is that of SNOMED CT where pydicom knows the
    organ's name, and "Organ" otherwise. An organ that was not found has its segment, but no frames;
    where none was, the frames are there and empty.

    Args:
        path: ``….dcm``.
        label: label map ``(1, W, H, D)`` on the grid of the series, RAS mm.
        files: of the series.
        organs: names by label value.

    Raises:
        DatasetError: a file lacks what a segmentation needs.
        ImportError: highdicom is missing.
    """
    # DICOM's world is LPS
    values = label.as_tensor()[0].cpu().numpy().astype(np.uint8)
    # DICOM counts segments from 1
    values = np.searchsorted([0, *sorted(organs)], values).astype(np.uint8)
    to_world = LPS_TO_RAS @ label.affine.cpu().numpy().astype(np.float64)
    segmentation = _segmentation(_images(files), values, to_world, organs, files)
    with whole_file(path) as part:
        segmentation.save_as(part)


def check_dicom_seg(files: Sequence[str]) -> None:
    """Raise where a series lacks what its segmentation will need, before there is one.

    Raises:
        DatasetError: a file lacks it.
        ImportError: highdicom is missing.
    """
    series = open_series(Path(files[0]).parent)
    empty: NDArray[np.uint8] = np.zeros(series.shape, np.uint8)
    _segmentation(_images(files), empty, LPS_TO_RAS @ series.affine, {1: "organ"}, files)


def _images(files: Sequence[str]) -> list[Any]:
    """Headers of a series, with what segmentations need and what is written wrongly put right."""
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    for number, image in enumerate(images, 1):
        for keyword in _MAY_BE_EMPTY:
            if keyword not in image:
                setattr(image, keyword, None)
        for keyword, pattern in _VALID.items():
            if not re.fullmatch(pattern, str(image.get(keyword) or "")):
                setattr(image, keyword, None)
        if not str(image.get("SliceThickness") or "").strip():
            image.SliceThickness = None
        if "InstanceNumber" not in image:
            image.InstanceNumber = number
        if image.get("SpecificCharacterSet"):
            # the segmentation's own text is in UTF-8, and so may be the patient's
            image.decode()
            image.SpecificCharacterSet = "ISO_IR 192"
    return images


def _segmentation(
    images: Sequence[Any],
    values: NDArray[np.uint8],
    to_world: NDArray[np.float64],
    organs: Mapping[int, str],
    files: Sequence[str],
) -> Any:
    try:
        return hd.seg.Segmentation(
            images,
            _frames(images, values, to_world),
            segmentation_type="BINARY",
            segment_descriptions=[
                _description(number, organs[k]) for number, k in enumerate(sorted(organs), 1)
            ],
            series_instance_uid=hd.UID(),
            series_number=100,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="STIPPLE for MONAI",
            manufacturer_model_name="stipple-monai",
            software_versions=_version(),
            device_serial_number="0",
            content_label="SEGMENTATION",
            series_description="STIPPLE segmentation, not for diagnosis",
        )
    except (AttributeError, ValueError, KeyError) as error:
        raise DatasetError(
            f"A DICOM SEG needs a whole series, got {Path(files[0]).parent}: {error}"
        ) from error


def _frames(images: Sequence[Any], values: NDArray[np.uint8], to_world: NDArray[np.float64]) -> Any:
    """The segmentation as highdicom takes it, which counts slices, rows, columns."""
    frames = np.ascontiguousarray(values.transpose(2, 1, 0))
    axes = to_world[:3, :3] / np.linalg.norm(to_world[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > _RIGHT_ANGLE:
        # a volume has no shear: each frame lies where its slice of the tilted gantry does
        return frames
    return hd.Volume(
        frames,
        to_world[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=images[0].FrameOfReferenceUID,
    )


def rename_segments(path: str | os.PathLike[str], organs: Mapping[int, str]) -> None:
    """Give the segments of a file of :func:`write_dicom_seg` other names.

    Args:
        path: of the DICOM SEG, replaced whole.
        organs: names by label value.
    """
    file = pydicom.dcmread(path)
    told = [_description(n, organs[k]) for n, k in enumerate(sorted(organs), 1)]
    for segment, description in zip(file.SegmentSequence, told, strict=True):
        segment.SegmentLabel = description.SegmentLabel
        segment.SegmentedPropertyTypeCodeSequence = description.SegmentedPropertyTypeCodeSequence
    with whole_file(path) as part:
        file.save_as(part)


class DicomSegWriter:
    """Write ``NAME_seg.dcm`` for every scan that is a DICOM series; a handler of the evaluator.

    Args:
        folder: where to write.
        organs: label values in the order of the network's channels.
        names: of the scans.
        datalist: whose ``labels`` name the organs.
        pred_key: the label map on the scan's grid, in the engine's output.
        image_key: the scan in the engine's output.
    """

    def __init__(
        self,
        folder: str | Path,
        organs: Sequence[int],
        *,
        names: ScanNames,
        datalist: str | Path,
        pred_key: str = "pred",
        image_key: str = "image",
    ) -> None:
        self.folder, self.names = Path(folder), names
        self.organs = {k: label_names(datalist).get(k, f"organ {k}") for k in organs}
        self.pred_key, self.image_key = pred_key, image_key

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        for item in engine.state.output:
            scan = item[self.image_key].meta["filename_or_obj"]
            if Path(scan).is_dir():
                path = self.folder / f"{self.names[scan]}_seg.dcm"
                write_dicom_seg(path, item[self.pred_key], series_files(scan), organs=self.organs)


def _description(number: int, name: str) -> Any:
    # sides are modifiers in SNOMED CT, which a segment's type has no place for
    words = [w for w in name.replace("_", " ").split() if w.lower() not in ("left", "right")]
    kind = getattr(codes.SCT, "".join(word.capitalize() for word in words), None)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=kind or codes.SCT.Organ,
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="STIPPLE", version=_version(), family=codes.DCM.ArtificialIntelligence
        ),
    )


def _version() -> str:
    try:
        return version("stipple-monai")
    except PackageNotFoundError:
        return "not installed"
