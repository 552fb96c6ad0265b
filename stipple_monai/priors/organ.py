"""One organ in a label map: which voxels, where, and how far it reaches.

Space
    World coordinates in mm, RAS+, as a NIfTI or ``MetaTensor`` affine gives them: the first axis
    grows to the patient's right (R), the second to anterior (A), the third to superior (S).
    Array axes are ``W H D``.
Position
    The world point of an organ's centre in one scan.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.label_values import whole_labels
from stipple_monai.nifti import (
    RAS_REMEDY,
    UNREADABLE,
    is_invertible,
    leads_to_lps,
    with_one_geometry,
)
from stipple_monai.spatial import Extent, scan_extent

Center: TypeAlias = Literal["bbox", "mass", "groupwise"]
Label: TypeAlias = MetaTensor | str | os.PathLike[str]
Crop: TypeAlias = tuple[NDArray[np.bool_], NDArray[np.float64]]

UNNAMED = "the label map"
"""What a map in memory is called that came from no file."""

# A megabyte of 8-bit labels.
_SLAB_VOXELS = 2**20


def organ_position(label: Label, *, organ: int = 1, center: Center = "bbox") -> torch.Tensor:
    """World point of an organ's centre.

    Args:
        label: label map, ``(1, W, H, D)`` or ``(W, H, D)``, or a NIfTI file of one.
        organ: label value of the organ.
        center: ``"bbox"``, the middle of the organ's bounding box along R, A and S, or
            ``"mass"``, the mean of its voxels.

    Returns:
        ``(3,)`` float64, RAS mm.

    Raises:
        PositionError: the map does not contain the organ.
        DatasetError: the map cannot be read, is not 3D or has no invertible affine.
        PriorError: ``center`` is unknown.

    Example:
        >>> label = torch.zeros(1, 10, 10, 10)
        >>> label[0, 2:5, 6, 1:3] = 1
        >>> organ_position(MetaTensor(label, affine=torch.diag(torch.tensor([2.0, 2, 5, 1]))))
        tensor([ 6.0000, 12.0000,  7.5000], dtype=torch.float64)
    """
    if known_center(center) == "groupwise":
        raise PriorError(
            "`center` must be 'bbox' or 'mass' for a label map by itself, got 'groupwise': use "
            "`measure_position`, which compares it with the prior."
        )
    crop = organ_crop(label, organ)
    return torch.from_numpy(center_and_reach(*crop, center)[0])


def organ_crop(label: Label, organ: int) -> Crop:
    """The organ's voxels, see :func:`organ_masks`, or :class:`PositionError`."""
    label_map = open_label(label)
    (found,) = organ_masks(label_map, [organ])
    if found is None:
        raise PositionError(
            f"{label_map.name} does not contain organ {organ}, so it has no position there: skip "
            "the volume or give the position."
        )
    return found


class LabelMap(NamedTuple):
    """A label map that has been opened; :func:`organ_masks` reads it.

    Attributes:
        array: ``(W, H, D)`` in memory; or what nibabel reads from a file, perhaps ``(W, H, D, 1)``,
            piece by piece, when it is indexed.
        affine: voxel index to world, RAS+ mm, ``(4, 4)`` float64.
        name: its file, for messages.
        extent: the grid of its scan, of which a map in memory may be a part.
    """

    array: Any
    affine: NDArray[np.float64]
    name: str
    extent: Extent


