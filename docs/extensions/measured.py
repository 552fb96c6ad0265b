"""Numbers on the pages come from ``docs/results``: tables and figures between marks.

``<!-- measured: KIND NAME… -->`` and ``<!-- measured end -->`` stand around what is rendered from
``docs/results/NAME.csv``. When the site is built, all of it is rendered anew. In the repository it
is there as well, for those who read the pages there; ``docs/results/update.py`` writes it, and
`tests/project/test_results.py` fails where it is not what the files say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import trials
from sphinx.application import Sphinx

from stipple_monai.files import read_csv, read_json
from stipple_monai.report import Table
from stipple_monai.study import (
    TITLES,
    Results,
    comparison_table,
    curves_by_method,
    dice_by_bins,
    dice_by_method,
    dice_by_proportion,
    draws_table,
    learning_curves,
    lines_by_bins,
    measures_table,
    never_loses,
    organ_differences,
    organ_positions,
    organ_table,
    position_table,
    recipe_table,
    steps_table,
)
from stipple_monai.study.tables import interval, p_value

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results"
MARKED = re.compile(
    r"(?P<begin><!-- measured: (?P<kind>\S+)(?P<names>[^>]*?) -->\n)(?P<text>.*?)"
    r"(?P<end><!-- measured end -->)",
    re.DOTALL,
)
SHOWN = ("baseline", "prior_alone", "afterwards_single", "stipple_single", "stipple")
"""Methods of the table that README shows."""
DRAWN = (
    *("baseline", "baseline_long", "prior_alone", "mean_teacher", "cps", "cps_prior"),
    *("bcp", "bcp_prior", "unimatch", "unimatch_prior"),
    *("afterwards_single", "stipple_single", "stipple_long", "stipple"),
)
"""Rows of the figure, from top to bottom, where a study has them."""
SAME_NETWORK = ("baseline", "prior_alone", "afterwards_single")


class Place(NamedTuple):
    """Where something is shown: the page's file, and the folder of its figures."""

    page: Path
    figures: Path


class Shown(NamedTuple):
    """A study in a table of several: name, an organ and a share of labels or all, and title."""

    study: str
    organ: int | None
    share: float | None
    title: str

    def rows(self, methods: Sequence[str]) -> list[dict[str, str]]:
        """Its rows of these methods."""
        rows = (row for row in rows_of(self.study) if row["method"] in methods)
        return [row for row in rows if self.share in (None, float(row["proportion"]))]


def rows_of(name: str) -> list[dict[str, str]]:
    """Rows of a study, or of several with a + between them; a row that comes twice counts once."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for part in name.split("+"):
        for row in read_csv(RESULTS / f"{part}.csv"):
            key = tuple(row[k] for k in ("method", "proportion", "fold", "seed", "scan", "organ"))
            rows.setdefault(key, row)
    return list(rows.values())


def without_half_cells(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows without those of a network that has not been tested in all of its ways yet.

    Means over other scans could not be set side by side.
    """
    cells = {m: {cell_of(r) for r in rows if r["method"] == m} for m in SAME_NETWORK}
    there = [found for found in cells.values() if found]
    together = set.intersection(*there) if there else set()
    return [row for row in rows if row["method"] not in SAME_NETWORK or cell_of(row) in together]


def cell_of(row: Mapping[str, str]) -> tuple[str, str, str]:
    """Share of labelled scans, fold and seed."""
    return row["proportion"], row["fold"], row["seed"]


