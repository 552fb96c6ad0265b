"""What a prior is made of, checked: its frequencies, offset, organs and label maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.priors.cases import Cases
from stipple_monai.priors.organ import is_count, world_point

Mode: TypeAlias = Literal["auto", "nearest", "linear"]
"""How a prior is sampled along z: ``"auto"`` is linear for a density, nearest for a histogram."""
MOST_ORGANS = 254
"""The largest label value of an organ."""


def frequencies(probability: torch.Tensor | NDArray[Any]) -> torch.Tensor:
    """Copy frequencies as ``(W_p, H_p, B)`` float32 to the CPU, or raise :class:`PriorError`."""
    if torch.as_tensor(probability).is_complex():
        raise PriorError("`probability` must be of real numbers, got complex ones.")
    probability = torch.as_tensor(probability, dtype=torch.float32, device="cpu").detach()
    probability = probability.as_subclass(torch.Tensor)
    if probability.ndim != 3 or probability.numel() == 0:
        raise PriorError(
            f"`probability` must have three axes (W_p, H_p, B), got {tuple(probability.shape)}."
        )
    if not bool(torch.isfinite(probability).all()):
        raise PriorError("`probability` must be finite, got NaN or infinity.")
    low, high = (float(v) for v in probability.aminmax())
    if low < 0 or high > 1:
        raise PriorError(f"`probability` must lie in [0, 1], got [{low:g}, {high:g}].")
    return probability.clone()


def known_offset(name: str, given: Sequence[float] | None) -> tuple[float, float, float] | None:
    """Give an offset of that name as three floats, or raise :class:`PriorError`."""
    if given is None:
        return None
    try:
        r, a, s = world_point(given).tolist()
    except PositionError:
        raise PriorError(
            f"`{name}` must be three finite numbers (RAS mm) or None, got {given}."
        ) from None
    return r, a, s


def known_organs(organs: Iterable[Any]) -> list[int]:
    """Give label values as integers, each once, or raise :class:`PriorError`."""
    found: list[Any]
    try:
        found = [k.item() if isinstance(k, torch.Tensor | np.generic) else k for k in organs]
    except (TypeError, ValueError, RuntimeError):
        found = []
    if not found or not all(map(is_count, found)) or len({*found}) < len(found):
        raise PriorError(
            "`organs` must be one label value or more, whole numbers and each once, got "
            f"{organs!r}: make numbers of text with `int`, and a list of a single one."
        )
    return [known_organ(k) for k in found]


def known_organ(organ: int) -> int:
    """Give a label value as an integer, or raise :class:`PriorError`.

    Label maps are ``uint8``; 0 is the background, and 255 is ignored.
    """
    if not 1 <= int(organ) <= MOST_ORGANS:
        raise PriorError(
            f"`organ` must be a label value from 1 to {MOST_ORGANS}, got {organ}: 0 is the "
            "background and 255 is ignored; give a larger number another one, such as with "
            "`ingest --map`."
        )
    return int(organ)


def check_left_out(without: Sequence[int], cases: int) -> None:
    """Raise :class:`PriorError` unless numbers are of label maps and leave one of them."""
    known = set(range(cases))
    if not known >= {*without} or known == {*without}:
        raise PriorError(
            f"`without` must be numbers of label maps, 0 to {cases - 1}, and leave one of them, "
            f"got {without}: where none is left, place a neutral prior."
        )


def known_mode(mode: Mode) -> Mode:
    """Give ``mode`` back, or raise :class:`PriorError`."""
    if mode not in ("auto", "nearest", "linear"):
        raise PriorError(f"`mode` must be 'auto', 'nearest' or 'linear', got {mode!r}.")
    return mode


def known_case_count(case_count: int) -> int:
    """Give a number of label maps, or raise :class:`PriorError`."""
    if not is_count(case_count) or case_count < 0:
        raise PriorError(f"`case_count` must be a number of maps, got {case_count}.")
    return int(case_count)


def known_smoothing(smoothing_mm: float) -> float:
    """Give the Gaussian's deviation, 0 of a histogram, or raise :class:`PriorError`."""
    if not 0 <= smoothing_mm < float("inf"):
        raise PriorError(f"`smoothing_mm` must be a length of at least 0, got {smoothing_mm}.")
    return float(smoothing_mm)


def matching_cases(cases: Cases | None, shape: tuple[int, ...]) -> Cases | None:
    """Give the cases of a prior of this shape, or raise :class:`PriorError`."""
    if cases is not None and cases.whole_shape != shape:
        raise PriorError(
            f"`cases` must be those that the prior was made of, got some of the shape "
            f"{cases.whole_shape} for {shape}: estimate them together."
        )
    return cases
