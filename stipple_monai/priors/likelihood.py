"""How well a prior foretells a label that it was not made of.

Log-likelihood
    ``Σ_v ln P(y_v | p_v)`` over all voxels ``v`` of a label ``y``, each a Bernoulli variable, above
    that of a prior that expects the organ nowhere, ``p = ε`` (:data:`FLOOR`). Where both are
    ``ε`` nothing is added, so that the size of a prior's box does not count. A voxel weighs as
    many nats as it has millilitres, so that the size of voxels does not count either: the unit is
    nats a case, at one observation a millilitre. More is better; 0 is no better than no prior.
Leave-one-out
    Every label under the prior of the others, exactly: ``p_i = (Σ_j q_j − q_i) / (n − 1)``. The
    labels keep the centres that they were given together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stipple_monai.priors.cases import Case, Cases, pack
from stipple_monai.priors.kernel import blurred

FLOOR = 1e-3
WIDTHS_MM = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0)
ONE_LABEL_MM = 10.0
"""Width for a single label, of which none can be left out."""

_MOST_VOXELS = 150_000
"""The likelihood of a larger grid is that of voxels put together."""


def log_likelihood(
    label: NDArray[np.floating], probability: NDArray[np.floating], *, voxel_ml: float
) -> float:
    """Log-likelihood of one label, see the module.

    Args:
        label: part of each voxel that the organ fills, in [0, 1].
        probability: the prior, of the same shape.
        voxel_ml: volume of a voxel.

    Returns:
        Nats at one observation a millilitre, above a prior of ``ε`` everywhere.

    Example:
        >>> label = np.array([1.0, 0.0, 0.0])
        >>> round(log_likelihood(label, np.array([1.0, 0.0, 0.0]), voxel_ml=1.0), 2)
        6.91
        >>> round(log_likelihood(label, np.array([0.0, 0.5, 0.0]), voxel_ml=1.0), 2)
        -0.69
    """
    p = np.clip(probability, FLOOR, 1 - FLOOR)
    absent = np.log1p(-p) - math.log1p(-FLOOR)
    inside = label > 0
    odds = np.log(p[inside] / FLOOR) - absent[inside]
    return voxel_ml * (float(absent.sum(dtype=np.float64)) + float(label[inside] @ odds))


def leave_one_out(cases: Cases) -> float | None:
    """Mean log-likelihood of every label under the prior of the others.

    Args:
        cases: two labels or more, and the width of their Gaussian.

    Returns:
        Nats a case at one observation a millilitre, above a prior of ``ε`` everywhere; ``None``
        for a single label.
    """
    if len(cases) < 2:
        return None
    box = [slice(-r, n + r) for r, n in zip(cases.room, cases.shape, strict=True)]
    total = blurred(cases.total(), (0, 0, 0), box=box, sigma=cases.sigma)
    others = np.float32(1 / (len(cases) - 1))
    absent = _absent(total * others)
    everywhere = float(absent.sum(dtype=np.float64))
    nats = 0.0
    for case in cases:
        # Only where the label is felt does leaving it out change anything.
        near = _support(case, cases)
        here = tuple(slice(b.start + r, b.stop + r) for b, r in zip(near, cases.room, strict=True))
        values = case.values()
        p = (total[here] - blurred(values, case.first, box=near, sigma=cases.sigma)) * others
        inside = tuple(
            slice(a - b.start, a - b.start + n)
            for a, b, n in zip(case.first, near, values.shape, strict=True)
        )
        now = _absent(p)
        odds = np.log(np.clip(p[inside], FLOOR, 1 - FLOOR) / FLOOR) - now[inside]
        nats += everywhere - float(absent[here].sum(dtype=np.float64))
        nats += float(now.sum(dtype=np.float64)) + float((values * odds).sum(dtype=np.float64))
    return nats / len(cases) * math.prod(cases.spacing_mm) / 1000


def best_width(cases: Cases) -> tuple[float, float | None]:
    """Width of the Gaussian with the highest leave-one-out likelihood.

    Climbs :data:`WIDTHS_MM` from 6 mm as long as the likelihood grows; a grid of more than 150 000
    voxels is made coarser for it.

    Args:
        cases: the labels.

    Returns:
        mm, and the likelihood; :data:`ONE_LABEL_MM` and ``None`` for a single label.
    """
    if len(cases) < 2:
        return ONE_LABEL_MM, None
    coarse = coarser(cases)
    found: dict[int, float] = {}

    def likelihood(step: int) -> float:
        found[step] = leave_one_out(replace(coarse, smoothing_mm=WIDTHS_MM[step])) or 0.0
        return found[step]

    step = climb(likelihood, len(WIDTHS_MM), start=WIDTHS_MM.index(6.0))
    return WIDTHS_MM[step], found[step]


def climb(height: Callable[[int], float], count: int, *, start: int) -> int:
    """The top of a hill over ``0 … count − 1``, from ``start``; each place is asked once at most.

    Example:
        >>> climb(lambda x: -abs(x - 2), 9, start=5)
        2
    """
    best, highest = start, height(start)
    for step in (1, -1):
        place = best + step
        while 0 <= place < count and (here := height(place)) > highest:
            best, highest, place = place, here, place + step
        if best != start:
            break
    return best


def coarser(cases: Cases) -> Cases:
    """The same labels on a grid of at most 150 000 voxels, whole numbers of voxels put together."""
    shape, factor = np.array(cases.shape), np.ones(3, int)
    while math.prod(np.ceil(shape / factor)) > _MOST_VOXELS:
        factor[np.argmin(factor * cases.spacing_mm)] += 1
    if factor.max() == 1:
        return cases
    from_mm = [s * int(f) for s, f in zip(cases.spacing_mm, factor, strict=True)]
    w, h, d = np.ceil(shape / factor).astype(int).tolist()
    items = tuple(_coarser_case(case, factor) for case in cases)
    return Cases(items, (w, h, d), (from_mm[0], from_mm[1], from_mm[2]), cases.smoothing_mm)


def _coarser_case(case: Case, factor: NDArray[np.int_]) -> Case:
    before = [a % f for a, f in zip(case.first, factor.tolist(), strict=True)]
    after = [-(b + n) % f for b, n, f in zip(before, case.shape, factor.tolist(), strict=True)]
    values = np.pad(case.values(), list(zip(before, after, strict=True)))
    blocks = [m for n, f in zip(values.shape, factor.tolist(), strict=True) for m in (n // f, f)]
    small = pack(
        values.reshape(blocks).mean(axis=(1, 3, 5)),
        exact=case.dtype == "float32",
        volume_ml=case.volume_ml,
        name=case.name,
    )
    shift = [a // f for a, f in zip(case.first, factor.tolist(), strict=True)]
    w, h, d = (a + b for a, b in zip(small.first, shift, strict=True))
    return small._replace(first=(w, h, d))


def _absent(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """``ln (1 − p) / (1 − ε)`` with ``p`` kept in [ε, 1 − ε]."""
    return np.log1p(-np.clip(p, FLOOR, 1 - FLOOR)) - np.float32(math.log1p(-FLOOR))


def _support(case: Case, cases: Cases) -> list[slice]:
    return [
        slice(a - r, a + n + r) for a, n, r in zip(case.first, case.shape, cases.room, strict=True)
    ]
