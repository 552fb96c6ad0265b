"""A CIFTI-2 file: its name ends in .nii, its content is a table of no grid."""

import nibabel as nib
import numpy as np


def write_cifti(path):
    """Write a series over time of three parts of the brain."""
    time = nib.cifti2.SeriesAxis(0, 1, 4)
    parts = nib.cifti2.ScalarAxis(["a", "b", "c"])
    nib.save(nib.Cifti2Image(np.zeros((4, 3), np.float32), header=(time, parts)), path)
