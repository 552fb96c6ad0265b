"""What happens while an ignite engine runs: checkpoints, random numbers, tables, records.

Words: a *record* says what a file was made with: settings, versions, data. Imports from
`inferers` and below.
"""

from stipple_monai.handlers.provenance import (
    RunRecord,
    versions,
)
from stipple_monai.handlers.slice_dice import (
    SliceDice,
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
    "EpochSeed",
    "LearningCurve",
    "PositionTable",
    "RunRecord",
    "SliceDice",
    "WeightsLoader",
    "WholeBatch",
    "WholeCheckpointSaver",
    "versions",
]
