"""What a data set is, in numbers: the figures that a plan rests on.

Every label is read, and of scans every header; voxels are read of some scans, evenly picked, and
of these some, evenly picked too. So the same data give the same figures, bit by bit. Scans to be
tested on are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from stipple_monai.data import (
    Item,
    files_of_item,
    first_file,
    label_names,
    read_content,
    read_sections,
)
from stipple_monai.errors import DatasetError
from stipple_monai.label_values import IGNORED, whole_labels
from stipple_monai.nifti import NIFTI, UNREADABLE, open_nifti, voxel_ml
from stipple_monai.parallel import map_in_order
from stipple_monai.priors import spacing_along_ras
from stipple_monai.progress import follow

SECTIONS = ("training", "unlabelled", "validation")
MOST_SCANS = 40
"""Scans whose voxels are read."""
VOXELS = 20_000
"""Of organs, and as many of the whole, in each of these scans."""
_AND = " + "


Looked: TypeAlias = tuple[dict[int, float], NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Fingerprint:
    """Figures of a data set; lengths in mm along R, A and S, volumes in ml.

    Args:
        modality: such as ``CT`` or ``MR``; of channels that differ all, such as ``CT + PET``.
        channels: of a scan.
        scans: in the sections `SECTIONS`.
        labelled: scans of the section ``training`` with a label.
        spacing_mm: the least, the median and the greatest, each along R, A and S.
        shape: likewise, in voxels.
        organs: names by label value, in order; each value that a label has.
        cases: by label value, in how many labels it is.
        volumes_ml: by label value, the mean, deviation, least and greatest volume.
        without: names of values that the datalist names and no label has.
        intensity: of organs' voxels: mean, deviation and percentiles.
        scan_intensity: of whole scans, likewise.
        sampled: scans whose voxels were read.
    """

    modality: str
    channels: int
    scans: int
    labelled: int
    spacing_mm: Mapping[str, Sequence[float]]
    shape: Mapping[str, Sequence[float]]
    organs: Mapping[int, str]
    cases: Mapping[int, int]
    volumes_ml: Mapping[int, Mapping[str, float]]
    without: Mapping[int, str] = field(default_factory=dict)
    intensity: Mapping[str, float] = field(default_factory=dict)
    scan_intensity: Mapping[str, float] = field(default_factory=dict)
    sampled: int = 0

    @property
    def mixed(self) -> bool:
        """Whether the channels are of several modalities, which one window does not fit."""
        return self.channels > 1 and _AND in self.modality

    def facts(self) -> dict[str, Any]:
        """The same of JSON's types."""
        known = asdict(self)
        for name in ("organs", "cases", "volumes_ml", "without"):
            known[name] = {str(value): told for value, told in known[name].items()}
        return known


def take_fingerprint(
    datalist: str | Path, *, num_workers: int = 4, progress: bool = True
) -> Fingerprint:
    """Look at a datalist's labels and scans.

    Args:
        datalist: JSON in the style of the MSD, with labelled scans in ``training``.
        num_workers: files that are read at once.
        progress: tell how far it is.

    Raises:
        DatasetError: the datalist has no labelled scans, a file cannot be read or is no NIfTI
            file, labels are empty or hold what is no label, or scans have different channels.
    """
    sections = read_sections(datalist)
    items = [item for name in SECTIONS for item in sections.get(name, [])]
    labelled = [item for item in sections.get("training", []) if "label" in item]
    if not labelled:
        raise DatasetError(
            f"`datalist` must have labelled scans in training, got none in {datalist}: run "
            "`ingest` on a folder of scans and labels first."
        )
    grids = [_grid(item) for item in items]
    channels = _common_channels(items, [grid[2] for grid in grids], datalist)
    found, sampled = _look_at(labelled, num_workers=num_workers, progress=progress)
    names = label_names(datalist)
    values = sorted({value for volumes, _, _ in found for value in volumes})
    if not values:
        raise DatasetError(f"Labels must have organs, got empty ones alone in {datalist}.")
    by_value = {v: [volumes[v] for volumes, _, _ in found if v in volumes] for v in values}
    whole = _statistics([voxels for _, _, voxels in found])
    return Fingerprint(
        modality=_modality(read_content(Path(datalist)), channels, whole),
        channels=channels,
        scans=len(items),
        labelled=len(labelled),
        spacing_mm=_range([grid[0] for grid in grids]),
        shape=_range([grid[1] for grid in grids]),
        organs={value: names.get(value, f"organ {value}") for value in values},
        cases={value: len(volumes) for value, volumes in by_value.items()},
        volumes_ml={value: _spread(volumes) for value, volumes in by_value.items()},
        without={v: name for v, name in names.items() if v not in (0, IGNORED, *values)},
        intensity=_statistics([voxels for _, voxels, _ in found]) or whole,
        scan_intensity=whole,
        sampled=sampled,
    )


