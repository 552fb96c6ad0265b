"""The priors of several organs: one NIfTI file each, in one folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stipple_monai.errors import PriorError
from stipple_monai.priors.organ import Label
from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.progress import follow


def prior_path(folder: str | os.PathLike[str], organ: int) -> Path:
    """File of an organ's prior, ``FOLDER/prior_ORGAN.nii.gz``."""
    return Path(folder) / f"prior_{organ}.nii.gz"


def estimate_priors(
    labels: Sequence[Label],
    *,
    organs: Sequence[int],
    folder: str | os.PathLike[str],
    **options: Any,
) -> list[SpatialPrior]:
    """Estimate and save the prior of each organ, reading every map once, and tell how many are.

    Nothing is written before all are estimated.

    Args:
        labels: label maps or files.
        organs: label values.
        folder: where the files go, see :func:`prior_path`.
        **options: see :meth:`SpatialPrior.estimate`; ``num_workers`` reads several maps at once.

    Returns:
        The priors in the order of ``organs``.

    Raises:
        PriorError: no label map contains one of the organs.
        DatasetError: a label map cannot be read.
    """
    told = follow(labels, "priors", unit="scan")
    with warnings.catch_warnings():
        # a command silences what comes from below MONAI's configs, and this is for its user
        warnings.filterwarnings("always", message=r".* does not contain organ")
        priors = SpatialPrior.estimate_several(told, organs=organs, **options)
    for prior in priors:
        prior.save(prior_path(folder, prior.organ))
    return priors


def prior_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of all priors in a folder, by name; see :func:`prior_path`."""
    return sorted(Path(folder).glob("prior_*.nii.gz"))


def prior_organs(folder: str | os.PathLike[str]) -> list[int]:
    """Organs whose priors are in a folder, ascending.

    Raises:
        PriorError: there is none.
    """
    names = [path.name.removesuffix(".nii.gz") for path in prior_files(folder)]
    organs = sorted(int(n) for name in names if (n := name.removeprefix("prior_")).isdecimal())
    if not organs:
        raise PriorError(
            f"`priors` must be a folder with prior_ORGAN.nii.gz, got none in {folder}: estimate "
            "them with `stipple prior`."
        )
    return organs


def load_priors(folder: str | os.PathLike[str], organs: Sequence[int]) -> list[SpatialPrior]:
    """Load the priors of ``organs`` in their order.

    Raises:
        PriorError: a file is missing or not a prior, or its record names another organ.
    """
    priors = [SpatialPrior.load(prior_path(folder, organ)) for organ in organs]
    for prior, organ in zip(priors, organs, strict=True):
        if prior.organ != organ:
            raise PriorError(
                f"{prior_path(folder, organ)} must be the prior of organ {organ}, got that of "
                f"organ {prior.organ} by its record: files were renamed; estimate the priors again."
            )
    return priors
