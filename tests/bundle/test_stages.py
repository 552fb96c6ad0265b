"""Stages: what users say reaches the configs as it was said, and nothing stays behind."""

import gc
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers.bundle_runs import CONFIGS
from monai.bundle import ConfigParser

from stipple_monai.bundle import (
    BUNDLE,
    as_written,
    check_knobs,
    configs_of,
    run_bundle,
    stages,
    whole_folder,
)
from stipple_monai.commands.options import read_knobs
from stipple_monai.errors import DatasetError

ODD = ["a#1", "a@#b", "%a#b", "a::b", "$a", "@a", "[a]", "a: b", "007", "no", "{x}", "é#", "'\"#"]


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_what_it_is(name):
    path = Path("/runs") / name / "models"
    parser = ConfigParser({"folder": as_written(path), "file": "$@folder + '/x'"})
    assert parser.get_parsed_content("folder") == str(path)
    assert parser.get_parsed_content("file") == f"{path}/x"
    relative = ConfigParser({"folder": as_written(Path(name)), "a": 1})
    assert relative.get_parsed_content("folder") == name


def test_values_within_lists_and_mappings_are_so_too():
    value = {"a": [Path("b#1"), 2], "c": None}
    parser = ConfigParser({"v": as_written(value)})
    assert parser.get_parsed_content("v") == {"a": ["b#1", 2], "c": None}


def test_what_is_meant_for_monai_stays():
    assert as_written("$1 + 1") == "$1 + 1"
    assert as_written("@bundle_root") == "@bundle_root"


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


def test_a_stage_that_is_done_is_not_begun_again(tmp_path):
    with whole_folder(tmp_path / "models", made_with={"seed": 1}) as part:
        (part / "a").touch()
    with (
        pytest.raises(FileExistsError, match=r"`path` must not exist yet, got .*models: the stage"),
        whole_folder(tmp_path / "models", made_with={"seed": 1}),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


class Circle:
    """What an engine is with its handlers, for Python's collector alone."""

    def __init__(self):
        self.itself = self


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_leaves_no_scans_behind(monkeypatch, fails):
    held, peak = [], stages.process_peak_mib()
    monkeypatch.setattr(stages, "_peak_mib", peak)
    monkeypatch.setattr(stages, "process_peak_mib", lambda: peak + stages.GROWTH_MIB + 1)

    def run(**given):
        held.append(weakref.ref(Circle()))
        if fails:
            raise KeyboardInterrupt

    monkeypatch.setattr("monai.bundle.run", run)
    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
            run_bundle(configs_of(BUNDLE), ["train"])
        assert held[0]() is None
    finally:
        gc.enable()
