"""Which scans are segmented, and what can be told of them before anything is run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.data import files_of_item, first_file, plain_name, read_datalist, unique_names
from stipple_monai.errors import DatasetError
from stipple_monai.ingest import is_tree, list_series
from stipple_monai.nifti import NIFTI, open_nifti
from stipple_monai.results import check_dicom_seg, series_files

_CHANNEL = re.compile(r"(.+)_(\d{4})(\.nii(?:\.gz)?)", re.IGNORECASE | re.DOTALL)
LABELS = ("label", "mask", "seg")
"""So begin the names of folders that have label maps beside the scans'."""
NAMED = 3
"""So many folders are told of many."""


def find_scans(
    inputs: Iterable[str | Path],
    *,
    section: str = "test",
    channels: int = 1,
    modality: str = "unknown",
) -> list[dict[str, Any]]:
    """List the scans of files, folders and datalists as a datalist's items with a ``name``.

    A folder is searched for NIfTI files, hidden ones left out; without any it must hold a DICOM
    series, or folders that do, at any depth: then a line is printed for each, with what it is or
    why it is left out. A scan that is given twice counts once.

    Args:
        inputs: files, folders and datalists.
        section: of the datalists.
        channels: of the network; of several, files ``NAME_0000``, ``NAME_0001`` … are one scan
            where they are as many.
        modality: of the training, see `stipple_monai.ingest.list_series`.

    Raises:
        DatasetError: an input is none of these, a tree has no scan, a scan lacks the file of a
            channel, or two scans cannot have names of their own.
    """
    images: dict[str, Any] = {}
    for given in inputs:
        path = Path(given).absolute()
        found: list[Any] = [str(path)]
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.name.lower().endswith(NIFTI))
            found = _by_channel([str(p) for p in files if not p.name.startswith(".")], channels)
            if not found:
                found = _tree(path, modality) if is_tree(path) else [str(path)]
        elif path.suffix == ".json":
            found = [item["image"] for item in read_datalist(path, section)]
        elif not path.name.lower().endswith(NIFTI) or not path.exists():
            raise DatasetError(
                f"Inputs must be NIfTI files, folders or datalists, got {given}, "
                + ("which has another ending." if path.exists() else "which does not exist.")
            )
        # links and spellings of a path are one scan
        for image in found:
            images.setdefault(os.path.realpath(first_file(image)), image)
    names = unique_names([first_file(image) for image in images.values()])
    return [
        {"image": image, "name": name} for image, name in zip(images.values(), names, strict=True)
    ]


def _by_channel(files: list[str], channels: int) -> list[Any]:
    """Scans of one file, or of as many as the network has channels, as nnU-Net names them.

    Four digits may as well be a patient's number: files are channels only where those of one name
    are numbered from 0000 on without a gap and are as many as the network has channels, each 3D.
    """
    if channels == 1:
        return files
    groups: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        found = _CHANNEL.fullmatch(file)
        groups.setdefault((found[1], found[3].lower()) if found else (file,), []).append(file)
    scans: list[Any] = []
    for (name, *ending), group in groups.items():
        numbers = [int(found[2]) for file in group if (found := _CHANNEL.fullmatch(file))]
        if 0 not in numbers or _has_channels(group[0], channels):
            scans += group
            continue
        missing = [c for c in range(channels) if c not in numbers]
        if missing:
            raise DatasetError(
                f"A scan must have a file for each of the network's {channels} channels, got "
                f"{', '.join(group)} without {name}_{missing[0]:04d}{ending[0]}: add it, or take "
                "the scan out of the folder."
            )
        scans += [group] if numbers == list(range(channels)) else group
    return scans


def _has_channels(file: str, channels: int) -> bool:
    """Whether a file has all channels; one that cannot be read is told of when its turn comes."""
    try:
        shape = open_nifti(file)[0].shape
    except DatasetError:
        return False
    return bool(shape[3:4] == (channels,))


