"""PriorDrivenNet around MONAI's networks: outputs, exports, checkpoints, AMP and DDP."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.forks import needs_fork
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import CheckpointLoader
from monai.inferers import SlidingWindowInferer
from monai.networks import nets
from monai.networks.utils import convert_to_onnx, convert_to_torchscript, copy_model_state
from torch import Tensor, nn

from stipple_monai.errors import PriorError
from stipple_monai.networks.calibration import Calibration
from stipple_monai.networks.fusion import sigmoid_logits, softmax_logits
from stipple_monai.networks.prior_driven import PriorDrivenNet
from stipple_monai.networks.unet import SliceUNet

ORGANS = 2


def dynunet(dims: int, deep: bool) -> nn.Module:
    return nets.DynUNet(
        *(dims, 1, ORGANS + 1, [3] * 4, [1, 2, 2, 2], [2, 2, 2]),
        filters=[4, 8, 8, 8],
        deep_supervision=deep,
        deep_supr_num=2,
    )


def segresnet_ds(dims: int) -> nn.Module:
    return nets.SegResNetDS(dims, 8, 1, ORGANS + 1, blocks_down=(1, 1, 1), dsdepth=2)


def segresnet(dims: int) -> nn.Module:
    return nets.SegResNet(dims, 8, 1, ORGANS + 1, blocks_down=(1, 1), blocks_up=(1,))


def unetr() -> nn.Module:
    sizes = {"feature_size": 4, "hidden_size": 8, "mlp_dim": 8, "num_heads": 2}
    return nets.UNETR(1, ORGANS + 1, (16, 16, 32), **sizes)


def swin_unetr() -> nn.Module:
    sizes = {"feature_size": 12, "depths": (1,) * 4, "num_heads": (1,) * 4}
    return nets.SwinUNETR(1, ORGANS + 1, spatial_dims=2, **sizes)


# constructor, spatial shape of the input, whether torch.jit.script compiles the bare network
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "UNet2D": (lambda: nets.UNet(2, 1, 3, (4, 8, 8), (2, 2)), (16, 12), True),
    "UNet3D": (lambda: nets.UNet(3, 1, 3, (4, 8, 8), (2, 2)), (8, 12, 8), True),
    "BasicUNet2D": (lambda: nets.BasicUNet(2, 1, 3, (4, 4, 4, 4, 8, 4)), (32, 33), True),
    "BasicUNet3D": (lambda: nets.BasicUNet(3, 1, 3, (4, 4, 4, 4, 8, 4)), (32, 32, 32), True),
    "AttentionUnet2D": (lambda: nets.AttentionUnet(2, 1, 3, (4, 8), (2, 2)), (16, 12), True),
    "AttentionUnet3D": (lambda: nets.AttentionUnet(3, 1, 3, (4, 8), (2, 2)), (8, 12, 8), True),
    "DynUNet2D": (lambda: dynunet(2, deep=False), (16, 32), True),
    "DynUNet3D": (lambda: dynunet(3, deep=False), (16, 16, 16), True),
    "DynUNet2D-deep": (lambda: dynunet(2, deep=True), (16, 32), False),
    "DynUNet3D-deep": (lambda: dynunet(3, deep=True), (16, 16, 16), False),
    "SegResNet2D": (lambda: segresnet(2), (8, 12), True),
    "SegResNet3D": (lambda: segresnet(3), (8, 8, 4), True),
    "SegResNetDS2D": (lambda: segresnet_ds(2), (16, 12), True),
    "SegResNetDS3D": (lambda: segresnet_ds(3), (8, 8, 12), True),
    "UNETR3D": (unetr, (16, 16, 32), True),
    "SwinUNETR2D": (swin_unetr, (64, 32), False),
    "SliceUNet": (lambda: SliceUNet(1, 3, (4, 6, 8)), (18, 15), True),
}


def example(shape: tuple[int, ...], batch: int = 2, organs: int = ORGANS) -> tuple[Tensor, Tensor]:
    """An image and a prior whose organs and background sum to 1."""
    prior = torch.rand(batch, organs + 1, *shape)
    return torch.randn(batch, 1, *shape), (prior / prior.sum(1, keepdim=True))[:, 1:]


def block_mean(prior: Tensor, factor: int) -> Tensor:
    """Mean over blocks of ``factor`` voxels along each axis, one axis after the other."""
    for axis in range(2, prior.ndim):
        parts = [prior.narrow(axis, i, 1) for i in range(prior.shape[axis])]
        groups = [parts[i : i + factor] for i in range(0, len(parts), factor)]
        prior = torch.cat([sum(group) / factor for group in groups], dim=axis)
    return prior


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_bare_logits_with_prior(name):
    make, shape, _ = NETWORKS[name]
    bare = make().eval()
    image, prior = example(shape)
    net = PriorDrivenNet(bare, image_channels=1).eval()
    with torch.no_grad():
        got, logits = net(torch.cat([image, prior], dim=1)), bare(image)
    assert got.shape == (2, ORGANS + 1, *shape)
    assert not torch.allclose(got, logits)
    torch.testing.assert_close(got, softmax_logits(logits, prior))


@pytest.mark.parametrize("name", ["DynUNet2D-deep", "DynUNet3D-deep"])
def test_stacked_heads_are_biased_one_by_one(name):
    make, shape, _ = NETWORKS[name]
    bare = make().train()
    image, prior = example(shape)
    got = PriorDrivenNet(bare, image_channels=1)(torch.cat([image, prior], dim=1))
    logits = bare(image)
    assert got.shape == (2, 3, ORGANS + 1, *shape) == logits.shape
    for head in range(3):
        torch.testing.assert_close(got[:, head], softmax_logits(logits[:, head], prior))


@pytest.mark.parametrize("name", ["SegResNetDS2D", "SegResNetDS3D"])
def test_smaller_heads_get_the_mean_prior(name):
    make, shape, _ = NETWORKS[name]
    bare = make().train()
    image, prior = example(shape)
    got = PriorDrivenNet(bare, image_channels=1)(torch.cat([image, prior], dim=1))
    logits = bare(image)
    assert isinstance(got, list)
    assert [g.shape[2] for g in got] == [shape[0], shape[0] // 2]
    for level, (head, adjusted) in enumerate(zip(logits, got, strict=True)):
        expected = softmax_logits(head, block_mean(prior, 2**level))
        torch.testing.assert_close(adjusted, expected)


@pytest.mark.parametrize("container", [list, tuple])
def test_heads_in_a_list_or_tuple(container):
    class TwoHeads(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor] | tuple[Tensor, ...]:
            logits = x.repeat(1, 3, 1, 1)
            return container([logits, nn.functional.avg_pool2d(logits, 3)])

    image, prior = example((6, 9))
    got = PriorDrivenNet(TwoHeads(), image_channels=1)(torch.cat([image, prior], dim=1))
    full, small = TwoHeads()(image)
    torch.testing.assert_close(
        got, [softmax_logits(full, prior), softmax_logits(small, block_mean(prior, 3))]
    )


@pytest.mark.parametrize(
    ("activation", "fuse", "channels"),
    [("softmax", softmax_logits, 3), ("sigmoid", sigmoid_logits, 2)],
)
def test_settings_reach_the_fusion(activation, fuse, channels):
    bare = nn.Conv2d(3, channels, 1)
    image, (_, prior) = torch.randn(2, 3, 8, 8), example((8, 8))
    net = PriorDrivenNet(bare, image_channels=3, activation=activation, strength=0.5, floor=0.2)
    x = torch.cat([image, prior], dim=1)
    torch.testing.assert_close(net(x), fuse(bare(image), prior, strength=0.5, floor=0.2))
    net.strength = 0.0
    assert torch.equal(net(x), bare(image))
    expected = f"image_channels=3, activation='{activation}', strength=0.0, floor=0.2"
    assert expected in repr(net)


def test_gradients_reach_the_network():
    net = PriorDrivenNet(SliceUNet(1, 3, (4, 6)), image_channels=1)
    net(torch.cat(example((8, 8)), dim=1)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_sliding_window_over_a_meta_tensor():
    bare = nn.Conv2d(1, 3, 1)
    image, prior = example((20, 14))
    x = MetaTensor(
        torch.cat([image, prior], dim=1), affine=torch.diag(torch.tensor([2.0, 2, 3, 1]))
    )
    got = SlidingWindowInferer((8, 8), overlap=0.25)(x, PriorDrivenNet(bare, image_channels=1))
    torch.testing.assert_close(torch.as_tensor(got), softmax_logits(bare(image), prior))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript(name, tmp_path):
    make, shape, scriptable = NETWORKS[name]
    net = PriorDrivenNet(make(), image_channels=1).eval()
    x = torch.cat(example(shape), dim=1)
    path = tmp_path / "model.ts"
    convert_to_torchscript(
        net,
        filename_or_obj=path,
        use_trace=not scriptable,
        inputs=[x],
        verify=True,
        device=torch.device("cpu"),
        atol=1e-6,
    )
    other = torch.cat(example(shape, batch=3), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(path)(other), net(other))


@pytest.mark.slow
def test_torchscript_deep_supervision_and_errors():
    net = PriorDrivenNet(segresnet_ds(2), image_channels=1).train()
    x = torch.cat(example((16, 12)), dim=1)
    scripted = torch.jit.script(net)
    torch.testing.assert_close(scripted(x), net(x))
    with pytest.raises(torch.jit.Error, match="must carry prior channels behind its 1 image"):
        scripted(x[:, :1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace():
    net = PriorDrivenNet(SliceUNet(1, 3, (4, 6)), image_channels=1).eval()
    traced = torch.jit.trace(net, torch.cat(example((8, 8)), dim=1))
    x = torch.cat(example((11, 10), batch=3), dim=1)
    torch.testing.assert_close(traced(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UNet3D", "SegResNetDS2D", "SliceUNet"])
def test_export_with_dynamic_batch(name):
    make, shape, _ = NETWORKS[name]
    net = PriorDrivenNet(make(), image_channels=1).eval()
    x = torch.cat(example(shape), dim=1)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 3):
        x = torch.cat(example(shape, batch), dim=1)
        torch.testing.assert_close(program.module()(x), net(x))


def run_onnx(path: Path, x: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [i.name for i in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_onnx(activation, tmp_path):
    pytest.importorskip("onnxscript")
    organs = ORGANS if activation == "softmax" else ORGANS + 1
    net = PriorDrivenNet(SliceUNet(1, 3, (4, 6)), image_channels=1, activation=activation).eval()
    x = torch.cat(example((10, 9), organs=organs), dim=1)
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x,), path, dynamic_shapes=({0: "batch"},), verbose=False)
    for batch in (1, 3):
        x = torch.cat(example((10, 9), batch, organs), dim=1)
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(path, x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("use_trace", [False, True])
def test_monai_convert_to_onnx(use_trace, tmp_path):
    pytest.importorskip("onnxscript")
    net = PriorDrivenNet(nn.Conv3d(1, 3, 3, padding=1), image_channels=1)
    x = torch.cat(example((6, 5, 4)), dim=1)
    path = tmp_path / "model.onnx"
    convert_to_onnx(net, [x], filename=path, use_trace=use_trace)
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(path, x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler"),
            ],
        ),
    ],
)
def test_compile(backend):
    torch.compiler.reset()
    net = PriorDrivenNet(nn.Conv2d(1, 3, 3, padding=1), image_channels=1)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    x = torch.cat(example((8, 8)), dim=1)
    torch.testing.assert_close(compiled(x), net(x))
    gradient = torch.autograd.grad(compiled(x).square().sum(), net.parameters())
    torch.testing.assert_close(
        gradient, torch.autograd.grad(net(x).square().sum(), net.parameters())
    )


def check_autocast(device: str, dtype: torch.dtype) -> None:
    net = PriorDrivenNet(SliceUNet(1, 3, (4, 6)), image_channels=1).to(device)
    x = torch.cat(example((8, 8)), dim=1).to(device)
    x[:, 1, 0], x[:, 2, 1] = 1.0, 0.0
    with torch.autocast(device, dtype):
        out = net(x)
    assert out.dtype == dtype
    assert out.isfinite().all()
    torch.testing.assert_close(out.float(), net(x), rtol=0.05, atol=0.1)
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_autocast_cpu():
    check_autocast("cpu", torch.bfloat16)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_cuda(dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    check_autocast("cuda", dtype)


def trained(net: nn.Module, x: Tensor) -> nn.Module:
    net(x).square().mean().backward()
    return net


def ddp_network() -> PriorDrivenNet:
    torch.manual_seed(1)
    return PriorDrivenNet(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3)),
        image_channels=1,
    )


def ddp_worker(rank: int, x: Tensor, path: Path) -> None:
    dist.init_process_group("gloo", f"file://{path}/rendezvous", rank=rank, world_size=2)
    net = trained(nn.parallel.DistributedDataParallel(ddp_network()), x[rank::2])
    torch.save([p.grad for p in net.parameters()], path / f"{rank}.pt")
    # Without destructors: that of DDP's reducer may join gloo's thread while it holds the lock of
    # the interpreter, for which that thread waits to drop its last all-reduce.
    os._exit(0)


@pytest.mark.slow
@needs_fork
def test_ddp_gradients_equal_those_of_one_process(tmp_path):
    x = torch.cat(example((8, 8), batch=4), dim=1)
    mp.start_processes(ddp_worker, (x, tmp_path), nprocs=2, start_method="fork")
    expected = [p.grad for p in trained(ddp_network(), x).parameters()]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "network.", "module.network.", "_orig_mod.", "module._orig_mod.network."],
)
@pytest.mark.parametrize("nested", [False, True])
def test_checkpoints_load_strictly(prefix, nested):
    source = SliceUNet(1, 3, (4, 6))
    net = PriorDrivenNet(SliceUNet(1, 3, (4, 6)), image_channels=1)
    state = prefixed(source.state_dict(), prefix)
    if nested:
        nn.Sequential(nn.Identity(), net).load_state_dict(prefixed(state, "1."))
    else:
        net.load_state_dict(state)
    for key, value in source.state_dict().items():
        assert torch.equal(net.state_dict()["network." + key], value)
    assert all(key.startswith(prefix) for key in state)


@pytest.mark.parametrize("prefix", ["", "network."])
def test_network_with_a_network_inside(prefix):
    source = nn.ModuleDict({"network": nn.Linear(2, 3), "module": nn.Linear(2, 3)})
    inner = nn.ModuleDict({"network": nn.Linear(2, 3), "module": nn.Linear(2, 3)})
    PriorDrivenNet(inner, image_channels=1).load_state_dict(prefixed(source.state_dict(), prefix))
    torch.testing.assert_close(inner.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_foreign_keys_are_reported():
    net = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1)
    state = {**nn.Conv2d(1, 3, 1).state_dict(), "extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "extra"'):
        net.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "network.bias"'):
        net.load_state_dict({"weight": state["weight"]})


@pytest.mark.parametrize("bare", [False, True])
def test_monai_checkpoint_loader(bare, tmp_path):
    source = PriorDrivenNet(SliceUNet(1, 3, (4, 6)), image_channels=1)
    net = PriorDrivenNet(SliceUNet(1, 3, (4, 6)), image_channels=1)
    assert all(key.startswith("network.") for key in source.state_dict())
    torch.save((source.network if bare else source).state_dict(), tmp_path / "model.pt")
    loader = CheckpointLoader(str(tmp_path / "model.pt"), {"network": net}, name="loader")
    loader(Engine(lambda *_: None))
    torch.testing.assert_close(net.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 2])
def test_missing_prior_is_found_before_the_network_runs(channels):
    class Untouchable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    net = PriorDrivenNet(Untouchable(), image_channels=2)
    with pytest.raises(
        PriorError,
        match=f"`x` must carry prior channels behind its 2 image channels, got {channels}",
    ):
        net(torch.zeros(1, channels, 4, 4))


@pytest.mark.parametrize(("activation", "expected"), [("softmax", 2), ("sigmoid", 3)])
@pytest.mark.parametrize("organs", [1, 4])
def test_wrong_number_of_priors(activation, expected, organs):
    net = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, activation=activation)
    with pytest.raises(
        PriorError, match=rf"`x` must carry {expected} prior channels behind .*got {organs}"
    ):
        net(torch.zeros(1, 1 + organs, 4, 4))


def test_wrong_prior_count_in_heads():
    net = PriorDrivenNet(segresnet_ds(2), image_channels=1).train()
    with pytest.raises(PriorError, match="`x` must carry 2 prior channels"):
        net(torch.zeros(2, 2, 16, 16))


def test_logits_of_another_size():
    net = PriorDrivenNet(nn.Conv2d(1, 3, 3), image_channels=1)
    with pytest.raises(PriorError, match="batch and spatial shape of `logits`"):
        net(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (None, "NoneType"),
        ({"out": torch.zeros(1)}, "dict"),
        ((torch.zeros(1, 3, 4, 4), None), "NoneType"),
        ([torch.zeros(1, 3, 4, 4), torch.zeros(())], r"\(1, 3, 4, 4\), \(\)"),
    ],
)
def test_output_that_is_no_logits(output, found):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return output

    with pytest.raises(TypeError, match=f"`network` must return logits, .* got .*{found}"):
        PriorDrivenNet(Odd(), image_channels=1)(torch.zeros(1, 3, 4, 4))


def test_bad_arguments():
    conv = nn.Conv2d(1, 2, 1)
    with pytest.raises(TypeError, match=r"`network` must be a torch.nn.Module, got str"):
        PriorDrivenNet("UNet", image_channels=1)
    with pytest.raises(ValueError, match="`image_channels` must be at least 1, got 0"):
        PriorDrivenNet(conv, image_channels=0)
    with pytest.raises(ValueError, match='`activation` must be "softmax" or "sigmoid", got \'tanh'):
        PriorDrivenNet(conv, image_channels=1, activation="tanh")
    net = PriorDrivenNet(conv, image_channels=1, strength=-1.0)
    with pytest.raises(ValueError, match=r"`strength` must be finite and at least 0, got -1\.0"):
        net(torch.zeros(1, 2, 4, 4))


def test_dropout_is_that_of_the_networks_layers():
    backbone = SliceUNet(1, 3, channels=(4, 8))
    bare = backbone.state_dict()
    net = PriorDrivenNet(backbone, image_channels=1, dropout=0.4)
    assert {m.p for m in backbone.modules() if isinstance(m, nn.Dropout2d)} == {0.4}
    net.load_state_dict(bare)
    x = torch.rand(1, 3, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, dropout=0.0)(x).shape == x.shape


@pytest.mark.slow
def test_dropout_must_fit():
    with pytest.raises(ValueError, match=r"`dropout` must lie in \[0, 1\), got 1"):
        PriorDrivenNet(SliceUNet(), image_channels=1, dropout=1.0)
    with pytest.raises(ValueError, match=r"`dropout` must be 0 or None .* got 0\.2 for Conv2d"):
        PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, dropout=0.2)


CALIBRATION = Calibration([0.1, 0.4], [0.8, 1.2], [1.5, -0.7], [0.3, 0.2], [-0.5, 0.25])


def calibrated(backbone: nn.Module, **options: object) -> PriorDrivenNet:
    net = PriorDrivenNet(backbone, image_channels=1, **options)
    net.calibrate(CALIBRATION)
    return net


@pytest.mark.parametrize("organs", [None, ORGANS])
def test_a_calibration_reaches_every_head(organs):
    bare = dynunet(2, deep=True).train()
    image, prior = example((16, 32))
    x = torch.cat([image, prior], dim=1)
    net = PriorDrivenNet(bare, image_channels=1, organs=organs)
    plain = net(x)
    net.calibrate(CALIBRATION)
    torch.manual_seed(0)
    got = net(x)
    for head, adjusted in zip(bare(image).unbind(1), got.unbind(1), strict=True):
        expected = softmax_logits(head, prior, calibration=CALIBRATION.tensor())
        torch.testing.assert_close(adjusted, expected)
    assert "calibrated_scale=[0.1, 0.4], calibrated_strength=[0.8, 1.2]" in repr(net)
    net.calibrate(None)
    assert torch.equal(net(x), plain)


def test_checkpoints_keep_the_calibration():
    source = calibrated(nn.Conv2d(1, 3, 1))
    state = source.state_dict()
    assert state.keys() == {"network.weight", "network.bias", "calibration"}
    x = torch.cat(example((6, 5)), dim=1)
    for organs in (None, ORGANS):
        for prefix in ("", "module."):
            net = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, organs=organs)
            net.load_state_dict(prefixed(state, prefix))
            assert torch.equal(net(x), source(x))
    nested = nn.Sequential(PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1))
    nested.load_state_dict(prefixed(state, "0."))
    assert torch.equal(nested(x), source(x))
    copied = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, organs=ORGANS)
    copy_model_state(copied, source)
    assert torch.equal(copied(x), source(x))


@pytest.mark.parametrize("prefix", ["", "network."])
def test_weights_without_calibration_leave_it(prefix):
    bare = nn.Conv2d(1, 3, 1)
    state = prefixed(bare.state_dict(), prefix)
    plain = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1)
    plain.load_state_dict(state)
    assert plain.state_dict().keys() == {"network.weight", "network.bias"}
    net = calibrated(nn.Conv2d(1, 3, 1))
    net.load_state_dict(state)
    assert torch.equal(net.calibration, CALIBRATION.tensor())
    assert torch.equal(net.network.weight, bare.weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", ["script", "trace", "export", "compile", "onnx"])
def test_exports_keep_the_calibration(way, tmp_path):
    torch.compiler.reset()
    net = calibrated(SliceUNet(1, 3, (4, 6))).eval()
    x, other = (torch.cat(example((8, 8), batch), dim=1) for batch in (2, 3))
    other[:, 1:] = 1 / 3
    if way == "onnx":
        pytest.importorskip("onnxscript")
        path = tmp_path / "model.onnx"
        torch.onnx.export(net, (x,), path, dynamic_shapes=({0: "batch"},), verbose=False)
        exported = lambda x: run_onnx(path, x)  # noqa: E731
    else:
        exported = {
            "script": lambda: torch.jit.script(net),
            "trace": lambda: torch.jit.trace(net, x),
            "export": lambda: torch.export.export(
                net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            ).module(),
            "compile": lambda: torch.compile(net, backend="aot_eager", fullgraph=True),
        }[way]()
    for values in (x, other):
        with torch.no_grad():
            torch.testing.assert_close(exported(values), net(values), rtol=1e-4, atol=1e-5)


def test_calibration_under_autocast_is_computed_in_float32():
    net = calibrated(nn.Conv2d(1, 3, 1))
    x = torch.cat(example((8, 8)), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        head, out = net.network(x[:, :1]), net(x)
    exact = softmax_logits(head.float(), x[:, 1:], calibration=CALIBRATION.tensor())
    assert torch.equal(out, exact.to(torch.bfloat16))


def test_a_calibration_must_fit():
    net = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, organs=3)
    with pytest.raises(PriorError, match=r"must be for softmax and 3 organs, got .* softmax and 2"):
        net.calibrate(CALIBRATION)
    net = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, activation="sigmoid")
    with pytest.raises(PriorError, match="for sigmoid and any number of organs, got one for soft"):
        net.calibrate(CALIBRATION)
    with pytest.raises(ValueError, match="`organs` must be at least 1, got 0"):
        PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, organs=0)
    net = PriorDrivenNet(nn.Conv2d(1, 3, 1), image_channels=1, organs=2)
    with pytest.raises(RuntimeError, match="size mismatch for calibration"):
        net.load_state_dict({**net.state_dict(), "calibration": torch.zeros(3, 5)})
