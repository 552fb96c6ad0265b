"""Trainers of the methods that STIPPLE is compared with: mean teacher, adversarial.

Words: as in each method's paper. Imports from the packages below it.
"""

from stipple_monai.engines.adversarial import (
    AdversarialSegmentationTrainer,
    Discriminator,
)
from stipple_monai.engines.mean_teacher import (
    MeanTeacherTrainer,
)

__all__ = [
    "AdversarialSegmentationTrainer",
    "Discriminator",
    "MeanTeacherTrainer",
]
