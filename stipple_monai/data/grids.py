"""Grids of scans and label maps: read with their voxels, and reconciled where they are the same.

Two grids are *provably the same* if their voxel centres are the same points in mm, however the
axes are stored: reversed or permuted. Then the label's voxels are reordered, and none is
interpolated. Anything else is an error here, since resampling a label is a decision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from stipple_monai.errors import DatasetError
from stipple_monai.files import whole_file
from stipple_monai.nifti import (
    NIFTI,
    UNREADABLE,
    corner_distance_mm,
    require_mm,
    require_real,
    with_one_geometry,
)

# MONAI installs it or not; NIfTI files do without
itk, _ = optional_import("itk")

OTHER_GRIDS = (".nrrd", ".mha", ".mhd")
"""Endings of files with a grid that ITK reads."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world of DICOM and ITK to that of NIfTI and MONAI."""

TOLERANCE_MM = 0.1
"""How far apart the same corner of two grids may be, as in `check_pair`."""


class Grid(NamedTuple):
    """A volume ``(W, H, D)``, or ``(W, H, D, C)`` of several channels, and voxel to RAS mm.

    ``notes`` are what a person should know of its header, each a sentence.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()


def read_grid(path: str | Path) -> Grid:
    """Read a NIfTI, NRRD or MetaImage file, its intensities scaled as its header says.

    Raises:
        DatasetError: the file is missing, unreadable, of another format, neither 3D nor 3D with
            channels, not in mm, or its affine is not invertible.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"`path` must be a file that exists, got {path}.")
    if path.name.lower().endswith(NIFTI):
        grid = _read_nifti(path)
    elif path.name.lower().endswith(OTHER_GRIDS):
        grid = _read_itk(path)
    else:
        raise DatasetError(
            f"`path` must be a file of {', '.join((*NIFTI, *OTHER_GRIDS))}, got {path}: convert it."
        )
    if grid.array.ndim not in (3, 4) or not grid.array.size:
        raise DatasetError(
            f"`path` must be a 3D volume, got shape {grid.array.shape} in {path}. Of a series over "
            "time, give one volume."
        )
    require_mm(grid.affine, str(path))
    return grid


