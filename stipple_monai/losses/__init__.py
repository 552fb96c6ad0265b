"""Losses: partial labels, where 255 is ignored, and the rival with an atlas prior.

Words: a *partial label* has voxels whose class is unknown.
"""

from stipple_monai.losses.atlas_prior import (
    AtlasPriorLoss,
)
from stipple_monai.losses.partial import (
    PartialDiceCELoss,
)

__all__ = [
    "AtlasPriorLoss",
    "PartialDiceCELoss",
]
