"""DICOM series: the order of slices, the faults that files have, and their voxels."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.real_data import DATA, real
from helpers.series import write_series
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from stipple_monai import DatasetError
from stipple_monai.ingest.dicom_header import image_files, is_image_class, sop_class
from stipple_monai.ingest.series import open_series, read_series

DICOM = DATA / "dicom"
SHAPE = (7, 5, 6)


def scan_of(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-1000, 1500, shape)


def files_of(folder):
    return sorted(folder.iterdir())


@pytest.mark.parametrize("turned", [False, True])
def test_slices_come_by_position_whatever_files_are_called(tmp_path, turned):
    hu = scan_of()
    affine = write_series(tmp_path / "ct", hu, turned=turned)
    series = open_series(tmp_path / "ct")
    voxels, notes = read_series(series)
    assert [Path(f).name for f in series.files] == [f"{k:03d}.dcm" for k in range(6, 0, -1)]
    np.testing.assert_array_equal(voxels, hu)
    np.testing.assert_allclose(series.affine, affine, atol=1e-5)
    assert (voxels.dtype, notes, series.tilt_degrees) == (np.int16, [], 0)
    # the writer claims a thickness of 9 mm
    assert series.notes == ("SliceThickness is 9 mm, slices are 4 mm apart.",)


def test_a_tilted_gantry_is_a_shear(tmp_path):
    hu = scan_of()
    affine = write_series(tmp_path / "ct", hu, tilt=0.25)
    series = open_series(tmp_path / "ct")
    affine[:3, 2] += affine[:3, 0] / 2.0 * 0.25 * 4.0
    np.testing.assert_allclose(series.affine, affine, atol=1e-5)
    assert series.tilt_degrees == pytest.approx(np.degrees(np.arctan(0.25)))
    np.testing.assert_array_equal(read_series(series)[0], hu)
    assert "tilted by 14°" in series.notes[1]


def test_every_slice_has_its_own_slope_and_intercept(tmp_path):
    hu = scan_of() // 4 * 4
    scales = [(4, -1000), (2, -1000), (1, 0), (0.5, 20), (4, -1024), (1, -1024)]
    write_series(tmp_path / "ct", hu, rescale=scales, signed=True)
    series = open_series(tmp_path / "ct")
    np.testing.assert_array_equal(read_series(series)[0], hu)
    assert "each has its own" in series.notes[-1]


def test_slopes_that_are_no_whole_numbers_give_fractions(tmp_path):
    hu = scan_of()
    write_series(tmp_path / "ct", hu, rescale=[(0.3, -1024.5)] * 6)
    voxels, _ = read_series(open_series(tmp_path / "ct"))
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels, hu, atol=0.16)


@pytest.mark.parametrize("written", [-2000, 63536])
def test_padding_becomes_air(tmp_path, written):
    """-2000 is written as 63536 by some, whose data set says that its values are signed."""
    hu = scan_of()
    outside = np.zeros(SHAPE, bool)
    outside[:2] = True

    def pad(image, k):
        pixels = np.frombuffer(image.PixelData, "<i2").reshape(SHAPE[1], SHAPE[0]).copy()
        pixels[outside[:, :, k].T] = -2000
        image.PixelData = pixels.tobytes()
        image.add_new("PixelPaddingValue", "US" if written > 0 else "SS", written)

    write_series(tmp_path / "ct", hu, signed=True, edit=pad, rescale=[(1, -1024)] * 6)
    voxels, notes = read_series(open_series(tmp_path / "ct"))
    np.testing.assert_array_equal(voxels[2:], hu[2:])
    assert (voxels[:2] == hu[2:].min()).all()
    assert f"28.6% of the voxels are padding and were set to {hu[2:].min()}" in notes[0]


def test_a_range_of_padding_is_padding(tmp_path):
    hu = np.full(SHAPE, 40)
    hu[0], hu[1], hu[2] = -1024, -1020, -1000

    def limit(image, k):
        image.add_new("PixelPaddingValue", "US", 0)
        image.add_new("PixelPaddingRangeLimit", "US", 4)

    write_series(tmp_path / "ct", hu, edit=limit)
    voxels, _ = read_series(open_series(tmp_path / "ct"))
    assert (voxels[:3] == -1000).all()


def test_ct_without_rescale_is_told(tmp_path):
    def bare(image, k):
        del image.RescaleSlope, image.RescaleIntercept

    write_series(tmp_path / "ct", scan_of(), edit=bare)
    assert "may not be in HU" in open_series(tmp_path / "ct").notes[-1]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("kept", [20, -2])
def test_pixels_that_are_cut_short_are_refused(tmp_path, syntax, kept):
    """GDCM would fill the rest with what lies in memory."""

    def written(image, k):
        image.file_meta.TransferSyntaxUID = syntax
        icon = pydicom.Dataset()
        icon.Rows = icon.Columns = 2
        icon.PixelData = b"\1" * 4
        icon["PixelData"].VR = "OB"
        image.IconImageSequence = [icon]

    write_series(tmp_path / "ct", scan_of(), edit=written)
    np.testing.assert_array_equal(read_series(open_series(tmp_path / "ct"))[0], scan_of())
    image = pydicom.dcmread(tmp_path / "ct" / "003.dcm")
    image.PixelData = image.PixelData[:kept]
    image.save_as(tmp_path / "ct" / "003.dcm")
    with pytest.raises(DatasetError, match=r"must be whole and readable, got .*003\.dcm"):
        read_series(open_series(tmp_path / "ct"))


def test_one_slice_has_its_thickness(tmp_path):
    affine = write_series(tmp_path / "ct", scan_of()[:, :, :1])
    series = open_series(tmp_path / "ct")
    np.testing.assert_allclose(series.affine[:3, 2], affine[:3, 2] / 4 * 9)
    assert "One slice" in series.notes[0]


def gap(files):
    files[2].unlink()


def doubled(files):
    again = pydicom.dcmread(files[3])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    again.save_as(files[3].with_name("again.dcm"))


def change(number, **entries):
    def spoil(files):
        image = pydicom.dcmread(files[number])
        for keyword, value in entries.items():
            if value is None:
                delattr(image, keyword)
            else:
                setattr(image, keyword, value)
        image.save_as(files[number])

    return spoil


def cut_header(files):
    files[1].write_bytes(files[1].read_bytes()[:400])


def no_bytes(files):
    files[1].write_bytes(b"")


def huge_slope(files):
    change(1, RescaleSlope="1e39")(files)


def broken_stream(files):
    image = pydicom.dcmread(files[1])
    image.PixelData = encapsulate([b"\1\0\0\0" + b"\0" * 8])
    image["PixelData"].is_undefined_length, image["PixelData"].VR = True, "OB"
    image.file_meta.TransferSyntaxUID = RLELossless
    image.save_as(files[1])


def text(files):
    files[1].write_text("not DICOM", encoding="utf-8")


def drifting(files):
    image = pydicom.dcmread(files[2])
    x, y, z = image.ImagePositionPatient
    image.ImagePositionPatient = [x + 3, y, z]
    image.save_as(files[2])


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (gap, "4 mm apart along their normal, got 8 mm between .* missing"),
        (doubled, r"places of their own, got .*004\.dcm|again\.dcm .* at the same"),
        (drifting, "one line at even steps, got one that is 3 mm off"),
        (
            change(2, SeriesInstanceUID=generate_uid()),
            r"one DICOM series, got 2 .* each to a folder",
        ),
        (change(2, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "direction .* the localizer"),
        (change(2, PixelSpacing=[1.5, 2.0]), "got spacing_mm .* leave out"),
        (change(2, NumberOfFrames=3), "one frame, got the multi-frame file .* dcm2niix"),
        (change(2, PhotometricInterpretation="MONOCHROME1"), "grey, MONOCHROME2, got MONOCHROME1"),
        (change(2, ImagePositionPatient=None), "say where they lie"),
        (change(2, ImagePositionPatient=["nan", 0, 0]), "say where they lie"),
        (cut_header, "whole and readable, got .*002"),
        (no_bytes, "whole and readable, got .*002"),
        (text, "whole and readable, got .*002"),
    ],
)
def test_faults_are_one_clear_error(tmp_path, spoil, match):
    write_series(tmp_path / "ct", scan_of())
    spoil(files_of(tmp_path / "ct"))
    with pytest.raises(DatasetError, match=match):
        open_series(tmp_path / "ct")


def test_pixels_cut_short_are_one_clear_error(tmp_path):
    write_series(tmp_path / "ct", scan_of())
    file = files_of(tmp_path / "ct")[1]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"whole and readable, got .*002"):
        read_series(open_series(tmp_path / "ct"))


@pytest.mark.parametrize("spoil", [huge_slope, broken_stream])
def test_pixels_that_are_no_numbers_are_one_clear_error(tmp_path, spoil):
    write_series(tmp_path / "ct", scan_of())
    spoil(files_of(tmp_path / "ct"))
    with pytest.raises(DatasetError, match=r"whole and readable, got .*002"):
        read_series(open_series(tmp_path / "ct"))


def test_a_thickness_that_is_no_number_is_none(tmp_path):
    def worded(image, k):
        image.add_new("SliceThickness", "LO", "thin")

    write_series(tmp_path / "ct", scan_of(), edit=worded)
    series = open_series(tmp_path / "ct")
    assert series.slices[0].thickness_mm is None
    assert not any("SliceThickness" in note for note in series.notes)


def test_a_file_that_may_not_be_read_is_one_clear_error(tmp_path, monkeypatch):
    write_series(tmp_path / "ct", scan_of())
    monkeypatch.setattr("os.access", lambda path, mode: "003" not in str(path))
    with pytest.raises(DatasetError, match=r"readable, got .*003.* permissions"):
        open_series(tmp_path / "ct")


def test_no_series_is_one_clear_error(tmp_path):
    with pytest.raises(DatasetError, match=r"got 0 in .* give the folder of its files"):
        open_series(tmp_path)


def test_what_is_no_image_is_left_out(tmp_path):
    write_series(tmp_path / "ct", scan_of())
    folder = tmp_path / "ct"
    report = pydicom.dcmread(files_of(folder)[0])
    report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.save_as(folder / "report.dcm")
    for name in ("notes.txt", "LICENSE", ".hidden.dcm", "DICOMDIR"):
        (folder / name).write_text("x", encoding="utf-8")
    assert len(image_files(folder)) == SHAPE[2]
    assert sop_class(files_of(folder)[1]) == CTImageStorage
    assert sop_class(folder / "LICENSE") is None


def test_old_files_without_preamble_are_read(tmp_path):
    hu = scan_of()
    write_series(tmp_path / "ct", hu)
    for path in files_of(tmp_path / "ct"):
        image = pydicom.dcmread(path)
        del image.file_meta
        image.preamble = None
        image.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        path.rename(path.with_suffix(""))
    np.testing.assert_array_equal(read_series(open_series(tmp_path / "ct"))[0], hu)


def test_classes_of_images():
    kinds = {"CT": "2", "enhanced": "2.1", "RT image": "481.1", "dose": "481.2", "SEG": "66.4"}
    images = {k for k, uid in kinds.items() if is_image_class(f"1.2.840.10008.5.1.4.1.1.{uid}")}
    assert images == {"CT", "enhanced", "RT image"}


@real("dicom/chaos_ct")
def test_the_series_of_chaos():
    series = open_series(DICOM / "chaos_ct" / "DICOM_anon")
    assert series.shape == (512, 512, 78)
    # the order of names is the reverse of that of positions
    assert list(series.files) == sorted(series.files, reverse=True)
    assert np.linalg.norm(series.affine[:3, 2]) == pytest.approx(2.0)
    assert series.notes == ("SliceThickness is 3.2 mm, slices are 2 mm apart.",)
    voxels, _ = read_series(series)
    assert (voxels.min(), voxels.dtype) == (-1000, np.int16)


@real("dicom/dcmqi_ct3")
def test_a_multi_frame_file_is_refused():
    with pytest.raises(DatasetError, match="one frame"):
        open_series(DICOM / "dcmqi_ct3" / "23x38x3" / "multiframe")
