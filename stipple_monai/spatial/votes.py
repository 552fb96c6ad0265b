"""The best common centre of several arrays of votes.

Array k holds votes ``V_k(x) ≥ 0`` at whole cells x, and 0 elsewhere. A centre hears, of each array,
the best vote less its squared distance, and is worth the sum:

``U_k(c) = max_x V_k(x) − Σ_a w_a (x_a − c_a)²``, ``worth(c) = Σ_k U_k(c)``.

``U_k`` is never negative, since ``x = c`` costs nothing. At every cell it is a distance transform
(Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", Theory of Computing
2012), and for many arrays takes seconds. Only the best centre is wanted. The greatest votes of
blocks of cells and the least distances between blocks bound ``U_k`` from above, for all centres of
a block at once, and only where the sum of these bounds exceeds the worth of a centre that was seen
can the best one be. From large blocks to small ones and to cells little is left, and the result is
exact, up to rounding.

Words: *votes* are an array and the index of its first cell; a *block* is a box of cells, of one
size at each *level*; level 0 has the cells themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stipple_monai.spatial.correlation import Box, reduced

_SIDE = 0.16
"""Of the smallest blocks, in distances at which a vote of 1 is no longer heard."""
_ROUNDING = 1e-6
_AT_ONCE = 1 << 19
"""Values that are worked on together: more would not stay in a processor's cache."""


class Votes(NamedTuple):
    """Votes ``(W, H, D)``, not negative, and the index of their first cell."""

    values: Tensor
    start: tuple[int, ...]


class CommonCenter(NamedTuple):
    """The greatest worth.

    Attributes:
        center: index of the cell ``c``.
        places: for each array the index of the cell ``x`` whose vote is heard; the centre itself
            where none is.
        worth: the sum of what is heard.
    """

    center: tuple[int, ...]
    places: list[tuple[int, ...]]
    worth: float


class _Level(NamedTuple):
    """All votes at one level, and ``costs[a][d]`` of blocks that are d apart along axis a."""

    block: tuple[int, ...]
    votes: list[Votes]
    costs: list[list[float]]


