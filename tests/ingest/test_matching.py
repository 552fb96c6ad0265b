"""Labels and their scans: none is lost without a word, and none goes to another's scan."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers.boxes import blob, body, save
from helpers.series import write_series
from monai.data import MetaTensor
from pydicom.uid import generate_uid

from stipple_monai import DatasetError
from stipple_monai.data import label_names
from stipple_monai.ingest import check_dataset, ingest
from stipple_monai.ingest.matching import match_labels
from stipple_monai.ingest.pairs import Options
from stipple_monai.ingest.sources import find_cases
from stipple_monai.results.dicom_seg import series_files, write_dicom_seg


def quiet(source, out, **knobs):
    options = Options(**{k: knobs.pop(k) for k in list(knobs) if k in Options._fields})
    return ingest(source, out, options=options, progress=False, **knobs)


def with_seg(folder):
    affine = write_series(folder / "ct", body())
    label = MetaTensor(blob()[None].astype(np.float32), affine=affine)
    path = folder / "seg" / "s.dcm"
    write_dicom_seg(path, label, series_files(folder / "ct"), organs={1: "pancreas"})
    return path


# names


@pytest.mark.parametrize(
    ("scans", "labels", "expected"),
    [
        (["pat1_ct", "pat1_mr"], ["pat1_mr_seg"], {"pat1_mr": "pat1_mr_seg"}),
        (["ct_1", "mr_1"], ["ct_1", "mr_1"], {"ct_1": "ct_1", "mr_1": "mr_1"}),
        (["a_pet", "a_ct"], ["a_ct_mask"], {"a_ct": "a_ct_mask"}),
        (["p_t1", "p_t2"], ["p_t1_seg", "p_t2_seg"], {"p_t1": "p_t1_seg", "p_t2": "p_t2_seg"}),
        (["img7"], ["label7"], {"img7": "label7"}),
        (["length_1", "doctor_2"], ["doctor_2_gt"], {"doctor_2": "doctor_2_gt"}),
        (["a"], ["a", "a_seg"], {"a": "a"}),
        # as a Mac stores an umlaut, and as others do
        (["Mu\u0308ller"], ["M\u00fcller"], {"Mu\u0308ller": "M\u00fcller"}),
        (["Mu\u0308ller_ct"], ["m\u00fcller_seg"], {"Mu\u0308ller_ct": "m\u00fcller_seg"}),
    ],
)
def test_equal_names_come_first_then_the_fewest_words(scans, labels, expected):
    found, _ = match_labels(
        [Path(f"i/{name}.nii.gz") for name in scans], [Path(f"l/{name}.nii.gz") for name in labels]
    )
    assert {k.name: v.name for k, v in found.items()} == {
        f"{k}.nii.gz": f"{v}.nii.gz" for k, v in expected.items()
    }


@pytest.mark.parametrize(
    ("scans", "labels", "match"),
    [
        (["p_ct", "p_mr"], ["p_seg"], r"p_seg.*may be of .*p_ct.* or .*p_mr"),
        (["p"], ["p_seg", "p_mask"], r"one label, got .*p_mask.* and .*p_seg.* for .*p\.nii"),
        (["p_pet", "p_ct"], ["p_label"], r"may be of .*p_ct.* or .*p_pet"),
    ],
)
def test_what_stays_ambiguous_is_refused_with_both(scans, labels, match):
    with pytest.raises(DatasetError, match=match):
        match_labels([Path(f"{n}.nii.gz") for n in scans], [Path(f"{n}.nii.gz") for n in labels])


@pytest.mark.parametrize(
    ("scan", "label", "fits"),
    [
        ("p_t1", "p_t2_seg", False),
        ("p_ct", "p_mr_seg", False),
        ("p_pet", "p_cta_mask", False),
        ("pMR", "p_ct_label", False),
        ("p_mr_t1", "p_mr_t2w_seg", False),
        ("p_ct", "p_seg", True),
        ("p", "p_ct_seg", True),
        ("p_t1", "p_t1w_seg", True),
        ("p_ct", "p_CTA_seg", True),
        ("p_flair", "p_mri_seg", True),
        ("p_mr", "p_t2_seg", True),
        ("p_pet_ct", "p_ct_seg", True),
        ("img_p", "p_mask", True),
    ],
)
def test_names_of_two_modalities_or_time_points_are_of_two_scans(scan, label, fits):
    scan, label = Path(f"{scan}.nii.gz"), Path(f"{label}.nii.gz")
    assert match_labels([scan], [label]) == (({scan: label}, []) if fits else ({}, [label]))


def test_the_label_of_the_mr_is_not_the_ct_s(tmp_path):
    save(tmp_path / "src/pat1_ct.nii.gz", body(1))
    save(tmp_path / "src/pat1_mr.nii.gz", body(2))
    save(tmp_path / "src/pat1_mr_seg.nii.gz", blob())
    content = json.loads(quiet(tmp_path / "src", tmp_path / "out").read_text())
    assert [item["image"] for item in content["training"]] == ["./imagesTr/pat1_mr.nii.gz"]
    assert [item["image"] for item in content["unlabelled"]] == ["./imagesTs/pat1_ct.nii.gz"]


# the unmatched side


def test_a_seg_of_an_old_uid_is_no_silence(tmp_path):
    with_seg(tmp_path / "src" / "p1")
    new = generate_uid()
    for file in (tmp_path / "src/p1/ct").iterdir():
        image = pydicom.dcmread(file)
        image.SeriesInstanceUID = new
        image.save_as(file)
    with pytest.raises(DatasetError, match=r"must belong to scans, got 1 .* such as .*s\.dcm"):
        quiet(tmp_path / "src", tmp_path / "out")


def without_reference(path):
    seg = pydicom.dcmread(path)
    del seg.ReferencedSeriesSequence
    seg.save_as(path)


@pytest.mark.slow
def test_a_seg_that_refers_to_none_is_matched_by_its_frame_of_reference(tmp_path):
    without_reference(with_seg(tmp_path / "src" / "p1"))
    write_series(tmp_path / "src/p2/ct", body(1))
    content = json.loads(quiet(tmp_path / "src", tmp_path / "out").read_text())
    assert [item["image"] for item in content["training"]] == ["./imagesTr/p1.nii.gz"]


def test_two_series_of_one_frame_are_ambiguous(tmp_path):
    without_reference(with_seg(tmp_path / "src" / "p1"))
    frame = pydicom.dcmread(next((tmp_path / "src/p1/ct").iterdir())).FrameOfReferenceUID
    write_series(
        tmp_path / "src/p2/ct",
        body(1),
        edit=lambda image, k: setattr(image, "FrameOfReferenceUID", frame),
    )
    with pytest.raises(DatasetError, match=r"of one series, got .*s\.dcm, which may be of .* or"):
        quiet(tmp_path / "src", tmp_path / "out")


def test_a_given_seg_of_another_frame_is_refused(tmp_path):
    path = with_seg(tmp_path / "p1")
    without_reference(path)
    write_series(tmp_path / "p2/ct", body(1))
    with pytest.raises(DatasetError, match="whose frame of reference is"):
        quiet(tmp_path / "p2/ct", tmp_path / "out", labels=path)


def test_labels_of_other_names_are_an_error(tmp_path):
    for n in (7, 8):
        affine = write_series(tmp_path / f"src/Patient {n}", body())
        save(tmp_path / f"labels/Patient{n}.nii.gz", blob(), affine)
    with pytest.raises(DatasetError, match=r"got 2 of which none does, such as .*Patient7"):
        quiet(tmp_path / "src", tmp_path / "out", labels=tmp_path / "labels")
    save(tmp_path / "labels/patient 8_seg.nii.gz", blob(), affine)
    quiet(tmp_path / "src", tmp_path / "out", labels=tmp_path / "labels")
    skipped = json.loads((tmp_path / "out/qa.json").read_text())["skipped"]
    assert {s["name"] for s in skipped} == {"Patient7.nii.gz", "Patient8.nii.gz"}


def nnunet(root, labels, *, ending=".nii.gz", label_ending="", value=1):
    for i in range(2):
        save(root / f"imagesTr/case_{i:03d}_0000{ending}", body(i))
        save(root / f"labelsTr/case_{i:03d}{label_ending}{ending}", blob() * value)
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_labels_that_nnunet_would_not_find_are_an_error(tmp_path):
    root = nnunet(tmp_path / "n", {"background": 0, "pancreas": 1}, label_ending="_seg")
    with pytest.raises(DatasetError, match=r"none does, such as .*case_000_seg"):
        quiet(root, tmp_path / "out")


def test_volumes_beside_series_are_told(tmp_path):
    affine = write_series(tmp_path / "src/p1", body())
    write_series(tmp_path / "src/p2", body())
    save(tmp_path / "src/truth.nii.gz", blob(), affine)
    with pytest.raises(DatasetError, match=r"such as .*truth\.nii\.gz"):
        find_cases(tmp_path / "src", layout="dicom")


@pytest.mark.parametrize("ending", [".NII.GZ", ".NII", ".Nii.Gz"])
def test_endings_may_be_upper_case(tmp_path, ending):
    save(tmp_path / f"src/images/B{ending}", body())
    save(tmp_path / f"src/labels/b{ending}", blob())
    content = json.loads(quiet(tmp_path / "src", tmp_path / "out").read_text())
    assert [item["image"] for item in content["training"]] == ["./imagesTr/B.nii.gz"]


def test_files_of_other_endings_are_told(tmp_path):
    save(tmp_path / "src/images/a.nii.gz", body())
    (tmp_path / "src/images/b.mgz").touch()
    assert find_cases(tmp_path / "src").skipped == [("b.mgz", "its ending is not that of a volume")]


@pytest.mark.parametrize("name", ["case_000_0000.nrrd", "case_000_0000.nii"])
def test_one_channel_twice_is_refused(tmp_path, name):
    root = nnunet(tmp_path / "n", {"background": 0, "pancreas": 1})
    (root / "imagesTr" / name).touch()
    with pytest.raises(DatasetError, match="A channel must be one file, got"):
        find_cases(root)


def test_one_label_twice_is_refused(tmp_path):
    root = nnunet(tmp_path / "n", {"background": 0, "pancreas": 1})
    (root / "labelsTr" / "case_000.nrrd").touch()
    with pytest.raises(DatasetError, match=r"one label, got .*case_000.* and .*case_000"):
        find_cases(root)


def test_one_label_of_pancreas_ct_twice_is_refused(tmp_path):
    write_series(tmp_path / "PANCREAS_0001" / "ct", body())
    for ending in (".nii", ".nii.gz"):
        save(tmp_path / f"labels/label0001{ending}", blob())
    with pytest.raises(DatasetError, match="one label, got"):
        find_cases(tmp_path, layout="pancreas-ct")


def test_sections_and_patients_of_a_datalist_stay(tmp_path):
    root = tmp_path / "src"
    for name in "abcd":
        save(root / f"{name}.nii.gz", body())
        save(root / f"{name}_seg.nii.gz", blob())
    item = {n: {"image": f"{n}.nii.gz", "label": f"{n}_seg.nii.gz", "patient": n} for n in "abcd"}
    content = {"training": [item["a"]], "validation": [item["b"]], "test": [item["c"]]}
    (root / "dataset.json").write_text(json.dumps(content))
    written = json.loads(quiet(root, tmp_path / "out").read_text())
    for section, name in (("training", "a"), ("validation", "b"), ("test", "c")):
        (found,) = written[section]
        assert (Path(found["image"]).name, found["patient"]) == (f"{name}.nii.gz", name)
        assert "label" in found
    skipped = json.loads((tmp_path / "out/qa.json").read_text())["skipped"]
    assert {s["name"] for s in skipped} == {"d.nii.gz", "d_seg.nii.gz"}


def test_a_patient_that_is_null_is_absent(tmp_path):
    whose = {"a": None, "b": " ", "c": 7.0, "d": "P1 "}
    items = [{"image": f"{name}.nii.gz", "patient": who} for name, who in whose.items()]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    found = find_cases(tmp_path, layout="msd")
    assert [case.patient for case in found.cases] == ["", "", "7", "P1"]


def test_an_item_without_image_is_an_error(tmp_path):
    save(tmp_path / "a.nii.gz", body())
    content = {"training": [{"image": "a.nii.gz"}, {"images": "b.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match='Items must have an "image"'):
        find_cases(tmp_path, layout="msd")


# conventions


def test_what_nnunet_ignores_is_ignored(tmp_path):
    labels = {"background": 0, "pancreas": 1, "ignore": 2}
    root = nnunet(tmp_path / "n", labels)
    label = blob()
    label[:, :, 6:] = 2
    for i in range(2):
        save(root / f"labelsTr/case_{i:03d}.nii.gz", label)
    for name, choose in (("all", None), ("chosen", {"1": 1})):
        content = json.loads(quiet(root, tmp_path / name, choose=choose).read_text())
        assert set(content["labels"]) == {"0", "1"}
        written = np.asarray(nib.load(tmp_path / name / "labelsTr/case_000.nii.gz").dataobj)
        np.testing.assert_array_equal(written, np.where(label == 2, 255, label))
    assert label_names(root / "dataset.json") == {0: "background", 1: "pancreas"}


def test_regions_have_names(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    root = nnunet(tmp_path / "n", labels)
    assert label_names(root / "dataset.json") == {
        0: "background",
        1: "whole without core",
        2: "core",
    }
    content = json.loads(quiet(root, tmp_path / "out").read_text())
    assert content["labels"]["1"] == "whole without core"


def test_the_layout_of_totalsegmentator(tmp_path):
    root = tmp_path / "ts"
    for i, organs in ((1, ("liver", "pancreas")), (2, ("pancreas",))):
        save(root / f"s{i:04d}/ct.nii.gz", body(i))
        for organ in organs:
            moved = np.roll(blob(), 9 if organ == "liver" else 0, 0)
            save(root / f"s{i:04d}/segmentations/{organ}.nii.gz", moved)
    content = json.loads(quiet(root, tmp_path / "out").read_text())
    assert content["labels"] == {"0": "background", "1": "liver", "2": "pancreas"}
    written = np.asarray(nib.load(tmp_path / "out/labelsTr/s0002.nii.gz").dataobj)
    np.testing.assert_array_equal(written, blob() * 2)
    chosen = quiet(root, tmp_path / "one", choose={"pancreas": 1})
    assert json.loads(chosen.read_text())["labels"] == {"0": "background", "1": "pancreas"}
    found = check_dataset(chosen, progress=False)
    assert found.problems == []


def test_masks_that_overlap_are_refused(tmp_path):
    save(tmp_path / "ts/s1/ct.nii.gz", body())
    for organ in ("liver", "pancreas"):
        save(tmp_path / f"ts/s1/segmentations/{organ}.nii.gz", blob())
    with pytest.raises(DatasetError, match=r"do not overlap, got .*pancreas.* --map NAME=LABEL"):
        quiet(tmp_path / "ts", tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "labels", "match"),
    [
        ("mr.nii.gz", None, r"skipped"),
        (None, "x", "must not be given in the layout 'totalsegmentator'"),
    ],
)
def test_other_folders_of_totalsegmentator(tmp_path, more, labels, match):
    save(tmp_path / "s1/ct.nii.gz", body())
    save(tmp_path / "s2/ct.nii.gz", body())
    save(tmp_path / "s1/segmentations/liver.nii.gz", blob())
    if more is not None:
        save(tmp_path / "s2" / more, body())
        assert find_cases(tmp_path).skipped == [("s2", "it has 2 scans rather than one")]
        return
    (tmp_path / labels).mkdir()
    with pytest.raises(DatasetError, match=match):
        find_cases(tmp_path, labels=tmp_path / labels)


def test_more_organs_than_a_byte_holds(tmp_path):
    save(tmp_path / "s1/ct.nii.gz", body())
    (tmp_path / "s1/segmentations").mkdir()
    for i in range(255):
        (tmp_path / f"s1/segmentations/o{i}.nii.gz").touch()
    with pytest.raises(DatasetError, match="at most 254 organs, got 255"):
        find_cases(tmp_path)
