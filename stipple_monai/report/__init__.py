"""One HTML page about a data set, a prior, a training or predictions.

Words: a *page* has sections of *blocks*; a *viewer* shows a scan slice by slice. Imports from
`self_training` and below.
"""

from stipple_monai.report.cases import (
    MOST_PICTURES,
)
from stipple_monai.report.page import (
    Lines,
    Page,
    Picture,
    Section,
    Table,
    write_page,
)
from stipple_monai.report.run import (
    report,
)

__all__ = [
    "MOST_PICTURES",
    "Lines",
    "Page",
    "Picture",
    "Section",
    "Table",
    "report",
    "write_page",
]
