"""Arrays and grids, without organs: correlation, interpolation, sampling.

Words: a *grid* is a shape and an affine, a *box* a part of one; a *score* is what a correlation
gives for a translation. Imports from `errors` alone.
"""

from stipple_monai.spatial.correlation import (
    Box,
    correlate,
    in_blocks,
    promising,
    scores_in,
)
from stipple_monai.spatial.interpolation import (
    interpolate,
)
from stipple_monai.spatial.sampling import (
    grid_affine,
    sample_on_grid,
    touched,
)

__all__ = [
    "Box",
    "correlate",
    "grid_affine",
    "in_blocks",
    "interpolate",
    "promising",
    "sample_on_grid",
    "scores_in",
    "touched",
]
