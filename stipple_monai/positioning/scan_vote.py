"""What a scan's own extent says of where its organs are.

Scans of one protocol begin at about the same height above the organs and have the patient in
their middle, so that organs lie at about the same place relative to the middle of the scan's top.
The label maps that priors were estimated from tell where. A network of few labels may fire
throughout a pelvis that it was never shown; every organ then finds a faint trace of itself there,
and nothing else says which place is absurd.

The scan counts as one more organ, with a vote of 1 at the expected centre that falls with the
squared distance from there. What it says is rough: in 20 CT scans of the abdomen the centre has a
standard deviation of 7 and 21 mm across the body and 40 mm along it. The widths below are three of
the larger ones. So the scan only chooses between places that are far apart, and moves nothing
within one.

Words: a scan's *top* is that of :func:`stipple_monai.spatial.top_middle`; the *common centre* of
organs is the one of :mod:`stipple_monai.positioning.joint`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stipple_monai.priors import SpatialPrior
from stipple_monai.spatial import CommonCenter, Extent, Votes, common_center, top_middle

SCAN_SPREAD_MM = (60.0, 60.0, 120.0)
"""Along the axes of the body, RAS: the vote is nothing at √2 times as far."""
ALONE = 0.5
"""What the vote counts beside a single organ. One that is clearly seen stays where it is, unless
another place has half as much of it."""


def expected_center(references: Sequence[SpatialPrior], scan: Extent) -> Tensor | None:
    """Where scans like this one have the organs' common centre, ``(3,)`` float64 RAS mm.

    Args:
        references: one per organ; a single one is the centre itself.
        scan: its grid, see :func:`~stipple_monai.spatial.scan_extent`.

    Returns:
        ``None`` where a reference does not know its place from the top, or one of several its
        offset.
    """
    offsets = [r.offset_mm if len(references) > 1 else (0.0, 0.0, 0.0) for r in references]
    centers = [
        np.subtract(reference.from_top_mm, offset)
        for reference, offset in zip(references, offsets, strict=True)
        if reference.from_top_mm is not None and offset is not None
    ]
    if not references or len(centers) < len(references):
        return None
    return torch.from_numpy(top_middle(scan) + np.mean(centers, axis=0))


def scan_votes(expected: Tensor, coarse: Tensor, spread_mm: float) -> Votes:
    """What the scan votes, in cells.

    A centre hears ``max_x V(x) − |x − c|² / (2 σ²)``, see `stipple_monai.spatial.votes`. Where
    ``V`` falls with the square of a width, that falls with the sum of the squares, which is
    ``SCAN_SPREAD_MM``.

    Args:
        expected: world point of the centre, ``(3,)`` float64.
        coarse: affine of the cells, ``(4, 4)`` float64.
        spread_mm: ``σ`` of the organs; what is wider than the scan's leaves one cell of votes.

    Example:
        >>> cells = torch.diag(torch.tensor([4.0, 4, 4, 1]).double())
        >>> votes = scan_votes(torch.zeros(3).double(), cells, 40)
        >>> votes.values.shape, votes.start, votes.values.amax().item()
        (torch.Size([31, 31, 81]), (-15, -15, -40), 1.0)
    """
    squares = torch.tensor(SCAN_SPREAD_MM, dtype=torch.float64) ** 2 - spread_mm**2
    # Half a millimetre, where nothing is left: no vote but that of the nearest cell.
    width = squares.clamp(min=0.25).sqrt()
    to_cell = torch.linalg.inv(coarse[:3, :3])
    middle = to_cell @ (expected - coarse[:3, 3])
    # Of an ellipsoid, the longest reach along each axis of the cells.
    reach = (to_cell * width * math.sqrt(2)).norm(dim=1)
    nearest = middle.round().long()
    low = torch.minimum((middle - reach).ceil().long(), nearest)
    high = torch.maximum((middle + reach).floor().long(), nearest)
    ranges = [torch.arange(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    cell = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).double()
    away = ((cell - nearest) @ coarse[:3, :3].T / width).square().sum(-1)
    return Votes((1 - away / 2).clamp(min=0), tuple(low.tolist()))


def reconsidered(
    found: CommonCenter, votes: Sequence[Votes], weight: Sequence[float], scan: Votes
) -> CommonCenter:
    """The best common centre with the scan's vote, where that is another place.

    Another place is farther than ``σ √2``, at which an organ is no longer heard.

    Args:
        found: of the organs alone.
        votes: of the organs around the centre, see :func:`~stipple_monai.spatial.common_center`.
        weight: of a squared cell along each axis, ``cell² / (2 σ²)``.
        scan: its votes for the centre, of any dtype and device.

    Returns:
        What was found, or the centre with the scan's vote, whose place is then the last one.

    Example:
        >>> low, high = torch.zeros(1, 1, 30), torch.zeros(1, 1, 30)
        >>> low[..., 0], high[..., [4, 25]] = 0.9, torch.tensor([0.8, 0.5])
        >>> votes, weight = [Votes(low + high, (0, 0, 0))], (0.01, 0.01, 0.01)
        >>> alone = common_center(votes, weight)
        >>> scans = [Votes(torch.ones(1, 1, 1), (0, 0, s)) for s in (4, 25)]
        >>> [reconsidered(alone, votes, weight, scan).center[2] for scan in scans]
        [0, 25]
    """
    other = common_center([*votes, Votes(scan.values.to(votes[0].values), scan.start)], weight)
    apart = zip(weight, found.center, other.center, strict=True)
    return other if sum(w * (a - b) ** 2 for w, a, b in apart) > 1 else found


def place_alone(
    vote: Votes, expected: Tensor, coarse: Tensor, spread_mm: float
) -> tuple[int, ...] | None:
    """The cell that the scan chooses for an organ that is located by itself.

    It is the greatest ``V + w · scan``, ``w`` = :data:`ALONE`, where that is another place than the
    greatest ``V``: farther than ``σ √2``.

    Args:
        vote: ``V`` of the organ, at most 1.
        expected: world point of the organ, ``(3,)`` float64, see :func:`expected_center`.
        coarse: affine of the cells, ``(4, 4)`` float64.
        spread_mm: ``σ``.

    Returns:
        ``None`` where it chooses no other place.

    Example:
        >>> seen = torch.zeros(1, 1, 60)
        >>> seen[..., 5], seen[..., 50] = 0.7, 0.9
        >>> cells = torch.diag(torch.tensor([4.0, 4, 4, 1]).double())
        >>> place_alone(Votes(seen, (0, 0, 0)), torch.tensor([0, 0, 12.0]).double(), cells, 40)
        (0, 0, 5)
    """
    ranges = [torch.arange(n) + s for n, s in zip(vote.values.shape, vote.start, strict=True)]
    i, j, k = ranges[0][:, None, None], ranges[1][:, None], ranges[2]
    # in widths, axis by axis of the body: no array of points
    steps = (coarse[:3] / torch.tensor(SCAN_SPREAD_MM)[:, None]).tolist()
    middle = (expected / torch.tensor(SCAN_SPREAD_MM)).tolist()
    away = sum(
        (a * i + b * j + c * k + d - m).square()
        for (a, b, c, d), m in zip(steps, middle, strict=True)
    )
    scan = (1 - away / 2).clamp(min=0).to(vote.values)
    before, after = (
        torch.tensor(np.unravel_index(int(values.argmax()), values.shape))
        for values in (vote.values, vote.values + ALONE * scan)
    )
    if float((coarse[:3, :3] @ (after - before).double()).norm()) <= spread_mm * math.sqrt(2):
        return None
    return tuple((after + torch.tensor(vote.start)).tolist())
