"""The bundle: its configs, every command of its README on a tiny phantom, and bad input."""

import ast
import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers.bundle_runs import (
    BUNDLE,
    CONFIGS,
    CPU,
    INFERENCE,
    QUIET,
    REPOSITORY,
    TRAINING,
    Runs,
    files,
    load,
    same,
    weights,
)
from helpers.forks import exit_status, fork, needs_fork
from monai.bundle import ConfigParser
from monai.transforms import Compose

from stipple_monai import DatasetError, PositionError, PriorError, organ_position
from stipple_monai.data import read_datalist, split_datalist, write_datalist
from stipple_monai.demo.run import read_dice
from stipple_monai.simulation import write_phantom

BASES = ("prior", "train", "inference")
OTHERS = ("calibrate", "self_train")
OVERLAYS = {
    "adversarial": ("train", "baseline", "unlabelled"),
    "argmax": ("inference", "evaluate"),
    "atlas_prior": ("train",),
    "attention_unet": ("train", "inference"),
    "atlas": ("inference",),
    "baseline": ("train", "inference"),
    "bfloat16": ("train", "inference"),
    "calibration_samples": ("inference",),
    "chaos_mr": BASES,
    "coord_conv": ("train", "inference"),
    "copy_paste": ("train", "baseline", "unlabelled"),
    "cross_pseudo": ("train", "baseline", "unlabelled"),
    "ensemble": ("inference",),
    "equation_2": ("inference", "evaluate"),
    "evaluate": ("inference",),
    "locator": ("inference",),
    "multi_gpu_pseudo_label": ("inference", "pseudo_label"),
    "mean_teacher": ("train", "baseline", "unlabelled"),
    "mlflow": ("train",),
    "multi_gpu_train": ("train",),
    "naive_position": ("inference",),
    "network_alone": ("inference", "evaluate"),
    "paper": BASES,
    "patch_3d": ("train", "inference"),
    "phantom": BASES,
    "prior_alone": ("inference", "evaluate"),
    "prior_afterwards": ("train", "inference"),
    "pseudo_label": ("inference",),
    "random_reference": ("inference",),
    "true_position": ("inference", "evaluate"),
    "unimatch": ("train", "baseline", "unlabelled"),
    "unlabelled": ("train", "baseline"),
    "volumes": ("inference",),
}
# besides weights, in the folder of the models
LEFT = {"prior_1.nii.gz", "prior_1_cases.npz", "provenance.json"}

pytestmark = QUIET


# configs


def test_every_yaml_is_a_base_or_a_known_overlay():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {*BASES, *OVERLAYS, *OTHERS}
    assert all(isinstance(load(name), dict) for name in names)


def test_readme_names_every_config_and_only_those():
    readme = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"([a-z_0-9]+)\.yaml", readme)) == {*BASES, *OVERLAYS, *OTHERS}


def savers(value):
    """Every `SaveImaged` in a config."""
    if isinstance(value, dict):
        yield from [value] if value.get("_target_") == "SaveImaged" else []
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from savers(part)


def test_whatever_the_bundle_saves_is_whole_or_absent():
    found = [s for path in CONFIGS.glob("*.yaml") for s in savers(yaml.safe_load(path.read_text()))]
    assert len(found) == 3
    assert {saver.get("writer") for saver in found} == {"stipple_monai.results.GridWriter"}


