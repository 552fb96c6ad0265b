"""From scans to a folder of segmentations, with the bundle.

Words: the *results* are a folder that knows the settings it was made with. Imports from `results`
and below.
"""

from stipple_monai.segmentation.run import (
    segment,
)

__all__ = [
    "segment",
]
