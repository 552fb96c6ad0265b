"""Pictures: sections through scans, colours of organs, figures, plots, comparisons.

Words: a *section* is one plane of a volume, *radiological convention* shows the patient's right on
the left.
"""

from stipple_monai.visualize.colours import (
    ON_WHITE,
    organ_colours,
)
from stipple_monai.visualize.comparison import (
    dice_table,
)
from stipple_monai.visualize.figures import (
    MAX_PANELS,
    overlay_figure,
    prior_figure,
)
from stipple_monai.visualize.pictures import (
    KINDS,
    draw_comparisons,
)
from stipple_monai.visualize.plots import (
    finish_plot,
    new_plot,
)
from stipple_monai.visualize.sections import (
    CONVENTION,
    Plane,
    Section,
    Window,
    fullest,
    window_for,
    write_png,
)
from stipple_monai.visualize.volumes import (
    on_one_grid,
    voxel_of,
)

__all__ = [
    "CONVENTION",
    "KINDS",
    "MAX_PANELS",
    "ON_WHITE",
    "Plane",
    "Section",
    "Window",
    "dice_table",
    "draw_comparisons",
    "finish_plot",
    "fullest",
    "new_plot",
    "on_one_grid",
    "organ_colours",
    "overlay_figure",
    "prior_figure",
    "voxel_of",
    "window_for",
    "write_png",
]
