"""Fusion of logits with priors (equations 2 and 3), the wrapper for any network, the paper's U-Net.

Words: the *backbone* is the wrapped network, *adjusted logits* are its logits plus the prior's
bias, the *floor* is the lowest prior probability. Imports from `errors` alone.
"""

from stipple_monai.networks.fusion import (
    DEFAULT_FLOOR,
    prior_driven_sigmoid,
    prior_driven_softmax,
    sigmoid_logits,
    softmax_logits,
)
from stipple_monai.networks.prior_driven import (
    PriorDrivenNet,
)
from stipple_monai.networks.unet import (
    SliceUNet,
)

__all__ = [
    "DEFAULT_FLOOR",
    "PriorDrivenNet",
    "SliceUNet",
    "prior_driven_sigmoid",
    "prior_driven_softmax",
    "sigmoid_logits",
    "softmax_logits",
]
