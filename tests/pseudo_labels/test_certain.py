"""Pseudo-labels by certainty, against the definition by every subset and one voxel at a time."""

import itertools

import pytest
import torch
from monai.data import MetaTensor

from stipple_monai.calibration import CAUTION
from stipple_monai.pseudo_labels import select_certain
from stipple_monai.pseudo_labels.certain import LEAST_THRESHOLD


def softmax(channels, spatial, seed, *, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(channels, *spatial, generator=generator)
    logits[0] += 3
    return torch.softmax(logits, 0)


def best_threshold(p):
    """Half the highest expected Dice over all sets of voxels, with caution."""
    best = 0.0
    for size in range(1, len(p) + 1):
        for chosen in itertools.combinations(p.tolist(), size):
            best = max(best, 2 * sum(chosen) / (size + float(p.sum())))
    return max(min(0.5, CAUTION * best / 2), LEAST_THRESHOLD)


def oracle(probability, *, minimum=0.0, background_minimum=0.7, ignore=255):
    organs = probability if len(probability) == 1 else probability[1:]
    background = 1 - probability[0] if len(probability) == 1 else probability[0]
    thresholds = [best_threshold(organ) for organ in organs]
    label = []
    for voxel in range(probability.shape[1]):
        factors = [float(p[voxel]) / t for p, t in zip(organs, thresholds, strict=True)]
        if max(factors) > 1:
            organ = factors.index(max(factors)) + 1
            label.append(organ if organs[organ - 1][voxel] >= minimum else ignore)
        else:
            label.append(0 if background[voxel] >= background_minimum else ignore)
    return torch.tensor([label], dtype=torch.uint8)


@pytest.mark.parametrize("channels", [2, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"background_minimum": 0.0},
        {"background_minimum": 1.0, "ignore": 77},
        {"minimum": 0.6, "background_minimum": 0.8},
    ],
)
def test_equals_the_definition_by_every_set(channels, options):
    seen = set()
    for seed in range(4):
        p = softmax(channels, (11,), seed)
        result = select_certain(p, **options)
        assert torch.equal(result, oracle(p, **options))
        seen |= set(result.flatten().tolist())
    assert 1 in seen
    assert (0 in seen) == (options.get("background_minimum") != 1.0)


def test_one_channel_equals_the_definition_and_two():
    for seed in range(4):
        p = softmax(2, (11,), seed)
        assert torch.equal(select_certain(p[1:]), oracle(p[1:]))
        assert torch.equal(select_certain(p[1:]), select_certain(p))


def test_an_organ_that_is_nowhere_probable_has_no_voxel():
    organ = torch.full((1, 4, 4, 4), 0.01)
    assert (select_certain(torch.cat([1 - organ, organ])) == 0).all()
    assert (select_certain(torch.zeros(1, 5)) == 0).all()
    # of all voxels the likeliest one would raise the expected Dice
    noise = torch.full((1, 10_000), 1e-4)
    noise[0, 7] = 0.015
    assert (select_certain(torch.cat([1 - noise, noise])) == 0).all()


def test_the_limits_themselves_are_certain_enough():
    organ = torch.tensor([[0.75, 0.25]])
    p = torch.cat([1 - organ, organ])
    assert select_certain(p, minimum=0.75, background_minimum=0.75).tolist() == [[1, 0]]


def test_small_components_are_ignored():
    organ = torch.tensor([[0.9, 0.9, 0.0, 0.9, 0.0, 0.0]])
    p = torch.cat([1 - organ, organ])
    assert select_certain(p).tolist() == [[1, 1, 0, 1, 0, 0]]
    assert select_certain(p, components=1).tolist() == [[1, 1, 0, 255, 0, 0]]


def test_volumes_of_other_types_and_the_input_stays():
    p = softmax(3, (5, 4, 3), 0)
    before = p.clone()
    label = select_certain(MetaTensor(p.requires_grad_()))
    assert type(label) is torch.Tensor
    assert label.dtype == torch.uint8
    assert label.shape == (1, 5, 4, 3)
    assert torch.equal(p, before)
    assert torch.equal(label.flatten(1), select_certain(p.flatten(1)))
    # rounding of overlapping windows
    torch.testing.assert_close(select_certain(p * 1.004 - 0.001), label)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum": -0.1}, r"`minimum` must be a probability in \[0, 1\], got -0.1"),
        ({"background_minimum": 1.1}, "`background_minimum` must be a probability in"),
        ({"components": 0}, "`components` must be at least 1, or None for all, got 0"),
        ({"ignore": 2}, r"`ignore` must lie above the classes and fit uint8, in \[3, 255\], got 2"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        select_certain(softmax(3, (4,), 0), **options)


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        (torch.zeros(3), r"must be a non-empty floating-point \(C, \*spatial\)"),
        (torch.full((1, 3, 4, 4, 4), 1 / 3), "pass a batch one by one"),
        (torch.zeros(2, 3), "must sum to 1 over its channels"),
        (torch.full((1, 3), 2.0), r"must lie in \[0, 1\], got \[2, 2\]"),
        (torch.full((1, 3), torch.nan), r"must lie in \[0, 1\], got \[nan, nan\]"),
    ],
)
def test_what_is_no_prediction(probability, message):
    with pytest.raises(ValueError, match=message):
        select_certain(probability)
