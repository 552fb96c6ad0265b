"""Simulated CT of real anatomy: from a label map to a scan that could have had it.

The image is drawn from a model conditioned on tissues, as in SynthSeg (Billot et al., Medical
Image Analysis 86, 2023): a Gaussian per tissue and scan, a correlated field within, the blur of
the scanner, and noise with the spectrum of CT. Tissues without label are those of `body`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CropForeground, ResizeWithPadOrCrop, Spacing
from numpy.typing import NDArray
from scipy import fft, ndimage

from stipple_monai.data import read_label_map, write_nifti
from stipple_monai.errors import DatasetError
from stipple_monai.files import fingerprint
from stipple_monai.progress import follow
from stipple_monai.simulation.body import (
    BOWEL,
    BTCV_TISSUES,
    FIRST,
    INVENTED,
    Grid,
    Tissue,
    invent_body,
    open_grid,
)
from stipple_monai.simulation.writing import begin_folder, end_folder

Seed: TypeAlias = int | Sequence[int]
Array: TypeAlias = NDArray[Any]

# to be raised with any change that gives a seed another scan
_VERSION = 1


def _render(
    grid: Grid,
    body: NDArray[np.int16],
    rng: np.random.Generator,
    *,
    psf_mm: float,
    noise_hu: tuple[float, float],
) -> Array:
    """HU of a tissue map."""
    mean, texture = np.zeros((2, FIRST + len(INVENTED)), np.float32)
    for value, tissue in sorted((INVENTED | dict(grid.tissues)).items()):
        mean[value] = tissue.mean_hu + tissue.sd_hu * np.clip(rng.standard_normal(), -2, 2)
        texture[value] = tissue.texture_hu
    for value, tissue in grid.tissues.items():
        if tissue.name == "pancreas":
            mean[BOWEL], texture[BOWEL] = mean[value], texture[value]
    image = mean[body] + texture[body] * grid.field(rng, 2.5)
    # variances of the voxel's box and of where in the voxel the edge lies: 1/12 each
    sigma = np.hypot(psf_mm / grid.spacing, 6**-0.5)
    ndimage.gaussian_filter(image, sigma, output=image, mode="nearest")
    # power grows with frequency until the kernel cuts it off: Riederer et al., PMB 23, 1978
    noise = rng.standard_normal(body.shape, dtype=np.float32)
    cycles = np.hypot(
        fft.fftfreq(len(noise), grid.spacing[0])[:, None, None],
        fft.rfftfreq(noise.shape[1], grid.spacing[1])[:, None],
    )
    gain = (np.sqrt(cycles) * np.exp(-((cycles / 0.45) ** 2))).astype(np.float32)
    noise = fft.irfft2(fft.rfft2(noise, axes=(0, 1)) * gain, s=body.shape[:2], axes=(0, 1))
    image += rng.uniform(*noise_hu) / noise.std() * noise
    return np.clip(image, -1024, 3071)


def simulate_ct(
    label: MetaTensor,
    *,
    seed: Seed,
    tissues: Mapping[int, Tissue] = BTCV_TISSUES,
    psf_mm: float = 0.8,
    noise_hu: tuple[float, float] = (6.0, 11.0),
) -> MetaTensor:
    """Simulate a CT scan of the anatomy in a label map.

    However its axes are flipped or permuted, the scan is the same; on another grid the same seed
    gives another body. Oblique axes are taken for the world axes next to them.

    Args:
        label: label map ``(1, W, H, D)``, values of ``tissues`` and 0.
        seed: decides on everything, with the grid.
        tissues: of the label values, 1 to 999.
        psf_mm: standard deviation of the scanner's blur, to which that of the voxels comes.
        noise_hu: least and greatest standard deviation of noise.

    Returns:
        Attenuation in HU, ``(1, W, H, D)`` float32 from -1024 to 3071, on the label's grid.

    Raises:
        ValueError: an option is out of its range.
        DatasetError: ``label`` is not a label map, is empty, or has a value without tissue.

    Example:
        >>> label = torch.zeros(1, 32, 32, 8)
        >>> label[0, 12:20, 14:18, 2:6] = 11
        >>> affine = torch.diag(torch.tensor([10.0, 10, 10, 1]))
        >>> simulate_ct(MetaTensor(label, affine=affine), seed=0).shape
        torch.Size([1, 32, 32, 8])
    """
    if not (psf_mm >= 0 and 0 <= noise_hu[0] <= noise_hu[1]):
        raise ValueError(
            "`psf_mm` must be at least 0 and `noise_hu` (least, greatest), got "
            f"{psf_mm} and {noise_hu}."
        )
    grid, turn = open_grid(label, tissues)
    rng = np.random.default_rng(seed)
    image = _render(grid, invent_body(grid, rng), rng, psf_mm=psf_mm, noise_hu=noise_hu)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
    image = np.ascontiguousarray(nib.apply_orientation(image, back))
    return MetaTensor(torch.from_numpy(image)[None], affine=label.affine)


def write_simulated(
    labels: Sequence[str | Path],
    folder: str | Path,
    *,
    organs: Mapping[int, int] | None = None,
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 5.0),
    size: tuple[int | None, int | None, int | None] = (128, 128, None),
    margin_mm: float = 40.0,
    tissues: Mapping[int, Tissue] = BTCV_TISSUES,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a simulated scan of every label map, in the layout of the MSD.

    As in the Medical Segmentation Decathlon, the files are ``imagesTr/simulated_000.nii.gz``,
    ``labelsTr/simulated_000.nii.gz``, … and, last, ``dataset.json``. ``simulated.json`` keeps
    what they were made from: called again with the same, this function keeps the cases that are
    there, so that an interrupted run goes on.

    Args:
        labels: NIfTI files; case ``i`` is drawn with the seed ``[seed, i]``.
        folder: where to write; made if need be.
        organs: which values are written as labels, and as what, such as ``{11: 1}``; all shape
            the image. None for all, as they are.
        spacing_mm: voxel size along W, H and D.
        size: voxels along W, H and D, with the labels in the middle. None keeps the whole of W or
            H, and of D the slices with labels and those up to a margin from them.
        margin_mm: greatest margin; each case has another.
        tissues: see `simulate_ct`.
        seed: decides on all cases.
        overwrite: replace another set, once this one is whole; other files stay.
        progress: tell how far it is.

    Returns:
        Path of ``dataset.json``.

    Raises:
        ValueError: an option is out of its range.
        DatasetError: a label map is not usable, see `simulate_ct`, or ``folder`` is not a folder
            or holds something other than these scans.
    """
    folder, names = Path(folder), [Path(path).name for path in labels]
    organs = {value: value for value in tissues} if organs is None else dict(organs)
    _check_organs(names, organs, tissues)
    _check_grid(spacing_mm, size, margin_mm)
    grid = {"spacing_mm": list(spacing_mm), "size": list(size), "margin_mm": margin_mm}
    recipe = _recipe(labels, organs, tissues, grid=grid, seed=seed)
    files = [f"simulated_{index:03d}.nii.gz" for index in range(len(names))]
    work = begin_folder(
        *(folder, recipe, files),
        name="simulated",
        overwrite=overwrite,
        what="set of scans",
        inputs=labels,
    )
    for index, name in enumerate(follow(files, "simulation", unit="case", shown=progress)):
        paths = work / "imagesTr" / name, work / "labelsTr" / name
        if all(path.is_file() for path in paths):
            continue
        draw_mm = np.random.default_rng([seed, index, 1]).uniform(0, margin_mm)
        label = _regrid(read_label_map(labels[index]), spacing_mm, size, draw_mm)
        _write_case(paths, label, organs, seed=[seed, index], tissues=tissues)
    return end_folder(
        *(work, folder, files, _names(organs, tissues)),
        name="Simulated CT of real anatomy",
        description=f"stipple_monai.simulation.scans, seed {seed}",
    )


