"""The mean teacher: its parts, its training by hand, and the bundle's overlays for it."""

import copy
import json
import math
from functools import partial
from pathlib import Path

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
from monai.transforms import Compose
from torch import nn

from stipple_monai import CheckPaird, PartialDiceCELoss, RandSliceAffined
from stipple_monai.data import read_datalist, write_datalist
from stipple_monai.engines.mean_teacher import (
    MeanTeacherTrainer,
    clipped_noise,
    entropy_threshold,
    masked_consistency,
    mean_prediction,
    predictive_entropy,
    teacher_decay,
)

OPTIONS = {
    "decay": 0.6,
    "noise_sd": 0.1,
    "noise_limit": 0.2,
    "passes": 3,
    "consistency_weight": 5.0,
}


# parts


def test_teacher_decay_is_that_of_a_plain_mean_at_first():
    decays = [teacher_decay(step, highest=0.7) for step in range(5)]
    assert decays == pytest.approx([0, 1 / 2, 2 / 3, 0.7, 0.7])
    mean, numbers = 9.0, [4.0, -1.0, 3.0]
    for step, number in enumerate(numbers):
        decay = teacher_decay(step, highest=0.99)
        mean = decay * mean + (1 - decay) * number
    assert mean == pytest.approx(sum(numbers) / 3)


def test_noise_is_gaussian_and_clipped():
    torch.manual_seed(0)
    noise = clipped_noise(torch.full((100, 1000), 7.0), sd=0.1, limit=0.2)
    assert float(noise.abs().max()) == pytest.approx(0.2)
    clipped = float((noise.abs() > 0.1999).float().mean())
    assert clipped == pytest.approx(math.erfc(2 / math.sqrt(2)), abs=0.003)
    assert float((noise.abs() < 0.1).float().mean()) == pytest.approx(0.6827, abs=0.005)
    assert float(noise.mean()) == pytest.approx(0, abs=0.001)


def test_entropy_equals_its_definition_and_is_zero_where_certain():
    p = torch.tensor([[0.2, 1.0, 1 / 3], [0.5, 0.0, 1 / 3], [0.3, 0.0, 1 / 3]])[None]
    by_hand = [-sum(x * math.log(x) for x in (0.2, 0.5, 0.3)), 0, math.log(3)]
    entropy = predictive_entropy(p)
    assert entropy.shape == (1, 1, 3)
    assert entropy.flatten().tolist() == pytest.approx(by_hand)


def test_threshold_rises_to_the_highest_entropy():
    assert entropy_threshold(1, classes=2) == pytest.approx(math.log(2))
    by_hand = (0.75 + 0.25 * math.exp(-5 / 4)) * math.log(3)
    assert entropy_threshold(0.5, classes=3) == pytest.approx(by_hand)


def test_masked_consistency_by_hand():
    student = torch.tensor([[[0.2, 0.5], [0.8, 0.5]]], requires_grad=True)
    teacher = torch.tensor([[[0.6, 0.1], [0.4, 0.9]]])
    certain = torch.tensor([[[True, False]]])
    loss = masked_consistency(student, teacher, certain)
    assert float(loss) == pytest.approx((0.4**2 + 0.4**2) / 2)
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[[-0.4, 0.0], [0.4, 0.0]]]))


def test_nothing_certain_teaches_nothing():
    student = torch.rand(1, 2, 3, requires_grad=True)
    loss = masked_consistency(student, torch.rand(1, 2, 3), torch.zeros(1, 1, 3).bool())
    loss.backward()
    assert float(loss) == 0
    assert not student.grad.any()


def test_mean_prediction_averages_probabilities_of_fresh_passes():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout2d(0.5)).train()
    image = torch.randn(3, 1, 4, 4)
    torch.manual_seed(1)
    mean = mean_prediction(network, image, passes=2, noise_sd=0.1, noise_limit=0.2)
    torch.manual_seed(1)
    passes = []
    for _ in range(2):
        noisy = image + (torch.randn(3, 1, 4, 4) * 0.1).clamp(-0.2, 0.2)
        passes.append(network(noisy).softmax(1))
    assert not mean.requires_grad
    assert not torch.allclose(passes[0], passes[1])
    torch.testing.assert_close(mean, (passes[0] + passes[1]).detach() / 2)


# training


batches = partial(partly_labelled, width=5, height=6, known=2)


