"""MONAI transforms around the spatial prior, thin over the functions that do the work.

A training pipeline records positions while it still sees the whole label, shakes them, crops and
augments as it likes, and places the priors last; the affine of the crop then tells where it lies.
Nothing dense is kept with a scan, only ``K × 3`` numbers::

    OrganPositiond(keys="label", priors=priors)              # deterministic, cached
    RandCropByLabelClassesd(...), RandAffined(...)           # whatever there is
    PriorAugmentd(keys="organ_position", ...)                # random
    PriorAlignd(keys="image", priors=priors)                 # on the crop's grid
    ConcatItemsd(keys=["image", "prior"], name="image"), DeleteItemsd(keys="prior")

``organ_position`` is ``(K, 3)``, RAS mm, one row per prior; a row of NaN is an unknown position,
for which the prior is neutral: it prefers neither the organ nor the background.
"""

from stipple_monai.transforms.array import (
    OrganPosition,
    PriorAlign,
    PriorAugment,
    SelectPseudoLabels,
)
from stipple_monai.transforms.dictionary import (
    POSITION_KEY,
    CheckPairD,
    CheckPaird,
    CheckPairDict,
    CheckScanD,
    CheckScand,
    CheckScanDict,
    LoadScanD,
    LoadScand,
    LoadScanDict,
    OrganPositionD,
    OrganPositiond,
    OrganPositionDict,
    PriorAlignD,
    PriorAlignd,
    PriorAlignDict,
    PriorAugmentD,
    PriorAugmentd,
    PriorAugmentDict,
    SelectPseudoLabelsD,
    SelectPseudoLabelsd,
    SelectPseudoLabelsDict,
    SpacingScanD,
    SpacingScand,
    SpacingScanDict,
)
from stipple_monai.transforms.slices import (
    RandSliceAffineD,
    RandSliceAffined,
    RandSliceAffineDict,
    SliceMajorD,
    SliceMajord,
    SliceMajorDict,
)

__all__ = [
    "POSITION_KEY",
    "CheckPairD",
    "CheckPairDict",
    "CheckPaird",
    "CheckScanD",
    "CheckScanDict",
    "CheckScand",
    "LoadScanD",
    "LoadScanDict",
    "LoadScand",
    "OrganPosition",
    "OrganPositionD",
    "OrganPositionDict",
    "OrganPositiond",
    "PriorAlign",
    "PriorAlignD",
    "PriorAlignDict",
    "PriorAlignd",
    "PriorAugment",
    "PriorAugmentD",
    "PriorAugmentDict",
    "PriorAugmentd",
    "RandSliceAffineD",
    "RandSliceAffineDict",
    "RandSliceAffined",
    "SelectPseudoLabels",
    "SelectPseudoLabelsD",
    "SelectPseudoLabelsDict",
    "SelectPseudoLabelsd",
    "SliceMajorD",
    "SliceMajorDict",
    "SliceMajord",
    "SpacingScanD",
    "SpacingScanDict",
    "SpacingScand",
]
