"""Whether a scan and its label map are what they must be, with the file's name in every error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

from stipple_monai.errors import DatasetError
from stipple_monai.label_values import IGNORED, whole_tensor
from stipple_monai.nifti import UNREADABLE, corner_distance_mm, with_one_geometry


def read_volume(path: str | Path) -> MetaTensor:
    """Read a 3D NIfTI file.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file. Further axes of one entry, as of a series of one
            volume, are dropped.

    Returns:
        Volume ``(1, W, H, D)``, float32, with its affine; what a person should know of its header
        is under ``notes`` of its metadata.

    Raises:
        DatasetError: if the file is missing, no NIfTI, truncated, not 3D or not in mm.
    """
    if not Path(path).is_file():
        raise DatasetError(f"`path` must be a NIfTI file, got {path}, which does not exist.")
    unreadable = (
        f"`path` must be a whole NIfTI file, got {path}, which cannot be read. It may be of "
        "another format, or its copy may have been cut short."
    )
    # MONAI's LoadImage would try every other reader, and make channels of a fourth dimension
    try:
        file = nib.load(path)
        if not isinstance(file, nib.Nifti1Image):
            raise DatasetError(unreadable)
        values = torch.from_numpy(file.get_fdata(dtype=np.float32))
    except UNREADABLE as error:
        raise DatasetError(unreadable) from error
    if values.ndim < 3 or any(length != 1 for length in values.shape[3:]):
        raise DatasetError(
            f"`path` must be a 3D volume, got shape {tuple(values.shape)} in {path}. "
            "Of a series over time, give one volume."
        )
    values = values.reshape(values.shape[:3])
    settled, notes = with_one_geometry(file, str(path))
    meta = {"filename_or_obj": str(path), "space": SpaceKeys.RAS, "notes": notes}
    return MetaTensor(values[None], affine=torch.as_tensor(settled.affine), meta=meta)


def read_label_map(path: str | Path) -> MetaTensor:
    """Read a 3D NIfTI file of whole numbers, see :func:`read_volume`.

    Raises:
        DatasetError: as there; or a value is farther than 1e-3 from a whole number.
    """
    return rounded_label(read_volume(path))


def check_scan(image: MetaTensor, *, channels: int = 1) -> None:
    """Raise unless a scan is a 3D volume of finite intensities.

    Args:
        image: scan ``(C, W, H, D)``, as MONAI loads it with ``ensure_channel_first``.
        channels: channels of the image, C. MONAI reads a 4D scan as one channel a time point.

    Raises:
        DatasetError: it has other axes or channels, or an intensity that is not finite.

    Example:
        >>> check_scan(MetaTensor(torch.zeros(1, 4, 4, 2)))
    """
    _require_channels(image, "image", channels)
    finite = torch.isfinite(image.as_tensor())
    if not finite.all():
        raise DatasetError(
            f"`image` must be finite, got {int((~finite).sum())} voxels that are not in "
            f"{_name(image)}."
        )


def check_pair(
    image: MetaTensor,
    label: MetaTensor,
    *,
    classes: int,
    values: Sequence[int] | None = None,
    channels: int = 1,
    ignore: int | None = IGNORED,
    tolerance_mm: float = 0.1,
) -> None:
    """Raise unless label and image lie on one grid and hold what they may hold.

    Args:
        image: scan ``(C, W, H, D)``, as MONAI loads it with ``ensure_channel_first``.
        label: label map ``(1, W, H, D)``.
        classes: number of classes with the background.
        values: what the label may hold besides 0; 1 to ``classes - 1`` if None.
        channels: channels of the image, C. MONAI reads a 4D scan as one channel a time point.
        ignore: a further value that may occur; None for none.
        tolerance_mm: how far apart the corner voxels of the two may be. Headers that were written
            by different tools agree to some hundredths of a millimetre.

    Raises:
        ValueError: if ``classes`` is less than 2, or ``ignore`` is one of the ``values``.
        DatasetError: if a volume is not 3D or has other channels, if shapes or affines differ,
            if an intensity is not finite, or if the label has a value that is no class.

    Example:
        >>> image = MetaTensor(torch.zeros(1, 4, 4, 2))
        >>> check_pair(image, MetaTensor(torch.ones(1, 4, 4, 2)), classes=2)
    """
    if classes < 2:
        raise ValueError(f"`classes` must be at least 2, background and an organ, got {classes}.")
    if values is not None and ignore in values:
        raise ValueError(
            f"`values` must not have {ignore}, which is ignored, got {list(values)}: give the "
            f"organ another value, as `ingest --map {ignore}=1` does."
        )
    check_scan(image, channels=channels)
    _require_channels(label, "label", 1)
    if image.shape[1:] != label.shape[1:]:
        raise DatasetError(
            f"`label` must have the image's shape {tuple(image.shape[1:])}, got "
            f"{tuple(label.shape[1:])} in {_name(label)} for {_name(image)}."
        )
    distance_mm = corner_distance_mm(
        image.affine.cpu().double().numpy(),
        label.affine.cpu().double().numpy(),
        tuple(image.shape[1:]),
    )
    # a NaN in an affine fails this too
    if not distance_mm <= tolerance_mm:
        raise DatasetError(
            f"`label` must have the image's affine to {tolerance_mm} mm, got corners that are "
            f"{distance_mm:.4g} mm apart in {_name(label)} for {_name(image)}. "
            "Resample one onto the other."
        )
    _require_values(label, range(1, classes) if values is None else values, ignore)


def _require_values(label: MetaTensor, values: Sequence[int], ignore: int | None) -> None:
    allowed = [0, *values, *([] if ignore is None else [ignore])]
    found = _comparable(label.as_tensor(), highest=max(allowed))
    # a tenth of the time that torch.unique takes to sort a whole volume
    right = torch.isin(found, torch.tensor(allowed, dtype=found.dtype, device=found.device))
    if not right.all() and found.is_floating_point():
        found = rounded_label(label).as_tensor()
        right = torch.isin(found, torch.tensor(allowed, dtype=found.dtype, device=found.device))
    if not right.all():
        also = "" if ignore is None else f" or {ignore}"
        wrong = found[~right].unique()[:5].tolist()
        plain = list(values) == list(range(1, len(values) + 1))
        told = f"0 to {len(values)}" if plain else ", ".join(map(str, [0, *values]))
        raise DatasetError(
            f"`label` must have values {told}{also}, got "
            f"{', '.join(f'{value:g}' for value in wrong)} in {_name(label)}: name the values of "
            "organs as `organs`, and those of others as `background_values`."
        )
    if ignore is not None and bool((found == ignore).all()):
        raise DatasetError(
            f"`label` must have voxels that are not to be ignored, got {ignore} in all of "
            f"{_name(label)}: leave the scan unlabelled."
        )


def _comparable(values: torch.Tensor, *, highest: int) -> torch.Tensor:
    """Values as they are, or as integers among which torch can look for so high a one."""
    if values.is_floating_point():
        return values
    known = values.dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
    return values if known and highest <= torch.iinfo(values.dtype).max else values.long()


def rounded_label(label: MetaTensor) -> MetaTensor:
    """A label map with values that are whole but for rounding made whole; else itself.

    Raises:
        DatasetError: a value is farther than 1e-3 from a whole number.
    """
    values = label.as_tensor()
    whole = whole_tensor(values, _name(label))
    if whole is values:
        return label
    rounded = label.clone()
    rounded.copy_(whole)
    return rounded


def _name(volume: Any) -> str:
    meta = getattr(volume, "meta", {})
    return str(meta.get("filename_or_obj", "a volume without file name"))


def _require_channels(volume: MetaTensor, argument: str, channels: int) -> None:
    if not isinstance(volume, MetaTensor):
        raise DatasetError(
            f"`{argument}` must be a MetaTensor, whose affine says where it lies, got "
            f"{type(volume).__name__}: keep MONAI's metadata."
        )
    if volume.ndim != 4 or volume.shape[0] != channels:
        raise DatasetError(
            f"`{argument}` must be a 3D volume of shape ({channels}, W, H, D), got shape "
            f"{tuple(volume.shape)} in {_name(volume)}. Of a series over time give one volume, "
            "and classes as values, not one-hot."
        )
