"""A bright box in a dark, noisy scan, and its label: the smallest pair that ingest believes."""

import nibabel as nib
import numpy as np

SHAPE = (24, 20, 8)
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


def blob():
    """The label, 1 in the box."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[6:15, 4:12, 2:6] = 1
    return mask


def body(seed=0):
    """The scan, 100 HU in the box and −100 around."""
    noise = np.random.default_rng(seed).integers(-8, 8, SHAPE)
    return (np.where(blob(), 100, -100) + noise).astype(np.int16)


def save(path, array, affine=AFFINE):
    """Write a NIfTI file, and what folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path
