"""The patient's organs, painted within the cavity of the trunk, those behind others first."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stipple_monai.simulation.anatomy import FAT_HU, ORGAN_VALUE, Array, Box, Canvas, Shape

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
_GLANDULAR: dict[str, Any] = {"texture_hu": 13.0, "rough_mm": 1.1, "fat_mm": 1.6}


class _Patient(NamedTuple):
    """What all organs need: the canvas, the draws and the distance to the cavity's wall."""

    canvas: Canvas
    rng: np.random.Generator
    cavity: Array

    def moved(self, *center: float, spread_mm: float = 4.0) -> list[float]:
        return list(np.add(center, spread_mm * np.clip(self.rng.standard_normal(3), -2, 2)))

    def sized(self, *semi_axes: float) -> list[float]:
        rng = self.rng
        return list(rng.uniform(0.92, 1.1) * np.multiply(semi_axes, rng.uniform(0.95, 1.05, 3)))

    def inside(self, shape: Shape, gap_mm: float = 1.5) -> Shape:
        return np.maximum(shape[0], self.cavity[shape[1]] + gap_mm), shape[1]


def paint_viscera(canvas: Canvas, rng: np.random.Generator, cavity: Array) -> None:
    """Bowel, stomach, liver, lungs, spleen, kidneys, vessels and pancreas, within ``cavity``."""
    patient = _Patient(canvas, rng, cavity)
    pancreas_hu = rng.uniform(84, 106)
    _paint_bowel(patient, pancreas_hu)
    _paint_spleen(patient)
    _paint_stomach(patient)
    _paint_liver(patient)
    _paint_chest(patient)
    _paint_kidneys(patient)
    canvas.paint(canvas.tube(_vary(rng, _AORTA)), 150, ORGAN_VALUE["aorta"], fat_mm=2)
    canvas.paint(canvas.tube(_vary(rng, _CAVA)), 138, ORGAN_VALUE["vena cava"], fat_mm=1)
    nodes = _paint_pancreas(patient, pancreas_hu)
    _paint_veins(canvas, nodes)
    canvas.paint(canvas.tube(np.array(_ARTERY)), 150, fat_mm=2)


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
    points = [np.asarray(rng.uniform(low, high))]
    for _ in range(count - 1):
        step = step / np.linalg.norm(step) + 0.75 * rng.standard_normal(3)
        step[2] *= 0.6
        point = points[-1] + 20 * step / np.linalg.norm(step)
        step = np.where((point < low) | (point > high), -step, step)
        points.append(np.clip(point, low, high) + rng.uniform(-1, 1, 3))
    return np.c_[np.array(points), rng.uniform(9, 14.5, count)]


def _paint_bowel(patient: _Patient, pancreas_hu: float) -> None:
    """Colon, and loops of small bowel that look like pancreas, each with a vessel."""
    canvas, rng = patient.canvas, patient.rng
    colon = patient.inside(canvas.tube(_vary(rng, _COLON, bend_mm=6)))
    canvas.paint(colon, 75, ORGAN_VALUE["colon"], rough_mm=1.5, fat_mm=1.5)
    canvas.paint((colon[0] + 4, colon[1]), 35, ORGAN_VALUE["colon"], texture_hu=45, rough_mm=1.5)
    gas = 7 - 9 * canvas.rough[colon[1]]
    canvas.paint(
        (np.maximum(colon[0] + 5, gas), colon[1]), -850, ORGAN_VALUE["colon"], texture_hu=20
    )
    for low, high, count in _LOOPS:
        for _ in range(count):
            loop = patient.inside(canvas.tube(_loop(rng, low, high)))
            canvas.paint(loop, pancreas_hu, ORGAN_VALUE["small bowel"], **_GLANDULAR)
            spread_mm = [[0], [14], [22]] * rng.standard_normal((3, 3))
            twig = rng.uniform(low, high) + spread_mm
            canvas.paint(canvas.tube(np.c_[twig, (2.5, 2.2, 1.5)]), 150)


def _paint_spleen(patient: _Patient) -> None:
    """Spleen, and the hollow beside it."""
    canvas, rng = patient.canvas, patient.rng
    spleen = canvas.ellipsoid(patient.moved(-101, -30, 38), patient.sized(27, 46, 50), (20, 0, 20))
    hollow = canvas.ellipsoid(patient.moved(-64, -12, 32, spread_mm=2), (30, 30, 44))
    canvas.paint(
        patient.inside(spleen), rng.uniform(112, 132), ORGAN_VALUE["spleen"], texture_hu=5, fat_mm=2
    )
    canvas.paint(hollow, FAT_HU)


def _paint_stomach(patient: _Patient) -> None:
    """Wall, content and air."""
    canvas, rng = patient.canvas, patient.rng
    stomach = patient.inside(canvas.tube(_vary(rng, _STOMACH, bend_mm=4)))
    canvas.paint(stomach, 85, ORGAN_VALUE["stomach"], rough_mm=1, fat_mm=2)
    lumen = stomach[0] + 4.5
    canvas.paint((lumen, stomach[1]), rng.uniform(5, 40), ORGAN_VALUE["stomach"], rough_mm=1)
    air = np.maximum(lumen, rng.uniform(58, 76) - canvas.xyz[1][stomach[1]])
    canvas.paint((air, stomach[1]), -920, ORGAN_VALUE["stomach"], texture_hu=10)


