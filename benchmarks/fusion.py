"""What the prior adds to a training step: forward and backward, wrapped network against bare one.

Compared: `PriorDrivenNet(SliceUNet())` on image and prior with the same 31 M-parameter `SliceUNet`
on the image alone, cross-entropy on top; and the fusion alone with equation 2 as it is printed
(softmax, times prior, divided by the sum; then the logarithm that a cross-entropy needs).

Sizes: one slice of 256 × 256, or with ``--full`` the practice size, 6 of 512 × 512 (12 GiB, minutes
on a CPU). On a GPU it is always the practice size, in each precision, and in half precision also
under ``torch.compile``.

Read: the wrapped network's ratio to the bare one is to be at most 1.02, its peak memory at most
1.05 times. The fusion's own time over the bare network's says the same with less noise: on
a busy machine two runs of one network differ by more than 0.02.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import compare, peak_gpu_memory, peak_memory, print_table, readable_time
from torch import Tensor, nn

from stipple_monai import PriorDrivenNet, SliceUNet, softmax_logits
from stipple_monai.networks import DEFAULT_FLOOR

Fusion = Callable[[Tensor, Tensor], Tensor]


def printed_fusion(logits: Tensor, prior: Tensor) -> Tensor:
    """Equation 2 as it is printed, the alternative to `softmax_logits`."""
    s = torch.softmax(logits.float(), dim=1)
    p = prior.float().clamp(DEFAULT_FLOOR, 1 - DEFAULT_FLOOR)
    product = s * torch.cat([1 - p.sum(dim=1, keepdim=True), p], dim=1)
    return torch.log(product / product.sum(dim=1, keepdim=True)).to(logits.dtype)


def no_fusion(logits: Tensor, _: Tensor) -> Tensor:
    """The logits as they are: what is left is the loss."""
    return logits


def network_step(network: nn.Module, x: Tensor, target: Tensor, *, dtype: torch.dtype) -> None:
    """Forward and backward; the gradients are dropped, so that every step allocates them."""
    with torch.autocast(
        x.device.type,
        dtype=torch.bfloat16 if dtype == torch.float32 else dtype,
        enabled=dtype != torch.float32,
    ):
        logits = network(x)
    F.cross_entropy(logits.float(), target).backward()
    network.zero_grad(set_to_none=True)


def fusion_step(fusion: Fusion, logits: Tensor, prior: Tensor, target: Tensor) -> None:
    """The fusion between leaf logits and the loss, forward and backward."""
    F.cross_entropy(fusion(logits, prior).float(), target).backward()
    logits.grad = None


def slices(batch: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random images and priors ``(B, 1, W, H)``, and targets ``(B, W, H)``."""
    torch.manual_seed(0)
    image, prior = torch.randn(batch, 1, size, size), torch.rand(batch, 1, size, size)
    target = torch.randint(0, 2, (batch, size, size))
    return image.to(device), prior.to(device), target.to(device)


def saved_bytes(fusion: Fusion, logits: Tensor, prior: Tensor) -> int:
    """Bytes that the fusion keeps for its backward pass."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fusion(logits, prior)
    return sum(kept)


def run_network(
    batch: int,
    size: int,
    device: str,
    *,
    rounds: int,
    compiled: bool,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Time and measure the wrapped network against the bare one, whose seconds are returned."""
    gpu = device == "cuda"
    image, prior, target = slices(batch, size, device)
    x = torch.cat([image, prior], dim=1)
    bare: nn.Module = SliceUNet().to(device)
    if gpu:
        bare = bare.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    wrapped: nn.Module = PriorDrivenNet(bare, image_channels=1)
    if compiled:
        bare, wrapped = torch.compile(bare), torch.compile(wrapped)
    steps: dict[str, Callable[[], Any]] = {
        "bare network": partial(network_step, bare, image, target, dtype=dtype),
        "wrapped network": partial(network_step, wrapped, x, target, dtype=dtype),
    }
    for step in steps.values() if gpu or size < 512 else ():
        step()
    measure = peak_gpu_memory if gpu else peak_memory
    peak = {name: measure(step) for name, step in steps.items()}
    rows = compare(
        steps,
        rounds=rounds,
        baseline="bare network",
        clock="wall" if gpu else "cpu",
        warm_up=False,
    )
    floating = str(dtype).removeprefix("torch.")
    print_table(
        f"Forward and backward, {batch} × {size} × {size}, {device}, {floating}"
        f"{', torch.compile' if compiled else ''}",
        rows,
        columns={
            "peak MiB": peak,
            "peak ratio": {n: v / peak["bare network"] for n, v in peak.items()},
        },
        notes="Peak: what one step allocates beyond weights and input.",
    )
    return rows[0].seconds


