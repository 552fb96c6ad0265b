"""The report of a study: Markdown, figures, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stipple_monai import paper
from stipple_monai.errors import DatasetError
from stipple_monai.files import read_csv, whole_file
from stipple_monai.study_figures import (
    dice_by_bins,
    dice_by_proportion,
    learning_curves,
    loss_by_position_error,
)
from stipple_monai.study_tables import (
    TITLES,
    Results,
    Row,
    Table,
    comparison_table,
    dice_table,
    measures_table,
    not_won,
    organ_table,
    position_table,
    rounds_table,
)

DOI = "https://doi.org/10.1007/s11548-021-02494-y"
ABLATION = ("baseline", "stipple_single", "relabelling", "stipple", "stipple_certain")
RIVALS = (
    "baseline",
    "relabelling",
    "adversarial",
    "mean_teacher",
    "attention_unet",
    "coord_conv",
    "atlas_prior",
    "patch_3d",
    "patch_3d_prior",
    "stipple",
)

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #888;font-weight:600}
.note,figcaption,.lead{color:#555;font-size:.88rem}img{max-width:100%;height:auto}
figure{margin:1rem 0}@media print{body{margin:0}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""


class Picture(NamedTuple):
    """A PNG for the report.

    Attributes:
        title: heading.
        path: of the PNG.
        caption: what is seen, and why this case.
    """

    title: str
    path: Path
    caption: str


def write_report(
    folder: str | Path,
    *,
    title: str,
    dataset: str,
    notes: Sequence[str] = (),
    pictures: Sequence[Picture] = (),
) -> Path:
    """Write ``report.md``, ``report.html`` and ``figures/`` from a study's CSV files.

    Args:
        folder: with ``results.csv``, and perhaps ``curves.csv`` and ``rounds.csv``.
        title: heading.
        dataset: one line about the data.
        notes: paragraphs below the heading.
        pictures: of cases (figure 4).

    Returns:
        ``report.html``.

    Raises:
        DatasetError: ``results.csv`` is missing or has no rows.
    """
    folder = Path(folder)
    path = folder / "results.csv"
    rows = read_csv(path) if path.is_file() else []
    if not rows:
        raise DatasetError(f"`folder` must have a results.csv with rows, got {path}: run cells.")
    results = Results(rows)
    optional = {
        name: read_csv(folder / f"{name}.csv") if (folder / f"{name}.csv").is_file() else []
        for name in ("curves", "rounds")
    }
    bins = ["baseline", *(m for m in results.methods if m.startswith("stipple_bins"))]
    others = [m for m in results.methods if m not in TITLES and m not in bins]
    tables = [
        dice_table(results, ABLATION, "What the prior and the pseudo-labels do (table 2)"),
        comparison_table(results),
        dice_table(results, RIVALS, "Against other methods (table 3)"),
        position_table(results),
        dice_table(results, others, "Further methods"),
        measures_table(results),
        organ_table(results),
        rounds_table(optional["rounds"]),
    ]
    shown = [table for table in tables if table is not None and table.rows]
    figures = _figures(results, optional["curves"], folder / "figures")
    lead = _lead(rows, results, dataset)
    said = not_won(results)
    markdown = _markdown(folder, title, [lead, *notes], said, shown, [*figures, *pictures])
    for name, text in (
        ("report.md", markdown),
        ("report.html", _html(title, [lead, *notes], said, shown, [*figures, *pictures])),
    ):
        with whole_file(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return folder / "report.html"


def _lead(rows: Sequence[Row], results: Results, dataset: str) -> str:
    counts = {name: len({row[name] for row in rows}) for name in ("fold", "seed", "scan")}
    said = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    start = f"Data: {dataset}. " if dataset else ""
    return (
        f"{start}{len(results.methods)} methods, {said} tested. A dash: not run, or undefined. "
        f"Figures marked “paper” are from TCIA Pancreas-CT ({DOI}) and not the same data."
    )


def _figures(results: Results, curves: Sequence[Row], folder: Path) -> list[Picture]:
    made = []
    shown = ("baseline", "stipple_single", "stipple", "stipple_certain")
    names = [method for method in shown if method in results.methods]
    if len(results.proportions) > 1 and names:
        dice_by_proportion(
            {TITLES[m]: _line(results, m) for m in names},
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
        values = _curves(results, curves, column)
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
        caption = "STIPPLE without relabelling, a point a case; above the line, position cost Dice."
        made.append(Picture("What positioning costs", path, caption))
    return made


def _curves(
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


def _line(results: Results, method: str) -> dict:
    spreads = {p: results.spread(method, p) for p in results.proportions}
    return {p: spread for p, spread in spreads.items() if spread.folds}


def _bins_figure(results: Results, path: Path) -> list[Picture]:
    lines: dict[str, dict] = {}
    for proportion in results.proportions:
        for method in results.methods:
            found = results.rows.get((method, proportion), [])
            binned = method.startswith("stipple_bins") or method == "stipple_single"
            if found and binned:
                spread = results.spread(method, proportion)
                lines.setdefault(f"{proportion:.0%}", {})[found[0]["bins"]] = spread
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    if not lines:
        return []
    baselines = {
        f"{p:.0%}": results.spread("baseline", p).mean
        for p in results.proportions
        if results.spread("baseline", p).folds
    }
    dice_by_bins(lines, baselines, path)
    caption = (
        "STIPPLE without relabelling; dotted: the baseline; bars: standard deviation between "
        "folds. The paper draws its own figure 6 without giving numbers."
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


def _markdown(
    folder: Path,
    title: str,
    notes: Sequence[str],
    said: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
) -> str:
    parts = [f"# {title}", *notes]
    if said:
        parts += ["## Where STIPPLE did not win", "\n".join(f"- {line}" for line in said)]
    for table in tables:
        lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
        text = "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in x) + " |" for x in lines)
        parts += [f"## {table.title}", text, table.note]
    for picture in pictures:
        link = picture.path.relative_to(folder).as_posix()
        parts += [f"## {picture.title}", f"![{picture.title}]({link})", picture.caption]
    return "\n\n".join(parts) + "\n"


def _html(
    title: str,
    notes: Sequence[str],
    said: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
) -> str:
    def text(content: str) -> str:
        return html.escape(content).replace(DOI, f'<a href="{DOI}">{DOI}</a>')

    parts = [f"<h1>{text(title)}</h1>", *(f'<p class="lead">{text(note)}</p>' for note in notes)]
    if said:
        items = "".join(f"<li>{text(line)}</li>" for line in said)
        parts.append(f"<h2>Where STIPPLE did not win</h2><ul>{items}</ul>")
    for table in tables:
        head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in table.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>"
            for row in table.rows
        )
        parts.append(
            f'<h2>{text(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f'<tbody>{body}</tbody></table></div><p class="note">{text(table.note)}</p>'
        )
    for picture in pictures:
        data = base64.b64encode(picture.path.read_bytes()).decode()
        parts.append(
            f"<h2>{text(picture.title)}</h2><figure>"
            f'<img alt="{text(picture.title)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text(picture.caption)}</figcaption></figure>"
        )
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>"
    )
    return head + "<body>" + "\n".join(parts) + "</body></html>\n"
