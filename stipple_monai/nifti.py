"""What a NIfTI file says of its geometry, decided in one place for every reader.

A header tells three times where its voxels lie: the *sform* is an affine, the *qform* a rotation
and an origin, *pixdim* the sizes of a voxel, which the qform takes. Tools that write one of them
and leave the others make headers that contradict themselves. Whoever reads a file here gets what
MONAI's reader decides, so that priors, positions, volumes and training agree; what contradicts
itself is noted, or refused where nothing tells which is right.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from stipple_monai.errors import DatasetError

UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    AttributeError,
    KeyError,
    zlib.error,
)
"""What nibabel lets through when a file is truncated, damaged or of another kind."""

NIFTI = (".nii", ".nii.gz")
"""Endings of NIfTI files."""

VOXEL_MM = (0.01, 200.0)
"""Sizes beyond which a voxel is not in mm: a scan in metres has voxels of 0.0008 to 0.005."""

_SAME_MM = 0.1


RAS_REMEDY = "load it with `affine_lps_to_ras=True`, as MONAI does by default"
"""Of errors about a volume whose affine `leads_to_lps`."""


def is_invertible(affine: Any) -> bool:
    """Whether an affine is a finite 4 × 4 matrix that leads back from the world to voxels.

    Example:
        >>> is_invertible(np.eye(4)), is_invertible(np.eye(3)), is_invertible(np.zeros((4, 4)))
        (True, False, False)
    """
    matrix = np.asarray(affine, dtype=np.float64)
    usable = matrix.shape == (4, 4) and bool(np.isfinite(matrix).all())
    return usable and float(np.linalg.det(matrix[:3, :3])) != 0


def leads_to_lps(volume: Any) -> bool:
    """Whether MONAI's metadata say that an affine leads to LPS, not to RAS.

    Its readers of ITK, DICOM and NRRD leave it so where they are told ``affine_lps_to_ras=False``.

    Args:
        volume: a MetaTensor of one scan or of a batch.

    Example:
        >>> from monai.data import MetaTensor
        >>> [leads_to_lps(MetaTensor(np.eye(4), meta={"space": s})) for s in ("RAS", "LPS")]
        [False, True]
    """
    # some versions of MONAI Deploy say LPS of the affine that they have from this key, which is RAS
    if "nifti_affine_transform" in volume.meta:
        return False
    space = volume.meta.get("space")
    return "LPS" in (space if isinstance(space, list | tuple) else [space])


def voxel_ml(affine: NDArray[np.floating[Any]]) -> float:
    """Volume of a voxel in ml, of an affine in mm that may be oblique or sheared.

    Example:
        >>> voxel_ml(np.diag([-2.0, 2, 5, 1]))
        0.02
    """
    first, second, third = affine[:3, :3].T
    # The triple product is exact on an upright grid, which NumPy's `det` is not.
    return abs(float(np.cross(first, second) @ third)) / 1000


def open_nifti(path: str | os.PathLike[str]) -> tuple[Any, list[str]]:
    """Open a NIfTI file and settle where its voxels lie, which are not read.

    Returns:
        The image and its notes, see :func:`with_one_geometry`.

    Raises:
        DatasetError: it cannot be read, or as there.
    """
    try:
        image = nib.load(path)
    except UNREADABLE as error:
        raise DatasetError(
            f"`path` must be a whole NIfTI file, got {path}, which cannot be read: {error}"
        ) from error
    return with_one_geometry(image, str(path))


def with_one_geometry(image: Any, name: str) -> tuple[Any, list[str]]:
    """Settle where an image's voxels lie.

    The sform counts where it is set and its voxels are as large as pixdim says; else the qform
    does, as MONAI's reader has it.

    Args:
        image: as nibabel loads it; its voxels are not read.
        name: its file, for messages.

    Returns:
        The image with that ``affine``, and what a person should know, each a sentence.

    Raises:
        DatasetError: the header is not in mm, its affine is not invertible, its sform contradicts
            pixdim and there is no qform to tell which is right, or a voxel is no real number.
    """
    require_real(image, name)
    if not isinstance(image, nib.Nifti1Pair):
        require_mm(image.affine, name)
        return image, []
    try:
        unit = image.header.get_xyzt_units()[0]
    except KeyError as error:
        raise DatasetError(
            f"`path` must be in mm, got the unknown unit {error.args[0]} in {name}: correct its "
            "header."
        ) from error
    if unit not in ("unknown", "mm"):
        raise DatasetError(f"`path` must be in mm, got {unit} in {name}: convert its header.")
    _require_invertible(image.affine, name)
    try:
        settled = correct_nifti_header_if_necessary(
            type(image)(image.dataobj, image.affine, image.header.copy())
        )
        notes = _notes(image, settled.affine, name)
    except DatasetError:
        raise
    except (ValueError, HeaderDataError) as error:
        raise DatasetError(
            f"`path` must have a qform that is a rotation, got {name}: {error}. Correct its header."
        ) from error
    require_mm(settled.affine, name)
    return settled, notes


def require_real(image: Any, name: str) -> None:
    """Raise unless an image has one real number a voxel.

    Args:
        image: as nibabel loads it; its voxels are not read.
        name: its file, for the message.

    Raises:
        DatasetError: it has colours or complex numbers.
    """
    kind = np.dtype(image.get_data_dtype())
    if kind.kind not in "buif":
        what = f"colours ({''.join(kind.names)})" if kind.names else f"{kind} numbers"
        raise DatasetError(
            f"`path` must have one real number a voxel, got {what} in {name}: export it anew, "
            "without colours or complex values."
        )


def require_mm(affine: Any, name: str) -> None:
    """Raise unless an affine is invertible and its voxels may be in mm.

    Raises:
        DatasetError: it is not, or they may not.
    """
    _require_invertible(affine, name)
    sizes = voxel_sizes(np.asarray(affine, np.float64))
    if not sizes.max() >= VOXEL_MM[0] or not sizes.min() <= VOXEL_MM[1]:
        raise DatasetError(
            f"`path` must be in mm, got voxels of {_sizes(sizes)} in {name}: are they in m or µm? "
            "Convert its header."
        )


def _require_invertible(affine: Any, name: str) -> None:
    if not is_invertible(affine):
        raise DatasetError(
            f"`path` must have an invertible affine, got {np.asarray(affine).tolist()} in {name}: "
            "correct its header."
        )


def _notes(image: Any, taken: NDArray[np.float64], name: str) -> list[str]:
    header = image.header
    codes = [int(header[f"{form}_code"]) for form in ("sform", "qform")]
    if not all(codes):
        if codes[0] and not np.allclose(taken, header.get_sform()):
            raise DatasetError(
                f"`path` must say once how large its voxels are, got "
                f"{_sizes(voxel_sizes(header.get_sform()))} mm by the sform and "
                f"{_sizes(header.get_zooms()[:3])} mm by pixdim in {name}, and no qform: correct "
                "its header."
            )
        return []
    sform, qform = header.get_sform(), header.get_qform()
    apart_mm = corner_distance_mm(sform, qform, image.shape[:3])
    if apart_mm <= _SAME_MM:
        return []
    sizes = [_sizes(voxel_sizes(form)) for form in (sform, qform)]
    which = "sform" if np.allclose(taken, sform) else "qform"
    return [
        f"sform and qform put corners {apart_mm:.4g} mm apart, with voxels of {sizes[0]} and "
        f"{sizes[1]} mm; the {which} was taken."
    ]


def corner_distance_mm(
    one: NDArray[np.float64], two: NDArray[np.float64], shape: tuple[int, ...]
) -> float:
    """Greatest distance between the same corner voxel of two grids of one shape."""
    corners = np.array(np.meshgrid(*[(0.0, n - 1.0) for n in shape], [1.0])).reshape(
        len(shape) + 1, -1
    )
    full = np.concatenate(
        [corners[:-1], np.zeros((3 - len(shape), corners.shape[1])), [corners[-1]]]
    )
    return float(np.linalg.norm(((one - two) @ full)[:3], axis=0).max())


def _sizes(sizes: Any) -> str:
    return " × ".join(f"{size:.4g}" for size in sizes)
