"""A model that calls every voxel above 0 HU the organ, for tests of what surrounds a model."""

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from stipple_monai import SpatialPrior
from stipple_monai.bundle import BUNDLE, configs_of
from stipple_monai.bundle import write_model as write_known

OVERLAY = """\
backbone: {_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 2, kernel_size: 1}
mean_hu: 0
slice_size: [32, 32]
num_workers: 0
progress: false
minimum_confidence: 0
device: $torch.device('cpu')
"""


def write_model(folder):
    """Make a folder of weights and prior that knows its overlay.

    Returns:
        Arguments of `segment`: the folder, and the overlay that it knows, which may be repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # far beyond what a prior can outvote
    weight = torch.tensor([-200.0, 200.0])[:, None, None, None]
    state = {"network.weight": weight, "network.bias": torch.zeros(2)}
    torch.save(state, folder / "model.pt")
    label = torch.zeros(1, 20, 20, 12)
    label[:, 6:14, 5:13, 3:9] = 1
    affine = torch.diag(torch.tensor([3.0, 3.0, 5.0, 1.0]))
    SpatialPrior.estimate(MetaTensor(label, affine=affine)).save(folder / "prior_1.nii.gz")
    overlay = folder / "threshold.yaml"
    overlay.write_text(OVERLAY, encoding="utf-8")
    write_model_file(folder, [overlay])
    return {"models": folder, "overlays": [overlay]}


def write_model_file(folder, overlays=(), **knobs):
    """Tell a folder of weights of one organ what it was made with."""
    write_known(folder, configs_of(BUNDLE), organs={1: "organ 1"}, overlays=overlays, knobs=knobs)


def write_scan(path, mask, affine, *, dtype=np.int16, codes=(1, 1), units=("mm", "unknown")):
    """Write a scan whose organ has 100 HU and all else −100; codes of qform and sform."""
    make = nib.Nifti2Image if dtype == np.float64 else nib.Nifti1Image
    image = make(np.where(mask, 100, -100).astype(dtype), affine)
    image.set_qform(affine, code=codes[0], strip_shears=True)
    image.set_sform(affine, code=codes[1])
    image.header.set_xyzt_units(*units)
    nib.save(image, path)
    return path


def same_grid(result, scan):
    """Whether two NIfTI files say the same of their grid, bit by bit."""
    one, other = nib.load(result).header, nib.load(scan).header
    fields = "xyzt_units qform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z"
    names = [*fields.split(), "sform_code", "srow_x", "srow_y", "srow_z"]
    return (
        type(one) is type(other)
        and one.get_data_shape()[:3] == other.get_data_shape()[:3]
        and np.array_equal(one["pixdim"][:4], other["pixdim"][:4])
        and all(one[name].tobytes() == other[name].tobytes() for name in names)
    )
