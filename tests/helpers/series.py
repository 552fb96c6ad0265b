"""A small CT as a DICOM series, written by the tests that need one."""

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_series(
    folder,
    hu,
    *,
    spacing_mm=(2.0, 3.0, 4.0),
    turned=False,
    uneven_mm=0.0,
    tilt=0.0,
    rescale=None,
    signed=False,
    edit=None,
):
    """Write a series whose file names run against its positions; its affine, RAS mm.

    Args:
        folder: where to.
        hu: ``(W, H, D)``, intensities; columns, rows and slices.
        spacing_mm: along these.
        turned: an oblique series instead of an axial one.
        uneven_mm: how far the last slice lies from its place.
        tilt: how far each slice is moved along its rows, as a share of the spacing.
        rescale: slope and intercept of each slice, 1 and -1024 where None.
        signed: whether stored values are.
        edit: changes the data set of slice k before it is written, ``edit(image, k)``.
    """
    folder.mkdir(parents=True)
    along, down = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    if turned:
        along, down = np.array([0.8, 0.6, 0]), np.array([-0.6, 0.8, 0])
    normal = np.cross(along, down)
    origin = np.array([-30.0, -20.0, 100.0])
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(hu.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{hu.shape[2] - k:03d}.dcm"
        image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID, image.Modality = frame, "CT"
        # no birth date, no accession number: files that were made anonymous lack such
        image.PatientID, image.PatientName = "patient 7", "Doe^Jo"
        image.SeriesDate, image.SeriesNumber = "20200101", 3
        image.InstanceNumber = hu.shape[2] - k
        last = k == hu.shape[2] - 1
        moved = k * spacing_mm[2] + uneven_mm * last
        place = origin + moved * normal + tilt * k * spacing_mm[2] * along
        image.ImagePositionPatient = [f"{x:.6f}" for x in place]
        image.ImageOrientationPatient = [*along, *down]
        image.PixelSpacing = [spacing_mm[1], spacing_mm[0]]
        image.SliceThickness = 9.0
        image.Rows, image.Columns = hu.shape[1], hu.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, int(signed)
        slope, intercept = (1, -1024) if rescale is None else rescale[k]
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        stored = np.rint((hu[:, :, k].T - intercept) / slope)
        image.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
        if edit is not None:
            edit(image, k)
        image.save_as(path, enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along, down, normal], 1) * spacing_mm
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def voxels_of_seg(path, affine, shape):
    """Segments of a DICOM SEG on a grid, frame by frame by the positions of its pixels.

    It follows the standard alone and knows nothing of the order of frames.
    """
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    values = np.zeros(shape, np.uint8)
    to_voxel = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        direction = np.array(
            _group(groups, shared, "PlaneOrientationSequence").ImageOrientationPatient, float
        )
        rows_mm, columns_mm = map(
            float, _group(groups, shared, "PixelMeasuresSequence").PixelSpacing
        )
        origin = np.array(
            _group(groups, shared, "PlanePositionSequence").ImagePositionPatient, float
        )
        row, column = np.nonzero(frame)
        point = (
            origin
            + np.outer(column * columns_mm, direction[:3])
            + np.outer(row * rows_mm, direction[3:])
        )
        voxel = np.c_[point, np.ones(len(point))] @ to_voxel.T
        index = np.round(voxel[:, :3]).astype(int)
        assert np.abs(voxel[:, :3] - index).max(initial=0) < 1e-3
        number = _group(groups, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber
        assert (values[tuple(index.T)] == 0).all()
        values[tuple(index.T)] = number
    return values


def _group(frame, shared, name):
    """What holds for a frame, said by itself or for all."""
    return getattr(frame if name in frame else shared, name)[0]