def strings(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [s for v in value for s in strings(v)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", [*BASES, *OVERLAYS, *OTHERS])
def test_expressions_are_short(name):
    expressions = [s for s in strings(load(name)) if isinstance(s, str) and s.startswith("$")]
    assert [text for text in expressions if len(text) >= 80] == []


def test_train_and_inference_share_their_defaults():
    train, inference = load("train"), load("inference")
    # where the folder of the weights knows of none
    for key, text in inference.items():
        own = isinstance(text, str) and text.startswith("$@trained.get(")
        if own and key != "calibration":
            known, default = ast.literal_eval(text.removeprefix("$@trained.get"))
            assert known == key
            inference[key] = default
    # a file beside the weights, unless they were trained to count otherwise
    text = inference["calibration"]
    inference["calibration"] = text.replace("@trained.get('calibration') or ", "")
    differ = {key for key in train.keys() & inference.keys() if train[key] != inference[key]}
    # loading and inferer are compared below; inference loads one scan at a time, in one process
    known = "imports run loading inferer label_channels num_workers progress"
    assert differ == set(known.split())
    alike = "organs channels strength floor mean_hu std_hu spacing_mm slice_size intensity network"
    assert set(alike.split()) < train.keys() & inference.keys()
    grid = {step["_target_"]: step for step in inference["grid"]}
    ours = {step["_target_"]: step for step in train["loading"] if step["_target_"] in grid}
    assert ours.keys() == grid.keys()
    for name, step in grid.items():
        image = {"mode": ours[name].get("mode", [None])[0]} if "mode" in step else {}
        assert {**ours[name], "keys": "image", **image} == step
    only = ("locator", "labelled", "locate_with")
    only += ("spread_mm", "scan_vote", "max_shift_mm", "minimum_confidence")
    more = {name: f"@{name}" for name in only}
    assert {**train["inferer"], **more} == inference["inferer"]
    assert inference["locator"] is inference["max_shift_mm"] is None


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_has_no_dead_key(overlay):
    base = ConfigParser()
    base.read_config(files(*OVERLAYS[overlay]))
    text = (CONFIGS / f"{overlay}.yaml").read_text(encoding="utf-8")
    for key in load(overlay):
        name = key.removeprefix("+")
        used = re.search(rf"[@%]{re.escape(name)}\b", text)
        component, _, argument = name.rpartition("#")
        # a wrong argument would raise in the runs below
        added = argument and "_target_" in base.get(component, {})
        assert name in base or used or added or name in ("initialize", "finalize"), name


@pytest.mark.slow
def test_default_network_and_schedule_are_the_papers():
    parser = ConfigParser()
    parser.read_config(files("train"))
    parser["device"] = CPU
    network = parser.get_parsed_content("network")
    assert sum(p.numel() for p in network.parameters()) == 31_038_338
    assert parser["max_epochs"] == 25
    assert parser["batch_size"] == 6
    scheduler = parser.get_parsed_content("lr_scheduler")
    rates = []
    for _ in range(26):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(1 / np.array(rates), 1e4 * (1 + 9 * np.arange(26) / 25))
    assert (rates[0], rates[25]) == pytest.approx((1e-4, 1e-5))


# inference


def reoriented(image, axes):
    """The same scan with its voxels stored along other axes."""
    now, then = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(now, then))


def test_inference_keeps_the_grid_of_each_scan(runs, tmp_path):
    plain = nib.load(runs.items("test")[0]["image"])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    scans = {
        "plain": plain,
        "lps": reoriented(plain, "LPS"),
        "sra": reoriented(plain, "SRA"),
        "oblique": nib.Nifti1Image(plain.dataobj, turn @ plain.affine),
        "odd": nib.Nifti1Image(plain.get_fdata()[:-3, 2:], plain.affine),
    }
    for name, scan in scans.items():
        nib.save(scan, tmp_path / f"{name}.nii.gz")
    listed = runs.other("grids", test=[str(tmp_path / f"{name}.nii.gz") for name in scans])
    out = tmp_path / "out"
    listed.run("inference", **INFERENCE, probabilities=True, output_dir=str(out))
    volumes = {f"{name}_{kind}.nii.gz" for name in scans for kind in ("seg", "prob")}
    assert {p.name for p in out.iterdir()} == {"positions.csv"} | volumes
    results = {}
    for name in scans:
        scan = nib.load(tmp_path / f"{name}.nii.gz")
        seg, prob = (nib.load(out / f"{name}_{kind}.nii.gz") for kind in ("seg", "prob"))
        assert seg.shape == scan.shape
        assert seg.get_data_dtype() == np.uint8
        labels, chance = np.asarray(seg.dataobj), prob.get_fdata()
        assert set(np.unique(labels)) == {0, 1}
        assert chance.shape == (*scan.shape, 2)
        np.testing.assert_allclose(chance.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(chance.argmax(-1), labels)
        for image in (seg, prob):
            np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        results[name] = seg
    for name in ("lps", "sra"):
        axes = nib.aff2axcodes(plain.affine)
        back = np.asarray(reoriented(results[name], axes).dataobj)
        np.testing.assert_array_equal(back, np.asarray(results["plain"].dataobj))


def test_inference_on_another_grid_comes_back(runs, tmp_path):
    item = runs.items("test")[0]
    knobs = {**INFERENCE, "spacing_mm": [14.0, 14.0, -1], "output_dir": str(tmp_path)}
    runs.run("inference", **knobs, probabilities=True)
    prob, seg = (nib.load(path) for path in sorted(tmp_path.glob("*.nii.gz")))
    scan = nib.load(item["image"])
    assert seg.shape == scan.shape
    np.testing.assert_allclose(seg.affine, scan.affine, atol=1e-4)
    assert set(np.unique(np.asarray(seg.dataobj))) <= {0, 1}
    # probabilities come back interpolated: the coarse grid has fewer voxels than they have values
    coarse = runs.parser("inference", **knobs).get_parsed_content("dataset")[0]["image"]
    assert coarse[0].numel() < 0.7 * np.prod(scan.shape)
    assert len(np.unique(prob.get_fdata()[..., 1])) > 1.2 * coarse[0].numel()


def test_probabilities_are_written_on_request_only(runs):
    name = Path(runs.items("test")[0]["image"]).name.removesuffix(".nii.gz")
    written = {p.name for p in (runs.root / "eval").glob("*.nii.gz")}
    assert written == {f"{name}_seg.nii.gz", f"{name}_prob.nii.gz"}
    written = {p.name for p in (runs.root / "eval" / "stipple").glob("*.nii.gz")}
    assert written == {f"{name}_seg.nii.gz"}


@pytest.mark.parametrize("name", ["stipple", "baseline", "true_position", "located"])
def test_evaluation_tells_the_dice_on_the_scans_grid(runs, name):
    (item,) = runs.items("test")
    folder = runs.root / "eval" / name
    truth = np.asarray(nib.load(item["label"]).dataobj)
    seg = folder / Path(item["image"]).name.replace(".nii.gz", "_seg.nii.gz")
    predicted = np.asarray(nib.load(seg).dataobj)
    dice = 2 * (truth * predicted).sum() / (truth.sum() + predicted.sum())
    assert read_dice(folder) == pytest.approx([dice], abs=1e-5)


def test_positions_are_told(runs):
    (item,) = runs.items("test")
    with (runs.root / "eval" / "stipple" / "positions.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["scan"] == item["image"]
    found = np.array([float(row[axis]) for axis in ("r_mm", "a_mm", "s_mm")])
    assert np.linalg.norm(found - organ_position(item["label"]).numpy()) < 100


@pytest.mark.parametrize("name", ["baseline", "true_position"])
def test_what_locates_nothing_tells_no_position(runs, name):
    assert not (runs.root / "eval" / name / "positions.csv").exists()


def test_locator_is_the_second_network(runs):
    parser = runs.parser("inference", "locator", **INFERENCE)
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    inferer = parser.get_parsed_content("inferer")
    baseline = weights(runs.root / "models" / "baseline" / "model.pt")
    assert same(inferer.locator.state_dict(), baseline)
    assert same(evaluator.network.state_dict(), weights(runs.root / "models" / "model.pt"))


def test_ensemble_is_the_mean_of_two_networks(runs):
    second = str(runs.root / "models" / "baseline")
    parser = runs.parser("inference", "ensemble", **INFERENCE, second_models=second)
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    one, other = (n.eval() for n in evaluator.network.network.networks)
    assert same(parser.get_parsed_content("second").state_dict(), weights(f"{second}/model.pt"))
    first = parser.get_parsed_content("first_def")
    assert same(first.state_dict(), weights(runs.root / "models" / "model.pt"))
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(one(x), other(x))
        torch.testing.assert_close(evaluator.network.network.eval()(x), (one(x) + other(x)) / 2)


# training


def test_inference_knows_what_the_weights_beside_it_were_trained_with(runs):
    """Or it would run in another window and on another grid, and nothing would say so."""
    parser = runs.parser("inference")
    for knob in ("channels", "slice_size", "window_hu", "prior_dropout", "organs"):
        assert parser.get_parsed_content(knob) == runs.parser("train", **TRAINING).get(knob)
    assert runs.parser("inference", channels=[4, 8]).get_parsed_content("channels") == [4, 8]


def test_baseline_is_the_backbone_alone(runs):
    state = weights(runs.root / "models" / "baseline" / "model.pt")
    assert not list((runs.root / "models" / "baseline").glob("prior*"))
    parser = runs.parser("inference", **INFERENCE)
    assert state.keys() == parser.get_parsed_content("backbone").state_dict().keys()
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(state)
    assert same(network.network.state_dict(), state)


def test_slices_of_organ_and_of_background_are_drawn(runs):
    parser = runs.parser("train", **{**TRAINING, "slices_per_scan": 40})
    monai.utils.set_determinism(seed=0)
    dataset = parser.get_parsed_content("train#dataset")
    assert len(dataset) == 80
    share = np.mean([bool((dataset[i][0]["label"] == 1).any()) for i in range(80)])
    assert 0.35 < share < 0.85
    item = dataset[0][0]
    assert item["image"].shape == (2, 32, 32)
    assert item["label"].shape == (1, 32, 32)
    assert 0 <= item["image"][1].min() <= item["image"][1].max() <= 1


def test_best_model_by_validation_and_the_last(runs, tmp_path):
    models = runs.root / "models"
    names = {p.name for p in models.iterdir() if p.is_file()}
    resumable = {"checkpoint_epoch=5.pt", "checkpoint_epoch=6.pt"}
    assert names == {"curve.csv", "last.pt", "model.pt", *LEFT} | resumable
    checkpoint = weights(models / "checkpoint_epoch=6.pt")
    assert same(checkpoint["model"], weights(models / "last.pt"))
    ((best, _),) = checkpoint["best"]["_saved"]
    dice = {}
    for name in ("model", "last"):
        out = tmp_path / name
        runs.run(
            *("inference", "evaluate"),
            **{**INFERENCE, "minimum_confidence": None},
            section="validation",
            checkpoint=str(models / f"{name}.pt"),
            output_dir=str(out),
        )
        (dice[name],) = read_dice(out)
    assert dice["model"] == pytest.approx(best, abs=1e-5)
    assert dice["last"] <= dice["model"] + 1e-6


def test_without_validation_the_model_is_the_last_and_the_seed_decides(runs):
    alone = runs.other("no_validation", validation=[])
    found = {}
    for name, seed in (("seed_0", 0), ("seed_0_again", 0), ("seed_1", 1)):
        folder = runs.models(name)
        alone.run("train", **TRAINING, seed=seed, models_dir=str(folder))
        names = {p.name for p in folder.iterdir()}
        assert names == {"checkpoint_epoch=1.pt", "curve.csv", "model.pt", *LEFT}
        found[name] = weights(folder / "model.pt")
    assert same(found["seed_0"], found["seed_0_again"])
    assert not same(found["seed_0"], found["seed_1"])


@pytest.mark.parametrize(("best", "replaced"), [(1.0, False), (-1.0, True)])
def test_resume_goes_on_where_it_stopped(runs, best, replaced):
    folder = runs.models(f"resumed_{replaced}")
    knobs = {**TRAINING, "models_dir": str(folder)}
    runs.run("train", **knobs)
    first = folder / "checkpoint_epoch=1.pt"
    state = weights(first)
    per_epoch = state["trainer"]["iteration"]
    for moments in state["optimizer"]["state"].values():
        moments["step"] += 1000
    state["best"]["_saved"] = [(best, "of the first epoch")]
    torch.save(state, first)
    before = (folder / "model.pt").read_bytes()
    runs.run("train", **{**knobs, "max_epochs": 2}, resume=True)
    state = weights(folder / "checkpoint_epoch=2.pt")
    assert state["trainer"]["iteration"] == 2 * per_epoch
    steps = {int(moments["step"]) for moments in state["optimizer"]["state"].values()}
    assert steps == {1000 + 2 * per_epoch}
    assert state["lr_scheduler"]["last_epoch"] == 2
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.002)
    assert ((folder / "model.pt").read_bytes() != before) == replaced


def test_resumed_training_equals_an_uninterrupted_one(runs):
    whole, resumed = runs.models("uninterrupted"), runs.models("interrupted")
    knobs = {**TRAINING, "max_epochs": 3}
    runs.run("train", **knobs, models_dir=str(whole))
    shutil.copy(whole / "checkpoint_epoch=2.pt", resumed)
    # as an interrupted run leaves it: the epoch after the checkpoint was begun
    shutil.copy(whole / "curve.csv", resumed)
    runs.run("train", **knobs, models_dir=str(resumed), resume=True)
    assert same(weights(whole / "last.pt"), weights(resumed / "last.pt"))
    curve = (whole / "curve.csv").read_text()
    assert (resumed / "curve.csv").read_text() == curve
    rows = list(csv.DictReader(curve.splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert all(
        0 <= float(row[f"{part}_dice"]) <= 1 for row in rows for part in ("train", "validation")
    )


def test_training_starts_from_given_weights(runs):
    models = runs.models("fine_tuned")
    first = runs.root / "models" / "model.pt"
    knobs = {**TRAINING, "learning_rate": 0.0, "slices_per_scan": 6}
    knobs |= {"models_dir": str(models), "output_dir": str(runs.root / "eval" / "fine_tuned")}
    runs.run("train", **knobs, initial_weights=str(first))
    before, after = weights(first), weights(models / "last.pt")
    moving = {key for key in before if "running" in key or "num_batches" in key}
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - moving)
    assert not all(torch.equal(before[key], after[key]) for key in moving)


def test_failed_training_leaves_no_model(runs):
    folder = runs.models("failed")
    alone = runs.other("no_validation", validation=[])
    with pytest.raises(RuntimeError):
        alone.run("train", **TRAINING, models_dir=str(folder), loss="$lambda pred, label: 1 / 0")
    assert sorted(p.name for p in folder.iterdir()) == ["prior_1.nii.gz", "prior_1_cases.npz"]


# self-training


def test_pseudo_labels_lie_on_the_scans_grid(runs):
    old, new = runs.items("unlabelled"), runs.pseudo.items("training")
    assert len(old) == 2
    moved = [item for item in new if "pseudo_label" in item]
    assert [item["image"] for item in moved] == [item["image"] for item in old]
    values = set()
    for item in moved:
        scan, label = nib.load(item["image"]), nib.load(item["label"])
        assert label.shape == scan.shape
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)
        voxels = np.asarray(label.dataobj)
        values |= set(np.unique(voxels))
        # half of what is predicted as organ
        assert (voxels == 1).sum() == pytest.approx((voxels == 255).sum(), abs=1)
    assert values == {0, 1, 255}


def test_next_round_knows_labels_positions_and_their_origin(runs):
    old, new = (
        {name: r.items(name) for name in ("training", "validation", "test")}
        for r in (runs, runs.pseudo)
    )
    assert new["training"][:2] == old["training"]
    assert all(new[name] == old[name] for name in ("validation", "test"))
    content = json.loads(runs.pseudo.datalist.read_text(encoding="utf-8"))
    assert content["unlabelled"] == []
    for item in new["training"][2:]:
        model = str(runs.root / "models" / "model.pt")
        origin = {"model": model, "share": 0.5, "count": None, "minimum": 0, "components": None}
        origin |= {"selection": "top_k", "background_minimum": 0, "round": 1}
        assert item["pseudo_label"] == origin
        assert Path(item["truth"]).is_file()


def test_next_round_places_the_prior_where_the_datalist_says(runs):
    parser = runs.pseudo.parser("train", **TRAINING)
    fixed = Compose(parser.get_parsed_content("train#fixed"))
    item = runs.pseudo.items("training")[2]
    position = torch.as_tensor(fixed(item)["organ_position"])
    torch.testing.assert_close(position, torch.tensor(item["organ_position"]).to(position))
    partly = organ_position(item["label"])
    assert (position[0] - partly).norm() > 0.1


def test_next_round_trains_on_all_four(runs):
    assert (runs.root / "round_1" / "model.pt").is_file()
    parser = runs.pseudo.parser("train", **TRAINING)
    dataset = parser.get_parsed_content("train#dataset")
    assert len(dataset) == 4 * TRAINING["slices_per_scan"]
    assert any((dataset[i][0]["label"] == 255).any() for i in range(2, len(dataset), 4))


@pytest.mark.parametrize(("overlay", "positions"), [("locator", 2), ("baseline", 0)])
def test_pseudo_labels_with_the_baseline(runs, tmp_path, overlay, positions):
    knobs = {**INFERENCE, "output_dir": str(tmp_path), "share": 1.0, "round": 3}
    runs.run("inference", "pseudo_label", overlay, **knobs)
    items = read_datalist(tmp_path / "datalist.json", "training")[2:]
    assert sum("organ_position" in item for item in items) == positions
    for item in items:
        origin = item["pseudo_label"]
        assert (origin["share"], origin["round"]) == (1.0, 3)
        assert ("baseline" in origin["model"]) == (overlay == "baseline")
        assert set(np.unique(np.asarray(nib.load(item["label"]).dataobj))) <= {0, 1}


# other settings


@pytest.mark.training
def test_settings_of_the_mr_set_with_four_organs(tmp_path):
    root = tmp_path
    dataset = write_phantom(
        root / "data",
        cases=3,
        size=32,
        slices=(12, 12),
        slice_spacing_mm=(11.0, 11.0),
        organs="all",
        progress=False,
    )
    items = read_datalist(dataset, "training")
    for item in items:
        image = nib.load(item["label"])
        label = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(label > 4, 0, label), image.affine), item["label"])
    mr = Runs(root, root / "data" / "split.json")
    write_datalist(mr.datalist, split_datalist(items, labelled=1, validation=1, test=1, seed=0))
    mr.run("prior", "chaos_mr")
    assert len(list((root / "models").glob("*.nii.gz"))) == 4
    few = {"channels": [4, 8], "slices_per_scan": 8, "max_epochs": 1, "progress": False}
    mr.run("train", "chaos_mr", **few, device=CPU)
    few = {"channels": [4, 8], "progress": False, "device": CPU}
    mr.run("inference", "evaluate", "chaos_mr", **few)
    (path,) = (root / "eval").glob("*_seg.nii.gz")
    assert np.asarray(nib.load(path).dataobj).max() <= 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_and_inference_on_a_gpu_with_amp(runs, tmp_path):
    folder = runs.models("cuda")
    knobs = {key: value for key, value in TRAINING.items() if key != "device"}
    parser = runs.parser("train", **knobs, models_dir=str(folder))
    assert parser.get_parsed_content("amp") is True
    runs.run("train", **knobs, models_dir=str(folder))
    assert all(torch.isfinite(v).all() for v in weights(folder / "model.pt").values())
    few = {key: value for key, value in INFERENCE.items() if key != "device"}
    places = {"models_dir": str(folder), "output_dir": str(tmp_path)}
    runs.run("inference", "evaluate", **few, **places)
    runs.run("inference", "pseudo_label", **few, **places)
    assert len(list(tmp_path.glob("*_seg.nii.gz"))) == 1
    assert len(list(tmp_path.glob("*_pseudo.nii.gz"))) == 2


