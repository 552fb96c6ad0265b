"""One reader for training, inference and ingest: NIfTI, volumes of ITK and DICOM series."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import ImageReader, NibabelReader
from monai.transforms import LoadImaged, Spacingd
from monai.utils import ensure_tuple

from stipple_monai.data import OTHER_GRIDS, read_grid, whole_numbers
from stipple_monai.errors import DatasetError
from stipple_monai.ingest import open_series, read_series
from stipple_monai.nifti import NIFTI, UNREADABLE, with_one_geometry

_UNLOADABLE = (*UNREADABLE, RuntimeError, MemoryError)


class ScanReader(NibabelReader):
    """MONAI's reader of NIfTI with the geometry that all commands here agree on.

    The folder of a DICOM series is read as ``ingest`` reads it: every slice by its own slope and
    intercept, at the distance that their positions say.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all of one or several files are of the kinds that are read here."""
        return all(
            Path(name).is_dir() or str(name).lower().endswith((*NIFTI, *OTHER_GRIDS))
            for name in ensure_tuple(filename)
        )

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Open one or several files or series.

        Raises:
            DatasetError: a file is not in mm or contradicts itself, or a series is no volume.
        """
        self.filenames = ensure_tuple(data)
        images = [_open(Path(name)) for name in self.filenames]
        return images if len(images) > 1 else images[0]


def _open(path: Path) -> Any:
    if path.is_dir():
        series = open_series(path)
        return nib.Nifti1Image(read_series(series)[0], series.affine)
    if path.name.lower().endswith(NIFTI):
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise DatasetError(f"`path` must be a NIfTI file, got another format in {path}.")
        return with_one_geometry(image, str(path))[0]
    grid = read_grid(path)
    return nib.Nifti1Image(whole_numbers(grid.array), grid.affine)


class LoadScand(LoadImaged):
    """MONAI's loader with the geometry of `ScanReader` and errors that name the file.

    Where a ``reader`` is given, it is MONAI's that reads. Data whose keys hold tensors or arrays
    already are left as they are: MONAI Deploy hands over scans in memory, and takes out of a
    pipeline only loaders that are named ``LoadImage…``.

    Args:
        *args: as for ``monai.transforms.LoadImaged``.
        **kwargs: likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given = (args[1] if len(args) > 1 else kwargs.get("reader")) is not None

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, Any]:
        """Load the files of ``data``, or raise :class:`DatasetError`."""
        found = [data[key] for key in self.key_iterator(dict(data))]
        if found and all(isinstance(scan, (torch.Tensor, np.ndarray)) for scan in found):
            return dict(data)
        ours = ScanReader()
        if reader is None and not self._given and all(map(ours.verify_suffix, found)):
            reader = ours
        try:
            return super().__call__(data, reader)
        except _UNLOADABLE as error:
            for key in self.key_iterator(dict(data)):
                try:
                    self._loader(data[key], reader)
                except DatasetError:
                    raise
                except _UNLOADABLE as fault:
                    said = f" ({fault})" if str(fault) else ""
                    raise DatasetError(
                        f"`{key}` must be a scan that MONAI can read, got {data[key]}: "
                        f"{type(fault).__name__}{said}. It may be of another format, or its copy "
                        "may have been cut short."
                    ) from error
            raise


class SpacingScand(Spacingd):
    """MONAI's ``Spacingd`` for data that has other entries beside the scan.

    ``Spacingd`` takes every key that begins with the scan's own and ``_`` for a dictionary of
    metadata and updates it: a path under ``image_path``, as MONAI Label passes it, stops it. Here
    such entries stay as they are.

    Args:
        *args: as for ``monai.transforms.Spacingd``.
        **kwargs: likewise.

    Example:
        >>> from monai.data import MetaTensor
        >>> scan = MetaTensor(torch.rand(1, 5, 5, 5), meta={"filename_or_obj": "a.nii.gz"})
        >>> data = {"image": scan, "image_path": "a.nii.gz"}
        >>> result = SpacingScand("image", pixdim=(2.0, 2.0, 2.0))(data)
        >>> result["image"].shape, result["image_path"]
        (torch.Size([1, 3, 3, 3]), 'a.nii.gz')
    """

    def __call__(
        self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None
    ) -> dict[Hashable, torch.Tensor]:
        """Resample the scans in a copy of ``data``."""
        scans = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(scans, lazy)}


LoadScanD = LoadScanDict = LoadScand
SpacingScanD = SpacingScanDict = SpacingScand
