"""How far a scan reaches, whatever part of it is at hand."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    Spacingd,
)

from stipple_monai.spatial import Extent, scan_extent, top_middle

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 3, -5], [0, 1.5, 0, 7], [0, 0, 0, 1]])
SHAPE = (20, 16, 12)
FAR = np.array([[-2.0, 0, 0, 10], [0, 0, 3, -5], [0, 1.5, 0, 1000], [0, 0, 0, 1]])


@pytest.fixture
def scan(tmp_path):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[5:9, 4:12, 3:8] = 1
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_the_top_is_the_same_whatever_the_axes():
    affine = np.array([[-4.0, 0, 0, 30], [0, 4, 0, -7], [0, 0, 5, 100], [0, 0, 0, 1]])
    point = top_middle(Extent(affine, (24, 20, 60)))
    assert point.tolist() == [30 - 4 * 11.5, -7 + 4 * 9.5, 100 + 5 * 59]
    flipped = affine.copy()
    flipped[:3, 2], flipped[2, 3] = -affine[:3, 2], 100 + 5 * 59
    assert top_middle(Extent(flipped, (24, 20, 60))).tolist() == point.tolist()


@pytest.mark.parametrize("reader", ["NibabelReader", "ITKReader"])
def test_transforms_leave_the_extent_of_the_file(scan, reader):
    load = Compose(
        [
            LoadImaged("image", reader=reader, ensure_channel_first=True),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (2, 2, 2)),
            CropForegroundd("image", "image"),
            ResizeWithPadOrCropd("image", (24, 24, 40)),
        ]
    )
    extent = scan_extent(load({"image": scan})["image"])
    assert extent.shape == SHAPE
    np.testing.assert_allclose(extent.affine, AFFINE, atol=1e-6)


def test_a_reader_that_turns_the_axes_notes_them_for_the_shape_alone(scan):
    load = LoadImaged("image", reader="NibabelReader", as_closest_canonical=True)
    image = load({"image": scan})["image"]
    assert scan_extent(image).shape == tuple(image.shape) == (20, 12, 16)
    np.testing.assert_allclose(scan_extent(image).affine, image.affine)


@pytest.mark.parametrize(
    "notes",
    [
        {},
        {"original_affine": AFFINE},
        {"original_affine": AFFINE, "spatial_shape": (20, 16)},
        {"original_affine": AFFINE[:3], "spatial_shape": SHAPE},
        {"original_affine": FAR, "spatial_shape": SHAPE},
    ],
    ids=["none", "no shape", "a slice", "no affine", "elsewhere"],
)
def test_without_notes_that_fit_an_image_has_its_own_extent(notes):
    image = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.eye(4), meta=notes)
    extent = scan_extent(image)
    assert extent.shape == (4, 5, 6)
    np.testing.assert_array_equal(extent.affine, np.eye(4))
