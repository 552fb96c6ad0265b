"""SliceUNet against table 5 of the paper."""

import pytest
import torch
from torch import nn

from stipple_monai.networks import MeanLogits
from stipple_monai.networks.unet import BFloat16SliceUNet, SliceUNet

SMALL = (4, 6, 8)

# (kernel, in, out) of every convolution and whether batch norm follows, row by row of table 5
TABLE_5 = [
    *[(3, 1, 64, False), (3, 64, 64, True)],
    *[(3, 64, 128, False), (3, 128, 128, True)],
    *[(3, 128, 256, False), (3, 256, 256, True)],
    *[(3, 256, 512, False), (3, 512, 512, True)],
    *[(3, 512, 1024, False), (3, 1024, 1024, True), (2, 1024, 512, True)],
    *[(3, 512 + 512, 512, False), (3, 512, 512, True), (2, 512, 256, True)],
    *[(3, 256 + 256, 256, False), (3, 256, 256, True), (2, 256, 128, True)],
    *[(3, 128 + 128, 128, False), (3, 128, 128, True), (2, 128, 64, True)],
    *[(3, 64 + 64, 64, False), (3, 64, 64, False)],
    (1, 64, 2, False),
]


def test_parameter_count_is_that_of_table_5():
    expected = sum(
        kernel * kernel * c_in * c_out + c_out + (2 * c_out if norm else 0)
        for kernel, c_in, c_out, norm in TABLE_5
    )
    with torch.device("meta"):
        net = SliceUNet(in_channels=1, out_channels=2)
    assert sum(p.numel() for p in net.parameters()) == expected == 31_038_338


def test_layers_run_in_the_order_of_table_5():
    channels = (64, 128, 256, 512, 1024)
    with torch.device("meta"):
        net = SliceUNet(1, 2, channels).eval()
    calls = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    net(torch.zeros(1, 1, 512, 512, device="meta"))

    got = []
    for i, layer in enumerate(calls):
        if isinstance(layer, nn.Conv2d):
            follows = isinstance(calls[i + 1], nn.BatchNorm2d) if i + 1 < len(calls) else False
            got.append((layer.kernel_size[0], layer.in_channels, layer.out_channels, follows))
            if layer is not net.output:
                assert isinstance(calls[i + 1 + follows], nn.ReLU)
    assert got == TABLE_5
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in calls) == 4
    assert sum(isinstance(layer, nn.Upsample) for layer in calls) == 4


def test_equals_the_table_written_out():
    net = SliceUNet(2, 3, (4, 6)).eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    leaves = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    c1, c2, n2, c3, c4, n4, up, n_up, c5, c6, out = leaves
    x = torch.randn(2, 2, 6, 8)

    def same(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        near = (conv.kernel_size[0] - 1) // 2
        far = conv.kernel_size[0] - 1 - near
        x = nn.functional.pad(x, (near, far, near, far))
        return nn.functional.conv2d(x, conv.weight, conv.bias)

    skip = n2(same(c2, same(c1, x).relu())).relu()
    deep = nn.functional.max_pool2d(skip, 2)
    deep = n4(same(c4, same(c3, deep).relu())).relu()
    deep = deep.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    deep = n_up(same(up, deep)).relu()
    both = torch.cat([skip, deep], dim=1)
    expected = same(out, same(c6, same(c5, both).relu()).relu())
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (13, 10), (4, 4), (7, 19)])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_any_size(size, in_channels):
    net = SliceUNet(in_channels, 5, SMALL)
    out = net(torch.randn(2, in_channels, *size))
    assert out.shape == (2, 5, *size)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_odd_size_replicates_at_the_far_end():
    block = SliceUNet(1, 2, SMALL).eval().decoder[-1]
    block.convolutions = nn.Identity()
    skip, x = torch.zeros(1, 4, 9, 8), torch.randn(1, 6, 4, 4)
    up = block(x, skip)[:, 4:]
    torch.testing.assert_close(up[:, :, :8], block.up(x))
    assert torch.equal(up[:, :, 8], up[:, :, 7])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_keeps_any_size():
    net = SliceUNet(1, 2, SMALL).eval()
    x = torch.randn(2, 1, 8, 8)
    for compiled in (torch.jit.script(net), torch.jit.trace(net, x)):
        for size in ((8, 8), (11, 14)):
            x = torch.randn(1, 1, *size)
            torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.slow
def test_export_with_dynamic_shape():
    net = SliceUNet(1, 2, SMALL).eval()
    shape = {i: torch.export.Dim(n, min=8, max=64) for i, n in ((2, "W"), (3, "H"))}
    program = torch.export.export(net, (torch.randn(2, 1, 10, 12),), dynamic_shapes=(shape,))
    x = torch.randn(2, 1, 9, 17)
    torch.testing.assert_close(program.module()(x), net(x))


def test_dropout():
    dropping = SliceUNet(1, 2, SMALL, dropout=0.5)
    plain = SliceUNet(1, 2, SMALL)
    plain.load_state_dict(dropping.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert sum(isinstance(m, nn.Dropout2d) and m.p == 0.5 for m in dropping.modules()) == 5
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(plain(x), plain(x))
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(dropping.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("channels", [(), (8,), (8, 0, 4)])
def test_bad_channels(channels):
    with pytest.raises(ValueError, match="`channels` must hold at least two positive numbers"):
        SliceUNet(channels=channels)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_bad_dropout(dropout):
    with pytest.raises(ValueError, match=r"`dropout` must lie in \[0, 1\), got"):
        SliceUNet(channels=SMALL, dropout=dropout)


@pytest.mark.parametrize("size", [(3, 8), (8, 3)])
def test_slice_too_small(size):
    with pytest.raises(ValueError, match="`x` must be at least 4 voxels wide and high, got"):
        SliceUNet(channels=SMALL)(torch.zeros(1, 1, *size))


def test_encoder_and_decoder_make_the_network():
    torch.manual_seed(0)
    network, x = SliceUNet(1, 3, (4, 8, 16)).eval(), torch.rand(2, 1, 12, 16)
    features = network.encode(x)
    assert [f.shape[1:] for f in features] == [(4, 12, 16), (8, 6, 8), (16, 3, 4)]
    logits = network.decode(features)
    assert torch.equal(logits, network(x))
    # the features are left as they were
    assert torch.equal(logits, network.decode(features))


def test_bfloat16_between_encoder_and_decoder():
    torch.manual_seed(0)
    network = BFloat16SliceUNet(1, 3, (4, 8)).eval()
    x = torch.rand(2, 1, 12, 16)
    features = network.encode(x)
    assert {f.dtype for f in features} == {torch.bfloat16}
    assert network.decode(features).dtype == torch.float32
    plain = SliceUNet(1, 3, (4, 8)).eval()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x), plain(x), atol=0.02, rtol=0.05)


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(ValueError, match="`networks` must hold at least one network, got none"):
        MeanLogits([])
