"""Labels from volumes, DICOM objects and pictures, onto the scan's grid."""

import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers.real_data import DATA, real
from helpers.series import write_series
from helpers.structure_set import write_structure_set
from monai.data import MetaTensor

from stipple_monai import DatasetError
from stipple_monai.data.grids import Grid, read_grid
from stipple_monai.ingest import dicom_labels
from stipple_monai.ingest.dicom_labels import label_frame, referenced_series, structure_names
from stipple_monai.ingest.label_files import read_label
from stipple_monai.ingest.series import open_series, read_series
from stipple_monai.results.dicom_seg import series_files, write_dicom_seg

CT3 = DATA / "dicom" / "dcmqi_ct3"
rtstruct = pytest.mark.skipif(
    shutil.which("plastimatch", path=str(Path(dicom_labels.sys.executable).parent)) is None,
    reason="plastimatch is not installed",
)
SHAPE = (12, 10, 6)
BOXES = {"liver": ((2, 3, 1), (5, 7, 3)), "../../Spleen": ((7, 1, 2), (10, 4, 4))}


def boxes():
    array = np.zeros(SHAPE, np.uint8)
    for value, (low, high) in enumerate(BOXES.values(), 1):
        array[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = value
    return array


def write_seg(path, folder, array, affine):
    """A DICOM SEG of the series in a folder, of a liver and a spleen."""
    label = MetaTensor(array[None].astype(np.float32), affine=affine)
    write_dicom_seg(path, label, series_files(folder), organs={1: "liver", 2: "Spleen"})
    return path


@pytest.fixture
def ct(tmp_path):
    """A series, and the scan."""
    write_series(tmp_path / "ct", np.random.default_rng(0).integers(-100, 100, SHAPE))
    series = open_series(tmp_path / "ct")
    return series, Grid(read_series(series)[0], series.affine)


def saved(path, array, affine):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_a_volume_that_is_stored_reversed(ct, tmp_path):
    series, scan = ct
    turn = np.diag([1.0, -1, 1, 1])
    turn[1, 3] = SHAPE[1] - 1
    path = saved(tmp_path / "l.nii.gz", boxes()[:, ::-1], scan.affine @ turn)
    found = read_label(path, scan, series=series)
    np.testing.assert_array_equal(found.array, boxes())
    assert found.by_header
    assert "stored with H reversed" in found.notes[0]


def test_a_header_that_disagrees_is_never_ignored_silently(ct, tmp_path):
    _, scan = ct
    path = saved(tmp_path / "l.nii.gz", boxes(), np.diag([2.0, 3, 4, 1]))
    with pytest.raises(DatasetError, match=r"corners that are .* mm apart .*--ignore-label-header"):
        read_label(path, scan)
    found = read_label(path, scan, ignore_header=True)
    np.testing.assert_array_equal(found.array, boxes())
    assert not found.by_header
    assert "header puts it elsewhere" in found.notes[0]


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (boxes() * 0.5, "whole numbers, got 0.5"),
        (boxes() * 200.0, r"got values from 0 to 400 in .*--map VALUE=LABEL"),
        (-boxes().astype(np.int16), "from 0 to 255, got values from -2"),
        (np.where(boxes(), np.nan, 0), "whole numbers, got nan"),
        (np.stack([boxes()] * 2, -1), r"3D map of values, got shape \(12, 10, 6, 2\)"),
    ],
)
def test_values_that_are_no_labels(ct, tmp_path, array, match):
    _, scan = ct
    with pytest.raises(DatasetError, match=match):
        read_label(saved(tmp_path / "l.nii.gz", array, scan.affine), scan)


