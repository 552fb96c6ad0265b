"""One reader for training, inference and ingest: NIfTI, volumes of ITK and DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.data import NibabelReader
from monai.utils import ensure_tuple

from stipple_monai.data import NIFTI, OTHER_GRIDS, read_grid, whole_numbers
from stipple_monai.errors import DatasetError
from stipple_monai.ingest import open_series, read_series
from stipple_monai.nifti import with_one_geometry


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
