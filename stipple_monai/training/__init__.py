"""From a datalist to a trained model that knows what it is, and to its scores.

Words: a *run* is a training and its folder.
"""

from stipple_monai.training.begun_plan import (
    PLAN,
    refuse_edited_plan,
)
from stipple_monai.training.description import (
    describe,
)
from stipple_monai.training.evaluation import (
    SCORE_HEADER,
    evaluate,
    mean_scores,
)
from stipple_monai.training.run import (
    adopt,
    hardly_trained,
    next_command,
    train,
)

__all__ = [
    "PLAN",
    "SCORE_HEADER",
    "adopt",
    "describe",
    "evaluate",
    "hardly_trained",
    "mean_scores",
    "next_command",
    "refuse_edited_plan",
    "train",
]
