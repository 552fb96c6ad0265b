"""The plan: one overlay for every config, the same for the same data."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers.bundle_runs import CONFIGS
from monai.bundle import ConfigParser

from stipple_monai.__main__ import main
from stipple_monai.bundle import BUNDLE
from stipple_monai.planning import make_plan, memory, plan_once
from stipple_monai.simulation import write_phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom"), cases=3, size=32, organs="all")


@pytest.mark.slow
def test_the_same_data_twice_is_the_same_file(phantom, tmp_path, capsys):
    for name in ("a", "b"):
        assert main(["plan", str(phantom), "--out", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert text == (tmp_path / "b").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert max(map(len, [x for x in lines if x.startswith("#")])) <= 100
    # a reason above every value
    for line in lines:
        if line and not line.startswith("#"):
            assert f"# {line.partition(':')[0]}: " in text


def test_every_config_takes_it(phantom, tmp_path):
    path = make_plan(phantom, device="cpu", progress=False).write(tmp_path / "plan.yaml")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("prior", "train", "inference"):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / f"{name}.yaml"), str(path)])
        parser.update({"datalist": str(phantom), "dataset_dir": str(phantom.parent)})
        assert parser.get_parsed_content("organs") == values["organs"]
    parser["device"] = "$torch.device('cpu')"
    network = parser.get_parsed_content("network")
    organs = len(values["organs"])
    x = torch.zeros(1, 1 + organs, *values["slice_size"])
    x[:, 1:] = 0.1
    assert network(x).shape[1] == organs + 1


@pytest.mark.slow
def test_what_is_given_wins_and_others_follow(phantom):
    given = {"organs": [1], "spacing_mm": [8.0, 8.0, -1], "batch_size": 2, "strength": 0.5}
    plan = make_plan(phantom, options=given, device="cpu", progress=False)
    values = {name: choice.value for name, choice in plan.choices.items()}
    assert {name: values[name] for name in given} == given
    assert values["background_values"] == list(plan.fingerprint.organs)[1:]
    assert values["slice_size"] == [64, 64]
    assert values["sw_batch_size"] == 4
    assert plan.choices["prior_dropout"].value == 0.0
    assert "choose with `segment --organs`" in plan.choices["organs"].why
    assert plan.choices["batch_size"].why.startswith("given; else 12, a step takes")
    with pytest.raises(ValueError, match="Knobs must be in the configs, got slice_sise"):
        make_plan(phantom, options={"slice_sise": 1}, progress=False)
    with pytest.raises(ValueError, match="plan must have whole knobs, got optimizer#weight_decay"):
        make_plan(phantom, options={"optimizer#weight_decay": 0.1}, progress=False)
    with pytest.raises(ValueError, match="`dimensions` must be 2 or 3, got 4"):
        make_plan(phantom, dimensions=4, progress=False)


@pytest.mark.slow
def test_three_dimensions_and_the_paper(phantom, tmp_path):
    plan = make_plan(phantom, dimensions=3, device="cpu", progress=False)
    path = plan.write(tmp_path / "plan.yaml")
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.yaml"), str(path)])
    parser.update({"datalist": str(phantom), "dataset_dir": str(phantom.parent)})
    backbone = parser.get_parsed_content("backbone")
    assert type(backbone).__name__ == "DynUNet"
    assert parser.get_parsed_content("patch_size") == plan.choices["patch_size"].value
    assert "models_dir" not in yaml.safe_load(path.read_text(encoding="utf-8"))
    # slices of 512 × 512 are more than a test should compute on a CPU
    paper = make_plan(phantom, paper=True, memory_gib=80, progress=False)
    assert paper.choices["channels"].value == [64, 128, 256, 512, 1024]
    assert paper.choices["window_hu"].value == [-160, 300]
    recipe = yaml.safe_load((CONFIGS / "paper.yaml").read_text(encoding="utf-8"))
    assert {name: paper.choices[name].value for name in recipe} == recipe
    assert paper.choices["prior_spacing_mm"].value is None


@pytest.mark.slow
def test_a_network_that_does_not_fit_is_made_smaller(phantom, monkeypatch):
    whole = make_plan(phantom, device="cpu", progress=False).choices
    monkeypatch.setattr("stipple_monai.planning.plan.device_bytes", lambda device: 2**24)
    small = make_plan(phantom, device="cpu", progress=False).choices
    assert small["batch_size"].value < whole["batch_size"].value
    assert small["channels"].value[0] <= whole["channels"].value[0]
    monkeypatch.setattr("stipple_monai.planning.plan.device_bytes", lambda device: 2**10)
    with pytest.raises(ValueError, match="A training step must fit the device's memory"):
        make_plan(phantom, device="cpu", progress=False)


@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_fits_nowhere(phantom, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("stipple_monai.planning.plan.step_bytes", exhausted)
    with pytest.raises(ValueError, match="A training step must fit the device's memory"):
        make_plan(phantom, device="cpu", progress=False)


def test_a_machine_that_does_not_tell_its_memory_is_small(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.sysconf", unknown)
    assert memory.machine_bytes() == 8 * 2**30


def test_a_step_is_measured():
    device = torch.device("cpu")
    made = {"image_channels": 1, "organs": 2, "channels": [4, 8]}
    small = memory.step_bytes(memory.make_network(CONFIGS, 2, **made), [2, 3, 32, 32], device)
    large = memory.step_bytes(memory.make_network(CONFIGS, 2, **made), [4, 3, 32, 32], device)
    weights = sum(p.numel() for p in memory.make_network(CONFIGS, 2, **made).parameters()) * 4
    assert (large - 4 * weights) == pytest.approx(2 * (small - 4 * weights), rel=0.05)
    made["channels"] = [4, 8, 16]
    assert (
        memory.step_bytes(memory.make_network(CONFIGS, 3, **made), [1, 3, 16, 16, 16], device) > 0
    )
    assert memory.device_bytes(device) == memory.machine_bytes() // 4


@pytest.mark.slow
def test_a_gpu_that_is_not_here(phantom, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan, found = tmp_path / "plan.yaml", {}
    for given in ("80", "0.4"):
        assert main(["plan", str(phantom), "--out", str(plan), "--memory-gib", given]) == 0
        found[given] = yaml.safe_load(plan.read_text(encoding="utf-8"))
    capsys.readouterr()
    text = " ".join(plan.read_text(encoding="utf-8").replace("\n#", "").split())
    assert "GiB, counted for a GPU that is not here" in text
    large, small = found["80"], found["0.4"]
    assert (large["channels"][0], large["batch_size"]) == (32, 4)
    assert small["batch_size"] * small["channels"][0] < 4 * 32
    assert large["max_epochs"] == 100
    assert main(["plan", str(phantom), "--out", str(plan), "--device", "cuda"]) == 1
    assert "this machine has no GPU: give `memory_gib`" in capsys.readouterr().err
    for wrong in ({"device": "cpu", "memory_gib": 8}, {"memory_gib": 0}):
        with pytest.raises(ValueError, match="`memory_gib` must be a GPU's, above 0"):
            make_plan(phantom, progress=False, **wrong)
    with pytest.raises(ValueError, match="`device` must be cuda or cpu, got tpu"):
        make_plan(phantom, progress=False, device="tpu")


@pytest.mark.parametrize(("dimensions", "size"), [(2, [64, 48]), (3, [32, 32, 16])])
def test_shapes_alone_count_what_a_step_keeps(dimensions, size):
    network = memory.make_network(
        CONFIGS, dimensions, image_channels=1, organs=2, channels=[4, 8, 16]
    )
    here = memory.step_bytes(network, [2, 3, *size], torch.device("cpu"))
    counted = memory.step_bytes(network, [2, 3, *size], torch.device("meta"))
    widest = 2 * 4 * np.prod(size) * 4
    # and the gradients of the widest layer's input and output
    assert 2 * widest <= counted - here <= 5 * widest


def test_a_gpu_that_is_here_is_asked_for_its_memory(phantom, monkeypatch):
    """Without one: its memory, and what a step took there, are given."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10 * 2**30)
    )
    asked = []

    def took(network, shape, device):
        asked.append(device.type)
        return 5 * 2**30

    monkeypatch.setattr("stipple_monai.planning.plan.step_bytes", took)
    plan = make_plan(phantom, progress=False)
    assert asked == ["cuda"]
    # 2 of a batch take 5 of 8 GiB
    assert plan.choices["batch_size"].value == 2
    assert plan.choices["batch_size"].why == "a step takes 5.00 of 8 GiB, measured"


