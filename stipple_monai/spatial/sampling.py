"""Values of an image that lies along the world axes, on any other grid.

``torch.nn.functional.grid_sample`` interpolates; what it does not know is where the box ends,
that the third axis may be a histogram, and that only the voxels under the box need computing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    # Voxel (i, j, k) of the grid lies at the continuous index linear @ (i, j, k) + offset.
    linear = affine[:3, :3] / spacing[:, None]
    offset = (affine[:3, 3] - center_mm) / spacing + (size - 1) / 2
    out = image.new_zeros(tuple(shape))
    box = _box_under(size, linear, offset, shape)
    if any(b.start >= b.stop for b in box):
        return out
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
    out[box[0], box[1], box[2]] = value[0, 0] * inside
    return out


def _box_under(
    size: torch.Tensor, linear: torch.Tensor, offset: torch.Tensor, shape: Sequence[int]
) -> list[slice]:
    """The part of the grid that the image may cover, empty where it covers none."""
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
    corners = torch.linalg.solve(linear, (signs * size + (size - 1) / 2 - offset).T)
    first = corners.amin(1).sub(_EDGE).ceil().clamp(min=0).long().tolist()
    last = corners.amax(1).add(_EDGE).floor().long().tolist()
    return [slice(a, min(b + 1, n)) for a, b, n in zip(first, last, shape, strict=True)]
