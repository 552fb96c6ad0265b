"""Bidirectional copy-paste: its parts, its training by hand, and the bundle's overlay for it."""

import copy
import math
from functools import partial

import numpy as np
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
from scipy import ndimage
from torch import nn

from stipple_monai import PartialDiceCELoss
from stipple_monai.engines.copy_paste import (
    CopyPasteTrainer,
    draw_box,
    largest_parts,
    mix_labelled,
    mix_unlabelled,
)

METHOD = ("train", "baseline", "unlabelled", "copy_paste")
OPTIONS = {"pretraining_share": 0.5, "decay": 0.6, "unlabelled_weight": 0.5}


# parts


def test_the_box_has_two_thirds_of_each_side_and_lies_anywhere():
    torch.manual_seed(0)
    corners = set()
    for _ in range(300):
        box = draw_box(9, 12)
        where = box.nonzero()
        (left, top), (right, bottom) = where.min(0).values.tolist(), where.max(0).values.tolist()
        assert (right - left + 1, bottom - top + 1) == (6, 8)
        assert len(where) == 6 * 8
        corners.add((left, top))
    assert corners == {(left, top) for left in range(4) for top in range(5)}


def test_labelled_slices_are_mixed_in_both_directions():
    image = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 1, 2)
    label = 10 + image[:, :1]
    box = torch.tensor([[False, True]])
    mixed, known = mix_labelled((image, label), box)
    assert mixed[:, :, 0].tolist() == [[[i, (i + 2) % 4]] * 2 for i in range(4)]
    assert known[:, 0, 0].tolist() == [[10 + i, 10 + (i + 2) % 4] for i in range(4)]


def test_unlabelled_slices_are_mixed_in_both_directions():
    image = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 1, 2)
    label, other, pseudo = torch.ones(3, 1, 1, 2), -1 - image, 2 * torch.ones(3, 1, 1, 2)
    label[0, 0, 0, 1] = 255
    box = torch.tensor([[False, True]])
    mixed, known, taught = (
        x[:, 0, 0].tolist() for x in mix_unlabelled((image, label), (other, pseudo), box)
    )
    # the first two labelled slices go into the box, the third receives an unlabelled one
    assert mixed == [[-1, 0], [-2, 1], [2, -3]]
    # what was not known of a labelled slice stays so
    assert known == [[255, 255], [255, 1], [1, 255]]
    assert taught == [[2, 255], [2, 255], [255, 2]]


def test_of_each_organ_and_slice_the_largest_part_stays():
    torch.manual_seed(1)
    classes = torch.randint(0, 4, (5, 12, 9))
    classes[2] = 0
    kept = largest_parts(classes, organs=3).numpy()
    by_hand = np.zeros((5, 12, 9), int)
    for index, flat in enumerate(classes.numpy()):
        for organ in (1, 2, 3):
            parts, number = ndimage.label(flat == organ, structure=np.ones((3, 3)))
            if number:
                sizes = [(parts == n).sum() for n in range(1, number + 1)]
                by_hand[index][parts == 1 + np.argmax(sizes)] = organ
    assert np.array_equal(kept, by_hand)
    assert 0 < (kept > 0).sum() < int((classes > 0).sum())


# training


batches = partial(partly_labelled, width=6, height=6, known=4)


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))


def trainer(network, data, device="cpu", **options):
    return CopyPasteTrainer(
        device=torch.device(device),
        max_epochs=2,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=PartialDiceCELoss(softmax=True),
        decollate=False,
        **{**OPTIONS, **options},
    )


def largest(flat, organ):
    parts, _ = ndimage.label(flat == organ, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=2)[1:]
    return parts == 1 + sizes.argmax() if sizes.any() else np.zeros_like(parts, bool)