def small_network():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout2d(0.2))
    nn.init.constant_(network[1].weight, 3.0)
    return network


def trainer(network, data, device="cpu", **options):
    return MeanTeacherTrainer(
        device=torch.device(device),
        max_epochs=2,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=PartialDiceCELoss(softmax=True),
        decollate=False,
        **{**OPTIONS, **options},
    )


def test_training_equals_the_same_by_hand():
    data, network = batches(3), small_network()
    student = copy.deepcopy(network).train()
    teacher = copy.deepcopy(network).train()
    engine = trainer(network, data)
    torch.manual_seed(11)
    engine.run()

    torch.manual_seed(11)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    supervised = PartialDiceCELoss(softmax=True)
    shares = []
    for step, batch in enumerate([*data, *data]):
        logits = student(batch["image"])
        loss = supervised(logits, batch["label"])
        free = batch["image"][[0, 2]]
        with torch.no_grad():
            drawn = [
                teacher(free + (torch.randn(2, 1, 5, 6) * 0.1).clamp(-0.2, 0.2)).softmax(1)
                for _ in range(1 + 3)
            ]
        mean = sum(drawn[1:]) / 3
        entropy = -(mean * mean.log()).sum(1)
        ramped = math.exp(-5 * (1 - step / 6) ** 2)
        certain = entropy < (3 / 4 + ramped / 4) * math.log(3)
        squared = (logits[[0, 2]].softmax(1) - drawn[0]) ** 2
        chosen = squared.movedim(1, -1)[certain]
        shares.append(float(certain.float().mean()))
        (loss + 5.0 * ramped * chosen.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        decay = min(1 - 1 / (step + 1), 0.6)
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.copy_(decay * old + (1 - decay) * new)
    assert min(shares) > 0.1
    assert max(shares) < 0.95
    for ours, oracle in ((network, student), (engine.teacher, teacher)):
        for name, value in oracle.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)


def test_loss_in_the_output_is_the_whole_one():
    losses = []
    for weight in (0.0, 5.0):
        engine = trainer(small_network(), batches(1), consistency_weight=weight)
        torch.manual_seed(0)
        engine.run()
        losses.append(float(engine.state.output["loss"]))
    assert losses[1] > losses[0] > 0


def test_teacher_is_taught_by_no_gradient():
    engine = trainer(small_network(), batches(1))
    engine.run()
    assert all(p.grad is None and not p.requires_grad for p in engine.teacher.parameters())
    assert engine.teacher.training


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("decay", 1.0, r"`decay` must lie in \(0, 1\), got 1.0"),
        ("decay", 0.0, r"`decay` must lie in \(0, 1\), got 0.0"),
        ("passes", 0, "`passes` must be 1 or more, got 0"),
        ("noise_sd", -0.1, "`noise_sd` must be 0 or more, got -0.1"),
        ("noise_limit", -1, "`noise_limit` must be 0 or more, got -1"),
        ("consistency_weight", math.nan, "`consistency_weight` must be 0 or more, got nan"),
    ],
)
def test_options_out_of_range_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        trainer(small_network(), batches(1), **{option: value})


def test_batch_without_unlabelled_slices_is_refused():
    data = [{"image": torch.zeros(2, 1, 5, 6), "label": torch.zeros(2, 1, 5, 6)}]
    with pytest.raises(ValueError, match="labelled 255 throughout, got none: add the unlabelled"):
        trainer(small_network(), data).run()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_with_mixed_precision():
    network = small_network().cuda()
    engine = trainer(network, batches(3), device="cuda", amp=True)
    engine.run()
    assert math.isfinite(float(engine.state.output["loss"]))
    assert all(bool(p.isfinite().all()) for p in engine.teacher.parameters())
    assert not same(network.state_dict(), engine.teacher.state_dict())


# the bundle

METHOD = ("train", "baseline", "unlabelled", "mean_teacher")


def test_overlay_has_the_papers_numbers(root):
    engine = parsed(METHOD, root, **TRAINING).get_parsed_content("train#trainer")
    assert (engine.decay, engine.passes, engine.consistency_weight) == (0.99, 8, 0.1)
    assert engine.noise == {"noise_sd": 0.1, "noise_limit": 0.2}
    dropouts = [m.p for m in engine.network.modules() if isinstance(m, nn.Dropout2d)]
    assert dropouts == [0.1] * 3


