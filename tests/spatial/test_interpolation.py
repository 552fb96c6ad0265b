"""Linear interpolation of a mask."""

import itertools

import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.spatial.transform import Rotation

from stipple_monai.spatial.interpolation import interpolate


def by_scipy(mask, transform, shape):
    return ndimage.affine_transform(
        mask.astype(np.float64),
        transform,
        output_shape=shape,
        order=1,
        mode="grid-constant",
        prefilter=False,
    )


def transform_of(linear, offset):
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = linear, offset
    return transform


def random_mask(seed, shape=(9, 7, 6)):
    return np.random.default_rng(seed).random(shape) > 0.4


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_along_the_axes_it_is_what_scipy_gives(order, signs):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        mask = random_mask(seed)
        linear = (np.diag(rng.uniform(0.4, 1.8, 3) * signs))[list(order)]
        shape = tuple(rng.integers(4, 12, 3).tolist())
        # Somewhere near the middle, with much of it outside.
        middle = linear @ (np.array(shape) - 1) / 2
        offset = (np.array(mask.shape) - 1) / 2 - middle + rng.uniform(-3, 3, 3)
        transform = transform_of(linear, offset)
        found = interpolate(mask, transform, shape)
        assert (found.shape, found.dtype) == (shape, np.float32)
        np.testing.assert_allclose(found, by_scipy(mask, transform, shape), atol=6e-8)
        assert found.max() > 0


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 0.01, 0.3, np.pi / 4])
def test_turned_by_any_angle_it_is_what_scipy_gives(angle):
    mask = random_mask(1, (60, 50, 8))
    linear = Rotation.from_euler("xz", [angle, angle / 2]).as_matrix() @ np.diag([0.9, 1.1, 0.7])
    transform = transform_of(linear, (1.3, 2.2, 0.4))
    expected = by_scipy(mask, transform, (60, 45, 9))
    np.testing.assert_allclose(interpolate(mask, transform, (60, 45, 9)), expected, atol=1e-6)


def test_on_its_own_grid_a_mask_stays_as_it_is():
    mask = random_mask(2)
    np.testing.assert_array_equal(interpolate(mask, np.eye(4), mask.shape), mask)
    moved = interpolate(mask, transform_of(np.eye(3), (2, -1, 3)), (5, 5, 9))
    np.testing.assert_array_equal(moved[:, 1:, :3], mask[2:7, :4, 3:])
    assert not moved[:, 0].any()
    assert not moved[..., 3:].any()


def test_half_a_voxel_is_the_mean_of_two():
    mask = random_mask(3)
    found = interpolate(mask, transform_of(np.eye(3), (0, 0, 0.5)), (9, 7, 5))
    np.testing.assert_array_equal(found, mask[..., :-1] / 2 + mask[..., 1:] / 2)


def test_outside_is_nothing():
    far = transform_of(np.eye(3), (0, 0, 6))
    assert not interpolate(random_mask(4), far, (9, 7, 6)).any()
    near = transform_of(np.eye(3), (0, 0, 5.75))
    np.testing.assert_allclose(
        interpolate(np.ones((9, 7, 6), bool), near, (9, 7, 2)), np.full((9, 7, 2), [0.25, 0])
    )


@pytest.mark.parametrize("angle", [0, 0.3])
def test_what_follows_is_done_along_each_axis(angle):
    rng = np.random.default_rng(0)
    linear = Rotation.from_euler("xz", [angle, angle]).as_matrix() @ np.diag([0.9, 1.1, 0.7])
    transform = transform_of(linear, (0.3, 0.2, 0.4))
    matrices = [rng.random(shape) for shape in ((4, 8), (9, 7), (2, 6))]
    then = [sparse.csr_array(matrix) for matrix in matrices]
    found = interpolate(random_mask(0), transform, (8, 7, 6), then=then)
    samples = by_scipy(random_mask(0), transform, (8, 7, 6))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.einsum("iw,jh,kd,whd->ijk", *matrices, samples), rtol=1e-5)
