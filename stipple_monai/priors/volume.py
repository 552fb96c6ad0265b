"""A volume that is given, in memory or as a file.

What has voxels and an affine is a `Volume`: functions that take one take the path of a NIfTI file
as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from stipple_monai.errors import DatasetError
from stipple_monai.nifti import UNREADABLE, with_one_geometry

Volume: TypeAlias = MetaTensor | str | os.PathLike[str]


def open_volume(volume: Volume) -> MetaTensor:
    """A volume in memory as it is, or one that is read.

    Args:
        volume: ``(C, W, H, D)``, or a NIfTI file, whose fourth axis becomes ``C``.

    Returns:
        The volume; of a file float32, with ``filename_or_obj`` in its metadata.

    Raises:
        DatasetError: there is no such file, or it cannot be read as NIfTI of three or four axes.
    """
    if not isinstance(volume, str | os.PathLike):
        return volume
    name = os.fspath(volume)
    if not Path(name).is_file():
        raise DatasetError(f"A volume must be a MetaTensor or a NIfTI file, got {name}: no file.")
    try:
        image = nib.load(name)
        values = np.asanyarray(image.dataobj)
        image = with_one_geometry(image, name)[0]
    except DatasetError:
        raise
    except (*UNREADABLE, TypeError) as error:
        raise DatasetError(
            f"{name} cannot be read as NIfTI: {type(error).__name__}: {error}"
        ) from error
    if values.ndim not in (3, 4):
        raise DatasetError(f"{name} must have the axes W H D, or W H D C, got {values.shape}.")
    values = values.reshape(*values.shape[:3], -1).transpose(3, 0, 1, 2)
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    affine = torch.from_numpy(np.asarray(image.affine, np.float64))
    return MetaTensor(tensor, affine=affine, meta={"filename_or_obj": name})
