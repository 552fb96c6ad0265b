"""The table of the training recipe, from results that were made up."""

import pytest
from helpers.study_rows import row
from scipy.stats import ttest_rel

from stipple_monai.study.recipe import recipe_table
from stipple_monai.study.tables import DASH, Results
from stipple_monai.study.titles import RECIPE

WHOLE = {"baseline": [0.5, 0.4, 0.6], "stipple_single": [0.7, 0.6, 0.9]}


def table_of(dice):
    rows = [
        row(method, scan=scan, dice=value) | {"calibration_error": f"{value / 10:.3f}"}
        for method, values in dice.items()
        for scan, value in zip("abc", values, strict=False)
    ]
    return recipe_table(Results(rows)).rows


def test_a_part_is_set_against_the_whole_with_and_without_prior():
    without = {"no_blur_alone": [0.4, 0.4, 0.5], "no_blur": [0.8, 0.6, 0.95]}
    first, blur = table_of(WHOLE | without)
    assert first == ["as it is", "50%", "3", "50.0", DASH, DASH, DASH, "73.3", DASH, "0.073"]
    assert blur[:4] == [RECIPE["no_blur"], "50%", "3", "-6.7"]
    assert blur[5:8] == [DASH, DASH, "+5.0"]
    p = ttest_rel(without["no_blur"], WHOLE["stipple_single"]).pvalue
    assert float(blur[8]) == pytest.approx(p, rel=0.05)
    assert blur[9] == "0.078"


def test_scans_that_a_part_lacks_do_not_count_in_its_difference():
    _, gamma = table_of(WHOLE | {"no_gamma": [0.8, 0.8]})
    assert gamma[2] == "2"
    assert gamma[7] == "+15.0"  # (0.1 + 0.2) / 2
