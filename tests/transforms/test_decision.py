"""Label maps by each rule."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from stipple_monai.calibration import CAUTION, decide
from stipple_monai.errors import DatasetError
from stipple_monai.networks import Calibration
from stipple_monai.transforms import DecideLabel, DecideLabeld

P = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).softmax(0)
FITTED = Calibration([1, 1], [1, 1], [0, 0], [1, 1], [0, 0], thresholds=[0.3, 0.4])


def test_rules():
    argmax = P.argmax(0, keepdim=True).byte()
    assert torch.equal(DecideLabel()(P), argmax)
    assert torch.equal(DecideLabel(thresholds=FITTED)(P), argmax)
    assert torch.equal(DecideLabel("dice", thresholds=FITTED)(P), decide(P))
    for unfitted in (None, "constants", Calibration.unfitted(2)):
        cautious = DecideLabel("dice", thresholds=unfitted)(P)
        assert torch.equal(cautious, decide(P, caution=CAUTION))
    assert not torch.equal(cautious, decide(P))
    for thresholds in (FITTED, FITTED.thresholds):
        label = DecideLabel("fitted", thresholds=thresholds)(P)
        assert torch.equal(label, decide(P, [0.3, 0.4]))
    assert torch.equal(DecideLabel()(P[:1]), (P[:1] > 0.5).byte())
    # as of two classes, background wins where both are equal
    assert DecideLabel()(torch.full((1, 1), 0.5)) == DecideLabel()(torch.full((2, 1), 0.5)) == 0


def test_the_grid_stays():
    affine = torch.diag(torch.tensor([2.0, 2, 3, 1], dtype=torch.float64))
    data = {"pred": MetaTensor(P, affine=affine)}
    label = DecideLabeld("pred", "dice")(data)["pred"]
    assert (label.dtype, label.shape) == (torch.uint8, (1, 4, 5, 6))
    assert torch.equal(label.affine, affine)
    assert DecideLabel()(P.numpy()).dtype == np.uint8


@pytest.mark.parametrize("rule", ["argmax", "dice"])
@pytest.mark.parametrize("scans", [1, 2])
def test_a_batch_is_decided_scan_by_scan(rule, scans):
    batch = torch.stack([P] * scans)
    match = r"one scan, C W H D, got the shape \(\d, 3, 4, 5, 6\): decide .* one by one, `prob"
    with pytest.raises(DatasetError, match=match):
        DecideLabel(rule)(batch)
    with pytest.raises(DatasetError, match=match):
        DecideLabeld("pred", rule)({"pred": batch})


@pytest.mark.parametrize("rule", ["argmax", "dice"])
def test_probabilities_that_are_none_are_refused(rule):
    with pytest.raises(DatasetError, match=r"`probability` must be finite, got NaN or infinity"):
        DecideLabel(rule)(torch.full((2, 3, 3, 3), torch.nan))


@pytest.mark.parametrize("rule", ["argmax", "dice"])
def test_a_sigmoid_of_several_organs_is_refused(rule):
    """Its first organ would be taken for the background."""
    organs = torch.zeros(2, 8, 8, 8)
    organs[0, 1:4], organs[1, 4:7] = 0.9, 0.8
    for p in (organs, (organs * 12 - 6).sigmoid(), organs.numpy()):
        with pytest.raises(DatasetError, match=r"must sum to 1 .* one organ at a time, `prob"):
            DecideLabel(rule)(p)
    assert [int(DecideLabel(rule)(p[None]).sum()) for p in organs] == [192, 192]


def test_what_an_inverse_transform_padded_is_background():
    padded = torch.nn.functional.pad(P, (9, 0, 9, 9, 9, 9)).bfloat16()
    label = DecideLabel()(padded)
    assert torch.equal(label[:, 9:-9, 9:-9, 9:], DecideLabel()(P.bfloat16()))
    assert label.sum() == label[:, 9:-9, 9:-9, 9:].sum()
    logits = P.log()
    assert torch.equal(DecideLabel()(logits), DecideLabel()(P))


def test_errors():
    with pytest.raises(ValueError, match="`rule` must be 'argmax', 'dice' or 'fitted', got 'best'"):
        DecideLabel("best")
    for thresholds in (None, Calibration.identity(2), "constants"):
        with pytest.raises(ValueError, match="`thresholds` must be given for the rule 'fitted'"):
            DecideLabel("fitted", thresholds=thresholds)