def _paint_liver(patient: _Patient) -> None:
    """Two lobes, and branches of the portal vein."""
    canvas, rng = patient.canvas, patient.rng
    liver_hu = rng.uniform(98, 120)
    right = canvas.ellipsoid(patient.moved(82, 6, 46), patient.sized(66, 82, 80), (0, -14, 0))
    left = canvas.ellipsoid(patient.moved(12, 58, 62), patient.sized(72, 38, 34), (0, 18, -12))
    for lobe in (left, right):
        canvas.paint(patient.inside(lobe), liver_hu, ORGAN_VALUE["liver"], rough_mm=0.5, fat_mm=2)
    canvas.paint(patient.inside(left), liver_hu, ORGAN_VALUE["liver"], rough_mm=0.5)
    porta = np.array([46, 12, 44])
    for _ in range(9):
        tip = rng.uniform((48, -45, 20), (125, 60, 95))
        branch = np.stack([porta, (porta + tip) / 2 + rng.normal(0, 8, 3), tip])
        canvas.paint(canvas.tube(np.c_[branch, (5.5, 4, 2)]), liver_hu + 40, ORGAN_VALUE["liver"])


def _paint_chest(patient: _Patient) -> None:
    """Lungs, heart and gallbladder."""
    canvas, rng = patient.canvas, patient.rng
    x, y, z = canvas.xyz
    full: Box = (slice(None), slice(None), slice(None))
    dome_mm = rng.uniform(98, 112) - ((np.abs(x) - 66) ** 2 + (y - 40) ** 2) / 190
    lungs = np.maximum(np.maximum((dome_mm - z) * 0.8, patient.cavity + 1.5), 20 - np.abs(x))
    canvas.paint((lungs, full), -840, texture_hu=25)
    canvas.paint(canvas.ellipsoid(patient.moved(-24, 48, 150), (62, 46, 42), (0, 25, 0)), 140)
    canvas.paint(
        canvas.ellipsoid(patient.moved(52, 44, 4), patient.sized(13, 18, 26)), 12, fat_mm=1
    )


def _paint_kidneys(patient: _Patient) -> None:
    """Cortex, medulla and sinus of both."""
    canvas = patient.canvas
    for name, side, height_mm in (("right kidney", 1, -28), ("left kidney", -1, -16)):
        center = patient.moved(64 * side, -38, height_mm, spread_mm=6)
        kidney = canvas.ellipsoid(center, patient.sized(29, 24, 54), (-12, -12 * side, 40 * side))
        canvas.paint(patient.inside(kidney), 195, ORGAN_VALUE[name], texture_hu=8, fat_mm=6)
        canvas.paint(patient.inside((kidney[0] + 8, kidney[1])), 160, ORGAN_VALUE[name], rough_mm=3)
        sinus = canvas.ellipsoid((center[0] - 15 * side, center[1] + 8, center[2]), (15, 9, 24))
        canvas.paint((sinus[0] + 0.5 * canvas.rough[sinus[1]], sinus[1]), -40, texture_hu=30)


def _paint_pancreas(patient: _Patient, pancreas_hu: float) -> NDArray[np.float64]:
    """Duodenum and pancreas; returns the nodes of the pancreas."""
    canvas, rng = patient.canvas, patient.rng
    move_mm = np.clip(rng.standard_normal(3), -2, 2) * (5, 5, 6)
    nodes = _vary(rng, _PANCREAS, move_mm=(0, 0, 0), bend_mm=3.5)
    uncinate = np.array(_UNCINATE, float)
    duodenum = _vary(rng, _DUODENUM, move_mm=(2, 2, 2), bend_mm=2.5)
    for tube in (nodes, uncinate, duodenum):
        tube[:, :3] += move_mm
    canvas.paint(canvas.tube(duodenum), pancreas_hu, ORGAN_VALUE["small bowel"], **_GLANDULAR)
    canvas.paint(canvas.tube(uncinate), pancreas_hu, ORGAN_VALUE["pancreas"], **_GLANDULAR)
    canvas.paint(canvas.tube(nodes), pancreas_hu, ORGAN_VALUE["pancreas"], **_GLANDULAR)
    canvas.paint(
        canvas.tube(uncinate), pancreas_hu, ORGAN_VALUE["pancreas"], **_GLANDULAR | {"fat_mm": 0}
    )
    return nodes


def _paint_veins(canvas: Canvas, nodes: NDArray[np.float64]) -> None:
    """Splenic, portal and mesenteric vein, behind the pancreas of these nodes."""
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
        canvas.paint(canvas.tube(tube), 165, ORGAN_VALUE["portal and splenic vein"])
