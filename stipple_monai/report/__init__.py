"""One HTML page about a data set, a prior, a training or predictions.

Words: a *page* has sections of *blocks*; a *viewer* shows a scan slice by slice.
"""

from stipple_monai.report.cases import (
    MOST_PICTURES,
)
from stipple_monai.report.page import (
    Lines,
    Mark,
    Page,
    Picture,
    PlaneView,
    Section,
    Slice,
    Table,
    Text,
    Viewer,
    write_page,
)
from stipple_monai.report.run import (
    report,
)

__all__ = [
    "MOST_PICTURES",
    "Lines",
    "Mark",
    "Page",
    "Picture",
    "PlaneView",
    "Section",
    "Slice",
    "Table",
    "Text",
    "Viewer",
    "report",
    "write_page",
]
