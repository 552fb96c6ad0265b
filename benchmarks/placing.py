"""Placing a prior on a grid: `SpatialPrior.place` beside MONAI's resampling of the whole grid.

Compared, for a prior of a pancreas' size:
    place: ours, which samples only the box that the prior covers.
    SpatialResample: MONAI's transform onto the whole grid, of the prior as a volume whose affine
        moves it to the same point.

Sizes: a slice of 512 × 512, as in training, and a volume of 512 × 512 × 240, as in inference, on
the CPU and on a GPU where there is one.

Read: ratios above 1 are what placing by the obvious way takes more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from inference import FIELD_MM, simulated_prior
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from timing import compare, peak_gpu_memory, peak_memory, print_table
from torch import Tensor

from stipple_monai import SpatialPrior

POSITION_MM = (190.0, 200.0, 130.0)
OURS = "place"


def grid(shape: tuple[int, int, int], device: str) -> MetaTensor:
    """An empty volume of the field of view; a slice lies at the organ's middle."""
    whole = (*shape[:2], max(shape[2], 240))
    spacing = [length / n for length, n in zip(FIELD_MM, whole, strict=True)]
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    if shape[2] == 1:
        affine[2, 3] = POSITION_MM[2]
    return MetaTensor(torch.zeros(1, *shape, device=device), affine=affine)


def by_resampling(prior: SpatialPrior, like: MetaTensor, device: str) -> Tensor:
    """The prior on the whole grid, by MONAI."""
    size = torch.tensor(prior.probability.shape)
    spacing = torch.tensor(prior.spacing_mm, dtype=torch.float64)
    affine = torch.diag(torch.cat([spacing, torch.ones(1, dtype=torch.float64)]))
    affine[:3, 3] = torch.tensor(POSITION_MM) - spacing * (size - 1) / 2
    moved = MetaTensor(prior.probability[None].to(device), affine=affine)
    resample = SpatialResample(mode="nearest", padding_mode="zeros")
    return resample(moved, dst_affine=like.affine, spatial_size=like.shape[1:])


def run_on(device: str, shape: tuple[int, int, int], *, rounds: int) -> None:
    """One table."""
    prior, like = simulated_prior(), grid(shape, device)
    gpu = device == "cuda"
    position = torch.tensor(POSITION_MM, dtype=torch.float64)
    candidates: dict[str, Callable[[], Any]] = {
        OURS: partial(prior.place, position, like),
        "SpatialResample": partial(by_resampling, prior, like, device),
    }
    rows = compare(candidates, rounds=rounds, baseline=OURS, clock="wall" if gpu else "cpu")
    measure = peak_gpu_memory if gpu else peak_memory
    print_table(
        f"Placing a prior on {' × '.join(map(str, shape))}, {device}",
        rows,
        columns={"peak MiB": {name: measure(run) for name, run in candidates.items()}},
    )


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: both")
    parser.add_argument("--tiny", action="store_true", help="a small volume, to try the script")
    arguments = parser.parse_args()
    shape = (64, 64, 30) if arguments.tiny else (512, 512, 240)
    devices = [arguments.device] if arguments.device else ["cpu", "cuda"]
    for device in devices if torch.cuda.is_available() else ("cpu",):
        run_on(device, (*shape[:2], 1), rounds=3 if arguments.tiny else 20)
        few = device == "cpu" and not arguments.tiny
        run_on(device, shape, rounds=1 if few else 5)


if __name__ == "__main__":
    main()
