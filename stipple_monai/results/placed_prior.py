"""A prior on a scan's grid, as a file that lies over the scan in any viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from stipple_monai.errors import DatasetError, PositionError
from stipple_monai.files import whole_file
from stipple_monai.nifti import NIFTI, UNREADABLE
from stipple_monai.ownership import claim
from stipple_monai.positioning import measure_position
from stipple_monai.priors import Mode, SpatialPrior
from stipple_monai.results.grid_writer import on_grid_of
from stipple_monai.transforms import ScanReader


def place_prior(
    prior: str | Path,
    out: str | Path,
    *,
    like: str | Path,
    label: str | Path | None = None,
    position_mm: Sequence[float] | None = None,
    mode: Mode = "auto",
) -> Tensor:
    """Write a prior on a scan's grid.

    Args:
        prior: its file.
        out: ``….nii`` or ``….nii.gz``.
        like: the scan, a file or the folder of a DICOM series.
        label: label map of the scan, which tells where the organ is.
        position_mm: or the world point of the organ's centre, RAS mm.
        mode: of placing, see :meth:`~stipple_monai.SpatialPrior.place`.

    Returns:
        The position, ``(3,)``, RAS mm.

    Raises:
        PriorError: ``prior`` is none.
        PositionError: not one of ``label`` and ``position_mm`` is given, the label does not
            contain the organ, or the prior would lie outside the scan.
        DatasetError: the scan or the label cannot be read, or ``out`` is not this package's.
    """
    out, like = Path(out), Path(like)
    if not out.name.endswith(NIFTI):
        raise DatasetError(f"`out` must end in .nii or .nii.gz, got {out}.")
    if (label is None) == (position_mm is None):
        raise PositionError("One of `label` and `position_mm` must be given, to tell the position.")
    found = SpatialPrior.load(prior)
    shape, affine = _grid(like)
    point = torch.as_tensor(
        measure_position(str(label), found) if position_mm is None else position_mm,
        dtype=torch.float64,
    )
    scan = MetaTensor(torch.zeros(1, 1, 1, 1).expand(1, *shape), affine=torch.as_tensor(affine))
    placed = found.place(point, scan, mode=mode).as_tensor()[0]
    if not placed.any():
        raise PositionError(
            f"The prior must reach into the scan, got nothing of it in {like} with its centre at "
            f"{', '.join(f'{x:.1f}' for x in point.tolist())} mm: positions are R, A and S."
        )
    claim(out.absolute().parent, [out], inputs=[p for p in (prior, like, label) if p is not None])
    with whole_file(out) as part:
        nib.save(on_grid_of(like, placed.numpy(), {"original_affine": affine}), part)
    return point


def _grid(path: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    if not path.exists():
        raise DatasetError(f"`like` must be a scan that exists, got {path}.")
    reader = ScanReader()
    if not reader.verify_suffix(path):
        raise DatasetError(f"`like` must be a NIfTI file or a DICOM series, got {path}.")
    try:
        image = reader.read(path)
    except UNREADABLE as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"`like` must be a whole scan, got {path}: {error}") from error
    if len(image.shape) < 3:
        raise DatasetError(f"`like` must be 3D, got the shape {image.shape} in {path}.")
    w, h, d = image.shape[:3]
    return (w, h, d), np.asarray(image.affine, np.float64)
