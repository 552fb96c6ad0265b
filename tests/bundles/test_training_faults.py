"""Trainings that go wrong, and folders with names that mean something elsewhere."""

import csv
import json
import math
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.bright_scans import KNOBS, bright_scan
from helpers.bundle_runs import BUNDLE, QUIET

from stipple_monai.bundle import run_bundle
from stipple_monai.errors import DatasetError, TrainingError

pytestmark = [*QUIET, pytest.mark.training]
TRAINING = {k: v for k, v in KNOBS.items() if k != "minimum_confidence"}


@pytest.fixture
def scans(tmp_path):
    """Four scans in a data set, of which one validates."""
    folder = tmp_path / "data"
    folder.mkdir()
    items = [bright_scan(folder, i) for i in range(4)]
    sections = {"training": items[:2], "validation": items[2:3], "test": items[3:]}
    content = {"labels": {"0": "background", "1": "blob"}, **sections}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def stage(name, scans, models, **knobs):
    places = {"dataset_dir": scans, "models_dir": models, "output_dir": models.with_name("eval")}
    known = {} if name == "prior" else TRAINING
    run_bundle(BUNDLE / "configs", [name], **{**places, **known, **knobs})


def epochs(models):
    with (models / "curve.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["models [run 1]", "a#1", "b@#2", "%c#", "d::e", "$f", "{g}*?"])
def test_a_training_goes_on_in_a_folder_of_any_name(scans, tmp_path, name):
    models = tmp_path / name / "models"
    stage("prior", scans, models)
    stage("train", scans, models, max_epochs=1)
    first = torch.load(models / "last.pt", weights_only=True)
    stage("train", scans, models, max_epochs=2, resume=True, seed=7)
    rows = epochs(models)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert len(list(models.glob("checkpoint_*.pt"))) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"data", name}
    assert first.keys() == torch.load(models / "last.pt", weights_only=True).keys()


def test_a_resumed_training_starts_where_it_was(scans, tmp_path):
    models = tmp_path / "models [run 1]"
    stage("prior", scans, models)
    stage("train", scans, models, max_epochs=1)
    before = (models / "curve.csv").read_text().splitlines()[1]
    (models / "provenance.json").unlink()
    stage("train", scans, models, max_epochs=2, resume=True)
    assert (models / "curve.csv").read_text().splitlines()[1] == before


def first_error(function):
    """What MONAI and ignite wrap in errors of their own."""
    with pytest.raises(Exception, match=r".") as caught:
        function()
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def empty(label):
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), label)


def test_validation_scans_without_the_organ_choose_nothing(scans, tmp_path):
    content = json.loads((scans / "dataset.json").read_text())
    empty(content["validation"][0]["label"])
    models = tmp_path / "models"
    stage("prior", scans, models)
    with pytest.warns(UserWarning, match="val_mean_dice is undefined: no validation scan has an"):
        stage("train", scans, models, max_epochs=3)
    assert [row["validation_dice"] for row in epochs(models)] == ["", "", ""]
    chosen, last = (torch.load(models / n, weights_only=True) for n in ("model.pt", "last.pt"))
    assert all(torch.equal(chosen[k], last[k]) for k in last)


def test_a_diverged_training_leaves_no_model(scans, tmp_path):
    models = tmp_path / "models"
    stage("prior", scans, models)
    first = first_error(lambda: stage("train", scans, models, learning_rate=1e30))
    assert isinstance(first, TrainingError)
    assert "must stay finite" in str(first)
    saved = [p for p in models.glob("*.pt") if "checkpoint" not in p.name]
    for path in saved:
        assert all(t.isfinite().all() for t in torch.load(path, weights_only=True).values())


def test_weights_that_are_not_finite_are_refused(scans, tmp_path):
    models = tmp_path / "models"
    stage("prior", scans, models)
    stage("train", scans, models, max_epochs=1)
    state = torch.load(models / "model.pt", weights_only=True)
    next(iter(state.values())).fill_(math.nan)
    torch.save(state, models / "model.pt")
    first = first_error(lambda: stage("inference", scans, models, minimum_confidence=0))
    assert isinstance(first, DatasetError)
    assert re.search(r"model\.pt must hold finite weights, got NaN", str(first))


def test_an_epoch_without_a_step_is_refused(scans, tmp_path):
    models = tmp_path / "models"
    stage("prior", scans, models)
    with pytest.raises(RuntimeError) as caught:
        stage("train", scans, models, batch_size=1000)
    assert isinstance(caught.value.__cause__, TrainingError)
    assert re.match(".* one step, got fewer slices than `batch_size`", str(caught.value.__cause__))
    assert not list(models.glob("*.pt"))
