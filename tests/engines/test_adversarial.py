"""Adversarial training: its parts, its training by hand, and the bundle's overlay for it."""

import copy
import math
from functools import partial

import ignite.distributed as idist
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
from torch import nn

from stipple_monai import PartialDiceCELoss
from stipple_monai.engines.adversarial import (
    AdversarialSegmentationTrainer,
    Discriminator,
    confidence_loss,
    discriminator_loss,
    label_map,
    self_taught_loss,
)

METHOD = ("train", "baseline", "unlabelled", "adversarial")
SMALL = {**TRAINING, "discriminator_channels": [2, 2, 4, 4]}
OPTIONS = {
    "adversarial_weight": 0.3,
    "unlabelled_adversarial_weight": 0.2,
    "self_taught_weight": 0.7,
    "threshold": 0.48,
    "self_taught_start": 0.5,
}


# parts


def test_discriminator_has_the_layers_of_hung():
    network = Discriminator(3)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in convolutions] == [3, 64, 128, 256, 512]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert {(m.kernel_size, m.stride, m.padding) for m in convolutions} == {
        ((4, 4), (2, 2), (1, 1))
    }
    slopes = [m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 4
    assert isinstance(network.layers[-1], nn.Conv2d)


def test_discriminator_by_hand_and_at_the_size_of_its_input():
    torch.manual_seed(0)
    network, maps = Discriminator(2, (3,)), torch.rand(1, 2, 10, 8)
    first, _, last = network.layers
    x = F.conv2d(maps, first.weight, first.bias, stride=2, padding=1)
    x = torch.where(x > 0, x, 0.2 * x)
    x = F.conv2d(x, last.weight, last.bias, stride=2, padding=1)
    assert x.shape == (1, 1, 2, 2)
    # of 10 voxels, each of the two cells has 5, around voxel 2 and voxel 7
    confidence = network(maps)
    assert confidence.shape == (1, 1, 10, 8)
    torch.testing.assert_close(confidence[0, 0, 2, 0], x[0, 0, 0, 0])
    torch.testing.assert_close(confidence[0, 0, 7, 7], x[0, 0, 1, 1])


def test_slice_too_small_is_refused():
    assert Discriminator(2, (2, 2, 2, 2))(torch.zeros(1, 2, 32, 40)).shape == (1, 1, 32, 40)
    with pytest.raises(ValueError, match=r"`x` must be at least 32 voxels wide .* \[1, 2, 40, 31"):
        Discriminator(2, (2, 2, 2, 2))(torch.zeros(1, 2, 40, 31))


@pytest.mark.parametrize("channels", [(), (8, 0)])
def test_bad_channels_are_refused(channels):
    with pytest.raises(ValueError, match="`channels` must hold at least one positive number"):
        Discriminator(2, channels)


def test_label_map_is_zero_where_ignored():
    label = torch.tensor([[[[2.0, 255.0], [0.0, 1.0]]]])
    maps = label_map(label, classes=3)
    by_hand = torch.zeros(1, 3, 2, 2)
    by_hand[0, 2, 0, 0] = by_hand[0, 0, 1, 0] = by_hand[0, 1, 1, 1] = 1
    assert torch.equal(maps, by_hand)
    assert torch.equal(
        label_map(torch.tensor([[[1, 7]]]), classes=2, ignore_index=7),
        torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]),
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_confidence_loss_by_hand():
    logits = torch.tensor([[[0.5, -2.0, 9.0]]], requires_grad=True)
    where = torch.tensor([[[True, True, False]]])
    real = confidence_loss(logits, is_label=True, where=where)
    fake = confidence_loss(logits, is_label=False, where=where)
    chances = [sigmoid(0.5), sigmoid(-2.0)]
    assert real.item() == pytest.approx(-sum(math.log(p) for p in chances) / 2)
    assert fake.item() == pytest.approx(-sum(math.log(1 - p) for p in chances) / 2)
    (gradient,) = torch.autograd.grad(
        confidence_loss(logits, is_label=True, where=torch.zeros(1, 1, 3).bool()), logits
    )
    assert not gradient.any()


