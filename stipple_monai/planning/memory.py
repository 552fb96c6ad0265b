"""The memory that a training step takes: measured, by a pass forward, and on a GPU backward."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stipple_monai.bundle import merged_configs
from stipple_monai.networks import PriorDrivenNet

STATES = 4
"""Copies of the weights in a training with Adam: weights, gradients and two moments."""


GPU_SHARE = 0.8
"""Of a GPU's memory, for a training: the rest is CUDA's own and for convolutions to work in."""


def make_network(
    configs: Path, dimensions: int, *, image_channels: int, organs: int, channels: Sequence[int]
) -> nn.Module:
    """The network of train.yaml in 2D, and with its overlay patch_3d in 3D, around the prior.

    Args:
        configs: the bundle's folder of configs.
        dimensions: 2 or 3.
        image_channels: of a scan.
        organs: K.
        channels: of the network's levels.
    """
    names = ["train"] if dimensions == 2 else ["train", "patch_3d"]
    knobs = {
        "image_channels": image_channels,
        "organs": list(range(1, organs + 1)),
        "channels": list(channels),
    }
    backbone = merged_configs(configs, names, knobs).get_parsed_content("backbone")
    return PriorDrivenNet(backbone, image_channels=image_channels)


def step_bytes(network: nn.Module, batch: Sequence[int], device: torch.device) -> int:
    """Bytes that a training step with Adam holds at most.

    On a GPU what its allocator counted; on the CPU, which has no such count, the tensors kept for
    the backward pass and the states of the weights. PyTorch's device ``meta``, which computes
    shapes alone, stands for a GPU that is not here: the same tensors, and twice the largest, since
    the gradients of a layer's input and output are there with all that is kept.

    Args:
        network: is moved to ``device``.
        batch: shape of its input.
        device: where it trains, or ``meta``.
    """
    network = network.to(device).train()
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    x = torch.zeros(*batch, device=device)
    # a prior that says nothing
    x[:, 1:] = 0.5 / max(1, batch[1])
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage  # which stays, so that its number is of no other
        return tensor

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(x).float().square().mean()
    if device.type == "cuda":
        loss.backward()
        return torch.cuda.max_memory_allocated(device) + (STATES - 2) * weights
    sizes = [storage.nbytes() for storage in kept.values()]
    passing = 2 * max(sizes) if device.type == "meta" else 0
    return sum(sizes) + STATES * weights + passing


def device_bytes(device: torch.device) -> int:
    """Memory that a training may use: most of a GPU's, a quarter of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * GPU_SHARE)
    return machine_bytes() // 4


def machine_bytes() -> int:
    """Memory of the machine."""
    names: Any = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    try:
        page, pages = (os.sysconf(name) for name in names)
    except (ValueError, OSError, AttributeError):
        return 8 * 2**30
    return page * pages
