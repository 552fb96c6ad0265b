"""A standard abdomen, and how to paint a patient with it.

The *anatomical frame* is a standard patient's: millimetres, x to the right, y to the front, z to
the head, origin in the aorta at the height of the pancreas. Where organs lie in it, and how large
they are, follows averages over ten of the BTCV labels (abdominal CT). A *patient* is that frame
bent by a smooth random field, with every organ moved and reshaped a little. Organs are *painted*
one over the other, each inside a thin layer of fat, so that what is painted last is whole; after
the pancreas come only the vessels beside it.
"""

import math
from collections.abc import Sequence
from typing import Any

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

_ID = {name: value for value, name in enumerate(ORGANS)}
_EXTENT_MM = ((-290.0, 290.0), (-290.0, 290.0), (-230.0, 230.0))
_FAT_HU = -100.0

# fmt: off
# tubes: rows of x, y, z and radius
_PANCREAS = [(24, 18, -40, 9), (26, 23, -28, 15), (23, 29, -12, 15.5), (6, 35, 1, 10),
             (-18, 31, 10, 11), (-39, 10, 17, 11), (-59, -11, 23, 10), (-80, -23, 30, 7)]
_UNCINATE = [(25, 21, -30, 11), (14, 19, -28, 9), (5, 19, -25, 6)]
_DUODENUM = [(22, 55, 10, 12), (44, 40, 6, 11), (53, 24, -22, 12), (43, 13, -52, 12),
             (8, 13, -62, 11), (-26, 18, -50, 11), (-38, 32, -26, 11), (-50, 50, -38, 11)]
_STOMACH = [(-48, -2, 96, 18), (-68, 2, 74, 33), (-70, 34, 48, 31), (-52, 62, 18, 26),
            (-18, 72, 4, 21), (14, 64, 10, 13)]
_COLON = [(100, 5, -170, 24), (103, 8, -90, 24), (92, 25, -52, 22), (70, 72, -62, 20),
          (10, 88, -70, 19), (-50, 84, -48, 18), (-98, 40, 12, 17), (-112, 6, -10, 15),
          (-110, -8, -90, 15), (-104, -5, -170, 15)]
_PSOAS = [(18, -36, 20, 6), (28, -42, -30, 14), (44, -38, -180, 26)]
_AORTA = [(-1, -12, -200, 8), (-2, -4, -60, 9), (-2, -4, 0, 10), (-3, -8, 80, 11),
          (-8, -14, 210, 12)]
_CAVA = [(24, -6, -200, 11), (27, 2, -50, 12), (29, 5, 10, 12), (32, 14, 100, 13),
         (22, 30, 150, 13)]
_ARTERY = [(-3, 4, 8, 4), (-12, 14, -8, 4), (-18, 24, -50, 3.5), (-16, 40, -170, 2.5)]
# small bowel: lower corner, upper corner, loops between them
_LOOPS = [((-112, 0, -125), (-40, 82, -20), 6), ((-60, 30, -170), (80, 92, -66), 9),
          ((-108, 20, -25), (-62, 84, 50), 2), ((-46, 58, -35), (40, 92, -2), 1),
          ((50, -2, -80), (92, 62, -28), 2), ((-44, -4, -60), (-26, 30, 2), 1)]
# fmt: on


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
            self.paint((distance - fat_mm, box), _FAT_HU)
        cover = np.clip(0.5 - distance / self.edge_mm, 0, 1)
        self.image[box] += cover * (hu + texture_hu * self.texture[box] - self.image[box])
        self.label[box][distance < 0] = organ


def _vary(
    rng: np.random.Generator,
    nodes: Sequence[Sequence[float]],
    *,
    move_mm: Sequence[float] = (4, 4, 5),
    bend_mm: float = 3.0,
) -> NDArray[np.float64]:
    """Move a tube as a whole, each node a little, and change its calibre."""
    varied = np.array(nodes, float)
    varied[:, :3] += np.clip(rng.standard_normal(3), -2, 2) * move_mm
    varied[:, :3] += bend_mm * np.clip(rng.standard_normal((len(varied), 3)), -2, 2)
    varied[:, 3] *= rng.uniform(0.88, 1.12) * rng.uniform(0.93, 1.07, len(varied))
    return varied


