"""Frequencies of an organ around its centre, slices and bins: algorithm 1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stipple_monai.errors import PriorError
from stipple_monai.organ import (
    Center,
    LabelMap,
    center_and_reach,
    organ_mask,
    spacing_along_ras,
)


class OrganHistogram:
    """How often an organ is found at each place around its centre, map after map.

    Args:
        organ: label value.
        center: see :func:`~stipple_monai.organ.organ_position`.
        spacing_mm: grid along R, A and S; that of the first map with the organ where ``None``.
    """

    def __init__(
        self, organ: int, center: Center, spacing_mm: NDArray[np.float64] | None = None
    ) -> None:
        self.organ, self.center, self.spacing_mm = organ, center, spacing_mm
        self.counts = CenteredHistogram()

    def add(self, label: LabelMap) -> None:
        """Count a label map, or skip it with a warning where it does not contain the organ."""
        found = organ_mask(label, self.organ)
        if found is None:
            warnings.warn(
                f"{label.name} does not contain organ {self.organ}: skipped.", stacklevel=3
            )
            return
        mask, affine = found
        if self.spacing_mm is None:
            self.spacing_mm = spacing_along_ras(affine)
        point, reach = center_and_reach(mask, affine, self.center)
        # The tolerance keeps an organ of 10 voxels of 0.7 mm from filling 11.
        shape = np.maximum(np.ceil(2 * reach / self.spacing_mm - 0.01), 1).astype(int)
        grid = np.diag([*self.spacing_mm, 1.0])
        grid[:3, 3] = point - self.spacing_mm * (shape - 1) / 2
        self.counts.add(
            ndimage.affine_transform(
                mask.astype(np.float32),
                np.linalg.inv(affine) @ grid,
                output_shape=tuple(shape),
                order=1,
                mode="grid-constant",
                prefilter=False,
            )
        )

    def in_bins(
        self, bins: int | None, smoothing: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Frequencies ``(W_p, H_p, B)`` in [0, 1] (equation 1), and the size of their voxels.

        Raises:
            PriorError: no map contained the organ.
        """
        if self.spacing_mm is None or not self.counts.count:
            raise PriorError(
                f"No label map contains organ {self.organ}: give at least one labelled volume, or "
                "check the label value."
            )
        frequency = self.counts.mean()
        if smoothing > 0:
            frequency = blur_in_plane(frequency, smoothing / self.spacing_mm[:2])
        depth = frequency.shape[2]
        binned = frequency if bins is None else average_in_bins(frequency, bins)
        return np.clip(binned, 0, 1), self.spacing_mm * [1, 1, depth / binned.shape[2]]


class CenteredHistogram:
    """Sum of arrays of different sizes that share their centre.

    Arrays of even and of odd length are summed apart, axis by axis, because their voxels do not
    coincide; only the sums are interpolated, so the result does not depend on the order.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def add(self, array: NDArray[np.float32]) -> None:
        """Add one organ's box ``(w, h, d)``; the sum grows to hold it."""
        self.count += 1
        parity = tuple(n % 2 for n in array.shape)
        old = self._sums.get(parity, np.zeros(parity))
        shape = np.maximum(old.shape, array.shape)
        self._sums[parity] = _pad_to(old, shape) + _pad_to(array, shape)

    def mean(self) -> NDArray[np.float64]:
        """Mean of all that was added, ``(W_p, H_p, Δz)``: the greatest width, height, depth."""
        shape = np.max([s.shape for s in self._sums.values()], axis=0)
        total = np.zeros(shape)
        for part in self._sums.values():
            for axis in range(3):
                if part.shape[axis] % 2 != shape[axis] % 2:
                    gap = np.zeros_like(part.take([0], axis))
                    before = np.concatenate([gap, part], axis)
                    after = np.concatenate([part, gap], axis)
                    part = (before + after) / 2
            total += _pad_to(part, shape)
        return total / self.count


def _pad_to(array: NDArray[Any], shape: Sequence[int] | NDArray[np.int_]) -> NDArray[Any]:
    return np.pad(array, [((n - m) // 2,) * 2 for m, n in zip(array.shape, shape, strict=True)])


def average_in_bins(frequency: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Average ``(W, H, Δz)`` over the slices of each of ``bins`` equal parts (equation 1).

    A slice belongs to the bin that its centre falls in (the upper, between two); a bin that
    holds no centre takes the slice that contains the bin's own centre.
    """
    depth = frequency.shape[2]
    bin_of_slice = (2 * np.arange(depth) + 1) * bins // (2 * depth)
    slice_of_bin = (2 * np.arange(bins) + 1) * depth // (2 * bins)
    return np.stack(
        [
            frequency[..., bin_of_slice == b].mean(-1)
            if (bin_of_slice == b).any()
            else frequency[..., slice_of_bin[b]]
            for b in range(bins)
        ],
        axis=-1,
    )


def blur_in_plane(
    frequency: NDArray[np.float64], sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Gaussian blur in the axial plane, ``sigma`` in voxels, with room for three of them."""
    margin = np.ceil(3 * sigma).astype(int)
    padded = np.pad(frequency, [(margin[0],) * 2, (margin[1],) * 2, (0, 0)])
    return ndimage.gaussian_filter(padded, (*sigma, 0), mode="constant", truncate=3)
