"""A body around labelled organs: what every voxel of a label map's grid may be made of.

A *tissue* is what a voxel is made of; every label value is one. Around the labelled organs a
*body* is invented: a wall with ribs, a spine, fat, lungs above the diaphragm, and bowel in the
space that is left. Most bowel is made of what the pancreas is: only its place tells them apart.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import nibabel as nib
import numpy as np
import yaml
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from stipple_monai.errors import DatasetError
from stipple_monai.label_values import whole_labels
from stipple_monai.priors import open_label, spacing_along_ras

Array: TypeAlias = NDArray[Any]

# the abdomen is widest this far in front of the spine
_WIDEST_MM = 18


class Tissue(NamedTuple):
    """What a voxel may be made of.

    Attributes:
        name: bowel resembles the "pancreas", the spine lies behind the "aorta", and there are
            lungs above the "liver", "spleen" and "stomach", where tissues are named so.
        mean_hu: mean over scans, -1024 to 3071.
        sd_hu: standard deviation between scans; no scan is off by more than twice that.
        texture_hu: standard deviation within a scan, before blur and noise.
    """

    name: str
    mean_hu: float
    sd_hu: float
    texture_hu: float


# fmt: off
_BTCV = [
    ("spleen", 122, 9, 5), ("right kidney", 175, 16, 16), ("left kidney", 175, 16, 16),
    ("gallbladder", 12, 5, 4), ("oesophagus", 75, 10, 12), ("liver", 110, 9, 6),
    ("stomach", 50, 18, 24), ("aorta", 155, 14, 5), ("vena cava", 140, 14, 8),
    ("portal and splenic vein", 165, 14, 5), ("pancreas", 102, 6, 12),
    ("right adrenal gland", 85, 10, 8), ("left adrenal gland", 85, 10, 8),
]
_BODY = [
    ("fat", -98, 6, 12), ("skin", 15, 8, 10), ("muscle", 62, 5, 9), ("compact bone", 430, 50, 60),
    ("spongy bone", 190, 30, 30), ("lung", -840, 20, 35), ("heart", 135, 12, 8),
    ("bowel", 102, 6, 12), ("fluid", 20, 8, 10), ("gas", -900, 30, 20),
    ("contrast medium", 280, 50, 30), ("stool", 0, 25, 90),
]
# fmt: on
BTCV_TISSUES: Mapping[int, Tissue] = {i: Tissue(*row) for i, row in enumerate(_BTCV, 1)}
"""Values of the BTCV labels in the portal venous phase.

