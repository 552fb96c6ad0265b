"""Density of an organ around its centre: every label, blurred by a Gaussian.

A few labels overlap little, and a histogram of them has holes where the next patient's organ will
be. The kernel estimate ``p = Σ_i q_i / n`` has none: ``q_i = G_σ * y_i`` is label ``i`` about its
centre under a Gaussian of ``σ`` mm, the same in all directions. It is linear in the labels, so
that what one of them contributes can be taken out again.

Grid
    Cubic voxels of :data:`GRID_MM` about the organ's centre, which is the middle of a voxel: grids
    of any extent have their voxels in common.
Room
    The voxels by which a density's grid is longer, at each end, than the labels reach:
    :data:`ROOM` widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from stipple_monai.priors.organ import spacing_along_ras
from stipple_monai.spatial import interpolate

GRID_MM = 2.5
ROOM = 3.0


def half_lengths(
    reach_mm: NDArray[np.float64], spacing_mm: NDArray[np.float64]
) -> NDArray[np.int_]:
    """Voxels on each side of the middle one, so that a grid reaches ``reach_mm`` from its centre.

    Example:
        >>> half_lengths(np.array([1.0, 1.3, 10.0]), np.array([2.5, 2.5, 2.5]))
        array([0, 1, 4])
    """
    # The tolerance keeps rounding from adding a voxel.
    return np.maximum(np.ceil(reach_mm / spacing_mm - 0.5 - 1e-6), 0).astype(int)


def soft_mask(
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    *,
    first_mm: NDArray[np.float64],
    shape: NDArray[np.int_],
    spacing_mm: NDArray[np.float64],
) -> NDArray[np.float32]:
    """The part of each voxel of a grid along R, A and S that an organ fills.

    Args:
        mask: ``(w, h, d)``, the organ's voxels.
        affine: of ``mask``, voxel to world, RAS mm, ``(4, 4)``.
        first_mm: ``(3,)``, the middle of the grid's first voxel.
        shape: its voxels along R, A and S.
        spacing_mm: their size.

    Returns:
        ``shape``, in [0, 1]: the mean of linear samples about as dense as the mask's.

    Example:
        >>> mask = np.ones((4, 4, 4), bool)
        >>> grid = {"shape": np.full(3, 3), "spacing_mm": np.full(3, 2.0)}
        >>> soft_mask(mask, np.eye(4), first_mm=np.full(3, -0.5), **grid)[1].round(2)
        array([[0.25, 0.5 , 0.25],
               [0.5 , 1.  , 0.5 ],
               [0.25, 0.5 , 0.25]], dtype=float32)
    """
    count = np.maximum(np.round(spacing_mm / spacing_along_ras(affine)), 1).astype(int)
    step = spacing_mm / count
    grid = np.diag([*step, 1.0])
    grid[:3, 3] = first_mm - (spacing_mm - step) / 2
    means = [
        sparse.kron(sparse.eye_array(n), np.full((1, k), 1 / k), format="csr")
        for n, k in zip(shape.tolist(), count.tolist(), strict=True)
    ]
    fine = (shape * count).tolist()
    return interpolate(mask, np.linalg.inv(affine) @ grid, fine, then=means)


def room_for(smoothing_mm: float, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Voxels of room at each end of the three axes.

    Example:
        >>> room_for(6.0, (2.5, 2.5, 5.0))
        (8, 8, 4)
    """
    w, h, d = (math.ceil(ROOM * smoothing_mm / s - 1e-6) for s in spacing_mm)
    return w, h, d


def blurred(
    values: NDArray[np.floating],
    first: Sequence[int],
    *,
    box: Sequence[slice],
    sigma: Sequence[float],
) -> NDArray[np.float32]:
    """Part of an image under a Gaussian; only what is asked for is computed.

    Args:
        values: ``(w, h, d)``, all of the image that is not 0.
        first: index of its first voxel.
        box: the voxels that are wanted; indices have the same origin, and may be negative.
        sigma: width along each axis in voxels; 0 does not blur.

    Returns:
        float32, as large as ``box``: the image's mean over all space, each voxel of it uniform,
        weighted by a Gaussian about the middle of the voxel.

    Example:
        >>> line = blurred(np.ones((1, 1, 1)), (0, 0, 0), box=[slice(-1, 2)] * 3, sigma=(1, 0, 0))
        >>> line[:, 1, 1].round(3)
        array([0.242, 0.383, 0.242], dtype=float32)
    """
    weights = [
        gaussian_weights(range(b.start, b.stop), range(a, a + n), s)
        for b, a, n, s in zip(box, first, values.shape, sigma, strict=True)
    ]
    found = np.asarray(values, np.float32)
    # The axis that shrinks most first: of a slice, that across it.
    for axis in sorted(range(3), key=lambda i: weights[i].shape[0] / weights[i].shape[1]):
        # In whatever form needs no copy.
        if axis == 0:
            found = (weights[0] @ found.reshape(len(found), -1)).reshape(-1, *found.shape[1:])
        else:
            found = weights[1] @ found if axis == 1 else found @ weights[2].T
    return found


def gaussian_weights(rows: range, columns: range, sigma: float) -> NDArray[np.float32]:
    """Weights ``(rows, columns)`` of voxels under a Gaussian about each row's middle.

    Example:
        >>> gaussian_weights(range(2), range(3), 0.0)
        array([[1., 0., 0.],
               [0., 1., 0.]], dtype=float32)
    """
    offset = np.array(columns) - np.array(rows)[:, None]
    if sigma <= 0:
        return (offset == 0).astype(np.float32)
    edges = np.arange(offset[-1, 0], offset[0, -1] + 2) - 0.5
    weight = np.diff(special.ndtr(edges / sigma)).astype(np.float32)
    return weight[offset - offset[-1, 0]]