def _recipe(
    labels: Sequence[str | Path],
    organs: Mapping[int, int],
    tissues: Mapping[int, Tissue],
    *,
    grid: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """What scans are made from, of JSON's types."""
    return {
        **{"version": _VERSION, "seed": seed},
        "tissues": {str(value): list(tissue) for value, tissue in tissues.items()},
        **grid,
        "organs": {str(value): target for value, target in organs.items()},
        "labels": [{"name": Path(p).name, "fingerprint": _fingerprint(Path(p))} for p in labels],
    }


def _check_organs(
    names: Sequence[str], organs: Mapping[int, int], tissues: Mapping[int, Tissue]
) -> None:
    known = set(organs) <= set(tissues) and all(0 < value < 256 for value in organs.values())
    if not names or not known:
        raise ValueError(
            "`labels` must name a file, and `organs` map values of `tissues` to 1 … 255, got "
            f"{len(names)} files and {organs}."
        )


def _check_grid(spacing_mm: Sequence[float], size: Sequence[int | None], margin_mm: float) -> None:
    sound = min(spacing_mm) >= 0.1 and max(spacing_mm) <= 100 and 0 <= margin_mm <= 1000
    if not sound or not all(16 <= (n or 16) <= 1024 for n in size):
        raise ValueError(
            "`spacing_mm` must be from 0.1 to 100, `size` from 16 to 1024 or None, and `margin_mm` "
            "from 0 to 1000, "
            f"got {spacing_mm}, {size} and {margin_mm}."
        )


def _write_case(
    paths: tuple[Path, Path],
    label: MetaTensor,
    organs: Mapping[int, int],
    *,
    seed: Seed,
    tissues: Mapping[int, Tissue],
) -> None:
    image = simulate_ct(label, seed=seed, tissues=tissues)
    affine = label.affine.numpy()
    write_nifti(paths[0], np.rint(image.numpy()[0]).astype(np.int16), affine)
    write_nifti(paths[1], _kept(label, organs), affine)


def _kept(label: MetaTensor, organs: Mapping[int, int]) -> NDArray[np.uint8]:
    """The values that are written as labels, ``(W, H, D)``."""
    table = np.zeros(FIRST, np.uint8)
    table[list(organs)] = list(organs.values())
    return table[label.numpy()[0].astype(np.int16)]


def _names(organs: Mapping[int, int], tissues: Mapping[int, Tissue]) -> dict[int, str]:
    """What each label is called: the tissues that it is made of."""
    wording = {
        v: " + ".join(tissues[k].name for k in organs if organs[k] == v)
        for v in sorted(set(organs.values()))
    }
    return {0: "background"} | wording


def _fingerprint(label: Path) -> str:
    if not label.is_file():
        raise DatasetError(f"`labels` must be files that exist, got {label}.")
    return fingerprint(label)


def _regrid(
    label: MetaTensor, spacing_mm: Sequence[float], size: Sequence[int | None], margin_mm: float
) -> MetaTensor:
    """Nearest labels on another grid along the same axes; ``size`` as in `write_simulated`."""
    label = Spacing(spacing_mm, mode="nearest", padding_mode="zeros")(label)
    if label.any():
        margin = [0, 0, 0 if size[2] else int(margin_mm / spacing_mm[2])]
        margin[:2] = [0 if n else 2**20 for n in size[:2]]
        label = CropForeground(margin=margin, allow_smaller=True)(label)
    return ResizeWithPadOrCrop([n or -1 for n in size])(label)
