"""Values of an image that lies along the world axes, on any other grid.

``torch.nn.functional.grid_sample`` interpolates; what it does not know is where the box ends,
that the third axis may be a histogram, and that only the voxels under the box need computing. A
grid whose axes are the world's, which most are, is sampled axis by axis, several times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.data import MetaTensor

from stipple_monai.errors import PriorError
from stipple_monai.nifti import RAS_REMEDY, leads_to_lps

# A voxel this close to an edge (in voxels) lies on it, whatever rounding did to its coordinate.
_EDGE = 1e-4


def sample_on_grid(
    image: torch.Tensor,
    *,
    spacing_mm: Sequence[float],
    center_mm: torch.Tensor,
    affine: torch.Tensor,
    shape: Sequence[int],
    nearest_along_z: bool,
) -> torch.Tensor:
    """Sample a box around ``center_mm`` at the voxels of a grid.

    Args:
        image: ``(W_p, H_p, B)``, axes along R, A and S.
        spacing_mm: voxel size of ``image``.
        center_mm: ``(3,)`` float64 on the CPU, world point of the middle of ``image``.
        affine: ``(4, 4)`` float64 on the CPU, voxel to world of the grid.
        shape: ``(W, H, D)`` of the grid.
        nearest_along_z: take the voxel that a point falls in along z (a point between two
            belongs to the upper); interpolate otherwise. In the plane it is always linear.

    Returns:
        ``(W, H, D)`` on the device of ``image``. Inside the box, its edge included, values
        beyond the outermost voxel centres are those of the outermost voxels; outside, zero.

    Example:
        >>> line = torch.tensor([0.2, 0.8]).reshape(1, 1, 2)
        >>> grid = {"affine": torch.eye(4, dtype=torch.float64), "shape": (1, 1, 6)}
        >>> center = torch.tensor([0.0, 0.0, 2.5], dtype=torch.float64)
        >>> sample_on_grid(
        ...     line, spacing_mm=(1, 1, 2), center_mm=center, nearest_along_z=True, **grid
        ... ).flatten()
        tensor([0.0000, 0.2000, 0.2000, 0.8000, 0.8000, 0.0000])
    """
    size = torch.tensor(image.shape, dtype=torch.float64)
    linear, offset = _to_index(size, spacing_mm, center_mm, affine)
    box = _box_under(size, linear, offset, shape)
    if any(b.start >= b.stop for b in box):
        return image.new_zeros(tuple(shape))
    if int((linear != 0).sum()) == 3:
        steps = _steps(image.shape, linear, offset, box, nearest_along_z=nearest_along_z)
        values = _along_axes(image, steps)
    else:
        values = _all_at_once(image, linear, offset, box, nearest_along_z=nearest_along_z)
    if values.shape == tuple(shape):
        return values.contiguous()
    out = image.new_zeros(tuple(shape))
    out[box[0], box[1], box[2]] = values
    return out


def _all_at_once(
    image: torch.Tensor,
    linear: torch.Tensor,
    offset: torch.Tensor,
    box: Sequence[slice],
    *,
    nearest_along_z: bool,
) -> torch.Tensor:
    """Sample the part of a grid that lies in any way."""
    x, y, z = (torch.arange(b.start, b.stop, dtype=torch.float64, device=image.device) for b in box)
    start = torch.zeros(1, 1, 1, dtype=torch.float64, device=image.device)
    inside = torch.ones(1, 1, 1, dtype=torch.bool, device=image.device)
    scaled: list[torch.Tensor] = []
    for row, shift, n in zip(linear.tolist(), offset.tolist(), image.shape, strict=True):
        # An axis that an index does not depend on stays out of it, and the index small.
        terms = zip(row, (x[:, None, None], y[:, None], z), strict=True)
        index = sum((factor * v for factor, v in terms if factor), start) + shift
        inside = inside & (index >= -0.5 - _EDGE) & (index <= n - 0.5 + _EDGE)
        if nearest_along_z and len(scaled) == 2:
            index = (index + 0.5 + _EDGE).floor().clamp(0, n - 1)
        scaled.append(((2 * index + 1) / n - 1).to(image.dtype))
    # grid_sample counts from -1 to 1 across the whole array and takes its axes last to first.
    value = torch.nn.functional.grid_sample(
        image[None, None],
        torch.stack(torch.broadcast_tensors(*reversed(scaled)), dim=-1)[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return value[0, 0] * inside


def _box_under(
    size: torch.Tensor, linear: torch.Tensor, offset: torch.Tensor, shape: Sequence[int]
) -> list[slice]:
    """The part of the grid that the image may cover, empty where it covers none."""
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
    corners = torch.linalg.solve(linear, (signs * size + (size - 1) / 2 - offset).T)
    first = corners.amin(1).sub(_EDGE).ceil().clamp(min=0).long().tolist()
    last = corners.amax(1).add(_EDGE).floor().long().tolist()
    return [slice(a, min(b + 1, n)) for a, b, n in zip(first, last, shape, strict=True)]


class _Step(NamedTuple):
    """Samples along one axis of an image, ``low · (1 − share) + (low + 1) · share`` each."""

    grid_axis: int
    low: torch.Tensor
    share: torch.Tensor
    inside: torch.Tensor


def _steps(
    shape: Sequence[int],
    linear: torch.Tensor,
    offset: torch.Tensor,
    box: Sequence[slice],
    *,
    nearest_along_z: bool,
) -> list[_Step]:
    """How each axis of an image is sampled where it is one axis of the grid."""
    steps = []
    for axis, (row, shift, n) in enumerate(zip(linear, offset.tolist(), shape, strict=True)):
        grid_axis = int(row.nonzero())
        part = box[grid_axis]
        voxels = torch.arange(part.start, part.stop, dtype=torch.float64)
        index = float(row[grid_axis]) * voxels + shift
        inside = (index >= -0.5 - _EDGE) & (index <= n - 0.5 + _EDGE)
        if nearest_along_z and axis == 2:
            index = (index + 0.5 + _EDGE).floor()
        index = index.clamp(0, n - 1)
        low = index.floor().clamp(max=max(n - 2, 0))
        steps.append(_Step(grid_axis, low.long(), index - low, inside))
    return steps


def _along_axes(image: torch.Tensor, steps: Sequence[_Step]) -> torch.Tensor:
    """Sample an image axis by axis, which reads two voxels where all at once reads eight."""
    for axis, (_, low, share, inside) in enumerate(steps):
        size = [-1 if a == axis else 1 for a in range(3)]
        high = (low + 1).clamp(max=image.shape[axis] - 1)
        lower = _take_planes(image, axis, low)
        if bool((share > 0).any()):
            lower.lerp_(_take_planes(image, axis, high), share.to(image).reshape(size))
        image = lower if bool(inside.all()) else lower.mul_(inside.to(image).reshape(size))
    return image.permute([[s.grid_axis for s in steps].index(a) for a in range(3)])


def _take_planes(image: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """A copy of some planes of an image."""
    if axis == image.ndim - 1 and image.device.type == "cpu" and image.dtype == torch.float32:
        # Along the last axis index_select takes eight times as long on a processor.
        return torch.from_numpy(image.detach().numpy().take(index.numpy(), axis=axis))
    return image.index_select(axis, index.to(image.device))


def touched(
    size: Sequence[int],
    *,
    spacing_mm: Sequence[float],
    center_mm: torch.Tensor,
    affine: torch.Tensor,
    shape: Sequence[int],
) -> tuple[slice, ...]:
    """The voxels of a box around ``center_mm`` that :func:`sample_on_grid` would look at.

    Args:
        size: ``(W_p, H_p, B)`` of the box.
        spacing_mm: size of its voxels.
        center_mm: ``(3,)`` float64 on the CPU, world point of its middle.
        affine: ``(4, 4)`` float64 on the CPU, voxel to world of the grid.
        shape: ``(W, H, D)`` of the grid.

    Returns:
        A slice for each axis, of one voxel or more.

    Example:
        >>> grid = {"affine": torch.eye(4, dtype=torch.float64), "shape": (9, 9, 1)}
        >>> center = torch.tensor([4.0, 4.0, 7.0], dtype=torch.float64)
        >>> touched((5, 5, 30), spacing_mm=(1, 1, 2), center_mm=center, **grid)[2]
        slice(9, 14, None)
    """
    length = torch.tensor(size, dtype=torch.float64)
    linear, offset = _to_index(length, spacing_mm, center_mm, affine)
    reach = linear * (torch.tensor(shape, dtype=torch.float64) - 1)
    low = offset + reach.clamp(max=0).sum(1)
    high = offset + reach.clamp(min=0).sum(1)
    # A voxel more at each end: what is cut must not look like the edge of the box.
    first = torch.minimum((low - _EDGE).floor() - 1, length - 1).clamp(min=0)
    last = torch.minimum((high + _EDGE).ceil() + 1, length - 1).clamp(min=0)
    pairs = zip(first.int().tolist(), last.int().tolist(), strict=True)
    return tuple(slice(a, b + 1) for a, b in pairs)


def _to_index(
    size: torch.Tensor, spacing_mm: Sequence[float], center_mm: torch.Tensor, affine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxel (i, j, k) of the grid lies at the continuous index ``linear @ (i, j, k) + offset``."""
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    offset = (affine[:3, 3] - center_mm) / spacing + (size - 1) / 2
    return affine[:3, :3] / spacing[:, None], offset


def grid_affine(like: MetaTensor) -> torch.Tensor:
    """Affine ``(4, 4)`` float64 of an image ``C W H D``, or :class:`PriorError`."""
    if not isinstance(like, MetaTensor):
        raise PriorError(
            f"`like` must be a MetaTensor, whose affine says where it lies, got {type(like)}."
        )
    if like.ndim != 4:
        raise PriorError(
            f"`like` must have the axes C W H D, got the shape {tuple(like.shape)}; keep a slice "
            "as W × H × 1 and squeeze it after the prior is placed."
        )
    if leads_to_lps(like):
        raise PriorError(f"`like` must have an affine to RAS mm, got one to LPS: {RAS_REMEDY}.")
    affine = like.affine.to(dtype=torch.float64, device="cpu")
    if not bool(torch.isfinite(affine).all()) or affine.shape != (4, 4) or float(affine.det()) == 0:
        raise PriorError(f"`like` must have an invertible 4 × 4 affine, got {affine.tolist()}.")
    return affine