def common_center(votes: Sequence[Votes], weight: Sequence[float]) -> CommonCenter:
    """Find the centre of the greatest worth.

    Args:
        votes: one or more, of one dtype and device.
        weight: ``w``, positive, the cost of a squared cell along each axis.

    Returns:
        The centre. Of several whose worth differs by rounding alone it is one of them.

    Example:
        >>> left = Votes(torch.tensor([[[0.0, 0.9, 0.0]]]), (0, 0, 0))
        >>> right = Votes(torch.tensor([[[0.2, 0.0, 0.8]]]), (0, 0, 3))
        >>> best = common_center([left, right], (0.01, 0.01, 0.01))
        >>> best.center, best.places, round(best.worth, 2)
        ((0, 0, 3), [(0, 0, 1), (0, 0, 5)], 1.62)
    """
    levels = _levels(votes, weight)
    # The best centre is a rounded mean of places, so that it lies among the votes.
    box = _extent(levels[-1].votes)
    slack = _ROUNDING * len(votes)
    best = CommonCenter((), [], -1.0)
    for level, finer in zip(reversed(levels), [*reversed(levels[:-1]), levels[0]], strict=True):
        worth = _worth(level, box)
        if float(worth.amax()) > best.worth + slack:
            top = torch.unravel_index(worth.argmax(), worth.shape)
            middle = [
                (s + int(i)) * f + f // 2
                for s, i, f in zip(box.start, top, level.block, strict=True)
            ]
            best = max(best, _climb(levels[0], middle), key=lambda found: found.worth)
        left = torch.nonzero(worth > best.worth + slack)
        if len(left) == 0:
            break
        factor = [f // g for f, g in zip(level.block, finer.block, strict=True)]
        low, high = left.amin(0).tolist(), left.amax(0).tolist()
        box = Box(
            tuple((s + a) * f for s, a, f in zip(box.start, low, factor, strict=True)),
            tuple((s + b + 1) * f for s, b, f in zip(box.start, high, factor, strict=True)),
        )
    return best


def _levels(votes: Sequence[Votes], weight: Sequence[float]) -> list[_Level]:
    """The votes themselves, then their greatest in larger and larger blocks."""
    size = [b - a for a, b in zip(*_extent(votes), strict=True)]
    sides = [max(1, min(round(_SIDE / math.sqrt(w)), n)) for w, n in zip(weight, size, strict=True)]
    blocks: list[tuple[int, ...]] = [(1, 1, 1)]
    values = [list(votes)]
    for factors in (sides, (2, 2, 2), (2, 2, 2)):
        if max(factors) > 1:
            blocks.append(tuple(f * g for f, g in zip(factors, blocks[-1], strict=True)))
            values.append([_block_maxima(v, factors) for v in values[-1]])
    top = max(float(v.values.amax()) for v in values[-1])
    return [
        _Level(
            block,
            level,
            [_costs(w, f, n, top) for w, f, n in zip(weight, block, size, strict=True)],
        )
        for block, level in zip(blocks, values, strict=True)
    ]


def _costs(weight: float, block: int, size: int, top: float) -> list[float]:
    """Least costs of blocks that are 0, 1, … apart, as long as a vote is greater.

    Args:
        weight: of a squared cell.
        block: its length.
        size: what all votes take; blocks farther apart are not asked for.
        top: the greatest vote.
    """
    # Cells of blocks that are d apart lie at least d · f − (f − 1) cells apart.
    reach = math.ceil((math.sqrt(top / weight) + block - 1) / block)
    distances = range(max(1, min(reach, size // block + 2)))
    return [weight * max(0, d * block - block + 1) ** 2 for d in distances]


def _block_maxima(votes: Votes, block: Sequence[int]) -> Votes:
    """The greatest vote in each block; block j begins with the cell ``block · j``."""
    front = [s % f for s, f in zip(votes.start, block, strict=True)]
    values = reduced(votes.values, block, front, torch.maximum)
    return Votes(values, tuple(s // f for s, f in zip(votes.start, block, strict=True)))


def _worth(level: _Level, box: Box) -> Tensor:
    """The worth of each centre in a box, or the bound for each block."""
    reach = [len(costs) - 1 for costs in level.costs]
    window = _within(box, reach, _extent(level.votes))
    shape = [b - a for a, b in zip(*box, strict=True)]
    worth = level.votes[0].values.new_zeros(shape)
    together = max(1, _AT_ONCE // math.prod(b - a + 1 for a, b in zip(*window, strict=True)))
    for i in range(0, len(level.votes), together):
        heard = _cut_out(level.votes[i : i + together], window)
        for axis, costs in enumerate(level.costs):
            shift = box.start[axis] - window.start[axis]
            heard = _best_along(heard, axis + 1, shift, shape[axis], costs)
        worth += heard.sum(0)
    return worth


def _best_along(
    values: Tensor, axis: int, shift: int, length: int, costs: Sequence[float]
) -> Tensor:
    """``max_d values[i + shift + d] − costs[|d|]``, at least 0, for i below ``length``."""
    best = values.new_zeros([length if a == axis else n for a, n in enumerate(values.shape)])
    for d in range(1 - len(costs), len(costs)):
        low = max(0, -shift - d)
        count = min(length, values.shape[axis] - shift - d) - low
        if count > 0:
            near = best.narrow(axis, low, count)
            moved = values.narrow(axis, low + shift + d, count)
            torch.maximum(near, moved - costs[abs(d)], out=near)
    return best


def _climb(cells: _Level, start: Sequence[int]) -> CommonCenter:
    """From a centre to the mean of the places that it hears, as long as that is worth more."""
    best, mean = _at(cells, start)
    while True:
        found, mean = _at(cells, mean)
        if not found.worth > best.worth:
            return best
        best = found


def _at(cells: _Level, center: Sequence[int]) -> tuple[CommonCenter, list[int]]:
    """A centre and the mean of the places that it hears, which is itself where it hears none."""
    here = Box(tuple(center), tuple(c + 1 for c in center))
    window = _within(here, [len(costs) - 1 for costs in cells.costs], _extent(cells.votes))
    heard = _cut_out(cells.votes, window)
    if heard.numel() == 0:
        return CommonCenter(here.start, [here.start] * len(heard), 0.0), list(center)
    w, h, d = (
        heard.new_tensor([costs[abs(x - c)] for x in range(a, b)])
        for costs, a, b, c in zip(cells.costs, *window, center, strict=True)
    )
    heard -= w[:, None, None] + h[:, None] + d
    values, index = heard.flatten(1).max(1)
    places = torch.stack(torch.unravel_index(index, heard.shape[1:]), dim=1).cpu()
    places += torch.tensor(window.start)
    silent = values.cpu() <= 0
    places[silent] = torch.tensor(here.start)
    found = CommonCenter(
        here.start, [tuple(p) for p in places.tolist()], float(values.clamp(min=0).sum())
    )
    if bool(silent.all()):
        return found, list(center)
    return found, places[~silent].double().mean(0).round().int().tolist()


def _extent(votes: Sequence[Votes]) -> Box:
    """The smallest box that holds all votes."""
    stops = [[s + n for s, n in zip(v.start, v.values.shape, strict=True)] for v in votes]
    return Box(
        tuple(min(starts) for starts in zip(*(v.start for v in votes), strict=True)),
        tuple(max(stop) for stop in zip(*stops, strict=True)),
    )


def _within(box: Box, reach: Sequence[int], limits: Box) -> Box:
    """A box and what it can hear, where there is anything."""
    start = [max(a - r, c) for a, r, c in zip(box.start, reach, limits.start, strict=True)]
    stop = [min(b + r, c) for b, r, c in zip(box.stop, reach, limits.stop, strict=True)]
    return Box(tuple(start), tuple(max(a, b) for a, b in zip(start, stop, strict=True)))


def _cut_out(votes: Sequence[Votes], box: Box) -> Tensor:
    """What a box holds of all votes, ``(K, …)``."""
    cut = votes[0].values.new_zeros([len(votes), *(b - a for a, b in zip(*box, strict=True))])
    for k, (values, start) in enumerate(votes):
        low = [max(a, s) for a, s in zip(box.start, start, strict=True)]
        high = [min(b, s + n) for b, s, n in zip(box.stop, start, values.shape, strict=True)]
        if all(a < b for a, b in zip(low, high, strict=True)):
            there = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            here = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, box.start, strict=True))
            cut[k][here] = values[there]
    return cut
