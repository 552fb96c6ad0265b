"""Layouts of volumes: pairs of NIfTI, nnU-Net's, the MSD's and TotalSegmentator's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stipple_monai.data import (
    ignored_value,
    label_names,
    patient_name,
    read_content,
    unique_names,
)
from stipple_monai.errors import DatasetError
from stipple_monai.ingest.cases import Case, Source
from stipple_monai.ingest.folders import listed
from stipple_monai.ingest.matching import (
    is_called_a_label,
    is_volume,
    match_labels,
    require_matches,
    stem,
)

IMAGE_FOLDERS = ("images", "image", "imagesTr", "img", "scans")
LABEL_FOLDERS = ("labels", "label", "labelsTr", "masks", "segmentations")
MASK_FOLDER = "segmentations"
"""Of TotalSegmentator's layout, in the folder of each scan."""

# what may lie beside volumes and is none
_DOCUMENTS = (".json", ".txt", ".md", ".csv", ".tsv", ".pdf", ".xlsx", ".xml", ".yaml", ".yml")


def find_nifti(root: Path, labels: Path | None) -> Source:
    """Pairs of volumes whose names are the same but for words such as ``label``."""
    images = next((root / n for n in IMAGE_FOLDERS if (root / n).is_dir()), root)
    if labels is None:
        labels = next((root / n for n in LABEL_FOLDERS if (root / n).is_dir()), root)
    volumes = [path for path in listed(images) if is_volume(path)]
    pool = [path for path in listed(labels) if is_volume(path)]
    if images == labels:
        pool = [path for path in volumes if is_called_a_label(path)]
        volumes = [path for path in volumes if path not in pool]
    matched, left = match_labels(volumes, pool)
    names = unique_names([path.with_name(stem(path)) for path in volumes])
    cases = [
        Case(name, (path,), matched.get(path)) for path, name in zip(volumes, names, strict=True)
    ]
    skipped = [*require_matches(len(matched), left), *_other_files({images, labels})]
    return Source(root, "nifti", cases, skipped)


