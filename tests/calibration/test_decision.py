"""The best set of voxels against all sets, and the rule for several organs."""

import itertools

import numpy as np
import pytest
import torch

from stipple_monai.calibration import Samples, best_thresholds, decide, dice_threshold
from stipple_monai.calibration.decision import GRID


def ratio(p, chosen):
    return 2 * p[chosen].sum() / (chosen.sum() + p.sum())


def subsets(n):
    return [np.array(bits, bool) for bits in itertools.product([0, 1], repeat=n)]


def exact_dice(p, chosen):
    """The mean of Dice over all outcomes of independent voxels."""
    total = 0.0
    for truth in subsets(len(p)):
        chance = np.where(truth, p, 1 - p).prod()
        size = chosen.sum() + truth.sum()
        total += chance * (2 * (chosen & truth).sum() / size if size else 1.0)
    return total


@pytest.mark.parametrize("seed", range(20))
def test_no_set_has_a_higher_expected_dice(seed):
    p = np.random.default_rng(seed).beta(0.5, 1.5, 10)
    threshold = dice_threshold(torch.from_numpy(p))
    chosen = p > threshold
    best = max(ratio(p, s) for s in subsets(10))
    assert ratio(p, chosen) == pytest.approx(best, abs=1e-12)
    assert threshold == pytest.approx(best / 2, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_ratio_of_expectations_is_close_to_the_expected_ratio(seed):
    p = np.random.default_rng(seed).beta(0.7, 0.7, 8)
    chosen = p > dice_threshold(torch.from_numpy(p))
    best = max(exact_dice(p, s) for s in subsets(8))
    assert exact_dice(p, chosen) >= best - 0.01


def test_certain_and_empty_predictions():
    assert dice_threshold(torch.tensor([0.0, 1.0, 1.0])) == 0.5
    assert dice_threshold(torch.zeros(3)) == 0.5
    assert dice_threshold(torch.tensor([0.1])) == pytest.approx(0.1 / 1.1)


def test_one_organ_at_one_half_is_the_arg_max():
    p = torch.rand(1, 50, generator=torch.Generator().manual_seed(0))
    both = torch.cat([1 - p, p])
    assert torch.equal(decide(both, [0.5]), both.argmax(0, keepdim=True).byte())
    assert torch.equal(decide(p, [0.5]), decide(both, [0.5]))


def test_rule_for_several_organs():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, 5, 6, generator=generator)
    p /= p.sum(0)
    thresholds = [0.2, 0.3, 0.4]
    label = decide(p, thresholds)
    assert (label.dtype, label.shape) == (torch.uint8, (1, 5, 6))
    sizes = [float((q > t).sum() + q.sum()) for q, t in zip(p[1:], thresholds, strict=True)]
    for at in np.ndindex(5, 6):
        gains = [(float(p[k + 1][at]) - thresholds[k]) / sizes[k] for k in range(3)]
        expected = int(np.argmax(gains)) + 1 if max(gains) > 0 else 0
        assert label[0][at] == expected
    own = decide(p)
    assert torch.equal(own, decide(p, [dice_threshold(organ) for organ in p[1:]]))


def expected_dice(p, label):
    """Mean over the organs, each of the set that it has in a label map."""
    found = []
    for k, organ in enumerate(p[1:], 1):
        chosen = label[0] == k
        found.append(float(2 * organ[chosen].sum() / (chosen.sum() + organ.sum())))
    return np.mean(found)


@pytest.mark.parametrize("seed", range(5))
def test_organs_share_voxels_so_that_their_mean_is_highest(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, 500, generator=generator) - torch.tensor([0.0, 1, 2, 4])[:, None]
    p = logits.softmax(0)
    label = decide(p)
    thresholds = torch.tensor([dice_threshold(organ) for organ in p[1:]])[:, None]
    claims = torch.where(p[1:] > thresholds, p[1:], -1)
    for rival in (claims, claims / thresholds):
        other = torch.where(rival.amax(0) > 0, rival.argmax(0) + 1, 0)[None]
        assert not torch.equal(other, label)
        assert expected_dice(p, label) > expected_dice(p, other)


def test_an_organ_that_is_hardly_found_takes_no_voxel_of_one_that_is():
    large = torch.cat([torch.full((400,), 0.9), torch.zeros(600)])
    faint = torch.full((1000,), 0.02)
    faint[399], faint[900] = 0.06, 0.3
    label = decide(torch.stack([1 - large - faint, large, faint]))[0]
    assert (label[:400] == 1).all()
    assert label[900] == 2


def test_fitted_thresholds_reach_the_best_mean_dice():
    rng = np.random.default_rng(0)
    parts, theta = [], np.array([[1.0, 0.0, 0.0]])
    for number in range(3):
        d = rng.normal(-2, 2, (400, 1))
        label = (rng.uniform(size=400) < 1 / (1 + np.exp(-d[:, 0] + 1))).astype(np.uint8)
        weight = rng.integers(1, 5, 400).astype(float)
        parts.append(Samples(d, 0 * d, np.ones_like(d, bool), label, weight, np.full(400, number)))
    samples = Samples(*map(np.concatenate, zip(*parts, strict=True)))
    (threshold,) = best_thresholds(samples, theta, activation="softmax")

    def mean_dice(at):
        scores = []
        for d, _, _, label, weight, _ in parts:
            chosen = 1 / (1 + np.exp(-d[:, 0])) > at
            hit = weight[chosen & (label == 1)].sum()
            scores.append(2 * hit / (weight[chosen].sum() + weight[label == 1].sum()))
        return np.mean(scores)

    assert mean_dice(threshold) == pytest.approx(max(map(mean_dice, GRID)), abs=1e-9)


def test_of_equally_good_thresholds_the_middle_is_taken():
    p = np.repeat([0.2, 0.6], 5)
    d, label = np.log(p / (1 - p))[:, None], (p > 0.5).astype(np.uint8)
    samples = Samples(d, 0 * d, np.ones_like(d, bool), label, np.ones(10), np.zeros(10, int))
    (threshold,) = best_thresholds(samples, np.array([[1.0, 0.0, 0.0]]), activation="softmax")
    assert threshold == pytest.approx(0.4, abs=0.011)


def test_errors():
    with pytest.raises(ValueError, match=r"`probability` must have values in \[0, 1\], got"):
        dice_threshold(torch.tensor([-2.0, 3.0]))
    with pytest.raises(ValueError, match=r"`probability` must have values in \[0, 1\], got"):
        dice_threshold(torch.zeros(0))
    for wrong in ([0.0], [1.0]):
        with pytest.raises(ValueError, match=r"`thresholds` must lie in \(0, 1\), got"):
            decide(torch.zeros(2, 4), wrong)
    with pytest.raises(
        ValueError, match=r"`thresholds` must be one for each of 1 organs, .* got 2"
    ):
        decide(torch.zeros(2, 4), [0.5, 0.5])


def test_caution_raises_thresholds_up_to_a_half():
    p = torch.rand(1, 400, generator=torch.Generator().manual_seed(3)) ** 2
    threshold = dice_threshold(p[0])
    for caution in (1.0, 1.2, 9.0):
        expected = p > min(0.5, caution * threshold)
        assert torch.equal(decide(p, caution=caution).bool(), expected)
    with pytest.raises(ValueError, match=r"`caution` must be at least 1, got 0\.9"):
        decide(p, caution=0.9)
