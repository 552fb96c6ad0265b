"""Colours that colour-blind people can tell apart (Okabe and Ito)."""

from __future__ import annotations

import matplotlib
from matplotlib.colors import to_hex

ON_SCANS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Without black, for what is drawn on a scan."""

ON_WHITE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#8C6D00",
    "#7F7FBF",
    "#999999",
)
"""For the lines of a plot, with three more at the end."""


def organ_colours(count: int) -> list[str]:
    """Colours of ``count`` organs on a scan; from the eighth on not all are safe, from 21 equal.

    Example:
        >>> organ_colours(2)
        ['#E69F00', '#56B4E9']
    """
    many = [to_hex(c) for c in matplotlib.colormaps["tab20"](range(20))]
    colours = many if count > len(ON_SCANS) else ON_SCANS
    return [colours[k % len(colours)] for k in range(count)]
