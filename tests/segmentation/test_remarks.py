"""Results that a person should look at say so; a run that failed may be repeated."""

import csv

import numpy as np
import pytest
from helpers.threshold_model import write_model, write_scan

from stipple_monai.bundle import BUNDLE, configs_of
from stipple_monai.bundle import write_model as write_known
from stipple_monai.planning.fingerprint import example_fingerprint
from stipple_monai.segmentation import segment

CT = {"mean": 0.0, "sd": 300.0, "p00_5": -1020.0, "p50": 0.0, "p99_5": 900.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    training = example_fingerprint(scan_intensity=CT).facts()
    overlays = [folder / "threshold.yaml"]
    write_known(
        folder, configs_of(BUNDLE), organs={1: "pancreas"}, overlays=overlays, training=training
    )
    return folder


def scan(path, edge):
    mask = np.zeros((20, 20, 12), bool)
    mask[6:14, 5:13, 3 : 3 + edge] = True
    return write_scan(path, mask, np.diag([3.0, 3.0, 5.0, 1.0]))


def rows(out):
    return {
        row["scan"][-8]: row["remarks"]
        for row in csv.DictReader((out / "volumes.csv").open(encoding="utf-8"))
    }


@pytest.mark.slow
def test_an_odd_scan_and_an_odd_volume_are_marked_and_warned_of(tmp_path, model, recwarn):
    scans = [scan(tmp_path / "a.nii.gz", 6), scan(tmp_path / "b.nii.gz", 1)]
    segment(scans, tmp_path / "out", models=model)
    told = rows(tmp_path / "out")
    assert "are unlike the -1020 to 900 of the training (CT)" in told["a"]
    assert "volume" not in told["a"]
    assert "volume 2.88 ml is far from the 17.3 to 17.3 ml" in told["b"]
    said = [str(w.message) for w in recwarn if "unlike" in str(w.message)]
    assert len(said) == 2


@pytest.mark.slow
def test_a_run_that_failed_at_once_is_repeated_with_other_settings(tmp_path, model):
    bad = scan(tmp_path / "a.nii", 6)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be segmented: "):
        segment([bad], tmp_path / "out", models=model)
    bad.write_bytes(whole)
    segment([bad], tmp_path / "out", models=model, probabilities=True)
    assert (tmp_path / "out" / "a_prob.nii.gz").exists()
    with pytest.raises(ValueError, match="made with other settings"):
        segment([bad], tmp_path / "out", models=model)
