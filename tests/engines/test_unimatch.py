"""UniMatch: its parts, its training by hand, and the bundle's overlay for it."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.method_runs import (
    NETWORK,
    TRAINING,
    parsed,
    partly_labelled,
    resume_second_epoch,
    run,
    same,
    weights,
)
from monai.transforms import Compose, RandScaleIntensity
from torch import nn

from stipple_monai import PartialDiceCELoss, SliceUNet
from stipple_monai.engines.unimatch import (
    UniMatchTrainer,
    confident_classes,
    draw_boxes,
    strong_view,
)

METHOD = ("train", "baseline", "unlabelled", "unimatch")
OPTIONS = {
    "threshold": 0.43,
    "strong_weight": 0.25,
    "perturbed_weight": 0.5,
    "feature_dropout": 0.5,
}


# parts


def test_pseudo_labels_are_the_classes_that_are_sure_enough():
    p = torch.tensor([[0.96, 0.02, 0.5, 0.1], [0.04, 0.95, 0.3, 0.2], [0.0, 0.03, 0.2, 0.7]])
    found = confident_classes((p[None] + 1e-9).log(), threshold=0.94, ignore_index=9)
    assert found.tolist() == [[[0, 1, 9, 9]]]
    # the threshold itself is sure enough
    assert confident_classes(torch.zeros(1, 2, 1), threshold=0.5).tolist() == [[[0]]]


def test_boxes_are_of_the_authors_sizes():
    torch.manual_seed(0)
    boxes = draw_boxes(2000, 60, 50)
    assert boxes.shape == (2000, 1, 60, 50)
    some = [box[0] for box in boxes if box.any()]
    assert len(some) == pytest.approx(1000, abs=70)
    areas, ratios = [], []
    for box in some:
        where = box.nonzero()
        w, h = (where.max(0).values - where.min(0).values + 1).tolist()
        assert int(box.sum()) == w * h
        areas.append(w * h / 3000)
        ratios.append(h / w)
    # sides are rounded down
    assert 0.01 < min(areas) < 0.03
    assert 0.35 < max(areas) <= 0.4
    assert min(ratios) < 0.5
    assert 2.5 < max(ratios) < 4.5
    assert not draw_boxes(50, 60, 50, prob=0).any()


def test_a_strong_view_stays_in_the_slices_range():
    image = torch.tensor([[[[-3.0, 1.0, 5.0]]], [[[2.0, 2.0, 2.0]]]])
    seen = []

    def twice(x):
        seen.append(x.clone())
        return 2 * x

    view = strong_view(image, twice)
    assert torch.equal(seen[0], torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert view.tolist() == [[[[-3.0, 5.0, 5.0]]], [[[2.0, 2.0, 2.0]]]]


# training


batches = partial(partly_labelled, width=8, height=8, known=5)


def small_network():
    torch.manual_seed(3)
    return SliceUNet(1, 3, (4, 8))


def brightness():
    return Compose([RandScaleIntensity(factors=0.5, prob=0.8)])


def trainer(network, data, device="cpu", **options):
    return UniMatchTrainer(
        device=torch.device(device),
        max_epochs=2,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=PartialDiceCELoss(softmax=True),
        intensities=brightness(),
        decollate=False,
        **{**OPTIONS, **options},
    )


def brighten(x, seed):
    """RandScaleIntensity and Compose's seeding, slice after slice."""
    transform, views = brightness().set_random_state(seed=seed), []
    for image in x:
        low, high = image.min(), image.max()
        scaled = transform((image - low) / (high - low))
        views.append(low + (high - low) * torch.as_tensor(scaled).clamp(0, 1))
    return torch.stack(views)


def box_by_hand(width, height):
    box = torch.zeros(width, height, dtype=torch.bool)
    if float(torch.rand(())) < 0.5:
        area = width * height * (0.02 + 0.38 * float(torch.rand(())))
        while True:
            ratio = 0.3 + (1 / 0.3 - 0.3) * float(torch.rand(()))
            w, h = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
            x, y = int(torch.randint(width, ())), int(torch.randint(height, ()))
            if x + w <= width and y + h <= height:
                break
        box[x : x + w, y : y + h] = True
    return box


