"""A PACS export and nnU-Net's folder: what is taken, what is left out and why, and names."""

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.series import write_series
from helpers.threshold_model import write_model, write_scan

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE, configs_of
from stipple_monai.bundle import write_model as write_known
from stipple_monai.ingest import list_series
from stipple_monai.planning import example_fingerprint
from stipple_monai.segmentation import segment
from stipple_monai.segmentation.scans import find_scans, sound_scans

pytestmark = [
    pytest.mark.filterwarnings("ignore:Organ . is predicted nowhere"),
    pytest.mark.filterwarnings("ignore:Look at"),
]
SHAPE = (24, 20, 8)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    write_model(folder)
    overlays = [folder / "threshold.yaml"]
    facts = example_fingerprint().facts()
    write_known(
        folder, configs_of(BUNDLE), organs={1: "pancreas"}, overlays=overlays, training=facts
    )
    return folder


def body(seed):
    hu = np.full(SHAPE, -100)
    hu[6 : 12 + seed, 4:12, 2:6] = 100
    return hu


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "export"

    def mr(image, k):
        image.Modality = "MR"

    for number in (1, 2):
        write_series(root / f"PAT{number}" / "ST1" / "SE1", body(number))
    write_series(root / "PAT1" / "ST1" / "SE0", body(1)[..., :2])
    write_series(root / "PAT2" / "ST2" / "SE1", body(2), edit=mr)
    write_series(root / "PAT2" / "ST2" / "SE2", body(2), uneven_mm=3.0)
    (root / "PAT2" / "ST2" / "SE3").mkdir()
    (root / "PAT2" / "ST2" / "SE3" / "report.pdf").write_bytes(b"%PDF")
    (root / "DICOMDIR").write_bytes(b"")
    return root


def test_each_folder_of_a_tree_is_told_of(tree):
    found = {
        each.path.relative_to(tree).as_posix(): (each.taken, each.why)
        for each in list_series(tree, modality="CT")
    }
    assert {path for path, (taken, _) in found.items() if taken} == {
        "PAT1/ST1/SE1",
        "PAT2/ST1/SE1",
    }
    assert found["PAT1/ST1/SE1"][1] == "CT, 8 slices"
    for path, why in {
        "PAT1/ST1/SE0": "CT, 2 slices, fewer than 5: a localizer?",
        "PAT2/ST2/SE1": "MR, 8 slices, and the network was trained on CT",
        "PAT2/ST2/SE2": "must be 4 mm apart along their normal",
        "PAT2/ST2/SE3/report.pdf": "report.pdf, no DICOM images",
    }.items():
        assert why in found[path][1]
    assert len(found) == 6
    # of unknown training every modality may do
    assert sum(each.taken for each in list_series(tree)) == 3
    (tree / "PAT1" / "ST1" / "SE1" / "001.dcm").write_text("no DICOM", encoding="utf-8")
    found = {each.path: each for each in list_series(tree, modality="CT")}
    damaged = found[tree / "PAT1" / "ST1" / "SE1"]
    assert not damaged.taken
    assert "whole and readable" in damaged.why
    assert found[tree / "PAT2" / "ST1" / "SE1"].taken


def test_a_damaged_series_beside_folders_is_no_tree(tmp_path):
    write_series(tmp_path / "ct", body(1))
    (tmp_path / "ct" / "old").mkdir()
    (tmp_path / "ct" / "001.dcm").write_text("no DICOM", encoding="utf-8")
    found = find_scans([tmp_path / "ct"])
    assert [item["image"] for item in found] == [str(tmp_path / "ct")]
    with pytest.raises(DatasetError, match=r"whole and readable, got .*001"):
        sound_scans(found, tmp_path / "out", dicom_seg=False)


