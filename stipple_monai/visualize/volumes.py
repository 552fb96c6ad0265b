"""Volumes on RAS axes and one grid, before a plane of them is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from stipple_monai.data import TOLERANCE_MM
from stipple_monai.errors import DatasetError
from stipple_monai.nifti import corner_distance_mm, is_invertible
from stipple_monai.priors import world_point


def on_one_grid(**volumes: MetaTensor | None) -> dict[str, MetaTensor]:
    """Turn volumes to RAS axes and check that they share one grid.

    Args:
        **volumes: ``(C, W, H, D)`` of any orientation by their names; ``None`` is left out.
            ``C`` is 1, save that of one named ``prior``.

    Returns:
        The volumes on the CPU.

    Raises:
        DatasetError: a volume is no MetaTensor, has other axes, no invertible affine, values that
            are not finite, or another grid than the first.
    """
    given = {name: volume for name, volume in volumes.items() if volume is not None}
    turned = {name: _to_ras(name, volume) for name, volume in given.items()}
    first, reference = next(iter(turned.items()))
    for name, volume in turned.items():
        if volume.shape[1:] != reference.shape[1:]:
            raise DatasetError(
                f"`{name}` must have the shape of `{first}`, {tuple(reference.shape[1:])} on RAS "
                f"axes, got {tuple(volume.shape[1:])}: resample it to the grid of `{first}`."
            )
        apart_mm = corner_distance_mm(
            volume.affine.numpy(), reference.affine.numpy(), tuple(volume.shape[1:])
        )
        if not apart_mm <= TOLERANCE_MM:
            raise DatasetError(
                f"`{name}` must lie where `{first}` lies, but their grids are {apart_mm:.3g} mm "
                f"apart at a corner: resample it to the grid of `{first}`."
            )
    return turned


def voxel_of(volume: MetaTensor, position_mm: Sequence[float] | torch.Tensor) -> NDArray[Any]:
    """The voxel coordinates ``(3,)``, whole at voxels' centres, of a world point in RAS mm.

    Raises:
        PositionError: it is not three finite numbers.
    """
    to_voxel = np.linalg.inv(volume.affine.cpu().double().numpy())
    return apply_affine(to_voxel, world_point(position_mm).numpy())


def _to_ras(name: str, volume: MetaTensor) -> MetaTensor:
    if not isinstance(volume, MetaTensor):
        raise DatasetError(
            f"`{name}` must be a MetaTensor, whose affine says where it lies, got {type(volume)}."
        )
    if volume.ndim != 4 or (len(volume) != 1 and name != "prior") or not volume.numel():
        raise DatasetError(
            f"`{name}` must have the shape (1, W, H, D), got {tuple(volume.shape)}: give one "
            "channel of one volume, and a slice as W × H × 1."
        )
    affine = volume.affine.detach().cpu().double()
    if not is_invertible(affine):
        raise DatasetError(
            f"`{name}` must have an invertible 4 × 4 affine, got {affine.tolist()}: "
            "correct its header."
        )
    if not bool(torch.isfinite(volume).all()):
        raise DatasetError(f"`{name}` must be finite, got NaN or infinity: correct the volume.")
    plain = MetaTensor(volume.detach().cpu().as_tensor(), affine=affine)
    return Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(plain)
