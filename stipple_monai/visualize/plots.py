"""An empty plot and a finished one: axes, grid and legend as all plots here have them."""

from __future__ import annotations

import os
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stipple_monai.visualize.sections import write_png


def new_plot(height: float = 4.6) -> tuple[Figure, Axes]:
    """An empty plot, 8 inches wide."""
    figure = Figure(figsize=(8.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def finish_plot(
    figure: Figure,
    ax: Axes,
    path: str | os.PathLike[str],
    description: str,
    *,
    legend: Literal["right", "above"] | None = "right",
) -> None:
    """Write a plot with its legend, and its description in the file."""
    ax.grid(alpha=0.25)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if legend == "above":
        ax.legend(fontsize=10, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    elif legend == "right":
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    write_png(figure, path, description)