def find_nnunet(root: Path, labels: Path | None) -> Source:
    """nnU-Net's raw data: a file for each channel, ``NAME_0000.nii.gz``."""
    content = read_content(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    cases: list[Case] = []
    skipped: list[tuple[str, str]] = []
    for part, where in (("imagesTr", labels or root / "labelsTr"), ("imagesTs", root / "labelsTs")):
        known = _by_stem(where)
        for name, files in sorted(_channels(root / part).items()):
            images = tuple(files[c] for c in sorted(files))
            if sorted(files) != list(range(len(files))):
                known.pop(name, None)
                skipped.append((name, f"channels {sorted(files)} are not 0 to {len(files) - 1}"))
                continue
            label = known.pop(name, None)
            cases.append(Case(name, images, label, test=part == "imagesTs"))
        matched = sum(c.label is not None for c in cases)
        skipped += require_matches(matched, list(known.values()))
        skipped += [
            (path.name, "its name does not end with a channel, such as _0000")
            for path in listed(root / part)
            if is_volume(path) and channel_of(path) is None
        ]
        skipped += _other_files({root / part, where})
    return Source(
        root,
        "nnunet",
        cases,
        skipped,
        label_names(root / "dataset.json") if content else {},
        _modality(content),
        ignored_value(content),
    )


def _channels(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in listed(folder):
        if channel := channel_of(path):
            first = found.setdefault(channel[0], {}).setdefault(channel[1], path)
            if first != path:
                raise DatasetError(
                    f"A channel must be one file, got {first} and {path}: remove one."
                )
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in filter(is_volume, listed(folder)):
        first = found.setdefault(stem(path), path)
        if first != path:
            raise DatasetError(f"A scan must have one label, got {first} and {path}: remove one.")
    return found


def channel_of(path: Path) -> tuple[str, int] | None:
    """Name of the case and number of the channel in a name of nnU-Net's."""
    found = re.fullmatch(r"(.+)_(\d{4})", stem(path)) if is_volume(path) else None
    return (found[1], int(found[2])) if found else None


def find_msd(root: Path, labels: Path | None) -> Source:
    """The layout of the Medical Segmentation Decathlon: what ``dataset.json`` lists."""
    path = root / "dataset.json"
    content = read_content(path)
    if labels is not None:
        raise DatasetError(f"`labels` must not be given with {path}, which lists its own.")
    found = list(_listed_items(content, path))
    names = unique_names(
        [(root / images[0]).with_name(stem(root / images[0])) for _, _, images in found]
    )
    cases = [
        Case(
            name,
            tuple(root / image for image in images),
            root / str(item["label"]) if item.get("label") else None,
            test=section == "test",
            section=section,
            patient=patient_name(item),
        )
        for name, (section, item, images) in zip(names, found, strict=True)
    ]
    used = {p.resolve() for c in cases for p in (*c.images, *([c.label] if c.label else []))}
    folders = {file.parent for file in used if file.parent.is_relative_to(root.resolve())}
    skipped = [
        (file.name, "dataset.json does not list it")
        for folder in sorted(folders)
        for file in listed(folder)
        if is_volume(file) and file.resolve() not in used
    ]
    named = label_names(path)
    return Source(root, "msd", cases, skipped, named, _modality(content), ignored_value(content))


def _listed_items(
    content: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, Mapping[str, Any], list[str]]]:
    """Sections, items and their images; what is no item of a list of items is an error."""
    for section, entries in content.items():
        if not isinstance(entries, list):
            continue
        items: list[Any] = [{"image": e} if isinstance(e, str) else e for e in entries]
        if not any(isinstance(item, dict) and "image" in item for item in items):
            continue
        for item in items:
            image: Any = item.get("image") if isinstance(item, dict) else None
            images = image if isinstance(image, list) else [image]
            if not images or not all(isinstance(file, str) and file for file in images):
                raise DatasetError(
                    f'Items must have an "image", got {item!r} in {section!r} of {path}.'
                )
            yield section, item, images


def find_totalsegmentator(root: Path, labels: Path | None) -> Source:
    """TotalSegmentator's layout: ``NAME/ct.nii.gz`` and ``NAME/segmentations/ORGAN.nii.gz``."""
    if labels is not None:
        raise DatasetError(
            f"`labels` must not be given in the layout 'totalsegmentator', got {labels}: masks lie "
            f"in {MASK_FOLDER} beside each scan."
        )
    cases, skipped = [], []
    folders = [path for path in listed(root) if path.is_dir()]
    organs = {stem(p) for f in folders for p in listed(f / MASK_FOLDER) if is_volume(p)}
    structures = {name: value for value, name in enumerate(sorted(organs), 1)}
    if len(structures) > 254:
        raise DatasetError(f"`source` must have at most 254 organs, got {len(structures)}.")
    for folder in folders:
        scans = [path for path in listed(folder) if is_volume(path)]
        masks = folder / MASK_FOLDER
        if len(scans) != 1:
            skipped.append((folder.name, f"it has {len(scans)} scans rather than one"))
            continue
        label = masks if any(map(is_volume, listed(masks))) else None
        cases.append(Case(folder.name, (scans[0],), label, structures=structures))
    names = {0: "background", **{value: name for name, value in structures.items()}}
    return Source(root, "totalsegmentator", cases, skipped, names)


def _other_files(folders: set[Path]) -> list[tuple[str, str]]:
    """Files that are neither volumes nor documents, which nobody should miss without a word."""
    return [
        (path.name, "its ending is not that of a volume")
        for folder in sorted(folders)
        for path in listed(folder)
        if path.is_file() and not is_volume(path) and path.suffix.lower() not in _DOCUMENTS
    ]


def _modality(content: Mapping[str, Any]) -> dict[str, str]:
    found = content.get("channel_names") or content.get("modality")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
