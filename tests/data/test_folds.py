"""Folds and nested label proportions, in the datalist and as nnU-Net's splits."""

import json
from pathlib import Path

import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.data import read_datalist
from stipple_monai.data.folds import (
    assign_folds,
    case_name,
    fold_sections,
    read_nnunet_splits,
    write_nnunet_splits,
)

PROPORTIONS = [0.1, 0.25, 0.5, 1]


def items_of(count, **more):
    return [{"image": f"p{i}.nii.gz", "label": f"l{i}.nii.gz", **more} for i in range(count)]


def folds_of(items):
    return {item["image"]: item["fold"] for item in items}


@pytest.mark.parametrize("count", [10, 23, 80])
def test_folds_are_even_seeded_and_independent_of_order(count):
    items = items_of(count)
    found = assign_folds(items, folds=5, seed=3)
    counts = np.bincount(list(folds_of(found).values()))
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1
    assert folds_of(assign_folds(items[::-1], folds=5, seed=3)) == folds_of(found)
    assert folds_of(assign_folds(items, folds=5, seed=4)) != folds_of(found)
    assert folds_of(assign_folds(items, folds=5, seed=3, proportions=[0.5])) == folds_of(found)
    assert [item["image"] for item in found] == [item["image"] for item in items]
    assert "fold" not in items[0]


def test_patients_stay_together():
    items = [dict(item, patient=f"P{i // 3}") for i, item in enumerate(items_of(18))]
    found = assign_folds(items, folds=3, seed=0, proportions=[0.5, 1])
    for key in ("fold", "label_proportion"):
        assert all(len({i[key] for i in found if i["patient"] == f"P{p}"}) == 1 for p in range(6))


@pytest.mark.parametrize("count", [20, 64, 80])
def test_fewer_labels_are_a_subset_of_more_in_every_fold(count):
    found = assign_folds(items_of(count), folds=4, seed=1, proportions=PROPORTIONS)
    for fold in range(4):
        before = set()
        for proportion in PROPORTIONS:
            sections = fold_sections(found, fold=fold, proportion=proportion)
            names = {item["image"] for item in sections["training"]}
            assert before <= names
            rest = count - len(sections["test"])
            assert len(names) + len(sections["unlabelled"]) == rest
            # what each fold gives is rounded
            assert abs(len(names) - proportion * rest) <= 2
            assert names.isdisjoint(item["image"] for item in sections["test"])
            before = names
            assert all("truth" in i and "label" not in i for i in sections["unlabelled"])
        assert len(before) == rest


def test_proportions_count_over_all_patients():
    found = assign_folds(items_of(80), folds=5, seed=0, proportions=PROPORTIONS)
    for proportion in PROPORTIONS:
        assert sum(i["label_proportion"] <= proportion for i in found) == 80 * proportion


def test_the_fewest_labels_are_one():
    found = assign_folds(items_of(4), folds=2, seed=0, proportions=[0.05, 1])
    assert sorted(item["label_proportion"] for item in found) == [0.05, 1, 1, 1]


def test_neighbours_in_the_datalist_may_share_a_fold():
    pairs = [folds_of(assign_folds(items_of(4), folds=2, seed=seed)) for seed in range(20)]
    assert {found["p0.nii.gz"] == found["p1.nii.gz"] for found in pairs} == {True, False}


def test_labels_that_no_proportion_keeps_are_kept_at_one():
    found = assign_folds(items_of(8), folds=2, seed=0, proportions=[0.25])
    assert sorted(item["label_proportion"] for item in found) == [0.25] * 2 + [1.0] * 6


