"""Choosing the voxels of a prediction that become pseudo-labels (section 3.3 of the paper).

Words: *selected* voxels train, all others carry 255 and are ignored. Imports from the ground alone.
"""

from stipple_monai.pseudo_labels.selection import (
    select_top_k,
)

__all__ = [
    "select_top_k",
]
