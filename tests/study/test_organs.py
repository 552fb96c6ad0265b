"""Tables by organ, from results that were made up."""

import numpy as np
import pytest
from helpers.study_rows import row
from PIL import Image
from scipy.stats import ttest_rel

from stipple_monai.study.figures import dice_by_method
from stipple_monai.study.organs import (
    never_loses,
    organ_differences,
    organ_positions,
    organ_table,
)
from stipple_monai.study.tables import DASH, TITLES, Results

SCANS = "abcde"


def rows_of(dice, **more):
    """Rows of methods × organs with the Dice of five scans, in two folds."""
    return [
        row(method, organ=organ, scan=scan, dice=value, fold=int(scan > "c"), **more)
        for (method, organ), values in dice.items()
        for scan, value in zip(SCANS, values, strict=True)
    ]


def test_organs_have_their_names_and_folds_their_spread():
    rows = rows_of({("baseline", 1): [0.2, 0.4, 0.6, 0.7, 0.9], ("baseline", 6): [0.5] * 5})
    named = [r | {"name": {"1": "spleen", "6": "liver"}[r["organ"]]} for r in rows]
    table = organ_table(Results(named))
    assert table.header == ["Method", "labels", "n", "spleen", "liver", "mean"]
    # the folds' means are 40 and 80, between them 28.28
    cells = ["Network alone", "50%", "5", "60.0 ± 28.3", "50.0 ± 0.0", "55.0 ± 14.1"]
    assert table.rows == [cells]


@pytest.mark.slow
def test_differences_are_paired_and_corrected_over_methods():
    base, much = [0.2, 0.3, 0.4, 0.5, 0.6], [0.5, 0.62, 0.69, 0.8, 0.91]
    # a p that is below 0.05 as it is, but not times two
    little = [0.22, 0.31, 0.40, 0.53, 0.62]
    dice = {("baseline", 1): base, ("stipple", 1): much, ("mine", 1): little}
    assert 0.025 < ttest_rel(little, base).pvalue < 0.05
    table = organ_differences(Results(rows_of(dice)))
    assert table.header == ["Method", "labels", "mean"]
    assert table.rows == [["STIPPLE with pseudo-labels", "50%", "+30.4*"], ["mine", "50%", "+1.6*"]]
    dice["third", 1] = [0.2, 0.33, 0.38, 0.52, 0.59]
    rows = organ_differences(Results(rows_of(dice))).rows
    assert [cells[2] for cells in rows] == ["+30.4*", "+1.6", "+0.4"]


@pytest.mark.parametrize(
    ("fused", "reached"),
    [
        ([0.62, 0.6, 0.7, 0.66, 0.7], "yes"),
        ([0.7, 0.5, 0.7, 0.5, 0.65], "yes, within chance"),
        ([0.5, 0.5, 0.7, 0.5, 0.7], "no, within chance"),
        ([0.5, 0.51, 0.5, 0.49, 0.5], "no"),
    ],
)
def test_the_better_of_network_and_prior(fused, reached):
    dice = {
        ("baseline", 1): [0.3, 0.2, 0.3, 0.2, 0.3],
        ("prior_alone", 1): [0.6, 0.59, 0.61, 0.6, 0.6],
        ("stipple_single", 1): fused,
    }
    organ, mean = never_loses(Results(rows_of(dice))).rows
    assert organ[0], mean[0] == ("organ 1", "mean")
    assert float(organ[5]) == pytest.approx(100 * (np.mean(fused) - 0.6), abs=0.06)
    assert organ[-1] == mean[-1] == reached


def test_without_one_of_the_three_nothing_is_said():
    dice = {("baseline", 1): [0.5] * 5, ("stipple_single", 1): [0.6] * 5}
    assert never_loses(Results(rows_of(dice))).rows == []


def test_positions_of_organs_that_are_there():
    kept = {"method": "stipple_single", "confidence": 0.8, "organ": 1}
    rows = [row(scan=s, position_error_mm=e, **kept) for s, e in zip("abc", (2, 4, 9), strict=True)]
    rows.append(row(scan="d", **kept))
    rows.append(row(scan="e", **kept, true_voxels=0))
    organ, every = organ_positions(Results(rows)).rows
    assert organ == ["organ 1", "50%", "4", "75%", "4.0", "5.0", "8.0"]
    assert every == ["all", *organ[1:]]


@pytest.mark.slow
def test_a_dot_a_patient(tmp_path):
    panels = {"CT": {"network alone": [40.0, 60.0], "STIPPLE": [70.0, 80.0]}, "MR": {"a": [50.0]}}
    said = dice_by_method(panels, tmp_path / "a.png")
    assert "CT (2 patients): network alone 50.0, STIPPLE 75.0; MR (1 patients): a 50.0" in said
    image = Image.open(tmp_path / "a.png")
    assert image.text["Description"] == said
    assert image.width >= 700


def test_organs_and_cells_without_rows_are_left_out():
    """A method that was not run with one share of the labels, an organ that no scan has."""
    rows = rows_of({("baseline", 1): [0.5] * 5, ("baseline", 6): [0.5] * 5})
    rows += rows_of({("stipple_single", 1): [0.6] * 5}, proportion=1.0, confidence=0.9)
    table = organ_table(Results(rows))
    assert sorted(row[:2] for row in table.rows) == [
        ["Network alone", "50%"],
        [TITLES["stipple_single"], "100%"],
    ]
    found = organ_positions(Results(rows), "stipple_single").rows
    assert [row[0] for row in found] == ["organ 1", "all"]
    assert [row[1:4] for row in found] == [["100%", "5", "0%"]] * 2


def test_an_organ_that_one_of_two_methods_lacks_has_a_dash():
    dice = {("baseline", 1): [0.2, 0.3, 0.4, 0.5, 0.6], ("stipple", 1): [0.3, 0.5, 0.4, 0.6, 0.8]}
    rows = rows_of({**dice, ("baseline", 6): [0.5] * 5})
    (found,) = organ_differences(Results(rows)).rows
    assert found[2].startswith("+12.0")
    assert found[3] == DASH
