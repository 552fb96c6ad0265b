"""What happens while an ignite engine runs: checkpoints, random numbers, tables, records.

Words: a *record* says what a file was made with: settings, versions, data.
"""

from stipple_monai.handlers.averaging import (
    WeightAverage,
)
from stipple_monai.handlers.progress import (
    EpochLines,
    ProgressPicture,
    ScanLines,
)
from stipple_monai.handlers.provenance import (
    RunRecord,
    data_fingerprint,
    versions,
)
from stipple_monai.handlers.slice_dice import (
    SliceDice,
)
from stipple_monai.handlers.soundness import (
    DefinedMeanDice,
    FiniteTraining,
    not_finite,
)
from stipple_monai.handlers.training import (
    EpochSeed,
    LearningCurve,
    PositionTable,
    WeightsLoader,
    WholeBatch,
    WholeCheckpointSaver,
)

__all__ = [
    "DefinedMeanDice",
    "EpochLines",
    "EpochSeed",
    "FiniteTraining",
    "LearningCurve",
    "PositionTable",
    "ProgressPicture",
    "RunRecord",
    "ScanLines",
    "SliceDice",
    "WeightAverage",
    "WeightsLoader",
    "WholeBatch",
    "WholeCheckpointSaver",
    "data_fingerprint",
    "not_finite",
    "versions",
]
