"""Knobs: how they are read, and which are refused."""

import pytest
import yaml
from helpers.bundle_runs import CONFIGS

from stipple_monai.bundle import check_knobs
from stipple_monai.commands.options import read_knobs
from stipple_monai.errors import DatasetError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("2.", 2.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("007", "007"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("a: b", "a: b"),
        ("2020-01-01", "2020-01-01"),
        ("0x10", "0x10"),
        ('"no"', "no"),
        ("/data/a: b/model.pt", "/data/a: b/model.pt"),
    ],
)
def test_knobs_are_read_as_written(text, value):
    (found,) = read_knobs([f"knob={text}"]).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("word", ["no", "Yes", "OFF", "on"])
def test_words_that_may_be_either_are_refused(word):
    with pytest.raises(ValueError, match=f"must be true or false, .* got {word}"):
        read_knobs([f"knob={word}"])


def test_numbers_beyond_all_are_refused():
    with pytest.raises(ValueError, match="`knob` must be finite, got 1e400"):
        read_knobs(["knob=1e400"])


def test_counts_are_whole_numbers_or_expressions():
    for value in ("$2 * 3", "@epochs", "%file::max_epochs", 1):
        check_knobs(CONFIGS, ["train"], {"max_epochs": value})
    for value in ("5", 0, 2.0, True):
        with pytest.raises(ValueError, match="`max_epochs` must be a whole number of at least 1"):
            check_knobs(CONFIGS, ["train"], {"max_epochs": value})


def test_names_of_knobs_alone_are_looked_for(tmp_path):
    check_knobs(CONFIGS, ["train"], ["max_epochs"])
    with pytest.raises(ValueError, match="got max_epoch: did you mean max_epochs"):
        check_knobs(CONFIGS, ["train"], ["max_epoch"])
    (tmp_path / "list.yaml").write_text("[max_epochs]", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"list\.yaml must hold a mapping, got list"):
        check_knobs(CONFIGS, [tmp_path / "list.yaml"], ["max_epochs"])


def test_a_knob_within_a_part_must_have_its_place():
    for knob in ("optimizer#weight_decay", "train#appearance#4#gamma", "train#dataset#data#0"):
        check_knobs(CONFIGS, ["prior", "train"], {knob: 0.1})
    for knob, place in {
        "train#appearance#9#prob": "train#appearance#9",
        "train#appearence#0#prob": "train#appearence#0",
    }.items():
        with pytest.raises(ValueError, match=f"got {knob}: there is no {place}"):
            check_knobs(CONFIGS, ["prior", "train"], {knob: 0.1})


def test_a_knob_within_a_part_must_be_an_argument_of_it():
    with pytest.raises(
        ValueError,
        match=r"got optimizer#weight_decy: torch\.optim\.Adam has no .* weight_decy, but params",
    ):
        check_knobs(CONFIGS, ["train"], {"optimizer#weight_decy": 0.1})
    # MONAI's own words, another class than the config's, and what takes any argument
    check_knobs(CONFIGS, ["train"], {"backbone#_disabled_": True})
    check_knobs(CONFIGS, ["train"], {"backbone#act": "relu", "backbone#_target_": "UNet"})
    check_knobs(CONFIGS, ["train"], {"train#dataloader#prefetch_factor": 2})


ALL = ["prior", "train", "inference", "pseudo_label"]