def test_self_taught_loss_by_hand():
    logits = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 1.0, 9.0]]], requires_grad=True)
    confidence = torch.tensor([[[0.3, 0.21, 0.2]]])
    loss = self_taught_loss(logits, confidence, threshold=0.2)
    # −log of the greater probability, at the first two voxels
    assert loss.item() == pytest.approx(-(math.log(sigmoid(2)) + math.log(sigmoid(1))) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 0, 0] < 0 < gradient[0, 0, 1]
    assert not gradient[..., 2].any()
    none = self_taught_loss(logits, confidence, threshold=0.3)
    (gradient,) = torch.autograd.grad(none, logits)
    assert none.item() == 0
    assert not gradient.any()


def test_ignored_voxels_tell_the_discriminator_nothing():
    torch.manual_seed(0)
    network = Discriminator(2, (4,))
    label = torch.randint(0, 2, (2, 1, 8, 8)).float()
    label[0, :, 3:] = 255
    predicted = torch.rand(2, 2, 8, 8)
    loss = discriminator_loss(network, predicted, label)
    predicted[0, :, 3:] = torch.rand(2, 5, 8)
    assert torch.equal(loss, discriminator_loss(network, predicted, label))
    known = label != 255
    real, fake = (
        network(maps).sigmoid()[known]
        for maps in (label_map(label, classes=2), torch.where(known, predicted, 0.0))
    )
    torch.testing.assert_close(loss, -real.log().mean() - (1 - fake).log().mean())


# training


batches = partial(partly_labelled, width=8, height=9, known=4)


def small_networks():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))
    return network, Discriminator(3, (8,))


def trainer(networks, data, device="cpu", **options):
    network, discriminator = networks
    return AdversarialSegmentationTrainer(
        device=torch.device(device),
        max_epochs=2,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=PartialDiceCELoss(softmax=True),
        discriminator=discriminator,
        discriminator_optimizer=torch.optim.Adam(discriminator.parameters(), lr=0.02),
        decollate=False,
        **{**OPTIONS, **options},
    )


@pytest.mark.slow
def test_training_equals_the_same_by_hand():
    data, networks = batches(4), small_networks()
    network, judge = (copy.deepcopy(n).train() for n in networks)
    trainer(networks, data).run()

    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    judge_optimizer = torch.optim.Adam(judge.parameters(), lr=0.02)
    supervised = PartialDiceCELoss(softmax=True)
    shares = []
    for step, batch in enumerate([*data, *data]):
        label, logits = batch["label"], network(batch["image"])
        known = label != 255
        maps = logits.softmax(1)
        labelled, free = maps[[1, 3]] * known[[1, 3]], maps[[0, 2]]
        loss = supervised(logits, label)
        loss = loss - 0.3 * judge(labelled).sigmoid()[known[[1, 3]]].log().mean()
        loss = loss - 0.2 * judge(free).sigmoid().log().mean()
        if step >= 4:
            confident = judge(free).sigmoid()[:, 0] > 0.48
            shares.append(float(confident.float().mean()))
            loss = loss - 0.7 * free.max(dim=1).values.log()[confident].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        judge_optimizer.zero_grad()
        real = torch.stack([label == k for k in range(3)], dim=2)[[1, 3], 0].float()
        of_real = judge(real).sigmoid()[known[[1, 3]]]
        of_fake = judge(labelled.detach()).sigmoid()[known[[1, 3]]]
        (-of_real.log().mean() - (1 - of_fake).log().mean()).backward()
        judge_optimizer.step()
    assert any(0.1 < share < 0.9 for share in shares)
    for ours, oracle in zip(networks, (network, judge), strict=True):
        for name, value in oracle.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.slow
