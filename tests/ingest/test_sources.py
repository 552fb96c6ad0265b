"""Layouts of datasets: which scans there are, which label belongs to which, and what is refused."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.series import write_series
from monai.data import MetaTensor

from stipple_monai import DatasetError
from stipple_monai.ingest.sources import find_cases
from stipple_monai.results.dicom_seg import series_files, write_dicom_seg

UID = "1.2.826.0.1.3680043.2.1125.1"


def volume(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)
    return path


def series(folder):
    write_series(folder, np.zeros((3, 3, 2), int))
    return folder


def named(found):
    return {
        case.name: (case.images[0].name, case.label.name if case.label else None)
        for case in found.cases
    }


@pytest.fixture
def tcia(tmp_path):
    """Pancreas-CT as TCIA delivers it: 25 and 70 are empty, and have labels."""
    root = tmp_path / "Pancreas-CT"
    for number in (1, 24):
        series(root / f"PANCREAS_{number:04d}" / f"{UID}.{number}.1" / f"{UID}.{number}.2")
    (root / "PANCREAS_0025").mkdir()
    for number in (1, 24, 25, 70):
        volume(tmp_path / "labels" / f"label{number:04d}.nii.gz")
    (root / "LICENSE").write_text("CC-BY", encoding="utf-8")
    return root


def test_pancreas_ct(tcia, tmp_path):
    found = find_cases(tcia, labels=tmp_path / "labels")
    assert (found.layout, found.labels[1]) == ("pancreas-ct", "pancreas")
    assert [(c.name, c.label.name) for c in found.cases] == [
        ("PANCREAS_0001", "label0001.nii.gz"),
        ("PANCREAS_0024", "label0024.nii.gz"),
    ]
    (first, why), (second, other) = found.skipped
    assert (first, second) == ("PANCREAS_0025", "PANCREAS_0070")
    assert "its folder is empty" in why
    assert "a label but no scan" in other
    assert all("25 and 70 are duplicates" in text for _, text in found.skipped)


def test_one_patient_of_pancreas_ct(tcia, tmp_path):
    found = find_cases(tcia / "PANCREAS_0024", labels=tmp_path / "labels", layout="pancreas-ct")
    assert [case.name for case in found.cases] == ["PANCREAS_0024"]


def test_labels_of_pancreas_ct_that_are_called_otherwise(tcia, tmp_path):
    volume(tmp_path / "labels" / "notes_of_0001.nii.gz")
    why = "a volume that is no label of this collection"
    assert ("notes_of_0001.nii.gz", why) in find_cases(tcia, labels=tmp_path / "labels").skipped
    for path in (tmp_path / "labels").iterdir():
        path.rename(path.with_name(f"mask_{path.name}"))
    with pytest.raises(DatasetError, match=r"mask_label0001"):
        find_cases(tcia, labels=tmp_path / "labels")


def test_two_series_of_a_patient_are_skipped(tcia, tmp_path):
    series(tcia / "PANCREAS_0001" / f"{UID}.1.1" / f"{UID}.1.3")
    found = find_cases(tcia, labels=tmp_path / "labels")
    assert found.skipped[0] == ("PANCREAS_0001", "it has 2 series, which one is not known")


def test_dicom_with_labels_by_name(tmp_path):
    for name in ("anna", "bert"):
        series(tmp_path / "scans" / name / f"{UID}.7")
    volume(tmp_path / "labels" / "anna.nii.gz")
    volume(tmp_path / "labels" / "bert_seg.nii.gz")
    found = find_cases(tmp_path / "scans", labels=tmp_path / "labels")
    assert found.layout == "dicom"
    assert named(found) == {
        "anna": (f"{UID}.7", "anna.nii.gz"),
        "bert": (f"{UID}.7", "bert_seg.nii.gz"),
    }


def test_dicom_with_pictures_beside_it(tmp_path):
    for number in ("1", "2"):
        series(tmp_path / "CT" / number / "DICOM_anon")
        for kind in ("Ground", "Segmentation"):
            (tmp_path / "CT" / number / kind).mkdir()
            (tmp_path / "CT" / number / kind / "0.png").touch()
    assert named(find_cases(tmp_path)) == {
        "1": ("DICOM_anon", "Ground"),
        "2": ("DICOM_anon", "Ground"),
    }


def test_dicom_seg_belongs_to_the_series_that_it_refers_to(tmp_path):
    pytest.importorskip("highdicom")
    for name in ("anna", "bert"):
        affine = write_series(tmp_path / name / "ct", np.zeros((3, 3, 2), int))
    label = MetaTensor(np.ones((1, 3, 3, 2)), affine=affine)
    files = series_files(tmp_path / "bert" / "ct")
    write_dicom_seg(tmp_path / "segs" / "a.dcm", label, files, organs={1: "liver"})
    found = find_cases(tmp_path)
    assert {case.name: case.label and case.label.name for case in found.cases} == {
        "anna": None,
        "bert": "a.dcm",
    }
    # what its series cannot tell any more is no reason to lose another's
    (tmp_path / "anna" / "ct" / "001.dcm").write_bytes(b"")
    found = find_cases(tmp_path)
    assert [case.label and case.label.name for case in found.cases] == [None, "a.dcm"]
    write_dicom_seg(tmp_path / "segs" / "b.dcm", label, files, organs={1: "liver"})
    with pytest.raises(DatasetError, match=r"one label, got .*a\.dcm, .*b\.dcm for .*bert"):
        find_cases(tmp_path)


def test_one_series_and_its_label(tmp_path):
    series(tmp_path / "ct")
    label = volume(tmp_path / "truth.nii.gz")
    assert named(find_cases(tmp_path / "ct", labels=label)) == {"ct": ("ct", "truth.nii.gz")}
    with pytest.raises(DatasetError, match="a folder in the layout 'nifti', got"):
        find_cases(tmp_path, labels=label)
    series(tmp_path / "two" / "a")
    series(tmp_path / "two" / "b")
    with pytest.raises(DatasetError, match="a folder for several series, got the file"):
        find_cases(tmp_path / "two", labels=label)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("img0001.nii.gz", "label0001.nii.gz"),
        ("case_7_image.nii.gz", "case_7_label.nii.gz"),
        ("a.nii", "a-seg.nrrd"),
        ("b_ct.nii.gz", "b_mask.nii.gz"),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_pairs_of_volumes(tmp_path, image, label, apart):
    (tmp_path / "images").mkdir()
    volume(tmp_path / "images" / image)
    folder = tmp_path / ("labels" if apart else "images")
    if label.endswith(".nrrd"):
        folder.mkdir(exist_ok=True)
        (folder / label).touch()
    else:
        volume(folder / label)
    root = tmp_path if apart else tmp_path / "images"
    (case,) = find_cases(root).cases
    assert (case.images[0].name, case.label.name) == (image, label)


def test_pairs_that_are_not_told_apart_and_labels_that_are_left(tmp_path):
    volume(tmp_path / "images" / "a.nii.gz")
    volume(tmp_path / "labels" / "a.nii.gz")
    volume(tmp_path / "labels" / "b.nii.gz")
    assert find_cases(tmp_path).skipped == [("b.nii.gz", "a label without scan")]
    (tmp_path / "labels" / "a.nii.gz").rename(tmp_path / "labels" / "a_mask.nii.gz")
    volume(tmp_path / "labels" / "a_seg.nii.gz")
    with pytest.raises(DatasetError, match=r"one label, got .* and .*: rename one"):
        find_cases(tmp_path)


@pytest.fixture
def nnunet(tmp_path):
    root = tmp_path / "Dataset007_Liver"
    for name in ("liver_1", "liver_2"):
        for channel in range(2):
            volume(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        volume(root / "labelsTr" / f"{name}.nii.gz")
    for channel in range(2):
        volume(root / "imagesTs" / f"liver_3_{channel:04d}.nii.gz")
    content = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1}}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_nnunet(nnunet):
    found = find_cases(nnunet)
    assert (found.layout, found.labels) == ("nnunet", {0: "background", 1: "liver"})
    assert found.modality == {"0": "CT", "1": "PET"}
    assert {c.name: (len(c.images), c.label is not None, c.test) for c in found.cases} == {
        "liver_1": (2, True, False),
        "liver_2": (2, True, False),
        "liver_3": (2, False, True),
    }
    (nnunet / "imagesTr" / "liver_2_0000.nii.gz").unlink()
    volume(nnunet / "imagesTr" / "liver_4.nii.gz")
    assert find_cases(nnunet).skipped == [
        ("liver_2", "channels [1] are not 0 to 0"),
        ("liver_4.nii.gz", "its name does not end with a channel, such as _0000"),
    ]


def write_msd(root, items, **content):
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"training": items, **content}), encoding="utf-8")


def test_msd(tmp_path):
    volume(tmp_path / "imagesTr" / "a.nii.gz")
    volume(tmp_path / "labelsTr" / "a.nii.gz")
    volume(tmp_path / "imagesTs" / "b.nii.gz")
    items = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    # a list that is not of scans
    authors = [{"name": "A. Simpson"}]
    others = {"labels": {"0": "bg", "1": "x"}, "authors": authors}
    write_msd(tmp_path, items, test=["./imagesTs/b.nii.gz"], **others)
    found = find_cases(tmp_path)
    assert (found.layout, found.labels) == ("msd", {0: "bg", 1: "x"})
    assert named(found) == {"a": ("a.nii.gz", "a.nii.gz"), "b": ("b.nii.gz", None)}
    assert [case.test for case in found.cases] == [False, True]
    with pytest.raises(DatasetError, match="must not be given with"):
        find_cases(tmp_path, labels=tmp_path)


@pytest.mark.parametrize("path", ["../secret.nii.gz", "/etc/passwd", "a/../../secret.nii.gz"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_datalist_reads_nothing_outside_of_its_folder(tmp_path, path, key):
    volume(tmp_path / "secret.nii.gz")
    volume(tmp_path / "set" / "a.nii.gz")
    write_msd(tmp_path / "set", [{"image": "a.nii.gz", "label": "a.nii.gz", key: path}])
    with pytest.raises(DatasetError, match=r"Paths must stay in .*, got .* which leads out"):
        find_cases(tmp_path / "set")


def test_links_that_lead_out_are_refused(tmp_path):
    volume(tmp_path / "secret.nii.gz")
    volume(tmp_path / "set" / "images" / "a.nii.gz")
    (tmp_path / "set" / "images" / "b.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    with pytest.raises(DatasetError, match=r"Paths must stay in .*b\.nii\.gz, which leads out"):
        find_cases(tmp_path / "set")
    series(tmp_path / "ct")
    (tmp_path / "dicom" / "a").mkdir(parents=True)
    for file in (tmp_path / "ct").iterdir():
        (tmp_path / "dicom" / "a" / file.name).symlink_to(file)
    with pytest.raises(DatasetError, match="leads out"):
        find_cases(tmp_path / "dicom")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b").symlink_to(tmp_path / "ct")
    with pytest.raises(DatasetError, match="leads out"):
        find_cases(tmp_path / "linked")


def test_links_within_are_followed_and_circles_are_refused(tmp_path):
    series(tmp_path / "store" / "x")
    (tmp_path / "a").symlink_to(tmp_path / "store" / "x")
    assert {case.name for case in find_cases(tmp_path).cases} == {"a", "store_x"}
    (tmp_path / "store" / "up").symlink_to(tmp_path)
    with pytest.raises(DatasetError, match=r"in circles, got .*up to"):
        find_cases(tmp_path)


def test_a_link_to_itself_and_one_to_nothing_are_refused(tmp_path):
    series(tmp_path / "ct")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DatasetError, match=r"Links must lead to what is there, got .*loop"):
        find_cases(tmp_path)
    (tmp_path / "loop").unlink()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"Links must lead to what is there, got .*gone"):
        find_cases(tmp_path)


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    volume(tmp_path / "a.nii.gz")
    name = os.fsdecode(b"M\xfcller.nii.gz")
    try:
        (tmp_path / "a.nii.gz").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(
        DatasetError, match=r"Names must be UTF-8, got .*M\\xfcller\.nii\.gz"
    ) as error:
        find_cases(tmp_path)
    str(error.value).encode("utf-8")


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz", "DATA.TAR"])
def test_archives_are_not_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"got the archive .*: unpack it first"):
        find_cases(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "layout", "match"),
    [
        ("none", None, "must exist, got"),
        ("file.txt", None, "must be a folder, got the file"),
        ("empty", None, "must hold scans in the layout 'dicom', got none"),
        (
            "empty",
            "brats",
            "`layout` must be one of pancreas-ct, dicom, nifti, nnunet, msd, totalsegmentator, got",
        ),
        ("empty", "msd", r"dataset\.json, which is no file"),
    ],
)
def test_sources_that_are_none(tmp_path, source, layout, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(DatasetError, match=match):
        find_cases(tmp_path / source, layout=layout)


def test_equal_names_are_told_apart(tmp_path):
    for path in ("a/x/ct", "b/x/ct"):
        series(tmp_path / path)
    assert {case.name for case in find_cases(tmp_path).cases} == {"a", "b"}
    for path in (f"{UID}.1", f"{UID}.2"):
        series(tmp_path / "uids" / path)
    names = {case.name for case in find_cases(tmp_path / "uids").cases}
    assert names == {f"{UID}.1", f"{UID}.2"}


def test_names_that_would_be_written_over_each_other_are_refused(nnunet):
    for channel in range(2):
        path = nnunet / "imagesTs" / f"liver_3_{channel:04d}.nii.gz"
        path.rename(path.with_name(f"Liver_1_{channel:04d}.nii.gz"))
    with pytest.raises(DatasetError, match=r"names of their own, got .*liver_1_.* and .*Liver_1_"):
        find_cases(nnunet)


def test_names_have_no_ending(tmp_path):
    (tmp_path / "a.b.nrrd").touch()
    assert [case.name for case in find_cases(tmp_path).cases] == ["a.b"]


def test_hidden_folders_are_left_out(tmp_path):
    for name in ("ct", ".trash"):
        series(tmp_path / name / "1")
    assert [case.images[0] for case in find_cases(tmp_path).cases] == [tmp_path / "ct" / "1"]


def test_a_damaged_series_is_found_and_refused_later(tmp_path):
    series(tmp_path / "whole")
    series(tmp_path / "torn")
    (tmp_path / "torn" / "001.dcm").write_bytes(b"")
    assert {case.name for case in find_cases(tmp_path).cases} == {"whole", "torn"}


def test_paths_are_given_as_they_are(tmp_path, monkeypatch):
    series(tmp_path / "ct")
    monkeypatch.chdir(tmp_path)
    assert find_cases(Path("ct")).cases[0].images == (Path("ct"),)
    monkeypatch.chdir(tmp_path / "ct")
    assert find_cases(".").cases[0].name == "ct"
