"""Folds, fit and final network on a tiny phantom, and starting again."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.bright_scans import KNOBS, bright_scan

from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE, run_bundle, write_model
from stipple_monai.cross_fitting import calibrate, calibrate_run, read_samples
from stipple_monai.cross_fitting.stage import GIVEN
from stipple_monai.data import read_datalist, write_datalist
from stipple_monai.errors import DatasetError
from stipple_monai.networks import Calibration

pytestmark = pytest.mark.filterwarnings("ignore:Organ . (is predicted nowhere|has no certain)")


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    items = [bright_scan(root, number) for number in range(4)]
    path = root / "split.json"
    write_datalist(path, {"training": items[:3], "test": items[3:]})
    return path


@pytest.fixture(scope="module")
def done(datalist, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    path = calibrate(datalist, root / "eval", root / "models", folds=2, options=KNOBS)
    assert path == root / "models" / "calibration.json"
    return root


def again(datalist, root, **changes):
    given = {"folds": 2, "options": KNOBS, **changes}
    return calibrate(datalist, root / "eval", root / "models", **given)


def weights(path):
    return torch.load(path, weights_only=True)


def test_every_labelled_scan_is_held_out_once(done, datalist):
    scans = {item["image"] for item in read_datalist(datalist, "training")}
    held = []
    for fold in (1, 2):
        path = done / "eval" / f"fold_{fold}" / "datalist.json"
        out, rest = (
            {item["image"] for item in read_datalist(path, section)}
            for section in ("held_out", "training")
        )
        assert out | rest == scans
        assert not out & rest
        held += sorted(out)
    assert sorted(held) == sorted(scans)


def test_pseudo_labelled_scans_train_every_network_and_are_in_no_fold(
    datalist, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise RuntimeError("no training")

    items = read_datalist(datalist, "training")
    pseudo = {**items[2], "pseudo_label": {"round": 1}}
    write_datalist(tmp_path / "split.json", {"training": [*items[:2], pseudo]})
    monkeypatch.setattr("stipple_monai.cross_fitting.stage.run_bundle", stop)
    with pytest.raises(RuntimeError, match="no training"):
        again(tmp_path / "split.json", tmp_path)
    path = tmp_path / "eval" / "fold_1" / "datalist.json"
    out, rest = (read_datalist(path, section) for section in ("held_out", "training"))
    assert [item["image"] for item in rest[1:]] == [pseudo["image"]]
    assert {out[0]["image"], rest[0]["image"]} == {item["image"] for item in items[:2]}
    assert len(out) == 1


def test_a_patients_scans_are_held_out_together(datalist, tmp_path, monkeypatch):
    def dealt(self, name, path, models, **_):
        whose = {
            s: {i["patient"] for i in read_datalist(path, s)} for s in ("training", "held_out")
        }
        found[name] = whose["held_out"]
        assert whose["training"].isdisjoint(whose["held_out"])

    def stop(*_, **__):
        raise RuntimeError("dealt")

    found = {}
    monkeypatch.setattr("stipple_monai.cross_fitting.stage._Stage.train", dealt)
    monkeypatch.setattr("stipple_monai.cross_fitting.stage._Stage.fit", stop)
    items = read_datalist(datalist, "training")
    scans = [{**item, "patient": who} for item, who in zip(items, "aab", strict=True)]
    other = {**read_datalist(datalist, "test")[0], "patient": "a", "pseudo_label": {"round": 1}}
    write_datalist(tmp_path / "split.json", {"training": [*scans, other]})
    with pytest.raises(RuntimeError, match="dealt"):
        again(tmp_path / "split.json", tmp_path, folds=None)
    assert sorted(map(sorted, found.values())) == [["a"], ["b"]]
    settings = json.loads((tmp_path / "eval" / "settings.json").read_text())
    assert settings["folds"] == "2 of patients"
    with pytest.raises(ValueError, match=r"`folds` must lie in 2 to .* patients .*, 2, got 3"):
        again(tmp_path / "split.json", tmp_path, folds=3)


def test_the_calibration_is_fitted_to_all_folds_and_in_the_weights(done):
    calibration = Calibration.load(done / "models" / "calibration.json")
    assert calibration.record["fitted"]
    samples = [read_samples(p) for p in sorted((done / "eval").glob("fold_*/samples_located.npz"))]
    assert sum(part.scan.max() + 1 for part in samples) == 3
    assert calibration.record["voxels"] == sum(len(part.label) for part in samples)
    state = weights(done / "models" / "model.pt")
    assert torch.equal(state["calibration"], calibration.tensor())
    assert "calibration" not in weights(done / "eval" / "fold_1" / "models" / "model.pt")
    nats = calibration.record["nats_per_organ_voxel"]
    assert nats["fused"] <= min(nats["network_alone"], nats["prior_alone"], nats["equation_2"])


def test_inference_uses_it(done, datalist, tmp_path):
    knobs = {**KNOBS, "datalist": str(datalist), "bundle_root": str(done), "probabilities": True}
    training = ("slices_per_scan", "batch_size", "calibration")
    knobs = {name: v for name, v in knobs.items() if name not in training}
    configs, found = BUNDLE / "configs", {}
    for name, more in {
        "file": {},
        "weights": {"calibration": None},
        "equation_2": {"calibration": "equation_2"},
    }.items():
        run_bundle(configs, ["inference"], **{**knobs, **more}, output_dir=str(tmp_path / name))
        (path,) = (tmp_path / name).glob("*_prob.nii.gz")
        found[name] = path.read_bytes()
    assert found["file"] == found["weights"] != found["equation_2"]


def test_what_is_done_is_not_done_again(done, datalist, tmp_path, capsys):
    root = tmp_path / "run"
    shutil.copytree(done, root)
    model = root / "eval" / "fold_2" / "models"
    shutil.rmtree(model)
    (root / "eval" / "fold_2" / "samples_located.npz").unlink()
    (root / "models" / "calibration.json").unlink()
    again(datalist, root)
    said = capsys.readouterr().out
    assert "fold_1: trained before" in said
    assert "fold_2: train on" in said
    assert "final: train" not in said
    one, two = (read_samples(r / "eval" / "fold_2" / "samples_located.npz") for r in (done, root))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    files = [(r / "models" / "calibration.json").read_text() for r in (done, root)]
    assert files[0] == files[1]


def trained(done, tmp_path, **changes):
    """A folder whose networks are trained, as if with other settings, and nothing is predicted."""
    root = tmp_path / "run"
    for fold in (1, 2):
        source = done / "eval" / f"fold_{fold}" / "models"
        shutil.copytree(source, root / "eval" / f"fold_{fold}" / "models")
    shutil.copytree(done / "models", root / "models")
    settings = json.loads((done / "eval" / "settings.json").read_text())
    (root / "eval" / "settings.json").write_text(json.dumps({**settings, **changes}))
    return root


def test_true_positions(done, datalist, tmp_path):
    root = trained(done, tmp_path)
    again(datalist, root, position="true")
    assert read_samples(root / "eval" / "fold_1" / "samples_true.npz").known.all()


def test_priors_that_cannot_be_located_are_placed_by_the_labels(done, datalist, tmp_path, capsys):
    options = {**KNOBS, "minimum_confidence": 1.0}
    root = trained(done, tmp_path, options=options)
    again(datalist, root, options=options)
    assert "no prior was located in the held-out scans" in capsys.readouterr().out
    assert not read_samples(root / "eval" / "fold_1" / "samples_located.npz").known.any()
    assert Calibration.load(root / "models" / "calibration.json").record["fitted"]


def test_networks_of_folds_take_as_many_steps(done):
    for fold, scans in (("eval/fold_1/", 1), ("eval/fold_2/", 2), ("", 3)):
        record = json.loads((done / f"{fold}models/provenance.json").read_text())
        assert record["config"]["slices_per_scan"] * scans == 36


@pytest.mark.slow
def test_one_labelled_scan_gets_constants(datalist, tmp_path):
    path = tmp_path / "one.json"
    write_datalist(path, {"training": read_datalist(datalist, "training")[:1]})
    found = calibrate(path, tmp_path / "eval", tmp_path / "models", options=KNOBS)
    assert Calibration.load(found) == Calibration.unfitted(1, labelled=1, prior_in_training=True)
    # weights could not look at a scan's margin
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert "calibration" not in weights
    assert not list((tmp_path / "eval").glob("fold_*"))


def test_errors(done, datalist, tmp_path):
    with pytest.raises(ValueError, match=r"`folds` must lie in 2 to .* scans, 3, got 4"):
        again(datalist, tmp_path, folds=4)
    with pytest.raises(ValueError, match="`position` must be 'located' or 'true', got 'here'"):
        again(datalist, tmp_path, position="here")
    for name in GIVEN:
        with pytest.raises(ValueError, match=f"knobs that follow from .* got {name}"):
            again(datalist, tmp_path, options={name: 1})
    with pytest.raises(ValueError, match="did you mean max_epochs"):
        again(datalist, tmp_path, options={"max_epoch": 1})
    with pytest.raises(DatasetError, match=r"begun with other seed \(0, now 1\), see settings"):
        again(datalist, done, seed=1)
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("learning_rate: 0.01\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"was begun with other overlays.*, see settings"):
        again(datalist, done, overlays=[overlay])
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "datalist.json").write_text("mine")
    with pytest.raises(DatasetError, match=r"not written by this package, got .*datalist\.json"):
        again(datalist, tmp_path)
    path = tmp_path / "none.json"
    image = read_datalist(datalist, "training")[0]["image"]
    path.write_text(json.dumps({"training": [{"image": image}]}))
    with pytest.raises(DatasetError, match="must have labelled scans in training"):
        again(path, tmp_path)


@pytest.mark.slow
def test_a_run_is_calibrated_with_its_own_settings(datalist, tmp_path, capsys):
    options = {name: value for name, value in KNOBS.items() if name != "calibration"}
    settings = [f"{name}={value}" for name, value in (options | {"max_epochs": 1}).items()]
    out = tmp_path / "a"
    command = ["train", str(datalist), "--out", str(out), "--set", *settings]
    assert main([*command, "--calibrate"]) == 0
    assert f"{out / 'calibration.json'}\n{out / 'model.pt'}\nnext: " in capsys.readouterr().out
    calibration = Calibration.load(out / "calibration.json")
    assert calibration.record["fitted"]
    assert torch.equal(weights(out / "model.pt")["calibration"], calibration.tensor())
    assert len(list((out / "calibration").glob("fold_*/samples_*.npz"))) == 3
    # repeated, nothing is trained anew
    assert main([*command, "--calibrate"]) == 0
    assert "epoch" not in capsys.readouterr().out


def test_what_has_no_share_to_fit_is_not_calibrated(datalist, tmp_path, capsys):
    for flag in ("--baseline", "--paper"):
        command = ["train", str(datalist), "--out", str(tmp_path / "a"), "--calibrate", flag]
        assert main(command) == 1
        assert "`calibrate` must be given without baseline" in capsys.readouterr().err
    for knobs, has in (({"priors": []}, "no prior"), ({"calibration": "equation_2"}, "equation_2")):
        write_model(tmp_path / has, BUNDLE / "configs", organs={1: "a"}, knobs=knobs)
        with pytest.raises(DatasetError, match=f"must have a prior whose share.*{has}"):
            calibrate_run(tmp_path / has, datalist)
