"""An organ around its centre, map after map: in slices and bins (algorithm 1), or on a grid."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stipple_monai.errors import PriorError
from stipple_monai.nifti import voxel_ml
from stipple_monai.parallel import map_in_order
from stipple_monai.priors.alignment import CoarseMask, common_centers
from stipple_monai.priors.cases import Case, Cases, pack
from stipple_monai.priors.kernel import GRID_MM, half_lengths, soft_mask
from stipple_monai.priors.organ import (
    UNNAMED,
    Center,
    Label,
    LabelMap,
    center_and_reach,
    open_label,
    organ_masks,
    spacing_along_ras,
)
from stipple_monai.spatial import interpolate, top_middle

MOST_TOLD = 5
"""Maps or values that a warning names."""

Number = TypeVar("Number", int, float)


def count_labels(
    labels: Iterable[Label], histograms: Sequence[OrganHistogram], *, num_workers: int
) -> None:
    """Give label maps to the histograms of all organs, reading every map once.

    A map without an organ is skipped for it, with a warning for each organ. Whatever the number of
    workers, maps are counted in their order, and the result is the same to the last bit.

    Args:
        labels: label maps or files.
        histograms: one per organ.
        num_workers: number of maps that are worked on at once, see
            :func:`~stipple_monai.parallel.map_in_order`.

    Raises:
        DatasetError: a map cannot be read.
    """
    organs = [histogram.organ for histogram in histograms]

    def examined(label: Label) -> tuple[_MapName, list[_PackedOrgan | None]]:
        label_map = open_label(label)
        crops = organ_masks(label_map, organs)
        pairs = zip(histograms, crops, strict=True)
        top = top_middle(label_map.extent)
        found = [
            crop and _keep(*crop, histogram.center, label_map, top) for histogram, crop in pairs
        ]
        told = _MapName(label_map.name, _values(label_map) if None in found else "")
        return told, found

    without: dict[int, list[_MapName]] = {organ: [] for organ in organs}
    for case, (name, found) in enumerate(map_in_order(examined, labels, num_workers=num_workers)):
        for histogram, organ in zip(histograms, found, strict=True):
            if organ is not None:
                histogram.add(case, organ)
            else:
                without[histogram.organ].append(name)
    for value, maps in without.items():
        if maps:
            # Seen from what calls `estimate`.
            warnings.warn(_skipped(maps, value), stacklevel=5)
    for histogram in histograms:
        histogram.align()


class _MapName(NamedTuple):
    """A map's file, and what values it has where an organ is missing."""

    name: str
    values: str


def _values(label_map: LabelMap) -> str:
    """Label values of a map but for the background."""
    values = np.unique(np.asanyarray(label_map.array))
    told = ", ".join(f"{value:g}" for value in values[values != 0][:MOST_TOLD])
    more = ", …" if np.count_nonzero(values) > MOST_TOLD else ""
    return f"{told}{more}" if told else "0 alone"


def _skipped(maps: Sequence[_MapName], organ: int) -> str:
    """That maps do not have an organ, a few by their names."""
    first, others = maps[0], maps[1:]
    text = f"{first.name} does not contain organ {organ}: skipped; it has {first.values}."
    if not others:
        return text
    named = [f"{each.name} (has {each.values})" for each in others[: MOST_TOLD - 1]]
    more = ", …" if len(maps) > MOST_TOLD else ""
    return f"{text} So are {len(others)} more: {', '.join(named)}{more}."


