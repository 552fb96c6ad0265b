"""The spatial prior of an organ: estimated, aligned, placed on a grid, kept as NIfTI.

Words: the *prior* is an image of probabilities around the organ's centre; a *position* is a world
point in RAS mm; a *bin* is a voxel of the prior along z; *placing* is resampling on another grid.
"""

from stipple_monai.priors.atlases import atlas, atlas_folder, atlas_has
from stipple_monai.priors.case_file import cases_path
from stipple_monai.priors.folder import (
    estimate_priors,
    load_priors,
    prior_files,
    prior_organs,
    prior_path,
)
from stipple_monai.priors.likelihood import ONE_LABEL_MM
from stipple_monai.priors.organ import (
    Center,
    Label,
    LabelMap,
    open_label,
    organ_crop,
    organ_masks,
    organ_position,
    spacing_along_ras,
    world_point,
)
from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.priors.recognition import own_cases
from stipple_monai.priors.values import Mode, known_mode
from stipple_monai.priors.volume import Volume, open_volume

__all__ = [
    "ONE_LABEL_MM",
    "Center",
    "Label",
    "LabelMap",
    "Mode",
    "SpatialPrior",
    "Volume",
    "atlas",
    "atlas_folder",
    "atlas_has",
    "cases_path",
    "estimate_priors",
    "known_mode",
    "load_priors",
    "open_label",
    "open_volume",
    "organ_crop",
    "organ_masks",
    "organ_position",
    "own_cases",
    "prior_files",
    "prior_organs",
    "prior_path",
    "spacing_along_ras",
    "world_point",
]
