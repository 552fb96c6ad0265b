"""What a prior changes: predictions side by side, and tables of scores.

:func:`prior_figure` and :func:`overlay_figure` come from `stipple_monai.visualize.figures`, where
the rules that all figures follow are written. A slice's index counts from inferior, from 0,
whatever the volume's orientation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai.label_values import IGNORED
from stipple_monai.visualize.figures import overlay_figure, prior_figure, probability_of
from stipple_monai.visualize.sections import (
    CONVENTION,
    Section,
    Window,
    box_around,
    colour_bar,
    draw_image,
    draw_mask,
    draw_outline,
    draw_prior,
    legend,
    new_figure,
    outline_key,
    window_for,
    write_png,
)
from stipple_monai.visualize.volumes import (
    on_one_grid,
)

__all__ = [
    "Kind",
    "best_case_for",
    "comparison_figure",
    "dice_table",
    "overlay_figure",
    "prior_figure",
]

Kind: TypeAlias = Literal["recovered miss", "removed false positive"]

_TRUE_POSITIVE, _FALSE_POSITIVE, _FALSE_NEGATIVE = "#56B4E9", "#D55E00", "#F0E442"


_WHAT: dict[Kind, str] = {
    "recovered miss": "organ voxels that the baseline misses and STIPPLE finds",
    "removed false positive": "voxels that the baseline wrongly marks and STIPPLE does not",
}


def comparison_figure(
    image: MetaTensor,
    truth: MetaTensor,
    baseline: MetaTensor,
    stipple: MetaTensor,
    prior: MetaTensor,
    path: str | os.PathLike[str],
    *,
    kind: Kind,
    organ: int = 1,
    window: Window | None = None,
    margin_mm: float = 40.0,
) -> tuple[int, int]:
    """Show what the prior changed, on the slice where it changed most (figure 4 of the paper).

    The slice is the axial one with the most voxels of ``kind``: ``"recovered miss"``, organ that
    the baseline misses and STIPPLE finds; ``"removed false positive"``, what the baseline wrongly
    marks and STIPPLE does not. The lowest of equal slices is taken.

    Args:
        image: ``(1, W, H, D)``, as all others and on one grid.
        truth: label map.
        baseline: label map predicted without prior.
        stipple: label map predicted with prior.
        prior: the organ's prior, placed, in [0, 1].
        path: of the PNG.
        kind: what is looked for.
        organ: label value of the organ.
        window: values that are black and white.
        margin_mm: what is shown around truth and predictions.

    Returns:
        The slice's index from inferior, from 0, and its number of such voxels.

    Raises:
        DatasetError: a volume cannot be used, or two lie on different grids.
        PriorError: ``prior`` is not one channel in [0, 1].
        ValueError: ``kind`` is unknown or there is no such voxel; ``window`` or the ending of
            ``path`` is wrong.
    """
    volumes = on_one_grid(image=image, truth=truth, baseline=baseline, stipple=stipple, prior=prior)
    chance = probability_of(volumes["prior"], 1)[0]
    scan = volumes["image"]
    voxels = scan[0].numpy()
    masks = _masks(volumes, organ)
    counts = _count(kind, **masks)
    index = int(counts.argmax())
    count = int(counts[index])
    if not count:
        raise ValueError(
            f"There is no {kind} of organ {organ} in this case: choose one with `best_case_for`."
        )
    union = np.argwhere(np.any([m[:, :, index] for m in masks.values()], axis=0))
    low, high = [*union.min(0), index], [*union.max(0), index]
    box = box_around(low, high, scan, margin_mm=margin_mm)
    section = Section("axial", index, box, scan.pixdim.tolist())
    window = window_for([section.of(voxels)], window)
    figure = _four_panels(section, voxels, window, masks, chance)
    middle = torch.tensor([*(np.add(low, high) / 2), 1.0], dtype=torch.float64)
    height = round(float(scan.affine[2].double() @ middle))
    where = f"slice {index + 1} of {scan.shape[3]} from inferior, z = {height} mm"
    title = f"{kind.capitalize()}: {count} {_WHAT[kind]}\n{where}"
    figure.suptitle(title, size=12)
    write_png(figure, path, f"{title}. Image, baseline, STIPPLE and prior. {CONVENTION}")
    return index, count


def _masks(volumes: Mapping[str, MetaTensor], organ: int) -> dict[str, NDArray[np.bool_]]:
    """Where the organ is, after truth and predictions; nowhere where the truth is not known."""
    known = volumes["truth"][0].numpy() != IGNORED
    names = ("truth", "baseline", "stipple")
    return {name: (volumes[name][0].numpy() == organ) & known for name in names}


def _four_panels(
    section: Section,
    voxels: NDArray[Any],
    window: Window,
    masks: Mapping[str, NDArray[np.bool_]],
    chance: NDArray[Any],
) -> Figure:
    """Image, baseline, STIPPLE and prior."""
    figure, axes = new_figure([[section] * 4], width_inches=13.0, extra_inches=1.2)
    names = {"baseline": "baseline", "stipple": "STIPPLE"}
    right = masks["truth"]
    for ax in axes.flat:
        draw_image(ax, section, voxels, window)
    for ax, (key, name) in zip(axes[0, 1:3], names.items(), strict=True):
        predicted = masks[key]
        draw_mask(ax, section, predicted & right, _TRUE_POSITIVE)
        draw_mask(ax, section, predicted & ~right, _FALSE_POSITIVE)
        draw_mask(ax, section, ~predicted & right, _FALSE_NEGATIVE)
        ax.set_title(f"{name} ({_score(section.of(predicted), section.of(right))})", size=10)
    axes[0, 0].set_title("image", size=10)
    reached = section.of(chance).any()
    axes[0, 3].set_title("prior" if reached else "prior (zero on this slice)", size=10)
    colours = draw_prior(axes[0, 3], section, chance)
    for ax in axes[0, :3]:
        draw_outline(ax, section, right, "white")
    colour_bar(figure, colours, axes[0, 3], shrink=0.8, pad=0.02)
    keys: list[Artist] = [
        outline_key("white", "truth"),
        Patch(color=_TRUE_POSITIVE, label="true positive"),
        Patch(color=_FALSE_POSITIVE, label="false positive"),
        Patch(color=_FALSE_NEGATIVE, label="false negative"),
    ]
    legend(figure, keys)
    return figure


def best_case_for(
    kind: Kind, cases: Iterable[Mapping[str, MetaTensor]], *, organ: int = 1
) -> int | None:
    """Choose the case whose best slice has the most voxels of a kind.

    Args:
        kind: see :func:`comparison_figure`.
        cases: of each, the label maps ``truth``, ``baseline`` and ``stipple``, ``(1, W, H, D)`` on
            one grid; other entries are ignored. Cases are read one by one.
        organ: label value of the organ.

    Returns:
        The case's place among ``cases``, the first of equal ones; ``None`` where no case has such
        a voxel.

    Raises:
        ValueError: ``kind`` is unknown.
        DatasetError: a label map cannot be used, or a case's maps lie on different grids.

    Example:
        >>> organ, nothing = (MetaTensor(torch.full((1, 4, 4, 2), v)) for v in (1, 0))
        >>> found = {"truth": organ, "baseline": organ, "stipple": organ}
        >>> best_case_for("recovered miss", [found, {**found, "baseline": nothing}])
        1
    """
    best, most = None, 0
    for index, case in enumerate(cases):
        volumes = on_one_grid(**{name: case[name] for name in ("truth", "baseline", "stipple")})
        count = int(_count(kind, **_masks(volumes, organ)).max())
        if count > most:
            best, most = index, count
    return best


def dice_table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown table of Dice scores: a row for each method, a column for each organ.

    Args:
        results: Dice in [0, 1] of each case, by method and organ; NaN where the organ is absent
            from the case. The cases of one method are the same for all its organs.

    Returns:
        The table in %, mean ± sample standard deviation over cases. ``mean`` averages the organs
        present in a case first. A cell with absent organs says how many.

    Raises:
        ValueError: there is no result, a value lies outside [0, 1], or the organs of a method have
            different numbers of cases.

    Example:
        >>> print(dice_table({"baseline": {"pancreas": [0.4, 0.5, float("nan")]}}))
        | method | n | pancreas |
        | --- | ---: | ---: |
        | baseline | 3 | 45.0 ± 7.1 (n = 2, absent in 1) |
        <BLANKLINE>
        Dice in %, mean ± standard deviation over n cases.
    """
    organs = list(dict.fromkeys(organ for by_organ in results.values() for organ in by_organ))
    if not organs:
        raise ValueError("`results` must hold at least one method and organ, got none.")
    columns = [*organs, "mean"] if len(organs) > 1 else organs
    lines = [["method", "n", *columns], ["---", *["---:"] * (len(columns) + 1)]]
    for method, by_organ in results.items():
        lengths = {organ: len(by_organ[organ]) for organ in by_organ}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"The organs of {method!r} must have the same cases, got the numbers {lengths}: "
                "put NaN where an organ is absent."
            )
        scores = {k: np.asarray(v, dtype=float) for k, v in by_organ.items()}
        for organ, values in scores.items():
            wrong = values[~np.isnan(values) & ~((values >= 0) & (values <= 1))]
            if len(wrong):
                raise ValueError(
                    f"Dice must lie in [0, 1], got {wrong[0]:g} for {organ!r} of {method!r}: give "
                    "fractions, not per cent."
                )
        if len(organs) > 1 and scores:
            stack = np.ma.masked_invalid(np.stack(list(scores.values())))
            scores["mean"] = stack.mean(axis=0).filled(np.nan)
        n = max(lengths.values(), default=0)
        lines.append([method, str(n), *(_cell(scores.get(c)) for c in columns)])
    table = "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
    return f"{table}\n\nDice in %, mean ± standard deviation over n cases."


def _cell(scores: NDArray[np.float64] | None) -> str:
    if scores is None or not len(scores):
        return "–"
    present = scores[~np.isnan(scores)]
    absent = len(scores) - len(present)
    text = f"{100 * present.mean():.1f}" if len(present) else "–"
    if len(present) > 1:
        text += f" ± {100 * present.std(ddof=1):.1f}"
    return f"{text} (n = {len(present)}, absent in {absent})" if absent else text


def _count(
    kind: Kind, truth: NDArray[np.bool_], baseline: NDArray[np.bool_], stipple: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Voxels of ``kind`` on each slice of ``(W, H, D)`` masks."""
    if kind not in get_args(Kind):
        raise ValueError(f"`kind` must be one of {get_args(Kind)}, got {kind!r}.")
    marked = (
        truth & ~baseline & stipple if kind == "recovered miss" else ~truth & baseline & ~stipple
    )
    return marked.sum((0, 1))


def _score(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> str:
    both = int(predicted.sum() + truth.sum())
    if not both:
        return "nothing on this slice"
    return f"Dice {200 * int((predicted & truth).sum()) / both:.0f} % on this slice"