# processes of their own


def environment(*paths):
    path = os.pathsep.join([*map(str, paths), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def flags(knobs):
    return [text for key, value in knobs.items() for text in (f"--{key}", str(value))]


@needs_fork
def test_prior_by_the_command_of_the_readme(runs):
    places = {**runs.places, "models_dir": str(runs.root / "by_command")}

    def command():
        os.chdir(BUNDLE)
        sys.argv = ["monai.bundle", "run", "--config_file", "configs/prior.yaml", *flags(places)]
        runpy.run_module("monai.bundle", run_name="__main__")

    assert exit_status(fork(command)) == 0
    ours = runs.root / "models" / "prior_1.nii.gz"
    assert (runs.root / "by_command" / "prior_1.nii.gz").read_bytes() == ours.read_bytes()


PROBE = """
import hashlib, json, os
from ignite.engine import Events

def digest(tensors):
    return hashlib.sha1(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()

class Probe:
    def __init__(self, folder, network):
        self.folder, self.network, self.slices = folder, network, []

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_STARTED, self.note)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def note(self, engine):
        self.slices += [digest([x.as_tensor()]) for x in engine.state.batch["image"]]

    def write(self, engine):
        found = {"slices": self.slices, "weights": digest(self.network.parameters())}
        with open(f"{self.folder}/rank_{os.environ['RANK']}.json", "w") as file:
            json.dump(found, file)
"""


@pytest.mark.slow
def test_two_processes_train_one_network(runs, tmp_path):
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    probe = {"_target_": "probe.Probe", "folder": str(tmp_path), "network": "@network"}
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump({"+train#handlers": [probe]}))
    folder, out = runs.models("two"), tmp_path / "out"
    knobs = {key: value for key, value in TRAINING.items() if key not in ("device", "progress")}
    places = {**runs.places, "models_dir": str(folder), "output_dir": str(out)}
    # merged into one JSON file, as the model zoo's tests run it
    merged = ConfigParser()
    merged.read_config([*files("train", "multi_gpu_train"), str(tmp_path / "probe.yaml")])
    merged.update({**knobs, **places})
    ConfigParser.export_config_file(merged.config, str(tmp_path / "train_override.json"), indent=4)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "monai.bundle", "run", "--config_file", str(tmp_path / "train_override.json")),
            *("--meta_file", str(CONFIGS / "metadata.json")),
            *("--logging_file", str(CONFIGS / "logging.conf")),
        ],
        cwd=BUNDLE,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{i}.json").read_text()) for i in (0, 1))
    assert len(first["slices"]) == len(second["slices"]) == 24
    assert not set(first["slices"]) & set(second["slices"])
    assert first["weights"] == second["weights"]
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "checkpoint_epoch=1.pt",
        "curve.csv",
        "last.pt",
        "model.pt",
        *LEFT,
    }
    writers = {p.name.split(".")[-2] for p in out.glob("events.out.*")}
    assert len(writers) == 1
    state = runs.parser("inference", **INFERENCE).get_parsed_content("network_def").state_dict()
    assert weights(folder / "model.pt").keys() == state.keys()


