"""Predict, locate, place, fuse: with MONAI's inferers, in one pass of the backbone."""

import copy
import re
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import (
    DataLoader,
    Dataset,
    MetaTensor,
    decollate_batch,
    list_data_collate,
    set_track_meta,
)
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    Invertd,
    LoadImaged,
    Orientation,
    Orientationd,
    Spacingd,
)
from torch import nn

from stipple_monai.cross_fitting import PartsInferer
from stipple_monai.errors import PositionError, PriorError
from stipple_monai.inferers.certainty import MINIMUM_CONFIDENCE_ALONE, MINIMUM_CONFIDENCE_HELPED
from stipple_monai.inferers.located import fuse_logits
from stipple_monai.inferers.prior_driven import (
    CONFIDENCE_META,
    POSITION_META,
    PriorDrivenInferer,
)
from stipple_monai.networks import Calibration, PriorDrivenNet, softmax_logits
from stipple_monai.positioning.joint import locate_organs
from stipple_monai.positioning.single import locate_organ
from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.transforms import DecideLabel
from stipple_monai.transforms.array import PriorAlign

SHAPE = (20, 18, 12)
LINEAR = np.diag([-2.0, 2.0, 3.0])


class Threshold(nn.Module):
    """Organ k where the image is near its level; counts its passes."""

    def __init__(self, levels=(1.0, -1.0), *, dims=3, background=True):
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.conv = conv(1, len(levels) + background, kernel_size=1)
        with torch.no_grad():
            weights = [8.0 * np.sign(v) for v in levels]
            biases = [-8.0 * abs(v) + 4 for v in levels]
            self.conv.weight[:] = torch.tensor([0.0] * background + weights).reshape(
                self.conv.weight.shape
            )
            self.conv.bias[:] = torch.tensor([0.0] * background + biases)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        assert x.shape[1] == 1
        return self.conv(x)


INFERERS = {
    "simple": (SimpleInferer(), 3),
    "sliding window": (SlidingWindowInferer((8, 8, 8), 3, overlap=0.5, mode="gaussian"), 3),
    "slice": (SliceInferer(roi_size=SHAPE[:2], spatial_dim=2, sw_batch_size=4), 2),
}
every_inferer = pytest.mark.parametrize(("inferer", "dims"), INFERERS.values(), ids=list(INFERERS))


def scan(*, centers=((6, 5, 4), (13, 11, 7)), origin=(10.0, -20.0, 30.0), name="one.nii", seed=0):
    """A noisy image with a block of level 1 and one of level −1."""
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.05
    for center, level in zip(centers, (1.0, -1.0), strict=False):
        image[(0, *(slice(c - 2, c + 3) for c in center))] += level
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = LINEAR, origin
    return MetaTensor(image, affine=affine, meta={"filename_or_obj": name})


def batch_of(*scans):
    return list_data_collate([{"image": s} for s in scans])["image"]


def world(image, voxel):
    return image.affine[:3, :3] @ torch.tensor(voxel, dtype=torch.float64) + image.affine[:3, 3]


def make_priors(organs=(1, 2)):
    rng = np.random.default_rng(4)
    return [
        SpatialPrior(0.3 + 0.7 * rng.random((5, 5, 3)), spacing_mm=(2, 2, 5), organ=k)
        for k in organs
    ]


def with_prior(inputs, priors, positions, **options):
    """The image and behind it the priors at the given positions, volume by volume."""
    items = []
    for image, affine, position in zip(
        inputs.as_tensor(), inputs.affine.reshape(-1, 4, 4), positions, strict=True
    ):
        prior = PriorAlign(priors, **options)(MetaTensor(image, affine=affine), position)
        items.append(torch.cat([image, prior.as_tensor()]))
    return torch.stack(items)