def test_a_plan_that_is_there_stays(phantom, tmp_path, capsys):
    path = tmp_path / "plan.yaml"
    assert plan_once(phantom, path, options={"batch_size": 2}).labelled == 3
    assert capsys.readouterr().out == f"plan: {path}\n"
    path.write_text("batch_size: 3\n", encoding="utf-8")
    assert plan_once(phantom, path) is None
    assert path.read_text(encoding="utf-8") == "batch_size: 3\n"


def test_check_and_train_warn_where_settings_contradict_the_data(tmp_path, capsys):
    scan = nib.Nifti1Image(np.ones((16, 16, 8), np.float32), np.diag([1.0, 1, 3, 1]))
    label = np.zeros((16, 16, 8), np.uint8)
    label[4:8, 4:8, 2:5] = 2
    nib.save(scan, tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(label, scan.affine), tmp_path / "b.nii.gz")
    content = {"modality": {"0": "MR"}, "training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    settings = ["organs=[2,5]", "spacing_mm=[20,20,-1]", "slice_size=[96,96]"]
    assert main(["check", str(path), "--set", *settings]) == 0
    said = capsys.readouterr().out
    for text in (
        "No label has organ 5 (labels have 2)",
        "Scans are MR and `window_hu` is [-160, 300] HU: set `percentiles` to true",
        "`spacing_mm` is 20 mm along R, 10 times off the scans' 1 mm",
        "`slice_size` is 96 voxels along R, and the largest scan has 1",
    ):
        assert f"note: {text}" in said
    assert main(["check", str(path)]) == 0
    assert "window_hu" not in capsys.readouterr().out


def test_the_bundle_is_looked_for(phantom, tmp_path):
    with pytest.raises(ValueError, match="`bundle` must be the folder of the bundle"):
        make_plan(phantom, bundle=tmp_path, progress=False)
    assert BUNDLE.is_dir()
