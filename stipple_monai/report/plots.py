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
) -> str | None:
    """Draw how a measure is distributed, for each of several kinds of things.

    Args:
        values: by name, of each case; NaN is left out.
        path: of the PNG.
        measure: name of the x-axis, with its unit.

    Returns:
        What the picture shows, or ``None`` where there are less than three values in all.
    """
    finite = _finite(values)
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
    ax.set_ylabel("cases")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    description = f"Histogram of {measure}. {_description(finite)}."
    finish_plot(figure, ax, path, description, legend="above")
    return description


def dots(
    values: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    *,
    measure: str,
    colours: Mapping[str, str],
) -> str | None:
    """Draw a row of dots for each of several organs, and a line at its median.

    Args:
        values: by organ, of each case; NaN is left out.
        path: of the PNG.
        measure: name of the x-axis, with its unit.
        colours: by organ.

    Returns:
        What the picture shows, or ``None`` where there are less than three values in all.
    """
    finite = _finite(values)
    if sum(map(len, finite.values())) < 3:
        return None
    figure, ax = new_plot(1.4 + 0.45 * len(finite))
    for row, (name, numbers) in enumerate(finite.items()):
        # beside each other where cases are alike, the same in every drawing
        shift = np.linspace(-0.2, 0.2, len(numbers)) if len(numbers) > 1 else np.zeros(1)
        at = row + shift[np.argsort(np.argsort(np.sin(np.arange(len(numbers)) * 7.0)))]
        ax.scatter(numbers, at, s=38, color=colours[name], edgecolors="#222222", lw=0.7, zorder=3)
        if len(numbers) > 1:
            ax.plot(
                [float(np.median(numbers))] * 2, [row - 0.38, row + 0.38], color="#222222", lw=1.6
            )
    ax.set_yticks(range(len(finite)), list(finite), fontsize=12)
    ax.set_ylim(len(finite) - 0.5, -0.5)
    ax.set_xlabel(measure, fontsize=12)
    description = f"{measure} of each case. {_description(finite)}."
    finish_plot(figure, ax, path, description, legend=None)
    return description


def _finite(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The numbers that are finite, by the names that have any."""
    finite = {name: [v for v in numbers if np.isfinite(v)] for name, numbers in values.items()}
    return {name: numbers for name, numbers in finite.items() if numbers}


def _description(values: Mapping[str, Sequence[float]]) -> str:
    return "; ".join(
        f"{k}: {len(v)} from {min(v):.3g} to {max(v):.3g}, median {np.median(v):.3g}"
        for k, v in values.items()
    )


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
    if all(float(at).is_integer() for points in lines.values() for at in points):
        ax.locator_params(axis="x", integer=True)
    said = "; ".join(
        f"{name}: from {points[min(points)]:.3g} to {points[max(points)]:.3g}"
        for name, points in lines.items()
    )
    description = f"{measure} by {x}. {said}."
    finish_plot(figure, ax, path, description, legend="above")
    return description
