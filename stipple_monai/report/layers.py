"""Pictures that lie over a slice of a scan, and how they become part of a page.

Layers are transparent PNG with a palette, which keeps a page small: of an outline, half a kB.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

# probabilities, and the pixels of a dash and of a gap
_DASHES = {0.25: (2.0, 5.0), 0.5: (9.0, 5.0)}


def enlarged(
    label: NDArray[Any], size: tuple[int, int], values: Sequence[int]
) -> NDArray[np.uint8]:
    """The index from 1 of each pixel's value among ``values``, 0 elsewhere."""
    found = np.zeros(label.shape, np.uint8)
    for index, value in enumerate(values, 1):
        found[label == value] = index
    picture = Image.fromarray(found).resize(size, Image.Resampling.NEAREST)
    return np.asarray(picture)


def _line(mask: NDArray[np.bool_], width: int = 2) -> NDArray[np.bool_]:
    return mask & ~binary_erosion(mask, iterations=width)


def label_layer(
    here: NDArray[np.uint8], organs: Sequence[int], colours: Mapping[int, str], *, filled: bool
) -> str:
    """Outlines of organs along the edges of their pixels, as a data URI; empty where there is none.

    Args:
        here: index from 1 of each pixel's organ, see :func:`enlarged`.
        organs: in that order.
        colours: by organ.
        filled: fill them, too.
    """
    if not here.any():
        return ""
    paint = np.zeros(here.shape, np.uint8)
    palette: list[tuple[str, int]] = []
    for index, organ in enumerate(organs, 1):
        mask = here == index
        if not mask.any():
            continue
        if filled:
            palette += [(colours[organ], 90), (colours[organ], 255)]
            paint[mask] = len(palette) - 1
            paint[_line(mask)] = len(palette)
        else:
            # a dark rim inside, so that the line shows on bright tissue
            palette += [("#000000", 150), (colours[organ], 255)]
            paint[_line(mask, 3)] = len(palette) - 1
            paint[_line(mask)] = len(palette)
    return _paint_uri(paint, palette)


def prior_layer(cuts: Mapping[str, NDArray[np.uint8]], size: tuple[int, int]) -> str:
    """Iso-contours of the priors of one slice, by colour."""
    picture = Image.new("P", size)
    draw = ImageDraw.Draw(picture)
    palette: list[tuple[str, int]] = []
    for colour, chance in cuts.items():
        palette += [("#000000", 110), (colour, 255)]
        # the border of zeros closes the lines of what reaches the edge
        lines = contour_generator(z=np.pad(chance, 1))
        scale = np.array(size) / chance.shape[::-1]
        for level, dash in _DASHES.items():
            for points in lines.lines(254 * level):
                path = (np.asarray(points) - 0.5) * scale
                draw.line(path.ravel().tolist(), len(palette) - 1, 3)
                for piece in _dashes(path, *dash):
                    draw.line(piece.ravel().tolist(), len(palette), 2)
    return _paint_uri(np.asarray(picture), palette) if picture.getbbox() else ""


def _dashes(path: NDArray[Any], on: float, off: float) -> list[NDArray[Any]]:
    """Cut a line into dashes along its length, all in pixels."""
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    starts = np.arange(0, at[-1], on + off)
    places = [np.linspace(s, min(s + on, at[-1]), 4) for s in starts]
    return [np.stack([np.interp(p, at, c) for c in path.T], 1) for p in places]


def _paint_uri(paint: NDArray[np.uint8], palette: Sequence[tuple[str, int]]) -> str:
    picture = Image.fromarray(paint, mode="P")
    colours = [0, 0, 0]
    for colour, _ in palette:
        colours += [round(255 * c) for c in to_rgb(colour)]
    picture.putpalette(colours)
    transparency = bytes([0, *(alpha for _, alpha in palette)])
    return uri(picture, "png", transparency=transparency, optimize=True)


def uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as a data URI; options are those of Pillow's writer."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def decoded(source: str) -> Image.Image:
    """The picture of a data URI."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
