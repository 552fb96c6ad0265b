"""Label values: whole numbers, or nearly so."""

import numpy as np
import pytest
import torch

from stipple_monai.errors import DatasetError
from stipple_monai.label_values import NEARLY, whole_labels, whole_tensor


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_within_a_thousandth_are_rounded(dtype):
    near = np.array([0, 0.9999, 1.0009, 255.0004], dtype)
    assert whole_labels(near, "a").tolist() == [0, 1, 1, 255]
    assert NEARLY == 1e-3


def test_whole_numbers_stay_what_they_are():
    array = np.arange(4, dtype=np.uint16)
    assert whole_labels(array, "a") is array


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.9985, "1.9985"), (0.0012345678912345, "0.0012345678912345"), (np.inf, "inf")],
)
def test_others_are_refused_in_full(value, shown):
    with pytest.raises(DatasetError, match=f"got {shown} and 1 other such voxels in a.nii"):
        whole_labels(np.array([1, value, value]), "a.nii")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_rounded_likewise(dtype):
    whole = torch.arange(4).to(dtype)
    assert whole_tensor(whole, "a") is whole
    # bfloat16 has nothing so near to a whole number other than 0
    near = torch.tensor([0.0005, 1, 2], dtype=dtype)
    assert whole_tensor(near, "a").tolist() == [0, 1, 2]
    assert whole_tensor(near, "a").dtype == dtype
    with pytest.raises(DatasetError, match=r"got 1\.5 and 0 other such voxels in a\.nii"):
        whole_tensor(torch.tensor([1, 1.5], dtype=dtype), "a.nii")
