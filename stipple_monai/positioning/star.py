"""The common centre of organs, in cells: organs vote, and where that is far, the scan as well.

The words and the sum that is maximised are those of :mod:`stipple_monai.positioning.joint`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stipple_monai.positioning.scan_vote import reconsidered, scan_votes
from stipple_monai.priors import SpatialPrior
from stipple_monai.spatial import CommonCenter, Votes, common_center


def best_together(
    votes: Sequence[Votes], references: Sequence[SpatialPrior], coarse: Tensor, spread_mm: float
) -> CommonCenter:
    """The common centre of all organs, with the cells of their places.

    Args:
        votes: ``V_k``, or ``S_k``.
        references: one per organ, with their offsets.
        coarse: affine of the cells, ``(4, 4)``.
        spread_mm: ``σ``.

    Returns:
        In cells. The place of an organ that is not heard is its mean place around the centre.
    """
    return chosen_together(votes, references, coarse, spread_mm, None)[0]


def chosen_together(
    votes: Sequence[Votes],
    references: Sequence[SpatialPrior],
    coarse: Tensor,
    spread_mm: float,
    expected: Tensor | None,
) -> tuple[CommonCenter, bool]:
    """As `best_together`, and whether the scan chose it, which expects the centre somewhere.

    Args:
        votes: likewise.
        references: likewise.
        coarse: likewise.
        spread_mm: likewise.
        expected: world point of the centre, ``(3,)`` float64, see
            :func:`~stipple_monai.positioning.scan_vote.expected_center`; ``None``: the scan has no
            vote.
    """
    offsets_mm = torch.tensor([r.offset_mm for r in references], dtype=torch.float64)
    offsets = (offsets_mm @ torch.linalg.inv(coarse[:3, :3]).T).round().int().tolist()
    weight = (coarse[:3, :3].norm(dim=0).square() / (2 * spread_mm**2)).tolist()
    around_centers = [
        Votes(values, tuple(s - o for s, o in zip(start, offset, strict=True)))
        for (values, start), offset in zip(votes, offsets, strict=True)
    ]
    found = alone = common_center(around_centers, weight)
    if expected is not None:
        scan = scan_votes(expected, coarse, spread_mm)
        found = reconsidered(alone, around_centers, weight, scan)
    places = [
        tuple(p + o for p, o in zip(place, offset, strict=True))
        for place, offset in zip(found.places[: len(votes)], offsets, strict=True)
    ]
    return found._replace(places=places), found is not alone
