"""A prior as a file: a NIfTI image with a record in its header.

The image is float32 in RAS mm with the organ's centre at the origin, so that any viewer shows it.
The record, JSON in a header extension, holds what an image has no place for.

What each label map contributed stands in a file of its own (`stipple_monai.priors.case_file`): a
prior can be handed on without it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from stipple_monai.errors import PriorError
from stipple_monai.files import whole_file
from stipple_monai.nifti import NIFTI, UNREADABLE
from stipple_monai.priors.case_file import cases_path, holds_cases, read_cases, write_cases
from stipple_monai.priors.cases import Cases, Volumes
from stipple_monai.priors.organ import Center

FORMAT_VERSION = 1

_AS_WRITTEN = ("organ", "case_count", "center", "offset_mm", "smoothing_mm", "log_likelihood")

# of the largest prior, a box of 60 cm in voxels of 1.5 mm, some times over
_MOST_VOXELS = 2**28
_REMEDY = "Estimate it again and save it with `SpatialPrior.save`."


class Prior(Protocol):
    """What of a prior is written, see :class:`~stipple_monai.priors.SpatialPrior`."""

    probability: torch.Tensor
    spacing_mm: tuple[float, float, float]
    organ: int
    case_count: int
    center: Center
    offset_mm: tuple[float, float, float] | None
    offsets_id: str | None
    from_top_mm: tuple[float, float, float] | None
    smoothing_mm: float
    volumes_ml: Volumes | None
    log_likelihood: float | None
    cases: Cases | None

    @property
    def bins(self) -> int:
        """Number of voxels along z."""


AnyPrior = TypeVar("AnyPrior", bound=Prior)


def write_prior(prior: Prior, path: str | os.PathLike[str]) -> None:
    """Write a prior.

    Args:
        prior: what is written.
        path: ``….nii`` or ``….nii.gz``; replaced in one step, never half-written.

    Raises:
        PriorError: ``path`` has another ending, or beside it a file that is not the prior's has
            the name of that of its cases.
    """
    if not str(path).endswith(NIFTI):
        raise PriorError(f"A prior is saved as '.nii' or '.nii.gz', got {path}.")
    affine = _centred_affine(prior.spacing_mm, prior.probability.shape)
    image = nib.Nifti1Image(prior.probability.numpy(), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"STIPPLE prior of organ {prior.organ}"
    record = {
        "stipple_prior": FORMAT_VERSION,
        **{key: getattr(prior, key) for key in _AS_WRITTEN},
        "offsets_id": prior.offsets_id,
        "from_top_mm": prior.from_top_mm,
        "bins": prior.bins,
        "volumes_ml": prior.volumes_ml and prior.volumes_ml._asdict(),
    }
    image.header.extensions.append(
        nib.nifti1.Nifti1Extension("comment", json.dumps(record).encode())
    )
    stale = cases_path(path)
    if stale.exists() and not holds_cases(stale):
        raise PriorError(
            f"{stale} is beside the prior and belongs to it, but holds no cases of a prior: rename "
            "it, or save the prior under another name."
        )
    with whole_file(path) as temporary:
        nib.save(image, temporary)
    if prior.cases is not None:
        write_cases(prior.cases, path, prior.probability.numpy())
    else:
        stale.unlink(missing_ok=True)


def read_prior(path: str | os.PathLike[str], make: Callable[..., AnyPrior]) -> AnyPrior:
    """Read a prior that :func:`write_prior` wrote.

    Args:
        path: the file.
        make: the class of the prior, called with its values and the keywords ``spacing_mm``,
            ``organ``, ``case_count``, ``center``, ``offset_mm``, ``offsets_id``, ``from_top_mm``,
            ``smoothing_mm``, ``volumes_ml``, ``log_likelihood`` and ``cases``.

    Raises:
        PriorError: the file is missing, truncated, not NIfTI or not a prior, or was written by a
            newer version.
    """
    image, record = _open(path)
    try:
        data = np.asarray(image.dataobj, dtype=np.float32)
        prior = make(
            data,
            spacing_mm=[float(s) for s in image.header.get_zooms()[:3]],
            **{key: record[key] for key in _AS_WRITTEN},
            # of version 0.1 on; files that were written before lack it
            offsets_id=record.get("offsets_id"),
            from_top_mm=record.get("from_top_mm"),
            volumes_ml=_volumes(record["volumes_ml"]),
            cases=read_cases(path, data),
        )
        if prior.bins != record["bins"]:
            raise PriorError(f"it has {prior.bins} bins, its record says {record['bins']}.")
        expected = _centred_affine(prior.spacing_mm, prior.probability.shape)
        if not np.allclose(image.affine, expected, rtol=1e-4, atol=1e-3):
            raise PriorError(f"its affine must be {expected.tolist()}, so it was reoriented.")
    except KeyError as error:
        raise PriorError(
            f"{path} is not a valid prior: its record lacks {error}. {_REMEDY}"
        ) from error
    except (TypeError, *UNREADABLE) as error:
        raise PriorError(f"{path} is not a valid prior: {error} {_REMEDY}") from error
    return prior


def _open(path: str | os.PathLike[str]) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """A prior's image, whose voxels are still in the file, and its record."""
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise ValueError("it is of another format")
        texts = [e.get_content() for e in image.header.extensions if e.get_code() == 6]
    except FileNotFoundError:
        raise PriorError(f"There is no prior at {path}. {_REMEDY}") from None
    except UNREADABLE as error:
        raise PriorError(
            f"{path} cannot be read as a NIfTI prior: {type(error).__name__}: {error}. {_REMEDY}"
        ) from error
    record = next((r for r in map(_json_object, texts) if "stipple_prior" in r), None)
    if record is None:
        raise PriorError(f"{path} is an image, but not a prior with its record. {_REMEDY}")
    if record["stipple_prior"] != FORMAT_VERSION:
        raise PriorError(
            f"{path} is a prior of format {record['stipple_prior']}, and this version reads "
            f"format {FORMAT_VERSION}: update stipple-monai. {_REMEDY}"
        )
    if math.prod(image.shape) > _MOST_VOXELS:
        raise PriorError(f"{path} is not a valid prior: its shape is {image.shape}. {_REMEDY}")
    return image, record


def _centred_affine(spacing_mm: Sequence[float], shape: Sequence[int]) -> NDArray[np.float64]:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -np.array(spacing_mm) * (np.array(shape) - 1) / 2
    return affine


def _volumes(record: dict[str, Any] | None) -> Volumes | None:
    return None if record is None else Volumes(**record)


def _json_object(text: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