class _PackedOrgan(NamedTuple):
    """An organ of one map, kept until the size of all is known: some tens of kilobytes.

    With ``coarse`` up to a megabyte, for a liver.

    Attributes:
        bits: its voxels, packed and compressed.
        shape: of its box.
        affine: of its box.
        center_mm: its centre.
        reach_mm: how far it reaches from there.
        top_mm: the middle of the map's top.
        coarse: what its group-wise centre is found with.
        name: of the map's file, without folders; empty where it has none.
    """

    bits: bytes
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    center_mm: NDArray[np.float64]
    reach_mm: NDArray[np.float64]
    top_mm: NDArray[np.float64]
    coarse: CoarseMask | None
    name: str

    def mask(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        voxels = np.unpackbits(bits, count=math.prod(self.shape)).view(bool)
        return voxels.reshape(self.shape[::-1]).T


def _keep(
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    center: Center,
    label_map: LabelMap,
    top_mm: NDArray[np.float64],
) -> _PackedOrgan:
    bits = zlib.compress(np.packbits(mask.T).tobytes(), level=1)
    groupwise = center == "groupwise"
    point, reach = center_and_reach(mask, affine, "bbox" if groupwise else center)
    coarse = CoarseMask(mask, affine) if groupwise else None
    name = "" if label_map.name == UNNAMED else Path(label_map.name).name
    return _PackedOrgan(bits, mask.shape, affine, point, reach, top_mm, coarse, name)


class OrganHistogram:
    """How often an organ is found at each place around its centre, map after map.

    Args:
        organ: label value.
        center: see :meth:`~stipple_monai.priors.SpatialPrior.estimate`.
        spacing_mm: grid along R, A and S; that of the first map with the organ where ``None``.
    """

    def __init__(
        self, organ: int, center: Center, spacing_mm: NDArray[np.float64] | None = None
    ) -> None:
        self.organ, self.center = organ, center
        self.given_mm = self.spacing_mm = spacing_mm
        self._kept: dict[int, _PackedOrgan] = {}

    @property
    def centers_mm(self) -> dict[int, NDArray[np.float64]]:
        """The organ's centre in each map that contains it, by the map's number."""
        return {case: organ.center_mm for case, organ in self._kept.items()}

    @property
    def from_top_mm(self) -> list[float]:
        """From the middle of a map's top to the organ's centre, RAS mm, mean over the maps."""
        organs, _ = self._found()
        found: NDArray[np.float64] = np.mean([o.center_mm - o.top_mm for o in organs], axis=0)
        return found.tolist()

    def add(self, case: int, organ: _PackedOrgan) -> None:
        """Count the organ of map number ``case``."""
        if self.spacing_mm is None:
            self.spacing_mm = spacing_along_ras(organ.affine)
        self._kept[case] = organ

    def align(self) -> None:
        """Move the organs' centres to the group-wise ones, if those are asked for."""
        coarse = [organ.coarse for organ in self._kept.values() if organ.coarse]
        if not coarse:
            return
        for (case, organ), center in zip(self._kept.items(), common_centers(coarse), strict=True):
            point, reach = center_and_reach(organ.mask(), organ.affine, center)
            self._kept[case] = organ._replace(center_mm=point, reach_mm=reach, coarse=None)

    def in_bins(self, bins: int | None, *, num_workers: int) -> tuple[NDArray[np.float64], Cases]:
        """Frequencies ``(W_p, H_p, B)`` in [0, 1] (equation 1), and what each map contributed.

        Raises:
            PriorError: no map contained the organ.
        """
        organs, spacing_mm = self._found()
        reach = np.array([organ.reach_mm for organ in organs])
        # The tolerance keeps an organ of 10 voxels of 0.7 mm from filling 11.
        shapes = np.maximum(np.ceil(2 * reach / spacing_mm - 0.01), 1).astype(int)
        largest = shapes.max(0)
        in_bins = bin_weights(largest[2], largest[2] if bins is None else bins)

        total = np.zeros((largest[0], largest[1], in_bins.shape[0]), order="F")
        sampled = partial(_sampled, largest=largest, in_bins=in_bins, spacing_mm=spacing_mm)
        pairs, items = zip(organs, shapes, strict=True), []
        for frequency, case in map_in_order(sampled, pairs, num_workers=num_workers):
            total += frequency
            items.append(case)
        total /= len(organs)
        voxel_mm = spacing_mm * [1, 1, largest[2] / in_bins.shape[0]]
        cases = Cases(tuple(items), _three(total.shape), _three(voxel_mm.tolist()))
        return np.ascontiguousarray(np.clip(total, 0, 1)), cases

    def on_kernel_grid(self, *, num_workers: int) -> Cases:
        """Every map's organ on the grid of a density (`stipple_monai.priors.kernel`), not blurred.

        Raises:
            PriorError: no map contained the organ.
        """
        organs, _ = self._found()
        spacing_mm = np.full(3, GRID_MM) if self.given_mm is None else self.given_mm
        half = half_lengths(np.max([organ.reach_mm for organ in organs], axis=0), spacing_mm)
        sampled = partial(_on_grid, half=half, spacing_mm=spacing_mm)
        items = tuple(map_in_order(sampled, organs, num_workers=num_workers))
        return Cases(items, _three((2 * half + 1).tolist()), _three(spacing_mm.tolist()))

    def _found(self) -> tuple[list[_PackedOrgan], NDArray[np.float64]]:
        if self.spacing_mm is None or not self._kept:
            raise PriorError(
                f"No label map contains organ {self.organ}: give at least one labelled volume, or "
                "check the label value."
            )
        return list(self._kept.values()), self.spacing_mm


def _sampled(
    item: tuple[_PackedOrgan, NDArray[np.int_]],
    *,
    largest: NDArray[np.int_],
    in_bins: sparse.csr_array,
    spacing_mm: NDArray[np.float64],
) -> tuple[NDArray[np.float32], Case]:
    """One organ on a grid of its own shape, its centre moved to that of ``largest``, in bins."""
    organ, shape = item
    grid = np.diag([*spacing_mm, 1.0])
    grid[:3, 3] = organ.center_mm - spacing_mm * (shape - 1) / 2
    w, h, d = (about_center(n, m) for n, m in zip(shape.tolist(), largest.tolist(), strict=True))
    transform = np.linalg.inv(organ.affine) @ grid
    mask = organ.mask()
    frequency = interpolate(mask, transform, shape.tolist(), then=(w, h, in_bins @ d))
    return frequency, _case(frequency, organ, mask, exact=True)


def _on_grid(
    organ: _PackedOrgan, *, half: NDArray[np.int_], spacing_mm: NDArray[np.float64]
) -> Case:
    mask = organ.mask()
    first_mm = organ.center_mm - half * spacing_mm
    values = soft_mask(
        mask, organ.affine, first_mm=first_mm, shape=2 * half + 1, spacing_mm=spacing_mm
    )
    return _case(values, organ, mask, exact=False)


def _case(
    values: NDArray[np.float32], organ: _PackedOrgan, mask: NDArray[np.bool_], *, exact: bool
) -> Case:
    volume_ml = int(mask.sum()) * voxel_ml(organ.affine)
    return pack(values, exact=exact, volume_ml=volume_ml, name=organ.name)


def _three(values: Sequence[Number]) -> tuple[Number, Number, Number]:
    r, a, s = values
    return r, a, s


def about_center(length: int, longer: int) -> sparse.csr_array:
    """Sparse ``(longer, length)`` that moves a line of values to the middle of a longer one.

    Where one length is even and the other odd, their voxels do not coincide: each value is shared
    between the two places beside it, which is linear interpolation by half a voxel.

    Example:
        >>> about_center(2, 4) @ [1.0, 2.0]
        array([0., 1., 2., 0.])
        >>> about_center(2, 3) @ [1.0, 2.0]
        array([0.5, 1.5, 1. ])
    """
    start, end = (longer - length) // 2, (longer - length + 1) // 2
    lower, upper = (sparse.eye_array(longer, length, k=-k) for k in (start, end))
    return ((lower + upper) / 2).tocsr()


def bin_weights(slices: int, bins: int) -> sparse.csr_array:
    """Sparse ``(bins, slices)``: averages over the slices of each of equal parts (equation 1).

    A slice belongs to the bin that its centre falls in (the upper, between two); a bin that
    holds no centre takes the slice that contains the bin's own centre.

    Example:
        >>> bin_weights(3, 2) @ [1.0, 2.0, 3.0]
        array([1. , 2.5])
    """
    bin_of_slice = (2 * np.arange(slices) + 1) * bins // (2 * slices)
    slice_of_bin = (2 * np.arange(bins) + 1) * slices // (2 * bins)
    empty = np.setdiff1d(np.arange(bins), bin_of_slice)
    row = np.concatenate([bin_of_slice, empty])
    column = np.concatenate([np.arange(slices), slice_of_bin[empty]])
    # Slices in a bin are counted; an empty bin has the one that it takes.
    weight = 1 / np.bincount(row, minlength=bins)[row]
    return sparse.csr_array((weight, (row, column)), shape=(bins, slices))
