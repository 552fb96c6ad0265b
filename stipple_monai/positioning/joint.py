"""Several organs positioned together.

Each organ alone is placed where the coarse prediction fits its prior best (see
:mod:`stipple_monai.positioning.single`). A kidney that the network found on the wrong side draws
its prior there. The labelled scans tell where organs lie with respect to each other, so the organs
share a common centre ``c`` and each may deviate from its place around it:

``max_c Σ_k max_t [ V_k(t) − |t − c − μ_k|² / (2 σ²) ]₊``,

where ``μ_k`` is the organ's mean offset, ``σ`` the spread and ``V_k`` its vote: ``S_k(t)``, the
share of the organ's prior that the prediction supports at ``t`` (the correlation over its greatest
possible value, in [0, 1]), divided by its maximum, or by 0.3 if that is greater. So an organ that
is found over and over does not count for more than another one, and a faint trace for less. A
term is never negative: an organ that would have to deviate by more than ``σ √2`` is outvoted, and
its own evidence is no longer heard. (The organs are a star of "Pictorial structures", Felzenszwalb
and Huttenlocher, IJCV 2005.) The scan itself votes, too, where that moves the centre far, see
:mod:`stipple_monai.positioning.scan_vote`. The maximum is exact, see
:mod:`stipple_monai.spatial.votes`, over cells of some millimetres; each organ is then moved to
the best cell beside its place, and between cells to the top of a parabola through the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

from stipple_monai.errors import PositionError
from stipple_monai.positioning.scan_vote import expected_center, place_alone
from stipple_monai.positioning.single import (
    DEFAULT_EPSILON,
    around_center,
    cells_of,
    check_search,
    evidence_for,
    locate_organ,
    open_probability,
    to_world,
)
from stipple_monai.positioning.star import chosen_together
from stipple_monai.priors import SpatialPrior, Volume
from stipple_monai.spatial import (
    Box,
    Votes,
    correlate,
    in_blocks,
    peak_near,
    scan_extent,
    seen_box,
)

DEFAULT_SPREAD_MM = 40.0
JOINT_CELL_MM = 6.0
"""Cells in which places are first compared; smaller ones place no better, see `decisions.md`."""
APART_MM = 30.0
"""Positions this far apart are different answers to where an organ is."""
_DOUBT = 0.01
_FULL_VOTE = 0.3
# Shares below it may be a transform's rounding.
_TRACE = 1e-5
_AT_ONCE, _AT_ONCE_ON_GPU = 1 << 18, 1 << 28


class Located(NamedTuple):
    """Where the organs of a scan are.

    Attributes:
        position_mm: ``(K, 3)`` float64 on the CPU, RAS mm; NaN for an organ without position.
        confidence: ``(K,)`` float64 in [0, 1], see :func:`locate_organs`; 0 for an organ without
            position.
        scan_chose: whether the scan's extent chose another place than the prediction alone.
    """

    position_mm: Tensor
    confidence: Tensor
    scan_chose: bool = False


def locate_organs(
    probability: Volume,
    references: Sequence[SpatialPrior],
    *,
    spread_mm: float = DEFAULT_SPREAD_MM,
    max_shift_mm: float | None = None,
    minimum: float = 0.5,
    epsilon: float = DEFAULT_EPSILON,
    scan_vote: bool = True,
) -> Located:
    """Find the positions that a coarse prediction of several organs supports best.

    Organs are positioned together where all references know their offsets, that is, where they
    were estimated together (:meth:`SpatialPrior.estimate_several`; some of these organs will do),
    one by one otherwise and with ``max_shift_mm``. Together, an organ that is predicted nowhere
    gets its place from the others.

    Args:
        probability: ``(K, W, H, D)``, the network's probability of each organ in [0, 1]; or a
            NIfTI file of it, with channels along the fourth axis. Of a file with ``K + 1`` the
            first is the background.
        references: one per organ, see :func:`~stipple_monai.positioning.locate_organ`.
        spread_mm: ``σ``, how far organs stray from their mean offsets.
        max_shift_mm: see :func:`~stipple_monai.positioning.locate_organ`; so are the next two.
        minimum: a prediction that reaches this nowhere is no prediction.
        epsilon: least probability.
        scan_vote: whether, of places that are far apart, the height at which scans of the priors'
            label maps have the organs may choose one, see `stipple_monai.positioning.scan_vote`;
            not with ``max_shift_mm``. False for scans that begin elsewhere, such as those that were
            cropped before they were saved; MONAI's crops and pads do not matter, see
            :func:`~stipple_monai.spatial.scan_extent`.

    Returns:
        Positions and confidences. A confidence is ``S / (S + S')``: ``S`` is the share of the
        organ's prior that the prediction supports at its position, ``S'`` the greatest at any
        position farther than ``APART_MM`` from it (0.01 is added to both). 0.5 is a tie, and
        less says that the other organs outvoted this one's own evidence; it changes neither with
        the organ's size nor with the prediction's. `docs/results.md` says how large errors are.

    Raises:
        PositionError: ``probability`` is no probability map with an invertible affine and one
            channel for each reference, an option is out of range, or the references know offsets
            of different estimations.

    Example:
        >>> organs = torch.zeros(1, 30, 20, 20)
        >>> organs[0, 4:9, 8:13, 8:13], organs[0, 20:25, 8:13, 8:13] = 1, 2
        >>> label = MetaTensor(organs, affine=torch.eye(4))
        >>> priors = SpatialPrior.estimate_several(label, organs=[1, 2])
        >>> seen = MetaTensor((organs == 1).float().repeat(2, 1, 1, 1), affine=torch.eye(4))
        >>> seen[1] = 0
        >>> locate_organs(seen, priors).position_mm.round().tolist()
        [[6.0, 10.0, 10.0], [22.0, 10.0, 10.0]]
    """
    search: dict[str, Any] = {"minimum": minimum, "epsilon": epsilon, "max_shift_mm": max_shift_mm}
    check_search(**search)
    check_spread(spread_mm)
    probability = open_probability(probability, organs=len(references))
    affine = probability.affine.to(dtype=torch.float64, device="cpu")
    maps = probability.as_tensor().detach()
    position = torch.full((len(references), 3), torch.nan, dtype=torch.float64)
    confidence = torch.zeros(len(references), dtype=torch.float64)
    surest = maps.amax((1, 2, 3))
    found = ((surest >= minimum) & (surest > epsilon)).tolist()
    if not any(found):
        return Located(position, confidence)
    cells = cells_of(affine, JOINT_CELL_MM)
    coarse = coarse_affine(affine, cells)
    shares = supported_shares(coarse_evidence(maps, cells, epsilon=epsilon), references, coarse)
    together = max_shift_mm is None and positioned_together(references)
    scan, chose, heard = scan_extent(probability), False, scan_vote and max_shift_mm is None
    if together:
        expected = expected_center(references, scan) if heard else None
        position, chose = _points(shares, references, coarse, spread_mm, expected)
    for k, reference in enumerate(references):
        if not together and found[k]:
            point = locate_organ(MetaTensor(maps[k : k + 1], affine=affine), reference, **search)
            assert point is not None
            usual = expected_center([reference], scan) if heard else None
            other = _chosen_by_scan(shares[k], usual, coarse, spread_mm)
            position[k], chose = (point, chose) if other is None else (other, True)
        if not position[k].isnan().any():
            confidence[k] = _confidence(shares[k], coarse, position[k])
    return Located(position, confidence, chose)


def check_spread(spread_mm: float) -> None:
    """Raise :class:`PositionError` where it is no length."""
    if not 0 < spread_mm < math.inf:
        raise PositionError(f"`spread_mm` must be a positive length, got {spread_mm}.")


def have_offsets(references: Sequence[SpatialPrior]) -> bool:
    """Whether organs are several and all of them know their offsets."""
    return len(references) > 1 and all(r.offset_mm is not None for r in references)


def positioned_together(references: Sequence[SpatialPrior]) -> bool:
    """Whether organs are several and know their offsets, which are then of one estimation.

    Raises:
        PositionError: they are of several. An offset is relative to the mean of the organs that
            were estimated together, and another estimation has another mean.
    """
    if not have_offsets(references):
        return False
    organs: dict[str | None, list[int]] = {}
    for reference in references:
        organs.setdefault(reference.offsets_id, []).append(reference.organ)
    if len(organs) > 1:
        raise PositionError(
            "Priors that are positioned together must be of one estimation, since their offsets "
            f"are relative to its organs, got those of organs {[*organs.values()]} of "
            f"{len(organs)}: estimate all in one call of `SpatialPrior.estimate_several`, or set "
            "`offset_mm` of each to None, which positions them one by one."
        )
    return True


def coarse_evidence(maps: Tensor, cells: Sequence[int], *, epsilon: float) -> Tensor:
    """Mean evidence in cells, ``(K, W, H, D)``, as a share of the greatest possible, in [0, 1]."""
    greatest = -2 * math.log(epsilon / (1 - epsilon)) * math.prod(cells)
    # In slabs that stay in a processor's cache, where a CT's map takes a quarter of a gigabyte.
    at_once = _AT_ONCE_ON_GPU if maps.is_cuda else _AT_ONCE
    rows = cells[0] * max(1, at_once // max(1, cells[0] * math.prod(maps.shape[2:])))
    blocks = [
        torch.cat([in_blocks(evidence_for(slab, epsilon), cells).float() for slab in q.split(rows)])
        for q in maps
    ]
    return torch.stack(blocks).div_(greatest)


def coarse_affine(affine: Tensor, cells: Sequence[int]) -> Tensor:
    """The affine of cells: index j stands for the middle of the voxels of cell j."""
    size = torch.tensor(cells, dtype=torch.float64)
    coarse = affine.clone()
    coarse[:3, :3] = affine[:3, :3] * size
    coarse[:3, 3] = to_world(affine, (size - 1) / 2)
    return coarse


def supported_shares(
    blocks: Tensor, references: Sequence[SpatialPrior], coarse: Tensor
) -> list[Votes]:
    """``S_k``, the share of each organ's prior that is supported at each cell, in [0, 1].

    Args:
        blocks: see :func:`coarse_evidence`.
        references: one per organ.
        coarse: affine of the cells, ``(4, 4)``.

    Returns:
        One array per organ, as large as it needs to be: elsewhere nothing is supported.
    """
    shares = []
    for block, reference in zip(blocks, references, strict=True):
        seen = seen_box(block)
        part = block[tuple(slice(a, b) for a, b in zip(*seen, strict=True))]
        kernel = around_center(reference, coarse, device=block.device).to(block)
        # A prior may have nothing in the middle of any cell.
        total = kernel.sum().clamp(min=torch.finfo(kernel.dtype).tiny)
        share = correlate(part, kernel.div_(total)).clamp_(min=0)
        start = [a - (n - 1) // 2 for a, n in zip(seen.start, kernel.shape, strict=True)]
        shares.append(Votes(share, tuple(start)))
    return shares


def _points(
    shares: Sequence[Votes],
    references: Sequence[SpatialPrior],
    coarse: Tensor,
    spread_mm: float,
    expected: Tensor | None,
) -> tuple[Tensor, bool]:
    """World points of the organs' places, ``(K, 3)``, and whether the scan chose."""
    votes = [Votes(s / max(_FULL_VOTE, float(s.amax())), start) for s, start in shares]
    together, chose = chosen_together(votes, references, coarse, spread_mm, expected)
    cells = together.places
    offsets = [torch.tensor(r.offset_mm, dtype=torch.float64) for r in references]
    points: list[Tensor] = []
    centers: list[Tensor] = []
    unseen: list[int] = []
    for k, ((share, first), cell) in enumerate(zip(shares, cells, strict=True)):
        index = torch.tensor(cell) - torch.tensor(first)
        if _value_at(share, index) > _TRACE:
            peak = peak_near(share, index) + torch.tensor(first)
            points.append(to_world(coarse, peak))
            centers.append(points[k] - offsets[k])
        else:
            points.append(to_world(coarse, torch.tensor(cell).double()))
            unseen.append(k)
    # What nothing supports there lies where the others say, and not only in their cell.
    if centers:
        for k in unseen:
            points[k] = torch.stack(centers).mean(0) + offsets[k]
    return torch.stack(points), chose


def _chosen_by_scan(
    share: Votes, expected: Tensor | None, coarse: Tensor, spread_mm: float
) -> Tensor | None:
    """The world point that the scan chooses for an organ by itself, where that is another place."""
    if expected is None:
        return None
    values, start = share
    vote = Votes(values / max(_FULL_VOTE, float(values.amax())), start)
    cell = place_alone(vote, expected, coarse, spread_mm)
    if cell is None:
        return None
    first = torch.tensor(start)
    return to_world(coarse, peak_near(values, torch.tensor(cell) - first) + first)


def _value_at(values: Tensor, index: Tensor) -> float:
    """A value; 0 where there is none."""
    within = bool(((index >= 0) & (index < torch.tensor(values.shape))).all())
    return float(values[tuple(index.tolist())]) if within else 0.0


def _confidence(share: Votes, coarse: Tensor, position_mm: Tensor) -> float:
    """The organ's own support at a position against the best farther than ``APART_MM``."""
    to_cell = torch.linalg.inv(coarse[:3, :3])
    middle = to_cell @ (position_mm - coarse[:3, 3]) - torch.tensor(share.start)
    reach = to_cell.norm(dim=1) * APART_MM
    size = torch.tensor(share.values.shape)
    low = torch.minimum((middle - reach).ceil().long().clamp(min=0), size)
    high = torch.maximum(torch.minimum((middle + reach).floor().long() + 1, size), low)
    box = Box(tuple(low.tolist()), tuple(high.tolist()))
    ranges = [torch.arange(a, b, dtype=torch.float64) for a, b in zip(*box, strict=True)]
    cell = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1)
    near = (((cell - middle) @ coarse[:3, :3].T).norm(dim=-1) <= APART_MM).to(share.values.device)
    inside, *outside = _parted(share.values, box)
    rest = [inside.masked_fill(near, 0), *outside]
    greatest = [part.amax() for part in rest if part.numel() > 0]
    apart = float(torch.stack(greatest).max()) if greatest else 0.0
    here = _value_at(share.values, middle.round().long()) + _DOUBT
    return here / (here + apart + _DOUBT)


def _parted(values: Tensor, box: Box) -> list[Tensor]:
    """What lies in a box, and the rest in six parts."""
    parts = []
    for axis, (a, b) in enumerate(zip(*box, strict=True)):
        parts += [values.narrow(axis, 0, a), values.narrow(axis, b, values.shape[axis] - b)]
        values = values.narrow(axis, a, b - a)
    return [values, *parts]
