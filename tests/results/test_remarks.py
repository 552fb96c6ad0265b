"""What a person should look at in a result."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from stipple_monai import SpatialPrior
from stipple_monai.planning.fingerprint import example_fingerprint
from stipple_monai.priors.cases import Volumes
from stipple_monai.results import add_remarks, organ_remarks, scan_remarks, write_tables

CT = {"mean": 0.0, "sd": 300.0, "p00_5": -1020.0, "p50": 0.0, "p99_5": 400.0}
WINDOWED = {"mean": 0.0, "sd": 90.0, "p00_5": -125.0, "p50": 20.0, "p99_5": 275.0}
MR = {"mean": 100.0, "sd": 80.0, "p00_5": 0.0, "p50": 90.0, "p99_5": 700.0}


def row(**changes):
    known = {"organ": 1, "name": "pancreas", "volume_ml": 80.0}
    return {**known, "position_mm": [0, 0, 0], "confidence": 0.9, **changes}


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({}, []),
        (
            {"volume_ml": 2.5},
            ["volume 2.5 ml is far from the 41 to 150 ml of the 3 cases of"],
        ),
        ({"volume_ml": 31.0}, []),
        ({"volume_ml": 30.0}, ["volume 30 ml is far from"]),
        ({"volume_ml": 199.0}, []),
        ({"volume_ml": 201.0}, ["volume 201 ml is far from"]),
        ({"volume_ml": 0.0}, ["not found"]),
        ({"position_mm": None, "confidence": 0.3}, ["no certain position (confidence 0.30)"]),
        ({"position_mm": None, "confidence": None}, []),
    ],
)
def test_of_an_organ(changes, remark):
    found = organ_remarks(row(**changes), {"least": 41.0, "greatest": 150.0, "cases": 3})
    assert len(found) == len(remark)
    assert all(text.startswith(start) for text, start in zip(found, remark, strict=True))
    assert not organ_remarks(row(volume_ml=2.5), None)


def scan(folder, low, high, spacing=(1, 1, 3)):
    values = np.linspace(low, high, 8 * 8 * 8).reshape(8, 8, 8).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([*spacing, 1.0])), folder / "a.nii.gz")
    return str(folder / "a.nii.gz")


@pytest.mark.parametrize(
    ("modality", "known", "low", "high", "odd"),
    [
        ("CT", CT, -1024, 420, False),
        ("CT", CT, -1000, 250, False),
        ("CT", CT, 0, 900, True),
        ("CT", CT, -1, 1, True),
        ("CT", WINDOWED, -125, 260, False),
        # MR of 8 bits in a model of windowed CT
        ("CT", WINDOWED, 0, 255, True),
        ("MR", MR, 0, 4000, False),
        ("MR", MR, -1000, 400, True),
    ],
)
def test_of_intensities(tmp_path, modality, known, low, high, odd):
    training = example_fingerprint(modality=modality, scan_intensity=known).facts()
    found = scan_remarks(scan(tmp_path, low, high), training)
    assert bool(found) is odd
    if odd:
        assert f"of the training ({modality})" in found[0]


def test_of_spacing_and_of_models_that_know_nothing(tmp_path):
    training = example_fingerprint(scan_intensity=CT).facts()
    path = scan(tmp_path, -1024, 400, spacing=(1, 1, 10))
    assert scan_remarks(path, training) == [
        "spacing 1 × 1 × 10 mm is far from the 1 × 1 × 3 mm of the training"
    ]
    assert scan_remarks(path, {}) == []
    (tmp_path / "a.nii.gz").write_bytes(b"none")
    assert scan_remarks(path, training) == []


@pytest.mark.parametrize(("slices", "odd"), [(200, False), (201, True)])
def test_of_a_scan_that_is_more_than_twice_as_long(tmp_path, slices, odd):
    training = example_fingerprint(scan_intensity=CT).facts()
    values = np.full((slices, 4, 5), -1024, np.int16)  # slices along the first axis
    values[:, :2] = 400
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [-3, 0, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "long.nii.gz")
    found = scan_remarks(str(tmp_path / "long.nii.gz"), training)
    assert found == odd * [
        "length 603 mm along the body is far from the 300 mm of the training: compare with "
        "--set scan_vote=false"
    ]


def test_they_stand_in_the_table_and_are_told_once(tmp_path, recwarn):
    path = scan(tmp_path, 0, 900)
    record = {"scan": path, "fingerprint": None, "organs": [row(volume_ml=2.5)]}
    (tmp_path / "a_volumes.json").write_text(json.dumps(record))
    volumes = Volumes(80.0, 20.0, 41.0, 150.0)
    prior = SpatialPrior(np.ones((3, 3, 3)), spacing_mm=(1, 1, 1), volumes_ml=volumes)
    training = example_fingerprint(scan_intensity=CT).facts()
    silent = SpatialPrior(np.ones((3, 3, 3)), spacing_mm=(1, 1, 1), organ=1)
    add_remarks(tmp_path, priors=[prior, silent], training=training)
    add_remarks(tmp_path, priors=[prior], training=training)
    # a prior that knows no volumes says nothing of them
    (said,) = [str(w.message) for w in recwarn if "a.nii.gz" in str(w.message)]
    assert "intensities" in said
    assert "pancreas: volume 2.5 ml" in said
    (line,) = csv.DictReader(write_tables(tmp_path).open(encoding="utf-8"))
    assert line["remarks"].startswith("intensities")
    assert line["remarks"].endswith("41 to 150 ml of the 1 case of its prior")
