"""The ablation: from the paper's method to the default, one step at a time."""

from __future__ import annotations

from stipple_monai.report import Table
from stipple_monai.study.tables import DASH, Results, interval, p_value, spread_text

STEPS = {
    "paper_single": "the paper: a histogram, equation 2",
    "steps_recipe": "+ intensities and stronger geometry varied in training",
    "equation_2": "+ a density instead of bins, centred by overlap",
    "stipple_argmax": "+ fusion with constants instead of equation 2",
    "stipple_single": "+ the label map of the highest expected Dice: STIPPLE",
    "stipple": "+ a round of pseudo-labels",
}
"""What each method adds to the one before it, by the name that ``methods.yaml`` gives it."""

ASIDE = {
    "steps_others": ("equation_2", "equation 2, in training the prior of the other labels"),
    "afterwards_equation_2": ("equation_2", "equation 2, prior added after training"),
    "afterwards_argmax": ("stipple_argmax", "constants, prior added after training"),
    "afterwards_single": ("stipple_single", "STIPPLE, prior added after training"),
    "afterwards": ("stipple", "a round of pseudo-labels, prior added after training"),
}
"""What was not taken, and what was instead of it."""


def steps_table(results: Results) -> Table:
    """Dice of every step that was run, and what it adds to the one before.

    Args:
        results: of the study. A step without rows is passed over: the next one is set against the
            last that has some.
    """
    rows = []
    for proportion in results.proportions:
        done = [m for m in STEPS if results.spread(m, proportion).folds]
        before = [None, *done]
        for method, last in zip(done, before, strict=False):
            rows.append([STEPS[method], *_against(results, method, last, proportion)])
        for method, (taken, words) in ASIDE.items():
            if taken in done and results.spread(method, proportion).folds:
                rows.append([f"or: {words}", *_against(results, method, taken, proportion)])
    note = (
        "Dice in %, mean ± standard deviation between folds; then the difference to the row above, "
        "in rows with *or* to the step that was taken instead, of the same n patients, with its "
        "95 % interval by bootstrap. p: paired t-test, two-sided, not corrected."
    )
    header = "What is new,labels,n,Dice,points,95 % interval,p"
    return Table("From the paper to the default, step by step", header.split(","), rows, note)


def _against(results: Results, method: str, other: str | None, proportion: float) -> list[str]:
    spread = results.spread(method, proportion)
    label = f"{proportion:.0%}"
    if other is None:
        scans = len(results.by_scan(method, proportion))
        return [label, str(scans), spread_text(spread), DASH, DASH, DASH]
    found = results.compare(method, other, proportion)
    numbers = f"{found.difference:+.1f}", interval(found), p_value(found.t_test)
    return [label, str(found.pairs), spread_text(spread), *numbers]
