"""Other names for organs in results that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stipple_monai.results.dicom_seg import rename_segments
from stipple_monai.results.volumes import read_records, rewrite_record


def rename_organs(folder: str | Path, names: Mapping[int, str]) -> None:
    """Give organs other names in a folder's records, and in the DICOM segmentations beside them.

    Args:
        folder: of the results; tables are not written anew.
        names: by label value; others keep theirs.
    """
    for scan, record in read_records(folder).items():
        organs = {row["organ"]: row["name"] for row in record["organs"]}
        wanted = {value: names.get(value, name) for value, name in organs.items()}
        if wanted == organs:
            continue
        for row in record["organs"]:
            row["name"] = wanted[row["organ"]]
        segmentation = Path(folder) / f"{scan}_seg.dcm"
        if segmentation.is_file():
            rename_segments(segmentation, wanted)
        rewrite_record(folder, scan, record)
