"""The report of a study: Markdown, figures, and one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from stipple_monai.data import label_names
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv
from stipple_monai.ownership import begun_with
from stipple_monai.report import Lines, Page, Picture, Section, Table, write_page
from stipple_monai.results import Spread
from stipple_monai.study import paper
from stipple_monai.study.draws import draws_table
from stipple_monai.study.figures import (
    dice_by_bins,
    dice_by_proportion,
    learning_curves,
    loss_by_position_error,
)
from stipple_monai.study.organs import organ_table
from stipple_monai.study.recipe import recipe_table
from stipple_monai.study.steps import steps_table
from stipple_monai.study.tables import (
    DASH,
    Results,
    Row,
    comparison_table,
    dice_table,
    measures_table,
    not_won,
    position_table,
    rounds_table,
)
from stipple_monai.study.titles import RECIPE, TITLES
from stipple_monai.visualize import KINDS

STUDY = "study.json"
"""What a study was begun with, in its folder."""
TOLD = "told"
"""The entry of that file with the words of the report: title, dataset and notes."""
BINNED = "stipple_bins_"
"""What the names of methods begin with that differ in the number of bins alone."""
DOI = "https://doi.org/10.1007/s11548-021-02494-y"
ABLATION = (
    "baseline",
    "prior_alone",
    "afterwards_single",
    "equation_2",
    "stipple_single",
    "relabelling",
    "stipple",
    "paper_baseline",
    "paper_single",
    "paper",
)
RIVALS = (
    "baseline",
    "relabelling",
    "adversarial",
    "mean_teacher",
    "mean_teacher_prior",
    "cps",
    "cps_prior",
    "bcp",
    "bcp_prior",
    "unimatch",
    "unimatch_prior",
    "attention_unet",
    "coord_conv",
    "atlas_prior",
    "patch_3d",
    "patch_3d_prior",
    "patch_3d_afterwards",
    "afterwards",
    "stipple",
)


def write_report(
    folder: str | Path,
    *,
    title: str,
    dataset: str,
    notes: Sequence[str] = (),
    pictures: Sequence[Picture] = (),
    organs: Mapping[int, str] | None = None,
) -> Path:
    """Write ``report.md``, ``report.html`` and ``figures/`` from a study's CSV files.

    Args:
        folder: with ``results.csv``, and perhaps ``curves.csv`` and ``rounds.csv``.
        title: heading.
        dataset: one line about the data.
        notes: paragraphs below the heading.
        pictures: of cases (figure 4).
        organs: names by label value.

    Returns:
        ``report.html``.

    Raises:
        DatasetError: ``results.csv`` is missing or has no rows.
    """
    folder = Path(folder)
    path = folder / "results.csv"
    rows = _read(path)
    if not rows:
        raise DatasetError(f"`folder` must have a results.csv with rows, got {path}: run cells.")
    names = {str(k): name for k, name in (organs or {}).items()}
    results = Results([{"name": names.get(row["organ"], ""), **row} for row in rows])
    tables = _tables(results, _read(folder / "rounds.csv"))
    shown = [_without_dashes(table) for table in tables if table is not None and table.rows]
    figures = _figures(results, _read(folder / "curves.csv"), folder / "figures")
    lead = _introduction(rows, dataset)
    said = not_won(results)
    content = [Section("Where STIPPLE did not win", [Lines(said)])] if said else []
    content += [Section(table.title, [table._replace(title="")]) for table in shown]
    content += [
        Section(picture.title, [picture._replace(title="", alt=picture.alt or picture.title)])
        for picture in (*figures, *pictures)
    ]
    return write_page(folder / "report.html", Page(title, [lead, *notes], content, links=[DOI]))


def is_study(folder: str | Path) -> bool:
    """Whether a folder is that of a study."""
    return (Path(folder) / STUDY).is_file()


def rewrite_report(folder: str | Path) -> Path:
    """Write the report of a study anew from what lies in its folder, running nothing.

    Args:
        folder: of the study.

    Returns:
        ``report.html``.

    Raises:
        DatasetError: ``results.csv`` is missing or has no rows.
    """
    folder = Path(folder)
    known = begun_with(folder / STUDY) or {}
    told = known.get(TOLD, {})
    drawn = [
        Picture(kind.capitalize(), folder / "figures" / name, told.get("pictures", ""), wide=True)
        for kind, name in KINDS.items()
        if (folder / "figures" / name).is_file()
    ]
    data = known.get("study", {}).get("datalist") or "a phantom"
    return write_report(
        folder,
        title=told.get("title", f"Study {folder.resolve().name}"),
        dataset=told.get("dataset") or str(data),
        notes=told.get("notes", ()),
        pictures=drawn,
        organs=names_of_study(folder, known.get("study", {}).get("datalist")),
    )


def names_of_study(folder: str | Path, datalist: str | Path | None) -> dict[int, str]:
    """Names of the organs as a study's data set has them; none where it is not there.

    Args:
        folder: of the study.
        datalist: of the study; ``None`` is the phantom in its folder.
    """
    path = Path(datalist or Path(folder) / "phantom" / "dataset.json")
    return label_names(path) if path.is_file() else {}


def _read(path: Path) -> list[Row]:
    return list(read_csv(path)) if path.is_file() else []


def _without_dashes(table: Table) -> Table:
    """A table without the columns that say nothing of any method."""
    empty = ("", DASH)
    said = [any(row[i] not in empty for row in table.rows) for i in range(len(table.header))]
    rows = [[cell for cell, kept in zip(row, said, strict=True) if kept] for row in table.rows]
    header = [cell for cell, kept in zip(table.header, said, strict=True) if kept]
    # no word on a column that is not there
    note = table.note if "paper" in header else table.note.partition(" “paper”")[0]
    return table._replace(header=header, rows=rows, note=note)


def _tables(results: Results, rounds: Sequence[Row]) -> list[Table | None]:
    bins = ["baseline", *(m for m in results.methods if m.startswith("stipple_bins"))]
    rivals = RIVALS if set(results.methods) & (set(RIVALS) - set(ABLATION)) else ()
    others = [m for m in results.methods if m not in TITLES and m not in bins]
    ablated = any(method.startswith("steps_") for method in results.methods)
    varied = set(results.methods) & set(RECIPE)
    return [
        dice_table(results, ABLATION, "What the prior and the pseudo-labels do (table 2)"),
        comparison_table(results),
        draws_table(results),
        dice_table(results, rivals, "Against other methods (table 3)"),
        steps_table(results) if ablated else None,
        recipe_table(results) if varied else None,
        position_table(results),
        dice_table(results, others, "Further methods"),
        measures_table(results),
        organ_table(results),
        rounds_table(rounds),
    ]


def _introduction(rows: Sequence[Row], dataset: str) -> str:
    counts = {name: len({row[name] for row in rows}) for name in ("method", "fold", "seed", "scan")}
    said = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    start = f"Data: {dataset}. " if dataset else ""
    return (
        f"{start}{said} tested. A dash: not run, or undefined. "
        f"Figures marked “paper” are from TCIA Pancreas-CT ({DOI}) and not the same data."
    )


def _figures(results: Results, curves: Sequence[Row], folder: Path) -> list[Picture]:
    made = []
    shown = ("baseline", "stipple_single", "stipple")
    names = [method for method in shown if method in results.methods]
    if len(results.proportions) > 1 and names:
        dice_by_proportion(
            {TITLES[m]: results.by_proportion(m) for m in names},
            folder / "dice_by_proportion.png",
            other={TITLES[m]: paper.DICE[m] for m in names if m in ("baseline", "stipple")},
        )
        caption = "Bars: standard deviation between folds. Grey: the paper, on other data."
        made.append(
            Picture(
                "Dice by label proportion (figure 3)", folder / "dice_by_proportion.png", caption
            )
        )
    made += _bins_figure(results, folder / "dice_by_bins.png")
    for column, measure in (("loss", "training loss"), ("validation_dice", "validation Dice")):
        values = curves_by_method(results, curves, column)
        if values:
            path = folder / f"curves_{column}.png"
            learning_curves(values, path, measure=measure)
            caption = (
                "Round 0, mean over label proportions, folds and seeds; shaded: range. Methods "
                "that share a network share a curve. Losses of different kinds cannot be compared "
                "with each other."
            )
            made.append(Picture(f"Learning curves: {measure}", path, caption))
    points = _position_points(results)
    if points:
        path = folder / "position_error.png"
        loss_by_position_error(points, path)
        caption = "STIPPLE, a point a case; above the line, position cost Dice."
        made.append(Picture("What positioning costs", path, caption))
    return made


def curves_by_method(
    results: Results, rows: Sequence[Row], column: str
) -> dict[str, dict[int, list[float]]]:
    """Values of round 0 by method and epoch; methods whose values are all the same come once."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[column] and row["round"] == "0":
            found[row["method"]][int(row["epoch"])].append(float(row[column]))
    distinct: dict[str, dict[int, list[float]]] = {}
    for method in results.methods:
        if method in found and found[method] not in distinct.values():
            distinct[TITLES.get(method, method)] = found[method]
    return distinct


