"""The numbers of calibrated fusion: what is allowed, and the file."""

import json
import math

import numpy as np
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


def maps(margin, *, background=True):
    """Two organs in a corner each, ``margin`` below the background elsewhere."""
    evidence = torch.full((2, 16, 16, 8), -float(margin))
    evidence[0, :4, :4], evidence[1, 8:12, 8:12] = 3.0, 2.0
    evidence[1, :, :, 4:] -= 50  # the organ that is nearest counts
    return torch.cat([torch.full((1, 16, 16, 8), 7.0), 7 + evidence]) if background else evidence


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("margin", "scale"), [(40, 0.2), (10, 0.2), (4, 0.5), (2, 1), (0.5, 1)])
def test_constants_leave_a_typical_background_its_margin(activation, margin, scale):
    constants = Calibration.unfitted(2, activation=activation)
    logits = maps(margin, background=activation == "softmax")
    numbers = constants.for_scan(logits)
    expected = constants.tensor()
    expected[:, 0] = scale
    torch.testing.assert_close(numbers, expected)
    torch.testing.assert_close(constants.for_scan(logits.half()), expected)


@pytest.mark.parametrize(("margin", "scale"), [(40, 0.3), (4, 0.3), (2, 0.5), (0.5, 1)])
def test_a_network_that_saw_the_prior_has_half_the_margin(margin, scale):
    constants = Calibration.unfitted(2, prior_in_training=True)
    assert constants.for_scan(maps(margin))[:, 0].tolist() == pytest.approx([scale] * 2)


def test_a_part_that_is_surely_background_does_not_hide_the_typical_one():
    logits = maps(4)
    logits[1:, :, 12:] -= 100
    constants = Calibration.unfitted(2)
    assert torch.equal(constants.for_scan(logits), constants.for_scan(maps(4)))


def test_a_scan_without_background_has_the_constants_as_they_are():
    constants = Calibration.unfitted(2)
    assert torch.equal(constants.for_scan(maps(-1)), constants.tensor())


def test_fitted_numbers_do_not_look_at_the_scan(tmp_path):
    fitted, constants = Calibration(**NUMBERS), Calibration.unfitted(2)
    assert torch.equal(fitted.for_scan(maps(0.5)), fitted.tensor())
    for calibration in (fitted, constants):
        calibration.save(tmp_path / "calibration.json")
        loaded = Calibration.load(tmp_path / "calibration.json")
        assert loaded.fitted == (calibration is fitted)
        assert torch.equal(loaded.for_scan(maps(4)), calibration.for_scan(maps(4)))


def test_constants_trust_a_network_of_more_labels_more():
    assert Calibration.unfitted(2) == Calibration.unfitted(2, labelled=3)
    scales = [Calibration.unfitted(1, labelled=n).scale[0] for n in (0, 3, 8, 15, 99, 1000)]
    assert scales == pytest.approx([0.2, 0.2, 0.3, 0.4, 1, 1])
    each = Calibration.unfitted(2, labelled=[3, 8])
    assert each.scale == pytest.approx((0.2, 0.3))
    assert each.strength == each.offset == (0.5, 0.5)
    assert Calibration.unfitted(1, labelled=np.int64(8)).record["labelled"] == [8]
    sees = Calibration.unfitted(2, labelled=[2, 8], prior_in_training=True)
    assert sees.tensor().tolist()[0] == pytest.approx([0.3, 0.75, 0.5, 1, 0])
    assert sees.scale[1] == pytest.approx(0.45)
    for wrong in (-1, [3], [3, -1], [3, 8.0], "38", 2.5, True, [True, 3]):
        with pytest.raises(PriorError, match="`labelled` must be a number of label maps, or one"):
            Calibration.unfitted(2, labelled=wrong)


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
    wrong = json.dumps({**NUMBERS, "scale": [-1.0, 1.0]}), json.dumps({**NUMBERS, "record": []})
    for text in ("[", "[1]", "{}", '{"temperature": 3}', "[" * 10**5, *wrong):
        path.write_text(text)
        with pytest.raises(PriorError, match=r"calibration\.json must be a calibration as JSON"):
            Calibration.load(path)
