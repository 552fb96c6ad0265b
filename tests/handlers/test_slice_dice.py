"""The training's Dice against MONAI's chain of transforms and metric."""

import pytest
import torch
from monai.data import decollate_batch
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted, Compose, MaskIntensityd

from stipple_monai.handlers import SliceDice


def monai_dice(batches, classes):
    """Sample by sample, as MONAI's bundles do."""
    after = Compose(
        [
            AsDiscreted("pred", argmax=True),
            MaskIntensityd(["pred", "label"], mask_key="label", select_fn=lambda x: x != 255),
            AsDiscreted(["pred", "label"], to_onehot=classes),
        ]
    )
    dice = DiceMetric(include_background=False)
    for pred, label in batches:
        for item in decollate_batch({"pred": pred, "label": label.float()}):
            item = after(item)
            dice([item["pred"]], [item["label"]])
    return float(dice.aggregate())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shape", [(9, 8), (5, 4, 3)])
def test_equals_monai(classes, shape):
    generator = torch.Generator().manual_seed(classes)
    batches = []
    for n in range(5):
        pred = torch.randn(3, classes, *shape, generator=generator)
        label = torch.randint(0, classes, (3, 1, *shape), generator=generator)
        label[torch.rand(label.shape, generator=generator) < 0.3] = 255
        # absent, ignored throughout
        label[0][label[0] == 1] = 0
        label[1] = 255 if n == 2 else label[1]
        batches.append((pred, label))
    dice = SliceDice()
    for pred, label in batches:
        dice(pred, label)
    assert float(dice.aggregate()) == pytest.approx(monai_dice(batches, classes), rel=1e-6)


def test_what_lies_behind_the_label_is_no_label():
    pred, label = torch.randn(2, 2, 6, 6), torch.randint(0, 2, (2, 1, 6, 6))
    dice = SliceDice()
    expected = dice(pred, label)
    assert torch.equal(dice(pred, torch.cat([label, 1 - label], dim=1)), expected)


def test_unlabelled_slices_count_for_nothing():
    dice = SliceDice()
    assert dice(torch.randn(2, 2, 8, 8), torch.full((2, 1, 8, 8), 255.0)).isnan().all()
    assert float(dice.aggregate()) == 0


def test_a_device_is_asked_for_nothing():
    """The device meta has no values to give."""
    handler = IgniteMetricHandler(
        metric_fn=SliceDice(), output_transform=from_engine(["pred", "label"], first=True)
    )
    output = {
        name: torch.zeros(2, c, 8, 8, device="meta") for name, c in (("pred", 3), ("label", 1))
    }
    for _ in range(2):
        handler.update(handler._output_transform([output]))
    assert len(handler.metric_fn._buffers[0]) == 4
