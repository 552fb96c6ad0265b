"""The table of the ablation, from results that were made up."""

import pytest
from helpers.study_rows import row
from scipy.stats import ttest_rel

from stipple_monai.study.steps import ASIDE, STEPS, steps_table
from stipple_monai.study.tables import DASH, Results

DICE = {
    "equation_2": [0.5, 0.4, 0.6, 0.5],
    "paper_single": [0.3, 0.2, 0.5, 0.4],
    "baseline": [0.1, 0.1, 0.1, 0.1],
    "steps_recipe": [0.4, 0.2, 0.6, 0.4],
}


def rows_of(dice):
    """Rows of methods with the Dice of scans, the last in another fold."""
    return [
        row(method, scan=scan, dice=value, fold=int(scan == "d"))
        for method, values in dice.items()
        for scan, value in zip("abcd", values, strict=False)
    ]


def test_each_step_is_set_against_the_one_before_it_that_was_run():
    first, recipe, after = steps_table(Results(rows_of(DICE))).rows
    assert [cells[0] for cells in (first, recipe, after)] == [
        STEPS[method] for method in ("paper_single", "steps_recipe", "equation_2")
    ]
    assert first[2:] == ["4", "36.7 ± 4.7", DASH, DASH, DASH]
    assert recipe[2:5] == ["4", "40.0 ± 0.0", "+5.0"]
    assert after[4] == "+10.0"  # against the recipe; against the paper it would be 15
    p = ttest_rel(DICE["equation_2"], DICE["steps_recipe"]).pvalue
    assert float(after[-1]) == pytest.approx(p, rel=0.05)


def test_patients_that_one_of_two_steps_lacks_are_left_out_of_the_difference():
    dice = DICE | {"steps_recipe": [0.4, 0.2]}
    _, recipe, after = steps_table(Results(rows_of(dice))).rows
    assert recipe[2] == after[2] == "2"
    assert after[4] == "+15.0"  # (0.1 + 0.2) / 2


def test_what_was_not_taken_is_set_against_what_was():
    dice = DICE | {"steps_others": [0.4, 0.4, 0.5, 0.5], "afterwards_single": [0.9] * 4}
    rows = steps_table(Results(rows_of(dice))).rows
    assert [cells[0] for cells in rows[3:]] == [f"or: {ASIDE['steps_others'][1]}"]
    assert rows[3][4] == "-5.0"
    # what it would be instead of was not run
    assert len(rows) == 4
