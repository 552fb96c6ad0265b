"""Training in rounds: unlabelled scans, pseudo-labels and their quality, the next training.

Words: a *round* is a training and the pseudo-labels that follow it; *gamma* is the share of voxels
selected.
"""

from stipple_monai.self_training.comparison import (
    RoundComparison,
)
from stipple_monai.self_training.pool import (
    PseudoLabelPool,
)
from stipple_monai.self_training.quality import (
    QUALITY_COLUMNS,
)
from stipple_monai.self_training.rounds import (
    QUALITY,
    self_train,
)

__all__ = [
    "QUALITY",
    "QUALITY_COLUMNS",
    "PseudoLabelPool",
    "RoundComparison",
    "self_train",
]
