"""Datalists, folds, checks, grids and names of scans and labels.

Words: a *datalist* is a JSON file in the style of the MSD; its *sections* hold *items*, a scan
each, with or without label.
"""

from stipple_monai.data.checks import (
    check_pair,
    check_scan,
    read_label_map,
    read_volume,
    rounded_label,
)
from stipple_monai.data.datalist import (
    Item,
    files_of_item,
    first_file,
    ignored_value,
    label_names,
    read_content,
    read_datalist,
    read_sections,
    write_datalist,
)
from stipple_monai.data.folds import (
    assign_folds,
    fold_sections,
    read_nnunet_splits,
    sections_of_fold,
    write_nnunet_splits,
)
from stipple_monai.data.grids import (
    LPS_TO_RAS,
    OTHER_GRIDS,
    TOLERANCE_MM,
    Grid,
    axis_names,
    onto_grid,
    read_grid,
    whole_numbers,
    write_nifti,
)
from stipple_monai.data.naming import (
    folded,
    plain_name,
    stem_of,
    unique_names,
)
from stipple_monai.data.repeated import (
    RepeatedDataset,
)
from stipple_monai.data.sections import (
    keep_sections,
    patient_name,
    patient_of,
    split_datalist,
)
from stipple_monai.data.strata import (
    fold_strata,
    organ_volumes,
)

__all__ = [
    "LPS_TO_RAS",
    "OTHER_GRIDS",
    "TOLERANCE_MM",
    "Grid",
    "Item",
    "RepeatedDataset",
    "assign_folds",
    "axis_names",
    "check_pair",
    "check_scan",
    "files_of_item",
    "first_file",
    "fold_sections",
    "fold_strata",
    "folded",
    "ignored_value",
    "keep_sections",
    "label_names",
    "onto_grid",
    "organ_volumes",
    "patient_name",
    "patient_of",
    "plain_name",
    "read_content",
    "read_datalist",
    "read_grid",
    "read_label_map",
    "read_nnunet_splits",
    "read_sections",
    "read_volume",
    "rounded_label",
    "sections_of_fold",
    "split_datalist",
    "stem_of",
    "unique_names",
    "whole_numbers",
    "write_datalist",
    "write_nifti",
    "write_nnunet_splits",
]
