"""The U-Net of slices in bfloat16 against the same weights in float32."""

import copy

import pytest
import torch

from stipple_monai import SliceUNet
from stipple_monai.networks import BFloat16SliceUNet

CHANNELS = (8, 16, 32)


def both():
    torch.manual_seed(0)
    plain = SliceUNet(1, 3, CHANNELS).eval()
    fast = BFloat16SliceUNet(1, 3, CHANNELS).eval()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def test_the_same_function_to_the_precision_of_bfloat16():
    plain, fast = both()
    image = torch.randn(2, 1, 32, 24)
    with torch.no_grad():
        expected, got = plain(image), fast(image)
    assert got.dtype == torch.float32
    assert 0 < (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_weights_stay_float32_and_serve_the_other():
    plain, fast = both()
    assert {p.dtype for p in fast.parameters()} == {torch.float32}
    assert fast.encoder[0][2].weight.is_contiguous(memory_format=torch.channels_last)
    plain.load_state_dict(fast.state_dict())


@pytest.mark.slow
def test_learns_and_is_copied_for_an_average():
    _, fast = both()
    fast.train()
    average = copy.deepcopy(fast)
    image, target = torch.randn(2, 1, 16, 16), torch.randint(0, 3, (2, 16, 16))
    optimizer = torch.optim.Adam(fast.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(fast(image), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert not torch.equal(average(image), fast(image))
