"""Probability maps that other tools wrote, on the grid of a scan.

Words: a *channel* is a class of the network, the first the background; the *grid file* is a NIfTI
file that says where the voxels lie. Nothing here is unpickled: nnU-Net's ``.pkl`` stays closed.

``.npz``
    of nnU-Net v2 (``--save_probabilities``): ``probabilities``, ``(C, Z, Y, X)``. The grid file is
    the scan, or the segmentation ``NAME.nii.gz`` that nnU-Net wrote beside it.
``.nii``, ``.nii.gz``
    a channel per class, ``(W, H, D, C)``, or one organ's map, ``(W, H, D)``.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stipple_monai.data import onto_grid, read_grid, stem_of
from stipple_monai.errors import DatasetError
from stipple_monai.label_values import IGNORED, whole_labels
from stipple_monai.nifti import NIFTI, corner_distance_mm, open_nifti

SUM_TOLERANCE = 0.02
"""Of the sum over classes, which half precision and eight-bit files miss a little."""
SAME_MM = 0.1
LEAST_AGREEMENT = 0.5
"""Dice of nnU-Net's own segmentation and the highest probability; of another axis order it is 0."""


class MapFile(NamedTuple):
    """A probability map, and the file that says where its voxels lie."""

    name: str
    path: Path
    grid: Path


def find_maps(inputs: Sequence[str | Path], *, like: Sequence[str | Path] = ()) -> list[MapFile]:
    """List probability maps with their grid files.

    Args:
        inputs: files, or folders of such; in a folder ``.npz`` files, or else NIfTI files that end
            in ``_prob``, or else all NIfTI files.
        like: scans, or folders of such, found by their names; one scan for one map needs none.

    Raises:
        DatasetError: there is no map, a map has no grid file, or two have one name.
    """
    paths = [path for given in inputs for path in _in_folder(Path(given).absolute())]
    scans = [path for given in like for path in _nifti_in(Path(given).absolute())]
    if not paths:
        raise DatasetError("Inputs must be probability maps, got none.")
    maps: dict[str, MapFile] = {}
    for path in dict.fromkeys(paths):
        name = case_name(path)
        if name in maps:
            raise DatasetError(
                f"Maps must have names of their own, got {maps[name].path} and {path}: rename one."
            )
        alone = len(scans) == 1 and len(set(paths)) == 1
        maps[name] = MapFile(name, path, scans[0] if alone else _grid_of(name, path, scans))
    return list(maps.values())


def case_name(path: Path) -> str:
    """Name of the case in a file's name.

    Four digits at its end stay: nnU-Net's number of a channel looks like a patient's.

    Example:
        >>> [case_name(Path(n)) for n in ("a_0005.npz", "a.nii.gz", "a_prob.nii", "a_seg.nii.gz")]
        ['a_0005', 'a', 'a', 'a']
    """
    plain = path.name[:-4] if path.suffix.lower() == ".npz" else stem_of(path)
    return re.sub(r"_(?:prob|probabilities|seg)$", "", plain)


def files_of_case(name: str, paths: Sequence[Path]) -> list[Path]:
    """Files that are called as a case; or else those where ``_0000`` makes the difference.

    Example:
        >>> scans = [Path(f"scans/{n}.nii.gz") for n in ("a_0000", "a_0005_0000", "b")]
        >>> [files_of_case(n, scans)[0].name for n in ("a", "a_0005", "b_0000")]
        ['a_0000.nii.gz', 'a_0005_0000.nii.gz', 'b.nii.gz']
    """
    exact = [path for path in paths if case_name(path) == name]
    others = {f"{name}_0000", name.removesuffix("_0000")}
    return exact or [path for path in paths if case_name(path) in others]


