"""What is written about a prediction: label map, DICOM SEG, volumes, scores, statistics.

Words: a scan's *record* is written last and says that the scan is done.
"""

from stipple_monai.results.dicom_seg import (
    DicomSegWriter,
    check_dicom_seg,
    has_highdicom,
    series_files,
)
from stipple_monai.results.grid_writer import (
    GridWriter,
    on_grid_of,
)
from stipple_monai.results.placed_prior import (
    place_prior,
)
from stipple_monai.results.remarks import (
    add_remarks,
    organ_remarks,
    scan_remarks,
    volumes_of,
)
from stipple_monai.results.renaming import (
    rename_organs,
)
from stipple_monai.results.scores import (
    SCORE_COLUMNS,
    CalibrationErrord,
    ScoreTable,
    score,
    where_known,
)
from stipple_monai.results.statistics import (
    Comparison,
    Spread,
    between_folds,
    compare_paired,
    holm,
)
from stipple_monai.results.volumes import (
    RECORD,
    TABLES,
    ScanNames,
    VolumeTable,
    finished,
    organ_records,
    outdate,
    read_records,
    rewrite_record,
    write_record,
    write_tables,
)

__all__ = [
    "RECORD",
    "SCORE_COLUMNS",
    "TABLES",
    "CalibrationErrord",
    "Comparison",
    "DicomSegWriter",
    "GridWriter",
    "ScanNames",
    "ScoreTable",
    "Spread",
    "VolumeTable",
    "add_remarks",
    "between_folds",
    "check_dicom_seg",
    "compare_paired",
    "finished",
    "has_highdicom",
    "holm",
    "on_grid_of",
    "organ_records",
    "organ_remarks",
    "outdate",
    "place_prior",
    "read_records",
    "rename_organs",
    "rewrite_record",
    "scan_remarks",
    "score",
    "series_files",
    "volumes_of",
    "where_known",
    "write_record",
    "write_tables",
]
