"""Knobs: how they are read, and which are refused."""

import pytest
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