def test_values_are_chosen(ct, tmp_path):
    _, scan = ct
    path = saved(tmp_path / "l.nii.gz", boxes().astype(np.int16) * 300, scan.affine)
    found = read_label(path, scan, choose={"600": 7})
    np.testing.assert_array_equal(found.array, 7 * (boxes() == 2))


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_dicom_seg_is_the_label_map_that_it_was_made_of(tmp_path, turned):
    affine = write_series(tmp_path / "ct", np.zeros(SHAPE, int), turned=turned)
    series = open_series(tmp_path / "ct")
    label = MetaTensor(boxes()[None].astype(np.float32), affine=affine)
    organs = {1: "liver", 2: "Spleen"}
    write_dicom_seg(tmp_path / "seg.dcm", label, series_files(tmp_path / "ct"), organs=organs)
    scan = Grid(np.zeros(SHAPE), series.affine)
    found = read_label(tmp_path / "seg.dcm", scan, series=series)
    np.testing.assert_array_equal(found.array, boxes())
    assert found.names == organs
    found = read_label(tmp_path / "seg.dcm", scan, series=series, choose={"spleen": 5})
    np.testing.assert_array_equal(found.array, 5 * (boxes() == 2))
    assert found.names == {5: "Spleen"}
    with pytest.raises(
        DatasetError, match=r"what is in the label, got heart for .*There: liver, Spleen"
    ):
        read_label(tmp_path / "seg.dcm", scan, choose={"Heart": 1})


@pytest.mark.slow
def test_dicom_seg_of_another_series_is_refused(ct, tmp_path):
    affine = write_series(tmp_path / "other", np.zeros(SHAPE, int))
    label = MetaTensor(boxes()[None].astype(np.float32), affine=affine)
    files = series_files(tmp_path / "other")
    write_dicom_seg(tmp_path / "seg.dcm", label, files, organs={1: "a", 2: "b"})
    series, scan = ct
    with pytest.raises(DatasetError, match=f"refers to the series .*, not {series.uid}"):
        read_label(tmp_path / "seg.dcm", scan, series=series)


def test_a_damaged_dicom_seg_is_one_error(ct, tmp_path):
    _, scan = ct
    label = MetaTensor(boxes()[None].astype(np.float32), affine=scan.affine)
    write_dicom_seg(
        tmp_path / "seg.dcm", label, series_files(tmp_path / "ct"), organs={1: "a", 2: "b"}
    )
    whole = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "seg.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"`label` must be .*seg\.dcm"):
        read_label(tmp_path / "seg.dcm", scan)


@pytest.fixture
def tilted(tmp_path):
    """The scan of a tilted gantry and its DICOM SEG, whose frames must be put one by one."""
    write_series(tmp_path / "tilted", np.zeros(SHAPE, int), tilt=0.2)
    series = open_series(tmp_path / "tilted")
    seg = write_seg(tmp_path / "seg.dcm", tmp_path / "tilted", boxes(), series.affine)
    return Grid(np.zeros(SHAPE), series.affine), seg


def test_a_dicom_seg_of_a_tilted_gantry(tilted):
    scan, seg = tilted
    np.testing.assert_array_equal(read_label(seg, scan).array, boxes())
    chosen = read_label(seg, scan, choose={"Spleen": 5}).array
    np.testing.assert_array_equal(chosen, 5 * (boxes() == 2))


def all_of_one_place(data):
    """Frames of both organs, all of the voxel 0 of one slice."""
    pixels = np.zeros(data.pixel_array.shape, np.uint8)
    pixels[:, 0, 0] = 1
    data.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    places = [g.PlanePositionSequence for g in data.PerFrameFunctionalGroupsSequence]
    for groups in data.PerFrameFunctionalGroupsSequence:
        groups.PlanePositionSequence = places[0]


def moved(data):
    place = data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    x, y, z = place.ImagePositionPatient
    place.ImagePositionPatient = [x + 1, y, z]


def fractional(data):
    data.SegmentationType = "FRACTIONAL"


