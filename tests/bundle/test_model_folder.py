"""A folder of weights that knows what it is."""

import json

import pytest
import yaml
from helpers.bundle_runs import CONFIGS
from monai.bundle import ConfigParser

from stipple_monai import DatasetError
from stipple_monai.bundle import (
    MODEL,
    check_weights,
    read_model,
    trained_knobs,
    weights_folder,
    write_model,
)
from stipple_monai.files import write_csv


def made(folder, **more):
    overlay = folder.parent / "plan.yaml"
    overlay.write_text("organs: [63]\nspacing_mm: [2, 2, -1]\nscan: $@loading\n", encoding="utf-8")
    known = {"organs": {63: "liver"}, "overlays": ["baseline", overlay], "knobs": {"floor": 0.01}}
    return write_model(folder, CONFIGS, **{**known, **more})


def test_it_keeps_its_overlays_and_knobs(tmp_path):
    model = made(tmp_path / "a", versions={"torch": "2"}, training={"scans": 3})
    (tmp_path / "plan.yaml").unlink()
    assert read_model(tmp_path / "a") == model
    assert [path.name for path in model.overlays] == ["0_baseline.yaml", "1_plan.yaml"]
    assert yaml.safe_load(model.overlays[1].read_text(encoding="utf-8"))["organs"] == [63]
    values = model.values()
    assert (values["floor"], values["spacing_mm"]) == (0.01, [2, 2, -1])
    # no expression, and nothing that only a config can resolve
    knobs = trained_knobs(tmp_path / "a")
    assert (knobs["organs"], knobs["floor"]) == ([63], 0.01)
    assert not {"scan", "models_dir", "inferer"} & knobs.keys()
    assert trained_knobs(tmp_path) == {}


def test_weights_that_are_not_there_or_not_the_last(tmp_path, recwarn):
    with pytest.raises(DatasetError, match=r"must have model.pt and .*: give the folder of a tr"):
        check_weights(tmp_path)
    (tmp_path / "checkpoint_epoch=2.pt").touch()
    with pytest.raises(DatasetError, match=r"interrupted or still runs: give the same `train` c"):
        check_weights(tmp_path)
    rows = [[1, ""], [2, "0.4"]]
    write_csv(tmp_path / "curve.csv", ["epoch", "validation_dice"], rows)
    (tmp_path / "model.pt").touch()
    with pytest.warns(UserWarning, match=r"is not over after 2 epochs: these are its best weights"):
        check_weights(tmp_path)
    recwarn.clear()
    (tmp_path / "last.pt").touch()
    check_weights(tmp_path)
    (tmp_path / "last.pt").unlink()
    write_csv(tmp_path / "curve.csv", ["epoch", "validation_dice"], [[1, ""]])
    check_weights(tmp_path)
    assert not recwarn.list


def test_a_folder_of_the_config_alone_knows_its_knobs_by_its_record(tmp_path):
    settings = {"organs": [1, 2], "percentiles": True, "train#dataloader": "DataLoader"}
    record = {"config": {**settings, "calibration": "/where/it/was/trained/calibration.json"}}
    (tmp_path / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    assert trained_knobs(tmp_path) == {"organs": [1, 2], "percentiles": True}
    record["config"]["calibration"] = "equation_2"
    (tmp_path / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    assert trained_knobs(tmp_path)["calibration"] == "equation_2"
    (tmp_path / "calibration.json").touch()  # fitted after the training
    assert "calibration" not in trained_knobs(tmp_path)
    for other in ("[", "[1]", "{}", '{"config": 3}'):
        (tmp_path / "provenance.json").write_text(other, encoding="utf-8")
        assert trained_knobs(tmp_path) == {}


def test_a_folder_made_of_another_is_the_same(tmp_path):
    first = made(tmp_path / "a")
    second = write_model(
        tmp_path / "b", CONFIGS, organs=first.organs, overlays=first.overlays, knobs=first.knobs
    )
    assert [p.name for p in second.overlays] == [p.name for p in first.overlays]
    assert second.values() == first.values()


def test_what_contradicts_it_is_refused_with_both_values(tmp_path):
    model = made(tmp_path / "a")
    same = {"organs": [63], "strength": 2, "floor": 0.01}
    model.agree(CONFIGS, overlays=["baseline", tmp_path / "plan.yaml"], options=same)
    with pytest.raises(DatasetError, match=r"`floor` must be 0.01, with which .* got 0.5: leave"):
        model.agree(CONFIGS, options={"floor": 0.5})
    model.agree(CONFIGS, options={"floor": 0.5}, free=["floor"])
    with pytest.raises(DatasetError, match=r"`overlays` must be those of .* got phantom, where"):
        model.agree(CONFIGS, overlays=["phantom"])


def test_the_weights_below_a_folder_are_found(tmp_path):
    assert weights_folder(tmp_path) == tmp_path
    for number in (0, 2, 10):
        (tmp_path / f"round_{number}").mkdir()
        made(tmp_path / f"round_{number}" / "models")
        (tmp_path / f"round_{number}" / "models" / "model.pt").touch()
    (tmp_path / "round_11" / "models.part").mkdir(parents=True)
    rounds = [tmp_path / f"round_{number}" / "models" for number in (0, 2, 10)]
    assert weights_folder(tmp_path) == rounds[2]
    assert weights_folder(tmp_path / "round_2") == weights_folder(rounds[1]) == rounds[1]
    best = [[0, 9, 0.5, "no"], [2, 7, 0.7, "yes"], [10, 3, 0.6, "no"]]
    write_csv(tmp_path / "comparison.csv", ["round", "epoch", "dice", "best"], best)
    assert read_model(tmp_path).folder == rounds[1]
    made(tmp_path / "alone")
    assert weights_folder(tmp_path / "alone") == tmp_path / "alone"


def test_an_old_or_broken_folder_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DatasetError, match=r"has no model.json: train with .* stipple adopt"):
        read_model(tmp_path)
    model = made(tmp_path / "a")
    path = tmp_path / "a" / MODEL
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**whole, "format": 9}), encoding="utf-8")
    with pytest.raises(DatasetError, match="must be of format 1, got 9: install"):
        read_model(tmp_path / "a")
    for text in ("[]", "{", json.dumps({**whole, "organs": [1]})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match="must be what training writes"):
            read_model(tmp_path / "a")
    path.write_text(json.dumps(whole), encoding="utf-8")
    model.overlays[0].unlink()
    with pytest.raises(DatasetError, match=r"must have its overlays beside it, got no .*0_base"):
        read_model(tmp_path / "a")
    with pytest.raises(ValueError, match="Knobs must be in the configs, got flour"):
        made(tmp_path / "b", knobs={"flour": 1})


def test_inference_by_itself_counts_and_locates_as_the_folder_says(tmp_path):
    knobs = {"calibration": "equation_2", "minimum_confidence": 0.7, "spread_mm": 30}
    write_model(tmp_path / "a", CONFIGS, organs={1: "liver"}, knobs=knobs)
    (tmp_path / "b").mkdir()
    beside = {"calibration": f"{tmp_path / 'b'}/calibration.json", "minimum_confidence": None}
    for folder, expected in (("a", knobs), ("b", {**beside, "spread_mm": 40})):
        parser = ConfigParser()
        parser.read_config(str(CONFIGS / "inference.yaml"))
        parser["models_dir"] = str(tmp_path / folder)
        assert {name: parser.get_parsed_content(name) for name in knobs} == expected