def test_discriminator_learns_to_tell_labels_from_predictions():
    networks, data = small_networks(), batches(1)
    label, known = data[0]["label"][[1, 3]], data[0]["label"][[1, 3]] != 255
    engine = trainer(networks, data, adversarial_weight=0.0, unlabelled_adversarial_weight=0.0)
    engine.optimizer.param_groups[0]["lr"] = 0.0
    engine.state.max_epochs = 40
    engine.run()
    fake = engine.state.output["pred"].detach().softmax(1)[[1, 3]] * known
    real, fake = (networks[1](maps)[known].mean() for maps in (label_map(label, classes=3), fake))
    assert real > 1
    assert fake < -1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("adversarial_weight", -1, "`adversarial_weight` must be 0 or more, got -1"),
        ("unlabelled_adversarial_weight", -1, "`unlabelled_adversarial_weight` must be 0 or more"),
        ("self_taught_weight", math.nan, "`self_taught_weight` must be 0 or more, got nan"),
        ("threshold", 1.0, r"`threshold` must lie in \[0, 1\), got 1.0"),
        ("threshold", -0.1, r"`threshold` must lie in \[0, 1\), got -0.1"),
        ("self_taught_start", 1.5, r"`self_taught_start` must lie in \[0, 1\], got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        trainer(small_networks(), batches(1), **{option: value})


def test_batch_without_unlabelled_slices_is_refused():
    data = [{"image": torch.zeros(2, 1, 8, 8), "label": torch.zeros(2, 1, 8, 8)}]
    with pytest.raises(ValueError, match="labelled 255 throughout, got none: add the unlabelled"):
        trainer(small_networks(), data).run()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="must have one process, got 2: start it without torchrun"):
        trainer(small_networks(), batches(1))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_with_mixed_precision():
    networks = tuple(n.cuda() for n in small_networks())
    before = copy.deepcopy(networks[1].state_dict())
    engine = trainer(networks, batches(3), device="cuda", amp=True)
    engine.run()
    assert math.isfinite(float(engine.state.output["loss"]))
    assert all(bool(p.isfinite().all()) for n in networks for p in n.parameters())
    assert not same(before, networks[1].state_dict())


# the bundle


@pytest.fixture(scope="module")
def trained(root):
    run(METHOD, root, **SMALL)
    return root


def test_overlay_has_the_papers_numbers(trained):
    parser = parsed(METHOD, trained, **TRAINING)
    engine = parser.get_parsed_content("train#trainer")
    assert engine.adversarial_weight == 0.01
    assert engine.unlabelled_adversarial_weight == 0.001
    assert engine.self_taught_weight == 0.1
    assert (engine.threshold, engine.self_taught_start) == (0.2, 0.25)
    discriminator, optimizer = engine.discriminator, engine.discriminator_optimizer
    assert [m.out_channels for m in discriminator.layers[::2]] == [64, 128, 256, 512, 1]
    assert discriminator.layers[0].in_channels == 2
    assert isinstance(optimizer, torch.optim.Adam)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in discriminator.parameters()
    }
    assert optimizer.defaults["betas"] == (0.9, 0.99)
    assert optimizer.defaults["lr"] == 1e-4


def test_discriminators_rate_decays_with_the_networks(trained):
    state = weights(trained / "models" / "checkpoint_epoch=2.pt")
    names = ("optimizer", "discriminator_optimizer")
    rates = [state[name]["param_groups"][0]["lr"] for name in names]
    assert rates == pytest.approx([0.01 / 10, 1e-4 / 10])
    assert state["discriminator_scheduler"]["last_epoch"] == 2


def test_trained_model_segments_with_the_baselines_configs(trained):
    folder = trained / "models"
    knobs = {**NETWORK, "output_dir": str(trained / "eval"), "models_dir": str(folder)}
    run(("inference", "baseline"), trained, **knobs)
    assert len(list((trained / "eval").glob("*_seg.nii.gz"))) == 1
    assert same(weights(folder / "last.pt"), weights(folder / "checkpoint_epoch=2.pt")["model"])


def test_resumed_training_equals_an_uninterrupted_one(trained):
    resumed = resume_second_epoch(METHOD, trained, **SMALL)
    for part in ("model", "discriminator"):
        first, second = (
            weights(folder / "checkpoint_epoch=2.pt")[part]
            for folder in (trained / "models", resumed)
        )
        assert same(first, second)


def test_data_overlay_may_come_last(trained):
    parser = parsed((*METHOD, "phantom"), trained, num_workers=0, device=NETWORK["device"])
    engine = parser.get_parsed_content("train#trainer")
    assert isinstance(engine, AdversarialSegmentationTrainer)
    assert next(iter(engine.data_loader))["image"].shape == (16, 1, 96, 96)
