"""Unlabelled slices of a batch."""

import pytest
import torch

from stipple_monai.engines.unlabelled import unlabelled_slices


def test_a_slice_with_one_known_voxel_is_labelled():
    label = torch.full((3, 1, 4, 5), 255.0)
    label[1, 0, 3, 2] = 0
    assert unlabelled_slices(label).tolist() == [True, False, True]


def test_none_is_refused():
    with pytest.raises(ValueError, match="labelled 7 throughout, got none: add the unlabelled"):
        unlabelled_slices(torch.full((3, 1, 4, 5), 255), ignore_index=7)