def test_strata_are_alike_in_all_folds():
    items = items_of(40)
    volumes = {item["image"]: float(2**i) for i, item in enumerate(items)}
    found = assign_folds(items, folds=4, seed=0, strata=volumes)
    ranked = [folds_of(found)[item["image"]] for item in items]
    assert all(sorted(ranked[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 40, 4))
    # no fold has the smallest of all fours
    assert len({ranked[i] for i in range(0, 40, 4)}) > 1
    sexes = {item["image"]: "F" if i < 8 else "M" for i, item in enumerate(items)}
    found = assign_folds(items, folds=4, seed=0, strata=sexes)
    assert sorted(folds_of(found)[i["image"]] for i in items[:8]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_patients_stratum_is_that_of_its_first_image():
    items = [dict(item, patient=f"P{i // 2}") for i, item in enumerate(items_of(16))]
    # the first images divide the patients into halves, the second ones into even and odd
    classes = {item["image"]: (i // 2 < 4, i // 2 % 2)[i % 2] for i, item in enumerate(items)}
    for seed in range(5):
        found = assign_folds(items, folds=4, seed=seed, strata=classes)
        assert sorted(item["fold"] for item in found[:8:2]) == [0, 1, 2, 3]


def test_scans_without_label_are_in_no_fold():
    items = [*items_of(6), {"image": "free.nii.gz"}]
    found = assign_folds(items, folds=3, seed=0)
    assert "fold" not in found[-1]
    assert fold_sections(found, fold=0)["unlabelled"] == [{"image": "free.nii.gz"}]


@pytest.mark.parametrize(
    ("knobs", "error", "match"),
    [
        ({"folds": 1}, ValueError, "`folds` must be at least 2, got 1"),
        ({"folds": 7}, DatasetError, "number of patients with labels, 6, got 7"),
        ({"folds": 2, "proportions": [10]}, ValueError, r"`proportions` must lie in \(0, 1\]"),
        ({"folds": 2, "strata": {"p0.nii.gz": 1}}, DatasetError, "got none for p[1-5]"),
    ],
)
def test_folds_that_cannot_be(knobs, error, match):
    with pytest.raises(error, match=match):
        assign_folds(items_of(6), seed=0, **knobs)


def test_a_fold_that_is_none():
    with pytest.raises(DatasetError, match=r"got fold 2 with 0 and 4: divide"):
        fold_sections(assign_folds(items_of(4), folds=2, seed=0), fold=2)


def test_nnunets_splits_are_written_and_read(tmp_path):
    found = assign_folds(items_of(10), folds=5, seed=0)
    write_nnunet_splits(tmp_path / "splits_final.json", found)
    splits = json.loads((tmp_path / "splits_final.json").read_text(encoding="utf-8"))
    assert len(splits) == 5
    for fold, split in enumerate(splits):
        assert set(split) == {"train", "val"}
        assert sorted(split["train"] + split["val"]) == sorted(f"p{i}" for i in range(10))
        assert {f"{name}.nii.gz" for name in split["val"]} == {
            item["image"] for item in found if item["fold"] == fold
        }
    assert read_nnunet_splits(tmp_path / "splits_final.json", items_of(10, fold=9)) == found


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "nnU-Net's splits_final.json, a list of train and val, got"),
        ('{"train": 1}', "a list of train and val"),
        ('[{"train": [], "val": ["p1"]}, {"val": ["p1"]}]', "in one fold, got p1 in 0 and 1"),
        ('[{"train": [], "val": ["q"]}]', "cases of the datalist, got others in .*, such as q"),
        ("[]", "such as none at all"),
    ],
)
def test_splits_that_are_none(tmp_path, content, match):
    (tmp_path / "s.json").write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=match):
        read_nnunet_splits(tmp_path / "s.json", items_of(2))


def test_splits_that_cannot_be_written(tmp_path):
    with pytest.raises(DatasetError, match="must have a fold, got none"):
        write_nnunet_splits(tmp_path / "s.json", items_of(2))
    twice = [{"image": "a/x.nii", "fold": 0}, {"image": "b/x.nii.gz", "fold": 1}]
    with pytest.raises(DatasetError, match="names of their own, got x twice"):
        write_nnunet_splits(tmp_path / "s.json", twice)
    assert not (tmp_path / "s.json").exists()


