"""What memory this process has taken."""

from __future__ import annotations

import sys

from monai.utils import optional_import

resource, _has_resource = optional_import("resource")


def process_peak_mib() -> float:
    """The most memory that this process has held so far, MiB; 0 on Windows, which does not tell."""
    if not _has_resource:
        return 0.0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**20 if sys.platform == "darwin" else used / 2**10
