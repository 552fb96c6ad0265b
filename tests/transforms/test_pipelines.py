"""The transforms inside MONAI's pipelines: lazy, inverted, cached, threaded and spawned."""

import numpy as np
import pytest
import torch
from helpers.transform_samples import AFFINE, PRIORS, SHAPE, assert_same, sample
from monai.data import (
    CacheDataset,
    DataLoader,
    Dataset,
    MetaTensor,
    PersistentDataset,
    ThreadDataLoader,
    get_track_meta,
    set_track_meta,
)
from monai.transforms import (
    Compose,
    ConcatItemsd,
    DeleteItemsd,
    Flipd,
    LoadImaged,
    Orientationd,
    RandAffined,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
    SelectItemsd,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism

from stipple_monai import (
    POSITION_KEY,
    CheckPaird,
    DatasetError,
    OrganPositiond,
    PriorAlignd,
    PriorAugmentd,
    PriorError,
    SelectPseudoLabelsd,
)
from stipple_monai.data import write_nifti

BOTH = ["image", "label"]


def ours():
    """All of the transforms that a training pipeline has, after its spatial ones."""
    return [
        PriorAugmentd(translation_mm=(3, 4, 5), dropout=0.2),
        PriorAlignd("image", PRIORS, mode="linear"),
        ConcatItemsd(["image", "prior"], name="image"),
    ]


def item(seed=0):
    return sample(position=False, seed=seed)


# Lazy pipelines.


def both_ways(spatial, data, *, seed=4):
    """What a pipeline gives eagerly and lazily, for the same draws."""
    results = []
    for lazy in (False, True):
        pipeline = Compose([*spatial(), *ours()], lazy=lazy).set_random_state(seed)
        results.append(pipeline(data))
    return results


def exact():
    """Spatial transforms that move voxels and interpolate none."""
    return [
        Orientationd(BOTH, axcodes="RAS", labels=None),
        RandFlipd(BOTH, prob=0.5, spatial_axis=0),
        RandRotate90d(BOTH, prob=0.5, spatial_axes=(0, 1)),
        # padding after a crop would fetch lazily what the crop took away, as MONAI means it
        SpatialPadd(BOTH, spatial_size=(16, 16, 12)),
        RandSpatialCropd(BOTH, roi_size=(10, 10, 9), random_size=False),
        OrganPositiond("label", PRIORS),
    ]


@pytest.mark.filterwarnings("ignore:.*does not contain organ")
@pytest.mark.parametrize("seed", range(4))
def test_lazy_equals_eager_where_nothing_is_interpolated(seed):
    eager, lazy = both_ways(exact, item(), seed=seed)
    assert lazy["image"].shape == (3, 10, 10, 9)
    for key in ("image", "label", POSITION_KEY, "prior"):
        torch.testing.assert_close(
            torch.as_tensor(lazy[key]).as_subclass(torch.Tensor),
            torch.as_tensor(eager[key]).as_subclass(torch.Tensor),
            rtol=0,
            atol=1e-5,
            equal_nan=True,
            check_dtype=key != "label",  # MONAI's lazy resampling gives float labels
        )
    torch.testing.assert_close(lazy["image"].affine, eager["image"].affine)


def interpolated():
    return [
        OrganPositiond("label", PRIORS),
        Orientationd(BOTH, axcodes="RAS", labels=None),
        Spacingd(BOTH, pixdim=(1.2, 1.2, 2.0), mode=["bilinear", "nearest"]),
        RandAffined(
            BOTH,
            prob=1.0,
            spatial_size=(12, 12, 8),
            rotate_range=(0.1, 0.1, 0.2),
            translate_range=2,
            mode=["bilinear", "nearest"],
            padding_mode="zeros",
        ),
    ]


def test_lazy_priors_lie_where_eager_ones_do():
    """Lazily, image and label are interpolated once; the prior is in either case placed once."""
    eager, lazy = both_ways(interpolated, item())
    assert lazy["image"].shape == eager["image"].shape == (3, 12, 12, 8)
    torch.testing.assert_close(lazy["image"].affine, eager["image"].affine)
    torch.testing.assert_close(lazy["prior"].as_tensor(), eager["prior"].as_tensor())
    assert lazy["prior"].max() > 0.2
    assert not torch.equal(lazy["image"][:1].as_tensor(), eager["image"][:1].as_tensor())
    assert not lazy["image"].has_pending_operations


def test_a_pending_grid_is_refused():
    """Outside a lazy Compose nobody would apply the operations before the prior is placed."""
    data = OrganPositiond("label", PRIORS)(item())
    pending = Flipd("image", spatial_axis=0, lazy=True)(data)
    with pytest.raises(PriorError, match=r"lazy operations pending \(1\): .* one Compose"):
        PriorAlignd("image", PRIORS)(pending)
    applied = Compose([PriorAlignd("image", PRIORS)])(pending)
    eager = PriorAlignd("image", PRIORS)(Flipd("image", spatial_axis=0)(data))
    torch.testing.assert_close(applied["prior"].as_tensor(), eager["prior"].as_tensor())


# The way back.


@pytest.mark.parametrize("lazy", [False, True])
def test_a_pipeline_around_them_is_inverted(lazy):
    before = [
        Orientationd(BOTH, axcodes="RAS", labels=None),
        SpatialPadd(BOTH, spatial_size=(16, 16, 12)),
    ]
    between = [
        OrganPositiond("label", PRIORS),
        PriorAugmentd(translation_mm=3),
        PriorAlignd("image", PRIORS),
    ]
    after = [Flipd([*BOTH, "prior"], spatial_axis=1), RandRotate90d([*BOTH, "prior"], prob=1.0)]
    pipeline = Compose([*before, *between, *after], lazy=lazy).set_random_state(2)
    data = item()
    result = pipeline(data)
    assert not torch.equal(result["image"].affine, data["image"].affine)
    back = pipeline.inverse(result)
    for key in BOTH:
        assert torch.equal(back[key].as_tensor(), data[key].as_tensor())
        torch.testing.assert_close(back[key].affine, torch.from_numpy(AFFINE))
        assert back[key].applied_operations == []
    assert torch.equal(back[POSITION_KEY], result[POSITION_KEY])
    # the prior goes back to the grid that it was placed on, and no farther
    placed = Compose([*before, *between]).set_random_state(2)(data)["prior"]
    assert back["prior"].shape == placed.shape == (2, 16, 16, 12)
    torch.testing.assert_close(back["prior"].affine, placed.affine)


# Metadata switched off.


@pytest.fixture
def untracked():
    before = get_track_meta()
    set_track_meta(False)
    yield
    set_track_meta(before)


@pytest.mark.usefixtures("untracked")
def test_a_pipeline_without_metadata_says_what_it_needs(tmp_path):
    """MONAI's loader then gives plain tensors, from which nobody can tell where they lie."""
    label = torch.as_tensor(item()["label"])[0].numpy()
    path = tmp_path / "label.nii.gz"
    write_nifti(path, label, AFFINE)
    load = LoadImaged(BOTH, ensure_channel_first=True)
    given = {"image": path, "label": path}
    with pytest.raises(Exception, match="OrganPositiond") as raised:
        Compose([load, OrganPositiond("label", PRIORS)])(given)
    assert isinstance(raised.value.__cause__, DatasetError)
    assert "must be a MetaTensor" in str(raised.value.__cause__)


# Datasets, loaders and processes.


def cached_pipeline():
    return Compose(
        [
            CheckPaird(BOTH, classes=3),
            SelectPseudoLabelsd("probability", share=0.5),
            OrganPositiond("label", PRIORS),
            RandAffined("image", prob=1.0, translate_range=2, padding_mode="border"),
            *ours(),
            DeleteItemsd("prior"),
            SelectItemsd(["image", "probability", POSITION_KEY]),
        ]
    )


def batches(loader, dataset=None, **options):
    """Two epochs of a seeded loader."""
    set_determinism(seed=12)
    try:
        if dataset is None:
            items = [item(seed=i) for i in range(4)]
            dataset = CacheDataset(items, cached_pipeline(), progress=False)
        data = loader(dataset, batch_size=2, shuffle=True, **options)
        return [
            {
                key: torch.as_tensor(batch[key]).as_subclass(torch.Tensor).clone()
                for key in ("image", "probability", POSITION_KEY)
            }
            for _ in range(2)
            for batch in data
        ]
    finally:
        set_determinism(seed=None)


def test_what_is_deterministic_is_cached_and_no_more():
    dataset = CacheDataset([item()], cached_pipeline(), progress=False)
    (cached,) = dataset._cache
    assert cached[POSITION_KEY].shape == (2, 3)
    assert cached["probability"].dtype == torch.uint8
    assert "prior" not in cached
    assert cached["image"].shape == (1, *SHAPE)
    known = cached[POSITION_KEY].clone()
    drawn = [dataset[0][POSITION_KEY] for _ in range(4)]
    assert not torch.equal(drawn[0].nan_to_num(), drawn[1].nan_to_num())
    # draws never write into the cache
    assert torch.equal(dataset._cache[0][POSITION_KEY], known)


def test_cache_that_is_not_copied_stays_whole():
    dataset = CacheDataset([item()], cached_pipeline(), progress=False, copy_cache=False)
    known = dataset._cache[0][POSITION_KEY].clone()
    assert len({dataset[0]["image"].as_tensor().sum().item() for _ in range(5)}) > 1
    assert torch.equal(dataset._cache[0][POSITION_KEY], known)


@pytest.mark.parametrize(
    ("options", "kept"), [({}, False), ({"track_meta": True, "weights_only": False}, True)]
)
def test_a_persistent_dataset_keeps_the_place_where_it_is_told_to(options, kept, tmp_path):
    pipeline = Compose([OrganPositiond("label", PRIORS), RandFlipd(BOTH, prob=0.0), *ours()[1:]])
    data = PersistentDataset([item()], pipeline, cache_dir=tmp_path, **options)
    first, second = data[0]["image"].as_tensor(), data[0]["image"].as_tensor()
    assert torch.equal(first, second) == kept


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "use_thread_workers": True}])
def test_thread_loader(options):
    """One thread that fills a buffer gives what a plain loader does; so many threads may not."""
    first = batches(ThreadDataLoader, **options)
    assert [b["image"].shape for b in first] == [(2, 3, *SHAPE)] * 4
    if not options:
        assert_same(first, batches(DataLoader))
    positions = torch.cat([b[POSITION_KEY] for b in first])
    known = positions[torch.isfinite(positions).all(-1)]
    assert len(torch.unique(known, dim=0)) == len(known) > 4


