"""Results on the scan's own grid: the same shape, affine and units, in a file that is whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter
from monai.utils import convert_to_numpy
from numpy.typing import NDArray

from stipple_monai.errors import DatasetError
from stipple_monai.files import whole_file
from stipple_monai.nifti import NIFTI

# What a header says about where its voxels lie. `pixdim` is copied by itself, since it also
# counts what is not spatial.
_GRID_FIELDS = (
    "xyzt_units",
    *("qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)


class GridWriter(NibabelWriter):
    """MONAI's writer for ``SaveImaged(writer=…)`` that changes nothing of the scan's grid.

    MONAI writes the affine that its transforms have carried through and inverted, which rounding
    has touched; it drops the units, one of qform and sform, and a last axis of one voxel, and a
    run that is killed leaves half a file. Here what the scan's header says of its grid is copied
    bit by bit.

    The prediction must lie on the scan's grid already (``Invertd``); nothing is resampled.
    """

    def set_data_array(
        self,
        data_array: Any,
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,
        **kwargs: Any,
    ) -> None:
        """Take a volume, ``(C, W, H, D)``; its last axis stays, whatever its length."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)

    def set_metadata(
        self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any
    ) -> None:
        """Take the metadata; of these the scan's file and, for DICOM, its affine."""
        self.metadata = dict(meta_dict or {})

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        """Write ``(W, H, D)``, or ``(W, H, D, C)`` of several channels, whole or not at all.

        Raises:
            DatasetError: the volume has another shape than the scan.
        """
        values = convert_to_numpy(self.data_obj, dtype=self.output_dtype)
        values = values[..., 0] if values.shape[-1] == 1 else values
        image = on_grid_of(self.metadata["filename_or_obj"], values, self.metadata)
        with whole_file(filename) as part:
            nib.save(image, part)


def on_grid_of(
    scan: str | os.PathLike[str], values: NDArray[Any], metadata: Mapping[str, Any]
) -> nib.Nifti1Image:
    """Make an image with a scan's grid.

    Args:
        scan: a NIfTI file, or what has another header.
        values: ``(W, H, D)`` or ``(W, H, D, C)``.
        metadata: of the scan as MONAI loaded it; its ``original_affine``, RAS mm, is that of a
            scan which is no NIfTI file.

    Raises:
        DatasetError: ``values`` have another shape than the scan.
    """
    if not str(scan).lower().endswith(NIFTI) or Path(scan).is_dir():
        affine = np.asarray(metadata["original_affine"], dtype=np.float64)
        image = nib.Nifti1Image(values, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        return image
    source = nib.load(scan)
    if values.shape[:3] != source.shape[:3]:
        raise DatasetError(
            f"A result must have the scan's shape {source.shape[:3]}, got {values.shape[:3]} for "
            f"{scan}: invert the transforms of the scan before saving."
        )
    double = isinstance(source.header, nib.Nifti2Header)
    image = (nib.Nifti2Image if double else nib.Nifti1Image)(values, None)
    for field in _GRID_FIELDS:
        image.header[field] = source.header[field]
    image.header["pixdim"][:4] = source.header["pixdim"][:4]
    # Without it nibabel would write the affine that it was made with over these.
    return type(image)(values, None, image.header)