# bad input


def ours(error):
    found = []
    while error is not None:
        if isinstance(error, (DatasetError, PriorError, PositionError)):
            found.append(error)
        error = error.__cause__ or error.__context__
    return found


def save_like(path, image, array=None, affine=None):
    array = np.asarray(image.dataobj) if array is None else array
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)
    return str(path)


def bad_label(item, tmp_path):
    label = nib.load(item["label"])
    wrong = np.asarray(label.dataobj).copy()
    wrong[0, 0, 0] = 2
    return {**item, "label": save_like(tmp_path / "label.nii.gz", label, wrong)}


def moved_label(item, tmp_path):
    label = nib.load(item["label"])
    affine = label.affine.copy()
    affine[2, 3] += 5
    return {**item, "label": save_like(tmp_path / "label.nii.gz", label, affine=affine)}


def cut_label(item, tmp_path):
    label = nib.load(item["label"])
    voxels = np.asarray(label.dataobj)[:, :, 1:]
    return {**item, "label": save_like(tmp_path / "label.nii.gz", label, voxels)}


def series(item, tmp_path):
    scan = nib.load(item["image"])
    voxels = np.repeat(np.asarray(scan.dataobj)[..., None], 3, axis=3)
    return {**item, "image": save_like(tmp_path / "series.nii.gz", scan, voxels)}


