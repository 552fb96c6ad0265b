"""STIPPLE for MONAI: 3D spatial priors and pseudo-labels for organ segmentation.

The method of Petit, Thome and Soler, IJCARS 2022, for any MONAI segmentation network.
"""

from stipple_monai.calibration import Reliability, decide, fit_calibration, reliability
from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.inferers import Fused, PriorDrivenInferer, fuse_logits
from stipple_monai.losses import PartialDiceCELoss
from stipple_monai.networks import (
    Calibration,
    PriorDrivenNet,
    SliceUNet,
    prior_driven_sigmoid,
    prior_driven_softmax,
    sigmoid_logits,
    softmax_logits,
)
from stipple_monai.positioning import (
    Located,
    Orientation,
    check_orientation,
    locate_organ,
    locate_organs,
    measure_position,
)
from stipple_monai.priors import (
    SpatialPrior,
    atlas,
    estimate_priors,
    load_priors,
    organ_position,
    prior_path,
)
from stipple_monai.pseudo_labels import select_certain, select_top_k
from stipple_monai.transforms import *  # noqa: F403
from stipple_monai.transforms import __all__ as _transforms

__all__ = [
    "Calibration",
    "DatasetError",
    "Fused",
    "Located",
    "Orientation",
    "PartialDiceCELoss",
    "PositionError",
    "PriorDrivenInferer",
    "PriorDrivenNet",
    "PriorError",
    "Reliability",
    "SliceUNet",
    "SpatialPrior",
    "atlas",
    "check_orientation",
    "decide",
    "estimate_priors",
    "fit_calibration",
    "fuse_logits",
    "load_priors",
    "locate_organ",
    "locate_organs",
    "measure_position",
    "organ_position",
    "prior_driven_sigmoid",
    "prior_driven_softmax",
    "prior_path",
    "reliability",
    "select_certain",
    "select_top_k",
    "sigmoid_logits",
    "softmax_logits",
    *_transforms,
]
