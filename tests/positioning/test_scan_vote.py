"""What a scan's own extent tells of where its organs are."""

from copy import copy

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose, Flip, LoadImaged, SpatialCrop, SpatialPad, SpatialPadd

from stipple_monai.inferers import PriorDrivenInferer, fuse_logits
from stipple_monai.positioning import locate_organs
from stipple_monai.positioning.scan_vote import (
    SCAN_SPREAD_MM,
    expected_center,
    reconsidered,
    scan_votes,
)
from stipple_monai.priors import SpatialPrior
from stipple_monai.spatial import Extent, Votes, common_center

AFFINE = torch.tensor([[-4.0, 0, 0, 30], [0, 4, 0, -7], [0, 0, 5, 100], [0, 0, 0, 1]])
AFFINE = AFFINE.double()
SHAPE = (24, 20, 60)


class Logit(torch.nn.Module):
    """A network whose probabilities are its input."""

    def forward(self, x):
        return torch.logit(x, eps=1e-6)


def cubes(*places):
    """A label map with a cube of five voxels of each organ."""
    label = torch.zeros(1, *SHAPE)
    for organ, (w, h, d) in enumerate(places, start=1):
        label[0, w - 2 : w + 3, h - 2 : h + 3, d - 2 : d + 3] = organ
    return MetaTensor(label, affine=AFFINE)


LABEL = cubes((6, 10, 50), (16, 10, 50))
LOW = cubes((6, 10, 10), (16, 10, 10))
UP_MM, DOWN_MM = 100 + 5 * 50, 100 + 5 * 10


@pytest.fixture(scope="module")
def priors():
    return SpatialPrior.estimate_several([LABEL], organs=[1, 2], smoothing_mm=None)


def predicted(*labels, probability):
    """Organs of several label maps, each map with its probability."""
    maps = torch.full((2, *SHAPE), 1e-4)
    for label, p in zip(labels, probability, strict=True):
        for k in range(2):
            maps[k][label.as_tensor()[0] == k + 1] = p
    return MetaTensor(maps, affine=AFFINE)


def test_a_prior_knows_its_mean_place_below_the_top(tmp_path):
    labels = [LABEL, cubes((6, 10, 40), (16, 10, 40)), cubes((6, 10, 21))]
    with pytest.warns(UserWarning, match="does not contain organ 2"):
        both = SpatialPrior.estimate_several(labels, organs=[1, 2], smoothing_mm=None)
    assert [prior.from_top_mm[2] for prior in both] == pytest.approx([-5 * 22, -5 * 14])
    assert both[0].from_top_mm[0] == pytest.approx(-4 * (6 - 11.5))
    both[0].save(tmp_path / "prior.nii.gz")
    loaded = SpatialPrior.load(tmp_path / "prior.nii.gz")
    assert loaded.from_top_mm == pytest.approx(both[0].from_top_mm)
    assert both[0].leave_out([0]).from_top_mm == both[0].from_top_mm


def test_of_two_places_the_scan_chooses_the_one_at_its_usual_height(priors):
    maps = predicted(LABEL, LOW, probability=(0.9, 0.99))
    alone = locate_organs(maps, priors, scan_vote=False)
    assert alone.position_mm[:, 2].tolist() == pytest.approx([DOWN_MM] * 2, abs=1)
    assert not alone.scan_chose
    found = locate_organs(maps, priors)
    assert found.position_mm[:, 2].tolist() == pytest.approx([UP_MM] * 2, abs=1)
    assert found.scan_chose


@pytest.mark.parametrize(
    "change",
    [
        SpatialPad((24, 20, 120), value=1e-4),
        SpatialCrop(roi_start=(0, 0, 4), roi_end=(24, 20, 56)),
        Flip(2),
    ],
    ids=["padded", "cropped", "flipped"],
)
def test_a_part_of_a_scan_is_placed_as_the_whole_scan(priors, change):
    maps = predicted(LABEL, LOW, probability=(0.9, 0.99))
    maps.meta.update(original_affine=AFFINE.numpy(), spatial_shape=np.array(SHAPE))
    found = locate_organs(change(maps), priors)
    assert found.scan_chose
    assert found.position_mm[:, 2].tolist() == pytest.approx([UP_MM] * 2, abs=1)