def markdown(table: Table | None) -> str:
    """A table, numbers right-aligned, and its note."""
    if table is None or not table.rows:
        return "Nothing measured yet.\n"
    header = [str(cell) for cell in table.header]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *map(list, table.rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + (f"\n{table.note}\n" if table.note else "")


def without(table: Table | None, *columns: str) -> Table | None:
    """A table without some of its columns."""
    if table is None:
        return None
    kept = [i for i, name in enumerate(table.header) if name not in columns]
    rows = [[row[i] for i in kept] for row in table.rows]
    return table._replace(header=[table.header[i] for i in kept], rows=rows)


def study_table(make: Callable[..., Table | None]) -> Callable[[str, Place], str]:
    """A kind that is a table of one study, whose column of proportions says nothing.

    Behind the study's name may stand a method that the table is about.
    """

    def written(names: str, place: Place) -> str:
        name, *method = names.split()
        results = Results(without_half_cells(rows_of(name)))
        single = ["labels"] if len(results.proportions) == 1 else []
        table = make(results, *method)
        return markdown(without(table, "paper’s p", *single))

    return written


def trial_table(make: Callable[[Path], Sequence[Table]]) -> Callable[[str, Place], str]:
    """A kind that is the tables of one file, of which it says the name."""

    def written(names: str, place: Place) -> str:
        return "\n".join(map(markdown, make(RESULTS / f"{names.strip()}.csv")))

    return written


def labelled(rows: Sequence[Mapping[str, str]]) -> str:
    """How many scans had labels; two numbers where folds differ."""
    return " or ".join(sorted({row["labelled"] for row in rows}, key=int))


def shown(names: str) -> list[Shown]:
    """What ``STUDY=TITLE; STUDY:ORGAN=TITLE; STUDY@SHARE=TITLE; …`` asks for."""
    found = []
    for part in names.split(";"):
        name, _, title = part.partition("=")
        study, _, share = name.strip().partition("@")
        study, _, organ = study.partition(":")
        asked = int(organ) if organ else None, float(share) if share else None
        found.append(Shown(study, *asked, title.strip()))
    return found


def side_by_side(
    asked: Shown, methods: Sequence[str]
) -> tuple[list[dict[str, str]], dict[str, dict[str, float]]]:
    """Rows of a study, and Dice in % by method and scan, the same scans for each.

    Those are of the cells that all methods of one network have been tested in. A method that has
    not, such as one whose training is not over, is left out.
    """
    rows = without_half_cells(asked.rows(methods))
    cells = {m: {cell_of(r) for r in rows if r["method"] == m} for m in methods}
    together = cells["baseline"]
    kept = [r for r in rows if cell_of(r) in together]
    results = Results(kept)
    (proportion,) = results.proportions
    done = [method for method in methods if together <= cells[method]]
    return kept, {m: results.by_scan(m, proportion, asked.organ) for m in done}


def main_table(names: str, place: Place) -> str:
    """Data sets × the methods of `SHOWN`: Dice, the mean over organs and scans, as in `figure`."""
    body = []
    for asked in shown(names):
        rows, dice = side_by_side(asked, SHOWN)
        means = {m: float(np.mean(list(scans.values()))) for m, scans in dice.items()}
        best = max(means.values())
        texts = {m: f"**{x:.1f}**" if x == best else f"{x:.1f}" for m, x in means.items()}
        scans = str(len(dice["baseline"]))
        body.append([asked.title, labelled(rows), scans, *(texts.get(m, "–") for m in SHOWN)])
    header = ["data", "labelled scans", "test scans", *(TITLES[m] for m in SHOWN)]
    return markdown(Table("", header, body))


def instead(names: str, place: Place) -> str:
    """``METHOD OTHER; STUDY=TITLE; …``: one method instead of another, on the cells of both."""
    methods, _, studies = names.partition(";")
    other, method = methods.split()
    body = []
    for asked in shown(studies):
        rows = asked.rows((other, method))
        for share in dict.fromkeys(row["proportion"] for row in rows):
            of = {
                m: [r for r in rows if (r["method"], r["proportion"]) == (m, share)]
                for m in (other, method)
            }
            both = set.intersection(*({cell_of(row) for row in found} for found in of.values()))
            kept = [row for found in of.values() for row in found if cell_of(row) in both]
            if not kept:
                continue
            results = Results(kept)
            found = results.compare(method, other, float(share), asked.organ)
            means = (np.mean([*results.by_scan(m, float(share), asked.organ).values()]) for m in of)
            numbers = f"{found.difference:+.1f}", interval(found), p_value(found.t_test)
            counts = labelled(kept), str(len(both)), str(found.pairs)
            shown_means = (f"{mean:.1f}" for mean in means)
            body.append([asked.title, *counts, *shown_means, *numbers, p_value(found.wilcoxon)])
    called = (TITLES.get(m, m) for m in (other, method))
    header = ["data", "labelled scans", "folds and draws", "test scans", *called, "points"]
    return markdown(Table("", [*header, "95 % interval", "t-test p", "Wilcoxon p"], body))


def figure(names: str, place: Place) -> str:
    """The picture of `main_table`, of rivals and of longer training: a dot a patient."""
    panels, wanted = {}, shown(names)
    for asked in wanted:
        rows, dice = side_by_side(asked, DRAWN)
        found = {TITLES[m]: list(scans.values()) for m, scans in dice.items()}
        panels[f"{asked.title}, {labelled(rows)} labelled scans"] = found
    studies = "_".join(asked.study.replace("+", "_") for asked in wanted)
    path = place.figures / f"dice_{studies}.png"
    description = dice_by_method(panels, path)
    return picture(description, path, place)


def curve(names: str, place: Place) -> str:
    """Training loss by epoch of a study's network without prior, see ``update.py``."""
    name = names.strip()
    path = place.figures / f"curves_{name}.png"
    values = curves_by_method(
        Results(rows_of(name)), read_csv(RESULTS / f"{name}_curves.csv"), "loss"
    )
    learning_curves(values, path, measure="training loss")
    said = []
    for title, epochs in values.items():
        first, last = (f"{np.mean(epochs[epoch]):.2f}" for epoch in (min(epochs), max(epochs)))
        said.append(f"{title} {first} to {last} in {max(epochs)} epochs")
    return picture(f"Training loss by epoch. {'; '.join(said)}.", path, place)


def labels_figure(names: str, place: Place) -> str:
    """Dice by the share of labelled scans (figure 3 of the paper), of a study or of several."""
    name = names.strip()
    path = place.figures / f"labels_{name.replace('+', '_')}.png"
    results = Results(without_half_cells(rows_of(name)))
    lines = {TITLES[method]: results.by_proportion(method) for method in SHOWN}
    lines = {title: line for title, line in lines.items() if line}
    dice_by_proportion(lines, path, other={})
    said = [
        f"{title} {', '.join(f'{x:.0%} {s.mean:.1f}' for x, s in sorted(line.items()))}"
        for title, line in lines.items()
    ]
    return picture(f"Dice in % by share of labelled scans. {'; '.join(said)}.", path, place)


def bins_figure(names: str, place: Place) -> str:
    """Dice by the number of the prior's bins (figure 6 of the paper)."""
    name = names.strip()
    path = place.figures / f"bins_{name}.png"
    lines, alone = lines_by_bins(Results(rows_of(name)))
    dice_by_bins(lines, alone, path)
    said = [
        f"{share} labelled: without prior {alone[share]:.1f}; by bins "
        + ", ".join(f"{bins}: {spread.mean:.1f}" for bins, spread in line.items())
        for share, line in lines.items()
    ]
    return picture(f"Dice in % by number of bins. {'; '.join(said)}.", path, place)


def picture(description: str, path: Path, place: Place) -> str:
    """Markdown of a figure."""
    return f"![{description}]({os.path.relpath(path, place.page.parent)})\n"


def made_with(names: str, place: Place) -> str:
    """Where a study's numbers come from, in a paragraph."""
    lines = []
    for name in names.strip().split("+"):
        rows, record = read_csv(RESULTS / f"{name}.csv"), read_json(RESULTS / f"{name}.json")
        count = {k: len({row[k] for row in rows}) for k in ("scan", "fold", "seed", "method")}
        steps = sorted({int(row["steps"]) for row in rows})
        commits = sorted({row["commit"] for row in rows})
        run = record["runs"][0]
        kept = ("python", "torch", "monai")
        versions = ", ".join(f"{k} {run['versions'][k]}" for k in kept)
        machines = "; ".join(sorted({r["machine"] for r in record["runs"]}))
        lines.append(
            f"[{name}.csv](results/{name}.csv), [{name}.json](results/{name}.json): "
            f"{count['scan']} test scans, {count['fold']} of {record['study']['folds']} folds, "
            f"{count['seed']} seed{'s' * (count['seed'] > 1)}, {count['method']} methods, "
            f"{labelled(rows)} labelled scans; {' or '.join(map(str, steps))} training steps"
            f"{' (more with pseudo-labels)' * (len(steps) > 1)}; commit {', '.join(commits)}; "
            f"{versions}; {machines}.\n"
        )
    return "\n".join(lines)


KINDS: dict[str, Callable[[str, Place], str]] = {
    "main": main_table,
    "figure": figure,
    "instead": instead,
    "made": made_with,
    "dice": study_table(organ_table),
    "against": study_table(comparison_table),
    "draws": study_table(draws_table),
    "organs": study_table(organ_differences),
    "reached": study_table(never_loses),
    "positions": study_table(organ_positions),
    "steps": study_table(steps_table),
    "recipe": study_table(recipe_table),
    "table4": study_table(position_table),
    "curve": curve,
    "labels": labels_figure,
    "bins": bins_figure,
    "measures": study_table(measures_table),
    "fusion": trial_table(trials.fusion),
    "likelihood": trial_table(trials.likelihood),
    "gpu": trial_table(trials.gpu),
    "transfer": trial_table(trials.transfer),
    "mirrors": trial_table(trials.mirrors),
}


def rendered(text: str, page: Path, *, figures: Path = DOCS / "images") -> str:
    """A page's text with all that stands between marks as the files have it.

    Args:
        text: of the page.
        page: its file.
        figures: folder into which figures are drawn.
    """
    place = Place(page, figures)

    def anew(found: re.Match[str]) -> str:
        return found["begin"] + KINDS[found["kind"]](found["names"], place) + found["end"]

    return MARKED.sub(anew, text)


def render(app: Sphinx, name: str, content: list[str]) -> None:
    """Render a page while it is read; what the repository has is not touched."""
    page = Path(app.env.doc2path(name))
    content[0] = rendered(content[0], page, figures=DOCS / "_outside")


def setup(app: Sphinx) -> dict[str, Any]:
    """Render while the sources are read."""
    app.connect("source-read", render)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
