"""Simulated abdominal CT scans: patients to try the method on without data.

A *patient* is a standard abdomen (`stipple_monai.simulation.anatomy`), scaled, bent and varied; a
*scan* is a field of view on a patient, sampled on slices, blurred and noisy.

Small bowel has the attenuation, texture, surface and calibre of the pancreas: what tells them
apart is where they are.
"""

import math
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from stipple_monai.data import write_nifti
from stipple_monai.progress import follow
from stipple_monai.simulation.anatomy import ORGANS, Canvas
from stipple_monai.simulation.trunk import paint_trunk
from stipple_monai.simulation.viscera import paint_viscera
from stipple_monai.simulation.writing import begin_folder, end_folder

# to be raised with any change that gives a seed another patient
_VERSION = 1
LARGEST = 1024
"""Voxels along an axis of the plane: some gigabytes while a scan is made."""
# above that, the standard abdomen ends
_HIGHEST_MM = 300


class Abdomen(NamedTuple):
    """One simulated scan.

    Attributes:
        image_hu: attenuation in HU, ``(W, H, D)`` int16.
        label: values as in `ORGANS`, ``(W, H, D)`` uint8.
        affine: voxel index to world, RAS+ mm, ``(4, 4)`` float64.
    """

    image_hu: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


class _Options(TypedDict):
    size: int
    slices: tuple[int, int]
    slice_spacing_mm: tuple[float, float]
    organs: Literal["pancreas", "all"]
    orientation: Literal["LAS", "RAS"]


def _check(
    *,
    size: int,
    slices: tuple[int, int],
    slice_spacing_mm: tuple[float, float],
    organs: str,
    orientation: str,
) -> None:
    if not 16 <= size <= LARGEST:
        raise ValueError(f"`size` must be from 16 to {LARGEST}, got {size}.")
    if not 1 <= slices[0] <= slices[1]:
        raise ValueError(f"`slices` must be (fewest, most), both positive, got {slices}.")
    if not 0.5 <= slice_spacing_mm[0] <= slice_spacing_mm[1]:
        raise ValueError(
            "`slice_spacing_mm` must be (least, greatest), both at least 0.5, "
            f"got {slice_spacing_mm}."
        )
    if slices[1] * slice_spacing_mm[1] > _HIGHEST_MM:
        raise ValueError(
            f"`slices` times `slice_spacing_mm` must be at most {_HIGHEST_MM} mm, "
            f"got {slices[1]} × {slice_spacing_mm[1]}."
        )
    if organs not in ("pancreas", "all"):
        raise ValueError(f"`organs` must be 'pancreas' or 'all', got {organs!r}.")
    if orientation not in ("LAS", "RAS"):
        raise ValueError(f"`orientation` must be 'LAS' or 'RAS', got {orientation!r}.")


def simulate_abdomen(
    seed: int | np.random.SeedSequence,
    *,
    size: int = 128,
    slices: tuple[int, int] = (32, 48),
    slice_spacing_mm: tuple[float, float] = (3.0, 5.0),
    organs: Literal["pancreas", "all"] = "pancreas",
    orientation: Literal["LAS", "RAS"] = "LAS",
) -> Abdomen:
    """Simulate one contrast-enhanced abdominal CT scan in the portal venous phase.

    The same seed is the same patient and the same field of view at any ``size``; noise differs.

    Args:
        seed: decides on everything; the same seed gives the same bytes.
        size: voxels along W and along H; 128 makes them 2.5 to 3.3 mm wide.
        slices: fewest and most slices; more are taken, up to the most, where the pancreas (at
            most 120 mm high) needs them, and it is cut where that is not enough.
        slice_spacing_mm: least and greatest distance of slices.
        organs: label the pancreas alone, or all of `ORGANS`.
        orientation: axes of the grid, as nibabel's ``aff2axcodes`` names them.

    Returns:
        Image, label and affine.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> image_hu, label, affine = simulate_abdomen(0, size=32)
        >>> image_hu.shape == label.shape, int(label.max())
        (True, 1)
    """
    _check(
        size=size,
        slices=slices,
        slice_spacing_mm=slice_spacing_mm,
        organs=organs,
        orientation=orientation,
    )
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.92, 1.1) * rng.uniform(0.96, 1.04, 3)
    fat_mm = rng.uniform(8, 30)
    spacing_mm = round(2 * (145 + fat_mm) * scale[0] * rng.uniform(1.04, 1.15) / size, 4)
    dz_mm = round(rng.uniform(*slice_spacing_mm), 1)
    fewest = min(slices[1], max(slices[0], math.ceil(128 / dz_mm)))
    count = int(rng.integers(fewest, slices[1], endpoint=True))
    axes_mm = _axes(rng, (size, count), (spacing_mm, dz_mm))

    canvas = Canvas([axis / s for axis, s in zip(axes_mm, scale, strict=True)], rng)
    paint_viscera(canvas, rng, paint_trunk(canvas, rng, fat_mm))
    image = _scanned(canvas.image, rng, spacing_mm)
    label = canvas.label if organs == "all" else (canvas.label == 1).astype(np.uint8)

    # where a scanner puts the world's origin says nothing of the patient
    origin_mm = [axis[0] for axis in axes_mm] + rng.uniform((-20, -20, -900), (20, 20, -300))
    affine = np.diag([spacing_mm, spacing_mm, dz_mm, 1.0])
    affine[:3, 3] = np.round(origin_mm, 2)
    if orientation == "LAS":
        image, label = image[::-1], label[::-1]
        affine[0, 3] += (size - 1) * spacing_mm
        affine[0, 0] = -spacing_mm
    image_hu = np.clip(np.rint(image), -1024, 1500).astype(np.int16)
    return Abdomen(np.ascontiguousarray(image_hu), np.ascontiguousarray(label), affine)


