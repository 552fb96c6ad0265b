"""Generated data: the phantom, and a simulated CT scan of any label map.

Words: a *phantom* is anatomy and scan, both invented; a *tissue* has a mean, a deviation and a
texture in HU.
"""

from stipple_monai.simulation.anatomy import (
    ORGANS,
)
from stipple_monai.simulation.body import (
    BTCV_TISSUES,
    Tissue,
    read_tissues,
)
from stipple_monai.simulation.phantom import (
    Abdomen,
    simulate_abdomen,
    write_phantom,
)
from stipple_monai.simulation.scans import (
    simulate_ct,
    write_simulated,
)

__all__ = [
    "BTCV_TISSUES",
    "ORGANS",
    "Abdomen",
    "Tissue",
    "read_tissues",
    "simulate_abdomen",
    "simulate_ct",
    "write_phantom",
    "write_simulated",
]