@pytest.mark.slow
def test_batches_are_half_unlabelled(root):
    parser = parsed(METHOD[:3], root, **TRAINING)
    loader = parser.get_parsed_content("train#dataloader")
    seen = list(loader)
    assert len(seen) == 2 * 8 // 4
    for batch in seen:
        assert batch["image"].shape == batch["label"].shape == (8, 1, 32, 32)
        ignored = (batch["label"] == 255).flatten(1)
        assert ignored.all(1).tolist() == [False, True] * 4
        assert not ignored[::2].any()
        assert batch["image"].flatten(1).std(1).min() > 0.01


def test_unlabelled_scans_take_turns(root):
    data = parsed(METHOD[:3], root, **TRAINING).get_parsed_content("unlabelled#pairs")
    drawn = [Path(data.data[1].data[i]["image"]).name for i in range(len(data))]
    names = {Path(item["image"]).name for item in read_datalist(root / "split.json", "unlabelled")}
    assert sorted(drawn.count(name) for name in names) == [5, 5, 6]
    assert set(drawn) == names


def test_unlabelled_images_go_through_the_steps_of_labelled_ones(root):
    parser = parsed(METHOD[:3], root, **TRAINING)
    item = read_datalist(root / "split.json", "training")[0]
    labelled = Compose(parser.get_parsed_content("train#fixed"))(item)
    unlabelled = Compose(parser.get_parsed_content("unlabelled#fixed"))({"image": item["image"]})
    assert torch.equal(labelled["image"], unlabelled["image"])
    assert isinstance(parser.get_parsed_content("loading#2"), CheckPaird)

    ours, theirs = (parser[f"{name}#slices"][i] for name, i in (("unlabelled", 1), ("train", 2)))
    assert ours == theirs
    assert ours["_target_"].endswith(RandSliceAffined.__name__)
    assert len(parser["train#slices"]) == 3


@pytest.mark.slow
def test_unlabelled_slices_are_any_of_the_scan(root):
    knobs = {**TRAINING, "train#slices#2#prob": 0.0}
    parser = parsed(METHOD[:3], root, **knobs)
    dataset = parser.get_parsed_content("unlabelled#dataset")
    scan = Compose(parser.get_parsed_content("unlabelled#fixed"))(dataset.data[0])["image"]
    dataset.transform.set_random_state(0)
    found = set()
    for _ in range(100):
        image = dataset[0]["image"]
        equal = [z for z in range(scan.shape[-1]) if torch.equal(scan[..., z], image)]
        assert len(equal) == 1
        found.add(equal[0])
    assert found == set(range(scan.shape[-1]))


def test_trained_model_segments_with_the_baselines_configs(trained):
    folder = trained / "models"
    state = weights(folder / "model.pt")
    knobs = {**NETWORK, "output_dir": str(trained / "eval"), "models_dir": str(folder)}
    run(("inference", "baseline"), trained, **knobs)
    assert len(list((trained / "eval").glob("*_seg.nii.gz"))) == 1
    checkpoint = weights(folder / "checkpoint_epoch=2.pt")
    assert same(weights(folder / "last.pt"), checkpoint["model"])
    assert state.keys() == checkpoint["teacher"].keys()
    assert not same(checkpoint["model"], checkpoint["teacher"])


def test_resumed_training_equals_an_uninterrupted_one(trained):
    resumed = resume_second_epoch(METHOD, trained, **TRAINING)
    for part in ("model", "teacher"):
        first, second = (
            weights(folder / "checkpoint_epoch=2.pt")[part]
            for folder in (trained / "models", resumed)
        )
        assert same(first, second)


@pytest.mark.slow
def test_data_overlay_may_come_last(root):
    parser = parsed((*METHOD, "phantom"), root, num_workers=0, device=NETWORK["device"])
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == (16, 1, 96, 96)
    assert isinstance(parser.get_parsed_content("train#trainer"), MeanTeacherTrainer)


@pytest.mark.slow
def test_other_sections_are_not_needed(root, tmp_path):
    sections = json.loads((root / "split.json").read_text(encoding="utf-8"))
    only = {
        name: [{k: str(root / v) for k, v in item.items() if k != "truth"} for item in items]
        for name, items in sections.items()
        if name in ("training", "unlabelled")
    }
    write_datalist(tmp_path / "split.json", only)
    run(METHOD, tmp_path, **{**TRAINING, "max_epochs": 1})
    assert (tmp_path / "models" / "model.pt").is_file()
