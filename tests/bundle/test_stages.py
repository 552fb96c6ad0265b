"""Stages: whole or absent, and nothing stays behind."""

import gc
import weakref
from contextlib import nullcontext

import pytest

from stipple_monai.bundle import (
    BUNDLE,
    configs_of,
    run_bundle,
    stages,
    whole_folder,
)


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


def test_a_knob_of_a_part_that_the_configs_have_not_is_for_others(monkeypatch):
    given = {}
    monkeypatch.setattr("monai.bundle.run", lambda **knobs: given.update(knobs))
    knobs = {"optimizer#weight_decay": 0.1, "inferer#mode": "linear", "organs": [1], "logs": "x"}
    run_bundle(configs_of(BUNDLE), ["inference"], **knobs)
    assert given.keys() & knobs.keys() == {"inferer#mode", "organs", "logs"}
    run_bundle(configs_of(BUNDLE), ["prior", "train"], **knobs)
    assert given["optimizer#weight_decay"] == 0.1
