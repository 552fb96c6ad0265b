"""Which of the label maps that a prior was made of a map is, by what it holds.

A scan's label is known again by its organ: laid upon each other, two masks of one patient overlap
almost wholly, also after resampling and reorientation, and those of two patients do not. A name
alone would not do (data are moved, and every patient may have a ``label.nii.gz``), but where files
have the same name, and one that tells patients apart, a smaller overlap is enough: a thin organ
loses much on a coarse grid.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stipple_monai.nifti import voxel_ml
from stipple_monai.priors.cases import Case, Cases
from stipple_monai.priors.kernel import soft_mask
from stipple_monai.priors.organ import (
    UNNAMED,
    Label,
    center_and_reach,
    open_label,
    organ_masks,
)
from stipple_monai.priors.prior import SpatialPrior

SAME = 0.9
"""Overlap from which on two masks are one patient's."""
SAME_OF_A_NAME = 0.6
"""Overlap from which on a mask is that of the case whose file has the same name of its own."""
_AS_LIKE = 0.02
_GENERIC = re.compile(
    r"(labels?|segmentations?|segs?|masks?|truth|gt|manual|organs?|images?|img|scans?|volume|ct|mr)+"
)
"""What every patient's file may be called."""
_VOLUME_RATIO = 1.3


def own_cases(label: Label, prior: SpatialPrior) -> list[int]:
    """Numbers of the cases of a prior that are this label map.

    Args:
        label: the whole label map, or a file.
        prior: with its cases.

    Returns:
        Ascending; none where the prior was made without this map, or the map lacks the organ;
        several where it was given twice.

    Raises:
        PriorError: the prior was loaded without its cases.
        DatasetError: the map cannot be read.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> labels = [MetaTensor(torch.zeros(1, 20, 20, 20), affine=torch.eye(4)) for _ in "ab"]
        >>> labels[0][0, 3:12, 4:9, 5:14] = 1
        >>> labels[1][0, 6:14, 2:12, 2:14] = 1
        >>> own_cases(labels[1], SpatialPrior.estimate(labels))
        [1]
    """
    cases = prior.known_cases()
    label_map = open_label(label)
    (crop,) = organ_masks(label_map, [prior.organ])
    if crop is None:
        return []
    overlaps = [overlap(*crop, case, cases) for case in cases]
    # Of a scan that was given twice both are as like; another patient's is less so.
    limit = max(SAME, max(overlaps) - _AS_LIKE)
    own = [i for i, each in enumerate(overlaps) if each >= limit]
    if not own and label_map.name != UNNAMED:
        name = Path(label_map.name).name
        named = [i for i, case in enumerate(cases) if case.name == name]
        if len(named) == 1 and _tells_patients_apart(name, cases):
            own = [i for i in named if overlaps[i] >= SAME_OF_A_NAME]
    return own


def _tells_patients_apart(name: str, cases: Cases) -> bool:
    """Whether a name that one case alone has is this patient's, and not each one's.

    Of several cases a name without number, such as ``liver.nii.gz``, is told to be one patient's by
    the others, which are called otherwise; of a single case it is not.
    """
    plain = re.sub(r"\.nii(\.gz)?$|[^a-z0-9]", "", name.casefold())
    if any(letter.isdigit() for letter in plain):
        return True
    return len(cases) > 1 and not _GENERIC.fullmatch(plain)


def overlap(
    mask: NDArray[np.bool_], affine: NDArray[np.float64], case: Case, cases: Cases
) -> float:
    """Dice of an organ and a case, their centres of mass on one point.

    Args:
        mask: the organ's voxels, cropped to its box.
        affine: of ``mask``.
        case: one of ``cases``.
        cases: whose grid it is.

    Returns:
        In [0, 1]; 0 without a closer look where the volumes differ by more than 30 %.
    """
    volume_ml = int(mask.sum()) * voxel_ml(affine)
    if not 1 / _VOLUME_RATIO < volume_ml / case.volume_ml < _VOLUME_RATIO:
        return 0.0
    spacing_mm, values = np.array(cases.spacing_mm), case.values()
    middle_mm, _ = center_and_reach(mask, affine, "mass")
    found = soft_mask(
        mask,
        affine,
        first_mm=middle_mm - np.array(ndimage.center_of_mass(values)) * spacing_mm,
        shape=np.array(case.shape),
        spacing_mm=spacing_mm,
    )
    shared = float(np.minimum(found, values).sum()) * float(np.prod(spacing_mm)) / 1000
    return min(1.0, 2 * shared / (volume_ml + case.volume_ml))
