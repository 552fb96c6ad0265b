"""An RTSTRUCT of a DICOM series, written by the tests that need one."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid


def entry(**values):
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def write_structure_set(path, series, structures):
    """Write boxes as closed planar contours along the edges of their voxels.

    Args:
        path: where to.
        series: of `open_series`.
        structures: by name, first and last voxel of W, H and D.
    """
    images = [pydicom.dcmread(file) for file in series.files]
    first = images[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = (
        RTStructureSetStorage,
        ExplicitVRLittleEndian,
    )
    meta.MediaStorageSOPInstanceUID = generate_uid()
    out = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    out.SOPClassUID, out.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    out.Modality, out.StructureSetLabel = "RTSTRUCT", "test"
    out.PatientID, out.PatientName = first.PatientID, first.PatientName
    out.StudyInstanceUID, out.SeriesInstanceUID = first.StudyInstanceUID, generate_uid()
    pictured = [
        entry(ReferencedSOPClassUID=i.SOPClassUID, ReferencedSOPInstanceUID=i.SOPInstanceUID)
        for i in images
    ]
    of = entry(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=pictured)
    study = entry(ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1")
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [of]
    frame = entry(FrameOfReferenceUID=first.FrameOfReferenceUID)
    frame.RTReferencedStudySequence = [study]
    out.ReferencedFrameOfReferenceSequence = [frame]
    out.StructureSetROISequence, out.ROIContourSequence = [], []
    to_world = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine
    for number, (name, (low, high)) in enumerate(structures.items(), 1):
        roi = entry(ROINumber=number, ROIName=name, ROIGenerationAlgorithm="")
        roi.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        out.StructureSetROISequence.append(roi)
        contours = []
        (w0, h0, d0), (w1, h1, d1) = np.subtract(low, 0.5), np.add(high, 0.5)
        for k in range(int(d0 + 0.5), int(d1 + 0.5)):
            corners = [[w0, h0, k, 1], [w1, h0, k, 1], [w1, h1, k, 1], [w0, h1, k, 1]]
            points = (np.array(corners) @ to_world.T)[:, :3]
            contour = entry(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=4)
            contour.ContourData = [f"{x:.4f}" for x in points.ravel()]
            contour.ContourImageSequence = [pictured[k]]
            contours.append(contour)
        out.ROIContourSequence.append(entry(ReferencedROINumber=number, ContourSequence=contours))
    out.save_as(path, enforce_file_format=True)
