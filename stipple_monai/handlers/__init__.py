"""What happens while an ignite engine runs: checkpoints, random numbers, tables, records.

Words: a *record* says what a file was made with: settings, versions, data. Imports from
`inferers` and below.
"""

from stipple_monai.handlers.progress import (
    EpochLines,
    ProgressPicture,
)
from stipple_monai.handlers.provenance import (
    RunRecord,
    versions,
)
from stipple_monai.handlers.training import (
    EpochSeed,
    LearningCurve,
    PositionTable,
    WeightsLoader,
    WholeCheckpointSaver,
)

__all__ = [
    "EpochLines",
    "EpochSeed",
    "LearningCurve",
    "PositionTable",
    "ProgressPicture",
    "RunRecord",
    "WeightsLoader",
    "WholeCheckpointSaver",
    "versions",
]
