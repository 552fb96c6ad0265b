"""``check --priors atlas``: the package's own priors, by the names of organs."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from stipple_monai import atlas
from stipple_monai.__main__ import main

NAMES = {2: "liver", 3: "kidney_right", 5: "kidney_left", 9: "spleen"}


def datalist(folder, *, names, mirrored=False):
    """A scan whose organs are the atlas's own, above a probability of a half."""
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = -200, -160, -160
    grid = MetaTensor(torch.zeros(1, 68, 54, 54), affine=torch.from_numpy(affine))
    label = np.zeros(grid.shape[1:], np.uint8)
    for prior in atlas(organs=NAMES):
        label[prior.place(prior.offset_mm, grid)[0].numpy() > 0.5] = prior.organ
    label = label[::-1] if mirrored else label
    nib.save(nib.Nifti1Image(label, affine), folder / "label.nii.gz")
    nib.save(nib.Nifti1Image(label.astype(np.float32), affine), folder / "image.nii.gz")
    items = [{"image": "image.nii.gz", "label": "label.nii.gz"}]
    listed = {"labels": {str(k): name for k, name in names.items()}, "training": items}
    (folder / "dataset.json").write_text(json.dumps(listed))
    return str(folder / "dataset.json")


@pytest.mark.slow
def test_a_label_that_is_right(tmp_path, capsys):
    assert main(["check", datalist(tmp_path, names=NAMES), "--priors", "atlas"]) == 0
    assert "problem" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_mirrored_one_and_organs_that_the_atlas_has_not(tmp_path, capsys):
    path = datalist(tmp_path, names={**NAMES, 1: "colon"}, mirrored=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["check", path, "--priors", "atlas"]) == 1
    assert (
        "problem: label: the label fits the priors better with the axes" in capsys.readouterr().out
    )


def test_names_that_the_atlas_does_not_know(tmp_path, capsys):
    path = datalist(tmp_path, names={2: "heart"})
    assert main(["check", path, "--priors", "atlas"]) == 1
    said = capsys.readouterr().err
    assert "must name organs of the atlas, such as 'liver', got heart" in said