def lines_by_bins(results: Results) -> tuple[dict[str, dict[str, Spread]], dict[str, float]]:
    """Dice in % by the number of bins, in the paper's recipe; without prior.

    Args:
        results: of a study with methods ``stipple_bins_…``.

    Returns:
        By name of a proportion, where several numbers of bins were tried, the mean and spread of
        each; and by name of a proportion the mean of the network without prior.
    """
    lines: dict[str, dict[str, Spread]] = defaultdict(dict)
    for method in results.methods:
        if method.startswith(BINNED):
            for proportion, spread in results.by_proportion(method).items():
                lines[f"{proportion:.0%}"][method.removeprefix(BINNED)] = spread
    several = {name: line for name, line in lines.items() if len(line) > 1}
    alone = {f"{p:.0%}": s.mean for p, s in results.by_proportion("paper_baseline").items()}
    return several, alone


def _bins_figure(results: Results, path: Path) -> list[Picture]:
    """Figure 6, where several numbers of bins were tried."""
    lines, baselines = lines_by_bins(results)
    if not lines:
        return []
    dice_by_bins(lines, baselines, path)
    caption = (
        "STIPPLE of the paper; dotted: the network alone; bars: standard deviation "
        "between folds. The paper draws its own figure 6 without giving numbers."
    )
    return [Picture("Dice by number of bins (figure 6)", path, caption)]


def _position_points(results: Results) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for proportion in results.proportions:
        best = results.cases("stipple_true_position", proportion)
        located = results.cases("stipple_single", proportion)
        errors: dict[tuple[int, int, str], list[float]] = defaultdict(list)
        for row in results.rows.get(("stipple_single", proportion), []):
            if row["position_error_mm"]:
                case = int(row["fold"]), int(row["seed"]), row["scan"]
                errors[case].append(float(row["position_error_mm"]))
        pairs = [
            (sum(errors[case]) / len(errors[case]), best[case] - located[case])
            for case in sorted(best.keys() & located.keys() & errors.keys())
        ]
        if pairs:
            points[f"{proportion:.0%}"] = pairs
    return points