def test_training_equals_the_same_by_hand():
    data, network = batches(3), small_network()
    student = copy.deepcopy(network).train()
    engine = trainer(network, data)
    torch.manual_seed(11)
    engine.run()

    torch.manual_seed(11)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    loss = PartialDiceCELoss(softmax=True)
    teacher, losses = None, []
    for step, batch in enumerate([*data, *data]):
        image, label = batch["image"], batch["label"]
        left, top = int(torch.randint(3, ())), int(torch.randint(3, ()))
        region = slice(left, left + 4), slice(top, top + 4)
        if step < 3:
            inputs, target = image[[1, 3]].clone(), label[[1, 3]].clone()
            for n, other in ((0, 3), (1, 1)):
                inputs[n, 0][region], target[n, 0][region] = (
                    x[other, 0][region] for x in (image, label)
                )
            total = loss(student(inputs), target)
        else:
            with torch.no_grad():
                found = teacher(image[[0, 2]]).argmax(1).numpy()
            pseudo = torch.zeros(2, 6, 6)
            for n in range(2):
                for organ in (1, 2):
                    pseudo[n][torch.from_numpy(largest(found[n], organ))] = organ
            # labelled 1 in unlabelled 0; unlabelled 2 in labelled 3
            inputs = torch.stack([image[0], image[3]])
            inputs[0, 0][region], inputs[1, 0][region] = image[1, 0][region], image[2, 0][region]
            known, taught = torch.full((2, 2, 1, 6, 6), 255.0)
            known[0, 0][region] = label[1, 0][region]
            taught[0, 0] = pseudo[0]
            taught[0, 0][region] = 255
            known[1, 0] = label[3, 0]
            known[1, 0][region] = 255
            taught[1, 0][region] = pseudo[1][region]
            logits = student(inputs)
            total = loss(logits, known) + 0.5 * loss(logits, taught)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
        if step < 3:
            teacher = copy.deepcopy(student)
        else:
            with torch.no_grad():
                for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                    old.copy_(0.6 * old + 0.4 * new)
    assert float(engine.state.output["loss"]) == pytest.approx(losses[-1], rel=1e-4)
    for ours, oracle in ((network, student), (engine.teacher, teacher)):
        for old, new in zip(ours.parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(old, new)


def test_six_steps_are_six_passes_of_the_student_and_three_of_the_teacher():
    seen = []
    network = small_network()
    network.register_forward_hook(
        lambda net, args, _: seen.append((torch.is_grad_enabled(), len(args[0])))
    )
    trainer(network, batches(3)).run()
    # two mixed slices of two labelled and two unlabelled ones
    assert seen == [(True, 2)] * 3 + [(False, 2), (True, 2)] * 3


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("pretraining_share", 1.1, r"`pretraining_share` must lie in \[0, 1\], got 1.1"),
        ("decay", 1.0, r"`decay` must lie in \(0, 1\), got 1.0"),
        ("box_share", 0, r"`box_share` must lie in \(0, 1\), got 0"),
        ("unlabelled_weight", math.nan, "`unlabelled_weight` must be 0 or more, got nan"),
    ],
)
def test_options_out_of_range_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        trainer(small_network(), batches(1), **{option: value})


@pytest.mark.parametrize(
    ("unlabelled", "message"),
    [
        (0, "labelled 255 throughout, got none: add the unlabelled"),
        (1, "as many labelled slices as unlabelled ones, got 3 and 1"),
    ],
)
def test_batches_that_are_not_half_unlabelled_are_refused(unlabelled, message):
    label = torch.zeros(4, 1, 6, 6)
    label[:unlabelled] = 255
    with pytest.raises(ValueError, match=message):
        trainer(small_network(), [{"image": torch.zeros(4, 1, 6, 6), "label": label}]).run()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_with_mixed_precision():
    network = small_network().cuda()
    engine = trainer(network, batches(3), device="cuda", amp=True)
    engine.run()
    assert math.isfinite(float(engine.state.output["loss"]))
    assert all(bool(p.isfinite().all()) for p in engine.teacher.parameters())


# the bundle


def test_overlay_has_the_authors_numbers(root):
    engine = parsed(METHOD, root, **TRAINING).get_parsed_content("train#trainer")
    assert (engine.pretraining_share, engine.decay) == (10_000 / 40_000, 0.99)
    assert (engine.unlabelled_weight, engine.box_share) == (0.5, 2 / 3)


def test_the_student_is_kept_and_segments_with_the_baselines_configs(trained):
    folder = trained / "models"
    checkpoint = weights(folder / "checkpoint_epoch=2.pt")
    assert same(weights(folder / "last.pt"), checkpoint["model"])
    assert weights(folder / "model.pt").keys() == checkpoint["teacher"].keys()
    knobs = {**NETWORK, "output_dir": str(trained / "eval"), "models_dir": str(folder)}
    run(("inference", "baseline"), trained, **knobs)
    assert len(list((trained / "eval").glob("*_seg.nii.gz"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.75])
def test_resumed_training_equals_an_uninterrupted_one(root, tmp_path, share):
    """The checkpoint is of two of four steps: from self-training or from pre-training."""
    knobs = {**TRAINING, "pretraining_share": share, "datalist": str(root / "split.json")}
    run(METHOD, tmp_path, **knobs)
    resumed = resume_second_epoch(METHOD, tmp_path, **knobs)
    middle, first, second = (
        weights(folder / f"checkpoint_epoch={epoch}.pt")
        for folder, epoch in ((tmp_path / "models", 1), (tmp_path / "models", 2), (resumed, 2))
    )
    for part in ("model", "teacher"):
        assert same(first[part], second[part])
    for checkpoint, is_student in ((middle, share == 0.75), (first, False)):
        pairs = [(checkpoint["model"][k], checkpoint["teacher"][k]) for k in weight_names(first)]
        assert all(torch.equal(*pair) for pair in pairs) == is_student


def weight_names(checkpoint):
    return [name for name in checkpoint["model"] if name.endswith((".weight", ".bias"))]


@pytest.mark.slow
def test_the_network_may_compute_in_bfloat16(root, tmp_path):
    names = ("train", "bfloat16", *METHOD[1:])
    run(names, root, **{**TRAINING, "max_epochs": 1, "models_dir": str(tmp_path)})
    state = weights(tmp_path / "last.pt")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
