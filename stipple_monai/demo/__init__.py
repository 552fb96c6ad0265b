"""The whole method on the phantom, with the bundle's own commands: `make demo`."""

from stipple_monai.demo.run import (
    run_demo,
)

__all__ = [
    "run_demo",
]
