"""The whole method on the phantom, with the bundle's own commands: `make demo`.

Imports from `study` and below.
"""

from stipple_monai.demo.run import (
    run_demo,
)

__all__ = [
    "run_demo",
]
