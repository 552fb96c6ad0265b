"""The arrays of algorithm 1: centres, bins."""

import itertools

import numpy as np
import pytest

from stipple_monai.priors.histogram import about_center, bin_weights


def value_at(array, point):
    """Trilinear interpolation of ``array`` at a continuous index, zero outside."""
    total = 0.0
    base = [int(np.floor(p)) for p in point]
    for corner in itertools.product((0, 1), repeat=3):
        voxel = [b + c for b, c in zip(base, corner, strict=True)]
        if all(0 <= v < n for v, n in zip(voxel, array.shape, strict=True)):
            distance = [abs(p - v) for p, v in zip(point, voxel, strict=True)]
            total += float(array[tuple(voxel)]) * np.prod([1 - d for d in distance])
    return total


def mean_about_the_centre(arrays):
    shape = [max(a.shape[axis] for a in arrays) for axis in range(3)]
    mean = np.zeros(shape)
    for index in np.ndindex(*shape):
        for array in arrays:
            offset = [i - (n - 1) / 2 for i, n in zip(index, shape, strict=True)]
            middle = [(n - 1) / 2 for n in array.shape]
            mean[index] += value_at(array, [m + o for m, o in zip(middle, offset, strict=True)])
    return mean / len(arrays)


def mean_of_moved(arrays):
    """The same by matrices along each axis."""
    shape = [max(a.shape[axis] for a in arrays) for axis in range(3)]
    mean = np.zeros(shape)
    for array in arrays:
        w, h, d = (about_center(n, m).toarray() for n, m in zip(array.shape, shape, strict=True))
        mean += np.einsum("iw,jh,kd,whd->ijk", w, h, d, array) / len(arrays)
    return mean


def line(*values):
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ([line(1, 0, 1)], [1, 0, 1]),
        ([line(1, 1, 1, 1), line(1, 0)], [0.5, 1, 0.5, 0.5]),
        ([line(1, 1), line(1)], [0.75, 0.75]),
        ([line(1, 1, 1), line(1, 1)], [0.75, 1, 0.75]),
        ([line(1), line(1, 1), line(1, 1, 1, 1, 1)], [1 / 3, 0.5, 1, 0.5, 1 / 3]),
    ],
)
def test_mean_by_hand(arrays, expected):
    np.testing.assert_allclose(mean_of_moved(arrays).ravel(), expected, atol=1e-12)


def test_mean_is_the_interpolated_mean_about_the_centre():
    rng = np.random.default_rng(0)
    arrays = [rng.random(rng.integers(1, 7, 3)).astype(np.float32) for _ in range(12)]
    assert len({tuple(n % 2 for n in a.shape) for a in arrays}) > 3
    np.testing.assert_allclose(mean_of_moved(arrays), mean_about_the_centre(arrays), atol=1e-12)


@pytest.mark.parametrize(
    ("slices", "bins", "expected"),
    [
        ([1, 2, 3, 4], 1, [2.5]),
        ([1, 2, 3, 4], 2, [1.5, 3.5]),
        ([1, 2, 3, 4], 4, [1, 2, 3, 4]),
        # The middle slice's centre lies between two bins and belongs to the upper.
        ([1, 2, 3], 2, [1, 2.5]),
        # Centres at 0.36, 1.07, 1.79, 2.5, 3.21, 3.93, 4.64 bins.
        ([1, 2, 3, 4, 5, 6, 7], 5, [1, 2.5, 4, 5.5, 7]),
        # Bins 1 and 3 hold no centre: theirs lie at 0.75, the edge of slice 1, and at 1.75.
        ([1, 2], 4, [1, 1, 2, 2]),
        ([1, 2], 5, [1, 1, 2, 2, 2]),
        ([7], 3, [7, 7, 7]),
    ],
)
def test_bins_by_hand(slices, bins, expected):
    np.testing.assert_allclose(bin_weights(len(slices), bins) @ np.array(slices, float), expected)


@pytest.mark.parametrize("depth", range(1, 24))
@pytest.mark.parametrize("bins", [1, 2, 3, 5, 8])
def test_every_slice_is_counted_once_where_bins_are_thicker(depth, bins):
    slices = np.random.default_rng(depth).random((depth, 6))
    weights = bin_weights(depth, bins)
    assert weights.shape == (bins, depth)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    if depth >= bins:
        number = np.array(
            [sum(b <= bins * (s + 0.5) / depth < b + 1 for s in range(depth)) for b in range(bins)]
        )
        assert number.sum() == depth
        assert number.min() > 0
        np.testing.assert_allclose(number @ (weights @ slices), slices.sum(0))
