"""Slices of a volume: kept together in memory, and moved at random in their plane.

MONAI's ``RandAffined`` takes a slice ``(C, W, H, 1)`` for a volume: it moves four coordinates of
every voxel through space, interpolates between eight voxels, and makes a note for an inverse that
no training asks for. In the plane it is the same for a sixth of the time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Affine, MapTransform, RandAffined, Randomizable
from monai.utils import TransformBackends, fall_back_tuple
from torch import Tensor


def plane_grid(matrix: Tensor, size: Sequence[int], like: Sequence[int]) -> Tensor:
    """Where each pixel of a moved slice lies in the slice, as ``grid_sample`` counts.

    Args:
        matrix: ``(2, 3)`` float64, from pixels of the moved slice to pixels of the slice, both
            counted from their middles.
        size: ``(W, H)`` of the moved slice.
        like: ``(W, H)`` of the slice.

    Returns:
        ``(1, W, H, 2)`` float32.

    Example:
        >>> same = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
        >>> plane_grid(same, (1, 2), (1, 2))
        tensor([[[[-0.5000,  0.0000],
                  [ 0.5000,  0.0000]]]])
    """
    w, h = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    grid = torch.empty(1, *size, 2)
    # grid_sample counts its axes last to first, and from -1 to 1 across the whole slice.
    for axis, n, place in ((0, like[0], 1), (1, like[1], 0)):
        along_w = (matrix[axis, 0] * w + matrix[axis, 2]) * (2 / n)
        along_h = matrix[axis, 1] * h * (2 / n)
        torch.add(along_w.float()[:, None], along_h.float(), out=grid[0, :, :, place])
    return grid


class RandSliceAffined(Randomizable, MapTransform):
    """``RandAffined`` for slices cut across the third axis, ``(C, W, H, 1)``.

    What it draws and what it gives is MONAI's, but for rounding and for the inverse, which there is
    none of. What is no slice, or would leave its plane, is given to MONAI's.

    Args:
        keys: image, label, …; all are moved alike.
        prob: as for ``monai.transforms.RandAffined``.
        spatial_size: likewise.
        rotate_range: likewise.
        shear_range: likewise.
        translate_range: likewise.
        scale_range: likewise.
        mode: ``"bilinear"`` or ``"nearest"`` for each key.
        padding_mode: as for ``monai.transforms.RandAffined``.
        allow_missing_keys: do nothing for what is missing.

    Example:
        >>> slices = {"image": MetaTensor(torch.ones(1, 4, 4, 1))}
        >>> turned = RandSliceAffined("image", prob=1.0, rotate_range=(0, 0, 0.1))(slices)
        >>> turned["image"].shape
        torch.Size([1, 4, 4, 1])
    """

    backend = (TransformBackends.TORCH,)

    def __init__(
        self,
        keys: KeysCollection,
        *,
        prob: float = 0.1,
        spatial_size: Sequence[int] | int | None = None,
        rotate_range: Any = None,
        shear_range: Any = None,
        translate_range: Any = None,
        scale_range: Any = None,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "border",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.in_space = RandAffined(
            keys,
            prob=prob,
            spatial_size=spatial_size,
            rotate_range=rotate_range,
            shear_range=shear_range,
            translate_range=translate_range,
            scale_range=scale_range,
            mode=mode,
            padding_mode=padding_mode,
            allow_missing_keys=allow_missing_keys,
        )

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandSliceAffined:
        """Seed the draws."""
        super().set_random_state(seed, state)
        self.in_space.set_random_state(seed, state)
        return self

    def randomize(self, data: Sequence[int]) -> Tensor:
        """Draw for slices of one size; ``(4, 4)`` float64, from their middles to the middles."""
        self.in_space.randomize(None)
        affine = self.in_space.rand_affine
        affine.randomize()
        if not self.in_space._do_transform:
            return torch.eye(4, dtype=torch.float64)
        affine.rand_affine_grid(data, lazy=True)
        matrix = affine.rand_affine_grid.get_transformation_matrix()
        return torch.as_tensor(matrix, dtype=torch.float64)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move the slices in a copy of ``data``."""
        d = dict(data)
        found = list(self.key_iterator(d, self.in_space.mode, self.in_space.padding_mode))
        if not found:
            return d
        shapes = {tuple(d[key].shape[1:]) for key, *_ in found}
        shape = shapes.pop()
        size = fall_back_tuple(self.in_space.rand_affine.spatial_size, shape)
        if shapes or len(shape) != 3 or shape[2] != 1 or size[2] != 1 or self._leaves_its_plane:
            return dict(self.in_space(d))
        matrix = self.randomize(size)
        in_plane = torch.cat([matrix[:2, :2], matrix[:2, 3:]], dim=1)
        grid = plane_grid(in_plane, size[:2], shape[:2])
        moved = torch.as_tensor(Affine.compute_w_affine(3, matrix, shape, size))
        for key, mode, padding_mode in found:
            image = d[key]
            plain = torch.as_tensor(image).as_subclass(Tensor)[..., 0]
            plain = F.grid_sample(
                plain[None].float(),
                grid.to(plain.device),
                mode=mode,
                padding_mode=padding_mode,
                align_corners=False,
            )[0, ..., None]
            if isinstance(image, MetaTensor):
                affine = image.affine.double() @ moved
                plain = MetaTensor(plain, meta={**image.meta, "affine": affine})
            d[key] = plain
        return d

    @property
    def _leaves_its_plane(self) -> bool:
        """Whether more may be drawn than what stays in the plane."""
        draws = self.in_space.rand_affine.rand_affine_grid
        out = [*draws.rotate_range[:2], *draws.shear_range]
        out += [*draws.translate_range[2:3], *draws.scale_range[2:3]]
        return any(np.any(x) for x in out if x is not None)


class SliceMajord(MapTransform):
    """Keep volumes in memory slice after slice; values, axes and metadata stay as they are.

    In a volume ``(C, W, H, D)`` as it is read, the pixels of a slice lie ``D`` apart, and each
    costs a line of the processor's cache: a slice takes longer to collect than to move. Of use
    before a cache, once a volume.

    Args:
        keys: volumes ``(C, W, H, D)``.
        allow_missing_keys: do nothing for what is missing.

    Example:
        >>> volume = SliceMajord("image")({"image": torch.zeros(1, 4, 3, 2)})["image"]
        >>> volume.shape, volume[..., 0].is_contiguous()
        (torch.Size([1, 4, 3, 2]), True)
    """

    backend = (TransformBackends.TORCH,)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Copy the volumes in a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            volume = torch.as_tensor(d[key])
            plain = volume.as_subclass(Tensor).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
            if isinstance(volume, MetaTensor):
                operations = list(volume.applied_operations)
                plain = MetaTensor(plain, meta=dict(volume.meta), applied_operations=operations)
            d[key] = plain
        return d


SliceMajorD = SliceMajorDict = SliceMajord
RandSliceAffineD = RandSliceAffineDict = RandSliceAffined