def _in_folder(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.is_file() or not path.name.lower().endswith((".npz", *NIFTI)):
            raise DatasetError(
                f"Inputs must be probability maps, .npz or NIfTI, got {path}, "
                + ("which has another ending." if path.exists() else "which does not exist.")
            )
        return [path]
    archives = [p for p in sorted(path.iterdir()) if p.suffix.lower() == ".npz"]
    nifti = _nifti_in(path)
    found = archives or [p for p in nifti if stem_of(p).endswith("_prob")] or nifti
    if not found:
        raise DatasetError(f"Inputs must be probability maps, got no .npz or NIfTI in {path}.")
    return found


def _nifti_in(path: Path, option: str = "like") -> list[Path]:
    if path.is_dir():
        files = sorted(path.iterdir())
        return [p for p in files if p.name.lower().endswith(NIFTI) and p.name[0] != "."]
    if not path.is_file() or not path.name.lower().endswith(NIFTI):
        raise DatasetError(f"`{option}` must be NIfTI files or folders of such, got {path}.")
    return [path]


def _grid_of(name: str, path: Path, scans: Sequence[Path]) -> Path:
    named = files_of_case(name, scans)
    if named:
        return named[0]
    if path.suffix.lower() != ".npz":
        return path
    beside = [path.with_name(name + ending) for ending in (".nii.gz", ".nii")]
    there = [p for p in beside if p.is_file()]
    if not there:
        raise DatasetError(
            f"A map must have a scan that says where its voxels lie, got none called {name} for "
            f"{path}: give it by --like (the .pkl of nnU-Net is not read)."
        )
    return there[0]


def read_map(map_file: MapFile, channels: Sequence[int]) -> tuple[torch.Tensor, Any]:
    """Read the probabilities of some classes; all others count as background.

    Args:
        map_file: what is read.
        channels: of the organs, in their order.

    Returns:
        ``(K + 1, W, H, D)`` float32, background first, summing to 1; and the affine, RAS mm.

    Raises:
        DatasetError: it cannot be read, holds no probabilities, lacks a channel or does not lie on
            the grid.
    """
    file = _header(map_file.grid)
    affine = np.asarray(file.affine, np.float64)
    if map_file.path.suffix.lower() == ".npz":
        values = _read_npz(map_file.path)
    else:
        values = _read_nifti(map_file, affine)
    if values.shape[1:] != tuple(file.shape[:3]):
        raise DatasetError(
            f"A map must have the shape of its scan {map_file.grid}, {tuple(file.shape[:3])}, got "
            f"{values.shape[1:]} in {map_file.path}: give the scan that was predicted, as the "
            "network's tool read it."
        )
    _check_values(values, map_file.path)
    missing = [c for c in channels if not 0 < c < len(values)]
    if missing:
        raise DatasetError(
            f"`channels` must be from 1 to {len(values) - 1} in {map_file.path}, got {missing[0]}: "
            "channel 0 is the background."
        )
    if map_file.path.suffix.lower() == ".npz" and _is_beside(map_file):
        _check_order(values, file, map_file)
    organs = values[list(channels)].astype(np.float32)
    rest = 1 - organs.sum(0, keepdims=True)
    return torch.from_numpy(np.concatenate([rest, organs]).clip(0, 1)), affine


def _header(path: Path) -> Any:
    file, _ = open_nifti(path)
    if len(file.shape) < 3:
        raise DatasetError(f"A scan must be 3D, got the shape {file.shape} in {path}.")
    return file


def _read_npz(path: Path) -> NDArray[Any]:
    """``(C, W, H, D)`` of nnU-Net's ``(C, Z, Y, X)``."""
    try:
        with np.load(path, allow_pickle=False) as content:
            found: Mapping[str, Any] = content
            if "probabilities" not in found:
                raise DatasetError(
                    f"A map must hold `probabilities`, as nnU-Net v2 writes them, got "
                    f"{sorted(found)} in {path}: predict with --save_probabilities."
                )
            values = np.asarray(found["probabilities"])
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise DatasetError(f"A map must be a whole .npz file, got {path}: {error}") from error
    if values.ndim != 4:
        raise DatasetError(f"A map must be (C, Z, Y, X), got the shape {values.shape} in {path}.")
    return values.transpose(0, 3, 2, 1)


def _read_nifti(map_file: MapFile, affine: NDArray[np.float64]) -> NDArray[Any]:
    grid = read_grid(map_file.path)
    shape = grid.array.shape
    same = map_file.grid == map_file.path
    if not same and not corner_distance_mm(grid.affine, affine, shape[:3]) <= SAME_MM:
        raise DatasetError(
            f"A map must lie on the grid of its scan {map_file.grid}, got another place in "
            f"{map_file.path}: leave --like out, or resample it."
        )
    if len(shape) == 3:
        # before 1 - p is beside it, so that a message has the file's own values
        _check_range(grid.array, map_file.path)
        return np.stack([1 - grid.array.astype(np.float32), grid.array])
    return np.moveaxis(grid.array, 3, 0)


def _check_range(values: NDArray[Any], path: Path) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 and high <= 1 + SUM_TOLERANCE):
        raise DatasetError(
            f"A map must hold probabilities from 0 to 1, got {low:g} to {high:g} in {path}: "
            "apply the network's softmax, and save no label map."
        )