def without_places(data):
    del data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (all_of_one_place, r"one label map, got .*seg\.dcm: segment [12] overlaps another"),
        (moved, r"one label map, got .*seg\.dcm: a frame lies on none of the scan's slices"),
        (fractional, r"one label map, .*: FRACTIONAL cannot be put on a tilted gantry's grid"),
        (without_places, r"one label map, got .*seg\.dcm: .*PlanePositionSequence"),
    ],
)
def test_what_cannot_be_put_on_a_tilted_gantrys_grid(tilted, spoil, match):
    scan, seg = tilted
    data = pydicom.dcmread(seg)
    spoil(data)
    data.save_as(seg)
    with pytest.raises(DatasetError, match=match):
        read_label(seg, scan)


def test_a_structure_set_that_refers_to_no_series_is_told_by_its_frame(ct, tmp_path):
    series, scan = ct
    write_structure_set(tmp_path / "rt.dcm", series, BOXES)
    data = pydicom.dcmread(tmp_path / "rt.dcm")
    frame = data.ReferencedFrameOfReferenceSequence[0]
    del frame.RTReferencedStudySequence
    data.save_as(tmp_path / "rt.dcm")
    assert label_frame(tmp_path / "rt.dcm") == series.frame_uid
    frame.FrameOfReferenceUID = "1.2.3"
    data.save_as(tmp_path / "rt.dcm")
    with pytest.raises(DatasetError, match=f"frame of reference is 1.2.3, not {series.frame_uid}"):
        read_label(tmp_path / "rt.dcm", scan, series=series)
    del data.ReferencedFrameOfReferenceSequence
    data.save_as(tmp_path / "rt.dcm")
    assert label_frame(tmp_path / "rt.dcm") == ""


@pytest.mark.parametrize(
    ("kept", "match"),
    [
        (0, r"must have structures, got .*rt\.dcm without any"),
        (9, r"`label` must be whole, got .*rt\.dcm"),
        (30, r"`label` must be whole, got .*rt\.dcm: its copy may have been cut short"),
    ],
)
def test_a_structure_set_that_was_cut_short(ct, tmp_path, kept, match):
    """Before, within and behind the head of its list of structures; it is never an empty label."""
    series, scan = ct
    write_structure_set(tmp_path / "rt.dcm", series, BOXES)
    whole = (tmp_path / "rt.dcm").read_bytes()
    at = whole.index(b"\x06\x30\x20\x00SQ") + kept
    (tmp_path / "rt.dcm").write_bytes(whole[:at])
    with pytest.raises(DatasetError, match=match):
        read_label(tmp_path / "rt.dcm", scan, series=series)


def test_contours_that_were_cut_short(ct, tmp_path):
    series, scan = ct
    write_structure_set(tmp_path / "rt.dcm", series, BOXES)
    whole = (tmp_path / "rt.dcm").read_bytes()
    (tmp_path / "rt.dcm").write_bytes(whole[:-100])
    with pytest.raises(DatasetError, match=r"got .*rt\.dcm: its copy may have been cut short"):
        read_label(tmp_path / "rt.dcm", scan, series=series)


def test_a_scan_is_no_label(ct):
    series, scan = ct
    with pytest.raises(
        DatasetError, match=r"a DICOM SEG or RTSTRUCT, got a DICOM file of class 1.2"
    ):
        read_label(series.files[0], scan)


def test_packages_that_are_missing_are_named(ct, tmp_path, monkeypatch):
    series, scan = ct
    write_structure_set(tmp_path / "rt.dcm", series, BOXES)
    monkeypatch.setattr(dicom_labels.shutil, "which", lambda *a, **k: None)
    with pytest.raises(ImportError, match=r"needs plastimatch, got .*stipple-monai\[rtstruct\]"):
        read_label(tmp_path / "rt.dcm", scan, series=series)
    seg = write_seg(tmp_path / "seg.dcm", tmp_path / "ct", boxes(), scan.affine)
    monkeypatch.setattr(dicom_labels, "has_highdicom", False)
    with pytest.raises(ImportError, match=r"needs highdicom, got .*seg.*stipple-monai\[dicom\]"):
        read_label(seg, scan, series=series)
    monkeypatch.setattr(dicom_labels, "has_pydicom", False)
    with pytest.raises(ImportError, match=r"needs pydicom, got .*stipple-monai\[dicom\]"):
        read_label(tmp_path / "rt.dcm", scan, series=series)


