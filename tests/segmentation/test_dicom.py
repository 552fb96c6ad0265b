"""Segmenting DICOM series: the voxels and the grid are those that ingest has."""

import json

import nibabel as nib
import numpy as np
import pytest
from helpers.series import voxels_of_seg, write_series
from helpers.threshold_model import write_model

from stipple_monai import DatasetError
from stipple_monai.ingest import ingest, open_series, read_series
from stipple_monai.segmentation import segment
from stipple_monai.transforms import LoadScand

pytestmark = pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere")
SHAPE = (24, 20, 8)


def body():
    hu = np.random.default_rng(0).integers(-108, -92, SHAPE)
    hu[6:15, 4:12, 2:6] += 200
    return hu


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def segmented(series, out, model):
    segment([series], out, **model)
    return np.asarray(nib.load(out / f"{series.name}_seg.nii.gz").dataobj)


@pytest.mark.slow
def test_every_slice_has_its_own_slope_and_intercept(tmp_path, model):
    hu = body()
    hu[..., 0] = abs(hu[..., 0])
    write_series(tmp_path / "ct", hu, rescale=[(1, 0)] + [(1, -1024)] * 7)
    np.testing.assert_array_equal(segmented(tmp_path / "ct", tmp_path / "out", model), hu > 0)
    datalist = ingest(tmp_path / "ct", tmp_path / "data", progress=False)
    scan = datalist.parent / "imagesTs" / "ct.nii.gz"
    np.testing.assert_array_equal(np.asarray(nib.load(scan).dataobj), hu)


def test_training_reads_the_voxels_of_ingest(tmp_path):
    values = np.random.default_rng(0).random(SHAPE) * 3 + 1
    values[..., 0] = np.rint(values[..., 0])
    write_series(tmp_path / "mr", values, rescale=[(1, 0)] + [(0.002, 0)] * 7)
    expected, _ = read_series(open_series(tmp_path / "mr"))
    loaded = LoadScand("image")({"image": str(tmp_path / "mr")})["image"]
    np.testing.assert_allclose(loaded.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(expected, values, atol=0.002)
    np.testing.assert_allclose(loaded.affine, open_series(tmp_path / "mr").affine, atol=1e-5)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path, model):
    write_series(tmp_path / "ct", body()[:, :, 3:4])
    found = segmented(tmp_path / "ct", tmp_path / "out", model)
    record = json.loads((tmp_path / "out" / "ct_volumes.json").read_text())
    assert record["organs"][0]["volume_ml"] == pytest.approx(found.sum() * 2 * 3 * 9 / 1000)
    assert found.sum() == 9 * 8


def test_a_single_slice_without_thickness_is_refused(tmp_path):
    def bare(image, k):
        del image.SliceThickness

    write_series(tmp_path / "ct", body()[:, :, 3:4], edit=bare)
    with pytest.raises(DatasetError, match="single slice must say how thick it is"):
        open_series(tmp_path / "ct")


def test_a_single_slice_may_have_a_spacing_instead(tmp_path):
    def spaced(image, k):
        del image.SliceThickness
        image.SpacingBetweenSlices = 5.0

    write_series(tmp_path / "ct", body()[:, :, 3:4], edit=spaced)
    assert open_series(tmp_path / "ct").affine[2, 2] == 5


@pytest.mark.slow
@pytest.mark.parametrize(("tilt", "turned"), [(0.2, False), (-0.3, True)])
@pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")
def test_a_tilted_gantry_is_read_as_ingest_reads_it(tmp_path, model, tilt, turned):
    """Label map, volume, DICOM SEG, and the SEG taken as a label again: all on the sheared grid."""
    write_series(tmp_path / "ct", body(), tilt=tilt, turned=turned)
    segment([tmp_path / "ct"], tmp_path / "out", dicom_seg=True, **model)
    found = nib.load(tmp_path / "out" / "ct_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), body() > 0)
    datalist = ingest(tmp_path / "ct", tmp_path / "data", progress=False)
    scan = nib.load(datalist.parent / "imagesTs" / "ct.nii.gz")
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)
    record = json.loads((tmp_path / "out" / "ct_volumes.json").read_text())
    # the shear does not change a voxel's volume
    ml = (body() > 0).sum() * 2 * 3 * 4 / 1000
    assert record["organs"][0]["volume_ml"] == pytest.approx(ml, rel=1e-4)
    seg = tmp_path / "out" / "ct_seg.dcm"
    np.testing.assert_array_equal(voxels_of_seg(seg, scan.affine, SHAPE), body() > 0)
    pairs = ingest(tmp_path / "ct", tmp_path / "pairs", labels=seg, progress=False).parent
    label = nib.load(pairs / "labelsTr" / "ct.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), body() > 0)
    np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("SliceThickness", ("4.0", "4")),
        ("SliceThickness", (4.0, 3.9)),
        ("SequenceName", ("*fl2d1", "*fl2d2")),
        ("SeriesDate", ("20200101", "20200102")),
        ("AcquisitionNumber", (1, 2)),
        ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"])),
    ],
)
def test_one_series_is_one_whatever_varies_in_it(tmp_path, model, keyword, values):
    write_series(
        tmp_path / "ct", body(), edit=lambda image, k: setattr(image, keyword, values[k % 2])
    )
    found = segmented(tmp_path / "ct", tmp_path / "out", model)
    np.testing.assert_array_equal(found, body() > 0)


@pytest.mark.parametrize(
    ("keyword", "what"),
    [
        ("PatientID", "patient"),
        ("StudyInstanceUID", "study"),
        ("FrameOfReferenceUID", "frame"),
    ],
)
def test_a_slice_of_something_else_is_refused_by_all(tmp_path, model, keyword, what):
    def foreign(image, k):
        if k == 5:
            setattr(image, keyword, "1.2.3")

    write_series(tmp_path / "ct", body(), edit=foreign)
    match = f"one patient, study and frame of reference, got another {what} in .*dcm"
    with pytest.raises(DatasetError, match=match):
        segment([tmp_path / "ct"], tmp_path / "out", **model)
    with pytest.raises(DatasetError, match=match):
        ingest(tmp_path / "ct", tmp_path / "data", progress=False)


def test_patients_without_id_are_told_apart_by_name(tmp_path):
    def nameless(image, k):
        image.PatientID = ""
        image.PatientName = "Doe^Jane" if k == 2 else "Doe^Jo"

    write_series(tmp_path / "ct", body(), edit=nameless)
    with pytest.raises(DatasetError, match="got another patient"):
        open_series(tmp_path / "ct")


@pytest.mark.parametrize(
    ("charset", "patient"),
    [("ISO_IR 100", "Fall-Ä7"), ("ISO_IR 192", "患者7"), ("GB18030", "患者7")],
)
def test_a_patient_id_of_any_character_set(tmp_path, charset, patient):
    def named(image, k):
        image.SpecificCharacterSet, image.PatientID = charset, patient

    write_series(tmp_path / "ct", body(), edit=named)
    assert ingest(tmp_path / "ct", tmp_path / "data", progress=False).is_file()
    (record,) = json.loads((tmp_path / "data" / "qa.json").read_text())["cases"]
    assert len(record["image"]["patient"]) == 12