def open_label(label: Label) -> LabelMap:
    """Open a label map, or raise :class:`DatasetError`."""
    array: Any
    if isinstance(label, MetaTensor):
        name = str(label.meta.get("filename_or_obj", UNNAMED))
        if leads_to_lps(label):
            raise DatasetError(f"{name} must have an affine to RAS mm, got LPS: {RAS_REMEDY}.")
        values = label.detach().cpu()
        # a type that numpy has not; its whole numbers up to 256 are exact
        array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        affine = label.affine.cpu().numpy().astype(np.float64)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
    elif isinstance(label, str | os.PathLike):
        name = str(label)
        if not Path(label).is_file():
            raise DatasetError(f"There is no label map at {name}.")
        with _reading_errors(name):
            # Kept open, because a compressed file cannot be entered in the middle.
            image = nib.load(label, keep_file_open=True)
            array = image.dataobj
        affine = with_one_geometry(image, name)[0].affine
    else:
        raise DatasetError(f"A label map must be a MetaTensor or a file, got {type(label)}.")
    # channels are a MetaTensor's first axis: of two and a single slice, none is to be dropped
    series = not isinstance(label, MetaTensor) and tuple(array.shape[3:]) == (1,)
    if len(array.shape) != 3 and not series:
        raise DatasetError(f"{name} must be one 3D label map, got the shape {array.shape}.")
    if np.dtype(array.dtype).kind not in "buif":
        raise DatasetError(f"{name} must hold whole numbers, got {array.dtype}: export it anew.")
    if not is_invertible(affine):
        raise DatasetError(
            f"{name} must have an invertible 4 × 4 affine, got {affine.tolist()}: "
            "correct its header."
        )
    own = Extent(affine, tuple(array.shape[:3]))
    return LabelMap(
        array, affine, name, scan_extent(label) if isinstance(label, MetaTensor) else own
    )


@contextmanager
def _reading_errors(name: str) -> Iterator[None]:
    try:
        yield
    # A TypeError: the file is of a kind that has no voxels.
    except (*UNREADABLE, TypeError) as error:
        raise DatasetError(
            f"{name} cannot be read as NIfTI: {type(error).__name__}: {error}"
        ) from error


def organ_masks(label: LabelMap, organs: Sequence[int]) -> list[Crop | None]:
    """Each organ's voxels, cropped to its bounding box, with the crop's affine.

    The map is read once, in slabs that fit a processor's cache: a file is never in memory as a
    whole, which takes longer than to decompress it.

    Returns:
        For each of ``organs`` the box ``(w, h, d)`` and its affine, or ``None`` where the map
        does not contain it.

    Raises:
        DatasetError: the map cannot be read.
    """
    parts: list[list[tuple[NDArray[np.int_], NDArray[np.bool_]]]] = [[] for _ in organs]
    for start, slab in _slabs(label):
        if 0 not in organs:
            box = _bounding_box(slab)
            start, slab = start + [s.start for s in box], slab[box]
        if not slab.size:
            continue
        for organ, its_parts in zip(organs, parts, strict=True):
            mask = slab == organ
            box = _bounding_box(mask)
            if mask[box].size:
                its_parts.append((start + [s.start for s in box], mask[box].copy(order="K")))
    return [_joined(p, label.affine) if p else None for p in parts]