@rtstruct
@pytest.mark.parametrize("turned", [False, True])
def test_structure_sets_are_rasterized(tmp_path, turned):
    """One structure's name is a path that leads out of the folder; no file goes there."""
    write_series(tmp_path / "deep" / "er" / "ct", np.zeros(SHAPE, int), turned=turned)
    series = open_series(tmp_path / "deep" / "er" / "ct")
    path = tmp_path / "deep" / "er" / "rt.dcm"
    write_structure_set(path, series, BOXES)
    before = sorted(tmp_path.rglob("*"))
    found = read_label(path, Grid(np.zeros(SHAPE), series.affine), series=series)
    np.testing.assert_array_equal(found.array, boxes())
    assert found.names == {1: "liver", 2: "../../Spleen"}
    assert referenced_series(path) == series.uid
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@rtstruct
def test_structures_that_overlap_must_be_chosen(ct, tmp_path):
    series, scan = ct
    body = {"BODY": ((0, 0, 0), (11, 9, 5)), **BOXES}
    write_structure_set(tmp_path / "rt.dcm", series, body)
    assert structure_names(tmp_path / "rt.dcm")[1] == "BODY"
    with pytest.raises(DatasetError, match=r"do not overlap, got .* --map NAME=LABEL"):
        read_label(tmp_path / "rt.dcm", scan, series=series)
    found = read_label(tmp_path / "rt.dcm", scan, series=series, choose={"Liver": 1})
    np.testing.assert_array_equal(found.array, boxes() == 1)


@rtstruct
def test_a_structure_without_contours_is_one_error(ct, tmp_path):
    series, scan = ct
    write_structure_set(tmp_path / "rt.dcm", series, BOXES)
    data = pydicom.dcmread(tmp_path / "rt.dcm")
    data.ROIContourSequence = []
    data.save_as(tmp_path / "rt.dcm")
    with pytest.raises(DatasetError, match=r"RTSTRUCT with closed contours, got .*rt\.dcm"):
        read_label(tmp_path / "rt.dcm", scan, series=series)


def write_pictures(folder, array, *, order=None, scale=255, names="mask_{}.png"):
    folder.mkdir(exist_ok=True)
    for place, k in enumerate(order or range(array.shape[2])):
        picture = np.ascontiguousarray(array[:, :, k].T * scale).astype(np.uint8)
        itk.imwrite(itk.image_from_array(picture), str(folder / names.format(place)))
    return folder


def test_pictures_follow_the_names_of_the_files(ct, tmp_path):
    """The writer's file names run against the positions, as in CHAOS; 10 comes after 9."""
    series, scan = ct
    order = range(SHAPE[2])[::-1]
    folder = write_pictures(tmp_path / "Ground", boxes() > 0, order=order)
    found = read_label(folder, scan, series=series)
    np.testing.assert_array_equal(found.array, boxes() > 0)
    assert not found.by_header
    folder = write_pictures(tmp_path / "Grey", boxes(), order=order, scale=63)
    np.testing.assert_array_equal(read_label(folder, scan, series=series).array, 63 * boxes())
    found = read_label(folder, scan, series=series, choose={"63": 1, "126": 2})
    np.testing.assert_array_equal(found.array, boxes())


