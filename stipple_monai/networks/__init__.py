"""Fusion of logits with priors (equations 2 and 3), the wrapper for any network, the paper's U-Net.

Words: the *backbone* is the wrapped network, *adjusted logits* are its logits plus the prior's
bias, the *floor* is the lowest prior probability, a *calibration* says how much network and prior
count for each organ.
"""

from stipple_monai.networks.calibrated_odds import SILENT
from stipple_monai.networks.calibration import (
    Calibration,
)
from stipple_monai.networks.ensemble import (
    MeanLogits,
)
from stipple_monai.networks.fusion import (
    DEFAULT_FLOOR,
    prior_driven_sigmoid,
    prior_driven_softmax,
    prior_odds,
    sigmoid_logits,
    softmax_logits,
)
from stipple_monai.networks.prior_driven import (
    PriorDrivenNet,
)
from stipple_monai.networks.unet import (
    BFloat16SliceUNet,
    SliceUNet,
)

__all__ = [
    "DEFAULT_FLOOR",
    "SILENT",
    "BFloat16SliceUNet",
    "Calibration",
    "MeanLogits",
    "PriorDrivenNet",
    "SliceUNet",
    "prior_driven_sigmoid",
    "prior_driven_softmax",
    "prior_odds",
    "sigmoid_logits",
    "softmax_logits",
]
