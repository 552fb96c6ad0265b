"""One organ in a label map: which voxels, where, and how far it reaches.

Space
    World coordinates in mm, RAS+, as a NIfTI or ``MetaTensor`` affine gives them: the first axis
    grows to the patient's right (R), the second to anterior (A), the third to superior (S).
    Array axes are ``W H D``.
Position
    The world point of an organ's centre in one scan.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from scipy import ndimage

from stipple_monai.errors import DatasetError, PositionError, PriorError

Center: TypeAlias = Literal["bbox", "mass"]
Label: TypeAlias = MetaTensor | str | os.PathLike[str]

# What nibabel lets through when a file is truncated, damaged or of another kind.
UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    AttributeError,
    zlib.error,
)


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
    known_center(center)
    label_map = read_label(label)
    found = organ_mask(label_map, organ)
    if found is None:
        raise PositionError(
            f"{label_map.name} does not contain organ {organ}, so it has no position there: skip "
            "the volume or give the position."
        )
    return torch.from_numpy(center_and_reach(*found, center)[0])


class LabelMap(NamedTuple):
    """A label map that has been read.

    Attributes:
        array: ``(W, H, D)``.
        affine: voxel index to world, RAS+ mm, ``(4, 4)`` float64.
        name: its file, for messages.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    name: str


def read_label(label: Label) -> LabelMap:
    """Give a label map as an array, or raise :class:`DatasetError`."""
    if isinstance(label, MetaTensor):
        name = str(label.meta.get("filename_or_obj", "the label map"))
        array = label.detach().cpu().numpy()
        affine = label.affine.cpu().numpy().astype(np.float64)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
    elif isinstance(label, str | os.PathLike):
        name = str(label)
        if not Path(label).is_file():
            raise DatasetError(f"There is no label map at {name}.")
        try:
            image = nib.load(label)
            array, affine = np.asanyarray(image.dataobj), image.affine
        except UNREADABLE as error:
            raise DatasetError(
                f"{name} cannot be read as NIfTI: {type(error).__name__}: {error}"
            ) from error
        array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    else:
        raise DatasetError(f"A label map must be a MetaTensor or a file, got {type(label)}.")
    if array.ndim != 3:
        raise DatasetError(f"{name} must be one 3D label map, got the shape {array.shape}.")
    if not is_invertible(affine):
        raise DatasetError(
            f"{name} must have an invertible 4 × 4 affine, got {affine.tolist()}: "
            "correct its header."
        )
    return LabelMap(array, affine, name)


def organ_mask(label: LabelMap, organ: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """The organ's voxels, cropped to its bounding box, with the crop's affine, if there are any."""
    mask = label.array == organ
    found = ndimage.find_objects(mask.view(np.uint8))
    if not found:
        return None
    crop = label.affine.copy()
    crop[:3, 3] = label.affine[:3] @ [*(s.start for s in found[0]), 1]
    # A copy, because a view would keep the whole map in memory.
    return mask[found[0]].copy(), crop


def is_invertible(affine: NDArray[Any] | torch.Tensor) -> bool:
    """Whether an affine is a finite 4 × 4 matrix that leads back from the world to voxels."""
    matrix = np.asarray(affine, dtype=np.float64)
    usable = matrix.shape == (4, 4) and bool(np.isfinite(matrix).all())
    return usable and float(np.linalg.det(matrix[:3, :3])) != 0


def center_and_reach(
    mask: NDArray[np.bool_], affine: NDArray[np.float64], center: Center
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The organ's centre in mm, and how far from it the organ reaches along R, A and S."""
    points = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    low, high = points.min(0), points.max(0)
    # Exact where the axes are aligned, whatever their order.
    voxel = np.linalg.norm(affine[:3, :3], axis=1)
    point = (low + high) / 2 if center == "bbox" else points.mean(0)
    return point, np.maximum(point - low, high - point) + voxel / 2


def spacing_along_ras(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel size of each array axis, in the order of the world axes they lie nearest to."""
    spacing = np.empty(3)
    spacing[nib.io_orientation(affine)[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
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
    if center not in ("bbox", "mass"):
        raise PriorError(f"`center` must be 'bbox' or 'mass', got {center!r}.")
    return center
