"""The deep atlas prior's loss against a loop over voxels, and against MONAI where they meet."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import FocalLoss

from stipple_monai import PartialDiceCELoss
from stipple_monai.errors import DatasetError, PriorError
from stipple_monai.losses.atlas_prior import AtlasPriorLoss, class_probability


def example(*, organs=2, batch=2, size=(3, 4), ignored=True, seed=0):
    """Logits and a target; some voxels are ignored, and the priors overlap."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, organs + 1, *size, generator=rng)
    label = torch.randint(0, organs + 1, (batch, 1, *size), generator=rng).float()
    if ignored:
        label[torch.rand(label.shape, generator=rng) < 0.3] = 255
    atlas = torch.rand(batch, organs, *size, generator=rng)
    atlas[0, :, 0] = 0
    atlas[0, 0, 1] = 1
    return logits, torch.cat([label, atlas], dim=1)


def by_hand(logits, target, *, gamma=2.0, atlas_gamma=2.0, atlas_factor=1.0):
    """The equations of the module's docstring, voxel by voxel."""
    focal, atlas, known = 0.0, 0.0, 0
    channels = logits.shape[1]
    flat, flat_target = logits.flatten(2), target.flatten(2)
    for b in range(len(logits)):
        for v in range(flat.shape[2]):
            y = int(flat_target[b, 0, v])
            if y == 255:
                continue
            scores = [math.exp(float(x)) for x in flat[b, :, v]]
            p = scores[y] / sum(scores)
            organs = [float(x) for x in flat_target[b, 1:, v]]
            every = [max(1 - sum(organs), 0), *organs]
            assert len(every) == channels
            a = every[y] / sum(every)
            focal += (1 - p) ** gamma * -math.log(p)
            atlas += (1 - a) ** atlas_gamma * -math.log(p)
            known += 1
    return (focal + atlas_factor * atlas) / known


@pytest.mark.parametrize("organs", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 0},
        {"gamma": 1.5, "atlas_gamma": 0.5, "atlas_factor": 3},
        {"atlas_gamma": 0},
        {"atlas_factor": 0},
    ],
    ids=str,
)
def test_the_loss_is_that_of_a_loop_over_voxels(organs, options):
    logits, target = example(organs=organs, seed=organs)
    found = AtlasPriorLoss(**options)(logits, target)
    assert float(found) == pytest.approx(by_hand(logits, target, **options), rel=1e-5)


@pytest.mark.parametrize("gamma", [0, 1.5, 2])
def test_the_slope_is_that_of_the_whole_loss_its_weights_included(gamma):
    logits, target = example(batch=1, size=(2, 3))
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: AtlasPriorLoss(gamma=gamma)(x, target), logits)


def test_volumes_are_treated_as_slices_are():
    logits, target = example(size=(3, 4, 5))
    found = float(AtlasPriorLoss()(logits, target))
    assert found == pytest.approx(by_hand(logits, target), rel=1e-5)


def test_without_the_atlas_it_is_the_focal_loss_of_monai():
    logits, target = example(ignored=False)
    focal = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2, reduction="sum")
    # MONAI sums over samples and channels of means over voxels
    expected = focal(logits, target[:, :1]) / len(logits)
    found = AtlasPriorLoss(atlas_factor=0)(logits, target)
    torch.testing.assert_close(found, expected)


def test_cross_entropy_is_its_limit():
    logits, target = example()
    found = AtlasPriorLoss(gamma=0, atlas_factor=0)(logits, target)
    expected = F.cross_entropy(logits, target[:, 0].long(), ignore_index=255)
    torch.testing.assert_close(found, expected)


