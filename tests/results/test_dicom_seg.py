"""DICOM series that are read and refused, and segmentations that go back to DICOM."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from helpers.series import voxels_of_seg, write_series
from ignite.engine import Engine
from monai.data import MetaTensor

from stipple_monai import DatasetError
from stipple_monai.data import write_datalist
from stipple_monai.results import dicom_seg, rename_organs
from stipple_monai.results.dicom_seg import DicomSegWriter, series_files, write_dicom_seg
from stipple_monai.results.volumes import ScanNames, organ_records, read_records, write_record

SHAPE = (12, 10, 6)


def scan_of(seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE)


def labels(*organs, seed=1):
    values = np.random.default_rng(seed).integers(0, 4, SHAPE)
    return np.where(np.isin(values, organs), values, 0).astype(np.uint8)


def label_map(values, affine):
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine))


def test_files_come_in_the_order_of_their_positions(tmp_path):
    write_series(tmp_path / "ct", scan_of())
    files = [Path(file).name for file in series_files(tmp_path / "ct")]
    assert files == [f"{k:03d}.dcm" for k in (6, 5, 4, 3, 2, 1)]


@pytest.mark.parametrize("turned", [False, True])
def test_a_segmentation_opens_with_patient_frame_and_voxels(tmp_path, turned):
    affine = write_series(tmp_path / "ct", scan_of(), turned=turned)
    values = labels(1, 3)
    values[:, :, 2] = 0  # frames without an organ are left out
    path = tmp_path / "seg.dcm"
    files = series_files(tmp_path / "ct")
    organs = {1: "pancreas", 2: "right_kidney", 3: "something odd"}
    write_dicom_seg(path, label_map(values, affine), files, organs=organs)
    seg, source = pydicom.dcmread(path), pydicom.dcmread(files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert (seg.Modality, seg.SegmentationType, seg.PatientBirthDate) == ("SEG", "BINARY", "")
    np.testing.assert_array_equal(voxels_of_seg(path, affine, SHAPE), values)
    named = [(s.SegmentNumber, s.SegmentLabel) for s in seg.SegmentSequence]
    assert named == list(organs.items())
    kinds = [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in seg.SegmentSequence]
    assert kinds == ["Pancreas", "Kidney", "Organ"]
    referred = seg.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(referred.ReferencedInstanceSequence) == SHAPE[2]


def test_an_empty_segmentation_is_one(tmp_path):
    affine = write_series(tmp_path / "ct", scan_of())
    path = tmp_path / "seg.dcm"
    empty = label_map(np.zeros(SHAPE, np.uint8), affine)
    write_dicom_seg(path, empty, series_files(tmp_path / "ct"), organs={1: "liver"})
    assert not voxels_of_seg(path, affine, SHAPE).any()


def test_no_series_and_two_are_refused(tmp_path):
    write_series(tmp_path / "ct", scan_of())
    write_series(tmp_path / "other", scan_of(1))
    with pytest.raises(DatasetError, match=r"one DICOM series, got 0 in .*give the folder of its"):
        series_files(tmp_path)
    for file in (tmp_path / "other").iterdir():
        file.rename(tmp_path / "ct" / f"other_{file.name}")
    with pytest.raises(DatasetError, match=r"one DICOM series, got 2 in .*move each to a folder"):
        series_files(tmp_path / "ct")


@pytest.mark.parametrize("missing", [2, 3, 5])
def test_a_missing_slice_is_noticed(tmp_path, missing):
    write_series(tmp_path / "ct", np.zeros((4, 4, 9), int))
    (tmp_path / "ct" / f"{missing:03d}.dcm").unlink()
    with pytest.raises(DatasetError, match=r"be 4 mm apart along their normal, got 8 mm between"):
        series_files(tmp_path / "ct")


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"uneven_mm": 4.0}, "slices are missing"),
        ({"uneven_mm": -4.0}, "at the same"),
    ],
)
def test_uneven_slices_are_refused(tmp_path, how, match):
    write_series(tmp_path / "ct", scan_of(), **how)
    with pytest.raises(DatasetError, match=match):
        series_files(tmp_path / "ct")


def test_other_objects_beside_the_series_are_left_out(tmp_path):
    affine = write_series(tmp_path / "ct", scan_of())
    files = series_files(tmp_path / "ct")
    write_dicom_seg(
        tmp_path / "ct" / "seg.dcm", label_map(labels(1), affine), files, organs={1: "x"}
    )
    assert series_files(tmp_path / "ct") == files


def test_rounded_positions_and_single_slices_are_fine(tmp_path):
    write_series(tmp_path / "ct", scan_of(), uneven_mm=0.05)
    assert len(series_files(tmp_path / "ct")) == SHAPE[2]
    write_series(tmp_path / "one", scan_of()[:, :, :1])
    assert len(series_files(tmp_path / "one")) == 1


def test_a_series_without_frame_of_reference_is_refused(tmp_path):
    affine = write_series(tmp_path / "ct", scan_of())
    for file in (tmp_path / "ct").iterdir():
        image = pydicom.dcmread(file)
        del image.FrameOfReferenceUID
        image.save_as(file)
    path = tmp_path / "seg.dcm"
    files = series_files(tmp_path / "ct")
    with pytest.raises(DatasetError, match=r"DICOM SEG needs a whole series, got .*ct: .*Frame"):
        write_dicom_seg(path, label_map(labels(1), affine), files, organs={1: "liver"})
    assert {p.name for p in tmp_path.iterdir()} == {"ct"}


def test_the_handler_writes_series_only(tmp_path):
    affine = write_series(tmp_path / "ct", scan_of())
    names = ScanNames([{"image": str(tmp_path / name)} for name in ("ct", "b.nii.gz")])
    write_datalist(tmp_path / "d.json", {"test": []}, metadata={"labels": {"1": "liver"}})
    engine = Engine(lambda engine, batch: batch)
    out = tmp_path / "out"
    DicomSegWriter(out, [1, 2], names=names, datalist=tmp_path / "d.json").attach(engine)
    items = [
        {
            "pred": label_map(labels(1, 2), affine),
            "image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": str(tmp_path / name)}),
        }
        for name in ("ct", "b.nii.gz")
    ]
    engine.run([[item] for item in items])
    assert [p.name for p in out.iterdir()] == ["ct_seg.dcm"]
    segments = pydicom.dcmread(out / "ct_seg.dcm").SegmentSequence
    assert [s.SegmentLabel for s in segments] == ["liver", "organ 2"]


def test_organs_of_results_get_other_names(tmp_path):
    """In the records and in the segments beside them, whose voxels stay."""
    affine = write_series(tmp_path / "ct", scan_of())
    values = labels(1, 3)
    path = tmp_path / "out" / "a_seg.dcm"
    path.parent.mkdir()
    organs = {1: "organ 1", 3: "liver"}
    write_dicom_seg(path, label_map(values, affine), series_files(tmp_path / "ct"), organs=organs)
    found = organ_records(label_map(values, affine), [1, 3], organs)
    write_record(path.parent, "a", "ct", ["ct"], found)
    before = path.read_bytes()
    rename_organs(path.parent, {3: "liver", 5: "heart"})
    assert path.read_bytes() == before
    rename_organs(path.parent, {1: "spleen"})
    named = {row["organ"]: row["name"] for row in read_records(path.parent)["a"]["organs"]}
    assert named == {1: "spleen", 3: "liver"}
    seg = pydicom.dcmread(path)
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["spleen", "liver"]
    kinds = [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in seg.SegmentSequence]
    assert kinds == ["Spleen", "Liver"]
    expected = np.searchsorted([0, 1, 3], values)
    np.testing.assert_array_equal(voxels_of_seg(path, affine, SHAPE), expected)


def test_a_package_that_is_not_installed_has_no_version(tmp_path, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(dicom_seg, "version", absent)
    affine = write_series(tmp_path / "ct", scan_of())
    files = series_files(tmp_path / "ct")
    path = tmp_path / "seg.dcm"
    write_dicom_seg(path, label_map(labels(1), affine), files, organs={1: "liver"})
    assert pydicom.dcmread(path).SoftwareVersions == "not installed"