def _check_values(values: NDArray[Any], path: Path) -> None:
    _check_range(values, path)
    if not np.any((values > 0) & (values < 1)):
        warnings.warn(
            f"Look at {path}: it has only the values 0 and 1, as a label map, and tells nothing of "
            "how sure the network is. Fuse its probabilities.",
            stacklevel=2,
        )
    off = max(
        float(np.abs(s.sum(0, dtype=np.float32) - 1).max()) for s in np.moveaxis(values, 3, 0)
    )
    if not off <= SUM_TOLERANCE:
        raise DatasetError(
            f"Probabilities must sum to 1 over the classes, got sums that are {off:.3g} off in "
            f"{path}: regions (sigmoid) and maps without background are not read; give a NIfTI "
            "file of one organ."
        )


def _is_beside(map_file: MapFile) -> bool:
    return map_file.grid.parent == map_file.path.parent


def _check_order(values: NDArray[Any], file: Any, map_file: MapFile) -> None:
    """Compare with nnU-Net's own segmentation, where that is what lies beside."""
    label = np.asanyarray(file.dataobj).reshape(values.shape[1:])
    if label.min() < 0 or label.max() >= 2**15 or not np.array_equal(label, np.rint(label)):
        return
    if len(np.unique(label[:: max(1, len(label) // 8)])) > 2 * len(values) or not label.any():
        return
    found = values.argmax(0) > 0
    dice = 2 * np.count_nonzero(found & (label > 0)) / (found.sum() + np.count_nonzero(label))
    if dice < LEAST_AGREEMENT:
        raise DatasetError(
            f"A map must agree with the segmentation beside it, got a Dice of {dice:.2f} for "
            f"{map_file.path} and {map_file.grid}: the tool may have turned its axes. Give the "
            "scan by --like if it is right nevertheless."
        )


def read_truth(
    path: Path, organs: Sequence[int], shape: Sequence[int], affine: NDArray[np.float64]
) -> torch.Tensor:
    """Read a label map onto a grid, organs numbered 1 to K.

    Args:
        path: NIfTI file.
        organs: label values, in the order of their numbers; other values are background, 255 is
            ignored.
        shape: of the grid.
        affine: of the grid, RAS mm.

    Returns:
        ``(1, W, H, D)`` uint8.

    Raises:
        DatasetError: it does not lie on that grid, or is no label map.
    """
    array, _ = onto_grid(read_grid(path), tuple(shape), affine, name=str(path))
    array = whole_labels(array, str(path))
    if array.min() < 0 or array.max() > 255:
        raise DatasetError(
            f"`calibrate` must have label maps, with values from 0 to 255, got {path} with "
            f"{array.min():g} to {array.max():g}: it may be the scan."
        )
    truth = np.where(array == IGNORED, IGNORED, 0).astype(np.uint8)
    for number, organ in enumerate(organs, 1):
        truth[array == organ] = number
    return torch.from_numpy(np.ascontiguousarray(truth))[None]


def label_files(given: Sequence[str | Path]) -> list[Path]:
    """NIfTI files among files and folders.

    Raises:
        DatasetError: one is neither.
    """
    return [path for each in given for path in _nifti_in(Path(each).absolute(), "calibrate")]
