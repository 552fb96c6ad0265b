"""Scans that a network learns to segment within seconds, for tests that need one that does."""

import nibabel as nib
import numpy as np

KNOBS = {
    "channels": [8, 16],
    "slice_size": [32, 32],
    "slices_per_scan": 12,
    "batch_size": 6,
    "max_epochs": 2,
    "learning_rate": 0.02,
    "num_workers": 0,
    "progress": False,
    "minimum_confidence": 0,
    "device": "$torch.device('cpu')",
    # what so small a network says is too little for the constants of the fusion
    "calibration": "equation_2",
    "decision": "argmax",
    "prior_dropout": 0.25,
    "rotation_degrees": 6,
    "zoom": 0.1,
    "vary_intensities": False,
}
"""Of the bundle's configs, to train on such scans."""


def bright_scan(root, number):
    """Write a bright organ, and something as bright beside it, in a noisy box; their paths."""
    rng = np.random.default_rng(number)
    grid = np.indices((32, 32, 10)).reshape(3, -1).T
    centre = np.array([14, 17, 5]) + rng.uniform(-1.5, 1.5, 3)

    def blob(at, radii):
        return ((((grid - at) / radii) ** 2).sum(1) <= 1).reshape(32, 32, 10)

    label = blob(centre, (6, 5, 3))
    image = rng.normal(-80, 20, label.shape)
    image[label | blob(np.add(centre, (11, -10, 0)), (3, 3, 2))] += 150
    affine = np.diag([2.0, 2.0, 6.0, 1.0])
    paths = {key: str(root / f"scan_{number}_{key}.nii.gz") for key in ("image", "label")}
    nib.save(nib.Nifti1Image(image.astype("float32"), affine), paths["image"])
    nib.save(nib.Nifti1Image(label.astype("uint8"), affine), paths["label"])
    return paths
