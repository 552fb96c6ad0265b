"""Tables of a study, from the rows of its CSV files.

A case is a scan of a test fold; its score is the mean over its organs. Dice is in %, mean ±
standard deviation between folds, where the score of a fold is the mean over its cases and seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from stipple_monai.report import Table
from stipple_monai.results import Comparison, Spread, between_folds, compare_paired, holm
from stipple_monai.study import paper
from stipple_monai.study.titles import TITLES

Row = Mapping[str, str]
Case = tuple[int, int, str]
"""Fold, seed and scan."""

POSITIONS = (
    "stipple_naive_position",
    "stipple_random_reference",
    "stipple_single",
    "stipple_true_position",
)
DASH = "–"


class Results:
    """The rows of ``results.csv``, by method and proportion.

    Args:
        rows: of the file, by the names of its columns.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[tuple[str, float], list[Row]] = defaultdict(list)
        for row in rows:
            self.rows[row["method"], float(row["proportion"])].append(row)
        known = {method: None for method, _ in self.rows}
        self.methods = [m for m in TITLES if m in known] + [m for m in known if m not in TITLES]
        self.proportions = sorted({p for _, p in self.rows}, reverse=True)
        every = [row for found in self.rows.values() for row in found]
        self.organs = sorted({int(row["organ"]) for row in every})
        self._names = {int(row["organ"]): row["name"] for row in every if row.get("name")}

    def name(self, organ: int) -> str:
        """The organ's name, where the rows have a column for it."""
        return self._names.get(organ, f"organ {organ}")

    def cases(self, method: str, proportion: float, organ: int | None = None) -> dict[Case, float]:
        """Dice in % of every case, of an organ or mean over the organs that it has."""
        found: dict[Case, list[float]] = defaultdict(list)
        for row in self.rows.get((method, proportion), []):
            if row["dice"] and organ in (None, int(row["organ"])):
                case = int(row["fold"]), int(row["seed"]), row["scan"]
                found[case].append(100 * float(row["dice"]))
        return {case: float(np.mean(values)) for case, values in found.items()}

    def spread(self, method: str, proportion: float, organ: int | None = None) -> Spread:
        """Dice in %, mean and standard deviation between folds."""
        folds: dict[int, list[float]] = defaultdict(list)
        for (fold, _, _), dice in self.cases(method, proportion, organ).items():
            folds[fold].append(dice)
        return between_folds(folds)

    def by_proportion(self, method: str) -> dict[float, Spread]:
        """Dice in %, mean and standard deviation between folds, where there are rows."""
        spreads = {p: self.spread(method, p) for p in self.proportions}
        return {p: spread for p, spread in spreads.items() if spread.folds}

    def compare(
        self, first: str, second: str, proportion: float, organ: int | None = None
    ) -> Comparison:
        """Two methods on the scans that both have, seeds averaged first; Dice in points."""
        by_scan = [self.by_scan(method, proportion, organ) for method in (first, second)]
        shared = sorted(by_scan[0].keys() & by_scan[1].keys())
        return compare_paired(*([scores[scan] for scan in shared] for scores in by_scan))

    def by_scan(self, method: str, proportion: float, organ: int | None = None) -> dict[str, float]:
        """Dice in % of every scan, mean over seeds, see :meth:`cases`."""
        found: dict[str, list[float]] = defaultdict(list)
        for (_, _, scan), dice in self.cases(method, proportion, organ).items():
            found[scan].append(dice)
        return {scan: float(np.mean(values)) for scan, values in found.items()}


def dice_table(results: Results, methods: Sequence[str], title: str) -> Table:
    """Dice by method and proportion, beside each the paper's."""
    present = [m for m in methods if m in results.methods]
    header = ["Method"]
    for proportion in results.proportions:
        header += [f"{proportion:.0%}", "paper"]
    rows = []
    for method in present:
        row = [TITLES.get(method, method)]
        for proportion in results.proportions:
            row.append(spread_text(results.spread(method, proportion)))
            row.append(_paper(method, proportion))
        rows.append(row)
    note = (
        "Dice in %, mean ± standard deviation between folds (none for a single fold). “paper”: "
        "TCIA Pancreas-CT, 82 scans, 5 folds: other data, for orientation only."
    )
    return Table(title, header, rows, note)


def comparison_table(results: Results) -> Table:
    """All methods against the network alone, per patient (table 1)."""
    rows = []
    others = [m for m in results.methods if m != "baseline"]
    for proportion in results.proportions:
        known = {m: results.compare(m, "baseline", proportion) for m in others}
        known = {method: found for method, found in known.items() if found.pairs}
        corrected = dict(zip(known, holm([c.t_test for c in known.values()]), strict=True))
        for method in sorted(known, key=lambda m: m != "stipple"):
            found = known[method]
            published = paper.T_TEST.get(proportion) if method == "stipple" else None
            rows.append(
                [
                    TITLES.get(method, method),
                    f"{proportion:.0%}",
                    str(found.pairs),
                    f"{found.difference:+.2f}",
                    interval(found),
                    p_value(found.t_test),
                    p_value(corrected[method]),
                    p_value(found.wilcoxon),
                    DASH if published is None else f"{published:.1e}",
                ]
            )
    header = (
        "Minus network alone,labels,patients,points,95 % interval,t-test p,corrected,Wilcoxon p,"
        "paper’s p"
    )
    note = (
        "Difference of the Dice of the same patient in percentage points, seeds averaged; interval "
        "by bootstrap over patients (9999 resamples). p-values are two-sided; “corrected”: those "
        "of the t-test after Holm, for all methods at the same number of labels."
    )
    return Table("Against the network alone (table 1)", header.split(","), rows, note)


