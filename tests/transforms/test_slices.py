"""Slices moved in their plane, against MONAI's transform of volumes."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandAffined
from scipy.stats import ks_2samp

from stipple_monai import PriorAlign, RandSliceAffined, SliceMajord, SpatialPrior

KEYS = ["image", "label"]
BUNDLE = {
    "prob": 1.0,
    "spatial_size": [40, 33, 1],
    "rotate_range": [0, 0, 0.1047],
    "translate_range": [5, 3, 0],
    "scale_range": [0.1, 0.1, 0],
    "mode": ["bilinear", "nearest"],
    "padding_mode": ["border", "zeros"],
}
CHANGES = [
    {},
    {"spatial_size": None},
    {"spatial_size": [48, 20, -1]},
    {"rotate_range": [(0, 0), 0, (0.3, 0.5)]},
    {"translate_range": None, "scale_range": None},
    {"rotate_range": None},
    {"padding_mode": ["zeros", "border"]},
]


def slices(seed=0, shape=(40, 33, 1)):
    rng = np.random.default_rng(seed)
    affine = np.diag([0.8, 1.1, 3.0, 1.0])
    affine[:3, :3] = affine[:3, :3] @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine[:3, 3] = rng.normal(size=3)
    arrays = {"image": rng.normal(size=(2, *shape)), "label": rng.integers(0, 3, (1, *shape))}
    meta = {"filename_or_obj": "scan.nii.gz"}
    return {
        key: MetaTensor(torch.from_numpy(a).float(), affine=affine, meta=meta)
        for key, a in arrays.items()
    }


def both(options, seed):
    data = slices(seed)
    found = (kind(KEYS, **options) for kind in (RandSliceAffined, RandAffined))
    return [transform.set_random_state(seed)(data) for transform in found]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_monai_for_the_same_draws(change, seed):
    ours, theirs = both({**BUNDLE, **change}, seed)
    for key in KEYS:
        assert ours[key].shape == theirs[key].shape
        assert ours[key].dtype == theirs[key].dtype == torch.float32
        torch.testing.assert_close(ours[key].affine, theirs[key].affine, rtol=0, atol=1e-6)
        assert ours[key].meta["filename_or_obj"] == "scan.nii.gz"
    # a pixel may lie on the edge between two, or of the slice
    difference = (ours["image"] - theirs["image"]).abs().as_tensor()
    assert float((difference > 1e-3).float().mean()) < 2e-3
    assert float((ours["label"] != theirs["label"]).float().mean()) < 2e-3


@pytest.mark.slow
def test_draws_are_those_of_monai():
    """Rotation, zoom and translation of many slices, as far as the affine tells."""
    data = slices(1)
    found = []
    for kind, seed in ((RandSliceAffined, 0), (RandAffined, 1)):
        transform = kind(KEYS, **BUNDLE).set_random_state(seed)
        affines = [transform(data)["image"].affine for _ in range(400)]
        found.append((torch.linalg.inv(data["image"].affine) @ torch.stack(affines)).numpy())
    for row, column in np.ndindex(2, 4):
        if column != 2:
            assert ks_2samp(found[0][:, row, column], found[1][:, row, column]).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("prob", [0.0, 0.5])
def test_it_is_as_frequent(prob):
    data, count = slices(), 0
    options = {**BUNDLE, "prob": prob, "spatial_size": None}
    transform = RandSliceAffined(KEYS, **options).set_random_state(3)
    for _ in range(200):
        moved = transform(data)
        count += not torch.allclose(moved["image"].affine, data["image"].affine)
        if prob == 0:
            torch.testing.assert_close(moved["image"].as_tensor(), data["image"].as_tensor())
    assert abs(count - 200 * prob) < 30


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"rotate_range": [0.2, 0, 0.1]}, (40, 33, 1)),
        ({"translate_range": [5, 3, 1]}, (40, 33, 1)),
        ({"scale_range": [0.1, 0.1, 0.2]}, (40, 33, 1)),
        ({"shear_range": [0.1] * 6}, (40, 33, 1)),
        ({"spatial_size": [20, 20, 4]}, (40, 33, 4)),
    ],
)
def test_what_leaves_its_plane_is_monais(change, shape):
    options, data = {**BUNDLE, **change}, slices(4, shape)
    ours, theirs = (
        kind(KEYS, **options).set_random_state(5)(data) for kind in (RandSliceAffined, RandAffined)
    )
    for key in KEYS:
        assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())
        assert torch.equal(ours[key].affine, theirs[key].affine)


def test_missing_keys_input_and_plain_tensors():
    data = slices()
    before = {key: value.clone() for key, value in data.items()}
    transform = RandSliceAffined(KEYS, **BUNDLE, allow_missing_keys=True).set_random_state(0)
    assert transform({}) == {}
    only = transform({"image": data["image"]})
    assert only.keys() == {"image"}
    assert all(torch.equal(data[key], before[key]) for key in KEYS)
    with pytest.raises(KeyError, match="image"):
        RandSliceAffined(KEYS, **BUNDLE)({})
    plain = {key: value.as_tensor() for key, value in data.items()}
    ours, theirs = (transform.set_random_state(7)(given) for given in (plain, data))
    assert type(ours["image"]) is torch.Tensor
    assert torch.equal(ours["image"], theirs["image"].as_tensor())


def test_slices_lie_together_and_are_the_same():
    data = slices(2, (12, 7, 5))
    kept = SliceMajord(KEYS)(data)
    for key in KEYS:
        assert torch.equal(kept[key], data[key])
        assert torch.equal(kept[key].affine, data[key].affine)
        assert kept[key].meta["filename_or_obj"] == "scan.nii.gz"
        assert all(kept[key][c, ..., 3].is_contiguous() for c in range(len(kept[key])))
    assert not data["image"][0, ..., 3].is_contiguous()


def test_a_prior_placed_after_it_moves_along():
    """A disc in the image, and the prior of a disc around its centre."""
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    x, y = torch.meshgrid(torch.arange(64) - 30, torch.arange(64) - 36, indexing="ij")
    disc = MetaTensor((x**2 + y**2 < 100).float()[None, ..., None], affine=affine)
    x, y = torch.meshgrid(torch.arange(31) - 15, torch.arange(31) - 15, indexing="ij")
    prior = SpatialPrior((x**2 + y**2 < 100).float()[..., None], spacing_mm=(1, 1, 2))
    options = {**BUNDLE, "spatial_size": None, "mode": "bilinear", "padding_mode": "zeros"}
    for seed in range(5):
        moved = RandSliceAffined("image", **options).set_random_state(seed)({"image": disc})
        placed = PriorAlign([prior])(moved["image"], [[30.0, 36.0, 0.0]])
        assert float((placed - moved["image"]).abs().mean()) < 0.01


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_slices_of_a_gpu_are_moved_there():
    move = RandSliceAffined(KEYS, **BUNDLE)
    data = slices(0)
    expected = move.set_random_state(1)(data)
    found = move.set_random_state(1)({key: value.cuda() for key, value in data.items()})
    for key in KEYS:
        assert found[key].device.type == "cuda"
        torch.testing.assert_close(found[key].as_tensor().cpu(), expected[key].as_tensor())
