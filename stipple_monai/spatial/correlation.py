"""The best translation of one array over another, without computing all of them.

The score of a translation ``t`` is ``Σ_u K(u) E(t + u − c)``, ``c`` being the middle of the kernel
``K``. A Fourier transform gives all scores at once, which for a CT volume takes gigabytes and most
of a minute. Both arrays are non-negative, so that sums of ``E`` over blocks and the greatest
``K`` that any voxel of a block can meet bound the scores of a whole cell of translations from
above: only where the bound reaches a score that was seen can the best translation be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

# Of a score in single precision.
_ROUNDING = 1e-4


class Box(NamedTuple):
    """Translations ``start`` to ``stop - 1`` along each axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]


def correlate(volume: Tensor, kernel: Tensor) -> Tensor:
    """Score every translation at which the two overlap.

    Args:
        volume: ``(W, H, D)``.
        kernel: ``(w, h, d)`` of the same dtype and device.

    Returns:
        ``(W + w − 1, H + h − 1, D + d − 1)``; index i is the translation ``i − (n − 1)`` of the
        kernel's first voxel, n being the kernel's length along the axis.

    Example:
        >>> correlate(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[10.0, 1.0]]])).round()
        tensor([[[ 1., 12., 23., 30.]]])
    """
    shape = [n + m - 1 for n, m in zip(volume.shape, kernel.shape, strict=True)]
    fast = [next_fast_len(n, real=True) for n in shape]
    spectrum = torch.fft.rfftn(volume, s=fast)
    spectrum *= torch.fft.rfftn(kernel.flip((0, 1, 2)), s=fast)
    return torch.fft.irfftn(spectrum, s=fast)[: shape[0], : shape[1], : shape[2]]