def _slabs(label: LabelMap) -> Iterator[tuple[NDArray[np.int_], NDArray[Any]]]:
    """The map in slabs across the axis along which neighbours lie farthest apart in memory."""
    array, shape = label.array, label.array.shape
    strides = np.abs(getattr(array, "strides", (0, 0, 1)))
    axis = int(np.argmax(strides[:3]))
    thickness = max(1, _SLAB_VOXELS * shape[axis] // max(1, math.prod(shape)))
    for first in range(0, shape[axis], thickness):
        index: list[Any] = [slice(None)] * 3 + [0] * (len(shape) - 3)
        index[axis] = slice(first, first + thickness)
        start = np.zeros(3, int)
        start[axis] = first
        with _reading_errors(label.name):
            slab = np.asanyarray(array[tuple(index)])
        yield start, whole_labels(slab, label.name)


def _bounding_box(array: NDArray[Any]) -> tuple[slice, slice, slice]:
    """The smallest box around all that is not 0; empty if there is nothing."""
    # Of numbers without sign the maximum tells the same, several times faster.
    some = np.max if array.dtype.kind in "bu" else np.any
    plane = some(array, axis=2)
    if not plane.any():
        return (slice(0, 0),) * 3
    w, h = _extent(some(plane, axis=1)), _extent(some(plane, axis=0))
    return w, h, _extent(some(array[w, h], axis=(0, 1)))


def _extent(line: NDArray[Any]) -> slice:
    found = np.flatnonzero(line)
    return slice(int(found[0]), int(found[-1]) + 1)


def _joined(
    parts: Sequence[tuple[NDArray[np.int_], NDArray[np.bool_]]], affine: NDArray[np.float64]
) -> Crop:
    first = np.min([start for start, _ in parts], axis=0)
    shape = np.max([start + mask.shape for start, mask in parts], axis=0) - first
    whole = np.zeros(shape, bool, order="F")
    for start, mask in parts:
        whole[tuple(slice(a, a + n) for a, n in zip(start - first, mask.shape, strict=True))] = mask
    crop = affine.copy()
    crop[:3, 3] = affine[:3] @ [*first, 1]
    return whole, crop


def center_and_reach(
    mask: NDArray[np.bool_], affine: NDArray[np.float64], center: Center | NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The organ's centre in mm, and how far from it the organ reaches along R, A and S.

    Args:
        mask: the organ's voxels, cropped to its bounding box.
        affine: of ``mask``.
        center: see :func:`organ_position`; or the centre itself, ``(3,)``.
    """
    # Along the axes the corners of the box are enough.
    straight = np.count_nonzero(affine[:3, :3]) == 3
    voxels = np.array([(0, 0, 0), mask.shape]) - [[0], [1]] if straight else _outermost(mask)
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    low, high = points.min(0), points.max(0)
    # Exact where the axes are aligned, whatever their order.
    voxel = np.linalg.norm(affine[:3, :3], axis=1)
    if not isinstance(center, str):
        point = center
    elif center == "bbox":
        point = (low + high) / 2
    else:
        point = affine[:3] @ [*_mean_index(mask), 1]
    return point, np.maximum(point - low, high - point) + voxel / 2


def _outermost(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The first and the last voxel of every row: no other is the farthest in any direction."""
    first = mask.argmax(0)
    last = len(mask) - 1 - mask[::-1].argmax(0)
    rows = np.nonzero(mask.any(0))
    return np.concatenate([np.stack([end[rows], *rows], -1) for end in (first, last)])


def _mean_index(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    plane = mask.sum(axis=2)
    lines = [plane.sum(axis=1), plane.sum(axis=0), mask.sum(axis=(0, 1))]
    return np.array([line @ np.arange(len(line)) for line in lines]) / plane.sum()


def spacing_along_ras(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel size of each array axis, in the order of the world axes they lie nearest to."""
    spacing = np.empty(3)
    spacing[nib.io_orientation(affine)[:, 0].astype(int)] = voxel_sizes(affine)
    return spacing


def world_point(position_mm: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Give a position as ``(3,)`` float64 on the CPU, or raise :class:`PositionError`."""
    try:
        point = torch.as_tensor(position_mm, dtype=torch.float64, device="cpu").reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        point = torch.empty(0)
    if point.numel() != 3 or not bool(torch.isfinite(point).all()):
        raise PositionError(
            f"`position_mm` must be three finite numbers (RAS mm), got {position_mm}."
        )
    return point


def known_center(center: Center) -> Center:
    """Give ``center`` back, or raise :class:`PriorError`."""
    if center not in ("bbox", "mass", "groupwise"):
        raise PriorError(f"`center` must be 'bbox', 'mass' or 'groupwise', got {center!r}.")
    return center


def three_lengths(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Give a spacing as three floats, or raise :class:`PriorError`."""
    try:
        values = [float(s) for s in spacing_mm]
    except (TypeError, ValueError):
        values = []
    if len(values) != 3 or not all(0 < v < float("inf") for v in values):
        raise PriorError(
            f"`spacing_mm` must be three positive lengths, got {values or spacing_mm!r}: one each "
            "along R, A and S."
        )
    return values[0], values[1], values[2]


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, which neither 2.5 nor ``True`` is."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