def test_scans_of_a_batch_that_were_padded_are_placed_as_the_whole_ones(priors, tmp_path):
    maps = predicted(LABEL, LOW, probability=(0.9, 0.99))
    voxels = maps.as_tensor().movedim(0, -1).numpy()
    nib.save(nib.Nifti1Image(voxels, AFFINE.numpy()), tmp_path / "scan.nii.gz")
    load = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            SpatialPadd("image", (24, 20, 120), value=1e-4),
        ]
    )
    scans = Dataset([{"image": tmp_path / "scan.nii.gz"}] * 2, load)
    (batch,) = DataLoader(scans, batch_size=2)
    infer = PriorDrivenInferer(SimpleInferer(), priors, activation="sigmoid")
    with pytest.warns(UserWarning, match="fits best far from the height"):
        result = infer(batch["image"], Logit())
    assert result.meta["organ_position_mm"][..., 2].flatten().tolist() == pytest.approx(
        [UP_MM] * 4, abs=1
    )


def test_notes_of_other_scans_than_those_of_a_batch_do_not_count(priors):
    maps = predicted(LABEL, LOW, probability=(0.9, 0.99))
    inputs = MetaTensor(maps.as_tensor()[None].repeat(2, 1, 1, 1, 1), affine=AFFINE)
    inputs.meta.update(
        original_affine=AFFINE.repeat(3, 1, 1),
        spatial_shape=torch.tensor([SHAPE] * 3),
        as_closest_canonical=torch.zeros(3, dtype=torch.bool),
    )
    infer = PriorDrivenInferer(SimpleInferer(), priors, activation="sigmoid")
    with pytest.warns(UserWarning, match="fits best far from the height"):
        result = infer(inputs, Logit())
    assert result.meta["organ_position_mm"][..., 2].flatten().tolist() == pytest.approx(
        [UP_MM] * 4, abs=1
    )


def test_labels_that_were_cropped_tell_the_place_in_the_whole_scan(priors):
    label = MetaTensor(LABEL.as_tensor(), affine=AFFINE)
    label.meta.update(original_affine=AFFINE.numpy(), spatial_shape=np.array(SHAPE))
    cropped = SpatialCrop(roi_start=(2, 4, 40), roi_end=(22, 18, 58))(label)
    found = SpatialPrior.estimate_several([cropped], organs=[1, 2], smoothing_mm=None)
    for prior, whole in zip(found, priors, strict=True):
        assert prior.from_top_mm == pytest.approx(whole.from_top_mm)


def test_the_scan_is_outvoted_by_two_organs(priors):
    found = locate_organs(predicted(LOW, probability=(0.99,)), priors)
    assert found.position_mm[:, 2].tolist() == pytest.approx([DOWN_MM] * 2, abs=1)
    assert not found.scan_chose


def test_the_scan_does_not_move_what_was_found_near_its_place(priors):
    maps = predicted(cubes((8, 11, 46), (18, 11, 46)), probability=(0.99,))
    found, alone = locate_organs(maps, priors), locate_organs(maps, priors, scan_vote=False)
    assert torch.equal(found.position_mm, alone.position_mm)


def test_priors_that_do_not_know_their_place_have_no_such_vote(priors):
    scan = Extent(AFFINE.numpy(), SHAPE)
    assert expected_center(priors, scan) is not None
    for prior in priors:
        known = {"spacing_mm": prior.spacing_mm, "offset_mm": prior.offset_mm}
        bare = SpatialPrior(prior.probability, organ=prior.organ, **known)
        assert expected_center([priors[0], bare], scan) is None
    assert expected_center([], scan) is None
    middle = np.mean([[6, 10, 50], [16, 10, 50]], axis=0)
    expected = AFFINE[:3, :3].numpy() @ middle + AFFINE[:3, 3].numpy()
    assert expected_center(priors, scan).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(("cell", "chosen"), [(9, 0), (11, 11)])
