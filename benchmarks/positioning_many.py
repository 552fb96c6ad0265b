"""Where one, four, seven and thirteen organs are, beside the network that predicts them.

Real anatomy: a CT scan of BTCV at 128 × 128 and its own slices, whose labels are made into coarse
predictions; the priors and offsets come from three other scans. Without the data it says so and
ends. The predictions:
    easy: every organ blurred by 8 mm, and some smooth noise.
    hard: a poor network that is sure of itself: as much false as true.
    noise: every voxel random, so that no position is much better than another.

Compared:
    network: the whole volume through a U-Net of 16 to 128 channels (0.48 M parameters), as small
        as one would train. Ratios are to it. The column beside is the share of the 31 M-parameter
        `SliceUNet`, its time scaled from that of two slices.
    locate_organs: ours, from the probabilities to world points; one organ is `locate_organ`.
    every cell (`--every-cell`): the joint score of every organ at every cell, maximised axis by
        axis over every distance. It is the tests' oracle, `tests/helpers/joint_scores.py`, and
        gets the shares of the priors ready-made. The script stops where its greatest score is not
        that of our places.

Times on a CPU are processor times. Read: ratios are to lie below 0.1; with the small network and
more than four organs they do not yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from timing import Clock, peak_gpu_memory, peak_memory, print_table, row_from, time_once
from torch import Tensor

from stipple_monai import SliceUNet, SpatialPrior, locate_organs
from stipple_monai.positioning import DEFAULT_EPSILON, DEFAULT_SPREAD_MM
from stipple_monai.positioning.joint import (
    JOINT_CELL_MM,
    coarse_affine,
    coarse_evidence,
    supported_shares,
)
from stipple_monai.positioning.single import cells_of
from stipple_monai.positioning.star import best_together

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from helpers.joint_scores import joint_score_maps, score_maps  # noqa: E402

ORGANS = {1: [11], 4: [1, 2, 3, 6], 7: [1, 2, 3, 6, 7, 8, 11], 13: list(range(1, 14))}
SMALL = (16, 32, 64, 128)
BATCH = 14


def read_label(path: Path) -> MetaTensor:
    """A label map at every second voxel of the plane."""
    image = nib.load(path).slicer[::2, ::2]
    values = torch.from_numpy(np.asarray(image.dataobj).astype(np.uint8))
    return MetaTensor(values[None], affine=image.affine)


def prediction(label: MetaTensor, organ: int, kind: str, rng: np.random.Generator) -> Tensor:
    """Probabilities ``(W, H, D)`` of one organ."""
    if kind == "noise":
        return torch.from_numpy(rng.random(label.shape[1:], dtype=np.float32))
    spacing = np.linalg.norm(label.affine.numpy()[:3, :3], axis=0)
    blurred = gaussian_filter((label.numpy()[0] == organ).astype(np.float32), 8 / spacing)
    noise = gaussian_filter(rng.standard_normal(blurred.shape, dtype=np.float32), 14 / spacing)
    noise /= noise.std()
    logit = 14 * blurred - 6 + 0.5 * noise if kind == "easy" else 14 * blurred - 9 + 6 * noise
    return torch.sigmoid(torch.from_numpy(logit))


def network_seconds(
    shape: torch.Size, channels: tuple[int, ...], slices: int, device: str
) -> float:
    """Seconds of a network for a volume, scaled from some slices; bfloat16 on a GPU."""
    gpu = device == "cuda"
    network = SliceUNet(out_channels=8, channels=channels).eval().to(device)
    batch = torch.randn(min(slices, BATCH), 1, *shape[:2], device=device)

    def run() -> None:
        for _ in range(max(1, slices // BATCH)):
            network(batch)

    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=gpu):
        network(batch[:1])
        seconds = time_once(run, clock="wall" if gpu else "cpu")
    return seconds / (len(batch) * max(1, slices // BATCH)) * shape[2]


def every_cell(maps: MetaTensor, priors: list[SpatialPrior]) -> Callable[[], float]:
    """The greatest joint score by the tests' oracle, checked against that of our places."""
    cells = cells_of(maps.affine, JOINT_CELL_MM)
    coarse = coarse_affine(maps.affine.double().cpu(), cells)
    blocks = coarse_evidence(maps.as_tensor(), cells, epsilon=DEFAULT_EPSILON)
    share, start = score_maps(blocks, priors, coarse)
    shares = supported_shares(blocks, priors, coarse)
    ours = best_together(shares, priors, coarse, DEFAULT_SPREAD_MM).worth

    def run() -> float:
        scores, _ = joint_score_maps(share, start, priors, coarse, DEFAULT_SPREAD_MM)
        if abs(float(scores.max()) - ours) > 1e-5:
            raise RuntimeError(f"must score {float(scores.max())}, got {ours}")
        return ours

    return run


def compare(scans: list[MetaTensor], kind: str, *, rounds: int, device: str, whole: bool) -> None:
    """One table: a kind of prediction, every number of organs."""
    gpu = device == "cuda"
    clock: Clock = "wall" if gpu else "cpu"
    label, *others = scans
    rng = np.random.default_rng(0)
    predicted = torch.stack([prediction(label, organ, kind, rng) for organ in ORGANS[13]])
    runs: dict[str, Callable[[], object]] = {}
    for count, organs in ORGANS.items():
        priors = SpatialPrior.estimate_several(others, organs=organs)
        maps = predicted[[organ - 1 for organ in organs]].to(device)
        volume = MetaTensor(maps, affine=label.affine)
        runs[f"locate_organs, {count}"] = partial(locate_organs, volume, priors)
        if whole and count > 1:
            runs[f"every cell, {count}"] = every_cell(volume, priors)
    shape = label.shape[1:]
    seconds: dict[str, list[float]] = {"network": []} | {name: [] for name in runs}
    peak: dict[str, float] = {}
    for run in runs.values() if gpu else list(runs.values())[:1]:
        run()
    for _ in range(rounds):
        seconds["network"].append(network_seconds(shape, SMALL, 10 * BATCH, device))
        for name, run in runs.items():
            measure = peak_gpu_memory if gpu else peak_memory
            once = partial(_timed, run, seconds[name], clock)
            peak[name] = max(peak.get(name, 0.0), measure(once))
    large = network_seconds(shape, (64, 128, 256, 512, 1024), 2, device)
    rows = [row_from(name, s, seconds["network"], clock=clock) for name, s in seconds.items()]
    print_table(
        f"{kind}, {' × '.join(map(str, shape))}, {device}",
        rows,
        columns={
            "of the large network": {row.name: f"{row.seconds / large:.4f}" for row in rows},
            "peak MiB": peak | {"network": "–"},
        },
        notes=f"The large network is extrapolated from 2 slices of {shape[2]}.",
    )


def _timed(run: Callable[[], object], seconds: list[float], clock: Clock) -> None:
    seconds.append(time_once(run, clock=clock))


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "btcv_ct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--every-cell", action="store_true", help="the oracle too: minutes")
    arguments = parser.parse_args()
    paths = sorted((arguments.data / "labelsTr").glob("*.nii.gz"))[:4]
    if len(paths) < 4:
        print(f"There are no four label maps in {arguments.data}: nothing is measured.")
        return
    scans = [read_label(path) for path in paths]
    for kind in ("easy", "hard", "noise"):
        compare(
            scans,
            kind,
            rounds=arguments.rounds,
            device=arguments.device,
            whole=arguments.every_cell,
        )


if __name__ == "__main__":
    main()
