"""The ablation: from the paper's method to the default, one step at a time."""

from __future__ import annotations

from stipple_monai.report import Table
from stipple_monai.study.tables import DASH, Results, interval, p_value, spread_text

STEPS = {
    "paper_single": "the paper: a histogram, seen in training, equation 2",
    "steps_recipe": "+ intensities and stronger geometry varied in training",
    "steps_density": "+ a density instead of bins, centred by overlap",
    "steps_others": "+ in training, the prior of the other labels",
    "equation_2": "+ trained without prior, which is fused afterwards",
    "stipple_argmax": "+ fusion with constants instead of equation 2",
    "stipple_single": "+ the label map of the highest expected Dice: STIPPLE",
    "stipple": "+ a round of pseudo-labels",
}
"""What each method adds to the one before it, by the name that ``methods.yaml`` gives it."""


def steps_table(results: Results) -> Table:
    """Dice of every step that was run, and what it adds to the one before.

    Args:
        results: of the study. A step without rows is passed over: the next one is set against the
            last that has some.
    """
    rows = []
    for proportion in results.proportions:
        before = None
        for method, adds in STEPS.items():
            spread = results.spread(method, proportion)
            if not spread.folds:
                continue
            row = [adds, f"{proportion:.0%}"]
            if before is None:
                scans = len(results.by_scan(method, proportion))
                row += [str(scans), spread_text(spread), DASH, DASH, DASH]
            else:
                found = results.compare(method, before, proportion)
                points = f"{found.difference:+.1f}"
                cells = spread_text(spread), points, interval(found), p_value(found.t_test)
                row += [str(found.pairs), *cells]
            rows.append(row)
            before = method
    note = (
        "Dice in %, mean ± standard deviation between folds; then the difference to the row above, "
        "of the same n patients, with its 95 % interval by bootstrap. p: paired t-test, two-sided, "
        "not corrected."
    )
    header = "What is new,labels,n,Dice,points,95 % interval,p"
    return Table("From the paper to the default, step by step", header.split(","), rows, note)