def write_nifti(path: str | Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a volume in mm, whole or not at all; the same volume gives the same bytes.

    Args:
        path: ``….nii`` or ``….nii.gz``.
        array: ``(W, H, D)`` or ``(W, H, D, C)``.
        affine: voxel to RAS mm, ``(4, 4)``.
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with whole_file(path) as part:
        # nibabel puts neither name nor time into the gzip header
        nib.save(image, part)


def whole_numbers(array: NDArray[Any]) -> NDArray[Any]:
    """As int16 where all values are whole and fit, as float32 elsewhere.

    Example:
        >>> whole_numbers(np.array([1.0, -2.0])).dtype, whole_numbers(np.array([0.5])).dtype
        (dtype('int16'), dtype('float32'))
    """
    if array.dtype in (np.int16, np.uint8):
        return array
    fits = array.size and array.min() >= -(2**15) and array.max() < 2**15
    if fits and np.array_equal(array, np.rint(array)):
        return array.astype(np.int16)
    return array.astype(np.float32)


def onto_grid(
    label: Grid,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    *,
    name: str,
    part: bool = False,
) -> tuple[NDArray[Any], str | None]:
    """Reorder a label map's voxels to the scan's grid, if the two are provably the same.

    Args:
        label: label map ``(W, H, D)``.
        shape: of the scan.
        affine: of the scan, voxel to RAS mm.
        name: of the label, for the error.
        part: the label may be a box of the scan's grid, as a DICOM SEG is, with background around.

    Returns:
        The label map on the scan's grid; and, where voxels were moved, what was done.

    Raises:
        DatasetError: the grids are not provably the same.

    Example:
        >>> label = Grid(np.arange(6).reshape(3, 2, 1), np.diag([-1.0, 1, 1, 1]))
        >>> scan = np.array([[1.0, 0, 0, -2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        >>> array, done = onto_grid(label, (3, 2, 1), scan, name="label.nii.gz")
        >>> array[:, 0, 0].tolist(), done
        ([4, 2, 0], 'The label is stored with W reversed on the same grid; it was reordered.')
    """
    array, to_scan = label.array, np.linalg.inv(affine) @ label.affine
    turn = np.rint(to_scan)
    permutes = np.array_equal(np.abs(turn[:3, :3]).sum(0), [1, 1, 1]) and np.array_equal(
        np.abs(turn[:3, :3]).sum(1), [1, 1, 1]
    )
    off_mm = corner_distance_mm(label.affine, affine @ turn, array.shape)
    if not permutes or not off_mm <= TOLERANCE_MM:
        raise _grid_error(label, shape, affine, name)
    source = [int(np.argmax(np.abs(turn[axis, :3]))) for axis in range(3)]
    back = tuple(axis for axis in range(3) if turn[axis, source[axis]] < 0)
    array = np.flip(array.transpose(source), back)
    start = [
        int(turn[axis, 3]) - (array.shape[axis] - 1 if axis in back else 0) for axis in range(3)
    ]
    if start == [0, 0, 0] and array.shape == tuple(shape):
        moved = "permuted axes" if source != [0, 1, 2] else f"{axis_names(back)} reversed"
        if not back and source == [0, 1, 2]:
            return array, None
        return array, (f"The label is stored with {moved} on the same grid; it was reordered.")
    ends = [first + length for first, length in zip(start, array.shape, strict=True)]
    if not part or min(start) < 0 or any(e > n for e, n in zip(ends, shape, strict=True)):
        raise _grid_error(label, shape, affine, name)
    whole = np.zeros(shape, array.dtype)
    whole[tuple(slice(a, b) for a, b in zip(start, ends, strict=True))] = array
    return (
        whole,
        f"The label covers {array.shape} voxels of the scan's grid; the rest is background.",
    )


def axis_names(axes: tuple[int, ...] | list[int]) -> str:
    """Array axes by their letters.

    Example:
        >>> axis_names((0, 2))
        'W and D'
    """
    return " and ".join("WHD"[axis] for axis in axes)


def _grid_error(
    label: Grid, shape: tuple[int, ...], affine: NDArray[np.float64], name: str
) -> DatasetError:
    if label.array.shape != tuple(shape):
        return DatasetError(
            f"`label` must lie on the scan's grid of shape {tuple(shape)}, got shape "
            f"{label.array.shape} in {name}: give the label of this scan, or resample it."
        )
    off_mm = corner_distance_mm(label.affine, affine, shape)
    return DatasetError(
        f"`label` must lie on the scan's grid, got corners that are {off_mm:.4g} mm apart in "
        f"{name}, and not the same grid stored otherwise: resample it, or, if its voxels are known "
        "to be those of the scan, say so with `ingest --ignore-label-header`."
    )


def _read_nifti(path: Path) -> Grid:
    try:
        file = nib.load(path)
        if not isinstance(file, nib.Nifti1Image):
            raise ValueError("of another format")
        require_real(file, str(path))
        raw = np.asanyarray(file.dataobj)
        array = raw if raw.dtype.kind in "iu" else raw.astype(np.float32)
    except DatasetError:
        raise
    except (*UNREADABLE, MemoryError) as error:
        raise DatasetError(
            f"`path` must be a whole NIfTI file, got {path}, which cannot be read: it may be of "
            "another format, or its copy may have been cut short."
        ) from error
    settled, notes = with_one_geometry(file, str(path))
    # an axis of one voxel at the end is no channel
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Grid(array, np.asarray(settled.affine, np.float64), tuple(notes))


def _require_scalars(path: Path) -> None:
    """Raise for colours, vectors and what is not 3D, of which ITK reads some and not others."""
    reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None:
        return
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    axes, numbers = reader.GetNumberOfDimensions(), reader.GetNumberOfComponents()
    if axes != 3 or numbers != 1:
        raise DatasetError(
            f"`path` must be a 3D volume of one real number a voxel, got {axes} axes and {numbers} "
            f"a voxel in {path}: export it anew, channels as files of their own."
        )


def _read_itk(path: Path) -> Grid:
    try:
        _require_scalars(path)
        image = itk.imread(str(path))
        array = itk.array_from_image(image)
    except DatasetError:
        raise
    except (RuntimeError, TypeError, KeyError) as error:
        raise DatasetError(
            f"`path` must be a whole volume, got {path}, which cannot be read: {str(error)[-80:]}"
        ) from error
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # ITK counts slices, rows, columns in arrays; its world is LPS
    return Grid(array.transpose(2, 1, 0), LPS_TO_RAS @ affine)
