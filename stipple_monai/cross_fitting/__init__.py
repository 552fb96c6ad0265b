"""Calibration on scans that a network was not trained on, though all labelled scans train one.

Words: a *fold* is a part of the labelled scans that the others' network has not seen.
"""

from stipple_monai.cross_fitting.samples import (
    PartsInferer,
    SampleCollector,
    read_samples,
    write_samples,
)
from stipple_monai.cross_fitting.stage import (
    calibrate,
)
from stipple_monai.cross_fitting.trained_run import (
    calibrate_run,
)

__all__ = [
    "PartsInferer",
    "SampleCollector",
    "calibrate",
    "calibrate_run",
    "read_samples",
    "write_samples",
]
