"""Where a dataset is, by the layout of its folders.

Layouts are those of ``docs/ingest.md``. Nothing is read here but names, ``dataset.json`` and the
headers that tell what a DICOM file is. Whatever a source's files say, only what lies in the source
is read: paths and links that lead out of it are refused.
"""

from __future__ import annotations

from pathlib import Path

from stipple_monai.errors import DatasetError
from stipple_monai.ingest.cases import LAYOUTS, Case, Layout, Source
from stipple_monai.ingest.dicom_layouts import TCIA, find_dicom, find_pancreas_ct
from stipple_monai.ingest.folders import listed, require_inside
from stipple_monai.ingest.matching import is_volume
from stipple_monai.ingest.volume_layouts import (
    IMAGE_FOLDERS,
    MASK_FOLDER,
    channel_of,
    find_msd,
    find_nifti,
    find_nnunet,
    find_totalsegmentator,
)

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_FINDERS = dict(
    zip(
        LAYOUTS,
        (find_pancreas_ct, find_dicom, find_nifti, find_nnunet, find_msd, find_totalsegmentator),
        strict=True,
    )
)


def find_cases(
    source: str | Path, *, labels: str | Path | None = None, layout: Layout | None = None
) -> Source:
    """Find the scans of a dataset and their labels.

    Args:
        source: folder of the dataset.
        labels: where its labels are, if not where the layout has them: a folder, or of one scan
            its label.
        layout: of the dataset; detected where None.

    Raises:
        DatasetError: there is no scan, two cannot be told apart, a path leads out of the source,
            a link leads in circles, a name is not UTF-8, or labels cannot be matched.
    """
    root, beside = Path(source), None if labels is None else Path(labels)
    layout = _checked(root, beside, layout)
    found = _FINDERS[layout](root, beside)
    if not found.cases:
        raise DatasetError(
            f"`source` must hold scans in the layout {layout!r}, got none in {root}: choose "
            f"another with --layout, of {', '.join(LAYOUTS)}."
        )
    names: dict[str, Case] = {}
    for case in found.cases:
        _require_own(case, root, beside or root)
        # file systems that ignore case would write one over the other
        first = names.setdefault(case.name.casefold(), case)
        if first is not case:
            raise DatasetError(
                f"Cases must have names of their own, got {first.images[0]} and {case.images[0]}: "
                "rename one."
            )
    return found


def _checked(root: Path, beside: Path | None, layout: Layout | None) -> Layout:
    for path in (root, *([beside] if beside else [])):
        if path.name.lower().endswith(_ARCHIVES) and path.is_file():
            raise DatasetError(
                f"`source` must be a folder, got the archive {path}: unpack it first. Archives are "
                "not opened here."
            )
        if not path.exists():
            name = "source" if path is root else "labels"
            raise DatasetError(
                f"`{name}` must exist, got {path}: give the folder of the "
                + ("data set." if path is root else "labels.")
            )
    if not root.is_dir():
        raise DatasetError(f"`source` must be a folder, got the file {root}: give its folder.")
    if layout is not None and layout not in LAYOUTS:
        raise DatasetError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    layout = layout or _detect(root)
    if beside is not None and beside.is_file() and layout != "dicom":
        raise DatasetError(f"`labels` must be a folder in the layout {layout!r}, got {beside}.")
    return layout


def _detect(root: Path) -> Layout:
    files = {path.name for path in root.iterdir()}
    if "imagesTr" in files and any(channel_of(p) for p in listed(root / "imagesTr")):
        return "nnunet"
    if "dataset.json" in files:
        return "msd"
    folders = [path for path in root.iterdir() if path.is_dir()]
    if any(TCIA.fullmatch(path.name) for path in (root.resolve(), *folders)):
        return "pancreas-ct"
    if any((path / MASK_FOLDER).is_dir() for path in folders):
        return "totalsegmentator"
    inner = [root, *(root / name for name in IMAGE_FOLDERS if name in files)]
    if any(is_volume(path) for folder in inner for path in listed(folder)):
        return "nifti"
    return "dicom"


def _require_own(case: Case, root: Path, labels: Path) -> None:
    """Raise unless all files of a case lie in the source, or its label in the labels' folder."""
    given = [(path, root) for path in case.images]
    if case.label is not None:
        given.append((case.label, labels if labels in (case.label, *case.label.parents) else root))
    for path, where in given:
        for inner in (path, *(listed(path) if path.is_dir() else [])):
            require_inside(inner, where)
