"""What each label contributed to a prior, as a file beside it: ``prior_1_cases.npz``.

It holds masks of single patients, unlike the prior, and is read where a prior is placed without
one of its labels. It is nothing to be handed on, and `publish_bundle` leaves it behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stipple_monai.errors import PriorError
from stipple_monai.files import whole_file
from stipple_monai.priors.cases import Case, Cases

_ENDINGS = (".nii.gz", ".nii")
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


def cases_path(prior: str | os.PathLike[str]) -> Path:
    """The file that belongs to a prior's.

    Example:
        >>> cases_path("models/prior_1.nii.gz").name
        'prior_1_cases.npz'
    """
    path = Path(prior)
    ending = next(e for e in (*_ENDINGS, "") if path.name.endswith(e))
    return path.with_name(path.name.removesuffix(ending) + "_cases.npz")


def write_cases(
    cases: Cases, prior: str | os.PathLike[str], probability: NDArray[np.float32]
) -> None:
    """Write the cases beside a prior.

    Args:
        cases: what is written.
        prior: the prior's file.
        probability: its values, whose fingerprint says that the two belong together.
    """
    record = {
        "prior": _fingerprint(probability),
        "shape": cases.shape,
        "spacing_mm": cases.spacing_mm,
        "smoothing_mm": cases.smoothing_mm,
        "cases": [{k: v for k, v in case._asdict().items() if k != "packed"} for case in cases],
    }
    arrays: dict[str, Any] = {
        str(i): np.frombuffer(case.packed, np.uint8) for i, case in enumerate(cases)
    }
    arrays["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    with whole_file(cases_path(prior)) as temporary:
        np.savez(temporary, **arrays)


def read_cases(prior: str | os.PathLike[str], probability: NDArray[np.float32]) -> Cases | None:
    """Read the cases beside a prior, if they are there.

    Args:
        prior: the prior's file.
        probability: its values.

    Returns:
        What they hold. None, with a warning, where they are those of another prior: a process that
        was killed between the two files leaves them so.

    Raises:
        PriorError: the file cannot be read.
    """
    path = cases_path(prior)
    if not path.is_file():
        return None
    remedy = "Delete it, or estimate the prior again where labels are to be left out of it."
    try:
        with np.load(path, allow_pickle=False) as arrays:
            record = json.loads(arrays["record"].tobytes())
            items = tuple(
                _case(arrays[str(i)].tobytes(), each) for i, each in enumerate(record["cases"])
            )
            same = record["prior"] == _fingerprint(probability)
            shape, spacing_mm = tuple(record["shape"]), tuple(record["spacing_mm"])
            cases = Cases(items, shape, spacing_mm, float(record["smoothing_mm"]))
    except _UNREADABLE as error:
        raise PriorError(
            f"{path} cannot be read: {type(error).__name__}: {error}. {remedy}"
        ) from error
    if not same:
        warnings.warn(
            f"{path} was made with another prior than {Path(prior).name} and is not used. {remedy}",
            stacklevel=2,
        )
        return None
    return cases


def holds_cases(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that :func:`write_cases` wrote, of whatever prior."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "cases" in json.loads(arrays["record"].tobytes())
    except _UNREADABLE:
        return False


def _case(packed: bytes, record: dict[str, Any]) -> Case:
    three = {k: tuple(record[k]) for k in ("shape", "first")}
    return Case(packed, **{**record, **three})


def _fingerprint(probability: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(probability, np.float32).tobytes()).hexdigest()
