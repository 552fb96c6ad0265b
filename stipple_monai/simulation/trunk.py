"""The patient's trunk: skin, fat, muscle, ribs and spine, in the anatomical frame."""

import numpy as np

from stipple_monai.simulation.anatomy import FAT_HU, Array, Box, Canvas

_PSOAS = [(18, -36, 20, 6), (28, -42, -30, 14), (44, -38, -180, 26)]


def paint_trunk(canvas: Canvas, rng: np.random.Generator, fat_mm: float) -> Array:
    """Skin, fat, muscle, ribs and spine; returns the signed distance to the cavity's wall."""
    x, y, _ = canvas.xyz
    full: Box = (slice(None), slice(None), slice(None))

    def trunk(margin_mm: float, belly_mm: float = 0.0) -> Array:
        a, b = 145 + margin_mm, 106 + margin_mm + belly_mm / 2
        q = (np.abs(x) / a) ** 2.3 + (np.abs(y - 14 - belly_mm / 2) / b) ** 2.3
        return (q ** np.float32(1 / 2.3) - 1) * np.float32(b)

    skin, wall = trunk(fat_mm, rng.uniform(0, 0.6) * fat_mm), trunk(0)
    canvas.paint((skin, full), 20, texture_hu=15)
    canvas.paint((skin + 3, full), FAT_HU - 5)
    canvas.paint((wall, full), 58)
    back = 34 - np.hypot(x * (34 / 62), y + 82)
    cavity = np.maximum(wall + 13, back)
    canvas.paint((cavity, full), FAT_HU)
    _paint_ribs(canvas, rng, wall)
    for side in (-1, 1):
        psoas = np.array(_PSOAS, float) * (side, 1, 1, 1)
        canvas.paint(canvas.tube(psoas), 58, fat_mm=1)
    _paint_spine(canvas, rng)
    return cavity


def _paint_ribs(canvas: Canvas, rng: np.random.Generator, wall: Array) -> None:
    x, y, z = canvas.xyz
    full: Box = (slice(None), slice(None), slice(None))
    angle = np.arctan2(y - 5, np.abs(x))
    phase = (z + 38 * angle + rng.uniform(0, 30)) % 30 - 15
    rib = np.hypot(wall + 6, 0.6 * phase) - 4.5
    costal_margin = 20 + 55 * (np.clip(angle, -0.3, 2) - 0.5)
    canvas.paint((np.maximum(rib, costal_margin - z), full), 330, texture_hu=60)


def _paint_spine(canvas: Canvas, rng: np.random.Generator) -> None:
    near = canvas.box((-50, -120, -230), (50, -10, 230))
    x, y, z = (axis[near] for axis in canvas.xyz)
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
