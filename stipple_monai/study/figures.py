"""Plots of a study, PNG; the analogues of figures 3 and 6 of the paper, and learning curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stipple_monai.results import Spread
from stipple_monai.visualize import ON_WHITE, finish_plot, new_plot, write_png

Line = Mapping[float, Spread]
"""By the value along x, mean and spread in %."""

MARKERS = "osD^vPX<>*"


def dice_by_proportion(
    lines: Mapping[str, Line],
    path: str | os.PathLike[str],
    *,
    other: Mapping[str, Mapping[float, tuple[float, float]]],
) -> None:
    """Dice by label proportion with the standard deviation between folds (figure 3).

    Args:
        lines: by method, mean and spread by proportion in (0, 1].
        path: of the PNG.
        other: likewise, mean and standard deviation in % from the paper; drawn in grey.
    """
    figure, ax = new_plot()
    for (name, points), style in zip(other.items(), (":", "--"), strict=False):
        x, values = zip(*sorted(points.items()), strict=True)
        means = [mean for mean, _ in values]
        label = f"{name}, paper (TCIA Pancreas-CT: other data)"
        ax.plot(100 * np.array(x), means, style, color="#888888", lw=1.2, label=label)
    _draw_lines(ax, {k: {100 * x: s for x, s in v.items()} for k, v in lines.items()})
    ax.set_xlabel("labelled training patients (%)")
    ax.set_ylabel("Dice (%)")
    finish_plot(figure, ax, path, "Dice by label proportion, bars: sd between folds.")


def dice_by_bins(
    lines: Mapping[str, Mapping[str, Spread]],
    baselines: Mapping[str, float],
    path: str | os.PathLike[str],
) -> None:
    """Dice by the number of bins of the prior along z (figure 6).

    Args:
        lines: by name of a proportion, mean and spread in % by number of bins; ``"all"``: no bins.
        baselines: by the same names, the mean without prior.
        path: of the PNG.
    """
    figure, ax = new_plot()
    ticks = sorted({b for line in lines.values() for b in line}, key=_bins_order)
    place = {b: float(i) for i, b in enumerate(ticks)}
    _draw_lines(ax, {k: {place[b]: s for b, s in v.items()} for k, v in lines.items()})
    for index, name in enumerate(lines):
        if name in baselines:
            colour = ON_WHITE[index % len(ON_WHITE)]
            label = f"network alone, {name}"
            ax.axhline(baselines[name], color=colour, ls=":", lw=1.3, label=label)
    ax.set_xticks(list(place.values()), ["Δz" if b == "all" else b for b in ticks])
    ax.set_xlabel("bins along z, B (Δz: every slice of its own)")
    ax.set_ylabel("Dice (%)")
    finish_plot(figure, ax, path, "Dice by number of bins, bars: sd between folds.")


def dice_by_method(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    ours: str = "STIPPLE",
) -> str:
    """Dice of every patient, a dot each, and the mean, by method: a panel for each data set.

    Args:
        panels: by data set, and by method in the order from top to bottom, Dice in % of every
            patient.
        path: of the PNG.
        ours: methods with it in their names are in colour, the others grey.

    Returns:
        What the picture shows.
    """
    rows = [len(methods) for methods in panels.values()]
    figure = Figure(figsize=(8.0, 0.9 + sum(0.42 * n + 0.5 for n in rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=rows, squeeze=False)[:, 0]
    for ax, (title, methods) in zip(axes, panels.items(), strict=True):
        _draw_dots(ax, methods, ours)
        ax.set_title(title, loc="left", fontsize=13, fontweight="bold")
        ax.grid(axis="x", alpha=0.25)
        ax.tick_params(labelsize=12)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
    axes[-1].set_xlabel("Dice (%), mean over organs: a dot a patient, a bar the mean", fontsize=12)
    said = [
        f"{title} ({len(next(iter(methods.values()), ()))} patients): "
        + ", ".join(f"{name} {np.mean(values):.1f}" for name, values in methods.items())
        for title, methods in panels.items()
    ]
    description = f"Dice in %, mean over organs and patients. {'; '.join(said)}."
    write_png(figure, path, description)
    return description


def learning_curves(
    curves: Mapping[str, Mapping[int, Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    measure: str,
) -> None:
    """A measure by epoch, mean and range over folds and seeds.

    Args:
        curves: by method, the values of every epoch.
        path: of the PNG.
        measure: name of the y-axis.
    """
    figure, ax = new_plot()
    for index, (name, epochs) in enumerate(curves.items()):
        x = sorted(epochs)
        values = [epochs[epoch] for epoch in x]
        colour = ON_WHITE[index % len(ON_WHITE)]
        ax.plot(x, [np.mean(v) for v in values], color=colour, lw=1.6, label=name)
        low, high = [min(v) for v in values], [max(v) for v in values]
        ax.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    ax.set_xlabel("epoch")
    ax.set_ylabel(measure)
    finish_plot(figure, ax, path, f"{measure} by epoch, shaded: range over folds and seeds.")


def loss_by_position_error(
    points: Mapping[str, Sequence[tuple[float, float]]], path: str | os.PathLike[str]
) -> None:
    """What a wrong position costs: Dice lost to the true position, by distance from it.

    Args:
        points: by name of a proportion, position error in mm and Dice lost in points.
        path: of the PNG.
    """
    figure, ax = new_plot()
    for index, (name, pairs) in enumerate(points.items()):
        x, y = zip(*pairs, strict=True)
        ax.scatter(
            x,
            y,
            s=22,
            marker=MARKERS[index % len(MARKERS)],
            color=ON_WHITE[index % len(ON_WHITE)],
            alpha=0.75,
            label=name,
        )
    ax.axhline(0, color="#888888", lw=0.8)
    ax.set_xlabel("distance of the prior from the true position (mm)")
    ax.set_ylabel("Dice at the true position − located (points)")
    finish_plot(figure, ax, path, "Dice lost by distance from the true position, a point a case.")


def _draw_dots(ax: Axes, methods: Mapping[str, Sequence[float]], ours: str) -> None:
    for row, (name, values) in enumerate(methods.items()):
        colour = ON_WHITE[0] if ours in name else "#666666"
        # dots beside each other where patients are alike, the same in every drawing
        up = 0.11 * (np.argsort(np.argsort(values)) % 3 - 1)
        ax.scatter(values, row + up, s=34, color=colour, alpha=0.45, lw=0)
        mean = float(np.mean(values))
        ax.plot([mean, mean], [row - 0.33, row + 0.33], color=colour, lw=3.5)
        style: dict[str, Any] = {
            "color": colour,
            "fontsize": 13,
            "fontweight": "bold",
        }
        ax.annotate(
            f"{mean:.1f}", (1.01, row), xycoords=ax.get_yaxis_transform(), va="center", **style
        )
    ax.set_yticks(range(len(methods)), list(methods))
    ax.set_ylim(len(methods) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)


def _draw_lines(ax: Axes, lines: Mapping[str, Line]) -> None:
    reach = max((max(line) - min(line) for line in lines.values() if line), default=0)
    for index, (name, points) in enumerate(lines.items()):
        if not points:
            continue
        x, spreads = zip(*sorted(points.items()), strict=True)
        # side by side, so that bars do not hide each other
        aside = 0.012 * reach * (index - (len(lines) - 1) / 2)
        ax.errorbar(
            np.array(x) + aside,
            [s.mean for s in spreads],
            yerr=[0.0 if np.isnan(s.sd) else s.sd for s in spreads],
            color=ON_WHITE[index % len(ON_WHITE)],
            marker=MARKERS[index % len(MARKERS)],
            ms=5,
            lw=1.6,
            capsize=3,
            label=name,
        )


def _bins_order(bins: str) -> float:
    return float("inf") if bins == "all" else float(bins)