Pancreas: 94 to 113 HU within 15 slices of TCIA Pancreas-CT. Bowel wall 60 s after injection is the
same, 107 to 111 HU (Horton et al., J Comput Assist Tomogr 24:67, 2000). The others are customary
values of that phase, not measured.
"""
_AIR, FIRST = 0, 1000
_FAT, _SKIN, _MUSCLE, _COMPACT, _SPONGY, _LUNG, _HEART = range(FIRST, FIRST + 7)
BOWEL, _FLUID, _GAS, _CONTRAST, _STOOL = range(FIRST + 7, FIRST + 12)
INVENTED = {_AIR: Tissue("air", -1000, 0, 0)}
INVENTED |= {i: Tissue(*row) for i, row in enumerate(_BODY, FIRST)}


def read_tissues(path: str | Path) -> dict[int, Tissue]:
    """Tissues of label values, from YAML.

    Args:
        path: of a file with a line ``value: [name, mean_hu, sd_hu, texture_hu]`` for each.

    Raises:
        ValueError: it holds something else.
    """
    read = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    rows = read.items() if isinstance(read, dict) else []
    if not rows or not all(
        type(value) is int
        and isinstance(row, list)
        and len(row) == 4
        and isinstance(row[0], str)
        and all(type(number) in (int, float) and math.isfinite(number) for number in row[1:])
        for value, row in rows
    ):
        raise ValueError(
            f"{path} must hold `value: [name, mean_hu, sd_hu, texture_hu]`, a line for each label "
            f"value, got {read!r}."
        )
    return {value: Tissue(*row) for value, row in rows}


class Grid(NamedTuple):
    """A label map in RAS, and its axes in mm from the first voxel."""

    label: NDArray[np.int16]
    spacing: NDArray[np.float64]
    tissues: Mapping[int, Tissue]

    def axes(self) -> tuple[Array, ...]:
        """Positions along W, H and D in mm, to be broadcast."""
        shape = self.label.shape
        lines = [np.arange(n) * np.float32(s) for n, s in zip(shape, self.spacing, strict=True)]
        return np.meshgrid(*lines, indexing="ij", sparse=True)

    def organ(self, *names: str) -> NDArray[np.bool_]:
        """The voxels of the tissues of these names."""
        return np.isin(self.label, [v for v, t in self.tissues.items() if t.name in names])

    def field(self, rng: np.random.Generator, scale_mm: float) -> Array:
        """Gaussian random field of unit variance."""
        field = rng.standard_normal(self.label.shape, dtype=np.float32)
        sigma = scale_mm / self.spacing
        ndimage.gaussian_filter(field, sigma, output=field, mode="wrap", truncate=3)
        return field / field.std()


def open_grid(label: MetaTensor, tissues: Mapping[int, Tissue]) -> tuple[Grid, Array]:
    """The label map in RAS, and how its own axes lie in it."""
    if not tissues or not all(0 < value < FIRST for value in tissues):
        raise ValueError(f"`tissues` must have keys from 1 to {FIRST - 1}, got {list(tissues)}.")
    array, affine, name, _ = open_label(label)
    array = whole_labels(np.asarray(array).reshape(array.shape[:3]), name)
    values = np.unique(array)
    unknown = values[~np.isin(values, [0, *tissues])]
    if unknown.size:
        raise DatasetError(
            f"`label` must have values of `tissues` or 0, got {unknown[:5].tolist()} in {name}: "
            "add their tissues. If it is an image, give its label map."
        )
    if min(array.shape) < 2 or not values.any():
        raise DatasetError(
            "`label` must be 3D with two voxels or more along each axis and a labelled organ, got "
            f"shape {array.shape} and the values {values.tolist()} in {name}."
        )
    turn = nib.io_orientation(affine)
    turned = np.ascontiguousarray(nib.apply_orientation(array, turn).astype(np.int16))
    return Grid(turned, spacing_along_ras(affine), tissues), turn


def invent_body(grid: Grid, rng: np.random.Generator) -> NDArray[np.int16]:
    """What every voxel is made of: labelled voxels their label, all others of `INVENTED`."""
    some, (x, y, z) = grid.label > 0, grid.axes()
    low, high = np.array([(i.min(), i.max()) for i in np.nonzero(some)]).T * grid.spacing
    middle = _middle(grid, low, high)
    # x from the middle of the spine, y from its front, which lies behind all that is labelled
    xs = x - np.float32(middle)
    ys = y - _spine_front(grid, some & (np.abs(xs) < 16), low[1])

    side = max(*np.abs(np.array([low[0], high[0]]) - middle), 105)
    wall, wide = _wall(grid, some, (xs, ys), side)
    angle = np.arctan2(ys + 10, np.abs(xs))
    room = min(middle, x.max() - middle) - side * wide.max() - 20
    body = _layers(grid, wall, angle, room, rng)
    rib = np.hypot(wall - 7, 0.6 * ((z + 85 * angle + rng.uniform(0, 30)) % 30 - 15)) < 4.5
    margin = (low[2] + high[2]) / 2 - 40 + 55 * (np.clip(angle, -0.3, 2) - 0.5)
    body[rib & (z > margin)] = _COMPACT

    free = (body == _FAT) & (wall < -2) & (ys > np.where(np.abs(xs) < 45, 0, -25))
    back = ys < 0.1 * np.abs(xs) - 32
    if grid.organ("liver").any():
        dome = _diaphragm_height(grid)
        lung = (z > dome + 1.5) & (z > high[2] - 110) & (wall < -1)
        back &= ~lung
        heart = np.hypot(np.hypot((xs + 22) / 58, (ys - 62) / 40), (z - dome.max() - 8) / 34) < 1
        body[lung & (np.hypot(xs / 32, (ys - 12) / 26) > 1)] = _LUNG
        body[lung & heart] = _HEART
        free &= z < dome - 12
    # muscles of the back reach to the fat around the organs
    apart = ndimage.distance_transform_edt(~some, sampling=grid.spacing)
    erector = np.hypot((np.abs(xs) - 30) / 29, (ys + 58) / 23) < 1
    drop = (low[2] + 2 * high[2]) / 3 - z
    psoas = np.hypot(np.abs(xs) - 24 - 0.08 * drop, ys + 14) < np.clip(4 + 0.15 * drop, 0, 25)
    body[(wall < 0) & (erector | psoas | (back & (apart > 9)))] = _MUSCLE
    _paint_spine(body, xs, ys, (z + rng.uniform(0, 34)) % 34 - 17)
    _paint_bowel(grid, body, free & (body == _FAT), apart, rng)
    body[some] = grid.label[some]
    return body


def _middle(grid: Grid, low: Array, high: Array) -> float:
    """Where the spine is along x, mm: beside the aorta, or amid what is labelled."""
    aorta = grid.organ("aorta")
    if aorta.any():
        return np.nonzero(aorta)[0].mean() * grid.spacing[0] + 9
    return (low[0] + high[0]) / 2


def _spine_front(grid: Grid, near: NDArray[np.bool_], lowest: float) -> Array:
    """The front of the spine along y, mm, slice by slice: behind what is labelled near it."""
    at, count = np.flatnonzero(near.any((0, 1))), grid.label.shape[2]
    front = np.full(count, lowest)
    if len(at):
        front = np.interp(np.arange(count), at, near.any(0).argmax(0)[at] * grid.spacing[1])
    front = ndimage.gaussian_filter1d(front, 20 / grid.spacing[2], mode="nearest") - 3
    return front.astype(np.float32)


def _wall(
    grid: Grid, some: NDArray[np.bool_], axes: tuple[Array, Array], side: float
) -> tuple[Array, Array]:
    """Distance from the wall, and its width in each slice as a share of ``side``.

    It is half a superellipse in front and one behind, as wide as each slice needs.
    """
    xs, ys = axes
    forward = ys > _WIDEST_MM
    reach = np.where(some, ys - _WIDEST_MM, 0)
    deep = np.where(forward, max(reach.max(), 60), max(-reach.min(), 80))
    power = np.where(forward, np.float32(2.2), np.float32(3))
    ring = (np.abs(xs / side) ** power + np.abs((ys - _WIDEST_MM) / deep) ** power) ** (1 / power)
    needed = np.where(some, ring, 0).max((0, 1))
    wide = ndimage.maximum_filter1d(needed, int(80 / grid.spacing[2]) | 1)
    wide = ndimage.gaussian_filter1d(np.maximum(wide, 0.9 * wide.max()), 20 / grid.spacing[2])
    wide = np.maximum(wide, needed)
    wall = np.hypot(xs, ys - _WIDEST_MM) * (1 - wide / np.maximum(ring, 1e-6)) - 4
    return wall, wide


def _layers(
    grid: Grid, wall: Array, angle: Array, room: float, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Air, skin, fat and the wall's muscle; ``room`` mm are left for fat."""
    upward = np.maximum(np.sin(angle), 0)
    fat_mm = min(rng.uniform(8, 30), max(room, 5))
    skin = wall - 15 - fat_mm * (1 + rng.uniform(0, 0.6) * upward) + 2 * grid.field(rng, 40)
    body = np.full(grid.label.shape, _AIR, np.int16)
    body[skin < 0] = _SKIN
    body[skin < -2.5] = _FAT
    body[wall < 15 - 5 * upward] = _MUSCLE
    body[wall < 0] = _FAT
    return body


