"""Bars where somebody looks, lines where a log is written, and what the configs show."""

import logging
import sys
from types import SimpleNamespace

import pytest
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from stipple_monai.bundle import BUNDLE
from stipple_monai.handlers import ScanLines
from stipple_monai.progress import Stopwatch, clock, follow, on_terminal

CONFIGS = BUNDLE / "configs"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.4, "59:59"), (3599.6, "1:00:00")],
)
def test_a_time_carries_over_to_minutes_and_hours(seconds, text):
    assert clock(seconds) == text


def test_a_stopwatch_tells_the_time_since_it_was_made(capsys, monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 10.0)
    watch = Stopwatch()
    monkeypatch.setattr("time.monotonic", lambda: 7277.0)
    watch.say("Round 2.")
    assert capsys.readouterr().out == "[2:01:07] Round 2.\n"


def test_a_line_an_item_in_a_log(capsys):
    for number, item in enumerate(follow("ab", "check", unit="case")):
        told = capsys.readouterr().err
        assert told == ("" if number == 0 else "check: case 1/2\n")
        assert item == "ab"[number]
    assert capsys.readouterr().err == "check: case 2/2\n"
    assert list(follow(iter("ab"), "check", unit="case")) == ["a", "b"]
    assert capsys.readouterr().err == "check: case 1\ncheck: case 2\n"


def test_an_item_that_fails_is_not_done(capsys):
    work = (1 / number for number in follow([1, 0], "check", unit="case"))
    assert next(work) == 1
    with pytest.raises(ZeroDivisionError):
        next(work)
    assert capsys.readouterr().err == "check: case 1/2\n"


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(follow("ab", "check", unit="case")) == ["a", "b"]
    told = capsys.readouterr().err
    assert "check: 100%" in told
    assert "2/2" in told
    assert "check: case" not in told


def test_nothing_where_it_is_not_wanted(capsys, monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda there=there: there)
        assert list(follow("ab", "check", unit="case", shown=False)) == ["a", "b"]
        assert capsys.readouterr().err == ""


def test_without_standard_error_nobody_looks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not on_terminal()


def test_a_line_a_scan_names_it(capsys, monkeypatch):
    # handlers that the logging.conf of an earlier test's bundle made write to a stream of its own
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def step(engine, number):
        image = MetaTensor([0.0], meta={"filename_or_obj": f"scans/p{number}.nii.gz"})
        return [{"image": image}]

    engine = Engine(step)
    ScanLines().attach(engine)
    engine.run([1, 2], max_epochs=1)
    assert capsys.readouterr().err == "scan 1/2: p1.nii.gz\nscan 2/2: p2.nii.gz\n"
    engine = Engine(step)
    ScanLines().attach(engine)
    engine.run(iter([1, 2]), max_epochs=1)  # nobody knows how many
    assert capsys.readouterr().err == "scan 1: p1.nii.gz\nscan 2: p2.nii.gz\n"


def shown(name, *, terminal, **knobs):
    """What of a config tells how far a run is: by the path of the part, whether it does."""
    parser = ConfigParser()
    parser.read_config(CONFIGS / f"{name}.yaml")
    parser.update({**knobs, "imports": []})
    parser.globals["sys"] = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: terminal))
    found = {}

    def walk(part, path):
        if isinstance(part, dict):
            kind = str(part.get("_target_", "")).rpartition(".")[2]
            if kind in ("ProgressBar", "ScanLines", "EpochLines"):
                found[kind] = not parser.get_parsed_content(f"{path}#_disabled_")
            if kind in ("CacheDataset", "RepeatedDataset"):
                found[path.partition("#")[0]] = parser.get_parsed_content(f"{path}#progress")
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(value, dict | list):
                walk(value, f"{path}#{key}" if path else str(key))

    walk(parser.get(), "")
    return found


@pytest.mark.parametrize("terminal", [False, True])
def test_configs_show_bars_on_a_terminal_alone(terminal):
    assert shown("train", terminal=terminal, lines=True) == {
        "train": terminal,
        "validate": terminal,
        "ProgressBar": terminal,
        "EpochLines": True,
    }
    lines = {"ProgressBar": terminal, "ScanLines": not terminal}
    assert shown("inference", terminal=terminal, lines=True) == lines
    assert shown("inference", terminal=terminal)["ScanLines"] is False


def test_a_bar_can_be_asked_for_and_switched_off():
    assert shown("train", terminal=True, progress=False)["ProgressBar"] is False
    assert shown("inference", terminal=False, progress=True)["ProgressBar"] is True
