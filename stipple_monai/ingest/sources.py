"""Where the scans of a dataset are, and which label belongs to which, by the layout of its folders.

Layouts are those of ``docs/ingest.md``. Nothing is read here but names, ``dataset.json`` and the
headers that tell what a DICOM file is. Whatever a source's files say, only what lies in the source
is read: paths and links that lead out of it are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from stipple_monai.data import NIFTI, OTHER_GRIDS, label_names, read_content, unique_names
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.dicom_header import image_files
from stipple_monai.ingest.dicom_labels import is_label_object, referenced_series
from stipple_monai.ingest.folders import files_below, folders_below, listed, require_inside
from stipple_monai.ingest.label_files import PICTURES
from stipple_monai.ingest.series import open_series

Layout: TypeAlias = Literal["pancreas-ct", "dicom", "nifti", "nnunet", "msd"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_VOLUMES = (*NIFTI, *OTHER_GRIDS)
_UID = re.compile(r"\d+(\.\d+){5,}")
_TCIA = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
# what tells a scan's file from its label's
_KIND = re.compile(r"(?i)images?|img|scan|volume|labels?|segmentation|seg|masks?|truth|gt|ct|mr")
_IMAGE_FOLDERS = ("images", "image", "imagesTr", "img", "scans")
_LABEL_FOLDERS = ("labels", "label", "labelsTr", "masks", "segmentations")


@dataclass(frozen=True)
class Case:
    """A scan and its label.

    Args:
        name: of its own in the dataset.
        images: the folder of a DICOM series, or a file for each channel.
        label: a file, a folder of pictures, or None.
        test: whether it belongs to a test set, whose labels are not public.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    test: bool = False

    @property
    def is_dicom(self) -> bool:
        """Whether the scan is a DICOM series."""
        return self.images[0].is_dir()


@dataclass(frozen=True)
class Source:
    """A dataset as it was found.

    Args:
        root: its folder.
        layout: how that is organised.
        cases: by name.
        skipped: what was left out, and why.
        labels: names of the label values, where the dataset says so.
        modality: of the channels, where the dataset says so.
    """

    root: Path
    layout: Layout
    cases: Sequence[Case]
    skipped: Sequence[tuple[str, str]] = ()
    labels: dict[int, str] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)


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
    for path in (root, *([beside] if beside else [])):
        if path.name.lower().endswith(_ARCHIVES) and path.is_file():
            raise DatasetError(
                f"`source` must be a folder, got the archive {path}: unpack it first. Archives are "
                "not opened here."
            )
        if not path.exists():
            raise DatasetError(f"`source` must exist, got {path}.")
    if not root.is_dir():
        raise DatasetError(f"`source` must be a folder, got the file {root}: give its folder.")
    if layout is not None and layout not in LAYOUTS:
        raise DatasetError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    layout = layout or _detect(root)
    if beside is not None and beside.is_file() and layout != "dicom":
        raise DatasetError(f"`labels` must be a folder in the layout {layout!r}, got {beside}.")
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


def _detect(root: Path) -> Layout:
    files = {path.name for path in root.iterdir()}
    if "imagesTr" in files and any(_channel(p) for p in listed(root / "imagesTr")):
        return "nnunet"
    if "dataset.json" in files:
        return "msd"
    folders = [path for path in root.iterdir() if path.is_dir()]
    if any(_TCIA.fullmatch(path.name) for path in (root.resolve(), *folders)):
        return "pancreas-ct"
    inner = [root, *(root / name for name in _IMAGE_FOLDERS if name in files)]
    if any(path.name.endswith(_VOLUMES) for folder in inner for path in listed(folder)):
        return "nifti"
    return "dicom"


def _pancreas_ct(root: Path, labels: Path | None) -> Source:
    """The collection as TCIA delivers it, and the labels of its separate archive."""
    series: dict[str, list[Path]] = {}
    for folder in folders_below(root):
        number = next((m[1] for p in folder.parts[::-1] if (m := _TCIA.fullmatch(p))), None)
        if number is not None:
            series.setdefault(number, []).extend([folder] if _holds_series(folder) else [])
    known = {
        m[1]: path
        for path in files_below(labels or root)
        if (m := re.fullmatch(r"label(\d{4})\.nii(\.gz)?", path.name))
    }
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
    return Source(root, "pancreas-ct", cases, skipped, {0: "background", 1: "pancreas"})


def _dicom(root: Path, labels: Path | None) -> Source:
    """Folders that hold one series each, and labels beside them or in a folder of their own."""
    folders = [folder for folder in folders_below(root) if _holds_series(folder)]
    names = _series_names(root, folders)
    if labels is not None and len(folders) == 1 and (labels.is_file() or _pictures(labels)):
        return Source(root, "dicom", [Case(names[0], (folders[0],), labels)])
    if labels is not None and labels.is_file():
        raise DatasetError(f"`labels` must be a folder for several series, got the file {labels}.")
    by_series: dict[str, list[Path]] = {}
    for path in files_below(labels or root):
        if is_label_object(path):
            by_series.setdefault(referenced_series(path) or "", []).append(path)
    cases = []
    for name, folder in zip(names, folders, strict=True):
        beside = _named(labels, name) if labels else _ground(folder, root)
        if not beside and by_series:
            beside = by_series.get(_series_uid(folder), [])
        if len(beside) > 1:
            raise DatasetError(
                f"A series must have one label, got {', '.join(map(str, beside[:3]))} for {folder}:"
                " give the right ones with --labels."
            )
        cases.append(Case(name, (folder,), beside[0] if beside else None))
    return Source(root, "dicom", cases)


