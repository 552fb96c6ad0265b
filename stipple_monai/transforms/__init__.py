"""MONAI transforms around the spatial prior, thin over the functions that do the work.

A training pipeline records positions while it still sees the whole label, shakes them, crops and
augments as it likes, and places the priors last; the affine of the crop then tells where it lies.
Nothing dense is kept with a scan, only ``K × 3`` numbers::

    OrganPositiond(keys="label", priors=priors)              # deterministic, cached
    RandCropByLabelClassesd(...), RandAffined(...)           # whatever there is
    PriorAugmentd(keys="organ_position", ...)                # random
    PriorAlignd(keys="image", priors=priors)                 # on the crop's grid
    ConcatItemsd(keys=["image", "prior"], name="image"), DeleteItemsd(keys="prior")

With ``leave_one_out=True`` in the first and the last, a scan that the priors were made of sees the
priors of the *other* scans; ``own_cases``, ``K × N`` bytes, says what is left out.

``organ_position`` is ``(K, 3)``, RAS mm, one row per prior; a row of NaN is an unknown position,
for which the prior is neutral: it prefers neither the organ nor the background.

Words: the *array* form takes volumes, the *dictionary* form (``…d``) takes keys.
"""

from stipple_monai.transforms.array import (
    OrganPosition,
    OwnCases,
    PriorAlign,
    PriorAugment,
    SelectPseudoLabels,
)
from stipple_monai.transforms.checks import (
    CheckPairD,
    CheckPaird,
    CheckPairDict,
    CheckScanD,
    CheckScand,
    CheckScanDict,
)
from stipple_monai.transforms.decision import (
    DecideLabel,
    DecideLabelD,
    DecideLabeld,
    DecideLabelDict,
)
from stipple_monai.transforms.dictionary import (
    CASES_KEY,
    POSITION_KEY,
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
)
from stipple_monai.transforms.reading import (
    LoadScanD,
    LoadScand,
    LoadScanDict,
    ScanReader,
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
    "CASES_KEY",
    "POSITION_KEY",
    "CheckPairD",
    "CheckPairDict",
    "CheckPaird",
    "CheckScanD",
    "CheckScanDict",
    "CheckScand",
    "DecideLabel",
    "DecideLabelD",
    "DecideLabelDict",
    "DecideLabeld",
    "LoadScanD",
    "LoadScanDict",
    "LoadScand",
    "OrganPosition",
    "OrganPositionD",
    "OrganPositionDict",
    "OrganPositiond",
    "OwnCases",
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
    "ScanReader",
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