def infinite(item, tmp_path):
    scan = nib.load(item["image"])
    voxels = scan.get_fdata(dtype=np.float32)
    voxels[3, 3, 3] = np.inf
    return {**item, "image": save_like(tmp_path / "scan.nii.gz", scan, voxels)}


def missing(item, tmp_path):
    return {**item, "image": str(tmp_path / "nowhere.nii.gz")}


BAD = {
    "label value": (bad_label, r"`label` must have values 0 to 1 or 255, got 2 in .*label\.nii"),
    "affine": (moved_label, r"`label` must have the image's affine .* 5 mm apart"),
    "shape": (cut_label, r"`label` must have the image's shape"),
    "4D": (series, r"`image` must be a 3D volume of shape \(1, W, H, D\), got shape \(3, "),
    "non-finite": (infinite, r"`image` must be finite, got 1 voxels"),
    "missing": (missing, r"`image` must be a file that exists, got .*nowhere"),
}


def stops(run, match):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run()
    (error,) = ours(caught.value)
    assert re.search(match, str(error)), str(error)


def left_over(*folders):
    return [
        p
        for folder in folders
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith("prior_")
    ]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        *((config, name) for config in ("train", "evaluate") for name in BAD),
        *(("inference", name) for name in ("4D", "non-finite", "missing")),
    ],
)
def test_bad_scan_stops_the_run_with_one_clear_error(runs, tmp_path, config, name):
    spoil, match = BAD[name]
    section = "training" if config == "train" else "test"
    item = spoil(runs.items(section)[0], tmp_path)
    listed = runs.other("bad", **{section: [item]})
    out, models = tmp_path / "out", tmp_path / "models"
    shutil.copytree(runs.root / "round_1", models)
    knobs = TRAINING if config == "train" else INFERENCE
    before = left_over(models)
    names = ["inference", "evaluate"] if config == "evaluate" else [config]
    places = {"output_dir": str(out), "models_dir": str(models)}
    stops(lambda: listed.run(*names, **knobs, **places), match)
    assert left_over(out) == []
    assert left_over(models) == before


