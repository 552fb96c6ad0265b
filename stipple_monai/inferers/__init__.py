"""Inference around any MONAI inferer: predict, locate, place, fuse.

Words: as in `networks`, `positioning` and `priors`.
"""

from stipple_monai.inferers.located import (
    Fused,
    fuse_logits,
)
from stipple_monai.inferers.prior_driven import (
    CONFIDENCE_META,
    POSITION_META,
    PriorDrivenInferer,
)

__all__ = [
    "CONFIDENCE_META",
    "POSITION_META",
    "Fused",
    "PriorDrivenInferer",
    "fuse_logits",
]
