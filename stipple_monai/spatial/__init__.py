"""Arrays and grids, without organs: correlation, interpolation, sampling.

Words: a *grid* is a shape and an affine, a *box* a part of one; a *score* is what a correlation
gives for a translation; *votes* are an array and the index of its first cell.
"""

from stipple_monai.spatial.correlation import (
    Box,
    correlate,
    in_blocks,
    parabola_top,
    peak_near,
    promising,
    scores_in,
    seen_box,
)
from stipple_monai.spatial.extent import (
    Extent,
    scan_extent,
    top_middle,
)
from stipple_monai.spatial.interpolation import (
    interpolate,
)
from stipple_monai.spatial.sampling import (
    grid_affine,
    sample_on_grid,
    touched,
)
from stipple_monai.spatial.votes import (
    CommonCenter,
    Votes,
    common_center,
)

__all__ = [
    "Box",
    "CommonCenter",
    "Extent",
    "Votes",
    "common_center",
    "correlate",
    "grid_affine",
    "in_blocks",
    "interpolate",
    "parabola_top",
    "peak_near",
    "promising",
    "sample_on_grid",
    "scan_extent",
    "scores_in",
    "seen_box",
    "top_middle",
    "touched",
]