@pytest.mark.parametrize("config", ["train", "inference"])
def test_missing_or_truncated_prior(runs, tmp_path, config):
    out, models = tmp_path / "out", tmp_path / "models"
    knobs = TRAINING if config == "train" else INFERENCE
    places = {"output_dir": str(out), "models_dir": str(models)}
    models.mkdir()
    stops(lambda: runs.run(config, **knobs, **places), r"There is no prior at .*prior_1\.nii\.gz")
    whole = (runs.root / "models" / "prior_1.nii.gz").read_bytes()
    (models / "prior_1.nii.gz").write_bytes(whole[: len(whole) // 2])
    stops(lambda: runs.run(config, **knobs, **places), r"prior_1\.nii\.gz")
    assert left_over(out, models) == []


@pytest.mark.parametrize("config", ["train", "evaluate", "calibration_samples"])
@pytest.mark.parametrize(
    ("organs", "background", "expected"),
    [([1], [2, 3], [0, 1, 0, 0]), ([2], [1, 3], [0, 0, 1, 0]), ([1, 2, 3], [], [0, 1, 2, 3])],
)
def test_label_values_become_channels_and_background(config, organs, background, expected):
    parser = ConfigParser()
    names = ["train"] if config == "train" else ["inference", config]
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in names])
    parser.update({"organs": organs, "background_values": background})
    to_channels = Compose(parser.get_parsed_content("label_channels"))
    assert to_channels({"label": torch.arange(4)[None]})["label"].tolist() == [expected]


def test_prior_needs_the_organ(runs, tmp_path):
    models = tmp_path / "models"
    with pytest.warns(UserWarning, match="does not contain organ 7"):
        stops(lambda: runs.run("prior", organs=[1, 7], models_dir=str(models)), r"organ 7")
    assert not models.exists()
