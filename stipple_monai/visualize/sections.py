"""Planes through volumes, and how they are drawn.

Section
    One plane through a volume whose axes are RAS, and the part of it that is shown. Sections are
    drawn in mm, with the patient's right (in sagittal ones, the front) on the image's left: the
    radiological convention. Those of an oblique volume are the planes of its array.
Window
    The values that are drawn black and white. ``None`` stands for :data:`CT_WINDOW_HU` where the
    image reaches the air of a CT, and for the 1st and 98th percentile of what is shown elsewhere.

Figures are made without ``pyplot``, so that no figure, backend or setting of the caller's changes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai.files import whole_file

Plane: TypeAlias = Literal["axial", "coronal", "sagittal"]
Window: TypeAlias = tuple[float, float]
Voxel: TypeAlias = Sequence[float] | NDArray[Any]

CT_WINDOW_HU: Window = (-160.0, 240.0)
"""Soft tissue."""

CONVENTION = "Radiological convention: the patient's right is on the image's left."

# The dark end would not show on a scan.
PRIOR_COLOURS = LinearSegmentedColormap.from_list(
    "prior", matplotlib.colormaps["plasma"](np.linspace(0.3, 1, 256))
)
PRIOR_LEVELS = (0.25, 0.5, 0.75)

DPI = 150
_FINER = 6
_AIR_HU = -500.0
STROKE = [withStroke(linewidth=2.5, foreground="black")]
_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_MARKS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
_BARS_MM = (1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Section:
    """One plane through a volume ``(W, H, D)`` on RAS axes, and the part of it that is shown.

    Args:
        plane: which plane; sagittal sections show the front on the left.
        index: of the plane, along the axis that it is perpendicular to.
        box: the voxels shown along W, H and D.
        spacing_mm: size of a voxel along W, H and D.
    """

    plane: Plane
    index: int
    box: tuple[slice, slice, slice]
    spacing_mm: Sequence[float]

    def of(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Cut the section out of ``(W, H, D)``: rows go up, columns go to the image's left."""
        through = _AXES[self.plane][2]
        where: list[slice | int] = list(self.box)
        where[through] = self.index
        return volume[tuple(where)].T

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of what is shown."""
        width, height = (
            (self.box[a].stop - self.box[a].start) * self.spacing_mm[a]
            for a in _AXES[self.plane][:2]
        )
        return width, height

    def point_mm(self, voxel: Voxel) -> tuple[float, float]:
        """Where a point, given in voxels of the volume, is drawn."""
        x, y = (
            (voxel[a] - self.box[a].start + 0.5) * self.spacing_mm[a] for a in _AXES[self.plane][:2]
        )
        return x, y


def fullest(areas: NDArray[Any]) -> int:
    """The slice that shows most of all organs, of their areas ``(K, slices)``.

    Each organ's area counts as a share of its largest, so that a small organ weighs as much as a
    large one.
    """
    return int((areas / areas.max(1, keepdims=True).clip(1)).sum(0).argmax())


def box_around(
    low: Voxel, high: Voxel, volume: MetaTensor, *, margin_mm: float
) -> tuple[slice, slice, slice]:
    """Voxels from ``low`` to ``high`` (both in voxels, inclusive) and a margin, in the volume."""
    bounds = zip(low, high, volume.shape[1:], volume.pixdim.tolist(), strict=True)
    x, y, z = (
        slice(
            max(int(np.floor(a - margin_mm / s)), 0),
            min(int(np.ceil(b + margin_mm / s)) + 1, n),
        )
        for a, b, n, s in bounds
    )
    return x, y, z


def new_figure(
    sections: Sequence[Sequence[Section]], *, width_inches: float, extra_inches: float
) -> tuple[Figure, NDArray[Any]]:
    """A figure with one panel for each section, rows as high as their sections need.

    Args:
        sections: by rows and columns; every row of the same length.
        width_inches: of the figure.
        extra_inches: height for titles and legends.

    Returns:
        The figure and its axes, ``(rows, columns)``.
    """
    width = np.array([[s.size_mm[0] for s in row] for row in sections]).max(0)
    height = np.array([[s.size_mm[1] for s in row] for row in sections]).max(1)
    drawn = 0.98 * (width_inches - 0.5) / width.sum()
    figure = Figure(
        figsize=(width_inches, drawn * height.sum() + 0.08 * len(height) + extra_inches),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.01, hspace=0.01),
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        *np.array(sections, dtype=object).shape[:2],
        squeeze=False,
        width_ratios=width.tolist(),
        height_ratios=height.tolist(),
    )
    return figure, axes


def draw_image(ax: Axes, section: Section, volume: NDArray[Any], window: Window) -> None:
    """Draw a section in grey, in mm, with the sides marked and a bar for scale."""
    low, high = window
    ax.imshow(
        section.of(volume),
        cmap="gray",
        vmin=low,
        vmax=high,
        interpolation="bilinear",
        **_imshow_options(section),
    )
    width, height = section.size_mm
    ax.set_facecolor("black")
    ax.set(xlim=(width, 0), ylim=(0, height), xticks=[], yticks=[])
    ax.set_aspect("equal", anchor="N")
    ends = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for mark, (x, y), (ha, va) in zip(_MARKS[section.plane], ends, sides, strict=True):
        _write(ax, x, y, mark, ha=ha, va=va, weight="bold", transform=ax.transAxes)
    length = max((b for b in _BARS_MM if b <= width / 4), default=_BARS_MM[0])
    end, base = 0.03 * width, 0.03 * height
    ax.plot([end, end + length], [base, base], color="white", linewidth=2.5, path_effects=STROKE)
    _write(ax, end, 1.8 * base, f"{length} mm", ha="right", va="bottom", size=8)


def draw_mask(
    ax: Axes, section: Section, mask: NDArray[Any], colour: str, *, alpha: float = 0.6
) -> None:
    """Fill a mask, or what has a probability in [0, 1], with a translucent colour."""
    shown = section.of(mask)
    paint = np.zeros((*shown.shape, 4))
    paint[..., :3] = to_rgb(colour)
    paint[..., 3] = alpha * shown
    ax.imshow(paint, interpolation="nearest", **_imshow_options(section))


def draw_outline(
    ax: Axes, section: Section, mask: NDArray[np.bool_], colour: str, *, linewidth: float = 1.2
) -> None:
    """Draw the border of a mask, along the edges of its voxels."""
    finer = np.kron(section.of(mask), np.ones((_FINER, _FINER), np.float32))
    lines = contour(ax, section, finer, (0.5,), colors=[colour], linewidths=linewidth)
    if lines is not None:
        lines.set_path_effects([withStroke(linewidth=linewidth + 0.8, foreground="black")])


def draw_prior(ax: Axes, section: Section, prior: NDArray[Any]) -> ScalarMappable:
    """Draw a prior as a translucent colour map with its iso-contours; give the colour scale."""
    shown = section.of(prior)
    colours = ScalarMappable(cmap=PRIOR_COLOURS)
    colours.set_clim(0, 1)
    paint = colours.to_rgba(shown)
    # A prior near zero must not hide the scan below it.
    paint[..., 3] = 0.5 * np.clip(shown / PRIOR_LEVELS[0], 0, 1)
    ax.imshow(paint, interpolation="bilinear", **_imshow_options(section))
    lines = colours.to_rgba(np.array(PRIOR_LEVELS))
    contour(ax, section, shown, PRIOR_LEVELS, colors=lines, linewidths=1.2)
    return colours


def contour(
    ax: Axes, section: Section, shown: NDArray[Any], levels: Sequence[float], **style: Any
) -> ContourSet | None:
    """Draw iso-contours of ``shown``, which fills the section; ``None`` where there are none."""
    # The border of zeros closes the lines of what reaches the edge of the section.
    padded = np.pad(shown, 1)
    x, y = (
        (np.arange(n) - 0.5) * size / (n - 2)
        for n, size in zip(padded.shape[::-1], section.size_mm, strict=True)
    )
    reached = [i for i, level in enumerate(levels) if padded.max() > level]
    if not reached:
        return None
    style["colors"] = [style["colors"][i] for i in reached]
    return ax.contour(x, y, padded, [levels[i] for i in reached], **style)


def colour_bar(figure: Figure, colours: ScalarMappable, axes: Any, **place: Any) -> None:
    """Draw the scale of :func:`draw_prior`, its iso-contours marked."""
    bar = figure.colorbar(colours, ax=axes, ticks=[0, *PRIOR_LEVELS, 1], panchor=False, **place)
    bar.set_label("prior probability", size=9)
    bar.ax.tick_params(labelsize=8)
    for level in PRIOR_LEVELS:
        edge = bar.ax.axhline if bar.orientation == "vertical" else bar.ax.axvline
        edge(level, color="black", linewidth=0.8)


def legend(figure: Figure, keys: Sequence[Artist]) -> None:
    """Explain the colours, and which side is which, below the panels."""
    columns = min(len(keys), 7)
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, title=CONVENTION)


def outline_key(colour: str, text: str) -> Line2D:
    """The legend's key to what :func:`draw_outline` draws."""
    return Line2D([], [], color=colour, label=text, path_effects=STROKE)


def window_for(shown: Sequence[NDArray[Any]], window: Window | None) -> Window:
    """Black and white for the sections ``shown``.

    Raises:
        ValueError: ``window`` is not two rising finite numbers.
    """
    if window is None:
        values = np.concatenate([np.ravel(s) for s in shown])
        if values.min() < _AIR_HU:
            return CT_WINDOW_HU
        low, high = (float(v) for v in np.percentile(values, (1, 98)))
        return low, high if high > low else low + 1
    low, high = (float(v) for v in window)
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"`window` must be two finite numbers, low < high, got {window}.")
    return low, high


def write_png(figure: Figure, path: str | os.PathLike[str], description: str) -> None:
    """Write a figure; the same figure gives the same bytes.

    Raises:
        ValueError: ``path`` does not end in ``.png``.
    """
    if not str(path).endswith(".png"):
        raise ValueError(f"A figure is written as '.png', got {path}.")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Description": description, "Software": None})


def _imshow_options(section: Section) -> dict[str, Any]:
    width, height = section.size_mm
    return {"origin": "lower", "extent": (0, width, 0, height)}


def _write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    ax.text(x, y, text, color="white", path_effects=STROKE, **{"size": 10, **style})
