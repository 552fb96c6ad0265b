"""How much network and prior count: fitted on scans, decided by Dice, and whether it came true.

Words: as in `networks`; *evidence* and *odds* are what network and prior say of an organ against
the background.
"""

from stipple_monai.calibration.decision import (
    CAUTION,
    best_thresholds,
    decide,
    dice_threshold,
)
from stipple_monai.calibration.fit import (
    fit_calibration,
    fit_samples,
)
from stipple_monai.calibration.reliability import (
    Reliability,
    reliability,
)
from stipple_monai.calibration.samples import (
    Samples,
    draw_samples,
    join_samples,
)

__all__ = [
    "CAUTION",
    "Reliability",
    "Samples",
    "best_thresholds",
    "decide",
    "dice_threshold",
    "draw_samples",
    "fit_calibration",
    "fit_samples",
    "join_samples",
    "reliability",
]
