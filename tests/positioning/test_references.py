"""One labelled scan as reference: around the prior's centre, and reproducible."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from stipple_monai import SpatialPrior, locate_organ, measure_position, organ_position
from stipple_monai.errors import DatasetError
from stipple_monai.positioning.references import random_references

AFFINE = np.diag([-2.0, 2.0, 4.0, 1.0])
AFFINE[:3, 3] = 50, -30, 100


def label(tail, *, organs=(1, 2), at=(8, 9, 6)):
    """A block with a thin tail, whose length moves the middle of the bounding box."""
    values = torch.zeros(1, 40, 30, 20)
    for k, organ in enumerate(organs):
        w, h, d = np.add(at, (14 * k, 0, k))
        values[0, w : w + 6, h : h + 6, d : d + 5] = organ
        values[0, w + 2, h + 6 : h + 6 + tail + k, d + 2] = organ
    return MetaTensor(values, affine=torch.as_tensor(AFFINE))


LABELS = [label(0), label(8), label(3, at=(5, 6, 9))]


@pytest.mark.parametrize("center", ["bbox", "mass", "groupwise"])
@pytest.mark.parametrize("drawn", LABELS, ids=["block", "tail", "elsewhere"])
def test_the_reference_lies_on_its_own_organ_at_the_priors_centre(center, drawn):
    priors = SpatialPrior.estimate_several(LABELS, organs=[1, 2], center=center)
    references = random_references([drawn], priors, seed=0)
    points = torch.stack([measure_position(drawn, prior) for prior in priors])
    for prior, reference, point in zip(priors, references, points, strict=True):
        assert (reference.center, reference.organ) == (center, prior.organ)
        organ = MetaTensor((drawn == prior.organ).float().as_tensor(), affine=drawn.affine)
        away = (locate_organ(organ, reference) - point).abs()
        # on the grid of voxels, and the reference to a quarter of one
        assert (away <= torch.tensor([2.0, 2, 4]) * 0.76).all()
        expected = (point - points.mean(0)).tolist()
        assert reference.offset_mm == pytest.approx(expected, abs=1e-6)
        assert float(reference.probability.sum()) == float(organ.sum())


def test_with_the_box_centre_it_is_the_label_as_it_is():
    (prior,) = SpatialPrior.estimate_several(LABELS, organs=[1])
    for seed in range(4):
        (reference,) = random_references(LABELS, [prior], seed=seed)
        same = [SpatialPrior.estimate([each], smoothing_mm=None) for each in LABELS]
        assert any(torch.equal(reference.probability, s.probability) for s in same)
        assert reference.offset_mm is None


def test_the_box_centre_would_be_elsewhere():
    (prior,) = SpatialPrior.estimate_several(LABELS, organs=[1], center="groupwise")
    away = [float((organ_position(x) - measure_position(x, prior)).norm()) for x in LABELS]
    assert max(away) > 4


@pytest.mark.slow
def test_the_draw_depends_on_the_seed_and_passes_over_what_lacks_an_organ():
    priors = SpatialPrior.estimate_several(LABELS, organs=[1, 2])
    several = [random_references(LABELS, priors, seed=seed) for seed in range(10)]
    again = random_references(LABELS, priors, seed=3)
    assert torch.equal(again[1].probability, several[3][1].probability)
    assert len({tuple(r[0].probability.shape) for r in several}) > 1
    lone = label(0, organs=(1,))
    for seed in range(4):
        (_, second) = random_references([lone, LABELS[1], lone], priors, seed=seed)
        expected = SpatialPrior.estimate([LABELS[1]], organ=2, smoothing_mm=None)
        assert torch.equal(second.probability, expected.probability)
    with pytest.raises(DatasetError, match=r"`labels` must hold .* organs 1, 2, got 1 maps"):
        random_references([lone], priors, seed=0)