@pytest.mark.slow
@pytest.mark.parametrize("loader", [DataLoader, ThreadDataLoader])
def test_workers_draw_reproducibly_and_differently(loader):
    first, again = batches(loader, num_workers=2), batches(loader, num_workers=2)
    assert_same(first, again)
    positions = torch.cat([b[POSITION_KEY] for b in first])
    known = positions[torch.isfinite(positions).all(-1)]
    assert len(torch.unique(known, dim=0)) == len(known)


@pytest.mark.slow
def test_spawned_workers_get_the_pickled_transforms():
    """Windows and macOS start workers so, which share nothing and get the pipeline pickled."""
    items = [item(seed=i) for i in range(2)]
    results = []
    for context in ("fork", "spawn"):
        dataset = Dataset(items, cached_pipeline())
        options = {"num_workers": 1, "multiprocessing_context": context}
        options["persistent_workers"] = True
        results.append(batches(DataLoader, dataset, **options))
    assert_same(*results)


def test_a_batch_is_collated_with_positions_and_metadata():
    dataset = Dataset([item(seed=i) for i in range(2)], cached_pipeline())
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert isinstance(batch["image"], MetaTensor)
    assert batch["image"].affine.shape == (2, 4, 4)
    assert batch[POSITION_KEY].shape == (2, 2, 3)
    assert np.asarray(batch["probability"]).dtype == np.uint8
