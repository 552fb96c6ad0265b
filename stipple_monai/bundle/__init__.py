"""Running the bundle's configs as stages, and publishing a trained bundle for the model zoo.

Words: a *stage* is one run of MONAI's bundle command with overlays; a *knob* is a value in a config
that a flag may replace; an *overlay* is a config on top of another.
"""

from stipple_monai.bundle.configs import (
    BUNDLE,
    as_written,
    config_digests,
    config_path,
    configs_of,
    merged_configs,
    part_of,
    read_config,
)
from stipple_monai.bundle.knobs import (
    check_knobs,
    refuse_given,
)
from stipple_monai.bundle.model_folder import (
    CALIBRATION,
    CURVE,
    LAST,
    MODEL,
    RECORD,
    WEIGHTS,
    Model,
    check_weights,
    read_model,
    trained_knobs,
    weights_folder,
    write_model,
)
from stipple_monai.bundle.publish import (
    publish_bundle,
)
from stipple_monai.bundle.stages import (
    only_process,
    progress_only,
    remove_checkpoints,
    run_bundle,
    whole_folder,
)
from stipple_monai.bundle.weights import (
    NOT_WEIGHTS,
    load_weights,
    reason,
)

__all__ = [
    "BUNDLE",
    "CALIBRATION",
    "CURVE",
    "LAST",
    "MODEL",
    "NOT_WEIGHTS",
    "RECORD",
    "WEIGHTS",
    "Model",
    "as_written",
    "check_knobs",
    "check_weights",
    "config_digests",
    "config_path",
    "configs_of",
    "load_weights",
    "merged_configs",
    "only_process",
    "part_of",
    "progress_only",
    "publish_bundle",
    "read_config",
    "read_model",
    "reason",
    "refuse_given",
    "remove_checkpoints",
    "run_bundle",
    "trained_knobs",
    "weights_folder",
    "whole_folder",
    "write_model",
]