def run_fusion(batch: int, size: int, device: str, *, rounds: int, compiled: bool) -> float:
    """Time the fusion alone, between leaf logits and a cross-entropy, and return what it adds."""
    image, prior, target = slices(batch, size, device)
    logits = torch.cat([image, -image], dim=1).requires_grad_()
    fusions: dict[str, Fusion] = {
        "the loss alone": no_fusion,
        "softmax_logits and loss": softmax_logits,
        "equation 2 as printed, and loss": printed_fusion,
    }
    if compiled:
        fusions["softmax_logits compiled, and loss"] = torch.compile(softmax_logits)
    steps: dict[str, Callable[[], Any]] = {
        name: partial(fusion_step, fusion, logits, prior, target)
        for name, fusion in fusions.items()
    }
    gpu = device == "cuda"
    rows = compare(steps, rounds=rounds, baseline="the loss alone", clock="wall" if gpu else "cpu")
    added = rows[1].seconds - rows[0].seconds
    measure = peak_gpu_memory if gpu else peak_memory
    print_table(
        f"Fusion alone, forward and backward, {batch} × 2 × {size} × {size}, {device}",
        rows,
        columns={
            "peak MiB": {name: measure(step) for name, step in steps.items()},
            "kept for backward, MiB": {
                name: saved_bytes(fusion, logits, prior) / 2**20
                for name, fusion in fusions.items()
                if "compiled" not in name
            },
        },
        notes=f"The fusion adds {readable_time(added)}.",
    )
    return added


def print_share(device: str, fusion: float, network: float) -> None:
    """Say how long the fusion takes beside the network."""
    print(f"On {device}, the fusion adds {fusion / network:.2%} of the bare network's time.")


def run_cpu(arguments: argparse.Namespace) -> None:
    """The CPU's tables."""
    batch = arguments.batch or (6 if arguments.full else 1)
    size = arguments.size or (512 if arguments.full else 256)
    fusion = run_fusion(batch, size, "cpu", rounds=25, compiled=arguments.compile)
    rounds = arguments.rounds or (1 if arguments.full else 5)
    network = run_network(batch, size, "cpu", rounds=rounds, compiled=False)
    print_share("cpu", fusion, network)


def run_gpu(device: str, batch: int, size: int, *, rounds: int, compiled: bool) -> None:
    """The GPU's tables, those first that need no compilation."""
    # a CPU has no float16
    half = (torch.float16, torch.bfloat16) if device == "cuda" else ()
    settings = [(dtype, False) for dtype in (*half, torch.float32)]
    settings += [(torch.float16, True)] if compiled else []
    fusion = run_fusion(batch, size, device, rounds=2 * rounds, compiled=False)
    for dtype, compiling in settings:
        network = run_network(batch, size, device, rounds=rounds, compiled=compiling, dtype=dtype)
        print_share(device, fusion, network)
    if compiled:
        run_fusion(batch, size, device, rounds=2 * rounds, compiled=True)


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="6 slices of 512 × 512 on the CPU")
    parser.add_argument("--batch", type=int, help="slices, on the CPU")
    parser.add_argument("--size", type=int, help="voxels of a slice along W and H, on the CPU")
    parser.add_argument("--rounds", type=int, help="default: 5, or 1 with --full; 20 on a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile on the CPU, too")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: both")
    parser.add_argument("--tiny", action="store_true", help="the GPU's tables on a CPU, to try it")
    arguments = parser.parse_args()
    start = time.perf_counter()
    if arguments.tiny:
        run_gpu("cpu", 1, 32, rounds=1, compiled=False)
    if arguments.device != "cuda" and not arguments.tiny:
        run_cpu(arguments)
    if arguments.device != "cpu" and torch.cuda.is_available():
        run_gpu("cuda", 6, 512, rounds=arguments.rounds or 20, compiled=True)
    elif not arguments.tiny:
        print("The GPU tables are left out.")
    print(f"Done in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
