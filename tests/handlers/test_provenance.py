"""What runs record: in a file beside their weights and scores, in TensorBoard and in MLflow."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest
import torch
from helpers.bundle_runs import QUIET, TRAINING, weights
from ignite.engine import Engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stipple_monai.files import sha256
from stipple_monai.handlers import provenance
from stipple_monai.handlers.provenance import RunRecord, data_fingerprint, git_revision, versions

pytestmark = QUIET


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


# of the bundle's runs


def test_training_records_what_it_was_made_with(runs):
    record = read(runs.root / "models" / "provenance.json")
    assert record["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"].keys() >= {"python", "monai", "numpy", "stipple-monai"}
    assert {name: found["scans"] for name, found in record["data"].items()} == {
        "training": 2,
        "validation": 1,
    }
    assert record["data"]["training"] == data_fingerprint(runs.items("training"))
    config = record["config"]
    # a default, an override, an expression, a component and a list of them
    assert config["decay"] == 9
    assert config["slices_per_scan"] == 48
    assert config["models_dir"] == str(runs.root / "models")
    assert config["network_def"] == "stipple_monai.networks.prior_driven.PriorDrivenNet"
    assert "stipple_monai.transforms.slices.RandSliceAffined" in config["train#slices"]
    assert "checkpoints" not in config


def test_a_record_names_no_scan(runs):
    text = (runs.root / "models" / "provenance.json").read_text(encoding="utf-8")
    items = [item for section in ("training", "validation") for item in runs.items(section)]
    assert [item["image"] for item in items if Path(item["image"]).name in text] == []


def test_overlays_are_recorded(runs):
    config = read(runs.root / "models" / "baseline" / "provenance.json")["config"]
    assert config["network_def"] == "stipple_monai.networks.unet.SliceUNet"
    assert config["prior_placement"] == []


def test_evaluation_records_weights_and_scans(runs):
    record = read(runs.root / "eval" / "stipple" / "provenance.json")
    assert record["weights"] == {"model": sha256(runs.root / "models" / "model.pt")}
    assert record["data"] == {"scans": data_fingerprint(runs.items("test"))}


def test_tensorboard_is_the_default(runs):
    values = {}  # of each training that wrote there, in any order
    for path in (runs.root / "eval").glob("events.out.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for name in events.Tags()["scalars"]:
            values.setdefault(name, []).append(len(events.Scalars(name)))
    assert values.keys() == {"train_loss", "train_mean_dice", "val_mean_dice"}
    assert 3 in values["val_mean_dice"]


# MLflow


@pytest.fixture
def models(runs, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("prior_1.nii.gz", "prior_1_cases.npz"):
        shutil.copy(runs.root / "models" / name, folder)
    return folder


def tracked(folder, experiment):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
    (run,) = client.search_runs(client.get_experiment_by_name(experiment).experiment_id)
    artifacts = {
        Path(found.path).name: Path(run.info.artifact_uri.removeprefix("file://")) / found.path
        for found in client.list_artifacts(run.info.run_id)
    }
    return run, artifacts


LOGGED = {"train_loss", "lr_group_0", "train_mean_dice", "val_mean_dice"}


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Folder of the database: making its tables takes longer than the runs."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.mark.slow
def test_mlflow_has_scores_parameters_and_artifacts(runs, models, database):
    out = database
    places = {"models_dir": str(models), "output_dir": str(out)}
    runs.run("train", "mlflow", **TRAINING, **places, run_name="first")
    run, artifacts = tracked(out, "pancreas_stipple")
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert run.data.metrics.keys() == LOGGED
    record = read(models / "provenance.json")
    params = run.data.params
    assert params["seed"] == "0"
    assert params["versions.torch"] == torch.__version__
    assert params["data.training.sha256"] == record["data"]["training"]["sha256"]
    assert read(artifacts["provenance.json"]) == record
    assert artifacts["curve.csv"].read_bytes() == (models / "curve.csv").read_bytes()
    assert list(out.glob("events.out.*"))


def test_monais_own_switch_tracks_as_well(runs, models, database):
    out = database
    # a plain path is not an expression, which MONAI needs to name the saved config
    places = {"models_dir": str(models), "output_dir": f"$'{out}'"}
    runs.run("train", **TRAINING, **places, tracking="mlflow", experiment_name="by_switch")
    run, artifacts = tracked(out, "by_switch")
    assert run.data.metrics.keys() == LOGGED
    ((name, path),) = artifacts.items()
    assert name.startswith("config_")
    assert read(path)["slices_per_scan"] == TRAINING["slices_per_scan"]


# the parts


def test_a_resumed_run_writes_its_record_anew(runs, models, tmp_path):
    knobs = {**TRAINING, "slices_per_scan": 6, "models_dir": str(models)}
    knobs["output_dir"] = str(tmp_path / "eval")
    runs.run("train", **knobs)
    (models / "provenance.json").unlink()
    runs.run("train", **{**knobs, "max_epochs": 2}, resume=True)
    assert read(models / "provenance.json")["config"]["max_epochs"] == 2
    assert weights(models / "model.pt")


def test_fingerprint_depends_on_contents_alone(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    a, b = write("a", b"1" * 200_000), write("b", b"2" * 10)
    one = data_fingerprint([{"image": a, "label": b}])
    assert one["scans"] == 1
    copy = write("other/place", b"1" * 200_000)
    assert data_fingerprint([{"image": copy, "label": b, "patient": "x"}]) == one
    for item in (
        {"image": b, "label": a},
        {"image": a},
        {"image": write("c", b"1" * 199_999 + b"0"), "label": b},
        {"image": write("d", b"0" + b"1" * 199_999), "label": b},
        {"image": write("e", b"1" * 200_001), "label": b},
    ):
        assert data_fingerprint([item])["sha256"] != one["sha256"], item
    assert data_fingerprint([])["scans"] == 0
    folder = {"image": str(Path(write("series/1", b"1")).parent)}
    before = data_fingerprint([folder])
    write("series/2", b"2")
    assert data_fingerprint([folder]) != before
    assert data_fingerprint([{"image": [a, b]}]) != data_fingerprint([{"image": [b, a]}])


def test_fingerprint_needs_the_files(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        data_fingerprint([{"image": str(tmp_path / "nowhere")}])


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, whatever is configured on this computer."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "known").write_text("1")
    git("add", "known")
    git("commit", "-m", "first")
    return tmp_path


def test_revision_and_changes(repository):
    clean = git_revision(repository / "known")
    assert len(clean["revision"]) == 40
    assert clean["changed"] is False
    assert git_revision(repository) == clean
    (repository / "unknown").write_text("1")
    assert git_revision(repository) == clean
    # as an installed package in somebody's repository
    assert git_revision(repository / "unknown") is None
    (repository / "known").write_text("2")
    assert git_revision(repository / "known") == {**clean, "changed": True}


def test_without_git_or_repository_there_is_no_revision(repository, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path_factory.getbasetemp().parent))
    assert git_revision(tmp_path_factory.mktemp("plain")) is None
    monkeypatch.setenv("PATH", "")
    assert git_revision(repository) is None
    content = RunRecord(repository / "record.json").content()
    assert content["git"] == {"package": None, "working_directory": None}


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("monai", "no-such-package"))
    assert versions().keys() == {"python", "cuda", "monai"}


def test_settings_are_told_by_value_or_class(tmp_path):
    config = {
        "device": torch.device("cpu"),
        "folder": tmp_path,
        "nothing": None,
        "shape": (1, 2),
        "net": torch.nn.ReLU(),
        "items": [{"image": "a patient's name"}],
        "table": {"a": 1},
        "function": lambda x: x,
        "imports::0": os,
        "run::0": 1,
        "hidden::inner": 1,
        "train::trainer::max_epochs": 3,
        "layers::0": 5,
    }
    record = RunRecord(tmp_path / "record.json", config=config, without=["hidden"])
    record.attach(engine := Engine(lambda engine, batch: batch))
    config["late"] = 1
    engine.run([0])
    assert read(tmp_path / "record.json")["config"] == {
        "device": "cpu",
        "folder": str(tmp_path),
        "late": 1,
        "net": "torch.nn.modules.activation.ReLU",
        "nothing": None,
        "shape": [1, 2],
        "train#trainer#max_epochs": 3,
    }


def test_a_run_that_fails_at_once_leaves_no_record(tmp_path):
    def fail(engine, batch):
        raise RuntimeError("at once")

    RunRecord(tmp_path / "record.json").attach(engine := Engine(fail))
    with pytest.raises(RuntimeError, match="at once"):
        engine.run([0])
    assert list(tmp_path.iterdir()) == []


def test_parameters_have_one_level(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    record = RunRecord(
        tmp_path / "record.json", seed=3, weights={"model": tmp_path / "weights"}, data={"a": []}
    )
    found = record.parameters()
    assert found["seed"] == "3"
    assert found["weights.model"].startswith("ba7816bf")
    assert found["data.a.scans"] == "0"
    assert found["versions.stipple-monai"] == versions()["stipple-monai"]
    assert not [name for name in found if name.startswith("config")]
