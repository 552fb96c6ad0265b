"""Bins and error against counting voxel by voxel."""

import numpy as np
import pytest
import torch

from stipple_monai.calibration import reliability
from stipple_monai.errors import DatasetError


def test_equals_counting():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, 6, 5, 4, generator=generator)
    p /= p.sum(0)
    label = torch.randint(0, 3, (1, 6, 5, 4), generator=generator)
    label[0, 0] = 255
    got = reliability(p, label, bins=4, minimum=0.1)
    for k in range(2):
        bins = [[] for _ in range(4)]
        for value, true in zip(p[k + 1].flatten().tolist(), label.flatten().tolist(), strict=True):
            if true != 255 and value >= 0.1:
                bins[min(int(value * 4), 3)].append((value, true == k + 1))
        total = sum(map(len, bins))
        error = 0.0
        for i, found in enumerate(bins):
            assert got.voxels[k, i] == len(found)
            if not found:
                assert got.confidence[k, i].isnan()
                assert got.frequency[k, i].isnan()
                continue
            confidence, frequency = np.mean(found, axis=0)
            assert float(got.confidence[k, i]) == pytest.approx(confidence)
            assert float(got.frequency[k, i]) == pytest.approx(frequency)
            error += len(found) / total * abs(confidence - frequency)
        assert float(got.error[k]) == pytest.approx(error)


def test_calibrated_probabilities_have_no_error():
    p = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(0))
    label = torch.bernoulli(p, generator=torch.Generator().manual_seed(1))
    assert float(reliability(p, label).error) < 0.01
    assert float(reliability(p**2, label).error) > 0.1


def test_nothing_that_counts():
    assert reliability(torch.zeros(2, 3), torch.zeros(1, 3)).error.isnan().all()


def test_errors():
    p, label = torch.zeros(2, 3), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="`bins` must be at least 1, got 0"):
        reliability(p, label, bins=0)
    with pytest.raises(ValueError, match=r"`minimum` must be a probability in \[0, 1\], got 2"):
        reliability(p, label, minimum=2)
    with pytest.raises(DatasetError, match=r"`label` must be \(1, 3\), got \(3,\)"):
        reliability(p, label[0])
