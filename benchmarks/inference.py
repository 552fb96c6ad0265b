"""A whole volume from image to label: with the prior, without, and in two passes of the network.

Compared, from an image in memory to a label (argmax, uint8) in memory, all with MONAI's
`SliceInferer` and the 31 M-parameter `SliceUNet`:
    plain: the network without prior.
    one pass: `PriorDrivenInferer`, which locates the organ in the network's logits and adds the
        placed prior's bias to them.
    two passes: the obvious way. A coarse pass, its organ located, and a second pass of the
        prior-driven network with the prior in the channels behind the image.

The network is trained in effect only: its weights are random, and a trained network's logits are
added to its own, times 0.001. They hold one organ, look-alikes that are predicted as it with
less certainty, and noise all over the body, so that no box around the prediction is small.

The first table is measured whole, on a volume with few voxels. On a CPU, where the network takes
a quarter of an hour for 512 × 512 × 240, the second table is put together: everything but the
convolutions is measured on the whole volume, and the network on a few slices, times the number of
slices. It is half as large along each axis by default, and the practice size with ``--full``. On
a GPU the practice size is measured whole, in bfloat16.

Read: one pass is to take at most 1.10 times plain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from timing import (
    Row,
    compare,
    peak_gpu_memory,
    peak_memory,
    print_table,
    readable_time,
    row_from,
    time_once,
)
from torch import Tensor, nn

from stipple_monai import PriorDrivenInferer, PriorDrivenNet, SliceUNet, SpatialPrior, locate_organ

FIELD_MM = (410.0, 410.0, 240.0)
ORGAN_MM = (170.0, 190.0, 130.0)
# center, semi-axes (mm), and the logit that the network gives
ORGAN = [((200, 190, 130), (45, 22, 18)), ((165, 205, 150), (40, 16, 20))]
LOOK_ALIKES = [((130, 240, 60), (30, 25, 20)), ((290, 210, 90), (25, 35, 18))]
ORGAN_LOGIT, LOOK_ALIKE_LOGIT, BODY_LOGIT, AIR_LOGIT = 5.0, 1.0, -9.0, -14.0


class Trained(nn.Module):
    """A backbone with random weights that costs what it costs and answers what its input says.

    Args:
        backbone: maps ``(B, 1, W, H)`` to ``(B, 2, W, H)``; ``None`` costs nothing.
    """

    def __init__(self, backbone: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Map an image, which *is* the organ's logit, to logits."""
        logits = torch.cat([torch.zeros_like(x), x], dim=1)
        return logits if self.backbone is None else logits + 1e-3 * self.backbone(x)


def simulated_volume(shape: tuple[int, int, int], device: str) -> MetaTensor:
    """Image ``(1, 1, W, H, D)`` with the organ, look-alikes and noise, as `Trained` takes it."""
    spacing = [length / n for length, n in zip(FIELD_MM, shape, strict=True)]
    axes = [torch.arange(n, device=device) * s for n, s in zip(shape, spacing, strict=True)]
    x, y, z = axes[0][:, None, None], axes[1][:, None], axes[2]

    def inside(center: tuple[int, ...], semi_axes: tuple[int, ...]) -> Tensor:
        offsets = ((p - c) / a for p, c, a in zip((x, y, z), center, semi_axes, strict=True))
        return sum((o**2 for o in offsets), torch.zeros((), device=device)) < 1

    generator = torch.Generator(device).manual_seed(0)
    noise = torch.randn(shape, generator=generator, device=device)
    logit = torch.full(shape, AIR_LOGIT, device=device)
    body = inside((205, 205, 120), (190, 150, 400))
    logit[body] = BODY_LOGIT
    for bodies, value in ((LOOK_ALIKES, LOOK_ALIKE_LOGIT), (ORGAN, ORGAN_LOGIT)):
        for center, semi_axes in bodies:
            logit[inside(center, semi_axes)] = value
    logit += noise * body
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(logit[None, None], affine=affine[None])


def simulated_prior() -> SpatialPrior:
    """A prior of a pancreas' size: voxels of 0.8 mm in the plane, five bins along z."""
    shape = [round(length / size) for length, size in zip(ORGAN_MM, (0.8, 0.8, 26), strict=True)]
    axes = [torch.linspace(-1, 1, n + 2)[1:-1] for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    blob = torch.exp(-3 * ((x + 0.3 * z) ** 2 + (2 * y + 0.6 * x) ** 2 + z**2))
    return SpatialPrior(blob, spacing_mm=(0.8, 0.8, 26.0))


class Ways:
    """The three ways through one volume.

    Args:
        network: the network without prior.
        volume: ``(1, 1, W, H, D)``.
        batch: slices at a time.
        amp: run the network in bfloat16.
    """

    def __init__(self, network: nn.Module, volume: MetaTensor, *, batch: int, amp: bool) -> None:
        self.network = network.eval()
        self.volume = volume
        self.prior = simulated_prior()
        self.driven = PriorDrivenNet(network, image_channels=1).eval()
        self.slices = SliceInferer(
            spatial_dim=2, roi_size=tuple(volume.shape[2:4]), sw_batch_size=batch, overlap=0.25
        )
        self.driven_inferer = PriorDrivenInferer(self.slices, [self.prior])
        self.amp, self.twice = amp, True

    def plain(self) -> Tensor:
        """Without prior."""
        return self._label(lambda: self.slices(self.volume, self.network))

    def one_pass(self) -> Tensor:
        """With the prior, as the bundle does it."""
        return self._label(lambda: self.driven_inferer(self.volume, self.driven))

    def two_passes(self) -> Tensor:
        """With the prior, the network run again with it."""

        def run() -> Tensor:
            coarse = self.slices(self.volume, self.network)
            coarse = torch.as_tensor(coarse).as_subclass(Tensor)
            probability = coarse.float().softmax(1)[0, 1:]
            grid = MetaTensor(probability, affine=self.volume.affine[0])
            position = locate_organ(grid, self.prior)
            assert position is not None
            placed = self.prior.place(position, grid)
            return self.slices(torch.cat([self.volume, placed[None]], dim=1), self.driven)

        return self._label(run)

    def as_candidates(self) -> dict[str, Callable[[], Any]]:
        """By the names in the tables."""
        ways = {"plain": self.plain, "one pass": self.one_pass}
        return ways | {"two passes": self.two_passes} if self.twice else ways

    def _label(self, logits: Callable[[], Tensor]) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(self.volume.device.type, dtype=torch.bfloat16, enabled=self.amp),
        ):
            return torch.as_tensor(logits()).argmax(1).to(torch.uint8)


