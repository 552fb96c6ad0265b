"""The numbers of calibrated fusion: what is allowed, and the file."""

import math

import pytest
import torch

from stipple_monai.errors import PriorError
from stipple_monai.networks import Calibration

NUMBERS = {
    "scale": [0.1, 0.2],
    "strength": [1, 0],
    "offset": [2, -1],
    "scale_alone": [0.25, 0.5],
    "offset_alone": [0, 0.5],
}


def test_the_file_gives_the_same_numbers(tmp_path):
    path = tmp_path / "models" / "calibration.json"
    calibration = Calibration(
        **NUMBERS, activation="sigmoid", thresholds=[0.3, 0.4], record={"scans": 3, "nats": [0.1]}
    )
    calibration.save(path)
    assert Calibration.load(path) == calibration
    assert Calibration.load(path).record == {"scans": 3, "nats": [0.1]}
    bare = Calibration(**{name: torch.tensor(v).float() for name, v in NUMBERS.items()})
    bare.save(path)
    assert Calibration.load(path) == bare


def test_constructors():
    identity = Calibration.identity(2, activation="sigmoid")
    assert identity.tensor().tolist() == [[1, 1, 0, 1, 0]] * 2
    assert (identity.organs, identity.activation) == (2, "sigmoid")
    (constants,) = Calibration.unfitted(1).tensor().tolist()
    assert constants == pytest.approx([0.2, 0.5, 0.5, 1, 0])
    assert Calibration(**NUMBERS).tensor().dtype == torch.float32


@pytest.mark.parametrize("name", ["scale", "strength", "scale_alone"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_factors_are_finite_and_not_negative(name, value):
    with pytest.raises(PriorError, match=f"`{name}` must be finite and at least 0, got"):
        Calibration(**{**NUMBERS, name: [1, value]})


@pytest.mark.parametrize("name", ["offset", "offset_alone"])
def test_offsets_are_finite(name):
    with pytest.raises(PriorError, match=f"`{name}` must be finite, got"):
        Calibration(**{**NUMBERS, name: [0, -math.inf]})


def test_errors(tmp_path):
    for name in ("strength", "thresholds"):
        with pytest.raises(PriorError, match=f"`{name}` must have one number .* got 1 for 2"):
            Calibration(**{**NUMBERS, name: [0.5]})
    with pytest.raises(PriorError, match="`scale` must have one number for each organ"):
        Calibration([], [], [], [], [])
    with pytest.raises(PriorError, match=r"`thresholds` must lie in \(0, 1\), got"):
        Calibration(**NUMBERS, thresholds=[0.5, 1.0])
    with pytest.raises(PriorError, match="`activation` must be 'softmax' or 'sigmoid', got 'relu'"):
        Calibration(**NUMBERS, activation="relu")
    path = tmp_path / "calibration.json"
    for text in ("[", "[1]", "{}", '{"temperature": 3}'):
        path.write_text(text)
        with pytest.raises(PriorError, match=r"calibration\.json must be a calibration as JSON"):
            Calibration.load(path)
