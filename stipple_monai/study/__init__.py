"""Methods × label proportions × folds × seeds: planned, run, compared, reported.

Words: a *method* is a named set of overlays and knobs; a *job* is one training and its test; a
*cell* is what one row of the tables stands for. Imports from `report` and below.
"""

from stipple_monai.study.plan import (
    Study,
)
from stipple_monai.study.run import (
    run_study,
)

__all__ = [
    "Study",
    "run_study",
]
