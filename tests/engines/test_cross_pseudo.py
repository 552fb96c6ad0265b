"""Cross pseudo supervision: its loss, its training by hand, and the bundle's overlay for it."""

import copy
import math
from functools import partial

import pytest
import torch
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
from torch import nn

from stipple_monai import PartialDiceCELoss
from stipple_monai.engines.cross_pseudo import CrossPseudoTrainer, cross_pseudo_loss

METHOD = ("train", "baseline", "unlabelled", "cross_pseudo")
OPTIONS = {"pseudo_weight": 1.5, "ramp_share": 0.5}


def log_softmax(numbers, chosen):
    return numbers[chosen] - math.log(sum(math.exp(x) for x in numbers))


def test_each_prediction_is_measured_by_the_others_classes():
    # two voxels; the classes are (0, 1) of the first and (1, 1) of the second
    first = torch.tensor([[[2.0, 0.5], [1.0, 3.0]]], requires_grad=True)
    second = torch.tensor([[[-1.0, 0.0], [1.0, 0.3]]], requires_grad=True)
    loss = cross_pseudo_loss(first, second)
    of_first = log_softmax([2.0, 1.0], 1) + log_softmax([0.5, 3.0], 1)
    of_second = log_softmax([-1.0, 1.0], 0) + log_softmax([0.0, 0.3], 1)
    assert loss.item() == pytest.approx(-(of_first + of_second) / 2)
    loss.backward()
    # each is drawn to the other's class: softmax − one-hot, over two voxels
    by_hand = (first.detach().softmax(1) - torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])) / 2
    torch.testing.assert_close(first.grad, by_hand)


# training


batches = partial(partly_labelled, width=5, height=6, known=2)


def networks():
    torch.manual_seed(3)
    return [
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
        for _ in range(2)
    ]


def trainer(first, second, data, device="cpu", params=None, **options):
    params = [*first.parameters(), *second.parameters()] if params is None else params
    return CrossPseudoTrainer(
        device=torch.device(device),
        max_epochs=2,
        train_data_loader=data,
        network=first,
        second=second,
        optimizer=torch.optim.Adam(params, lr=0.05),
        loss_function=PartialDiceCELoss(softmax=True),
        decollate=False,
        **{**OPTIONS, **options},
    )


def test_training_equals_the_same_by_hand():
    data, ours = batches(3), networks()
    oracles = [copy.deepcopy(network).train() for network in ours]
    engine = trainer(*ours, data)
    engine.run()

    optimizers = [torch.optim.Adam(network.parameters(), lr=0.05) for network in oracles]
    supervised = PartialDiceCELoss(softmax=True)
    for step, batch in enumerate([*data, *data]):
        logits = [network(batch["image"]) for network in oracles]
        # risen after half of the 6 steps
        weight = 1.5 * math.exp(-5 * (1 - min(step / 3, 1)) ** 2)
        total = 0
        for mine, other in (logits, logits[::-1]):
            classes = other.argmax(1).flatten()
            voxels = mine.log_softmax(1).movedim(1, -1).reshape(-1, 3)
            total = total + supervised(mine, batch["label"])
            total = total - weight * voxels[torch.arange(len(classes)), classes].mean()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert float(engine.state.output["loss"]) == pytest.approx(total.item(), rel=1e-4)
    for network, oracle in zip(ours, oracles, strict=True):
        for name, value in oracle.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_weight_may_be_constant():
    engine = trainer(*networks(), batches(3), ramp_share=0)
    engine.state.iteration = 1
    assert engine.weight() == 1.5


def test_unlabelled_slices_teach():
    """Without them, both networks would end elsewhere."""
    ends = []
    for factor in (1, -1):
        data, (first, second) = batches(1), networks()
        data[0]["image"][[0, 2]] *= factor
        # no batch norm, through which slices see each other
        first[1], second[1] = nn.Identity(), nn.Identity()
        trainer(first, second, data, ramp_share=0).run()
        ends.append([first[0].weight.detach(), second[0].weight.detach()])
    assert not any(torch.allclose(*pair) for pair in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("pseudo_weight", math.nan, "`pseudo_weight` must be 0 or more, got nan"),
        ("ramp_share", 1.1, r"`ramp_share` must lie in \[0, 1\], got 1.1"),
        ("ramp_share", -0.1, r"`ramp_share` must lie in \[0, 1\], got -0.1"),
    ],
)
def test_options_out_of_range_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        trainer(*networks(), batches(1), **{option: value})


def test_an_optimizer_of_one_network_is_refused():
    first, second = networks()
    with pytest.raises(ValueError, match="parameters of both networks, got one without 6 of them"):
        trainer(first, second, batches(1), params=first.parameters())


def test_batch_without_unlabelled_slices_is_refused():
    data = [{"image": torch.zeros(2, 1, 5, 6), "label": torch.zeros(2, 1, 5, 6)}]
    with pytest.raises(ValueError, match="labelled 255 throughout, got none: add the unlabelled"):
        trainer(*networks(), data).run()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_with_mixed_precision():
    first, second = (network.cuda() for network in networks())
    engine = trainer(first, second, batches(3), device="cuda", amp=True)
    engine.run()
    assert math.isfinite(float(engine.state.output["loss"]))
    assert all(bool(p.isfinite().all()) for p in (*first.parameters(), *second.parameters()))


# the bundle


def test_overlay_has_two_networks_that_begin_differently(root):
    engine = parsed(METHOD, root, **TRAINING).get_parsed_content("train#trainer")
    assert (engine.pseudo_weight, engine.ramp_share) == (1.5, 1)
    first, second = (net.state_dict() for net in (engine.network, engine.second))
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    drawn = [name for name in first if name.endswith("0.weight")]
    assert len(drawn) > 2
    assert not any(torch.equal(first[name], second[name]) for name in drawn)


def test_both_networks_learn_and_the_first_is_kept(trained):
    folder = trained / "models"
    checkpoints = [weights(folder / f"checkpoint_epoch={n}.pt") for n in (1, 2)]
    for part in ("model", "second"):
        assert not same(checkpoints[0][part], checkpoints[1][part])
    assert same(weights(folder / "last.pt"), checkpoints[1]["model"])
    assert weights(folder / "model.pt").keys() == checkpoints[1]["second"].keys()
    knobs = {**NETWORK, "output_dir": str(trained / "eval"), "models_dir": str(folder)}
    run(("inference", "baseline"), trained, **knobs)
    assert len(list((trained / "eval").glob("*_seg.nii.gz"))) == 1


def test_resumed_training_equals_an_uninterrupted_one(trained):
    resumed = resume_second_epoch(METHOD, trained, **TRAINING)
    first, second = (
        weights(folder / "checkpoint_epoch=2.pt") for folder in (trained / "models", resumed)
    )
    for part in ("model", "second"):
        assert same(first[part], second[part])
    states = [checkpoint["optimizer"]["state"] for checkpoint in (first, second)]
    # of the parameters of both networks
    assert len(states[0]) == 2 * sum(
        not name.count("running") and not name.count("tracked") for name in first["model"]
    )
    for ours, theirs in zip(*(s.values() for s in states), strict=True):
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])


@pytest.mark.slow
def test_the_networks_may_compute_in_bfloat16(root, tmp_path):
    names = ("train", "bfloat16", *METHOD[1:])
    run(names, root, **{**TRAINING, "max_epochs": 1, "models_dir": str(tmp_path)})
    state = weights(tmp_path / "last.pt")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