def _loop(
    rng: np.random.Generator, low: Sequence[float], high: Sequence[float]
) -> NDArray[np.float64]:
    """A bowel loop that winds within the corners ``low`` and ``high``; rows x, y, z, radius."""
    count = int(rng.integers(5, 9))
    step = rng.standard_normal(3)
    points = [rng.uniform(low, high)]
    for _ in range(count - 1):
        step = step / np.linalg.norm(step) + 0.75 * rng.standard_normal(3)
        step[2] *= 0.6
        point = points[-1] + 20 * step / np.linalg.norm(step)
        step = np.where((point < low) | (point > high), -step, step)
        points.append(np.clip(point, low, high) + rng.uniform(-1, 1, 3))
    return np.c_[np.array(points), rng.uniform(9, 14.5, count)]


def _paint_trunk(canvas: Canvas, rng: np.random.Generator, fat_mm: float) -> Array:
    """Skin, fat, muscle, ribs and spine; returns the signed distance to the cavity's wall."""
    x, y, z = canvas.xyz
    full: Box = (slice(None), slice(None), slice(None))

    def trunk(margin_mm: float, belly_mm: float = 0.0) -> Array:
        a, b = 145 + margin_mm, 106 + margin_mm + belly_mm / 2
        q = (np.abs(x) / a) ** 2.3 + (np.abs(y - 14 - belly_mm / 2) / b) ** 2.3
        return (q ** np.float32(1 / 2.3) - 1) * np.float32(b)

    skin, wall = trunk(fat_mm, rng.uniform(0, 0.6) * fat_mm), trunk(0)
    canvas.paint((skin, full), 20, texture_hu=15)
    canvas.paint((skin + 3, full), _FAT_HU - 5)
    canvas.paint((wall, full), 58)
    back = 34 - np.hypot(x * (34 / 62), y + 82)
    cavity = np.maximum(wall + 13, back)
    canvas.paint((cavity, full), _FAT_HU)

    angle = np.arctan2(y - 5, np.abs(x))
    phase = (z + 38 * angle + rng.uniform(0, 30)) % 30 - 15
    rib = np.hypot(wall + 6, 0.6 * phase) - 4.5
    costal_margin = 20 + 55 * (np.clip(angle, -0.3, 2) - 0.5)
    canvas.paint((np.maximum(rib, costal_margin - z), full), 330, texture_hu=60)

    for side in (-1, 1):
        psoas = np.array(_PSOAS, float) * (side, 1, 1, 1)
        canvas.paint(canvas.tube(psoas), 58, fat_mm=1)
    near = canvas.box((-50, -120, -230), (50, -10, 230))
    x, y, z = x[near], y[near], z[near]
    fascia = np.abs(np.hypot((np.abs(x) - 32) * 0.75, y + 78) - 19) - 0.7
    canvas.paint((fascia, near), -60, texture_hu=20)
    height = (z - rng.uniform(0, 36)) % 36 - 18
    body = np.hypot(x / 24, (y + 36) / 18) * 19 - 19
    canvas.paint((body, near), 85)
    bone = np.maximum(body, np.abs(height) - 13.5)
    canvas.paint((bone, near), 400, texture_hu=40)
    canvas.paint((bone + 3, near), 190, texture_hu=25)
    canal = np.hypot(x * 0.8, y + 63)
    canvas.paint((np.abs(canal - 11) - 2.5, near), 360, texture_hu=60)
    canvas.paint((canal - 9, near), 25)
    spinous = np.maximum(np.hypot(x / 4, (y + 84) / 14) * 5 - 5, np.abs(height) - 11)
    canvas.paint((spinous, near), 350, texture_hu=40)
    transverse = np.sqrt(((np.abs(x) - 28) / 15) ** 2 + ((y + 62) / 4.5) ** 2 + (height / 8) ** 2)
    canvas.paint((transverse * 5 - 5, near), 320, texture_hu=40)
    return cavity


