"""Volumes of organs, and what folds are to be alike in."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from stipple_monai.data.strata import fold_strata, organ_volumes


def test_a_volume_is_counted_voxel_by_voxel():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (5, 6, 7))
    affine = np.diag([0.8, -1.5, 5.0, 1.0])
    expected = [sum(0.8 * 1.5 * 5 for v in values.flat if v == k) / 1000 for k in (1, 3, 9)]
    for dtype in (torch.uint8, torch.float32):
        label = MetaTensor(torch.from_numpy(values)[None].to(dtype), affine=affine)
        assert organ_volumes(label, [1, 3, 9]) == pytest.approx(expected)


def test_a_turned_grid_has_the_volume_of_its_voxels():
    turned = np.diag([2.0, 3.0, 5.0, 1.0])[:, [1, 2, 0, 3]]
    turned[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ turned[:3, :3]
    label = MetaTensor(torch.ones(1, 10, 10, 10), affine=turned)
    assert organ_volumes(label, [1]) == pytest.approx([30.0])


def test_volumes_of_a_real_label_agree_with_its_header(tmp_path):
    values = np.zeros((6, 6, 6), np.uint8)
    values[1:4, 2:5, 3] = 1
    image = nib.Nifti1Image(values, np.diag([0.7, 0.7, 2.5, 1]))
    nib.save(image, tmp_path / "l.nii.gz")
    read = nib.load(tmp_path / "l.nii.gz")
    label = MetaTensor(torch.from_numpy(values)[None], affine=read.affine)
    zooms = np.prod(read.header.get_zooms())
    assert organ_volumes(label, [1]) == pytest.approx([9 * zooms / 1000])


def test_strata_are_a_key_or_the_volume_of_an_organ(tmp_path):
    items = []
    for number, count in enumerate((3, 5)):
        values = np.zeros((4, 4, 4, 1), np.uint8)
        values.flat[:count] = 2
        label = tmp_path / f"{number}_seg.nii.gz"
        nib.save(nib.Nifti1Image(values, np.diag([10.0, 10.0, 10.0, 1.0])), label)
        items.append({"image": f"{number}.nii.gz", "label": str(label), "volume": number})
    items.append({"image": "bare.nii.gz", "volume": 9})
    assert fold_strata(items, "volume:2") == {"0.nii.gz": 3.0, "1.nii.gz": 5.0}
    assert fold_strata(items, "volume") == {"0.nii.gz": 0, "1.nii.gz": 1}
    assert fold_strata(items, "age") == {}


@pytest.mark.parametrize("by", ["volume:x", "volume:0", "volume:256"])
def test_a_volume_must_be_that_of_a_label(by):
    with pytest.raises(ValueError, match=f"labels from 1 to 255, got {by}"):
        fold_strata([], by)
