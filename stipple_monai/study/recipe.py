"""What the parts of the training recipe are worth, with and without prior."""

from __future__ import annotations

import numpy as np

from stipple_monai.report import Table
from stipple_monai.study.tables import DASH, Results, numbers, p_value
from stipple_monai.study.titles import RECIPE, TITLES

WHOLE = {"baseline": "_alone", "afterwards_single": "_afterwards", "stipple_single": ""}
"""Methods with the whole recipe, and what stands behind a part's name for the same without it."""


def recipe_table(results: Results) -> Table:
    """Dice of a network trained otherwise, minus that of the whole recipe on the same scans.

    Args:
        results: of the study, and of those that have the rows of the whole recipe.
    """
    rows = []
    for proportion in results.proportions:
        label = f"{proportion:.0%}"
        whole = [list(results.by_scan(method, proportion).values()) for method in WHOLE]
        means = [text for dice in whole for text in (numbers(dice, np.mean), DASH)]
        scans = str(max(map(len, whole)))
        ece = _calibration_error(results, "stipple_single", proportion)
        rows.append(["as it is", label, scans, *means, ece])
        for part, words in RECIPE.items():
            found = {
                end: results.compare(part + end, method, proportion)
                for method, end in WHOLE.items()
            }
            if not any(comparison.pairs for comparison in found.values()):
                continue
            cells = [
                text
                for comparison in found.values()
                for text in (
                    f"{comparison.difference:+.1f}" if comparison.pairs else DASH,
                    p_value(comparison.t_test) if comparison.pairs else DASH,
                )
            ]
            pairs = str(max(comparison.pairs for comparison in found.values()))
            ece = _calibration_error(results, part, proportion)
            rows.append([words, label, pairs, *cells, ece])
    note = (
        "First line: Dice in %, mean over organs and scans. Below: the difference to it on the "
        "same n patients in points, seeds averaged. p: paired t-test, two-sided, not corrected. "
        "ECE: expected calibration error of STIPPLE."
    )
    named = [text for method in WHOLE for text in (TITLES[method], "p")]
    header = ["Training", "labels", "n", *named, "ECE"]
    return Table("What the training recipe is worth", header, rows, note)


def _calibration_error(results: Results, method: str, proportion: float) -> str:
    found = results.rows.get((method, proportion), [])
    values = [float(r["calibration_error"]) for r in found if r.get("calibration_error")]
    return numbers(values, np.mean, 3)