@every_inferer
def test_one_pass_of_the_backbone_and_the_result_of_the_network_with_that_prior(inferer, dims):
    net = PriorDrivenNet(Threshold(dims=dims), image_channels=1).eval()
    image, priors = scan(), make_priors()
    inputs = batch_of(image)
    inferer(inputs, net.network)
    once, net.network.calls = net.network.calls, 0

    result = PriorDrivenInferer(inferer, priors)(inputs, net)
    assert net.network.calls == once
    assert result.shape == (1, 3, *SHAPE)
    positions = result.meta[POSITION_META]
    assert positions.shape == (1, 2, 3)
    for found, center in zip(positions[0], [(6, 5, 4), (13, 11, 7)], strict=True):
        assert (found - world(image, center)).abs().max() <= 3
    expected = inferer(with_prior(inputs, priors, positions), net)
    torch.testing.assert_close(result.as_tensor(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(result.as_tensor(), inferer(inputs, net.network).as_tensor())


def test_the_simple_inferer_calls_the_backbone_once_and_warns_of_nothing():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    infer = PriorDrivenInferer(SimpleInferer(), make_priors())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer(batch_of(scan(), scan()), net)
    assert net.network.calls == 1


@pytest.mark.parametrize("options", [{}, {"max_shift_mm": 4.0}, {"epsilon": 0.2}])
def test_positions_are_those_of_locate_organ_on_the_prediction_without_prior(options):
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, priors = batch_of(scan()), make_priors()
    result = PriorDrivenInferer(SimpleInferer(), priors, **options)(inputs, net)
    coarse = net.network(inputs).as_tensor().softmax(1)[0, 1:].detach()
    for k, prior in enumerate(priors):
        one = MetaTensor(coarse[k : k + 1], affine=inputs.affine[0])
        torch.testing.assert_close(
            result.meta[POSITION_META][0, k], locate_organ(one, prior, **options)
        )


def test_references_tell_the_position_and_priors_the_bias():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, priors = batch_of(scan()), make_priors()
    volumes = [torch.zeros(1, *SHAPE, dtype=torch.uint8) for _ in priors]
    volumes[0][0, 2:7, 2:4, 2:5], volumes[1][0, 2:4, 2:9, 2:4] = 1, 2
    references = [
        SpatialPrior.estimate(
            [MetaTensor(v, affine=inputs.affine[0])], organ=k + 1, smoothing_mm=None
        )
        for k, v in enumerate(volumes)
    ]
    result = PriorDrivenInferer(SimpleInferer(), priors, references=references)(inputs, net)
    positions = result.meta[POSITION_META]
    coarse = net.network(inputs).as_tensor().softmax(1)[0, 1:].detach()
    for k, reference in enumerate(references):
        one = MetaTensor(coarse[k : k + 1], affine=inputs.affine[0])
        torch.testing.assert_close(positions[0, k], locate_organ(one, reference))
    own = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net)
    assert not torch.equal(own.meta[POSITION_META], positions)
    torch.testing.assert_close(
        result.as_tensor(), net(with_prior(inputs, priors, positions)), rtol=1e-5, atol=1e-5
    )


def test_a_locator_tells_positions_alone_and_costs_one_pass():
    """The backbone sees the block of level 1, the locator the one of level −1."""
    net = PriorDrivenNet(Threshold((1.0,)), image_channels=1)
    locator, seen = Threshold((-1.0,)), []
    locator.register_forward_hook(lambda module, *_: seen.append(module.training))
    inputs, priors = batch_of(scan()), make_priors([1])
    result = PriorDrivenInferer(SimpleInferer(), priors, locator=locator)(inputs, net)
    assert (net.network.calls, locator.calls) == (1, 1)
    assert seen == [False]
    assert locator.training  # the user's module is as it was
    positions = result.meta[POSITION_META]
    assert (positions[0, 0] - world(scan(), (13, 11, 7))).abs().max() <= 3
    expected = net(with_prior(inputs, priors, positions))
    torch.testing.assert_close(result.as_tensor(), expected, rtol=1e-5, atol=1e-5)


def test_a_batch_of_volumes_with_different_affines():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    first = scan()
    second = scan(centers=((12, 6, 6), (5, 12, 5)), origin=(-99.0, 7.0, 1.0), name="two.nii")
    second.affine[:3, :3] = torch.diag(torch.tensor([2.0, -2.0, 3.5]))
    infer = PriorDrivenInferer(SimpleInferer(), make_priors())
    both = infer(batch_of(first, second), net)
    assert both.meta[POSITION_META].shape == (2, 2, 3)
    items = decollate_batch(both)
    for item, image in zip(items, (first, second), strict=True):
        alone = infer(batch_of(image), net)
        torch.testing.assert_close(item.meta[POSITION_META], alone.meta[POSITION_META][0])
        torch.testing.assert_close(item.as_tensor(), alone[0].as_tensor())
        torch.testing.assert_close(item.affine, image.affine)
        assert item.meta["filename_or_obj"] == image.meta["filename_or_obj"]


def test_scans_of_files_come_in_batches_too(tmp_path):
    """Their metadata has what a loader puts there, collated into tensors of several scans."""
    for name in ("one.nii", "two.nii"):
        each = scan()
        nib.save(nib.Nifti1Image(each[0].numpy(), each.affine.numpy()), tmp_path / name)
    read = LoadImaged("image", ensure_channel_first=True)
    items = Dataset([{"image": tmp_path / name} for name in ("one.nii", "two.nii")], read)
    (batch,) = DataLoader(items, batch_size=2)
    infer = PriorDrivenInferer(SimpleInferer(), make_priors())
    both = infer(batch["image"], Threshold())
    for item, name in zip(decollate_batch(both), ("one.nii", "two.nii"), strict=True):
        assert item.meta["filename_or_obj"] == str(tmp_path / name)
        torch.testing.assert_close(item.affine, scan().affine)
    assert PartsInferer(infer)(batch["image"], Threshold()).shape == (2, 5, *SHAPE)


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 3), (0, 4, 4)])
def test_affines_of_another_number_than_scans_are_refused(shape):
    inputs = batch_of(scan(), scan(name="two.nii"))
    inputs.meta["affine"] = torch.eye(shape[-1], dtype=torch.float64).expand(shape)
    net = PriorDrivenNet(Threshold(), image_channels=1)
    with pytest.raises(PositionError, match=r"4 × 4 affine for all or for each, got 2 scans and"):
        PriorDrivenInferer(SimpleInferer(), make_priors())(inputs, net)
    with pytest.raises(PositionError, match=r"`affine` must hold .* got 2 scans and affines of"):
        fuse_logits(net.network(inputs).as_tensor(), inputs.meta["affine"], make_priors())


@pytest.mark.parametrize("wrap", [MetaTensor, torch.Tensor.clone], ids=["meta", "plain"])
@every_inferer
def test_with_prior_channels_the_network_runs_as_it_is(inferer, dims, wrap, recwarn):
    net = PriorDrivenNet(Threshold(dims=dims), image_channels=1)
    inputs = torch.cat([batch_of(scan()).as_tensor(), torch.rand(1, 2, *SHAPE)], dim=1)
    result = PriorDrivenInferer(inferer, make_priors())(wrap(inputs), net)
    assert torch.equal(torch.as_tensor(result), torch.as_tensor(inferer(inputs, net)))
    assert not [w for w in recwarn if "neutral" in str(w.message)]