def test_a_voxel_counts_by_how_far_the_atlas_contradicts_its_class():
    logits = torch.zeros(1, 2, 1, 3)
    organ = torch.ones(1, 1, 1, 3)
    prior = torch.tensor([1.0, 0.6, 0.0]).reshape(1, 1, 1, 3)
    logits.requires_grad_()
    loss = AtlasPriorLoss(gamma=100)
    loss(logits, torch.cat([organ, prior], dim=1)).backward()
    pull = -logits.grad[0, 1, 0] * 3
    # the focal part is next to nothing with this gamma
    torch.testing.assert_close(pull, torch.tensor([0.0, 0.16, 1.0]) / 2)
    # in the background it is the other way round
    logits.grad = None
    loss(logits, torch.cat([0 * organ, prior], dim=1)).backward()
    pull = -logits.grad[0, 0, 0] * 3
    torch.testing.assert_close(pull, torch.tensor([1.0, 0.36, 0.0]) / 2)


def test_ignored_voxels_change_nothing():
    logits, target = example()
    logits.requires_grad_()
    other = torch.where(target[:, :1] == 255, logits.detach() + 5, logits)
    prior = torch.where(target[:, :1] == 255, 0.5, target[:, 1:])
    loss = AtlasPriorLoss()
    changed = loss(other, torch.cat([target[:, :1], prior], dim=1))
    torch.testing.assert_close(changed, loss(logits, target))
    changed.backward()
    ignored = (target[:, :1] == 255).expand_as(logits)
    assert ignored.any()
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).all()


def test_nothing_known_is_no_loss():
    logits, target = example()
    target[:, 0] = 255
    logits.requires_grad_()
    loss = AtlasPriorLoss(region=PartialDiceCELoss(softmax=True, batch=True))(logits, target)
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


def test_the_region_term_sees_the_label_alone():
    logits, target = example()
    region = PartialDiceCELoss(softmax=True, batch=True, lambda_ce=0)
    found = AtlasPriorLoss(region=region)(logits, target)
    expected = AtlasPriorLoss()(logits, target) + region(logits, target[:, :1])
    torch.testing.assert_close(found, expected)


def test_certain_voxels_have_finite_gradients():
    logits = torch.tensor([[200.0], [-200.0]]).reshape(1, 2, 1, 1).requires_grad_()
    for gamma in (0, 1, 2):
        for label in (0.0, 1.0):
            target = torch.tensor([label, 1.0]).reshape(1, 2, 1, 1)
            loss = AtlasPriorLoss(gamma=gamma)(logits, target)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()


def test_half_precision_and_metadata_are_left_behind():
    logits, target = example()
    found = AtlasPriorLoss()(MetaTensor(logits).half(), MetaTensor(target))
    assert type(found) is torch.Tensor
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, AtlasPriorLoss()(logits.half().float(), target))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu():
    logits, target = example()
    found = AtlasPriorLoss()(logits.cuda(), target.cuda())
    torch.testing.assert_close(found.cpu(), AtlasPriorLoss()(logits, target))


def test_the_atlas_is_a_distribution_over_the_classes():
    _, target = example(organs=3, ignored=False)
    shape = target[:, :1].shape
    every = [class_probability(target[:, 1:], torch.full(shape, k)) for k in range(4)]
    torch.testing.assert_close(sum(every), torch.ones(shape))
    assert all(float(a.min()) >= 0 for a in every)


def test_errors():
    logits, target = example()
    with pytest.raises(PriorError, match=r"`target` must be \(B, 1 \+ K, .* got \(2, 1, 3, 4\)"):
        AtlasPriorLoss()(logits, target[:, :1])
    with pytest.raises(PriorError, match=r"`target` must be .* concatenate label and prior"):
        AtlasPriorLoss()(logits, target[..., 1:])
    for wrong in (3.0, -1.0, 0.5):
        target[0, 0, 0, 0] = wrong
        with pytest.raises(
            DatasetError, match=r"`target`'s first channel must hold classes 0 to 2 or 255"
        ):
            AtlasPriorLoss()(logits, target)
    for gamma in (-1, 0.5, float("nan")):
        with pytest.raises(ValueError, match=r"`gamma` must be 0 or at least 1, got"):
            AtlasPriorLoss(gamma=gamma)
    for name in ("atlas_gamma", "atlas_factor"):
        with pytest.raises(ValueError, match=r"`atlas_gamma` and `atlas_factor` must be at least"):
            AtlasPriorLoss(**{name: -0.1})
