"""The joint score of several organs at every cell, as it is defined: slow, whole volumes.

The oracle of `stipple_monai.positioning.joint`, which finds the best places alone.
"""

import math

import torch
import torch.nn.functional as F

from stipple_monai.positioning.single import around_center
from stipple_monai.spatial import correlate


def score_maps(blocks, references, coarse):
    """``S_k``, the share of each organ's prior that is supported at each cell.

    Args:
        blocks: see `coarse_evidence`.
        references: one per organ.
        coarse: affine of the cells, ``(4, 4)``.

    Returns:
        ``(K, W, H, D)`` in [0, 1] and the index ``(3,)`` of its first cell.
    """
    kernels = [around_center(reference, coarse).to(blocks) for reference in references]
    half = torch.tensor([[(n - 1) // 2 for n in kernel.shape] for kernel in kernels])
    margin = half.amax(0)
    shares = []
    for block, kernel, own in zip(blocks, kernels, half, strict=True):
        padding = [int(m) for m in (margin - own).flip(0) for _ in range(2)]
        # A prior may have nothing in the middle of any cell.
        total = kernel.sum().clamp(min=torch.finfo(kernel.dtype).tiny)
        shares.append(F.pad(correlate(block, kernel) / total, padding))
    return torch.stack(shares).clamp_(min=0), -margin


def joint_score_maps(vote, start, references, coarse, spread_mm):
    """The best joint score with each organ at each cell, see `joint_marginals`.

    Args:
        vote: ``V_k``, ``(K, W, H, D)`` in [0, 1].
        start: index ``(3,)`` of its first cell.
        references: one per organ, with their offsets.
        coarse: affine of the cells, ``(4, 4)``.
        spread_mm: ``σ``.

    Returns:
        ``(K, W, H, D)``, larger by the offsets, and the index ``(3,)`` of its first cell.
    """
    offsets = torch.tensor([r.offset_mm for r in references], dtype=torch.float64)
    offset = (offsets @ torch.linalg.inv(coarse[:3, :3]).T).round().long()
    margin = offset.abs().amax(0)
    vote = F.pad(vote, [int(m) for m in margin.flip(0) for _ in range(2)])
    weight = coarse[:3, :3].norm(dim=0).square() / (2 * spread_mm**2)
    return joint_marginals(vote, offset, weight), start - margin


def joint_marginals(vote, offset, weight):
    """The best joint score with organ k at each cell, ``(K, W, H, D)``.

    Args:
        vote: ``V_k``, ``(K, W, H, D)`` in [0, 1].
        offset: ``μ_k`` in cells, ``(K, 3)`` integers. A common centre is heard within the array
            only, as far as ``c + μ_k`` lies in it too.
        weight: ``1 / (2 σ²)`` along each axis, per squared cell, ``(3,)``.
    """
    votes = torch.stack(
        [
            _moved(_reach_out(s, weight), [-x for x in o])
            for s, o in zip(vote, offset.tolist(), strict=True)
        ]
    )
    total = votes.sum(0)
    return torch.stack(
        [
            s + _moved(_reach_out(total - v, weight), o)
            for s, v, o in zip(vote, votes, offset.tolist(), strict=True)
        ]
    )


def _moved(score, by):
    """Move values by whole cells; what comes in from outside is 0."""
    return F.pad(score, [pad for b in reversed(by) for pad in (b, -b)])


def _reach_out(score, weight):
    """``max_d [score(x + d) − Σ_a weight_a d_a²]``, at least 0."""
    for axis, w in enumerate(weight.tolist()):
        top = float(score.max())
        best = score.clone()
        for d in range(1, min(math.ceil(math.sqrt(top / w)), score.shape[axis])):
            lower = score.narrow(axis, 0, score.shape[axis] - d) - w * d * d
            upper = score.narrow(axis, d, score.shape[axis] - d) - w * d * d
            near = best.narrow(axis, d, score.shape[axis] - d)
            torch.maximum(near, lower, out=near)
            near = best.narrow(axis, 0, score.shape[axis] - d)
            torch.maximum(near, upper, out=near)
        score = best
    return score.clamp(min=0)