def test_ten_comes_after_nine(tmp_path):
    label = np.random.default_rng(0).integers(0, 2, (4, 4, 11)).astype(np.uint8)
    write_series(tmp_path / "ct", np.zeros(label.shape, int))
    for k, path in enumerate(sorted((tmp_path / "ct").iterdir())):
        path.rename(path.with_name(f"i{k}.dcm"))
    series = open_series(tmp_path / "ct")
    folder = write_pictures(tmp_path / "png", label, order=range(11)[::-1])
    found = read_label(folder, Grid(np.zeros(label.shape), series.affine), series=series)
    np.testing.assert_array_equal(found.array, label)


def test_pictures_that_do_not_fit(ct, tmp_path):
    series, scan = ct
    folder = write_pictures(tmp_path / "a", boxes()[..., 1:])
    with pytest.raises(DatasetError, match="a picture for each of 6 slices, got 5 in"):
        read_label(folder, scan, series=series)
    folder = write_pictures(tmp_path / "b", boxes()[1:])
    with pytest.raises(DatasetError, match="8 bits and 12 × 10 pixels, got uint8 and shape"):
        read_label(folder, scan, series=series)
    (folder / "mask_0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"whole pictures, got .*mask_0\.png"):
        read_label(folder, scan, series=series)
    with pytest.raises(DatasetError, match="must belong to a DICOM series"):
        read_label(folder, scan)


def test_a_label_that_is_not_there(ct, tmp_path):
    with pytest.raises(DatasetError, match="a file that exists, got"):
        read_label(tmp_path / "none.nii.gz", ct[1])


@real("dicom/dcmqi_ct3")
def test_dcmqi_reads_the_same():
    """The DICOM SEG and the NRRD that dcmqi made it of, which run against each other along z."""
    series = open_series(CT3 / "ct-3slice")
    scan = Grid(read_series(series)[0], series.affine)
    nrrd = read_label(CT3 / "liver_seg.nrrd", scan)
    seg = read_label(CT3 / "liver.dcm", scan, series=series)
    assert seg.array.sum() == 107098
    np.testing.assert_array_equal(seg.array, nrrd.array)
    assert seg.names == {1: "Liver"}
    with pytest.raises(DatasetError, match=r"segments make one label map, got .* overlap"):
        read_label(CT3 / "partial_overlaps.dcm", scan, series=series)
    chosen = read_label(CT3 / "partial_overlaps.dcm", scan, series=series, choose={"Green": 3})
    assert (chosen.array == 3).sum() == 9602


@real("dicom/dcmqi_ct3")
@pytest.mark.parametrize("case", ["23x38x3", "24x38x3"])
def test_dcmqi_reads_the_same_with_odd_sizes(case):
    series = open_series(CT3 / case / "image")
    scan = Grid(read_series(series)[0], series.affine)
    seg = read_label(CT3 / case / "seg" / "label.seg", scan, series=series)
    label = read_grid(CT3 / case / "nrrd" / "label.nrrd").array
    assert seg.array.sum() == (label > 0).sum() > 0
    np.testing.assert_array_equal(
        seg.array, read_label(CT3 / case / "nrrd" / "label.nrrd", scan).array
    )


def test_chosen_values_are_checked_and_rounded_like_all(ct, tmp_path):
    _, scan = ct
    near = boxes().astype(np.float64)
    near[near == 2] = 1.9999999
    found = read_label(saved(tmp_path / "near.nii.gz", near, scan.affine), scan, choose={"2": 1})
    np.testing.assert_array_equal(found.array, boxes() == 2)
    near[near == 1] = 0.75
    with pytest.raises(DatasetError, match=r"whole numbers, got 0.75 and \d+ other"):
        read_label(saved(tmp_path / "half.nii.gz", near, scan.affine), scan, choose={"2": 1})


def test_chosen_values_that_are_absent_are_told(ct, tmp_path):
    _, scan = ct
    path = saved(tmp_path / "l.nii.gz", boxes().astype(np.uint8), scan.affine)
    found = read_label(path, scan, choose={"1": 1, "7": 2, "Liver": 3})
    assert found.notes == ["Chosen, but not in this label: 7, Liver."]
