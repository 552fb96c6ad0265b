"""A density: soft masks, Gaussians, and the prior that is made of them."""

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import integrate, stats
from scipy.spatial.transform import Rotation

from stipple_monai import SpatialPrior
from stipple_monai.priors.cases import Cases, pack
from stipple_monai.priors.kernel import (
    blurred,
    gaussian_weights,
    half_lengths,
    room_for,
    soft_mask,
)

SPACING = np.array([2.0, 1.5, 3.0])


def affine_of(spacing, origin=(0.0, 0, 0), turn=(0, 0, 0)):
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def ball(radius, spacing, *, center=(1.3, -0.4, 2.2), turn=(0, 0, 0), n=48, values=np.uint8):
    """A label map with a ball of ``radius`` mm."""
    spacing = np.array(spacing)
    affine = affine_of(spacing, turn=turn)
    shape = np.ceil(n / np.abs(spacing)).astype(int)
    affine[:3, 3] = -affine[:3, :3] @ (shape - 1) / 2
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    inside = ((points - center) ** 2).sum(-1) <= radius**2
    return MetaTensor(torch.from_numpy(inside.astype(values))[None], affine=affine)


# grids


def test_a_grid_reaches_as_far_as_it_must_and_no_voxel_farther():
    for reach, spacing in itertools.product((0.2, 1.0, 3.75, 7.5, 10.0), (0.7, 1.0, 2.5)):
        (half,) = half_lengths(np.array([reach]), np.array([spacing]))
        assert (2 * half + 1) * spacing / 2 >= reach - 1e-5
        assert half == 0 or (2 * half - 1) * spacing / 2 < reach


def test_room_is_three_widths_at_least():
    assert room_for(0.0, (2.5, 2.5, 2.5)) == (0, 0, 0)
    assert room_for(5.0, (2.5, 2.0, 15.0)) == (6, 8, 1)


@pytest.mark.parametrize("turn", [(0, 0, 0), (10, -20, 15)])
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 1.0), (-0.7, 0.9, 5.0), (3.0, 3.0, 3.0)])
def test_a_soft_mask_keeps_the_volume_of_the_organ(turn, spacing):
    label = ball(11.0, spacing, turn=turn)
    shape = np.full(3, 21)
    found = soft_mask(
        label[0].numpy() > 0,
        label.affine.numpy(),
        first_mm=np.array([1.3, -0.4, 2.2]) - 10 * 2.5,
        shape=shape,
        spacing_mm=np.full(3, 2.5),
    )
    volume = float(label.sum()) * abs(np.prod(spacing))
    assert found.sum() * 2.5**3 == pytest.approx(volume, rel=0.02)
    assert found.shape == (21, 21, 21)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert found[10, 10, 10] == pytest.approx(1, abs=1e-5)


def test_a_soft_mask_does_not_depend_on_the_order_of_the_voxels():
    label = ball(11.0, (0.7, 0.9, 5.0))
    mask, affine = label[0].numpy() > 0, label.affine.numpy()
    grid = {"shape": np.full(3, 21), "spacing_mm": np.full(3, 2.5), "first_mm": np.full(3, -25.0)}
    found = soft_mask(mask, affine, **grid)
    for order in itertools.permutations(range(3)):
        turned = soft_mask(mask.transpose(order), affine[:, [*order, 3]], **grid)
        np.testing.assert_allclose(turned, found, atol=1e-5)


# Gaussians


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.3])
def test_weights_are_integrals_of_the_gaussian_over_voxels(sigma):
    weights = gaussian_weights(range(-2, 3), range(-1, 4), sigma)
    for (i, row), (j, column) in itertools.product(
        enumerate(range(-2, 3)), enumerate(range(-1, 4))
    ):
        value, _ = integrate.quad(stats.norm(row, sigma).pdf, column - 0.5, column + 0.5)
        assert weights[i, j] == pytest.approx(value, abs=1e-6)


