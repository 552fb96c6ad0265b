"""A tree of DICOM series, as a PACS exports it: which are volumes, and what the others are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from stipple_monai.errors import DatasetError
from stipple_monai.ingest.dicom_header import image_files
from stipple_monai.ingest.folders import folders_below, listed
from stipple_monai.ingest.series import open_series

FEWEST_SLICES = 5
"""A series of fewer is a localizer, a scout or a report in pictures."""


class Listed(NamedTuple):
    """A folder or file of a tree.

    Attributes:
        path: of it.
        taken: whether it is a volume to work on.
        why: what it is, or why it is left out.
    """

    path: Path
    taken: bool
    why: str


def is_tree(folder: Path) -> bool:
    """Whether a folder has no DICOM images itself, but folders that may have some."""
    try:
        own = bool(image_files(folder))
    except DatasetError:
        return False
    return not own and any(path.is_dir() for path in listed(folder))


def list_series(root: str | Path, *, modality: str = "unknown") -> list[Listed]:
    """Look at all folders of a tree, however patients, studies and series are nested.

    A folder that holds one series is a volume, unless it has fewer than ``FEWEST_SLICES``
    slices, is of another modality, or makes no grid. Files that are no images are left out.

    Args:
        root: the tree.
        modality: that is wanted, as DICOM has it; CT and MR exclude each other, and of others
            every series is taken.

    Raises:
        DatasetError: a link leads out of the tree, in circles or nowhere.
    """
    found = []
    for folder in folders_below(Path(root)):
        files = [path for path in listed(folder) if path.is_file()]
        try:
            images = image_files(folder)
        except DatasetError as error:
            found.append(Listed(folder, False, str(error)))
            continue
        if images:
            found.append(_as_listed(folder, modality))
        others = [path for path in files if str(path) not in images and path.name != "DICOMDIR"]
        if others:
            what = "no DICOM images: a segmentation, a report or another kind of file"
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            found.append(Listed(others[0], False, f"{others[0].name}{more}, {what}"))
    return found


def _as_listed(folder: Path, modality: str) -> Listed:
    try:
        series = open_series(folder)
    except DatasetError as error:
        return Listed(folder, False, str(error))
    slices = series.shape[2]
    told = f"{series.modality}, {slices} slice{'s' * (slices != 1)}"
    if {series.modality, modality} == {"CT", "MR"}:
        return Listed(folder, False, f"{told}, and the network was trained on {modality}")
    if slices < FEWEST_SLICES:
        return Listed(folder, False, f"{told}, fewer than {FEWEST_SLICES}: a localizer?")
    return Listed(folder, True, told)
