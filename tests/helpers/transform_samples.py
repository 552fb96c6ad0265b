"""Samples for transforms: two priors, and an image with its label on one oblique grid."""

import numpy as np
import torch
from monai.data import (
    MetaTensor,
)

from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.transforms import (
    POSITION_KEY,
    OrganPosition,
)

SHAPE = (14, 12, 10)


AFFINE = np.array(
    [[-1.5, 0, 0, 31.7], [0, 2.0, 0, -12.3], [0, 0, 2.5, 101.9], [0, 0, 0, 1]], dtype=np.float64
)


def make_priors():
    rng = np.random.default_rng(8)
    return [
        SpatialPrior(rng.random((5, 4, 3)) * 0.45, spacing_mm=(1.7, 2.0, 4.0), organ=k)
        for k in (1, 2)
    ]


PRIORS = make_priors()


def meta(array, name="one.nii"):
    return MetaTensor(torch.as_tensor(array), affine=AFFINE, meta={"filename_or_obj": name})


def sample(*, position=True, seed=0):
    rng = np.random.default_rng(seed)
    label = np.zeros((1, *SHAPE), np.uint8)
    label[0, 2:6, 3:8, 1:4] = 1
    label[0, 8:11, 5:9, 5:9] = 2
    logits = torch.from_numpy(rng.normal(size=(3, *SHAPE)).astype(np.float32))
    data = {
        "image": meta(rng.normal(size=(1, *SHAPE)).astype(np.float32)),
        "label": meta(label),
        "probability": meta(logits.softmax(0)),
        "note": "kept",
    }
    if position:
        data[POSITION_KEY] = OrganPosition(PRIORS)(data["label"])
    return data


def assert_same(a, b):
    """Equal in type, values and metadata."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(
            torch.as_tensor(a).as_subclass(torch.Tensor),
            torch.as_tensor(b).as_subclass(torch.Tensor),
            rtol=0,
            atol=0,
            equal_nan=True,
        )
        if isinstance(a, MetaTensor):
            assert_same(dict(a.meta), dict(b.meta))
            assert_same(a.applied_operations, b.applied_operations)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b
