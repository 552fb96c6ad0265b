"""What follows from the data: a plan of settings, and where settings contradict it.

Words: a *fingerprint* is a data set's figures; a *plan* is an overlay on the bundle's configs, made
of them by *rules*.
"""

from stipple_monai.planning.contradictions import (
    contradictions,
    read_settings,
)
from stipple_monai.planning.fingerprint import (
    Fingerprint,
    example_fingerprint,
    take_fingerprint,
)
from stipple_monai.planning.plan import (
    Plan,
    make_plan,
    plan_once,
)
from stipple_monai.planning.rules import (
    Choice,
    refuse_window,
)

__all__ = [
    "Choice",
    "Fingerprint",
    "Plan",
    "contradictions",
    "example_fingerprint",
    "make_plan",
    "plan_once",
    "read_settings",
    "refuse_window",
    "take_fingerprint",
]