def test_the_scan_chooses_only_between_places_that_are_far_apart(cell, chosen):
    seen = torch.zeros(1, 1, 20)
    seen[..., 0], seen[..., cell] = 0.9, 0.8
    votes, weight = [Votes(seen, (0, 0, 0))], (0.01, 0.01, 0.01)
    alone = common_center(votes, weight)
    assert alone.center == (0, 0, 0)
    assert common_center([*votes, Votes(torch.ones(1, 1, 1), (0, 0, cell))], weight).center[2] > 0
    scan = Votes(torch.ones(1, 1, 1), (0, 0, cell))
    assert reconsidered(alone, votes, weight, scan).center == (0, 0, chosen)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("turned", [False, True])
def test_a_centre_hears_the_scan_less_the_farther_it_is(axis, turned):
    """At a distance d, with the spread s of that axis of the body: 1 − d² / (2 s²)."""
    cells = torch.diag(torch.tensor([4.0, -5, 6, 1]).double())
    if turned:
        cells[:3, :3] = cells[:3, [2, 0, 1]]
    expected = torch.tensor([3.0, -8.0, 50.0]).double()
    weight = (cells[:3, :3].norm(dim=0).square() / (2 * 40**2)).tolist()
    scan = scan_votes(expected, cells, 40)
    nearest = torch.linalg.solve(cells[:3, :3], expected - cells[:3, 3]).round()
    step = torch.linalg.inv(cells[:3, :3])[:, axis]
    for share in (0.5, 1.0, 1.3):
        there = (nearest + step * share * SCAN_SPREAD_MM[axis]).round()
        away = (cells[:3, :3] @ (there - nearest)).norm() / SCAN_SPREAD_MM[axis]
        # a centre far from all votes but this one hears the one that costs least
        index = torch.stack(
            torch.meshgrid(*(torch.arange(n) for n in scan.values.shape), indexing="ij"), -1
        ) + torch.tensor(scan.start)
        cost = ((index - there) ** 2 * torch.tensor(weight)).sum(-1)
        assert float((scan.values - cost).amax()) == pytest.approx(float(1 - away**2 / 2), abs=0.01)


def test_votes_of_organs_that_stray_more_than_the_scan_stay_one_cell():
    scan = scan_votes(torch.zeros(3).double(), torch.eye(4).double() * 4, 200)
    assert scan.values.tolist() == [[[1.0]]]
    assert scan.start == (0, 0, 0)


@pytest.mark.parametrize(("cell", "chosen"), [(12, 0), (50, 50)])
def test_a_scan_that_begins_seven_centimetres_higher_keeps_what_was_found(cell, chosen):
    """As CT scans of one hospital do; what lies 30 cm from where others have it is absurd."""
    seen, coarse = torch.zeros(1, 1, 60), torch.diag(torch.tensor([6.0, 6, 6, 1]).double())
    seen[..., 0], seen[..., cell] = 3.5, 2.8
    votes, weight = [Votes(seen, (0, 0, 0))], [6**2 / (2 * 40**2)] * 3
    scan = scan_votes(torch.tensor([0.0, 0, 6 * cell]).double(), coarse, 40)
    found = reconsidered(common_center(votes, weight), votes, weight, scan)
    assert found.center == (0, 0, chosen)