@pytest.mark.slow
def test_training_equals_the_same_by_hand():
    data, network = batches(4), small_network()
    oracle = copy.deepcopy(network).train()
    engine = trainer(network, data)
    torch.manual_seed(11)
    engine.run()

    torch.manual_seed(11)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1)
    loss = PartialDiceCELoss(softmax=True)
    sure, boxes, losses = [], 0, []
    for batch in [*data, *data]:
        image, label = batch["image"], batch["label"]
        top = oracle.encoder[0](image)
        bottom = oracle.bottom(oracle.pool(top))
        dropped = [F.dropout2d(x[[0, 2]], 0.5) for x in (top, bottom)]
        up = oracle.decoder[0](torch.cat([bottom, dropped[1]]), torch.cat([top, dropped[0]]))
        logits = oracle.output(up)
        probability = logits[[0, 2]].detach().softmax(1)
        pseudo = probability.argmax(1)[:, None]
        pseudo[probability.amax(1)[:, None] < 0.43] = 255
        sure.append(float((pseudo != 255).float().mean()))
        total = loss(logits[:4], label) + 0.5 * loss(logits[4:], pseudo)
        views, targets = [], []
        for _ in range(2):
            view = brighten(image[[0, 2]], int(torch.randint(2**31, ())))
            mixed, target = view.clone(), pseudo.clone()
            for n in range(2):
                box = box_by_hand(8, 8)
                boxes += int(box.any())
                mixed[n, 0][box] = view[1 - n, 0][box]
                target[n, 0][box] = pseudo[1 - n, 0][box]
            views.append(mixed)
            targets.append(target)
        strong = oracle(torch.cat(views))
        total = total + 0.25 * (loss(strong[:2], targets[0]) + loss(strong[2:], targets[1]))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert 0.1 < np.mean(sure) < 0.95
    assert boxes > 4
    assert float(engine.state.output["loss"]) == pytest.approx(losses[-1], rel=1e-4)
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_nothing_sure_teaches_nothing():
    losses = []
    for options in ({"threshold": 1.0}, {"strong_weight": 0, "perturbed_weight": 0}):
        engine = trainer(small_network(), batches(1), **options)
        torch.manual_seed(0)
        engine.run()
        losses.append(float(engine.state.output["loss"]))
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("threshold", 1.1, r"`threshold` must lie in \[0, 1\], got 1.1"),
        ("cutmix_prob", -0.1, r"`cutmix_prob` must lie in \[0, 1\], got -0.1"),
        ("feature_dropout", 1.0, r"`feature_dropout` must lie in \[0, 1\), got 1.0"),
        ("strong_weight", math.nan, "`strong_weight` must be 0 or more, got nan"),
        ("perturbed_weight", -1, "`perturbed_weight` must be 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        trainer(small_network(), batches(1), **{option: value})


def test_a_network_without_encoder_and_decoder_is_refused():
    with pytest.raises(TypeError, match=r"must have `encode` and `decode`.*got Conv2d"):
        trainer(nn.Conv2d(1, 3, 1), batches(1))


def test_batch_without_unlabelled_slices_is_refused():
    data = [{"image": torch.zeros(2, 1, 8, 8), "label": torch.zeros(2, 1, 8, 8)}]
    with pytest.raises(ValueError, match="labelled 255 throughout, got none: add the unlabelled"):
        trainer(small_network(), data).run()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_with_mixed_precision():
    network = small_network().cuda()
    engine = trainer(network, batches(3), device="cuda", amp=True)
    engine.run()
    assert math.isfinite(float(engine.state.output["loss"]))
    assert all(bool(p.isfinite().all()) for p in network.parameters())


# the bundle


def test_overlay_has_the_authors_numbers(root):
    engine = parsed(METHOD, root, **TRAINING).get_parsed_content("train#trainer")
    assert (engine.threshold, engine.feature_dropout, engine.cutmix_prob) == (0.95, 0.5, 0.5)
    assert (engine.strong_weight, engine.perturbed_weight) == (0.25, 0.5)


def test_trained_model_segments_with_the_baselines_configs(trained):
    folder = trained / "models"
    knobs = {**NETWORK, "output_dir": str(trained / "eval"), "models_dir": str(folder)}
    run(("inference", "baseline"), trained, **knobs)
    assert len(list((trained / "eval").glob("*_seg.nii.gz"))) == 1


def test_resumed_training_equals_an_uninterrupted_one(trained):
    resumed = resume_second_epoch(METHOD, trained, **TRAINING)
    first, second = (
        weights(folder / "checkpoint_epoch=2.pt")["model"]
        for folder in (trained / "models", resumed)
    )
    assert same(first, second)


@pytest.mark.slow
def test_the_network_may_compute_in_bfloat16(root, tmp_path):
    names = ("train", "bfloat16", *METHOD[1:])
    run(names, root, **{**TRAINING, "max_epochs": 1, "models_dir": str(tmp_path)})
    state = weights(tmp_path / "last.pt")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
