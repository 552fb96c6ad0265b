"""A scan's own label left out of the prior that is placed in it, in pipelines."""

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandAffined,
    RandSpatialCropd,
    SelectItemsd,
    Spacingd,
)

from stipple_monai import SpatialPrior, estimate_priors, load_priors, measure_position
from stipple_monai.errors import PriorError
from stipple_monai.transforms import (
    CASES_KEY,
    POSITION_KEY,
    OrganPosition,
    OrganPositiond,
    OwnCases,
    PriorAlign,
    PriorAlignd,
    PriorAugmentd,
)

SHAPE = (32, 30, 20)
SPACING = (1.5, 1.5, 2.5)


def scan(seed, *, organs=(1, 2)):
    """An image with the label of two bodies."""
    rng = np.random.default_rng(seed)
    affine = np.diag([*SPACING, 1.0])
    points = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING
    label = np.zeros(SHAPE, np.uint8)
    for organ, x in zip(organs, (12.0, 34.0), strict=True):
        middle = np.array([x, 22, 25]) + rng.uniform(-3, 3, 3)
        axes = rng.uniform(6, 10, 3)
        label[(((points - middle) / axes) ** 2).sum(-1) < 1] = organ
    image = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    return {
        "image": MetaTensor(torch.from_numpy(image), affine=affine),
        "label": MetaTensor(torch.from_numpy(label)[None], affine=affine),
    }


SCANS = [scan(seed) for seed in range(4)]
PRIORS = SpatialPrior.estimate_several(
    [s["label"] for s in SCANS], organs=[1, 2], center="groupwise", smoothing_mm=4.0
)


@pytest.fixture
def files(tmp_path):
    items = []
    for i, each in enumerate(SCANS):
        item = {key: str(tmp_path / f"{key}_{i}.nii.gz") for key in each}
        for key, path in item.items():
            nib.save(nib.Nifti1Image(each[key][0].numpy(), each[key].affine.numpy()), path)
        items.append(item)
    return items


def expected(i):
    """Scan ``i`` with the priors of the others, one by one."""
    others = [prior.leave_out([i]) for prior in PRIORS]
    positions = torch.stack([measure_position(SCANS[i]["label"], p) for p in others])
    return PriorAlign(others)(SCANS[i]["image"], positions).as_tensor()


@pytest.mark.slow
@pytest.mark.parametrize("i", range(4))
def test_positions_and_priors_are_those_of_the_other_scans(i):
    where = OrganPositiond("label", PRIORS, leave_one_out=True)(SCANS[i])
    assert where[CASES_KEY].dtype == torch.bool
    assert where[CASES_KEY].tolist() == [[j == i for j in range(4)]] * 2
    placed = PriorAlignd("image", PRIORS, leave_one_out=True)(where)
    torch.testing.assert_close(placed["prior"].as_tensor(), expected(i), atol=2e-5, rtol=0)
    array = OrganPosition(PRIORS, leave_one_out=True)(SCANS[i]["label"])
    assert torch.equal(array, where[POSITION_KEY])


def test_a_position_leaves_nothing_out_unless_it_is_asked_to():
    item = {**SCANS[1], CASES_KEY: torch.ones(2, 4, dtype=torch.bool)}
    found = OrganPositiond("label", PRIORS)(item)[POSITION_KEY]
    assert torch.equal(found, OrganPosition(PRIORS)(SCANS[1]["label"]))


def test_a_group_wise_centre_is_that_of_the_other_labels():
    affine, labels = torch.diag(torch.tensor([2.0, 2, 2, 1])), torch.zeros(2, 1, 30, 30, 40)
    labels[0, :, 8:20, 8:20, 4:9] = labels[0, :, 12:16, 12:16, 9:34] = 1
    labels[1, :, 8:20, 8:20, 10:24] = 1
    maps = [MetaTensor(label, affine=affine) for label in labels]
    priors = SpatialPrior.estimate_several(maps, organs=[1], center="groupwise", smoothing_mm=4.0)
    (found,) = OrganPosition(priors, leave_one_out=True)(maps[0])
    own, other = (measure_position(maps[0], p) for p in (priors[0], priors[0].leave_out([0])))
    assert torch.equal(found, other)
    assert (own - other).norm() > 2


def test_one_argument_is_enough_where_the_label_is_whole():
    placed = PriorAlignd("image", PRIORS, leave_one_out=True)(SCANS[2])
    torch.testing.assert_close(placed["prior"].as_tensor(), expected(2), atol=2e-5, rtol=0)
    assert CASES_KEY not in placed


def test_without_the_argument_nothing_is_left_out():
    where = OrganPositiond("label", PRIORS)(SCANS[1])
    assert CASES_KEY not in where
    placed = PriorAlignd("image", PRIORS)(where)["prior"]
    positions = [measure_position(SCANS[1]["label"], p) for p in PRIORS]
    assert torch.equal(placed, PriorAlign(PRIORS)(SCANS[1]["image"], torch.stack(positions)))


def test_a_scan_that_the_prior_was_not_made_of_sees_all_of_it():
    other = scan(99)
    with_it, without = (
        Compose(
            [
                OrganPositiond("label", PRIORS, leave_one_out=leave),
                PriorAlignd("image", PRIORS, leave_one_out=leave),
            ]
        )(other)["prior"]
        for leave in (True, False)
    )
    assert torch.equal(with_it, without)


