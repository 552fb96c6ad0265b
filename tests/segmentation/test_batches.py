"""One bad scan stops no other, and what can be found before the network runs is."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers.series import voxels_of_seg, write_series
from helpers.threshold_model import write_model, write_scan

from stipple_monai import DatasetError
from stipple_monai.segmentation import run as module
from stipple_monai.segmentation import segment

pytestmark = [
    pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom"),
]
AFFINE = np.diag([-3.0, 2.0, 5.0, 1.0])
SHAPE = (12, 10, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def organ():
    mask = np.zeros(SHAPE, bool)
    mask[3:8, 2:7, 1:5] = True
    return mask


def hu():
    return np.where(organ(), 100, -100)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_scan_that_cannot_be_used_stops_no_other(tmp_path, model, which):
    made = [tmp_path / "in" / f"{n}.nii.gz" for n in "abc"]
    made[0].parent.mkdir()
    for path in made:
        write_scan(path, organ(), AFFINE)
    holes = np.zeros(SHAPE, np.float32)
    holes[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(holes, AFFINE), made[which])
    with pytest.raises(DatasetError, match=rf"`image` must be finite.*{'abc'[which]}\.nii\.gz"):
        segment(made, tmp_path / "out", **model)
    done = {p.name for p in (tmp_path / "out").glob("*_seg.nii.gz")}
    assert done == {f"{n}_seg.nii.gz" for n in "abc"} - {f"{'abc'[which]}_seg.nii.gz"}
    assert (tmp_path / "out" / "volumes.csv").is_file()
    # mended, the same command does the rest
    write_scan(made[which], organ(), AFFINE)
    segment(made, tmp_path / "out", **model)
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 3


@pytest.mark.slow
def test_a_header_that_cannot_be_used_stops_no_other(tmp_path, model):
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in/a.nii.gz", organ(), AFFINE)
    write_scan(tmp_path / "in/b.nii.gz", organ(), AFFINE, units=("micron", "unknown"))
    with pytest.raises(DatasetError, match=r"in mm, got micron in .*b\.nii\.gz.* others are in"):
        segment([tmp_path / "in"], tmp_path / "out", **model)
    assert (tmp_path / "out/a_seg.nii.gz").is_file()


def test_a_name_that_cannot_be_used_stops_no_other(tmp_path, model):
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in/a.nii.gz", organ(), AFFINE)
    write_scan(tmp_path / "in/b\nc.nii.gz", organ(), AFFINE)
    with pytest.raises(DatasetError, match=r"`name` must be a name of .*got 'b\\nc'.* others are"):
        segment([tmp_path / "in"], tmp_path / "out", **model)
    assert (tmp_path / "out/a_seg.nii.gz").is_file()


FAULTS = {
    "no thickness": lambda image, k: delattr(image, "SliceThickness"),
    "empty thickness": lambda image, k: setattr(image, "SliceThickness", None),
    "no instance number": lambda image, k: delattr(image, "InstanceNumber"),
    "equal instance numbers": lambda image, k: setattr(image, "InstanceNumber", 1),
    "no series number": lambda image, k: delattr(image, "SeriesNumber"),
    "unknown birth date": lambda image, k: setattr(image, "PatientBirthDate", "unknown"),
    "odd sex": lambda image, k: setattr(image, "PatientSex", "X?"),
    "odd study date": lambda image, k: setattr(image, "StudyDate", "2020-01-01"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
def test_headers_with_faults_have_their_segmentation(tmp_path, model, fault):
    affine = write_series(tmp_path / "ct", hu(), edit=FAULTS[fault])
    segment([tmp_path / "ct"], tmp_path / "out", dicom_seg=True, **model)
    found = voxels_of_seg(tmp_path / "out/ct_seg.dcm", affine, SHAPE)
    np.testing.assert_array_equal(found, organ())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "王^小明"),
        ("GB18030", "王^小明"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_character_sets(tmp_path, model, charset, name):
    def named(image, k):
        image.SpecificCharacterSet, image.PatientName = charset, name

    affine = write_series(tmp_path / "ct", hu(), edit=named)
    segment([tmp_path / "ct"], tmp_path / "out", dicom_seg=True, labels={1: "Drüse"}, **model)
    seg = pydicom.dcmread(tmp_path / "out/ct_seg.dcm")
    assert str(seg.PatientName) == name
    assert seg.SegmentSequence[0].SegmentLabel == "Drüse"
    np.testing.assert_array_equal(
        voxels_of_seg(tmp_path / "out/ct_seg.dcm", affine, SHAPE), organ()
    )


@pytest.mark.filterwarnings("ignore")
def test_what_a_segmentation_lacks_is_found_before_the_network_runs(tmp_path, model, monkeypatch):
    def frameless(image, k):
        del image.FrameOfReferenceUID

    write_series(tmp_path / "ct", hu(), edit=frameless)
    monkeypatch.setattr(module, "run_bundle", lambda *a, **k: pytest.fail("the network ran"))
    with pytest.raises(DatasetError, match="A DICOM SEG needs a whole series"):
        segment([tmp_path / "ct"], tmp_path / "out", dicom_seg=True, **model)


@pytest.mark.slow
def test_a_scan_has_one_name_in_a_folder(tmp_path, model):
    made = [tmp_path / folder / "ct.nii.gz" for folder in "ab"]
    for path in made:
        path.parent.mkdir()
        write_scan(path, organ(), AFFINE)
    segment(made[:1], tmp_path / "out", **model)
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(DatasetError, match=r"a/ct\.nii\.gz called 'ct', which is 'a_ct' beside"):
        segment(made, tmp_path / "out", **model)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