def _paint_spine(body: NDArray[np.int16], xs: Array, ys: Array, height: Array) -> None:
    """Vertebrae; ``height`` is from the middle of each, mm."""
    column = np.hypot(xs / 23, (ys + 17) / 17)
    body[column < 1] = _MUSCLE
    body[(column < 1) & (np.abs(height) < 14)] = _COMPACT
    body[(column < 0.86) & (np.abs(height) < 12)] = _SPONGY
    canal = np.hypot(xs * 0.85, ys + 44)
    body[canal < 12] = _COMPACT
    body[canal < 9] = _FLUID
    arch = (np.abs(xs) < 3.5) & (np.abs(ys + 66) < 13) & (np.abs(height) < 11)
    arch |= ((np.abs(xs) - 26) / 15) ** 2 + ((ys + 46) / 4.5) ** 2 + (height / 8) ** 2 < 1
    body[arch] = _COMPACT


def _diaphragm_height(grid: Grid) -> Array:
    """Height of the diaphragm, mm: paraboloids let down on the organs below; ``(W, H, 1)``."""
    top = np.where(grid.organ("liver", "spleen", "stomach"), grid.axes()[2], -1e3).max(2)
    for axis in (0, 1):
        reach = int(130 / grid.spacing[axis])
        fall = (np.arange(-reach, reach + 1) * grid.spacing[axis]) ** 2 / 70
        top = ndimage.grey_dilation(top, structure=-np.expand_dims(fall, 1 - axis), mode="nearest")
    return ndimage.gaussian_filter(top, 4 / grid.spacing[:2])[:, :, None].astype(np.float32)


def _paint_bowel(
    grid: Grid, body: NDArray[np.int16], free: Array, apart: Array, rng: np.random.Generator
) -> None:
    """Bowel in ``free`` space, ``apart`` mm from labels: colon, then the rest.

    Two fields are both zero on lines that wind through space; the loops lie around those. A third,
    slower one says what is in them.
    """
    pancreas = grid.organ("pancreas") if grid.organ("pancreas").any() else grid.label > 0
    near = np.exp(-ndimage.distance_transform_edt(~pancreas, sampling=grid.spacing) / 50)
    for scale_mm, radius_mm, dense in ((27, 19, _STOOL), (13, 10.5, _CONTRAST)):
        one, two, inside = (grid.field(rng, scale_mm * factor) for factor in (1, 1, 2.5))
        slopes = [np.array(np.gradient(field, *grid.spacing)) for field in (one, two)]
        a, b, c = ((slopes[i] * slopes[j]).sum(0) for i, j in ((0, 0), (0, 1), (1, 1)))
        # squared distance to the line, to first order
        square = (one**2 * c - 2 * one * two * b + two**2 * a) / np.maximum(a * c - b**2, 1e-12)
        depth = radius_mm * (1 + 0.15 * near) - np.sqrt(np.maximum(square, 0))
        body[free & (depth > 0)] = BOWEL
        lumen = free & (np.minimum(depth, apart) > 3)
        for content, some in (
            (dense, inside > 1.1),
            (_FLUID, inside < -1.0),
            (_GAS, inside < -1.4),
        ):
            body[lumen & some] = content
