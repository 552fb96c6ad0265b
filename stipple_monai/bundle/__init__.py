"""Running the bundle's configs as stages, and publishing a trained bundle for the model zoo.

Words: a *stage* is one run of MONAI's bundle command with overlays; a *knob* is a value in a
config that a flag may replace; an *overlay* is a config on top of another. Imports from the
ground (`errors`, `files`) alone.
"""

from stipple_monai.bundle.publish import (
    publish_bundle,
)
from stipple_monai.bundle.stages import (
    BUNDLE,
    as_written,
    check_knobs,
    config_path,
    configs_of,
    only_process,
    progress_only,
    run_bundle,
    whole_folder,
)

__all__ = [
    "BUNDLE",
    "as_written",
    "check_knobs",
    "config_path",
    "configs_of",
    "only_process",
    "progress_only",
    "publish_bundle",
    "run_bundle",
    "whole_folder",
]