def _paint_viscera(canvas: Canvas, rng: np.random.Generator, cavity: Array) -> None:
    """Bowel, stomach, liver, lungs, spleen, kidneys, vessels and pancreas, within ``cavity``."""

    def moved(*center: float, spread_mm: float = 4.0) -> list[float]:
        return list(np.add(center, spread_mm * np.clip(rng.standard_normal(3), -2, 2)))

    def sized(*semi_axes: float) -> list[float]:
        return list(rng.uniform(0.92, 1.1) * np.multiply(semi_axes, rng.uniform(0.95, 1.05, 3)))

    def inside(shape: Shape, gap_mm: float = 1.5) -> Shape:
        return np.maximum(shape[0], cavity[shape[1]] + gap_mm), shape[1]

    glandular: dict[str, Any] = {"texture_hu": 13.0, "rough_mm": 1.1, "fat_mm": 1.6}
    pancreas_hu = rng.uniform(84, 106)

    colon = inside(canvas.tube(_vary(rng, _COLON, bend_mm=6)))
    canvas.paint(colon, 75, _ID["colon"], rough_mm=1.5, fat_mm=1.5)
    canvas.paint((colon[0] + 4, colon[1]), 35, _ID["colon"], texture_hu=45, rough_mm=1.5)
    gas = 7 - 9 * canvas.rough[colon[1]]
    canvas.paint((np.maximum(colon[0] + 5, gas), colon[1]), -850, _ID["colon"], texture_hu=20)
    for low, high, count in _LOOPS:
        for _ in range(count):
            loop = inside(canvas.tube(_loop(rng, low, high)))
            canvas.paint(loop, pancreas_hu, _ID["small bowel"], **glandular)
            spread_mm = [[0], [14], [22]] * rng.standard_normal((3, 3))
            twig = rng.uniform(low, high) + spread_mm
            canvas.paint(canvas.tube(np.c_[twig, (2.5, 2.2, 1.5)]), 150)

    spleen = canvas.ellipsoid(moved(-101, -30, 38), sized(27, 46, 50), (20, 0, 20))
    hollow = canvas.ellipsoid(moved(-64, -12, 32, spread_mm=2), (30, 30, 44))
    canvas.paint(inside(spleen), rng.uniform(112, 132), _ID["spleen"], texture_hu=5, fat_mm=2)
    canvas.paint(hollow, _FAT_HU)

    stomach = inside(canvas.tube(_vary(rng, _STOMACH, bend_mm=4)))
    canvas.paint(stomach, 85, _ID["stomach"], rough_mm=1, fat_mm=2)
    lumen = stomach[0] + 4.5
    canvas.paint((lumen, stomach[1]), rng.uniform(5, 40), _ID["stomach"], rough_mm=1)
    air = np.maximum(lumen, rng.uniform(58, 76) - canvas.xyz[1][stomach[1]])
    canvas.paint((air, stomach[1]), -920, _ID["stomach"], texture_hu=10)

    liver_hu = rng.uniform(98, 120)
    right = canvas.ellipsoid(moved(82, 6, 46), sized(66, 82, 80), (0, -14, 0))
    left = canvas.ellipsoid(moved(12, 58, 62), sized(72, 38, 34), (0, 18, -12))
    for lobe in (left, right):
        canvas.paint(inside(lobe), liver_hu, _ID["liver"], rough_mm=0.5, fat_mm=2)
    canvas.paint(inside(left), liver_hu, _ID["liver"], rough_mm=0.5)
    porta = np.array([46, 12, 44])
    for _ in range(9):
        tip = rng.uniform((48, -45, 20), (125, 60, 95))
        branch = np.stack([porta, (porta + tip) / 2 + rng.normal(0, 8, 3), tip])
        canvas.paint(canvas.tube(np.c_[branch, (5.5, 4, 2)]), liver_hu + 40, _ID["liver"])
    x, y, z = canvas.xyz
    full: Box = (slice(None), slice(None), slice(None))
    dome_mm = rng.uniform(98, 112) - ((np.abs(x) - 66) ** 2 + (y - 40) ** 2) / 190
    lungs = np.maximum(np.maximum((dome_mm - z) * 0.8, cavity + 1.5), 20 - np.abs(x))
    canvas.paint((lungs, full), -840, texture_hu=25)
    canvas.paint(canvas.ellipsoid(moved(-24, 48, 150), (62, 46, 42), (0, 25, 0)), 140)
    canvas.paint(canvas.ellipsoid(moved(52, 44, 4), sized(13, 18, 26)), 12, fat_mm=1)

    for name, side, height_mm in (("right kidney", 1, -28), ("left kidney", -1, -16)):
        center = moved(64 * side, -38, height_mm, spread_mm=6)
        kidney = canvas.ellipsoid(center, sized(29, 24, 54), (-12, -12 * side, 40 * side))
        canvas.paint(inside(kidney), 195, _ID[name], texture_hu=8, fat_mm=6)
        canvas.paint(inside((kidney[0] + 8, kidney[1])), 160, _ID[name], rough_mm=3)
        sinus = canvas.ellipsoid((center[0] - 15 * side, center[1] + 8, center[2]), (15, 9, 24))
        canvas.paint((sinus[0] + 0.5 * canvas.rough[sinus[1]], sinus[1]), -40, texture_hu=30)

    canvas.paint(canvas.tube(_vary(rng, _AORTA)), 150, _ID["aorta"], fat_mm=2)
    canvas.paint(canvas.tube(_vary(rng, _CAVA)), 138, _ID["vena cava"], fat_mm=1)

    move_mm = np.clip(rng.standard_normal(3), -2, 2) * (5, 5, 6)
    nodes = _vary(rng, _PANCREAS, move_mm=(0, 0, 0), bend_mm=3.5)
    uncinate = np.array(_UNCINATE, float)
    duodenum = _vary(rng, _DUODENUM, move_mm=(2, 2, 2), bend_mm=2.5)
    for tube in (nodes, uncinate, duodenum):
        tube[:, :3] += move_mm
    canvas.paint(canvas.tube(duodenum), pancreas_hu, _ID["small bowel"], **glandular)
    canvas.paint(canvas.tube(uncinate), pancreas_hu, _ID["pancreas"], **glandular)
    canvas.paint(canvas.tube(nodes), pancreas_hu, _ID["pancreas"], **glandular)
    canvas.paint(canvas.tube(uncinate), pancreas_hu, _ID["pancreas"], **glandular | {"fat_mm": 0})

    behind = nodes[3:].copy()
    along = np.gradient(behind[:, :2], axis=0)
    dorsal = np.c_[-along[:, 1], along[:, 0]] / np.linalg.norm(along, axis=1)[:, None]
    behind[:, :2] += dorsal * (behind[:, 3:] + 5)
    behind[:, 2] += 2
    behind[:, 3] = np.linspace(5, 3.5, len(behind))
    start = behind[0, :3]
    portal = np.add(start, [(0, 0, 0), (18, -1, 24), (38, -6, 44)])
    mesenteric = np.add(start, [(0, 0, 0), (-9, 9, -34), (-7, 18, -80), (-2, 24, -170)])
    for tube in (behind, np.c_[portal, (6.5, 7, 6)], np.c_[mesenteric, (6, 5.5, 5, 3)]):
        canvas.paint(canvas.tube(tube), 165, _ID["portal and splenic vein"])
    canvas.paint(canvas.tube(np.array(_ARTERY)), 150, fat_mm=2)


def paint_abdomen(canvas: Canvas, rng: np.random.Generator, *, fat_mm: float) -> None:
    """Paint one patient.

    Args:
        canvas: what to paint on; changed in place.
        rng: draws where organs lie, their shapes and attenuations.
        fat_mm: thickness of the fat under the skin.
    """
    _paint_viscera(canvas, rng, _paint_trunk(canvas, rng, fat_mm))
