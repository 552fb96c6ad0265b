"""Labels are checked, and a training step on a GPU is not made to wait for it."""

import copy

import pytest
import torch
from helpers.one_device import OneDevice

from stipple_monai import PriorDrivenNet, SliceUNet
from stipple_monai.errors import DatasetError
from stipple_monai.losses import AtlasPriorLoss, PartialDiceCELoss
from stipple_monai.losses.labels import SELDOM, LabelCheck

GPU = torch.device("cuda")
BAD, GOOD = torch.tensor([0.0, 1.0, 7.0, 255.0]), torch.tensor([0.0, 1.0, 1.0, 255.0])


@pytest.fixture
def late(monkeypatch):
    """A check that takes labels on the CPU for labels on a GPU."""
    looks = LabelCheck.looks_now
    monkeypatch.setattr(LabelCheck, "looks_now", lambda check, _: looks(check, GPU))
    return LabelCheck(255, name="`label`")


def test_a_gpu_is_asked_ever_more_seldom():
    check = LabelCheck(255, name="`label`")
    asked = []
    for n in range(1, 4 * SELDOM + 1):
        check._calls = n
        asked += [n] if check.looks_now(GPU) else []
        assert check.looks_now(torch.device("cpu"))
    assert asked == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]


def test_what_is_no_class_counts_as_ignored_until_it_is_said(late):
    for _ in range(2):
        late(GOOD, highest=1)
    assert late(BAD, highest=1).tolist() == [0, 1, 255, 255]
    with pytest.raises(DatasetError, match=r"`label` must hold classes 0 to 1 .* got 7; check"):
        late(GOOD, highest=1)
    copy.deepcopy(late)(GOOD, highest=1)


@pytest.mark.parametrize("value", [2, -1, 254, 0.5, float("nan")])
def test_the_first_call_tells_at_once(late, value):
    label = torch.zeros(2, 1, 3, 3)
    label[1, 0, 2, 1] = value
    with pytest.raises(DatasetError, match=f"got {value}"):
        late(label, highest=1)


def test_nothing_is_as_good_as_classes():
    assert LabelCheck(255, name="`label`")(torch.zeros(0, 1, 2, 2), highest=1).shape[0] == 0


LOSSES = {
    "softmax": (PartialDiceCELoss(softmax=True, weight=[1.0, 2.0, 0.5]), 3, 1),
    "batch": (PartialDiceCELoss(softmax=True, include_background=False, batch=True), 3, 1),
    "sigmoid": (PartialDiceCELoss(sigmoid=True, weight=[2.0]), 1, 1),
    "atlas": (AtlasPriorLoss(region=PartialDiceCELoss(softmax=True)), 3, 3),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_loss_asks_a_device_for_nothing(monkeypatch, name, dtype):
    """The device meta has no values: whoever asks for one, or brings one from the CPU, fails."""
    monkeypatch.setattr(LabelCheck, "looks_now", lambda *_: False)
    loss, channels, targets = LOSSES[name]
    loss = copy.deepcopy(loss).to("meta")
    logits = torch.zeros(2, channels, 8, 8, device="meta", dtype=dtype, requires_grad=True)
    target = torch.zeros(2, targets, 8, 8, device="meta")
    with OneDevice():
        loss(logits, target).backward()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_network_asks_a_device_for_nothing(activation):
    backbone = SliceUNet(out_channels=2, channels=(4, 8)).to("meta")
    net = PriorDrivenNet(backbone, image_channels=1, activation=activation)
    organs = 1 if activation == "softmax" else 2
    with OneDevice():
        net(torch.zeros(2, 1 + organs, 16, 16, device="meta")).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.slow
def test_the_network_is_one_graph():
    """MONAI compiles networks alone; its Dice loss would be several graphs."""
    net = PriorDrivenNet(SliceUNet(channels=(4, 8)), image_channels=1)
    found = torch._dynamo.explain(net)(torch.rand(2, 2, 16, 16))
    assert found.graph_break_count == 0, found.break_reasons


def test_a_compiled_step_checks_nothing(monkeypatch):
    """A look at the labels would break its graph."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check = LabelCheck(255, name="`label`")
    assert check(BAD, highest=1).tolist() == [0, 1, 255, 255]
    monkeypatch.undo()
    with pytest.raises(DatasetError, match="got 7"):
        check(BAD, highest=1)
