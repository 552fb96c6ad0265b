"""What folds are to be alike in: a key of the items, or how large an organ is."""

from collections.abc import Iterable

from monai.data import MetaTensor

from stipple_monai.data.checks import read_label_map
from stipple_monai.data.datalist import Item
from stipple_monai.nifti import voxel_ml


def organ_volumes(label: MetaTensor, organs: Iterable[int]) -> list[float]:
    """Volume of each organ in ml: its voxels times the volume of a voxel.

    Args:
        label: label map ``(1, W, H, D)`` whose affine is in mm; it may be oblique or sheared.
        organs: label values.

    Example:
        >>> import torch
        >>> affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))
        >>> label = MetaTensor(torch.ones(1, 10, 10, 5), affine=affine)
        >>> organ_volumes(label, [1, 2])
        [1.0, 0.0]
    """
    size_ml = voxel_ml(label.affine.double().cpu().numpy())
    values = label.as_tensor()
    return [int((values == organ).sum()) * size_ml for organ in organs]


def fold_strata(items: Iterable[Item], by: str) -> dict[str, float | str]:
    """The ``strata`` of :func:`assign_folds`, by image.

    Args:
        items: of a datalist; those without label are left out, as folds leave them out.
        by: a key of the items, or ``volume:LABEL``, the volume in ml of that label.

    Raises:
        ValueError: the label is none.

    Example:
        >>> fold_strata([{"image": "a.nii.gz", "label": "a_seg.nii.gz", "age": 60}], "age")
        {'a.nii.gz': 60}
    """
    labelled = [item for item in items if "label" in item]
    kind, _, value = by.partition(":")
    if kind != "volume" or not value:
        return {str(item["image"]): item[by] for item in labelled if by in item}
    if not value.isdecimal() or not 0 < int(value) < 256:
        raise ValueError(f"`by` must be a key or volume:LABEL, labels from 1 to 255, got {by}.")
    return {
        str(item["image"]): organ_volumes(read_label_map(item["label"]), [int(value)])[0]
        for item in labelled
    }