def not_won(results: Results) -> list[str]:
    """In words, where STIPPLE does not beat another method for certain."""
    said = []
    for proportion in results.proportions:
        for method in results.methods:
            if method.startswith("stipple") or "stipple" not in results.methods:
                continue
            found = results.compare("stipple", method, proportion)
            if not found.pairs or (found.low > 0):
                continue
            verdict = "is not better than" if found.difference <= 0 else "is not certainly better"
            than = "" if found.difference <= 0 else " than"
            said.append(
                f"At {proportion:.0%} of labels {TITLES['stipple']} {verdict}{than} "
                f"{TITLES.get(method, method)}: {found.difference:+.2f} points, "
                f"95 % interval {interval(found)}, {found.pairs} patients."
            )
    return said


def position_table(results: Results) -> Table:
    """Where the prior was put and what that did (table 4)."""
    rows = []
    for proportion in results.proportions:
        for method in POSITIONS:
            found = results.rows.get((method, proportion), [])
            if not found:
                continue
            located = [row for row in found if row["confidence"]]
            errors = [float(r["position_error_mm"]) for r in located if r["position_error_mm"]]
            title = "KL, mean reference (ours)" if method == "stipple_single" else TITLES[method]
            rows.append(
                [
                    title,
                    f"{proportion:.0%}",
                    spread_text(results.spread(method, proportion)),
                    _paper(method, proportion),
                    *(numbers(errors, f) for f in (np.mean, np.median, percentile_90)),
                    str(len(located) - len(errors)) if located else DASH,
                ]
            )
    header = "Position of the prior,labels,Dice,paper,mean mm,median mm,90 % mm,neutral"
    note = (
        "No relabelling. Distance from where the true label has the prior, over scans and organs; "
        "neutral: no certain position, so that the network saw no prior."
    )
    return Table("Positioning (table 4)", header.split(","), rows, note)


def measures_table(results: Results) -> Table:
    """All measures of every method."""
    rows = []
    for proportion in results.proportions:
        for method in results.methods:
            found = results.rows.get((method, proportion), [])
            if not found:
                continue

            def mean(column: str, digits: int, found: Sequence[Row] = found) -> str:
                values = [float(r[column]) for r in found if r.get(column)]
                return numbers(values, np.mean, digits)

            empty = [r for r in found if r["predicted_voxels"] == "0" and r["true_voxels"] != "0"]
            rows.append(
                [
                    TITLES.get(method, method),
                    f"{proportion:.0%}",
                    str(len(found)),
                    mean("dice", 3),
                    mean("jaccard", 3),
                    mean("hd95_mm", 1),
                    mean("asd_mm", 1),
                    str(len(empty)),
                    mean("calibration_error", 3),
                    mean("seconds", 2),
                    numbers([float(r["peak_memory_mib"]) for r in found], np.max, 0),
                ]
            )
    header = "Method,labels,n,Dice,Jaccard,HD95 mm,ASD mm,empty,ECE,s a scan,MiB"
    note = (
        "Means over n scans × organs (× seeds). An empty prediction has Dice 0 and no distance: "
        "distances are means over the others, so read them with the number of empty ones. "
        "ECE: expected calibration error of the organ's probability, 10 bins, voxels of at least "
        "0.01. "
        "Seconds: network, positioning and fusion. MiB: highest, of the GPU, or on a CPU of the "
        "whole process."
    )
    return Table("All measures", header.split(","), rows, note)


def rounds_table(rows: Sequence[Row]) -> Table | None:
    """Quality of the pseudo-labels, round by round; None without any."""
    groups: dict[tuple[str, float, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["method"], float(row["proportion"]), int(row["round"])].append(row)
    if not groups:
        return None
    cells = []
    for (method, proportion, number), found in sorted(groups.items(), key=lambda g: -g[0][1]):
        columns = [
            [float(r[name]) for r in found if r[name]] for name in ("precision", "recall", "dice")
        ]
        selected = [float(r["selected_voxels"]) for r in found]
        cells.append(
            [
                TITLES.get(method, method),
                f"{proportion:.0%}",
                str(number),
                str(len(found)),
                numbers(selected, np.mean, 0),
                *(numbers(values, np.mean, 3) for values in columns),
            ]
        )
    header = "Method,labels,round,n,voxels,precision,recall,Dice"
    note = (
        "Voxels selected as an organ, against the truth that was withheld: means over n scans × "
        "organs (× folds and seeds). Recall: of all true voxels of the organ."
    )
    return Table("Pseudo-labels, round by round", header.split(","), cells, note)


def spread_text(spread: Spread) -> str:
    """Mean ± standard deviation."""
    if math.isnan(spread.mean):
        return DASH
    return f"{spread.mean:.1f}" + ("" if math.isnan(spread.sd) else f" ± {spread.sd:.1f}")


def _paper(method: str, proportion: float) -> str:
    if method in paper.PATCH_3D:
        value = paper.PATCH_3D[method].get(proportion)
        return DASH if value is None else f"{value:.0f}"
    known = paper.DICE.get(method, {}).get(proportion)
    return DASH if known is None else f"{known[0]:.1f} ± {known[1]:.1f}"


def interval(found: Comparison) -> str:
    """The 95 % interval of a difference."""
    return DASH if math.isnan(found.low) else f"{found.low:+.2f} to {found.high:+.2f}"


def p_value(value: float) -> str:
    """With two digits."""
    return DASH if math.isnan(value) else f"{value:.2g}"


def numbers(values: Sequence[float], of: Callable[..., float], digits: int = 1) -> str:
    """A mean, or what else, of what there is."""
    return f"{of(values):.{digits}f}" if values else DASH


def percentile_90(values: Sequence[float]) -> float:
    """Below which 90 % lie."""
    return float(np.percentile(values, 90))