def _tree(root: Path, modality: str) -> list[Any]:
    """The series of a tree, with a line for each folder."""
    found = list_series(root, modality=modality)
    for each in found:
        print(f"{'taken' if each.taken else 'left out'}: {each.path}: {each.why}", flush=True)
    taken = [str(each.path) for each in found if each.taken]
    if not taken:
        _refuse_subfolders(root)
        raise DatasetError(
            f"Inputs must have a scan, got the folder {root} without a NIfTI file or DICOM series "
            f"that can be segmented: {found[0].why if found else 'it is empty'}."
        )
    return taken


def _refuse_subfolders(root: Path) -> None:
    """Raise where the NIfTI files of a folder lie in folders below it."""
    there = (p for p in root.rglob("*") if p.name.lower().endswith(NIFTI) and p.is_file())
    names = [p.relative_to(root) for p in there]
    folders = sorted({p.parent for p in names if not any(part[0] == "." for part in p.parts)})
    if folders:
        more = f" and {len(folders) - NAMED} more" if len(folders) > NAMED else ""
        scans = [p for p in folders if not p.name.lower().startswith(LABELS)] or folders
        raise DatasetError(
            f"Inputs must have a scan, got the folder {root}, which has NIfTI files in subfolders "
            f"({', '.join(map(str, folders[:NAMED]))}{more}), which are not read: give "
            + ("" if len(scans) == 1 else "those of the scans, such as ")
            + f"{root / scans[0]}."
        )


def _check_scan(item: Mapping[str, Any], out: Path, *, dicom_seg: bool) -> None:
    """Raise for what can be told without reading the voxels."""
    plain_name(item["name"], "name")
    for file in map(Path, files_of_item(item, ("image",))):
        if not _is_utf_8(str(file)):
            raise DatasetError(
                f"A scan's path must be UTF-8, as the tables are, got {str(file)!r}: rename it."
            )
        if out == (file if file.is_dir() else file.parent).resolve():
            raise DatasetError(f"`out` must be another folder than that of the scans, got {out}.")
        if file.is_dir():
            files = series_files(file)
            if dicom_seg:
                check_dicom_seg(files)
            continue
        if dicom_seg:
            raise DatasetError(
                f"DICOM SEG needs DICOM series as input, got {file}: leave out --dicom-seg, or "
                "give the folder of the series."
            )
        open_nifti(file)


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sound_scans(
    items: Sequence[dict[str, Any]], out: Path, *, dicom_seg: bool
) -> tuple[list[dict[str, Any]], list[DatasetError]]:
    """Scans that may be segmented, and what is wrong with the others, before anything is run.

    Raises:
        DatasetError: no scan is left.
    """
    sound, faults = [], []
    for item in items:
        try:
            _check_scan(item, out, dicom_seg=dicom_seg)
        except DatasetError as error:
            faults.append(error)
        else:
            sound.append(item)
    if not sound:
        raise faults[0]
    return sound, faults


def further_scans(
    folders: Sequence[str | Path], sections: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Scans of folders that no section of a datalist has, as items without label.

    Args:
        folders: of NIfTI files, such as nnU-Net's ``imagesTs``, or of DICOM series, see
            `find_scans`.
        sections: of the datalist; their scans have as many files as one of these.

    Raises:
        DatasetError: see `find_scans`; or there is no further scan.
    """
    items = [item for found in sections.values() for item in found]
    known = {os.path.realpath(file) for item in items for file in files_of_item(item, ("image",))}
    channels = len(files_of_item(items[0], ("image",))) if items else 1
    found = [{"image": each["image"]} for each in find_scans(folders, channels=channels)]
    more = [item for item in found if os.path.realpath(first_file(item["image"])) not in known]
    if not more:
        raise DatasetError(
            "`unlabelled` must have scans that the datalist has not, got "
            f"{', '.join(map(str, folders))}, with {len(found)} scans: leave it out."
        )
    return more