def test_a_blurred_image_is_the_sum_of_its_voxels_gaussians():
    rng = np.random.default_rng(0)
    values, first, sigma = rng.random((3, 2, 4)), (2, -1, 5), (1.0, 0.7, 2.0)
    box = [slice(-1, 6), slice(-4, 3), slice(2, 12)]
    expected = np.zeros([b.stop - b.start for b in box])
    for index in np.ndindex(*values.shape):
        place = [i + a for i, a in zip(index, first, strict=True)]
        lines = [
            gaussian_weights(range(b.start, b.stop), range(p, p + 1), s)[:, 0]
            for b, p, s in zip(box, place, sigma, strict=True)
        ]
        expected += values[index] * np.einsum("i,j,k->ijk", *lines)
    found = blurred(values, first, box=box, sigma=sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_width_copies():
    values = np.random.default_rng(1).random((3, 3, 3)).astype(np.float32)
    box = [slice(-1, 5)] * 3
    found = blurred(values, (0, 0, 0), box=box, sigma=(0, 0, 0))
    np.testing.assert_array_equal(found, np.pad(values, [(1, 2)] * 3))


# the prior


def plain_density(labels, width, spacing, like):
    """Every voxel of every label as a Gaussian about the organ's box centre, point by point."""
    affine = like.affine.numpy()
    grid = np.moveaxis(np.indices(like.shape[1:]), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    total = np.zeros(like.shape[1:])
    for label in labels:
        points = np.argwhere(label[0].numpy()) @ label.affine[:3, :3].numpy().T
        points = points - (points.min(0) + points.max(0)) / 2
        weight = abs(np.prod(spacing)) / (2 * math.pi * width**2) ** 1.5
        for point in points:
            total += weight * np.exp(-((grid - point) ** 2).sum(-1) / (2 * width**2))
    return total / len(labels)


@pytest.mark.parametrize("width", [4.0, 6.0])
def test_a_density_is_the_mean_of_the_labels_under_a_gaussian(width):
    labels = [ball(r, (2.0, 2.0, 2.0), n=30) for r in (6.0, 8.0, 9.5)]
    prior = SpatialPrior.estimate(labels, smoothing_mm=width)
    assert prior.spacing_mm == (2.5, 2.5, 2.5)
    assert prior.smoothing_mm == width
    like = MetaTensor(torch.zeros(1, 7, 6, 1), affine=affine_of((3.0, 3.0, 1), (-8.0, -7, 2)))
    # The labels' voxels, the grid's and linear interpolation between them widen the Gaussian.
    wider = math.sqrt(width**2 + 2.0**2 / 6 + 2.5**2 / 12 + 2.5**2 / 6)
    assert wider < 1.08 * width
    expected = plain_density(labels, wider, (2.0, 2.0, 2.0), like)
    placed = prior.place((0.0, 0.0, 0.0), like)[0].numpy()
    np.testing.assert_allclose(placed, expected, atol=0.02)


def test_a_density_has_room_for_its_tail():
    labels = [ball(r, (1.0, 1.0, 1.0), n=30) for r in (6.0, 9.0)]
    prior = SpatialPrior.estimate(labels, smoothing_mm=5.0)
    edge = torch.cat([prior.probability[[0, -1]].flatten(), prior.probability[..., 0].flatten()])
    assert float(edge.max()) < 1e-3
    volume = np.mean([float(label.sum()) for label in labels])
    assert float(prior.probability.sum()) * 2.5**3 == pytest.approx(volume, rel=0.01)
    assert min(prior.size_mm) >= 2 * (9 + 15)


def test_a_density_is_continuous_along_z_and_a_histogram_is_not():
    labels = [ball(r, (1.0, 1.0, 1.0), n=30) for r in (6.0, 9.0)]
    line = MetaTensor(torch.zeros(1, 1, 1, 400), affine=affine_of((1, 1, 0.1), (0, 0, -20)))
    steps = {}
    for bins in (None, 5):
        prior = SpatialPrior.estimate(labels, bins=bins, smoothing_mm=None if bins else 4.0)
        steps[bins] = float(prior.place((0, 0, 0), line)[0].diff(dim=-1).abs().max())
    assert steps[None] < 0.02 < 0.2 < steps[5]


@pytest.mark.parametrize("spacing_mm", [(1.0, 2.0, 4.0), (2.5, 2.5, 2.5)])
def test_the_grid_may_be_given(spacing_mm):
    labels = [ball(r, (1.0, 1.0, 1.0), n=30) for r in (6.0, 9.0)]
    prior = SpatialPrior.estimate(labels, smoothing_mm=5.0, spacing_mm=spacing_mm)
    other = SpatialPrior.estimate(labels, smoothing_mm=5.0)
    assert prior.spacing_mm == spacing_mm
    assert all(n % 2 == 1 for n in prior.probability.shape)
    like = MetaTensor(torch.zeros(1, 20, 20, 20), affine=affine_of((2, 2, 2), (-19, -19, -19)))
    here, there = (p.place((0, 0, 0), like).as_tensor() for p in (prior, other))
    torch.testing.assert_close(here, there, atol=0.03, rtol=0)


def test_several_organs_have_a_width_each():
    first, second = ball(5.0, (1, 1, 1), n=40), ball(9.0, (1, 1, 1), n=40)
    labels = [first + 2 * (second - first), second + 1 - 1]
    labels[1] = MetaTensor(torch.where(first > 0, 1, torch.where(second > 0, 2, 0)))
    labels[1].affine = second.affine
    small, large = SpatialPrior.estimate_several(labels, organs=[1, 2])
    assert small.smoothing_mm < 6
    assert large.volumes_ml.mean > small.volumes_ml.mean
    assert small.offset_mm is not None


def test_one_label_has_a_documented_width():
    prior = SpatialPrior.estimate(ball(9.0, (1, 1, 1)))
    assert prior.smoothing_mm == 10.0
    assert prior.log_likelihood is None
    assert prior.volumes_ml.deviation is None


def test_volumes_of_the_cases_are_kept():
    labels = [ball(r, (1.0, 1.0, 2.0)) for r in (6.0, 9.0, 11.0)]
    volumes = [float(label.sum()) * 2 / 1000 for label in labels]
    found = SpatialPrior.estimate(labels, bins=5).volumes_ml
    expected = (np.mean(volumes), np.std(volumes, ddof=1), min(volumes), max(volumes))
    assert tuple(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_the_number_of_workers_does_not_change_a_bit(num_workers):
    labels = [ball(r, (1.0, 1.5, 2.0)) for r in (6.0, 9.0, 10.0, 12.0)]
    expected = SpatialPrior.estimate(labels)
    found = SpatialPrior.estimate(labels, num_workers=num_workers)
    assert torch.equal(found.probability, expected.probability)
    assert found.cases == expected.cases


@pytest.mark.parametrize("exact", [False, True])
def test_what_a_case_keeps(exact):
    values = np.zeros((5, 6, 7), np.float32)
    values[1:3, 2, 3:6] = np.random.default_rng(0).random((2, 3))
    case = pack(values, exact=exact, volume_ml=1.0, name="a")
    assert (case.shape, case.first) == ((2, 1, 3), (1, 2, 3))
    np.testing.assert_allclose(
        case.values(), values[1:3, 2:3, 3:6], atol=0 if exact else 0.5 / 255 + 1e-6
    )
    cases = Cases((case, case), (5, 6, 7), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(cases.mean(), values, atol=0.5 / 255 + 1e-6)
    empty = pack(np.zeros((5, 6, 7)), exact=exact, volume_ml=0.0, name="")
    assert empty.values().sum() == 0
