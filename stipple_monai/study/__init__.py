"""Methods × label proportions × folds × seeds: planned, run, compared, reported.

Words: a *method* is a named set of overlays and knobs; a *job* is one training and its test; a
*cell* is what one row of the tables stands for.
"""

from stipple_monai.study.draws import draws_table
from stipple_monai.study.figures import (
    dice_by_bins,
    dice_by_method,
    dice_by_proportion,
    learning_curves,
)
from stipple_monai.study.organs import (
    never_loses,
    organ_differences,
    organ_positions,
    organ_table,
)
from stipple_monai.study.plan import (
    Study,
)
from stipple_monai.study.recipe import recipe_table
from stipple_monai.study.report import (
    curves_by_method,
    is_study,
    lines_by_bins,
    rewrite_report,
)
from stipple_monai.study.rows import write_rows
from stipple_monai.study.run import (
    run_study,
)
from stipple_monai.study.steps import steps_table
from stipple_monai.study.tables import (
    Results,
    comparison_table,
    measures_table,
    position_table,
)
from stipple_monai.study.titles import TITLES

__all__ = [
    "TITLES",
    "Results",
    "Study",
    "comparison_table",
    "curves_by_method",
    "dice_by_bins",
    "dice_by_method",
    "dice_by_proportion",
    "draws_table",
    "is_study",
    "learning_curves",
    "lines_by_bins",
    "measures_table",
    "never_loses",
    "organ_differences",
    "organ_positions",
    "organ_table",
    "position_table",
    "recipe_table",
    "rewrite_report",
    "run_study",
    "steps_table",
    "write_rows",
]