def test_given_positions_stay_and_own_cases_are_left_out_all_the_same():
    data = {**SCANS[0], POSITION_KEY: [[10.0, 20, 30], [40, 20, 30]]}
    where = OrganPositiond("label", PRIORS, leave_one_out=True)(data)
    assert where[POSITION_KEY].tolist() == data[POSITION_KEY]
    placed = PriorAlignd("image", PRIORS, leave_one_out=True)(where)["prior"]
    others = [prior.leave_out([0]) for prior in PRIORS]
    by_hand = PriorAlign(others)(SCANS[0]["image"], data[POSITION_KEY])
    torch.testing.assert_close(placed.as_tensor(), by_hand.as_tensor(), atol=2e-5, rtol=0)


def test_with_one_label_nothing_is_known_in_its_own_scan():
    (prior,) = SpatialPrior.estimate_several([SCANS[0]["label"]], organs=[1])
    where = OrganPositiond("label", [prior], leave_one_out=True)(SCANS[0])
    assert where[POSITION_KEY].isnan().all()
    placed = PriorAlignd("image", [prior], leave_one_out=True)(where)["prior"]
    assert torch.equal(placed.as_tensor(), torch.full((1, *SHAPE), 0.5))
    known = {**where, POSITION_KEY: [[10.0, 20.0, 30.0]]}
    placed = PriorAlignd("image", [prior], leave_one_out=True)(known)["prior"]
    assert torch.equal(placed.as_tensor(), torch.full((1, *SHAPE), 0.5))
    other = OrganPositiond("label", [prior], leave_one_out=True)(SCANS[1])
    assert other[POSITION_KEY].isfinite().all()


def test_an_organ_that_only_this_scan_has_is_unknown_and_the_other_is_not():
    lone = MetaTensor(SCANS[1]["label"].clone())
    lone[lone == 2] = 0
    with pytest.warns(UserWarning, match="does not contain organ 2"):
        priors = SpatialPrior.estimate_several([SCANS[0]["label"], lone], organs=[1, 2])
    positions = OrganPosition(priors, leave_one_out=True)(SCANS[0]["label"])
    assert positions.isfinite().all(1).tolist() == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_pipeline_with_crops_cache_and_workers(files, tmp_path, num_workers):
    estimate_priors([i["label"] for i in files], organs=[1, 2], folder=tmp_path)
    priors = load_priors(tmp_path, [1, 2])
    keys = ["image", "label"]
    pipeline = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Spacingd(keys, (2.0, 2.0, 2.5), mode=["bilinear", "nearest"]),
            OrganPositiond("label", priors, leave_one_out=True),
            RandSpatialCropd(keys, (16, 16, 1), random_size=False),
            RandAffined(keys, prob=1.0, rotate_range=[0, 0, 0.1], mode=["bilinear", "nearest"]),
            PriorAugmentd(translation_mm=3.0),
            PriorAlignd("image", priors, leave_one_out=True),
            SelectItemsd(["image", "prior", CASES_KEY]),
        ]
    )
    dataset = CacheDataset(files, pipeline, progress=False)
    batch = next(iter(DataLoader(dataset, batch_size=4, num_workers=num_workers)))
    assert batch["prior"].shape == (4, 2, 16, 16, 1)
    assert torch.equal(batch[CASES_KEY], torch.eye(4).bool()[:, None].expand(4, 2, 4))


def test_what_leaving_out_needs():
    bare = [SpatialPrior(torch.ones(3, 3, 3), spacing_mm=(1, 1, 1), organ=4)]
    for make in (
        lambda: OrganPositiond("label", bare, leave_one_out=True),
        lambda: PriorAlignd("image", bare, leave_one_out=True),
        lambda: OrganPosition(bare, leave_one_out=True),
        lambda: OwnCases(bare),
    ):
        with pytest.raises(PriorError, match="The prior of organ 4 must know its cases"):
            make()
    where = OrganPositiond("label", PRIORS)(SCANS[0])
    with pytest.raises(PriorError, match=r"needs 'own_cases', the scan's own cases, got .* put Or"):
        PriorAlignd("image", PRIORS, leave_one_out=True)(where)


def test_without_label_and_position_the_prior_is_neutral():
    data = {"image": SCANS[0]["image"]}
    with pytest.warns(UserWarning, match="neither 'organ_position' nor 'label'"):
        placed = PriorAlignd("image", PRIORS, leave_one_out=True)(data)["prior"]
    torch.testing.assert_close(placed.as_tensor(), torch.full((2, *SHAPE), 1 / 3))


def test_own_cases_of_organs_with_different_numbers_and_pickling():
    lone = MetaTensor(SCANS[1]["label"].clone())
    lone[lone == 1] = 0
    with pytest.warns(UserWarning, match="does not contain organ 1"):
        priors = SpatialPrior.estimate_several([lone, SCANS[0]["label"]], organs=[1, 2])
    find = pickle.loads(pickle.dumps(OwnCases(priors)))
    assert find(SCANS[0]["label"]).tolist() == [[True, False], [False, True]]
    assert find(lone).tolist() == [[False, False], [True, False]]