def _nifti(root: Path, labels: Path | None) -> Source:
    """Pairs of volumes whose names are the same but for words such as ``label``."""
    images = next((root / n for n in _IMAGE_FOLDERS if (root / n).is_dir()), root)
    if labels is None:
        labels = next((root / n for n in _LABEL_FOLDERS if (root / n).is_dir()), root)
    volumes = [path for path in listed(images) if path.name.endswith(_VOLUMES)]
    pool = [path for path in listed(labels) if path.name.endswith(_VOLUMES)]
    if images == labels:
        pool = [path for path in volumes if re.search(r"(?i)label|seg|mask|truth|gt", path.name)]
        volumes = [path for path in volumes if path not in pool]
    by_key: dict[str, Path] = {}
    for path in pool:
        first = by_key.setdefault(_key(path), path)
        if first != path:
            raise DatasetError(
                f"A scan must have one label, got {first} and {path}: rename one, or give a "
                "dataset.json."
            )
    names = unique_names([path.with_name(_stem(path)) for path in volumes])
    cases = [
        Case(name, (path,), by_key.pop(_key(path), None))
        for path, name in zip(volumes, names, strict=True)
    ]
    skipped = [(path.name, "a label without scan") for path in by_key.values()]
    return Source(root, "nifti", cases, skipped)


def _nnunet(root: Path, labels: Path | None) -> Source:
    """nnU-Net's raw data: a file for each channel, ``NAME_0000.nii.gz``."""
    content = read_content(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    cases, skipped = [], []
    for part in ("imagesTr", "imagesTs"):
        channels: dict[str, dict[int, Path]] = {}
        for path in listed(root / part):
            if found := _channel(path):
                channels.setdefault(found[0], {})[found[1]] = path
        known = {_stem(p): p for p in listed(labels or root / "labelsTr")}
        for name, files in sorted(channels.items()):
            images = tuple(files[c] for c in sorted(files))
            if sorted(files) != list(range(len(files))):
                skipped.append((name, f"channels {sorted(files)} are not 0 to {len(files) - 1}"))
            elif part == "imagesTs":
                cases.append(Case(name, images, test=True))
            else:
                cases.append(Case(name, images, known.get(name)))
    named = label_names(root / "dataset.json") if content else {}
    return Source(root, "nnunet", cases, skipped, named, _modality(content))


def _msd(root: Path, labels: Path | None) -> Source:
    """The layout of the Medical Segmentation Decathlon: what ``dataset.json`` lists."""
    path = root / "dataset.json"
    content = read_content(path)
    if labels is not None:
        raise DatasetError(f"`labels` must not be given with {path}, which lists its own.")
    cases = []
    for section, entries in content.items():
        for entry in entries if isinstance(entries, list) else []:
            item = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(item, dict) or not isinstance(item.get("image"), str):
                continue
            files = [item["image"], *([item["label"]] if item.get("label") else [])]
            image, *label = (root / str(file) for file in files)
            cases.append((image, label[0] if label else None, section == "test"))
    names = unique_names([image.with_name(_stem(image)) for image, _, _ in cases])
    named = [
        Case(name, (image,), label, test)
        for name, (image, label, test) in zip(names, cases, strict=True)
    ]
    return Source(root, "msd", named, (), label_names(path), _modality(content))


def _require_own(case: Case, root: Path, labels: Path) -> None:
    """Raise unless all files of a case lie in the source, or its label in the labels' folder."""
    given = [(path, root) for path in case.images]
    if case.label is not None:
        given.append((case.label, labels if labels in (case.label, *case.label.parents) else root))
    for path, where in given:
        for inner in (path, *(listed(path) if path.is_dir() else [])):
            require_inside(inner, where)


_FINDERS = dict(zip(LAYOUTS, (_pancreas_ct, _dicom, _nifti, _nnunet, _msd), strict=True))


def _modality(content: Mapping[str, Any]) -> dict[str, str]:
    found = content.get("channel_names") or content.get("modality")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _holds_series(folder: Path) -> bool:
    """Whether there are DICOM images; damaged ones are told of when the case is read."""
    try:
        return bool(image_files(folder))
    except DatasetError:
        return True


def _series_uid(folder: Path) -> str:
    try:
        return open_series(folder).uid
    except DatasetError:
        return "damaged"


def _series_names(root: Path, folders: Sequence[Path]) -> list[str]:
    """Names by the parts of the paths that are no UIDs and tell the series apart."""
    parts = [[p for p in f.relative_to(root).parts if not _UID.fullmatch(p)] for f in folders]
    shared = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    names = ["_".join(p for p in part if p not in shared) or root.resolve().name for part in parts]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return unique_names(folders)


def _named(labels: Path, name: str) -> list[Path]:
    """What is called like a series in the folder of the labels."""
    return [
        path
        for path in listed(labels)
        if (
            path.name.endswith(_VOLUMES) and name.casefold() in (_stem(path).casefold(), _key(path))
        )
        or (path.is_dir() and path.name == name and _pictures(path))
    ]


def _ground(folder: Path, root: Path) -> list[Path]:
    """Folders of pictures beside a series; of several the one that CHAOS calls ``Ground``."""
    beside = [] if folder == root else listed(folder.parent)
    found = [path for path in beside if path != folder and _pictures(path)]
    return [path for path in found if path.name == "Ground"] or found


def _pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURES for path in listed(folder))


def _stem(path: Path) -> str:
    ending = next((e for e in sorted(_VOLUMES, key=len, reverse=True) if path.name.endswith(e)), "")
    return path.name.removesuffix(ending)


def _key(path: Path) -> str:
    return _KIND.sub("", _stem(path)).strip("_-. ").casefold()


def _channel(path: Path) -> tuple[str, int] | None:
    found = re.fullmatch(r"(.+)_(\d{4})", _stem(path)) if path.name.endswith(_VOLUMES) else None
    return (found[1], int(found[2])) if found else None
