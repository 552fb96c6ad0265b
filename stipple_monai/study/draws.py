"""Several draws of labelled scans and first weights, side by side."""

from __future__ import annotations

import numpy as np

from stipple_monai.report import Table
from stipple_monai.study.tables import DASH, Results, interval, numbers, p_value
from stipple_monai.study.titles import TITLES


def draws_table(results: Results, reference: str = "baseline") -> Table | None:
    """Mean Dice of every seed and of all, and what a method gains in all of them.

    Args:
        results: of the study. A method is left out where it has not been tested on the same scans
            with the same seeds as the reference.
        reference: the method that the others are compared with.

    Returns:
        The table; None where there is a single seed.
    """
    seeds = sorted({int(row["seed"]) for rows in results.rows.values() for row in rows})
    if len(seeds) < 2:
        return None
    rows = []
    for proportion in results.proportions:
        expected = results.cases(reference, proportion).keys()
        for method in results.methods:
            cases = results.cases(method, proportion)
            if not cases or cases.keys() != expected:
                continue
            draws = [[dice for (_, s, _), dice in cases.items() if s == seed] for seed in seeds]
            means = [numbers(values, np.mean) for values in (*draws, list(cases.values()))]
            found = results.compare(method, reference, proportion)
            against = [f"{found.difference:+.1f}", interval(found), p_value(found.t_test)]
            if method == reference:
                against = [DASH] * 3
            rows.append([TITLES.get(method, method), f"{proportion:.0%}", *means, *against])
    named = [f"seed {seed}" for seed in seeds]
    header = ["Method", "labels", *named, "all", "points", "95 % interval", "p"]
    note = (
        "Dice in %, mean over organs and scans; a seed draws the labelled scans and the first "
        "weights. Then the difference to "
        f"{TITLES.get(reference, reference).lower()} of the same patient, seeds averaged, with its "
        "95 % interval by bootstrap over patients. p: paired t-test, two-sided, not corrected."
    )
    return Table("Draw by draw", header, rows, note)