def score_at(volume: Tensor, kernel: Tensor, middle: Sequence[int]) -> float:
    """Score one translation.

    Args:
        volume: ``(W, H, D)``.
        kernel: ``(w, h, d)``, odd lengths.
        middle: the voxel of ``volume`` under the kernel's middle; it may lie outside.

    Returns:
        The score, summed in float64.
    """
    first = [m - (n - 1) // 2 for m, n in zip(middle, kernel.shape, strict=True)]
    pairs = list(zip(first, kernel.shape, volume.shape, strict=True))
    met = [slice(max(a, 0), max(min(a + n, size), 0)) for a, n, size in pairs]
    part = [slice(max(-a, 0), max(min(size - a, n), 0)) for a, n, size in pairs]
    both = volume[met[0], met[1], met[2]].double() * kernel[part[0], part[1], part[2]]
    return float(both.sum())


def scores_in(volume: Tensor, kernel: Tensor, box: Box) -> Tensor:
    """Score the translations of a box, reading only what the two have in common there.

    Args:
        volume: ``(W, H, D)``.
        kernel: ``(w, h, d)``, odd lengths.
        box: translations of the kernel's middle voxel, in voxels of ``volume``; they may lie
            outside of it, where the volume is zero.

    Returns:
        ``(stop − start)`` along each axis.
    """
    half = [(n - 1) // 2 for n in kernel.shape]
    inside = [
        slice(max(a - h, 0), max(min(b + h, n), a - h, 0))
        for a, b, h, n in zip(box.start, box.stop, half, volume.shape, strict=True)
    ]
    part = volume[inside[0], inside[1], inside[2]].double()
    shape = [b - a for a, b in zip(box.start, box.stop, strict=True)]
    if part.numel() == 0:
        return part.new_zeros(shape)
    meets = [
        slice(max(s.start - b + 1 + h, 0), min(s.stop - a + h, m))
        for a, b, s, h, m in zip(*box, inside, half, kernel.shape, strict=True)
    ]
    kernel = kernel[meets[0], meets[1], meets[2]].double()
    # index i has the kernel's last voxel, of those that are left, on voxel inside.start + i
    begin = [
        a - s.start - h + k.stop - 1
        for a, s, h, k in zip(box.start, inside, half, meets, strict=True)
    ]
    full = [n + m - 1 for n, m in zip(part.shape, kernel.shape, strict=True)]
    low = [min(max(b, 0), f) for b, f in zip(begin, full, strict=True)]
    high = [max(min(b + n, f), a) for b, n, f, a in zip(begin, shape, full, low, strict=True)]
    if any(a == b for a, b in zip(low, high, strict=True)):
        return part.new_zeros(shape)
    # A transform wraps around. It need only be so long that what wraps misses these translations.
    period = [
        next_fast_len(max(b, f - a, n, m), real=True)
        for a, b, m, n, f in zip(low, high, kernel.shape, part.shape, full, strict=True)
    ]
    spectrum = torch.fft.rfftn(part, s=period)
    spectrum *= torch.fft.rfftn(kernel.flip((0, 1, 2)), s=period)
    score = torch.fft.irfftn(spectrum, s=period)
    for axis, (a, b, p) in enumerate(zip(low, high, period, strict=True)):
        score = score.index_select(axis, torch.arange(a, b, device=score.device) % p)
    ends = zip(*(reversed(x) for x in (begin, shape, low, high)), strict=True)
    return F.pad(score, [beyond for b, n, a, c in ends for beyond in (a - b, b + n - c)])


def parabola_top(before: float, here: float, after: float) -> float:
    """Where the parabola through the scores of three neighbours has its top.

    Returns:
        Its place, from the middle one, in steps between neighbours; within half a step where none
        is greater than the middle one. 0 where the parabola has no top.

    Example:
        >>> parabola_top(2.0, 3.0, 0.0), parabola_top(1.0, 1.0, 1.0)
        (-0.25, 0.0)
    """
    bend = before - 2 * here + after
    return (before - after) / (2 * bend) if bend < 0 else 0.0


def peak_near(score: Tensor, cell: Tensor) -> Tensor:
    """Where the greatest score of a cell and its neighbours lies, between the cells' middles.

    A parabola through the best cell and its two neighbours along an axis has its top within half a
    cell of it.

    Args:
        score: ``(W, H, D)``, not negative; it is zero beyond its edges.
        cell: index ``(3,)``; it may lie outside.

    Returns:
        Index ``(3,)`` float64 on the CPU. Of equal cells, the nearest; the cell itself where all
        scores are zero.

    Example:
        >>> peak_near(torch.tensor([[[0.0, 2.0, 3.0, 0.0]]]), torch.tensor([0, 0, 1]))
        tensor([0.0000, 0.0000, 1.7500], dtype=torch.float64)
    """
    low = (cell - 2).clamp(min=0)
    high = torch.minimum(cell + 3, torch.tensor(score.shape))
    around = torch.zeros(5, 5, 5, dtype=torch.float64)
    if bool((low < high).all()):
        part = score[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
        into = [slice(int(a), int(b)) for a, b in zip(low - cell + 2, high - cell + 2, strict=True)]
        around[into[0], into[1], into[2]] = part.to(around)
    near = around[1:4, 1:4, 1:4]
    equal = torch.nonzero(near >= near.amax() * (1 - _ROUNDING)) + 1
    best = equal[(equal - 2).square().sum(1).argmin()]
    top = best.double()
    for axis, step in enumerate(torch.eye(3, dtype=torch.int64)):
        before, here, after = (float(around[tuple(best + n * step)]) for n in (-1, 0, 1))
        top[axis] += min(0.5, max(-0.5, parabola_top(before, here, after)))
    return top + cell - 2


def seen_box(volume: Tensor) -> Box:
    """The box of an array ``(W, H, D)``, not negative, that holds all that is not zero.

    Of an array of zeros it is the first voxel. A GPU is waited for once.
    """
    # Two passes over the array: the second axis and the third are looked at in one.
    plane = volume.amax(0)
    lines = torch.cat([volume.amax((1, 2)), plane.amax(1), plane.amax(0)]).cpu()
    seen = [line.nonzero().flatten() for line in lines.split(list(volume.shape))]
    if any(len(s) == 0 for s in seen):
        return Box((0, 0, 0), (1, 1, 1))
    return Box(tuple(int(s[0]) for s in seen), tuple(int(s[-1]) + 1 for s in seen))


def in_blocks(volume: Tensor, block: Sequence[int]) -> Tensor:
    """Sums over blocks, the last of them filled with zeros."""
    return reduced(volume, block, (0, 0, 0), torch.add)


def reduced(
    values: Tensor, block: Sequence[int], front: Sequence[int], operation: Callable[..., Tensor]
) -> Tensor:
    """Sums or maxima over blocks, of which the first and the last are filled with zeros.

    Args:
        values: ``(W, H, D)``, not negative.
        block: size of a block.
        front: zeros before the first value along each axis, fewer than a block.
        operation: ``torch.add`` or ``torch.maximum``, of two arrays with ``out``.
    """
    # Slices take a quarter of the time of pooling, and what is not there need not be padded.
    for axis, (f, zeros) in enumerate(zip(block, front, strict=True)):
        if f == 1:
            continue
        n = values.shape[axis]
        every = (slice(None),) * axis
        if zeros == 0 and n % f == 0:
            parts = [values[(*every, slice(i, None, f))] for i in range(f)]
            values = functools.reduce(operation, parts)
            continue
        shape = [-(-(n + zeros) // f) if a == axis else m for a, m in enumerate(values.shape)]
        out = values.new_zeros(shape)
        for i in range(f):
            slot, first = (0, i - zeros) if i >= zeros else (1, i - zeros + f)
            part = values[(*every, slice(first, None, f))]
            into = out.narrow(axis, slot, part.shape[axis]) if part.numel() else part
            operation(into, part, out=into)
        values = out
    return values


def bounds(blocks: Tensor, kernel: Tensor, block: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Upper bounds of the scores of cells of translations.

    A cell is a block of translations of the kernel's middle voxel.

    Args:
        blocks: sums of the volume over blocks, see :func:`in_blocks`.
        kernel: ``(w, h, d)``, odd lengths, not negative.
        block: size of a block in voxels.

    Returns:
        The bounds and the index ``(3,)`` of their first cell; cell j holds the translations
        ``block · j`` to ``block · j + block − 1``.
    """
    # block i meets, for the translations of cell j, the kernel at block (i − j) ± (block − 1)
    reach = [-(-((n - 1) // 2 + f - 1) // f) for n, f in zip(kernel.shape, block, strict=True)]
    padding: list[int] = []
    for r, n, f in zip(reversed(reach), reversed(kernel.shape), reversed(block), strict=True):
        # first window: centred on −reach · block, of length 2 block − 1
        side = r * f + f - 1 - (n - 1) // 2
        padding += [side, side]
    windows = tuple(2 * f - 1 for f in block)
    greatest = F.max_pool3d(F.pad(kernel, padding)[None, None], windows, tuple(block))[0, 0]
    return correlate(blocks, greatest.to(blocks)), -torch.tensor(reach)


def promising(
    volume: Tensor, kernel: Tensor, block: Sequence[int], *, within: Box | None = None
) -> Box:
    """The smallest box, in blocks, that holds every best translation.

    Args:
        volume: ``(W, H, D)``, not negative, with a positive value.
        kernel: ``(w, h, d)``, odd lengths, not negative.
        block: size of a block in voxels; 1 along an axis leaves it as it is.
        within: look here only.

    Returns:
        Translations of the kernel's middle voxel.
    """
    half = [(n - 1) // 2 for n in kernel.shape]
    overlap = Box(
        tuple(-h for h in half), tuple(n + h for n, h in zip(volume.shape, half, strict=True))
    )
    limits = overlap if within is None else within
    bound, first = bounds(in_blocks(volume, block).float(), kernel.float(), block)
    size = torch.tensor(block)
    low = torch.div(torch.tensor(limits.start), size, rounding_mode="floor") - first
    high = torch.div(torch.tensor(limits.stop) - 1, size, rounding_mode="floor") - first + 1
    low, high = low.clamp(min=0), torch.minimum(high, torch.tensor(bound.shape))
    if bool((low >= high).any()):
        return limits
    bound = bound[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    first = first + low

    def cells(start: Tensor, stop: Tensor) -> Box:
        a, b = (first + start) * size, (first + stop) * size
        return Box(
            tuple(max(int(x), y) for x, y in zip(a, limits.start, strict=True)),
            tuple(min(int(x), y) for x, y in zip(b, limits.stop, strict=True)),
        )

    best = torch.stack(torch.unravel_index(bound.argmax().cpu(), bound.shape))
    # One translation of the best cell. Its best one narrows hardly more and takes a transform.
    start, stop = cells(best, best + 1)
    seen = score_at(volume, kernel, [(a + b) // 2 for a, b in zip(start, stop, strict=True)])
    left = torch.nonzero(bound >= seen * (1 - _ROUNDING) - _ROUNDING * bound.max())
    left = left.cpu()
    return cells(left.amin(0), left.amax(0) + 1)
