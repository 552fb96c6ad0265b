"""What a scan's own extent says of where its organs are.

Scans of one protocol begin at about the same height above the organs and have the patient in
their middle, so that organs lie at about the same place relative to the middle of the scan's top.
The label maps that priors were estimated from tell where. A network of few labels may fire
throughout a pelvis that it was never shown; every organ then finds a faint trace of itself there,
and nothing else says which place is absurd.

The scan counts as one more organ, with a vote of 1 for the expected centre. What it says is rough:
organs lie some centimetres higher or lower from patient to patient. So it only chooses between
places that are far apart, and moves nothing within one.

Words: a scan's *top* is that of :func:`stipple_monai.spatial.top_middle`; the *common centre* of
organs is the one of :mod:`stipple_monai.positioning.joint`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stipple_monai.priors import SpatialPrior
from stipple_monai.spatial import CommonCenter, Votes, common_center, top_middle


def expected_center(
    references: Sequence[SpatialPrior], affine: Tensor, shape: Sequence[int]
) -> Tensor | None:
    """Where scans like this one have the organs' common centre, ``(3,)`` float64 RAS mm.

    Args:
        references: one per organ.
        affine: of the scan, ``(4, 4)`` float64.
        shape: of the scan, ``(W, H, D)``.

    Returns:
        ``None`` where a reference does not know its offset, or its place from the top.
    """
    centers = [
        np.subtract(reference.from_top_mm, reference.offset_mm)
        for reference in references
        if reference.from_top_mm is not None and reference.offset_mm is not None
    ]
    if not references or len(centers) < len(references):
        return None
    return torch.from_numpy(top_middle(affine.numpy(), shape) + np.mean(centers, axis=0))


def reconsidered(
    found: CommonCenter, votes: Sequence[Votes], weight: Sequence[float], expected: Sequence[int]
) -> CommonCenter:
    """The best common centre with the scan's vote, where that is another place.

    Another place is farther than ``σ √2``, at which an organ is no longer heard.

    Args:
        found: of the organs alone.
        votes: of the organs around the centre, see :func:`~stipple_monai.spatial.common_center`.
        weight: of a squared cell along each axis, ``cell² / (2 σ²)``.
        expected: the cell of the centre for which the scan votes.

    Returns:
        What was found, or the centre with the scan's vote, whose place is then the last one.

    Example:
        >>> low, high = torch.zeros(1, 1, 30), torch.zeros(1, 1, 30)
        >>> low[..., 0], high[..., [4, 25]] = 0.9, torch.tensor([0.8, 0.5])
        >>> votes, weight = [Votes(low + high, (0, 0, 0))], (0.01, 0.01, 0.01)
        >>> alone = common_center(votes, weight)
        >>> [reconsidered(alone, votes, weight, (0, 0, s)).center[2] for s in (4, 25)]
        [0, 25]
    """
    scan = Votes(votes[0].values.new_ones(1, 1, 1), tuple(expected))
    other = common_center([*votes, scan], weight)
    apart = zip(weight, found.center, other.center, strict=True)
    return other if sum(w * (a - b) ** 2 for w, a, b in apart) > 1 else found