def _common_channels(items: Sequence[Item], counts: Sequence[int], datalist: str | Path) -> int:
    channels = sorted(set(counts))
    if len(channels) > 1:
        other = next(i for i, n in zip(items, counts, strict=True) if n != channels[0])
        file = first_file(other["image"])
        raise DatasetError(
            f"Scans must have the same channels, got {channels} in {datalist}; "
            f"{file} has {channels[-1]}: of a series over time, give one volume."
        )
    return channels[0]


def _look_at(
    labelled: Sequence[Item], *, num_workers: int, progress: bool
) -> tuple[list[Looked], int]:
    """What `_measure_item` tells of each item, and of how many it read the scan."""
    chosen = {int(i) for i in np.linspace(0, len(labelled) - 1, min(len(labelled), MOST_SCANS))}
    todo = [(item, i in chosen) for i, item in enumerate(labelled)]
    read = map_in_order(
        lambda pair: _measure_item(pair[0], sample=pair[1]), todo, num_workers=num_workers
    )
    return list(follow(read, "plan", unit="label", total=len(todo), shown=progress)), len(chosen)


def _open(path: str) -> Any:
    if Path(path).is_dir() or not path.lower().endswith(NIFTI):
        raise DatasetError(
            f"Scans must be NIfTI files, got {path}: run `ingest` first, which writes such."
        )
    return open_nifti(path)[0]


def _grid(item: Item) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Spacing and shape along R, A and S, and channels."""
    files = files_of_item(item, ("image",))
    file = _open(files[0])
    if len(file.shape) not in (3, 4):
        raise DatasetError(f"A scan must be 3D, got the shape {file.shape} in {files[0]}.")
    shape = np.empty(3)
    shape[nib.io_orientation(file.affine)[:, 0].astype(int)] = file.shape[:3]
    channels = len(files) if len(files) > 1 else (file.shape[3] if len(file.shape) > 3 else 1)
    return spacing_along_ras(file.affine), shape, channels


def _measure_item(item: Item, *, sample: bool) -> Looked:
    """An item's volumes in ml, and voxels of its organs and of the whole scan."""
    scan = first_file(item["image"])
    label, image = _open(item["label"]), _open(scan)
    if label.shape[:3] != image.shape[:3] or int(np.prod(label.shape[3:])) != 1:
        raise DatasetError(
            f"`label` must have the image's shape {image.shape[:3]}, got {label.shape} in "
            f"{item['label']}: `check` says more."
        )
    values = whole_labels(_voxels(label, item["label"]), item["label"])
    whole = values.reshape(label.shape[:3]).astype(np.int64)
    if whole.min() < 0 or whole.max() > IGNORED:
        raise DatasetError(
            f"A label must hold whole numbers from 0 to {IGNORED}, got {values.min():g} to "
            f"{values.max():g} in {item['label']}: export it anew."
        )
    counts = np.bincount(whole.ravel(), minlength=IGNORED + 1)
    size_ml = voxel_ml(label.affine)
    found = [int(v) for v in np.flatnonzero(counts) if v not in (0, IGNORED)]
    volumes = {value: counts[value] * size_ml for value in found}
    nothing = np.empty(0, np.float32)
    if not sample:
        return volumes, nothing, nothing
    intensities = np.asarray(_voxels(image, scan), np.float32)
    intensities = intensities.reshape(*whole.shape, -1)[..., 0]
    organs = np.flatnonzero((whole > 0) & (whole < IGNORED))
    inside, everywhere = (intensities.flat[_subsample(i)] for i in (organs, np.arange(whole.size)))
    return volumes, inside, everywhere


