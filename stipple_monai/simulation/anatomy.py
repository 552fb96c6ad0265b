"""The anatomical frame, and the canvas that a patient is painted on.

The *anatomical frame* is a standard patient's: millimetres, x to the right, y to the front, z to
the head, origin in the aorta at the height of the pancreas. Where organs lie in it, and how large
they are, follows averages over ten of the BTCV labels (abdominal CT). A *patient* is that frame
bent by a smooth random field, with every organ moved and reshaped a little. Organs are *painted*
one over the other, each inside a thin layer of fat, so that what is painted last is whole; after
the pancreas come only the vessels beside it.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline, CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation

Array = NDArray[np.float32]
Box = tuple[slice, slice, slice]
Shape = tuple[Array, Box]

# fmt: off
ORGANS = ("background", "pancreas", "liver", "spleen", "right kidney", "left kidney", "stomach",
          "aorta", "vena cava", "portal and splenic vein", "small bowel", "colon")
# fmt: on
"""Name of every label value, in order; 1 is the pancreas."""

ORGAN_VALUE = {name: value for value, name in enumerate(ORGANS)}
_EXTENT_MM = ((-290.0, 290.0), (-290.0, 290.0), (-230.0, 230.0))
FAT_HU = -100.0


class Canvas:
    """The scan while it is painted; all lengths are mm of the anatomical frame.

    Fields are drawn over `_EXTENT_MM`, not over the grid: the patient is the same on every grid.
    """

    def __init__(self, axes: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> None:
        self.axes = axes
        self.edge_mm = float(max(1.0, axes[0][1] - axes[0][0]))
        bend = [3.0 * self._field(rng, 45.0) for _ in range(3)]
        self.reach_mm = max(float(np.abs(field).max()) for field in bend) + 6.0
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        self.xyz = [(a + field).astype(np.float32) for a, field in zip(grid, bend, strict=True)]
        self.rough = self._field(rng, 8.0)
        self.texture = self._field(rng, 5.0)
        self.image = np.full(self.rough.shape, -1000.0, np.float32)
        self.label = np.zeros(self.rough.shape, np.uint8)

    def _field(self, rng: np.random.Generator, scale_mm: float) -> Array:
        """Cubic B-spline over white noise at knots ``scale_mm`` apart; unit variance."""
        bases = []
        for axis, (start, stop) in zip(self.axes, _EXTENT_MM, strict=True):
            count = math.ceil((stop - start) / scale_mm) + 3
            knots = start + scale_mm * np.arange(-3, count + 1)
            basis = BSpline.design_matrix(axis, knots, 3).toarray().astype(np.float32)
            bases.append(basis)
        field = rng.standard_normal([b.shape[1] for b in bases], dtype=np.float32)
        for basis in reversed(bases):
            field = np.moveaxis(field @ basis.T, -1, 0)
        # a sum of squared weights is 0.46 to 0.5 an axis
        return field / np.float32(0.48**1.5)

    def _index(self, points: NDArray[np.float64]) -> NDArray[np.intp]:
        found = [np.searchsorted(a, p) for a, p in zip(self.axes, points.T, strict=True)]
        return np.stack(found, 1)

    @staticmethod
    def _slices(first: NDArray[np.intp], last: NDArray[np.intp]) -> Box:
        return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])

    def box(self, low: Sequence[float], high: Sequence[float]) -> Box:
        """Grid indices of all that bending may move between the corners ``low`` and ``high``."""
        corners = np.add([low, high], [[-self.reach_mm], [self.reach_mm]])
        return self._slices(*self._index(corners))

    def ellipsoid(
        self,
        center: Sequence[float],
        semi_axes: Sequence[float],
        turn_deg: Sequence[float] = (0, 0, 0),
    ) -> Shape:
        """Signed distance to an ellipsoid turned about x, y and z, to first order."""
        reach = np.full(3, max(semi_axes))
        box = self.box(np.subtract(center, reach), np.add(center, reach))
        offset = np.stack([a[box] - c for a, c in zip(self.xyz, center, strict=True)], -1)
        turned = offset @ Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
        k0 = np.linalg.norm(turned / np.asarray(semi_axes), axis=-1)
        k1 = np.linalg.norm(turned / np.square(semi_axes), axis=-1)
        return (k0 * (k0 - 1) / np.maximum(k1, 1e-6)).astype(np.float32), box

    def tube(self, nodes: NDArray[np.float64]) -> Shape:
        """Signed distance to a tube through ``nodes``, rows of x, y, z and radius."""
        chord = np.r_[0, np.cumsum(np.linalg.norm(np.diff(nodes[:, :3], axis=0), axis=1))]
        step = np.clip(nodes[:, 3].mean() / 2, 1.5, 6)
        at = np.linspace(0, chord[-1], max(2, int(chord[-1] / step)))
        path = CubicSpline(chord, nodes[:, :3])(at)
        radii = PchipInterpolator(chord, nodes[:, 3])(at)
        reach = (radii + self.reach_mm)[:, None]
        low, high = self._index(path - reach), self._index(path + reach)
        box = self._slices(low.min(0), high.max(0))
        x, y, z = (a[box] for a in self.xyz)
        distance = np.full(x.shape, 99, np.float32)
        starts, stops = low - low.min(0), high - low.min(0)
        nodes = np.c_[path, radii].astype(np.float32)
        for (px, py, pz, radius), start, stop in zip(nodes, starts, stops, strict=True):
            ball = self._slices(start, stop)
            square = (x[ball] - px) ** 2 + (y[ball] - py) ** 2 + (z[ball] - pz) ** 2
            np.minimum(distance[ball], np.sqrt(square) - radius, out=distance[ball])
        return distance, box

    def paint(
        self,
        shape: Shape,
        hu: float,
        organ: int = 0,
        *,
        texture_hu: float = 6.0,
        rough_mm: float = 0.0,
        fat_mm: float = 0.0,
    ) -> None:
        """Cover what lies inside ``shape``, with a soft edge, and its fat around it."""
        distance, box = shape
        if rough_mm:
            distance = distance + rough_mm * self.rough[box]
        if fat_mm:
            self.paint((distance - fat_mm, box), FAT_HU)
        cover = np.clip(0.5 - distance / self.edge_mm, 0, 1)
        self.image[box] += cover * (hu + texture_hu * self.texture[box] - self.image[box])
        self.label[box][distance < 0] = organ
