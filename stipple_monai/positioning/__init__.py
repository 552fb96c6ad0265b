"""Where the organ is: one organ by KL divergence, several together, references, orientation.

Words: a *coarse prediction* is a network's probability map before the prior; a *reference* is what
it is compared with; a *confidence* says how much better the position is than the next best.
"""

from stipple_monai.positioning.joint import (
    DEFAULT_SPREAD_MM,
    Located,
    check_spread,
    locate_organs,
    positioned_together,
)
from stipple_monai.positioning.orientation import (
    Orientation,
    check_orientation,
)
from stipple_monai.positioning.references import (
    random_references,
)
from stipple_monai.positioning.single import (
    DEFAULT_EPSILON,
    around_center,
    check_probability,
    check_search,
    evidence_for,
    locate_organ,
    measure_position,
    to_world,
)

__all__ = [
    "DEFAULT_EPSILON",
    "DEFAULT_SPREAD_MM",
    "Located",
    "Orientation",
    "around_center",
    "check_orientation",
    "check_probability",
    "check_search",
    "check_spread",
    "evidence_for",
    "locate_organ",
    "locate_organs",
    "measure_position",
    "positioned_together",
    "random_references",
    "to_world",
]
