"""Trainers of the methods that STIPPLE is compared with, all of which see unlabelled slices.

Words: as in each method's paper.
"""

from stipple_monai.engines.adversarial import (
    AdversarialSegmentationTrainer,
    Discriminator,
)
from stipple_monai.engines.copy_paste import (
    CopyPasteTrainer,
)
from stipple_monai.engines.cross_pseudo import (
    CrossPseudoTrainer,
)
from stipple_monai.engines.mean_teacher import (
    MeanTeacherTrainer,
)
from stipple_monai.engines.unimatch import (
    UniMatchTrainer,
)

__all__ = [
    "AdversarialSegmentationTrainer",
    "CopyPasteTrainer",
    "CrossPseudoTrainer",
    "Discriminator",
    "MeanTeacherTrainer",
    "UniMatchTrainer",
]