def _voxels(file: Any, name: str) -> NDArray[Any]:
    try:
        return np.asanyarray(file.dataobj)
    except (*UNREADABLE, MemoryError) as error:
        raise DatasetError(
            f"{name} must be a whole NIfTI file, got one that is cut short."
        ) from error


def _subsample(indices: NDArray[np.intp]) -> NDArray[np.intp]:
    return indices[:: max(1, len(indices) // VOXELS)]


def _statistics(parts: Sequence[NDArray[Any]]) -> dict[str, float]:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        return {}
    names = {"p00_5": 0.5, "p50": 50, "p99_5": 99.5}
    numbers = dict(zip(names, np.percentile(values, list(names.values())).tolist(), strict=True))
    told = {"mean": values.mean(), "sd": values.std(), **numbers}
    return {name: round(float(value), 4) for name, value in told.items()}


def _range(rows: Sequence[NDArray[Any]]) -> dict[str, list[float]]:
    table = np.stack(rows)
    kinds = {"least": table.min(0), "median": np.median(table, 0), "greatest": table.max(0)}
    return {name: [round(x, 4) for x in row.tolist()] for name, row in kinds.items()}


def _spread(volumes: Sequence[float]) -> dict[str, float]:
    mean = math.fsum(volumes) / len(volumes)
    sd = float(np.std(volumes, ddof=1)) if len(volumes) > 1 else 0.0
    told = {"mean": mean, "sd": sd, "least": min(volumes), "greatest": max(volumes)}
    return {name: round(float(value), 4) for name, value in told.items()}


def _modality(content: Mapping[str, Any], channels: int, whole: Mapping[str, float]) -> str:
    """What the datalist says; else CT where there is air, which is at −1000 HU."""
    told = content.get("modality") or content.get("channel_names") or {}
    said = list(told.values()) if isinstance(told, dict) else [told] * channels
    # a channel that nobody named need not be in the unit of the first
    names = [_known_modality(str(name)) for name in [*said, *[""] * channels][:channels]]
    if names[0] == "unknown" and whole["p00_5"] < -500:  # voxels are those of the first channel
        names[0] = "CT"
    return _AND.join(dict.fromkeys(names))


def _known_modality(said: str) -> str:
    for modality in ("CT", "MR"):
        if said.upper().startswith(modality):
            return modality
    return said if said and said.lower() not in ("unknown", "none", "0") else "unknown"


def example_fingerprint(**changes: Any) -> Fingerprint:
    """Figures of a small CT data set, for examples and tests.

    Example:
        >>> example_fingerprint(modality="MR").modality
        'MR'
    """
    same = {"least": [1.0, 1.0, 3.0], "median": [1.0, 1.0, 3.0], "greatest": [1.0, 1.0, 3.0]}
    size = {name: [256.0, 256.0, 100.0] for name in same}
    seen = {"mean": 80.0, "sd": 50.0, "p00_5": -100.0, "p50": 90.0, "p99_5": 250.0}
    volumes = {"mean": 100.0, "sd": 20.0, "least": 70.0, "greatest": 140.0}
    known: dict[str, Any] = {
        **{"modality": "CT", "channels": 1, "scans": 8, "labelled": 4, "sampled": 4},
        **{"spacing_mm": same, "shape": size, "organs": {1: "pancreas"}, "cases": {1: 4}},
        **{"volumes_ml": {1: volumes}, "intensity": seen, "scan_intensity": seen},
    }
    return Fingerprint(**{**known, **changes})
