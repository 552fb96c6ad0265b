"""From scans or probability maps to a folder of segmentations.

Words: the *results* are a folder that knows the settings it was made with.
"""

from stipple_monai.segmentation.folder import (
    refuse_training,
)
from stipple_monai.segmentation.fuse import (
    fuse,
    mean_gain,
)
from stipple_monai.segmentation.run import (
    segment,
)
from stipple_monai.segmentation.scans import (
    further_scans,
)

__all__ = [
    "further_scans",
    "fuse",
    "mean_gain",
    "refuse_training",
    "segment",
]
