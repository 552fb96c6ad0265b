"""From folders and DICOM to a checked data set in MSD layout.

Words: a *source* is a folder as somebody left it, a *case* a scan and what belongs to it, a *pair*
a scan with its label on one grid.
"""

from stipple_monai.ingest.alignment_check import (
    FLIPS,
    Alignment,
    FlipScore,
    Intensities,
    check_alignment,
)
from stipple_monai.ingest.cases import (
    LAYOUTS,
)
from stipple_monai.ingest.dataset_check import (
    DATASET_COLUMNS,
    Checked,
    check_dataset,
    table_text,
)
from stipple_monai.ingest.dicom_header import (
    Slice,
)
from stipple_monai.ingest.label_files import (
    LabelMap,
    read_label,
)
from stipple_monai.ingest.pairs import (
    Options,
)
from stipple_monai.ingest.prior_check import (
    LabelCheck,
    check_labels,
)
from stipple_monai.ingest.run import (
    ingest,
)
from stipple_monai.ingest.series import (
    Series,
    open_series,
    read_series,
)
from stipple_monai.ingest.summary import (
    summary_lines,
)
from stipple_monai.ingest.tree import (
    Listed,
    is_tree,
    list_series,
)

__all__ = [
    "DATASET_COLUMNS",
    "FLIPS",
    "LAYOUTS",
    "Alignment",
    "Checked",
    "FlipScore",
    "Intensities",
    "LabelCheck",
    "LabelMap",
    "Listed",
    "Options",
    "Series",
    "Slice",
    "check_alignment",
    "check_dataset",
    "check_labels",
    "ingest",
    "is_tree",
    "list_series",
    "open_series",
    "read_label",
    "read_series",
    "summary_lines",
    "table_text",
]