def overlay(folder, content, name="mine.yaml"):
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"max_epoch": 2}, r"Knobs must .* got max_epoch in {}: did you mean max_epochs\?"),
        (
            {"max_epoch": 2, "val_intervall": 1},
            r"got max_epoch, val_intervall in {}: did you mean max_epochs, val_interval\?",
        ),
        ({"qwxyz": 1}, r"Knobs must be in the configs, got qwxyz in {}: leave it out\."),
        ({f"qwxyz{i}": 1 for i in range(9)}, r"qwxyz3, qwxyz4 and 4 more in {}: leave"),
        ({"+qwxyz": [1]}, r"got \+qwxyz in {}: leave it out"),
        ("5: 1\n", r"got 5 in {}: leave it out"),
        ({"max_epochs": 0}, r"`max_epochs` must be a whole number of at least 1, got 0 in {}\."),
        ({"max_epochs": "two"}, r"`max_epochs` must be a whole number .* got 'two' in {}\."),
        ({"max_epochs": None}, r"`max_epochs` must be a whole number .* got None in {}\."),
        ({"learning_rate": "1 e-3"}, r"`learning_rate` must be a number .*, got '1 e-3' in {}:"),
        ({"spacing_mm": 5}, r"`spacing_mm` must be a list of numbers .*, got 5 in {}: give"),
        ({"optimizer#weight_decy": 1}, r"got optimizer#weight_decy in {}: .* has no argument"),
        ({"train#appearence#0#prob": 1}, r"in {}: there is no train#appearence#0 in them"),
        (
            {"training": [{"image": "a.nii.gz"}], "labels": {"0": "background"}},
            r"Overlays must hold knobs of the configs, got the datalist {}: give a YAML",
        ),
    ],
)
def test_what_is_wrong_in_an_own_overlay_is_refused(tmp_path, content, message):
    path = overlay(tmp_path, content)
    with pytest.raises(ValueError, match=message.format(r"\S*mine\.yaml")):
        check_knobs(CONFIGS, [*ALL, path], {})
    # a network that was trained with it can be used
    if not isinstance(content, str):
        check_knobs(CONFIGS, [*ALL, path], {}, trained=True)


@pytest.mark.parametrize(
    "content",
    [
        {"max_epochs": 2, "spacing_mm": [5, 5, -1], "learning_rate": "$0.1 * 2", "bins": None},
        {"steps": 3, "max_epochs": "$@steps * 2"},
        {"narrow": {"_target_": "UNet"}, "backbone": "%narrow"},
        {"_note_": "of this data set", "imports": ["$import math"]},
        {"+train#handlers": [{"_target_": "StatsHandler"}]},
        {"optimizer#weight_decay": 0.1, "train#trainer#amp": False},
        {"train#sampler": {"shuffle": True}, "train#sampler#shuffle": False},
        {"train#trainer#_target_": "my.Trainer", "train#trainer#mine": 1},
        {"patch_size": [96, 96, 32], "share": 0.5, "atlas_names": ["liver"]},
    ],
)
def test_an_own_overlay_may_have_what_the_bundle_takes(tmp_path, content):
    check_knobs(CONFIGS, [*ALL, overlay(tmp_path, content)], {})


def test_a_new_name_may_be_read_by_another_file_or_by_a_knob(tmp_path):
    helper = overlay(tmp_path, {"steps": 3})
    with pytest.raises(ValueError, match="got steps in "):
        check_knobs(CONFIGS, [*ALL, helper], {})
    check_knobs(CONFIGS, [*ALL, helper], {"max_epochs": "@steps"})
    reader = overlay(tmp_path, {"max_epochs": "@steps"}, "reader.yaml")
    check_knobs(CONFIGS, [*ALL, helper, reader], {})


def test_a_value_of_an_own_overlay_does_not_tell_what_a_knob_may_be(tmp_path):
    path = overlay(tmp_path, {"smoothing_mm": 4})
    check_knobs(CONFIGS, [*ALL, path], {"smoothing_mm": "auto"})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_copies_of_the_bundles_own_configs_pass(tmp_path, path):
    copy = overlay(tmp_path, path.read_text(encoding="utf-8"), f"0_{path.name}")
    check_knobs(CONFIGS, [*ALL, copy], {})


def test_configs_that_change_are_read_again(tmp_path):
    for name in ("train", "prior"):
        overlay(tmp_path, (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")
    mine = tmp_path / "mine"
    mine.mkdir()
    path = overlay(mine, {"novel": 1})
    with pytest.raises(ValueError, match="got novel in "):
        check_knobs(tmp_path, ["train", path], {})
    overlay(tmp_path, {"novel": 0}, "new.yaml")
    check_knobs(tmp_path, ["train", path], {})
