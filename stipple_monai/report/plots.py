"""Plots of a report, PNG."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from stipple_monai.visualize import ON_WHITE, finish_plot, new_plot


def histogram(
    values: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    *,
    measure: str,
    counted: str = "cases",
) -> str | None:
    """Draw how a measure is distributed, for each of several kinds of things.

    Args:
        values: by name, of each case; NaN is left out.
        path: of the PNG.
        measure: name of the x-axis, with its unit.
        counted: name of the y-axis.

    Returns:
        What the picture shows, or ``None`` where there are less than three values in all.
    """
    finite = {k: [v for v in numbers if np.isfinite(v)] for k, numbers in values.items()}
    finite = {k: numbers for k, numbers in finite.items() if numbers}
    everything = [v for numbers in finite.values() for v in numbers]
    if len(everything) < 3:
        return None
    bins = min(20, max(5, len(everything) // 2))
    edges = np.histogram_bin_edges(everything, bins=bins).tolist()
    figure, ax = new_plot()
    for index, (name, numbers) in enumerate(finite.items()):
        colour = ON_WHITE[index % len(ON_WHITE)]
        label = f"{name} (n = {len(numbers)}, median {np.median(numbers):.3g})"
        # outlines, since bars of several organs would hide each other
        ax.hist(numbers, edges, histtype="step", color=colour, lw=1.8, label=label)
        if len(finite) == 1:
            ax.hist(numbers, edges, color=colour, alpha=0.25)
    ax.set_xlabel(measure)
    ax.set_ylabel(counted)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    said = "; ".join(
        f"{k}: {len(v)} from {min(v):.3g} to {max(v):.3g}, median {np.median(v):.3g}"
        for k, v in finite.items()
    )
    description = f"Histogram of {measure}. {said}."
    finish_plot(figure, ax, path, description, legend="above")
    return description


def curves(
    lines: Mapping[str, Mapping[float, float]],
    path: str | os.PathLike[str],
    *,
    x: str,
    measure: str,
) -> str | None:
    """Draw lines through points.

    Args:
        lines: by name, y by x.
        path: of the PNG.
        x: name of the x-axis.
        measure: name of the y-axis.

    Returns:
        What the picture shows, or ``None`` where there is no point.
    """
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    figure, ax = new_plot()
    for index, (name, points) in enumerate(lines.items()):
        marker = "o" if len(points) < 60 else ""
        colour = ON_WHITE[index % len(ON_WHITE)]
        ax.plot(
            list(points),
            list(points.values()),
            color=colour,
            lw=1.6,
            label=name,
            marker=marker,
            ms=3.5,
        )
    ax.set_xlabel(x)
    ax.set_ylabel(measure)
    said = "; ".join(
        f"{name}: from {points[min(points)]:.3g} to {points[max(points)]:.3g}"
        for name, points in lines.items()
    )
    description = f"{measure} by {x}. {said}."
    finish_plot(figure, ax, path, description, legend="above")
    return description
