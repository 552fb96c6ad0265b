"""Linear interpolation of a mask on another grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

# A grid may be turned against the mask by so much, in voxels over its whole length.
_ALIGNED = 1e-6
_PLANES = 8


def interpolate(
    mask: NDArray[np.bool_],
    transform: NDArray[np.floating[Any]],
    shape: Sequence[int],
    *,
    then: Sequence[sparse.csr_array] | None = None,
) -> NDArray[np.float32]:
    """Sample a mask linearly; what lies outside is 0.

    :func:`scipy.ndimage.affine_transform` does this for any grid. Where the axes of both are the
    same, in whatever order and direction, the interpolation is one sparse matrix per axis, which
    is some twenty times faster, and what follows along an axis is multiplied into it.

    Args:
        mask: ``(w, h, d)``.
        transform: from an index of the grid to one of ``mask``, ``(4, 4)``.
        shape: of the grid, three numbers.
        then: for each axis the matrix ``(m, n)`` that turns its ``n`` samples into the ``m`` values
            that are wanted; the samples themselves where ``None``.

    Returns:
        ``shape``, or the ``m`` of each axis.

    Example:
        >>> half = np.eye(4)
        >>> half[0, 3] = 0.5
        >>> interpolate(np.ones((2, 1, 1), bool), half, (3, 1, 1)).ravel()
        array([1. , 0.5, 0. ], dtype=float32)
    """
    if then is None:
        then = [sparse.eye_array(n, format="csr") for n in shape]
    linear, offset = transform[:3, :3], transform[:3, 3]
    order = np.abs(linear).argmax(0)
    straight = np.zeros((3, 3))
    straight[order, range(3)] = linear[order, range(3)]
    turned = np.abs(linear - straight) @ np.array(shape)
    if len({*order}) < 3 or turned.max() > _ALIGNED:
        samples = ndimage.affine_transform(
            mask.astype(np.float32),
            transform,
            output_shape=tuple(shape),
            order=1,
            mode="grid-constant",
            prefilter=False,
        )
        for axis in (2, 1, 0):
            samples = _along(then[axis], samples, axis)
        return samples.astype(np.float32)
    mask = mask.transpose(order)
    along_w, along_h, along_d = (
        (then[i] @ _weights(straight[a, i], offset[a], shape[i], mask.shape[i])).tocsr()
        for i, a in enumerate(order)
    )
    return _by_planes(mask, along_w, along_h, along_d)


def _by_planes(
    mask: NDArray[np.bool_],
    along_w: sparse.csr_array,
    along_h: sparse.csr_array,
    along_d: sparse.csr_array,
) -> NDArray[np.float32]:
    """The three matrices times a mask, some planes of the result at once."""
    width, height = mask.shape[:2]
    out = np.empty((along_w.shape[0], along_h.shape[0], along_d.shape[0]), np.float32, order="F")
    for first in range(0, out.shape[2], _PLANES):
        planes = range(first, min(first + _PLANES, out.shape[2]))
        sums = np.zeros((height, len(planes), width))
        for i, k in enumerate(planes):
            for d in range(along_d.indptr[k], along_d.indptr[k + 1]):
                inside = mask[..., along_d.indices[d]].T
                np.add(sums[:, i], along_d.data[d], out=sums[:, i], where=inside)
        lines = (along_h @ sums.reshape(height, -1)).reshape(-1, len(planes), width)
        values = along_w @ lines.transpose(2, 0, 1).reshape(width, -1)
        out[..., planes] = values.reshape(-1, *lines.shape[:2])
    return out


def _weights(step: float, offset: float, length: int, of: int) -> sparse.csr_array:
    """Sparse ``(length, of)``: each row the weights of the two voxels around its point."""
    point = step * np.arange(length) + offset
    lower = np.floor(point).astype(int)
    voxel = np.stack([lower, lower + 1])
    weight = np.stack([lower + 1 - point, point - lower])
    row = np.broadcast_to(np.arange(length), voxel.shape)
    inside = (voxel >= 0) & (voxel < of) & (weight > 0)
    return sparse.csr_array((weight[inside], (row[inside], voxel[inside])), shape=(length, of))


def _along(matrix: sparse.csr_array, array: NDArray[Any], axis: int) -> NDArray[Any]:
    """The matrix times every line of ``array`` along ``axis``."""
    lines = np.moveaxis(array, axis, 0)
    product = matrix @ lines.reshape(len(lines), -1)
    return np.moveaxis(product.reshape(-1, *lines.shape[1:]), 0, axis)