def check(ways: Ways) -> None:
    """Stop if the ways do not find the same organ: their times would not compare."""
    one, two = ways.one_pass().bool(), ways.two_passes().bool()
    overlap = 2 * int((one & two).sum()) / max(1, int(one.sum() + two.sum()))
    if overlap < 0.98:
        raise RuntimeError(f"one pass and two passes must give one label, got Dice {overlap:.3f}")


def run_whole(
    shape: tuple[int, int, int],
    device: str,
    *,
    batch: int,
    rounds: int,
    amp: bool,
    twice: bool = True,
) -> None:
    """Measure the three ways on a whole volume with the whole network."""
    gpu = device == "cuda"
    network = Trained(SliceUNet()).to(device)
    if gpu:
        network = network.to(memory_format=torch.channels_last)
    ways = Ways(network, simulated_volume(shape, device), batch=batch, amp=amp)
    check(ways)
    ways.twice = twice
    candidates = ways.as_candidates()
    rows = compare(candidates, rounds=rounds, baseline="plain", clock="wall" if gpu else "cpu")
    measure = peak_gpu_memory if gpu else peak_memory
    print_table(
        f"Volume of {' × '.join(map(str, shape))}, measured whole, {device}"
        f"{', bfloat16' if amp else ''}",
        rows,
        columns={"peak MiB": {name: measure(run) for name, run in candidates.items()}},
    )


def run_in_parts(shape: tuple[int, int, int], *, batch: int, rounds: int) -> None:
    """Measure the network on a few slices and all else on the whole volume, on the CPU."""
    volume = simulated_volume(shape, "cpu")
    ways = Ways(Trained(None), volume, batch=batch, amp=False)
    check(ways)
    candidates = ways.as_candidates()
    peak = {name: peak_memory(run) for name, run in candidates.items()}
    rest = compare(candidates, rounds=rounds, baseline="plain", clock="cpu", warm_up=False)

    backbone = SliceUNet().eval()
    few = torch.as_tensor(volume)[0, :, :, :, :2].permute(3, 0, 1, 2).contiguous()
    with torch.inference_mode():
        backbone(few[:1])
        samples = [time_once(partial(backbone, few), clock="cpu") for _ in range(2)]
    network = min(samples) / len(few) * shape[2]

    passes = {"plain": 1, "one pass": 1, "two passes": 2}
    seconds = {row.name: row.seconds + passes[row.name] * network for row in rest}
    rows: list[Row] = [
        row_from(n, [s], [seconds["plain"]], clock="cpu") for n, s in seconds.items()
    ]
    print_table(
        f"Volume of {' × '.join(map(str, shape))}, put together, cpu",
        rows,
        columns={
            "without the network": {row.name: readable_time(row.seconds) for row in rest},
            "peak MiB without the network": peak,
        },
        notes=f"Extrapolated: the network takes {readable_time(network)} for {shape[2]} slices, "
        f"from {len(few)}; the rest is measured on the whole volume.",
    )


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="practice size: 10 GiB, minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=6, help="slices at a time")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: both")
    parser.add_argument("--once", action="store_true", help="on a GPU, no second pass")
    parser.add_argument("--tiny", action="store_true", help="the GPU's table on a CPU, to try it")
    arguments = parser.parse_args()
    start = time.perf_counter()
    batch, rounds = arguments.batch, arguments.rounds
    if arguments.tiny:
        run_whole((32, 32, 8), "cpu", batch=batch, rounds=1, amp=False)
    elif arguments.device != "cuda":
        run_whole((96, 96, 24), "cpu", batch=batch, rounds=rounds, amp=False)
        parts = (512, 512, 240) if arguments.full else (256, 256, 120)
        run_in_parts(parts, batch=batch, rounds=rounds)
    if arguments.device != "cpu" and torch.cuda.is_available():
        whole, twice = (512, 512, 240), not arguments.once
        run_whole(whole, "cuda", batch=batch, rounds=rounds, amp=True, twice=twice)
    elif not arguments.tiny:
        print("The GPU table is left out.")
    print(f"Done in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
