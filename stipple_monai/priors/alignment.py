"""The common centre of many organs: each is moved to where it overlaps most with all others.

The middle of a bounding box hangs on the organ's tips, and a network's prediction has other tips
than the label. Moving each mask to its best correlation with the mean of all, and the mean with
them, gives a sharper prior and a centre that positioning by correlation finds again (group-wise
registration with translations, cf. Joshi et al., "Unbiased diffeomorphic atlas construction",
NeuroImage 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from stipple_monai.spatial import Box, parabola_top, promising, scores_in

GRID_MM = 3.0
_MAX_ROUNDS = 20
_STILL_MM = 0.1
_CELLS = (3, 3, 3)
"""Voxels of the cells in which translations are first compared."""


class CoarseMask:
    """An organ on a coarse RAS grid of 3 mm, small enough to keep for every label map.

    Args:
        mask: ``(w, h, d)``, the organ's voxels.
        affine: voxel to world, RAS mm, ``(4, 4)``.
    """

    def __init__(self, mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> None:
        corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in mask.shape])).reshape(3, -1)
        world = affine[:3, :3] @ corners + affine[:3, 3:]
        low, high = world.min(1), world.max(1)
        shape = np.ceil((high - low) / GRID_MM).astype(int) + 2
        self.origin_mm = (low + high) / 2 - GRID_MM * (shape - 1) / 2
        self.box_mm = low, high
        # Means over the coarse voxels keep what thinner slices and narrower organs are made of.
        width = np.maximum(np.round(GRID_MM / voxel_sizes(affine)), 1).astype(int)
        margin = width // 2 + 1
        padded = np.pad(mask.astype(np.float32), [(m, m) for m in margin])
        mean = ndimage.uniform_filter(padded, width, mode="constant")
        grid = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
        grid[:3, 3] = self.origin_mm
        index = np.linalg.inv(affine) @ grid
        # The mean over an even number of voxels lies half a voxel before its index.
        index[:3, 3] += margin + np.where(width % 2 == 0, 0.5, 0.0)
        self.occupied = ndimage.affine_transform(
            mean, index, output_shape=tuple(shape), order=1, mode="constant"
        )


def common_centers(masks: Sequence[CoarseMask]) -> NDArray[np.float64]:
    """Group-wise centres, ``(n, 3)`` in RAS mm.

    Starts at the masks' centres of mass and moves each to its best correlation with the mean of
    all until they rest. The whole group is then moved so that the box around all the masks, each
    about its centre, has that centre in its middle; the centre of a single mask is the middle of
    its bounding box.
    """
    center = np.array([_center_of_mass(mask) for mask in masks])
    for _ in range(_MAX_ROUNDS):
        mean, first_mm = _mean_about(masks, center)
        moved = np.array([_best_center(mask, mean, first_mm) for mask in masks])
        step = moved - center
        step -= step.mean(0)
        center = center + step
        if np.linalg.norm(step, axis=1).max() < _STILL_MM:
            break
    low = np.min([mask.box_mm[0] - c for mask, c in zip(masks, center, strict=True)], axis=0)
    high = np.max([mask.box_mm[1] - c for mask, c in zip(masks, center, strict=True)], axis=0)
    return center + (low + high) / 2


def mean_offsets(
    centers_mm: Sequence[Mapping[int, NDArray[np.float64]]],
) -> list[list[float] | None]:
    """Where each organ lies relative to the mean of all organs, on average over the scans.

    Not every scan has all organs: positions are explained by ``c_scan + μ_organ`` with the least
    squared error and ``Σ μ = 0``.

    Args:
        centers_mm: for each organ its centre, ``(3,)`` RAS mm, by scan.

    Returns:
        ``μ`` of each organ, or ``None`` for all if there is one organ only or no chain of scans
        that connects them.

    Example:
        >>> mean_offsets([{0: np.zeros(3)}, {0: np.array([4.0, 0, -2])}])
        [[-2.0, 0.0, 1.0], [2.0, 0.0, -1.0]]
    """
    organs = len(centers_mm)
    scans = sorted({scan for centers in centers_mm for scan in centers})
    rows, values = [np.repeat([1.0, 0.0], [organs, len(scans)])], [np.zeros(3)]
    for organ, centers in enumerate(centers_mm):
        for scan, center in centers.items():
            row = np.zeros(organs + len(scans))
            row[[organ, organs + scans.index(scan)]] = 1
            rows.append(row)
            values.append(center)
    solution, _, rank, _ = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)
    if organs == 1 or rank < organs + len(scans):
        return [None] * organs
    return [[round(float(x), 3) for x in offset] for offset in solution[:organs]]


def _center_of_mass(mask: CoarseMask) -> NDArray[np.float64]:
    return mask.origin_mm + GRID_MM * np.array(ndimage.center_of_mass(mask.occupied))


def _mean_about(
    masks: Sequence[CoarseMask], center: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of all masks about their centres, of odd lengths; its first voxel in mm."""
    first = [(mask.origin_mm - c) / GRID_MM for mask, c in zip(masks, center, strict=True)]
    low = np.floor(np.min(first, axis=0))
    last = [f + m.occupied.shape for f, m in zip(first, masks, strict=True)]
    # one voxel more, or two
    shape = (np.ceil(np.max(last, axis=0)) - low).astype(int) + 1 | 1
    total = np.zeros(shape)
    for f, mask in zip(first, masks, strict=True):
        whole = np.floor(f - low).astype(int)
        part = ndimage.shift(
            np.pad(mask.occupied, [(0, 1)] * 3), f - low - whole, order=1, mode="constant"
        )
        total[tuple(slice(a, a + n) for a, n in zip(whole, part.shape, strict=True))] += part
    return total / len(masks), low * GRID_MM


def _best_center(
    mask: CoarseMask, mean: NDArray[np.float64], first_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The centre, to a fraction of a voxel, at which a mask overlaps most with the mean."""
    volume, kernel = torch.from_numpy(mask.occupied), torch.from_numpy(mean)
    # The best translation lies in the box; the parabola takes a voxel more at each end.
    box = promising(volume, kernel, _CELLS)
    start = np.array(box.start) - 1
    stop = [b + 1 for b in box.stop]
    score = scores_in(volume, kernel, Box(tuple(start.tolist()), tuple(stop))).numpy()
    best = np.array(np.unravel_index(score.argmax(), score.shape))
    translation = start + best - (np.array(mean.shape) - 1) / 2 + _peak_offset(score, best)
    return mask.origin_mm + GRID_MM * translation - first_mm


def _peak_offset(score: NDArray[np.float64], best: NDArray[np.int_]) -> NDArray[np.float64]:
    """Where the parabola through a peak and its neighbours along each axis has its top."""
    offset = np.zeros(3)
    for axis in range(3):
        line = score[tuple(slice(None) if a == axis else best[a] for a in range(3))]
        i = best[axis]
        if 0 < i < len(line) - 1:
            offset[axis] = parabola_top(*line[i - 1 : i + 2])
    return offset
