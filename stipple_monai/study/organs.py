"""Tables of a study organ by organ: Dice, differences, positions, and whether fusion ever loses."""

from __future__ import annotations

import math

import numpy as np

from stipple_monai.report import Table
from stipple_monai.results import Comparison, holm
from stipple_monai.study.tables import (
    DASH,
    Results,
    interval,
    numbers,
    p_value,
    percentile_90,
    spread_text,
)
from stipple_monai.study.titles import TITLES

CERTAIN = 0.05
"""A corrected p below it is marked."""


def organ_table(results: Results) -> Table | None:
    """Dice by organ and their mean; None for a single organ."""
    if len(results.organs) < 2:
        return None
    rows = []
    for proportion in results.proportions:
        for method in results.methods:
            scans = results.by_scan(method, proportion)
            if scans:
                spreads = [results.spread(method, proportion, k) for k in (*results.organs, None)]
                cells = map(spread_text, spreads)
                title = TITLES.get(method, method)
                rows.append([title, f"{proportion:.0%}", str(len(scans)), *cells])
    header = ["Method", "labels", "n", *map(results.name, results.organs), "mean"]
    note = "Dice in %, mean ± standard deviation between folds (none for a single fold); n scans."
    return Table("By organ", header, rows, note)


def organ_differences(results: Results, reference: str = "baseline") -> Table:
    """Every method against one of them, by organ.

    Args:
        results: of the study.
        reference: the method that the others are compared with.
    """
    rows: list[list[str]] = []
    columns = [*results.organs, None] if len(results.organs) > 1 else [None]
    for proportion in results.proportions:
        others = [
            m
            for m in results.methods
            if m != reference and results.compare(m, reference, proportion).pairs
        ]
        cells = {method: [TITLES.get(method, method), f"{proportion:.0%}"] for method in others}
        for organ in columns:
            found = [results.compare(m, reference, proportion, organ) for m in others]
            corrected = holm([c.t_test for c in found])
            for method, comparison, p in zip(others, found, corrected, strict=True):
                cells[method].append(_with_star(comparison, p))
        rows += cells.values()
    title = f"Minus {TITLES.get(reference, reference).lower()}, by organ"
    header = ["Method", "labels", *(results.name(k) if k is not None else "mean" for k in columns)]
    note = (
        "Mean difference of the Dice of the same patient in points, seeds averaged. A star: p "
        f"below {CERTAIN:g} in the paired t-test, Holm-corrected over the methods of a column."
    )
    return Table(title, header, rows, note)


def never_loses(
    results: Results,
    method: str = "stipple_single",
    *,
    network: str = "baseline",
    prior: str = "prior_alone",
) -> Table:
    """Whether the fused result is at least as good as the better of network alone and prior alone.

    Args:
        results: of the study.
        method: the fused result.
        network: a network without prior.
        prior: the prior alone, where that network located it.
    """
    rows = []
    for proportion in results.proportions:
        for organ in (*results.organs, None):
            alone = {m: results.compare(m, method, proportion, organ) for m in (network, prior)}
            if not all(found.pairs for found in alone.values()):
                continue
            better = max(alone, key=lambda m: alone[m].difference)
            found = results.compare(method, better, proportion, organ)
            cells = [
                spread_text(results.spread(m, proportion, organ)) for m in (network, prior, method)
            ]
            rows.append(
                [
                    "mean" if organ is None else results.name(organ),
                    f"{proportion:.0%}",
                    *cells,
                    f"{found.difference:+.1f}",
                    interval(found),
                    p_value(found.t_test),
                    _verdict(found),
                ]
            )
    header = "Organ,labels,network alone,prior alone,fused,minus the better,95 % interval,p,reached"
    note = (
        "Reached: at least as good as the better of the two in the mean over patients; “within "
        "chance”: the interval has 0. p: paired t-test, not corrected."
    )
    return Table("At least as good as network and prior alone", header.split(","), rows, note)


def organ_positions(results: Results, method: str = "stipple_single") -> Table:
    """How far off each organ's prior was put, where it was put at all.

    Args:
        results: of the study.
        method: whose positions.
    """
    rows = []
    for proportion in results.proportions:
        found = results.rows.get((method, proportion), [])
        there = [row for row in found if row["true_voxels"] != "0" and row["confidence"]]
        for organ in (*results.organs, None):
            mine = [row for row in there if organ in (None, int(row["organ"]))]
            errors = [float(r["position_error_mm"]) for r in mine if r["position_error_mm"]]
            if not mine:
                continue
            rows.append(
                [
                    "all" if organ is None else results.name(organ),
                    f"{proportion:.0%}",
                    str(len(mine)),
                    f"{len(errors) / len(mine):.0%}",
                    *(numbers(errors, of) for of in (np.median, np.mean, percentile_90)),
                ]
            )
    header = "Organ,labels,n,located,median mm,mean mm,90 % mm"
    note = (
        "Distance of the prior from where the true label has it, over scans (and seeds). Located: "
        "the others had no certain position and a neutral prior."
    )
    return Table("Positions by organ", header.split(","), rows, note)


def _with_star(found: Comparison, p: float) -> str:
    if math.isnan(found.difference):
        return DASH
    return f"{found.difference:+.1f}{'*' if p < CERTAIN else ''}"


def _verdict(found: Comparison) -> str:
    if found.difference >= 0:
        return "yes" if found.low >= 0 else "yes, within chance"
    return "no" if found.high < 0 else "no, within chance"