def test_fusing_warns_of_a_scan_whose_place_was_chosen(priors):
    maps = predicted(LABEL, LOW, probability=(0.9, 0.99))
    odds = torch.logit(maps.as_tensor(), eps=1e-6)
    logits = torch.cat([torch.zeros(1, *SHAPE), odds])[None]
    with pytest.warns(
        UserWarning, match=r"output for scan_7 fits best far from the height .* placed at that"
    ):
        fused = fuse_logits(logits, AFFINE, priors, names=["scan_7"])
    assert fused.position_mm[0, :, 2].tolist() == pytest.approx([UP_MM] * 2, abs=1)
    alone = fuse_logits(logits, AFFINE, priors, scan_vote=False)
    assert alone.position_mm[0, :, 2].tolist() == pytest.approx([DOWN_MM] * 2, abs=1)


def test_the_inferer_passes_it_on(priors):
    maps = predicted(LABEL, LOW, probability=(0.9, 0.99))
    odds = torch.logit(maps.as_tensor(), eps=1e-6)
    logits = torch.cat([torch.zeros(1, *SHAPE), odds])[None]
    scan = MetaTensor(torch.zeros(1, 1, *SHAPE), affine=AFFINE)

    def heights(**options):
        infer = PriorDrivenInferer(lambda inputs, network: logits, priors, **options)
        fused = infer(scan, torch.nn.Identity())
        return fused.meta["organ_position_mm"][0, :, 2].tolist()

    with pytest.warns(UserWarning, match="look at the result"):
        assert heights() == pytest.approx([UP_MM] * 2, abs=1)
    assert heights(scan_vote=False) == pytest.approx([DOWN_MM] * 2, abs=1)


@pytest.fixture(scope="module")
def one():
    (prior,) = SpatialPrior.estimate_several([LABEL], organs=[1], smoothing_mm=None)
    return prior


def maps_of_one(*heights, probability):
    """One organ at several heights, each with its probability."""
    maps = torch.full((1, *SHAPE), 1e-4)
    for d, p in zip(heights, probability, strict=True):
        maps[0][cubes((6, 10, d)).as_tensor()[0] == 1] = p
    return MetaTensor(maps, affine=AFFINE)


def test_a_single_organ_is_placed_at_the_usual_height_of_two(one):
    maps = maps_of_one(10, 50, probability=(0.99, 0.9))
    alone, found = (locate_organs(maps, [one], scan_vote=vote) for vote in (False, True))
    assert alone.position_mm[0, 2] == pytest.approx(DOWN_MM, abs=1)
    assert not alone.scan_chose
    assert found.position_mm[0, 2] == pytest.approx(UP_MM, abs=1)
    assert found.scan_chose
    assert 0.2 < found.confidence[0] < 0.5 < alone.confidence[0]


def test_a_single_organ_that_is_clear_stays_where_it_is(one):
    seen = 0.99, 0.02  # a trace at the usual height, less than half of it
    found = locate_organs(maps_of_one(10, 50, probability=seen), [one])
    assert found.position_mm[0, 2] == pytest.approx(DOWN_MM, abs=1)
    assert not found.scan_chose


def test_a_single_organ_near_its_place_is_where_it_fits_best(one):
    maps = maps_of_one(44, probability=(0.99,))
    found, alone = (locate_organs(maps, [one], scan_vote=vote) for vote in (True, False))
    assert torch.equal(found.position_mm, alone.position_mm)


def test_organs_that_are_placed_one_by_one_have_a_vote_each(priors):
    maps = predicted(LABEL, LOW, probability=(0.9, 0.99))
    apart = [copy(prior) for prior in priors]
    for prior in apart:
        prior.offset_mm = None
    assert locate_organs(maps, apart).position_mm[:, 2].tolist() == pytest.approx(
        [UP_MM] * 2, abs=1
    )
    near = locate_organs(maps, priors, max_shift_mm=1000)
    assert not near.scan_chose


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_places_a_single_organ_as_the_cpu_does(one):
    maps = maps_of_one(10, 50, probability=(0.99, 0.9))
    expected, found = locate_organs(maps, [one]), locate_organs(maps.cuda(), [one])
    assert found.scan_chose
    torch.testing.assert_close(found.position_mm, expected.position_mm, atol=1e-3, rtol=0)