def test_cases_are_called_as_nnunet_does():
    assert case_name({"image": "a/p_1.nii"}) == "p_1"
    assert case_name({"image": ["a/p_1_0000.nii.gz"]}) == "p_1"


@pytest.fixture
def datalist(tmp_path):
    items = items_of(12)
    for number, item in enumerate(items):
        for file in (item["image"], item["label"]):
            (tmp_path / file).touch()
        item["sex"] = "FM"[number % 2]
    (tmp_path / "free.nii.gz").touch()
    content = {"training": items, "unlabelled": [{"image": "free.nii.gz"}], "labels": {"1": "x"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "dataset.json"


def test_the_command(datalist, tmp_path, capsys):
    out, splits = tmp_path / "folds.json", tmp_path / "splits_final.json"
    arguments = ["split", str(datalist), str(out), "--folds", "3", "--seed", "7"]
    arguments += ["--proportions", "0.25", "1", "--stratify", "sex", "--nnunet", str(splits)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "training: 12, unlabelled: 1\n"
    assert json.loads(out.read_text(encoding="utf-8"))["labels"] == {"1": "x"}
    # MONAI reads it as it is
    items = load_decathlon_datalist(out, True, "training")
    for fold in range(3):
        assert sorted(i["sex"] for i in items if i["fold"] == fold) == ["F", "F", "M", "M"]
    one = tmp_path / "fold1.json"
    assert main(["split", str(out), str(one), "--fold", "1", "--proportion", "0.25"]) == 0
    assert capsys.readouterr().out == "training: 2, unlabelled: 7, test: 4\n"
    again = tmp_path / "again.json"
    assert main(["split", str(datalist), str(again), "--from-nnunet", str(splits)]) == 0
    assert folds_of(read_datalist(again, "training")) == folds_of(items)


def test_a_fold_of_a_datalist_with_further_sections(datalist, tmp_path, capsys):
    content = json.loads(datalist.read_text(encoding="utf-8"))
    items = [
        {**item, "fold": i % 3, "patient": f"P{i}"} for i, item in enumerate(content["training"])
    ]
    for number in range(4):
        (tmp_path / f"u{number}.nii.gz").touch()
    more = [{"image": f"u{i}.nii.gz", "patient": f"P{i}"} for i in range(4)]
    sections = {"training": items[:10], "validation": items[10:11], "test": items[11:]}
    datalist.write_text(json.dumps({**sections, "unlabelled": more}), encoding="utf-8")
    assert main(["split", str(datalist), str(tmp_path / "one.json"), "--fold", "0"]) == 0
    *left, counts = capsys.readouterr().out.splitlines()
    of = f"of {datalist}"
    assert left == [
        f"left out: unlabelled scans of patients to test, 2 {of}",
        f"left out: validation, 1 {of}",
        f"left out: test, 1 {of}",
    ]
    assert counts == "training: 6, unlabelled: 2, test: 4"
    found = read_datalist(tmp_path / "one.json", "unlabelled")
    assert [Path(item["image"]).name for item in found] == ["u1.nii.gz", "u2.nii.gz"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "one of --labelled and --test, --folds, --from-nnunet, --fold, got 0"),
        (["--folds", "2", "--fold", "1"], "got 2"),
        (["--labelled", "2"], "got --labelled 2 and no --test: add --test"),
        (["--fold", "0", "--stratify", "age"], "`--stratify` must be given with --folds"),
        (["--fold", "0", "--nnunet", "x.json"], "with --folds or --from-nnunet"),
        (["--folds", "2", "--stratify", "age"], "`strata` must have every labelled image"),
        (["--folds", "2", "--stratify", "volume:x"], "labels from 1 to 255, got volume:x"),
    ],
)
def test_the_command_says_what_is_wrong(datalist, tmp_path, capsys, arguments, match):
    assert main(["split", str(datalist), str(tmp_path / "out.json"), *arguments]) == 1
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
