"""The check of a datalist: its table, and who stands in two places."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.data import write_datalist
from stipple_monai.ingest.dataset_check import DATASET_COLUMNS, check_dataset

SHAPE = (40, 36, 20)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def case(folder, number, **more):
    rng = np.random.default_rng(number)
    label = np.zeros(SHAPE, np.uint8)
    label[4:14, 5:15, 3:9] = 1
    image = (rng.normal(40, 20, SHAPE) + 80 * label).round().astype(np.int16)
    return {
        "image": save(folder / f"ct{number}.nii.gz", image),
        "label": save(folder / f"seg{number}.nii.gz", label),
        **more,
    }


def check(tmp_path, sections):
    write_datalist(tmp_path / "list.json", sections)
    return check_dataset(tmp_path / "list.json", progress=False)


def test_a_sound_dataset_is_tabulated(tmp_path, capsys):
    items = [case(tmp_path, i, fold=i) for i in range(2)]
    found = check(tmp_path, {"training": items, "test": [case(tmp_path, 2)]})
    assert (found.problems, found.notes) == ([], [])
    row = dict(zip(DATASET_COLUMNS, found.rows[1], strict=True))
    assert row.pop("digest") != found.rows[0][-1]
    assert row.pop("intensity").startswith("12")
    assert row == {
        **{"section": "training", "fold": "1", "case": "ct1", "shape": "40x36x20"},
        **{"spacing_mm": "2x2x3", "orientation": "LPS", "labels": "1", "volume_ml": "7.2"},
        "label_check": "confirmed",
    }
    assert main(["check", str(tmp_path / "list.json"), "--csv", str(tmp_path / "t.csv")]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(DATASET_COLUMNS)
    assert len(lines) == 3
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file)) == [list(DATASET_COLUMNS), *found.rows]


def stored_otherwise(folder, item):
    """The same scan under another name, its axes stored in another order and direction."""
    image = nib.load(item["image"])
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nib.save(
        nib.Nifti1Image(np.asarray(turned.dataobj, np.float32), turned.affine), folder / "x.nii"
    )
    return {"image": str(folder / "x.nii")}


@pytest.mark.parametrize("folds", [None, (0, 1)])
def test_the_same_scan_under_two_names_is_found(tmp_path, folds, capsys):
    one = case(tmp_path, 0)
    two = stored_otherwise(tmp_path, one)
    if folds is None:
        sections = {"training": [one], "test": [two]}
    else:
        sections = {"unlabelled": [{**one, "fold": 0}, {**two, "fold": 1}]}
    found = check(tmp_path, sections)
    (problem,) = found.problems
    assert problem.startswith("One scan must stand in one section and fold, got ct0 (")
    assert "x (" in problem
    assert main(["check", str(tmp_path / "list.json")]) == 1
    captured = capsys.readouterr()
    assert "problem: One scan must" in captured.out
    assert "`datalist` must be sound, got 1 problems" in captured.err


def test_the_same_scan_twice_in_one_place_is_a_note(tmp_path):
    one = case(tmp_path, 0)
    found = check(tmp_path, {"unlabelled": [one, stored_otherwise(tmp_path, one)]})
    assert found.problems == []
    assert "The same scan under several names: ct0 (unlabelled), x (unlabelled)." in found.notes


def test_one_voxel_makes_another_scan(tmp_path):
    one, two = case(tmp_path, 0), case(tmp_path, 1)
    values = np.asarray(nib.load(one["image"]).dataobj).copy()
    values[0, 0, 0] += 1
    save(two["image"], values)
    assert check(tmp_path, {"training": [one], "test": [two]}).problems == []


def test_scans_of_other_channels_than_the_rest_are_a_problem(tmp_path):
    items = [case(tmp_path, i) for i in range(3)]
    one = np.asarray(nib.load(items[1]["image"]).dataobj)
    save(tmp_path / "ct1.nii.gz", np.stack([one, one], -1))
    (problem,) = check(tmp_path, {"training": items}).problems
    assert problem.startswith("Scans must have the same channels, got 1 in 2 (ct0), 2 in 1 (ct1):")
    assert main(["check", str(tmp_path / "list.json")]) == 1


def test_a_patient_in_two_places_is_found(tmp_path):
    items = [case(tmp_path, i, patient="P7", fold=i) for i in range(2)]
    (problem,) = check(tmp_path, {"training": items}).problems
    assert problem.startswith("One patient must stand in one section and fold, got ct0 (training, ")


def test_cases_that_cannot_be_used_are_problems_and_the_others_go_on(tmp_path):
    items = [case(tmp_path, i) for i in range(4)]
    label = np.asarray(nib.load(items[0]["label"]).dataobj)
    save(items[0]["label"], label[:, ::-1])
    save(items[1]["label"], label, np.diag([2.0, 2, 3, 1]))
    (tmp_path / "ct2.nii.gz").write_bytes(b"")
    found = check(tmp_path, {"training": items})
    assert [p.split(":")[0] for p in found.problems] == ["ct0", "ct1", "ct2"]
    assert "reversed along H" in found.problems[0]
    # `check` itself changes nothing
    assert found.problems[0].endswith("then reverse it with `ingest --repair`.")
    assert "mm apart" in found.problems[1]
    assert "say so with `ingest --ignore-label-header`" in found.problems[1]
    assert "whole NIfTI file" in found.problems[2]
    assert [row[2] for row in found.rows] == ["ct0", "ct1", "ct2", "ct3"]


def test_labels_under_truth_are_checked_too(tmp_path):
    item = case(tmp_path, 0)
    item["truth"] = item.pop("label")
    found = check(tmp_path, {"training": [case(tmp_path, 1)], "unlabelled": [item]})
    assert [row[6] for row in found.rows] == ["1", "1"]


def test_an_undecided_label_is_a_note(tmp_path):
    item = case(tmp_path, 0)
    save(item["image"], np.random.default_rng(1).integers(0, 9, SHAPE).astype(np.int16))
    (note,) = check(tmp_path, {"training": [item]}).notes
    assert note.startswith("ct0: Intensities do not tell")


def test_an_empty_datalist_is_an_error(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"training": []}), encoding="utf-8")
    with pytest.raises(DatasetError, match="`datalist` must have items, got none"):
        check_dataset(tmp_path / "list.json")


def test_a_training_scan_without_label_is_a_note(tmp_path):
    """No problem, since nnU-Net's folders have such, and `self-train` takes them."""
    bare, other = case(tmp_path, 0), case(tmp_path, 2)
    del bare["label"], other["label"]
    found = check(tmp_path, {"training": [bare, case(tmp_path, 1)], "unlabelled": [other]})
    assert found.problems == []
    told = [note for note in found.notes if "without label" in note]
    assert told == ["ct0: in training without label, which `self-train` takes and `train` refuses."]