def test_the_result_lies_on_the_device_that_is_asked_for():
    net, priors = PriorDrivenNet(Threshold(), image_channels=1), make_priors()
    placed = torch.cat([batch_of(scan()).as_tensor(), torch.rand(1, 2, *SHAPE)], dim=1)
    known = PriorDrivenInferer(SimpleInferer(), priors, device="meta")(placed, net)
    assert known.device.type == "meta"
    located = PriorDrivenInferer(SimpleInferer(), priors, device="cpu")(batch_of(scan()), net)
    torch.testing.assert_close(
        located, PriorDrivenInferer(SimpleInferer(), priors)(batch_of(scan()), net)
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_organs_are_located_on_the_cpu_where_a_gpu_predicts():
    net, priors = PriorDrivenNet(Threshold(), image_channels=1), make_priors()
    expected = PriorDrivenInferer(SimpleInferer(), priors)(batch_of(scan()), net)
    infer = PriorDrivenInferer(SimpleInferer(), priors, device="cpu")
    result = infer(batch_of(scan()).cuda(), net.cuda())
    assert result.device.type == "cpu"
    torch.testing.assert_close(result, expected)


def test_an_organ_predicted_nowhere_has_a_neutral_prior_and_a_warning_with_its_name_and_file():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    priors = make_priors(organs=(4, 7))
    inputs = batch_of(scan(), scan(centers=((6, 5, 4),), name="no_seven.nii"))
    with pytest.warns(UserWarning, match=r"^Organ 7 is predicted nowhere in no_seven\.nii") as seen:
        result = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net)
    assert len([w for w in seen if "nowhere" in str(w.message)]) == 1
    positions = result.meta[POSITION_META]
    assert torch.isfinite(positions[0]).all()
    assert torch.isfinite(positions[1, 0]).all()
    assert torch.isnan(positions[1, 1]).all()
    expected = net(with_prior(inputs, priors, positions))
    torch.testing.assert_close(result.as_tensor(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_nothing_predicted_leaves_the_prediction_as_it_is(activation):
    backbone = Threshold(background=activation == "softmax")
    net = PriorDrivenNet(backbone, image_channels=1, activation=activation)
    inputs = batch_of(scan(centers=()))
    with pytest.warns(UserWarning, match="nowhere in one"):
        result = PriorDrivenInferer(SimpleInferer(), make_priors())(inputs, net)
    bare = backbone(inputs).as_tensor()
    if activation == "softmax":
        result, bare = result.softmax(1), bare.softmax(1)
    torch.testing.assert_close(result.as_tensor(), bare)


def test_an_unnamed_scan_is_a_scan():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs = MetaTensor(torch.zeros(2, 1, *SHAPE), affine=torch.eye(4))
    with pytest.warns(UserWarning, match="nowhere in a scan"):
        PriorDrivenInferer(SimpleInferer(), make_priors())(inputs, net)


def test_the_minimum_decides_what_is_predicted():
    net = PriorDrivenNet(Threshold((1.0,)), image_channels=1)
    inputs, priors = batch_of(scan()), make_priors([1])
    with pytest.warns(UserWarning, match="Organ 1 is predicted nowhere"):
        result = PriorDrivenInferer(SimpleInferer(), priors, minimum=0.9999)(inputs, net)
    assert torch.isnan(result.meta[POSITION_META]).all()


def test_sigmoid_networks_have_no_background_channel():
    net = PriorDrivenNet(Threshold(background=False), image_channels=1, activation="sigmoid")
    inputs, priors = batch_of(scan()), make_priors()
    result = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net)
    assert result.shape == (1, 2, *SHAPE)
    positions = result.meta[POSITION_META]
    assert (positions[0, 1] - world(scan(), (13, 11, 7))).abs().max() <= 3
    expected = net(with_prior(inputs, priors, positions, activation="sigmoid"))
    torch.testing.assert_close(result.as_tensor(), expected, rtol=1e-5, atol=1e-5)


def test_mode_strength_and_floor_are_those_of_prior_and_network():
    inputs, priors = batch_of(scan()), make_priors()
    net = PriorDrivenNet(Threshold(), image_channels=1, strength=0.5, floor=0.02)
    result = PriorDrivenInferer(SimpleInferer(), priors, mode="linear")(inputs, net)
    channels = with_prior(inputs, priors, result.meta[POSITION_META], mode="linear")
    torch.testing.assert_close(result.as_tensor(), net(channels), rtol=1e-5, atol=1e-5)
    nearest = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net)
    assert not torch.allclose(result.as_tensor(), nearest.as_tensor())


