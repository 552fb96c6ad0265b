"""What each label contributed to a prior, small enough to keep: ``p = Σ_i q_i / n``.

Since contributions add up, the prior without label ``i`` is ``(n p − q_i) / (n − 1)``, without
estimating anew and without a dense map of any label: ``q_i`` is the label's own box under the
Gaussian (see `stipple_monai.priors.kernel`), computed where it is asked for.

Case
    One label of one organ: its box on the prior's grid, packed; some ten kilobytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stipple_monai.priors.kernel import blurred, room_for

Box = tuple[slice, slice, slice]


class Case(NamedTuple):
    """One label's organ on the prior's grid.

    Attributes:
        packed: the voxels of its box, ``uint8`` in 255ths for a density, ``float32`` for a
            histogram; C order, compressed.
        dtype: ``"uint8"`` or ``"float32"``.
        shape: of the box.
        first: index of its first voxel in the grid without room.
        volume_ml: of the organ.
        name: of the label's file, without folders; empty where it has none.
    """

    packed: bytes
    dtype: str
    shape: tuple[int, int, int]
    first: tuple[int, int, int]
    volume_ml: float
    name: str

    def values(self) -> NDArray[np.float32]:
        """The part of each voxel that the organ fills, in [0, 1]."""
        raw = np.frombuffer(zlib.decompress(self.packed), self.dtype).reshape(self.shape)
        unit = np.float32(255 if self.dtype == "uint8" else 1)
        return np.asarray(raw / unit, np.float32)


def pack(
    values: NDArray[np.float32],
    *,
    exact: bool,
    volume_ml: float,
    name: str,
) -> Case:
    """Keep what is not 0 of an organ on the prior's grid.

    Args:
        values: the whole grid without room, in [0, 1].
        exact: as ``float32``, or rounded to 255ths.
        volume_ml: of the organ.
        name: of the label's file.
    """
    raw = values.astype(np.float32) if exact else np.rint(255 * values).astype(np.uint8)
    # All voxels above 0 are one object; where there are none, the first voxel stands for them.
    (box,) = ndimage.find_objects((raw > 0).astype(np.int8)) or [(slice(0, 1),) * 3]
    inside = np.ascontiguousarray(raw[box])
    w, h, d = inside.shape
    return Case(
        packed=zlib.compress(inside.tobytes(), level=1),
        dtype=inside.dtype.name,
        shape=(w, h, d),
        first=(box[0].start, box[1].start, box[2].start),
        volume_ml=volume_ml,
        name=name,
    )


class Volumes(NamedTuple):
    """Volumes of one organ in several scans, in ml.

    Attributes:
        mean, minimum, maximum: over the scans.
        deviation: standard deviation of the sample; ``None`` for one scan.
    """

    mean: float
    deviation: float | None
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Cases:
    """The labels of one organ's prior.

    Attributes:
        items: one per label that has the organ, in their order.
        shape: of the grid without room.
        spacing_mm: of its voxels along R, A and S.
        smoothing_mm: width of the Gaussian; 0 for a histogram.
    """

    items: tuple[Case, ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    smoothing_mm: float = 0.0

    def __len__(self) -> int:
        """Number of labels."""
        return len(self.items)

    @property
    def room(self) -> tuple[int, int, int]:
        """Voxels at each end of an axis for the Gaussian's tail."""
        return room_for(self.smoothing_mm, self.spacing_mm)

    @property
    def whole_shape(self) -> tuple[int, int, int]:
        """Of the prior, with its room."""
        w, h, d = (n + 2 * r for n, r in zip(self.shape, self.room, strict=True))
        return w, h, d

    @property
    def sigma(self) -> tuple[float, float, float]:
        """The Gaussian's width in voxels."""
        w, h, d = (self.smoothing_mm / s for s in self.spacing_mm)
        return w, h, d

    @property
    def volumes_ml(self) -> Volumes:
        """Of the labels' organs."""
        volumes = [case.volume_ml for case in self.items]
        deviation = float(np.std(volumes, ddof=1)) if len(volumes) > 1 else None
        return Volumes(float(np.mean(volumes)), deviation, min(volumes), max(volumes))

    def total(self) -> NDArray[np.float32]:
        """Sum of all labels on the grid without room, not blurred."""
        total = np.zeros(self.shape, np.float64)
        for case in self.items:
            total[_box(case.first, case.shape)] += case.values()
        return total.astype(np.float32)

    def mean(self) -> NDArray[np.float32]:
        """The prior, with its room: ``Σ_i q_i / n`` in [0, 1]."""
        room = self.room
        box = [slice(-r, n + r) for r, n in zip(room, self.shape, strict=True)]
        total = self.total()
        if self.smoothing_mm > 0:
            total = blurred(total, (0, 0, 0), box=box, sigma=self.sigma)
        return np.clip(total / len(self), 0, 1)

    def contribution(self, case: int, box: Sequence[slice] | None = None) -> NDArray[np.float32]:
        """``q_i`` in a box of the prior.

        Args:
            case: number of the label.
            box: three slices of the prior's array, with its room; all of it where ``None``.
        """
        item, room = self.items[case], self.room
        if box is None:
            box = [slice(0, n) for n in self.whole_shape]
        first = [a + r for a, r in zip(item.first, room, strict=True)]
        return blurred(item.values(), first, box=box, sigma=self.sigma)

    def leave_out(
        self,
        probability: NDArray[np.float32],
        without: Sequence[int],
        box: Sequence[slice] | None = None,
    ) -> NDArray[np.float32]:
        """The prior of the other labels, ``(n p − Σ q_i) / (n − m)``.

        Args:
            probability: the prior of all of them, or its ``box``.
            without: numbers of the ``m < n`` labels that are left out.
            box: see :meth:`contribution`.
        """
        rest = probability * np.float32(len(self))
        for case in without:
            rest -= self.contribution(case, box)
        return np.clip(rest / np.float32(len(self) - len(without)), 0, 1)

    def __iter__(self) -> Iterator[Case]:
        """The labels in their order."""
        return iter(self.items)


def _box(first: Sequence[int], shape: Sequence[int]) -> Box:
    w, h, d = (slice(a, a + n) for a, n in zip(first, shape, strict=True))
    return w, h, d
