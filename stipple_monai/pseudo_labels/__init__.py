"""Choosing the voxels of a prediction that become pseudo-labels.

Words: *selected* voxels train, all others carry 255 and are ignored. Two rules: `select_certain`,
and the paper's `select_top_k` (section 3.3).
"""

from stipple_monai.pseudo_labels.certain import (
    select_certain,
)
from stipple_monai.pseudo_labels.selection import (
    select_top_k,
)

__all__ = [
    "select_certain",
    "select_top_k",
]
