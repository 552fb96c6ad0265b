"""The table of several seeds, from results that were made up."""

import numpy as np
import pytest
from helpers.study_rows import row
from scipy.stats import ttest_rel

from stipple_monai.study.draws import draws_table
from stipple_monai.study.tables import DASH, Results

NETWORK = {0: [0.2, 0.4, 0.3], 1: [0.4, 0.4, 0.4]}
FUSED = {0: [0.5, 0.6, 0.6], 1: [0.6, 0.6, 0.7]}


def rows_of(method, draws, **more):
    """Rows of a method with the Dice of three scans for each seed."""
    return [
        row(method, seed=seed, scan=scan, dice=value, **more)
        for seed, values in draws.items()
        for scan, value in zip("abc", values, strict=True)
    ]


def test_every_seed_and_all_of_them():
    rows = rows_of("baseline", NETWORK) + rows_of("stipple_single", FUSED)
    table = draws_table(Results(rows))
    assert table.header[2:5] == ["seed 0", "seed 1", "all"]
    network, fused = table.rows
    assert network[2:] == ["30.0", "40.0", "35.0", DASH, DASH, DASH]
    assert fused[2:6] == ["56.7", "63.3", "60.0", "+25.0"]
    # a patient counts once, with the mean of both seeds
    both = [np.mean(list(draws.values()), axis=0) for draws in (FUSED, NETWORK)]
    assert float(fused[-1]) == pytest.approx(ttest_rel(*both).pvalue, rel=0.05)


def test_a_method_of_fewer_seeds_is_left_out_and_one_seed_makes_no_table():
    rows = rows_of("baseline", NETWORK) + rows_of("stipple", {1: FUSED[1]})
    assert [cells[0] for cells in draws_table(Results(rows)).rows] == ["Network alone"]
    single = rows_of("baseline", {1: NETWORK[1]}) + rows_of("stipple", {1: FUSED[1]})
    assert draws_table(Results(single)) is None


def test_seeds_of_another_proportion_are_dashes():
    rows = rows_of("baseline", NETWORK) + rows_of("baseline", {0: NETWORK[0]}, proportion=0.25)
    many, few = draws_table(Results(rows)).rows
    assert (many[1], few[1]) == ("50%", "25%")
    assert few[2:5] == ["30.0", DASH, "30.0"]