@pytest.mark.slow
def test_a_tree_is_segmented_and_listed(tree, model, tmp_path, capsys):
    command = ["segment", str(tree), "--models", str(model), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("taken: ") for line in said) == 2
    assert sum(line.startswith("left out: ") for line in said) == 4
    with (tmp_path / "out" / "volumes.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2
    for number in (1, 2):
        (label,) = (tmp_path / "out").glob(f"*PAT{number}*_seg.nii.gz")
        assert np.array_equal(np.asarray(nib.load(label).dataobj), body(number) > 0)


def test_a_tree_without_a_scan(tree):
    for patient in ("PAT1/ST1/SE1", "PAT2"):
        shutil.rmtree(tree / patient)
    with pytest.raises(DatasetError, match=r"Inputs must have a scan, got .*localizer"):
        find_scans([tree])


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (["labels", "images"], r"\(images, labels\), which are not read: give ROOT/images\.$"),
        (["labels"], r"\(labels\), which are not read: give ROOT/labels\.$"),
        (
            ["p1/a", "p2", "p3", "p4", "p5/seg", ".old"],
            r"\(p1/a, p2, p3 and 2 more\), .*: give those of the scans, such as ROOT/p1/a\.$",
        ),
    ],
)
def test_nifti_in_subfolders_is_told_of(tmp_path, folders, told):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        for name in ("a.nii.gz", "b.nii.gz", "._a.nii.gz"):
            (tmp_path / folder / name).touch()
    (tmp_path / "only_hidden").mkdir()
    (tmp_path / "only_hidden" / "._a.nii.gz").touch()
    message = f"got the folder {tmp_path}, which has NIfTI files in subfolders "
    with pytest.raises(DatasetError, match=message + told.replace("ROOT", str(tmp_path))):
        find_scans([tmp_path])


@pytest.mark.slow
def test_names_as_nnunet_has_them(model, tmp_path):
    (tmp_path / "imagesTs").mkdir()
    for number in (1, 2):
        path = tmp_path / "imagesTs" / f"case_{number}_0000.nii.gz"
        write_scan(path, body(number) > 0, np.diag([2.0, 3.0, 4.0, 1.0]))
    out = tmp_path / "out"
    segment([tmp_path / "imagesTs"], out, models=model, nnunet_names=True)
    assert {path.name for path in (out / "nnunet").iterdir()} == {"case_1.nii.gz", "case_2.nii.gz"}
    for number in (1, 2):
        copy, seg = out / "nnunet" / f"case_{number}.nii.gz", out / f"case_{number}_0000_seg.nii.gz"
        assert copy.read_bytes() == seg.read_bytes()
    # once more, where they are
    segment([tmp_path / "imagesTs"], out, models=model, nnunet_names=True)
    other = tmp_path / "imagesTs" / "case_1_0001.nii.gz"
    shutil.copy(tmp_path / "imagesTs" / "case_1_0000.nii.gz", other)
    with pytest.raises(DatasetError, match="where nnU-Net's are asked for"):
        segment([tmp_path / "imagesTs"], out, models=model, nnunet_names=True)


def test_channels_of_nnunet_are_one_scan(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = find_scans([tmp_path], channels=2)
    assert [[path[-11:-7] for path in item["image"]] for item in found] == [["0000", "0001"]] * 2
    assert len(find_scans([tmp_path])) == 4


def scans_of(folder, *names, shape=(), channels=2):
    folder.mkdir()
    for name in names:
        (folder / name).touch()
        if shape:
            nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), folder / name)
    found = [item["image"] for item in find_scans([folder], channels=channels)]
    return [[Path(f).name for f in image] if isinstance(image, list) else 1 for image in found]


def test_four_digits_may_be_a_patients_number(tmp_path):
    numbers = [f"case_{i:04d}.nii.gz" for i in range(4)]
    assert scans_of(tmp_path / "from 1", *numbers[1:]) == [1, 1, 1]
    assert scans_of(tmp_path / "from 0", *numbers[:3]) == [1, 1, 1]
    assert scans_of(tmp_path / "years", "scan_2001.nii.gz", "scan_2002.nii.gz", "a.nii") == [1] * 3
    # whose channels are in each file
    assert scans_of(tmp_path / "4D", *numbers[:2], shape=(2, 2, 2, 2)) == [1, 1]
    assert scans_of(tmp_path / "one", numbers[0], shape=(2, 2, 2, 2)) == [1]
    names = ["a_0000.NII.GZ", "a_0001.nii.gz"]
    assert scans_of(tmp_path / "case", *names, shape=(2, 2, 2)) == [names]


@pytest.mark.parametrize(("there", "missing"), [((0,), 1), ((0, 2), 1), ((0, 1), 2)])
def test_a_scan_without_one_of_its_channels_is_an_error(tmp_path, there, missing):
    names = [f"a_{i:04d}.nii.gz" for i in there]
    with pytest.raises(DatasetError, match=rf"3 channels, got .* without .*a_000{missing}\.nii"):
        scans_of(tmp_path / "x", *names, channels=3)
