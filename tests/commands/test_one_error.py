"""One clear error, before anything expensive and whatever is wrong."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers.bright_scans import KNOBS, bright_scan

from stipple_monai import DatasetError
from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE, check_knobs
from stipple_monai.data import read_datalist, split_datalist, write_datalist
from stipple_monai.files import read_csv, read_json, write_csv
from stipple_monai.results import read_records
from stipple_monai.self_training import self_train
from stipple_monai.study.plan import read_methods, read_study

DEEP = "[" * 20000
ROW = {"organ": 1, "name": "x", "confidence": 1.0, "volume_ml": 1.0, "position_mm": None}
FORMULAS = ['=HYPERLINK("http://x")', "+1+1", "-x", "@x", "\tx", "'quoted", "'"]


def error_of(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["check"],
        ["phantom", "x", "--size", "many"],
        ["phantom", "x", "--seed", "-1"],
        ["phantom", "x", "--seed", "٣"],
        ["train", "x", "y", "--seed", "-1"],
        ["calibrate", "x", "y", "--seed", "-1"],
        ["phantom", "x", "--size", "100000000"],
        ["phantom", "x", "--size", "8"],
        ["simulate", "x", "y", "--organs", "1=1.5"],
        ["self-train", "x", "y", "--shares", "0.5", "--counts", "3"],
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_one_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, *arguments)
    assert "stipple_monai" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [DEEP, '{"training": 1e400}', '{"a": NaN}', "\x00", "{"])
def test_json_of_any_depth(capsys, tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    assert "must be JSON" in error_of(capsys, "check", tmp_path / "list.json")
    with pytest.raises(ValueError, match=r".+"):
        read_json(tmp_path / "list.json")


@pytest.mark.slow
def test_yaml_of_any_depth(tmp_path, monkeypatch):
    # the parser that PyYAML takes by itself, which goes as deep as Python does
    monkeypatch.setattr(yaml, "SafeLoader", yaml.loader.SafeLoader)
    (tmp_path / "study.yaml").write_text(DEEP)
    with pytest.raises(DatasetError, match="must be YAML files that can be read"):
        read_study(tmp_path / "study.yaml")
    with pytest.raises(DatasetError, match="must be YAML"):
        check_knobs(BUNDLE / "configs", [tmp_path / "study.yaml"], {})


@pytest.mark.parametrize(
    "record",
    [
        {"scan": "a", "organs": 3},
        {"scan": "a", "organs": [3]},
        {"scan": "a", "organs": [{"organ": 1}]},
        {
            "scan": "a",
            "organs": [
                {
                    **dict.fromkeys(["organ", "name", "confidence"]),
                    "volume_ml": "x",
                    "position_mm": None,
                }
            ],
        },
        {
            "scan": "a",
            "organs": [
                {"organ": 1, "name": "x", "confidence": 1.0, "volume_ml": 1.0, "position_mm": [1]}
            ],
        },
    ],
)
def test_junk_records(tmp_path, record):
    (tmp_path / "a_volumes.json").write_text(json.dumps(record))
    with pytest.raises(DatasetError, match="must be a record of a segmentation"):
        read_records(tmp_path)


STUDY = {"title": "t", "methods": ["baseline"], "proportions": [0.5], "phantom": {"cases": 4}}


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"seeds": ["a"]}, "`seeds` must be a list of int"),
        ({"seeds": [-1]}, "`seeds` must be a list of int"),
        ({"seeds": [True]}, "`seeds` must be a list of int"),
        ({"seeds": 3}, "`seeds` must be a list of int"),
        ({"seeds": ["../x"]}, "`seeds` must be a list of int"),
        ({"seeds": [0, 0]}, "`seeds` must not have a value twice"),
        ({"methods": ["baseline", "baseline"]}, "`methods` must not have a value twice"),
        ({"methods": [7]}, "`methods` must be a list of str"),
        ({"proportions": [0.101, 0.1]}, "`proportions` must not have a value twice.*percents"),
        ({"run_folds": [0, 0]}, "`run_folds` must not have a value twice"),
        ({"folds": "5"}, "`folds` must be a whole number"),
        ({"organ": 1.5}, "`organ` must be a whole number"),
    ],
)
def test_studies_of_other_types_or_with_duplicates(tmp_path, entries, match):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, **entries}))
    with pytest.raises(DatasetError, match=match):
        read_study(tmp_path / "study.yaml")


def test_a_method_s_name_does_not_climb(tmp_path):
    name = "../../escaped"
    content = {**STUDY, "methods": [name], "definitions": {name: {}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = read_study(tmp_path / "study.yaml")
    with pytest.raises(DatasetError, match="`methods` must be a name"):
        read_methods(BUNDLE / "studies" / "methods.yaml", study)


def test_an_overlay_s_path_is_no_folder_of_a_study(tmp_path):
    content = {**STUDY, "methods": ["x"], "definitions": {"x": {"overlays": ["../../up.yaml"]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = read_study(tmp_path / "study.yaml")
    (method,) = read_methods(BUNDLE / "studies" / "methods.yaml", study)
    assert method.network.startswith("up-")


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_counts_with_which_no_training_begins(value):
    with pytest.raises(ValueError, match="`max_epochs` must be a whole number of at least 1"):
        check_knobs(BUNDLE / "configs", ["train"], {"max_epochs": value})


# found before the first training


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    items = [bright_scan(folder, i) for i in range(3)]
    return folder, items


def begin(folder, items, out, **options):
    sections = {"training": items[:1], "unlabelled": [{"image": i["image"]} for i in items[1:]]}
    write_datalist(folder / "list.json", sections)
    return self_train(folder / "list.json", out, options=KNOBS, **options)


def test_weights_of_another_network_stop_before_the_first_training(scans, tmp_path):
    folder, items = scans
    for name, content in (("junk.pt", b"junk"), ("empty.pt", b"")):
        (folder / name).write_bytes(content)
        with pytest.raises(DatasetError, match=f"{name} must hold weights"):
            begin(folder, items, tmp_path / "out", position_with=folder / name)
    assert not (tmp_path / "out").exists()


def test_unlabelled_scans_of_one_name_stop_before_the_first_training(scans, tmp_path):
    folder, items = scans
    (folder / "other").mkdir()
    items = [*items, bright_scan(folder / "other", 1)]
    with pytest.raises(DatasetError, match="unlabelled scans different file names, got"):
        begin(folder, items, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_unlabelled_scan_stops_before_the_first_training(scans, tmp_path):
    folder, items = scans
    image = nib.load(items[2]["image"])
    broken = np.asarray(image.dataobj).copy()
    broken[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(broken, image.affine), items[2]["image"])
    with pytest.raises(DatasetError, match=r"`image` must be finite, got 1 .*scan_2_image"):
        begin(folder, items, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# small


@pytest.mark.parametrize(
    "command",
    [
        ["check", "list.json", "--csv", "OUT/a.csv"],
        ["prior", "list.json", "--out", "OUT"],
        ["plan", "list.json", "--out", "OUT/plan.yaml"],
        ["split", "list.json", "OUT/split.json", "--labelled", "1"],
        ["ingest", "source", "OUT"],
        ["train", "list.json", "--out", "OUT"],
        ["self-train", "list.json", "OUT"],
        ["segment", "a.nii.gz", "--models", "m", "--out", "OUT"],
        ["fuse", "a.nii.gz", "--priors", "p", "--out", "OUT"],
        ["evaluate", "m", "list.json", "--out", "OUT"],
        ["report", "list.json", "--out", "OUT/a.html"],
        ["study", "study.yaml", "--out", "OUT"],
        ["publish", "OUT/zoo", "--models", "m"],
        ["phantom", "OUT"],
        ["simulate", "OUT", "a.nii.gz"],
        ["demo", "--out", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_nothing_is_written_below_a_file(tmp_path, capsys, command):
    (tmp_path / "file").write_text("mine")
    given = [text.replace("OUT", str(tmp_path / "file" / "sub")) for text in command]
    line = error_of(capsys, *given)
    assert re.search(r"Outputs must lie in a folder, got .*/sub.*/file is a file: choose", line)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_labels_without_the_organ_are_named_with_what_they_have(tmp_path, capsys):
    items = [bright_scan(tmp_path, number) for number in range(3)]
    for number, value in ((1, 7), (2, 0)):
        label = nib.load(items[number]["label"])
        changed = np.asarray(label.dataobj) * value
        nib.save(nib.Nifti1Image(changed.astype(np.uint8), label.affine), items[number]["label"])
    write_datalist(tmp_path / "list.json", {"training": items})
    command = ["prior", str(tmp_path / "list.json"), "--out", str(tmp_path / "p")]
    told = r"scan_1_label.nii.gz does not contain organ 1: skipped; it has 7. So are 1 more: "
    with pytest.warns(UserWarning, match=told + r".*scan_2_label.nii.gz \(has 0 alone\)"):
        assert main(command) == 0


@pytest.mark.parametrize(
    "cell", ['=HYPERLINK("http://x")', "+1+1", "-x", "@x", "\tx", "'quoted", "'"]
)
def test_names_are_no_formulas(tmp_path, cell):
    write_csv(tmp_path / "a.csv", ["name"], [[cell], ["-3.25"], [-2], ["plain"]])
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[1].lstrip('"').startswith("'")
    assert lines[2:] == ["-3.25", "-2", "plain"]
    assert [row["name"] for row in read_csv(tmp_path / "a.csv")] == [cell, "-3.25", "-2", "plain"]


def test_one_scan_under_two_spellings_is_one(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    for other in ("./a.nii", "x/../a.nii", "link.nii"):
        content = {"training": ["a.nii"], "test": [other]}
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "list.json").write_text(json.dumps(content))
        with pytest.raises(DatasetError, match="must not share images"):
            read_datalist(tmp_path / "list.json", "training")
        twice = [{"image": str(tmp_path / name), "label": "l"} for name in ("a.nii", other)]
        with pytest.raises(DatasetError, match="must not have an image twice"):
            split_datalist(twice, labelled=1, validation=0, test=0, seed=0)
