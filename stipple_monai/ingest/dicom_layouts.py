"""Layouts of DICOM series: Pancreas-CT as TCIA delivers it, and any folders of series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stipple_monai.data import unique_names
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.cases import Case, Source
from stipple_monai.ingest.dicom_header import image_files
from stipple_monai.ingest.dicom_labels import is_label_object, label_frame, referenced_series
from stipple_monai.ingest.folders import files_below, folders_below, listed
from stipple_monai.ingest.label_files import PICTURES
from stipple_monai.ingest.matching import is_volume, key, require_matches, stem
from stipple_monai.ingest.series import open_series

TCIA = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)
_UID = re.compile(r"\d+(\.\d+){5,}")


def find_pancreas_ct(root: Path, labels: Path | None) -> Source:
    """The collection as TCIA delivers it, and the labels of its separate archive."""
    series: dict[str, list[Path]] = {}
    for folder in folders_below(root):
        number = next((m[1] for p in folder.parts[::-1] if (m := TCIA.fullmatch(p))), None)
        if number is not None:
            series.setdefault(number, []).extend([folder] if _holds_series(folder) else [])
    known, others = _numbered_labels(labels or root)
    cases, skipped = [], []
    for number in sorted({*series, *known}):
        scans, name = series.get(number, []), f"PANCREAS_{number}"
        if len(scans) > 1:
            skipped.append((name, f"it has {len(scans)} series, which one is not known"))
        elif not scans:
            why = "its folder is empty" if number in series else "it has a label but no scan"
            twins = "; in Pancreas-CT, 25 and 70 are duplicates of other patients"
            skipped.append((name, why + (twins if number in ("0025", "0070") else "")))
        else:
            cases.append(Case(name, (scans[0],), known.get(number)))
    matched = sum(case.label is not None for case in cases)
    if cases and not matched:
        require_matches(0, [*known.values(), *others])
    skipped += [(path.name, "a volume that is no label of this collection") for path in others]
    return Source(root, "pancreas-ct", cases, skipped, {0: "background", 1: "pancreas"})


def _numbered_labels(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Labels by the number of their scan, and other volumes."""
    known: dict[str, Path] = {}
    others = []
    for path in filter(is_volume, files_below(folder)):
        number = re.fullmatch(r"(?i)label(\d{4})", stem(path))
        if number is None:
            others.append(path)
        elif known.setdefault(number[1], path) != path:
            raise DatasetError(
                f"A scan must have one label, got {known[number[1]]} and {path}: remove one."
            )
    return known, others


def find_dicom(root: Path, labels: Path | None) -> Source:
    """Folders that hold one series each, and labels beside them or in a folder of their own."""
    folders = [folder for folder in folders_below(root) if _holds_series(folder)]
    names = _series_names(root, folders)
    if labels is not None and len(folders) == 1 and (labels.is_file() or _pictures(labels)):
        return Source(root, "dicom", [Case(names[0], (folders[0],), labels)])
    if labels is not None and labels.is_file():
        raise DatasetError(f"`labels` must be a folder for several series, got the file {labels}.")
    pool = _label_pool(root, labels)
    objects = _by_series(folders, [path for path in pool if is_label_object(path)])
    cases = []
    for name, folder in zip(names, folders, strict=True):
        beside = _named(labels, name) if labels else _ground(folder, root)
        beside = beside or objects.get(folder, [])
        if len(beside) > 1:
            raise DatasetError(
                f"A series must have one label, got {', '.join(map(str, beside[:3]))} for {folder}:"
                " give the right ones with --labels."
            )
        cases.append(Case(name, (folder,), beside[0] if beside else None))
    used = {case.label for case in cases if case.label is not None}
    left = [path for path in pool if path not in used]
    return Source(root, "dicom", cases, require_matches(len(used), left) if cases else [])


def _label_pool(root: Path, labels: Path | None) -> list[Path]:
    """All that may be a label: DICOM objects and volumes, and folders of pictures of ``labels``."""
    files = [p for p in files_below(labels or root) if is_label_object(p) or is_volume(p)]
    return [*files, *([p for p in listed(labels) if _pictures(p)] if labels else [])]


def _by_series(folders: Sequence[Path], objects: Sequence[Path]) -> dict[Path, list[Path]]:
    """DICOM labels by the series that they refer to, or whose frame of reference they share."""
    found: dict[Path, list[Path]] = {}
    if not objects:
        return found
    known = {folder: _identity(folder) for folder in folders}
    for path in objects:
        uid = referenced_series(path)
        frame = label_frame(path) if uid is None else None
        of = [
            folder
            for folder, (series, where) in known.items()
            if (uid is not None and series == uid) or (frame and where == frame)
        ]
        if len(of) > 1:
            raise DatasetError(
                f"A label must be of one series, got {path}, which may be of {of[0]} or {of[1]}: "
                "give them with --labels, one by one."
            )
        if of:
            found.setdefault(of[0], []).append(path)
    return found


def _holds_series(folder: Path) -> bool:
    """Whether there are DICOM images; damaged ones are told of when the case is read."""
    try:
        return bool(image_files(folder))
    except DatasetError:
        return True


def _identity(folder: Path) -> tuple[str, str]:
    """UIDs of a series and of its frame of reference."""
    try:
        series = open_series(folder)
    except DatasetError:
        return "damaged", ""
    return series.uid, series.frame_uid


def _series_names(root: Path, folders: Sequence[Path]) -> list[str]:
    """Names by the parts of the paths that are no UIDs and tell the series apart."""
    parts = [[p for p in f.relative_to(root).parts if not _UID.fullmatch(p)] for f in folders]
    shared = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    names = ["_".join(p for p in part if p not in shared) or root.resolve().name for part in parts]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return unique_names(folders)


def _named(labels: Path, name: str) -> list[Path]:
    """What is called like a series in the folder of the labels; equal names come first."""
    volumes = [path for path in listed(labels) if is_volume(path)]
    pictures = [path for path in listed(labels) if path.name == name and _pictures(path)]
    equal = [path for path in volumes if stem(path).casefold() == name.casefold()]
    alike = [path for path in volumes if key(path) in (name.casefold(), key(Path(name)))]
    return [*(equal or alike), *pictures]


def _ground(folder: Path, root: Path) -> list[Path]:
    """Folders of pictures beside a series; of several the one that CHAOS calls ``Ground``."""
    beside = [] if folder == root else listed(folder.parent)
    found = [path for path in beside if path != folder and _pictures(path)]
    return [path for path in found if path.name == "Ground"] or found


def _pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURES for path in listed(folder))