def test_the_scan_stays_as_it_is_and_learns_its_positions():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs = batch_of(Orientation("RAS", labels=None)(scan()))
    values, meta = inputs.clone(), copy.deepcopy(inputs.meta)
    result = PriorDrivenInferer(SimpleInferer(), make_priors())(inputs, net)
    assert torch.equal(inputs, values)
    assert inputs.meta.keys() == meta.keys() | {POSITION_META, CONFIDENCE_META}
    for key in (POSITION_META, CONFIDENCE_META):
        assert torch.equal(inputs.meta[key], result.meta[key])
    torch.testing.assert_close(result.affine, inputs.affine)
    assert result.is_batch
    assert [o["class"] for o in result.applied_operations[0]] == ["Orientation"]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(nn.DataParallel, id="parallel"),
        pytest.param(torch.compile, id="compiled", marks=pytest.mark.slow),
        pytest.param(
            lambda net: torch.compile(nn.DataParallel(net)),
            id="compiled parallel",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda net: nn.DataParallel(torch.compile(net)),
            id="parallel compiled",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_network_is_found_inside_wrappers(wrap):
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, infer = batch_of(scan()), PriorDrivenInferer(SimpleInferer(), make_priors())
    assert torch.equal(infer(inputs, wrap(net)).as_tensor(), infer(inputs, net).as_tensor())


def test_a_backbone_that_was_compiled_runs_compiled_and_what_is_around_it_does_not():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    inputs, infer = batch_of(scan()), PriorDrivenInferer(SimpleInferer(), make_priors())
    expected = infer(inputs, PriorDrivenNet(Threshold(), image_channels=1)).as_tensor()
    for net, graphs in (
        (torch.compile(PriorDrivenNet(Threshold(), image_channels=1), backend=backend), 0),
        (PriorDrivenNet(torch.compile(Threshold(), backend=backend), image_channels=1), 1),
    ):
        assert torch.equal(infer(inputs, net).as_tensor(), expected)
        assert len(compiled) == graphs


class Around(nn.Module):
    """As a module of Lightning has its network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("inside", [Around, lambda net: Around(net).forward, lambda n: n.forward])
def test_what_has_a_prior_driven_network_inside_would_add_the_prior_twice(inside):
    inputs, priors = batch_of(scan()), make_priors()
    net = PriorDrivenNet(Threshold(), image_channels=1)
    infer = PriorDrivenInferer(SimpleInferer(), priors)
    positions = infer(inputs, net).meta[POSITION_META]
    with pytest.raises(PriorError, match="must be the PriorDrivenNet itself, got what has it"):
        infer(with_prior(inputs, priors, positions), inside(net))


def test_an_export_that_lost_its_settings_is_refused():
    inputs, priors = batch_of(scan()), make_priors()
    net = PriorDrivenNet(Threshold(), image_channels=1).eval()
    infer = PriorDrivenInferer(SimpleInferer(), priors)
    placed = with_prior(inputs, priors, infer(inputs, net).meta[POSITION_META])
    traced = torch.jit.trace(net, placed)
    for lost in (traced, torch.jit.freeze(torch.jit.script(net))):
        with pytest.raises(PriorError, match=r"must know its image channels, .* torch\.jit"):
            infer(inputs, lost)


@pytest.mark.parametrize("shape", [(1, 24, 20, 12), (2, 1, 24, 20), (24, 20, 12)])
def test_inputs_have_five_axes(shape):
    net = PriorDrivenNet(Threshold(), image_channels=1)
    infer = PriorDrivenInferer(SimpleInferer(), make_priors())
    for run in (infer, infer.parts):
        with pytest.raises(PriorError, match=r"`inputs` must have the axes B C W H D, got the"):
            run(MetaTensor(torch.zeros(shape), affine=torch.eye(4)), net)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        net = PriorDrivenNet(Threshold(), image_channels=1)
        inputs, infer = batch_of(scan()), PriorDrivenInferer(SimpleInferer(), make_priors())
        parallel = nn.parallel.DistributedDataParallel(net)
        assert torch.equal(infer(inputs, parallel).as_tensor(), infer(inputs, net).as_tensor())
    finally:
        torch.distributed.destroy_process_group()


def test_autocast_keeps_its_precision_for_the_backbone_alone():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, infer = batch_of(scan()), PriorDrivenInferer(SimpleInferer(), make_priors())
    full = infer(inputs, net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = infer(inputs, net)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.meta[POSITION_META], full.meta[POSITION_META])
    torch.testing.assert_close(half.as_tensor().float(), full.as_tensor(), rtol=0.03, atol=0.1)


def test_a_supervised_evaluator_inverts_what_comes_out():
    items = [
        {"image": scan(name="one.nii")},
        {"image": scan(centers=((12, 6, 6), (5, 12, 5)), name="two.nii", seed=1)},
    ]
    truth = [[(6, 5, 4), (13, 11, 7)], [(12, 6, 6), (5, 12, 5)]]
    before = Compose(
        [
            Orientationd(keys="image", axcodes="RAS"),
            Spacingd(keys="image", pixdim=(2.5, 2.5, 3.0), mode="bilinear"),
        ]
    )
    after = Compose(
        [
            Activationsd(keys="pred", softmax=True),
            Invertd(keys="pred", transform=before, orig_keys="image", nearest_interp=False),
            AsDiscreted(keys="pred", argmax=True),
        ]
    )
    outputs = []
    net = PriorDrivenNet(Threshold(), image_channels=1)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, before), batch_size=2),
        network=net,
        inferer=PriorDrivenInferer(SimpleInferer(), make_priors()),
        postprocessing=after,
        prepare_batch=lambda batch, device, non_blocking, **_: (batch["image"].to(device), None),
    )
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: outputs.extend(engine.state.output)
    )
    evaluator.run()
    assert net.network.calls == 1
    assert len(outputs) == 2
    for output, item, centers in zip(outputs, items, truth, strict=True):
        pred = output["pred"]
        assert pred.shape == (1, *SHAPE)
        torch.testing.assert_close(pred.affine, item["image"].affine)
        assert pred.meta[POSITION_META].shape == (2, 3)
        for k, center in enumerate(centers):
            assert pred[(0, *center)] == k + 1
            found = pred.meta[POSITION_META][k]
            assert (found - world(item["image"], center)).abs().max() <= 3


# --- confidence, and organs together -------------------------------------------------------------


def coarse_of(net, inputs):
    return net.network(inputs).as_tensor().softmax(1)[0, 1:].detach()


def offset_priors(organs=(1, 2)):
    """As of :func:`make_priors`, with the offsets that organs of :func:`scan` have."""
    first, second = make_priors(organs)
    half = LINEAR @ np.subtract((13, 11, 7), (6, 5, 4)) / 2
    first.offset_mm, second.offset_mm = tuple(-half), tuple(half)
    return [first, second]


def test_confidences_are_kept_beside_the_positions():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    first, second = scan(), scan(centers=((6, 5, 4),), name="one_block.nii", seed=2)
    inputs, priors = batch_of(first, second), make_priors()
    with pytest.warns(UserWarning, match="Organ 2 is predicted nowhere in one_block"):
        result = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net)
    confidence = result.meta[CONFIDENCE_META]
    assert confidence.shape == (2, 2)
    assert confidence.dtype == torch.float64
    for image, found in zip((first, second), confidence, strict=True):
        inputs = batch_of(image)
        coarse = MetaTensor(coarse_of(net, inputs), affine=image.affine)
        torch.testing.assert_close(found, locate_organs(coarse, priors).confidence)
    assert (confidence[0] > 0.7).all()
    assert confidence[1, 1] == 0
    items = decollate_batch(result)
    assert torch.equal(torch.stack([i.meta[CONFIDENCE_META] for i in items]), confidence)


def doubtful(name="two.nii"):
    """Two blocks of level 1 as far apart as they can be, so that either may be organ 1."""
    image = scan(name=name)
    image[0, 15:20, 13:18, 7:12] += 1
    return image


def test_an_uncertain_position_leaves_a_neutral_prior_and_a_warning_with_its_confidence():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, priors = batch_of(scan(), doubtful()), make_priors(organs=(4, 7))
    infer = PriorDrivenInferer(SimpleInferer(), priors, minimum_confidence=0.7)
    message = r"^Organ 4 has no certain position \(0\.(49|5\d)\) in two\.nii: "
    message += r"its prior stays neutral\.$"
    with pytest.warns(UserWarning, match=message) as seen:
        result = infer(inputs, net)
    assert len([w for w in seen if "neutral" in str(w.message)]) == 1
    positions, confidence = result.meta[POSITION_META], result.meta[CONFIDENCE_META]
    assert positions[1, 0].isnan().all()
    assert torch.isfinite(positions[0]).all()
    assert torch.isfinite(positions[1, 1]).all()
    # The confidence tells why.
    assert 0.49 <= confidence[1, 0] < 0.6
    expected = net(with_prior(inputs, priors, positions))
    torch.testing.assert_close(result.as_tensor(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("minimum_confidence", [0.0, 0.3])
def test_a_position_that_is_certain_enough_is_used(minimum_confidence):
    net = PriorDrivenNet(Threshold(), image_channels=1)
    infer = PriorDrivenInferer(
        SimpleInferer(), make_priors(), minimum_confidence=minimum_confidence
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = infer(batch_of(doubtful()), net)
    assert torch.isfinite(result.meta[POSITION_META]).all()


def test_the_limit_itself_is_certain_enough():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs = batch_of(doubtful())
    free = PriorDrivenInferer(SimpleInferer(), make_priors(), minimum_confidence=0)(inputs, net)
    limit = float(free.meta[CONFIDENCE_META][0, 0])
    for minimum, used in ((limit, True), (np.nextafter(limit, 1), False)):
        infer = PriorDrivenInferer(SimpleInferer(), make_priors(), minimum_confidence=minimum)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = infer(inputs, net).meta[POSITION_META][0, 0]
        assert bool(torch.isfinite(found).all()) == used


def test_the_least_confidence_depends_on_who_helps_to_locate():
    alone, together, scan = make_priors(), offset_priors(), make_priors()
    for prior in scan:
        prior.from_top_mm = (0.0, 0.0, -90.0)
    for priors, options, expected in (
        (alone, {}, MINIMUM_CONFIDENCE_ALONE),
        (together, {}, MINIMUM_CONFIDENCE_HELPED),
        (together, {"max_shift_mm": 9.0}, MINIMUM_CONFIDENCE_ALONE),
        (together, {"references": alone}, MINIMUM_CONFIDENCE_ALONE),
        (alone, {"references": together}, MINIMUM_CONFIDENCE_HELPED),
        (scan, {}, MINIMUM_CONFIDENCE_HELPED),
        (scan, {"scan_vote": False}, MINIMUM_CONFIDENCE_ALONE),
        (scan, {"max_shift_mm": 9.0}, MINIMUM_CONFIDENCE_ALONE),
        (scan, {"position": "prediction_center"}, MINIMUM_CONFIDENCE_ALONE),
        (together, {"minimum_confidence": 0.4}, 0.4),
        (alone, {"minimum_confidence": 0}, 0),
    ):
        infer = PriorDrivenInferer(SimpleInferer(), priors, **options)
        assert infer.minimum_confidence == expected


@pytest.mark.slow
def test_priors_that_were_estimated_together_are_located_together():
    """Organ 2 is seen by a corner and, more of it, in the wrong place."""
    net = PriorDrivenNet(Threshold(), image_channels=1)
    image = scan(centers=((6, 5, 4),))
    image[0, 13:16, 11:14, 7:10] -= 1
    image[0, 14:19, 1:6, 0:3] -= 1
    inputs = batch_of(image)
    coarse = MetaTensor(coarse_of(net, inputs), affine=image.affine)
    alone, together = make_priors(), offset_priors()
    results = {}
    for name, priors, options in (
        ("alone", alone, {}),
        ("together", together, {}),
        ("tight", together, {"spread_mm": 6.0}),
        ("limited", together, {"max_shift_mm": 8.0}),
    ):
        infer = PriorDrivenInferer(SimpleInferer(), priors, minimum_confidence=0, **options)
        found = infer(inputs, net).meta
        expected = locate_organs(coarse, priors, **options)
        torch.testing.assert_close(found[POSITION_META][0], expected.position_mm)
        torch.testing.assert_close(found[CONFIDENCE_META][0], expected.confidence)
        results[name] = found[POSITION_META][0, 1]
    assert (results["tight"] - world(image, (14, 12, 8))).norm() < 6
    assert (results["alone"] - world(image, (16, 3, 1))).norm() < 6


def test_an_organ_predicted_nowhere_gets_its_place_from_the_others():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    image, priors = scan(centers=((6, 5, 4),)), offset_priors()
    inputs = batch_of(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net)
    positions = result.meta[POSITION_META]
    # The scan's noise supports a fifth of its prior, and draws it by some millimetres.
    assert (positions[0, 1] - world(image, (13, 11, 7))).abs().max() <= 14
    expected = net(with_prior(inputs, priors, positions))
    torch.testing.assert_close(result.as_tensor(), expected, rtol=1e-5, atol=1e-5)


# --- naive positioning ---------------------------------------------------------------------------


def centers_by_hand(coarse, affine, center, minimum=0.5):
    """Voxel by voxel: the middle of the box around, or the mean of, what reaches the minimum."""
    points = []
    for q in coarse:
        found = [
            np.array(affine[:3, :3]) @ index + np.array(affine[:3, 3])
            for index in np.ndindex(*q.shape)
            if float(q[index]) >= minimum
        ]
        box = (np.min(found, axis=0) + np.max(found, axis=0)) / 2
        points.append(np.mean(found, axis=0) if center == "mass" else box)
    return np.array(points)


@pytest.mark.parametrize("center", ["bbox", "mass", "groupwise"])
def test_the_naive_position_is_the_centre_of_what_is_predicted(center):
    image = scan()
    # a far voxel and a corner, so that box, mass and best correlation differ
    image[0, 18, 16, 10] += 1
    image[0, 16:19, 13, 9] -= 1
    image.affine[:3, :3] = torch.tensor([[0.0, -2, 0], [2, 0, 0], [0, 0, 3]])
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, priors = batch_of(image), offset_priors()
    for prior in priors:
        prior.center = center
    infer = PriorDrivenInferer(SimpleInferer(), priors, position="prediction_center")
    result = infer(inputs, net)
    expected = centers_by_hand(coarse_of(net, inputs), image.affine, center)
    positions = result.meta[POSITION_META]
    np.testing.assert_allclose(positions[0].numpy(), expected, atol=1e-6)
    assert torch.equal(result.meta[CONFIDENCE_META], torch.ones(1, 2, dtype=torch.float64))
    channels = with_prior(inputs, priors, positions)
    torch.testing.assert_close(result.as_tensor(), net(channels), rtol=1e-5, atol=1e-5)
    by_divergence = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net).meta[POSITION_META]
    assert (by_divergence - positions).abs().max() > 0.1


def test_the_minimum_decides_what_the_naive_position_is_the_centre_of():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    image, priors = scan(), make_priors()
    # a trace of organ 1, of a probability of 0.4
    image[0, 17:19, 14:17, 1:3] += 0.45
    inputs, found = batch_of(image), {}
    for minimum in (0.2, 0.6):
        infer = PriorDrivenInferer(
            SimpleInferer(), priors, position="prediction_center", minimum=minimum
        )
        found[minimum] = infer(inputs, net).meta[POSITION_META][0].numpy()
        by_hand = centers_by_hand(coarse_of(net, inputs), image.affine, "bbox", minimum)
        np.testing.assert_allclose(found[minimum], by_hand, atol=1e-6)
    assert np.abs(found[0.2] - found[0.6])[0].max() > 4


def test_the_naive_position_is_unknown_where_nothing_is_predicted():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, priors = batch_of(scan(centers=((6, 5, 4),))), offset_priors()
    infer = PriorDrivenInferer(SimpleInferer(), priors, position="prediction_center")
    with pytest.warns(UserWarning, match=r"Organ 2 is predicted nowhere in one\.nii"):
        result = infer(inputs, net)
    positions, confidence = result.meta[POSITION_META], result.meta[CONFIDENCE_META]
    assert positions[0, 1].isnan().all()
    assert confidence.tolist() == [[1.0, 0.0]]
    expected = net(with_prior(inputs, priors, positions))
    torch.testing.assert_close(result.as_tensor(), expected, rtol=1e-5, atol=1e-5)


def test_the_naive_position_is_that_of_the_locator_if_there_is_one():
    net = PriorDrivenNet(Threshold((-1.0, 1.0)), image_channels=1)
    inputs, options = batch_of(scan()), {"position": "prediction_center"}
    own = PriorDrivenInferer(SimpleInferer(), make_priors(), **options)(inputs, net)
    other = PriorDrivenInferer(SimpleInferer(), make_priors(), locator=Threshold(), **options)
    found = other(inputs, net).meta[POSITION_META]
    torch.testing.assert_close(found, own.meta[POSITION_META].flip(1))


def test_a_sigmoid_network_is_located_naively_too():
    net = PriorDrivenNet(Threshold(background=False), image_channels=1, activation="sigmoid")
    infer = PriorDrivenInferer(SimpleInferer(), make_priors(), position="prediction_center")
    found = infer(batch_of(scan()), net).meta[POSITION_META]
    torch.testing.assert_close(found[0, 0], world(scan(), (6, 5, 4)))
    torch.testing.assert_close(found[0, 1], world(scan(), (13, 11, 7)))


def test_errors_of_naive_positioning():
    with pytest.raises(PositionError, match="`position` must be 'kl' or 'prediction_center', got"):
        PriorDrivenInferer(SimpleInferer(), make_priors(), position="center")
    for option, message in (({"epsilon": 0.7}, "`epsilon`"), ({"minimum": 2}, "`minimum`")):
        with pytest.raises(PositionError, match=message):
            PriorDrivenInferer(
                SimpleInferer(), make_priors(), position="prediction_center", **option
            )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_naive_position_on_cuda():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    infer = PriorDrivenInferer(SimpleInferer(), make_priors(), position="prediction_center")
    expected = infer(batch_of(scan()), net).meta[POSITION_META]
    found = infer(batch_of(scan()).cuda(), net.cuda()).meta[POSITION_META]
    torch.testing.assert_close(found, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("stitch", ["cpu", "cuda"])
def test_cuda_equals_cpu_also_where_windows_are_stitched_on_the_cpu(stitch):
    net = PriorDrivenNet(Threshold(), image_channels=1)
    inputs, locator = batch_of(scan()), Threshold()
    window = SlidingWindowInferer((8, 8, 8), 3, sw_device="cuda", device=stitch)
    expected = PriorDrivenInferer(SimpleInferer(), make_priors(), locator=locator)(inputs, net)
    result = PriorDrivenInferer(window, make_priors(), locator=locator)(
        inputs if stitch == "cpu" else inputs.cuda(), net.cuda()
    )
    assert result.device.type == stitch
    torch.testing.assert_close(result.meta[POSITION_META], expected.meta[POSITION_META])
    torch.testing.assert_close(result.as_tensor().cpu(), expected.as_tensor(), rtol=0, atol=0.05)


def test_errors_of_construction():
    with pytest.raises(PriorError, match="`references` must be one per prior, 2, got 1"):
        PriorDrivenInferer(SimpleInferer(), make_priors(), references=make_priors([1]))
    with pytest.raises(PriorError, match="`priors` must be one SpatialPrior or more"):
        PriorDrivenInferer(SimpleInferer(), [])
    for value in (-0.1, 1.01, float("nan")):
        with pytest.raises(PositionError, match=r"`minimum_confidence` must lie in \[0, 1\], got"):
            PriorDrivenInferer(SimpleInferer(), make_priors(), minimum_confidence=value)


def test_priors_of_two_estimations_are_refused_where_they_would_be_located_together():
    priors = make_priors()
    for number, prior in enumerate(priors):
        prior.offset_mm, prior.offsets_id = (5.0, 0.0, 0.0), str(number)
    for options in ({}, {"minimum_confidence": 0.3}):
        with pytest.raises(PositionError, match="must be of one estimation, since"):
            PriorDrivenInferer(SimpleInferer(), priors, **options)
    for options in ({"max_shift_mm": 50}, {"position": "prediction_center"}):
        PriorDrivenInferer(SimpleInferer(), priors, **options)


@pytest.mark.parametrize("labelled", [2.5, True, 0, False, [1], -1])
def test_labelled_is_a_number_of_scans(labelled):
    with pytest.raises(PriorError, match=rf"`labelled` must be .*, got {re.escape(str(labelled))}"):
        PriorDrivenInferer(SimpleInferer(), make_priors(), labelled=labelled)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_network_that_returns_nan_or_infinity_is_named(value):
    broken, inputs = Threshold(), batch_of(scan())
    with torch.no_grad():
        broken.conv.bias[1] = value
    match = "must be finite, got NaN or infinity, which the network returned: look for"
    with pytest.raises(PriorError, match=f"`logits` {match}"):
        PriorDrivenInferer(SimpleInferer(), make_priors())(inputs, broken)
    with pytest.raises(PriorError, match=f"`coarse` {match}"):
        PriorDrivenInferer(SimpleInferer(), make_priors(), locator=broken)(inputs, Threshold())


def test_errors_of_a_call():
    net = PriorDrivenNet(Threshold(), image_channels=1)
    infer = PriorDrivenInferer(SimpleInferer(), make_priors())
    with pytest.raises(PositionError, match=r"`inputs` must be a MetaTensor, .* got Tensor"):
        infer(batch_of(scan()).as_tensor(), net)
    with pytest.raises(PriorError, match="one per organ of the network, 2, got 1"):
        PriorDrivenInferer(SimpleInferer(), make_priors([1]))(batch_of(scan()), net)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"mode": "cubic"}, "`mode` must be 'auto', 'nearest' or 'linear', got 'cubic'"),
        ({"activation": "relu"}, "`activation` must be 'softmax' or 'sigmoid', got 'relu'"),
        ({"locate_with": "no"}, "`locate_with` must be 'raw' or 'calibrated', got 'no'"),
        ({"epsilon": 0}, r"`epsilon` must lie in \(0, 0.5\), got 0"),
        ({"minimum": 2}, "`minimum` must be a probability"),
        ({"max_shift_mm": 0}, "`max_shift_mm` must be positive or None, got 0"),
        ({"spread_mm": -1}, "`spread_mm` must be a positive length, got -1"),
    ],
)
def test_options_are_checked_before_a_network_runs(option, match):
    with pytest.raises((PriorError, PositionError), match=match):
        PriorDrivenInferer(SimpleInferer(), make_priors(), **option)


class Halved(Threshold):
    """Logits of half the resolution."""

    def forward(self, x):
        return nn.functional.avg_pool3d(super().forward(x), 2)


class Heads(Threshold):
    """Several outputs, as for deep supervision."""

    def forward(self, x):
        return [super().forward(x)] * 2


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer((8, 8, 8), 3)])
@pytest.mark.parametrize(
    ("network", "match"),
    [
        (Halved(), r"grid, 1 × \(20, 18, 12\), got 1 × \(10, 9, 6\): upsample them to it in the"),
        (Heads(), r"must return its logits as one tensor B C W H D, got (list|tuple): of several"),
    ],
)
def test_logits_are_one_tensor_on_the_grid_of_the_inputs(inferer, network, match):
    inputs, priors = batch_of(scan()), make_priors()
    infer = PriorDrivenInferer(inferer, priors)
    with pytest.raises(PriorError, match=match):
        infer(inputs, network)
    with pytest.raises(PriorError, match=match):
        PriorDrivenInferer(inferer, priors, locator=network)(inputs, Threshold())
    known = with_prior(inputs, priors, torch.zeros(1, 2, 3))
    with pytest.raises(PriorError, match=match):
        infer.parts(known, PriorDrivenNet(network, image_channels=1))


CALIBRATION = Calibration([0.1, 0.4], [0.8, 1.2], [1.5, -0.7], [0.3, 0.2], [-0.5, 0.25])


@pytest.mark.parametrize("way", ["network", "argument", "file", "bare"])
def test_a_calibration_of_the_network_the_inferer_or_a_file(way, tmp_path):
    inputs, priors = batch_of(scan()), make_priors()
    backbone, given = Threshold(), None
    net = PriorDrivenNet(backbone, image_channels=1)
    if way == "network":
        net.calibrate(CALIBRATION)
    elif way == "file":
        given = tmp_path / "calibration.json"
        CALIBRATION.save(given)
    else:
        given = CALIBRATION
    infer = PriorDrivenInferer(SimpleInferer(), priors, calibration=given)
    result = infer(inputs, backbone if way == "bare" else net)
    channels = with_prior(inputs, priors, result.meta[POSITION_META])
    known = infer(channels, net)
    net.calibrate(CALIBRATION)
    torch.testing.assert_close(result.as_tensor(), net(channels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.as_tensor(known).as_subclass(torch.Tensor), net(channels), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_equation_2_on_demand_and_constants_where_there_is_no_file(activation, tmp_path, caplog):
    inputs, priors = batch_of(scan()), make_priors()
    net = PriorDrivenNet(
        Threshold(background=activation == "softmax"), image_channels=1, activation=activation
    )
    plain = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net).as_tensor()
    with caplog.at_level("INFO"):
        missing = PriorDrivenInferer(
            SimpleInferer(), priors, calibration=str(tmp_path / "calibration.json")
        )
    assert "No calibration at" in caplog.text
    constants = PriorDrivenInferer(
        SimpleInferer(),
        priors,
        calibration=Calibration.unfitted(len(priors), activation=activation),
    )
    expected = constants(inputs, net).as_tensor()
    assert not torch.equal(expected, plain)
    assert torch.equal(missing(inputs, net).as_tensor(), expected)
    calibration = Calibration(*CALIBRATION.tensor().T.tolist(), activation=activation)
    net.calibrate(calibration)
    own = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net).as_tensor()
    assert torch.equal(missing(inputs, net).as_tensor(), own)
    infer = PriorDrivenInferer(SimpleInferer(), priors, calibration="equation_2")
    assert torch.equal(infer(inputs, net).as_tensor(), plain)


@pytest.mark.parametrize("given", ["equation2", "Constants", "", "runs/calibrations", 3, {}])
def test_a_calibration_that_is_neither_a_word_nor_a_file_raises(given):
    match = (
        "`calibration` must be a Calibration, 'equation_2', 'constants', a JSON file or None, got"
    )
    with pytest.raises(PriorError, match=f"{match} {given!r}, which is no file"):
        PriorDrivenInferer(SimpleInferer(), make_priors(), calibration=given)


def test_a_calibration_is_read_whatever_its_ending(tmp_path):
    CALIBRATION.save(tmp_path / "fold_1.txt")
    infer = PriorDrivenInferer(SimpleInferer(), make_priors(), calibration=tmp_path / "fold_1.txt")
    assert infer.calibration == CALIBRATION


def test_constants_look_at_each_scan_of_a_batch():
    inputs, priors = batch_of(scan(), scan(name="two.nii", seed=1)), make_priors()
    logits = PriorDrivenNet(Threshold(), image_channels=1).network(inputs.as_tensor()).detach()
    logits = logits * torch.tensor([8.0, 0.5]).reshape(2, 1, 1, 1, 1)  # sure, and soft
    constants = Calibration.unfitted(len(priors))
    both = fuse_logits(logits, inputs.affine, priors, calibration=constants)
    fixed = fuse_logits(logits, inputs.affine, priors, calibration=constants.tensor())
    assert torch.equal(both.logits[0], fixed.logits[0])
    raised = constants.tensor()
    raised[:, 0] = constants.for_scan(logits[1])[0, 0]
    assert raised[0, 0] > 0.9
    expected = softmax_logits(logits[1:], both.prior[1:], calibration=raised)
    assert torch.equal(both.logits[1:], expected)


def test_constants_count_the_labels_of_each_prior():
    inputs, priors = batch_of(scan()), make_priors()
    priors = [
        SpatialPrior(p.probability, spacing_mm=(2, 2, 5), organ=p.organ, case_count=n)
        for p, n in zip(priors, (3, 8), strict=True)
    ]
    sure = Threshold()
    with torch.no_grad():
        sure.conv.weight *= 8
        sure.conv.bias *= 8
    net = PriorDrivenNet(sure, image_channels=1)

    def fused(calibration, **options):
        infer = PriorDrivenInferer(SimpleInferer(), priors, calibration=calibration, **options)
        return infer(inputs, net).as_tensor()

    by_hand = fused(Calibration.unfitted(2, labelled=[3, 8]))
    assert torch.equal(fused("constants"), by_hand)
    told = fused("constants", labelled=24)
    assert torch.equal(told, fused(Calibration.unfitted(2, labelled=24)))
    assert not torch.equal(told, by_hand)
    sees = fused("constants", prior_in_training=True)
    assert not torch.equal(sees, by_hand)
    known = Calibration.unfitted(2, labelled=[3, 8], prior_in_training=True)
    assert torch.equal(sees, fused(known))


def test_a_soft_network_does_not_fill_the_scan():
    label = torch.zeros(1, 40, 40, 24)
    label[0, 12:20, 14:22, 8:16] = 1
    truth = MetaTensor(label, affine=torch.eye(4))
    priors = [SpatialPrior.estimate([truth])]
    noise = torch.randn(label.shape, generator=torch.Generator().manual_seed(0)) / 2
    logits = torch.cat([torch.zeros_like(label), 5 * label - 2.4 + noise])[None]
    constants, volumes = Calibration.unfitted(1), []
    for numbers in (constants, constants.tensor()):
        fused = fuse_logits(logits, torch.eye(4), priors, calibration=numbers)
        volumes.append(DecideLabel("dice")(fused.logits[0].softmax(0)).sum() / label.sum())
    assert volumes[0] < 1.2
    assert volumes[1] > 2  # what the constants do to it


def test_a_bare_network_is_fused_as_a_wrapped_one():
    inputs, priors, bare = batch_of(scan()), make_priors(), Threshold(background=False)
    net = PriorDrivenNet(bare, image_channels=1, activation="sigmoid")
    wrapped = PriorDrivenInferer(SimpleInferer(), priors)(inputs, net)
    infer = PriorDrivenInferer(SimpleInferer(), priors, activation="sigmoid", image_channels=1)
    assert torch.equal(infer(inputs, bare).as_tensor(), wrapped.as_tensor())
    channels = with_prior(inputs, priors, wrapped.meta[POSITION_META], activation="sigmoid")
    torch.testing.assert_close(infer(channels.as_subclass(torch.Tensor), bare), net(channels))


def test_locating_in_raw_or_calibrated_predictions():
    inputs, priors = batch_of(scan()), make_priors()
    net = PriorDrivenNet(Threshold(), image_channels=1)
    shy = Calibration([1, 1], [1, 1], [0, 0], [1, 1], [-20, -20])
    located = PriorDrivenInferer(SimpleInferer(), priors, calibration=shy)(inputs, net)
    assert torch.isfinite(located.meta[POSITION_META]).all()
    infer = PriorDrivenInferer(SimpleInferer(), priors, calibration=shy, locate_with="calibrated")
    with pytest.warns(UserWarning, match="is predicted nowhere"):
        result = infer(inputs, net)
    assert torch.isnan(result.meta[POSITION_META]).all()
    alone = net.network(inputs).as_tensor()
    difference = result.as_tensor()[:, 1:] - result.as_tensor()[:, :1]
    torch.testing.assert_close(difference, alone[:, 1:] - alone[:, :1] - 20)
    # how much the prior counts makes no difference before it is placed
    strict = Calibration([1, 1], [9, 9], [0, 0], [1, 1], [0, 0])
    infer = PriorDrivenInferer(
        SimpleInferer(), priors, calibration=strict, locate_with="calibrated"
    )
    found = infer(inputs, net).meta[POSITION_META]
    torch.testing.assert_close(found, located.meta[POSITION_META])


def test_fuse_logits_is_what_the_inferer_does():
    inputs, priors, backbone = batch_of(scan(), scan()), make_priors(), Threshold()
    expected = PriorDrivenInferer(SimpleInferer(), priors, calibration=CALIBRATION)(
        inputs, backbone
    )
    logits = backbone(inputs).as_tensor()
    fused = fuse_logits(logits, inputs.affine, priors, calibration=CALIBRATION)
    assert torch.equal(fused.logits, expected.as_tensor())
    assert torch.equal(fused.position_mm, expected.meta[POSITION_META])
    assert torch.equal(fused.confidence, expected.meta[CONFIDENCE_META])
    again = softmax_logits(logits, fused.prior, calibration=CALIBRATION.tensor())
    assert torch.equal(again, fused.logits)


def test_logits_are_fused_where_monai_does_not_track_metadata():
    inputs, priors = batch_of(scan()), make_priors()
    logits = Threshold()(inputs).as_tensor()
    expected = fuse_logits(logits, inputs.affine, priors)
    set_track_meta(False)
    try:
        found = fuse_logits(logits, inputs.affine, priors)
    finally:
        set_track_meta(True)
    assert torch.equal(found.logits, expected.logits)


def test_counts_may_be_an_array():
    counts = PriorDrivenInferer(SimpleInferer(), make_priors(), labelled=np.array([3, 8])).labelled
    assert counts == [3, 8]


def test_errors_of_calibration():
    inputs, priors = batch_of(scan()), make_priors()
    with pytest.raises(PriorError, match=r"`calibration` must have numbers for 2 organs, .* got 1"):
        PriorDrivenInferer(SimpleInferer(), priors, calibration=Calibration.identity(1))
    net = PriorDrivenNet(Threshold(background=False), image_channels=1, activation="sigmoid")
    with pytest.raises(PriorError, match="`calibration` must be for sigmoid, got one for softmax"):
        PriorDrivenInferer(SimpleInferer(), priors, calibration=CALIBRATION)(inputs, net)
    for option in ("position", "locate_with"):
        with pytest.raises(PositionError, match=f"`{option}` must be '.*', got 'no'"):
            fuse_logits(torch.zeros(1, 3, *SHAPE), torch.eye(4), priors, **{option: "no"})
