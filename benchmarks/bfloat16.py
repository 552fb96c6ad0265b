"""A training step of the U-Net of slices in bfloat16, beside the same in float32, on a processor.

Compared, with the same weights, slices and optimizer:
    SliceUNet: float32, as it is.
    channels last: float32 with the memory format that the other has.
    BFloat16SliceUNet: what the overlay `bfloat16` trains.

Sizes: 8 slices of 128 × 128 and 16–128 channels, as in the studies, or with ``--full`` one of
512 × 512 and 64–1024 channels.

Read: ratios below 1 are gained. Meant for processors with bfloat16 units; without, they are above.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import compare, print_table
from torch import Tensor

from stipple_monai import PartialDiceCELoss, SliceUNet
from stipple_monai.networks import BFloat16SliceUNet

CLASSES = 8


def make_step(network: SliceUNet, image: Tensor, label: Tensor) -> Callable[[], Any]:
    """A function that takes one step."""
    loss = PartialDiceCELoss(softmax=True, include_background=False, batch=True)
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()

    return step


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="512 × 512, 64–1024 channels")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    size, batch, channels = (512, 1, (64, 128, 256, 512, 1024))
    if not arguments.full:
        size, batch, channels = (128, 8, (16, 32, 64, 128))
    torch.manual_seed(0)
    image = torch.randn(batch, 1, size, size)
    label = torch.randint(0, CLASSES, (batch, 1, size, size)).float()
    make = partial(make_step, image=image, label=label)
    plain = SliceUNet(1, CLASSES, channels)
    last = SliceUNet(1, CLASSES, channels).to(memory_format=torch.channels_last)
    fast = BFloat16SliceUNet(1, CLASSES, channels)
    for network in (last, fast):
        network.load_state_dict(plain.state_dict())
    steps = {
        "SliceUNet": make(plain),
        "channels last": make(last),
        "BFloat16SliceUNet": make(fast),
    }
    rows = compare(steps, rounds=arguments.rounds, baseline="SliceUNet", clock="cpu")
    print_table(f"A step, {batch} × {size} × {size}, channels {channels}", rows)


if __name__ == "__main__":
    main()