def _axes(
    rng: np.random.Generator, counts: tuple[int, int], spacings_mm: tuple[float, float]
) -> list[NDArray[np.float64]]:
    """Where the voxels lie in the patient: ``counts`` and spacings in the plane and along z."""
    (size, count), (spacing_mm, dz_mm) = counts, spacings_mm
    height_mm = (count - 1) * dz_mm
    bottom_mm = rng.uniform(max(54 - height_mm, -115), -68) if height_mm > 122 else -height_mm / 2
    off_center_mm = rng.uniform((-8, 6), (8, 22))
    plane_mm = (np.arange(size) - (size - 1) / 2) * spacing_mm
    axes_mm = [plane_mm + off_center_mm[0], plane_mm + off_center_mm[1]]
    return [*axes_mm, bottom_mm + np.arange(count) * dz_mm]


def _scanned(
    image: NDArray[np.float32], rng: np.random.Generator, spacing_mm: float
) -> NDArray[np.float32]:
    """The image with the scanner's blur and noise."""
    psf_voxels = (1.1 / spacing_mm, 1.1 / spacing_mm, 0.35)
    image = gaussian_filter(image, psf_voxels, mode="nearest")
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise = gaussian_filter(noise, (0.6, 0.6, 0))
    image += rng.uniform(9, 14) * noise / noise.std()
    return image


def write_phantom(
    folder: str | Path,
    *,
    cases: int,
    seed: int = 0,
    size: int = 128,
    slices: tuple[int, int] = (32, 48),
    slice_spacing_mm: tuple[float, float] = (3.0, 5.0),
    organs: Literal["pancreas", "all"] = "pancreas",
    orientation: Literal["LAS", "RAS"] = "LAS",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write simulated scans and their labels in the layout of the Medical Segmentation Decathlon.

    The files are ``imagesTr/phantom_000.nii.gz``, ``labelsTr/phantom_000.nii.gz``, … and, last,
    ``dataset.json``, whose section ``training`` lists every case. ``phantom.json`` keeps what the
    cases were made from: called again with the same, this function keeps those that are there, so
    that an interrupted run goes on and a set can grow. Case ``i`` is the same patient, and the
    same bytes, however many cases are written.

    Args:
        folder: where to write; made if need be.
        cases: number of cases.
        seed: decides on all cases.
        size: see `simulate_abdomen`, as the next four.
        slices: fewest and most.
        slice_spacing_mm: least and greatest.
        organs: which are labelled; ``dataset.json`` names them under ``labels``.
        orientation: of the grid.
        overwrite: replace another phantom, once this one is whole; other files stay.
        progress: tell how far it is.

    Returns:
        Path of ``dataset.json``.

    Raises:
        ValueError: if an argument is out of its range.
        DatasetError: if ``folder`` is not a folder, or holds something other than this phantom.
    """
    folder = Path(folder)
    if cases < 1:
        raise ValueError(f"`cases` must be at least 1, got {cases}.")
    options: _Options = {
        "size": size,
        "slices": slices,
        "slice_spacing_mm": slice_spacing_mm,
        "organs": organs,
        "orientation": orientation,
    }
    _check(**options)
    recipe = {"version": _VERSION, "seed": seed, **options}
    names = [f"phantom_{index:03d}.nii.gz" for index in range(cases)]
    work = begin_folder(folder, recipe, names, name="phantom", overwrite=overwrite, what="phantom")
    for index, name in enumerate(follow(names, "phantom", unit="case", shown=progress)):
        _write_case(work, name, np.random.SeedSequence(seed, spawn_key=(index,)), options)
    names_of_labels = ORGANS if organs == "all" else ORGANS[:2]
    return end_folder(
        work,
        folder,
        names,
        dict(enumerate(names_of_labels)),
        name="Simulated abdominal CT",
        description=f"stipple_monai.simulation.phantom, seed {seed}",
        licence="CC0-1.0",
    )


def _write_case(folder: Path, name: str, seed: np.random.SeedSequence, options: _Options) -> None:
    """Write a case that is not there."""
    image_path, label_path = folder / "imagesTr" / name, folder / "labelsTr" / name
    if image_path.is_file() and label_path.is_file():
        return
    image_hu, label, affine = simulate_abdomen(seed, **options)
    write_nifti(image_path, image_hu, affine)
    write_nifti(label_path, label, affine)
