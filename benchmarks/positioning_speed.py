"""Where the organ is among all translations: `locate_organ` beside the obvious ways.

Compared, on one probability volume and a prior of a pancreas' size:
    locate_organ: ours, from the probability and the prior to a world point, exact over all
        translations.
    loop: a sum over the prior's box for each of the 31³ translations within ±15 voxels, no
        logarithm in the loop. Timed on a few translations and scaled.
    scipy: `scipy.signal.correlate(method="fft")` in float32, all translations.
    scikit-image: `phase_cross_correlation`, its normalisation switched off, because only then it
        maximises this score. It wraps around the volume's edges.
    torch: one Fourier transform of the whole volume in float32.
    torch, all of it: the same with the log-odds and the prior made, as ours makes them.

The alternatives get the log-odds and the resampled prior ready-made; ours makes them itself.
Two volumes:
    unsure: a network that is sure of nothing, so that no voxel lies below ε and nothing can be
        cropped.
    hard: a network that answers 0 or 1, mostly 0.

Times on a CPU are processor times. The backbone is the 31 M-parameter `SliceUNet`, its time for
the whole volume scaled from that of 2 slices. A second table has four organs that are positioned
together, their priors and offsets estimated from one label map.

Read: every ratio is to lie above 1, and the share of the backbone below 0.1. The script stops where
ours and scipy give different translations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from inference import FIELD_MM, LOOK_ALIKES, ORGAN, simulated_prior, simulated_volume
from monai.data import MetaTensor
from scipy.signal import correlate as scipy_correlate
from timing import peak_gpu_memory, peak_memory, print_table, row_from, time_once
from torch import Tensor

from stipple_monai import SliceUNet, SpatialPrior, locate_organ, locate_organs
from stipple_monai.positioning import (
    DEFAULT_EPSILON,
    around_center,
    evidence_for,
    measure_position,
    to_world,
)
from stipple_monai.spatial import correlate

try:
    from skimage.registration import phase_cross_correlation
except ImportError:
    phase_cross_correlation = None

REACH = 15
LOOP_PART = 40
# with it the simulated logits of air, -14, come to lie above logit ε = -6.9
UNSURE = 0.45


class Ways:
    """The ways to the organ's position, each returning the world point ``(3,)``.

    Args:
        probability: ``(1, W, H, D)``.
        prior: of the organ.
    """

    def __init__(self, probability: MetaTensor, prior: SpatialPrior) -> None:
        self.probability = probability
        self.prior = prior
        self.affine = probability.affine.double().cpu()
        self.evidence = evidence_for(probability.as_tensor()[0], DEFAULT_EPSILON)
        self.kernel = around_center(prior, self.affine, device=probability.device).to(self.evidence)
        # where a GPU correlates, SciPy has the same on the CPU
        self.host = (self.evidence.cpu().numpy(), self.kernel.cpu().numpy())
        self.on_host = True
        self.half = torch.tensor([(n - 1) // 2 for n in self.kernel.shape])

    def locate_organ(self) -> Tensor:
        """Ours."""
        point = locate_organ(self.probability, self.prior)
        assert point is not None
        return point

    def loop_part(self) -> Tensor:
        """Some of the translations within ±15 voxels of the volume's middle."""
        middle = torch.tensor(self.evidence.shape) // 2
        generator = torch.Generator().manual_seed(0)
        moves = torch.randint(-REACH, REACH + 1, (LOOP_PART, 3), generator=generator)
        best, best_score = middle, -1.0
        for move in moves:
            start = (middle + move - self.half).tolist()
            box = tuple(slice(a, a + n) for a, n in zip(start, self.kernel.shape, strict=True))
            score = float((self.evidence[box] * self.kernel).sum())
            if score > best_score:
                best, best_score = middle + move, score
        return to_world(self.affine, best.double())

    def scipy(self) -> Tensor:
        """All translations, by SciPy."""
        score = scipy_correlate(*self.host, method="fft")
        return self._point(np.unravel_index(score.argmax(), score.shape))

    def torch(self) -> Tensor:
        """All translations, by one transform of the whole volume."""
        score = correlate(self.evidence, self.kernel)
        return self._point(torch.unravel_index(score.argmax(), score.shape))

    def torch_all(self) -> Tensor:
        """The same, from the probability and the prior."""
        evidence = evidence_for(self.probability.as_tensor()[0], DEFAULT_EPSILON)
        kernel = around_center(self.prior, self.affine, device=evidence.device).to(evidence)
        score = correlate(evidence, kernel)
        return self._point(torch.unravel_index(score.argmax(), score.shape))

    def scikit_image(self) -> Tensor:
        """All translations, wrapped around, by scikit-image."""
        moving = np.zeros(self.evidence.shape, dtype=np.float32)
        moving[tuple(map(slice, self.kernel.shape))] = self.kernel.numpy()
        shift, _, _ = phase_cross_correlation(
            self.evidence.numpy(), moving, normalization=None, upsample_factor=1
        )
        middle = (torch.as_tensor(shift) + self.half) % torch.tensor(self.evidence.shape)
        return to_world(self.affine, middle.double())

    def as_candidates(self) -> dict[str, Callable[[], Tensor]]:
        """By the names in the tables."""
        ways = {"locate_organ": self.locate_organ, "loop, ±15 voxels": self.loop_part}
        if self.evidence.is_cuda:
            ways |= {"scipy, on the CPU": self.scipy} if self.on_host else {}
        else:
            ways["scipy"] = self.scipy
            if phase_cross_correlation is None:
                print("scikit-image is not installed: its row is left out.")
            else:
                ways["scikit-image"] = self.scikit_image
        return ways | {"torch": self.torch, "torch, all of it": self.torch_all}

    def _point(self, index: tuple[Tensor | np.intp, ...]) -> Tensor:
        middle = torch.tensor([int(i) for i in index]) - self.half
        return to_world(self.affine, middle.double())


def measure(
    candidates: dict[str, Callable[[], Tensor]], *, rounds: int, gpu: bool
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, Tensor]]:
    """Seconds, peak MiB and answers by name, of the same interleaved runs."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    peak = dict.fromkeys(candidates, 0.0)
    answer: dict[str, Tensor] = {}

    def once(name: str) -> None:
        def run() -> None:
            answer[name] = candidates[name]()

        seconds[name].append(time_once(run, clock="wall" if gpu else "cpu"))

    order = list(candidates)
    for number in range(rounds):
        for name in order:
            if gpu and number and name.endswith("on the CPU"):
                # takes seconds, beside milliseconds
                seconds[name].append(seconds[name][0])
                continue
            grown = (peak_gpu_memory if gpu else peak_memory)(partial(once, name))
            peak[name] = max(peak[name], grown)
        order.reverse()
    return seconds, peak, answer


def compare_ways(
    title: str, ways: Ways, *, rounds: int, backbone: float | None, show: bool = True
) -> None:
    """Measure the ways on one volume; stop if the exact ones do not agree."""
    gpu = ways.evidence.is_cuda
    seconds, peak, answer = measure(ways.as_candidates(), rounds=rounds, gpu=gpu)
    ours = answer["locate_organ"]
    oracle = "torch" if gpu else "scipy"
    if not torch.allclose(ours, answer[oracle]):
        raise RuntimeError(f"must find {answer[oracle].tolist()} as {oracle}, got {ours.tolist()}")
    if not show:
        return
    scale = (2 * REACH + 1) ** 3 / LOOP_PART
    seconds["loop, ±15 voxels"] = [s * scale for s in seconds["loop, ±15 voxels"]]
    clock = "wall" if gpu else "cpu"
    rows = [row_from(n, s, seconds["locate_organ"], clock=clock) for n, s in seconds.items()]
    away: dict[str, str | float] = {n: float((a - ours).norm()) for n, a in answer.items()}
    away["loop, ±15 voxels"] = "–"
    columns = {"peak MiB": peak, "mm from ours": away}
    if backbone is not None:
        columns["of the backbone"] = {row.name: f"{row.seconds / backbone:.4f}" for row in rows}
    print_table(
        title,
        rows,
        columns=columns,
        notes=f"Extrapolated: the loop, from {LOOP_PART} of {(2 * REACH + 1) ** 3} translations; "
        "the backbone, from 2 slices.",
    )


def backbone_seconds(shape: tuple[int, int, int], device: str) -> float:
    """Seconds of the network for a whole volume, from 2 slices; bfloat16 on a GPU."""
    gpu = device == "cuda"
    network = SliceUNet().eval().to(device)
    slices = torch.randn(2, 1, *shape[:2], device=device)
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=gpu):
        network(slices[:1, :, :64, :64])
        clock = "wall" if gpu else "cpu"
        runs = [time_once(partial(network, slices), clock=clock) for _ in range(5 if gpu else 1)]
    return min(runs) / 2 * shape[2]


def four_organs(unsure: MetaTensor) -> tuple[MetaTensor, list[SpatialPrior]]:
    """Probabilities ``(4, W, H, D)`` of four organs, and priors that know their offsets."""
    shape = unsure.shape[1:]
    label = torch.zeros(unsure.shape, dtype=torch.uint8)
    bodies = ORGAN + LOOK_ALIKES
    axes = [torch.arange(n) * (mm / n) for n, mm in zip(shape, FIELD_MM, strict=True)]
    for organ, (center, semi_axes) in enumerate(bodies, 1):
        x, y, z = (((p - c) / a) ** 2 for p, c, a in zip(axes, center, semi_axes, strict=True))
        label[0][x[:, None, None] + y[:, None] + z < 1] = organ
    grid = MetaTensor(label, affine=unsure.affine.cpu())
    priors = SpatialPrior.estimate_several(grid, organs=range(1, len(bodies) + 1))
    # every network confuses the organs, but is surest of its own
    maps = 0.7 * unsure.as_tensor().cpu().repeat(len(bodies), 1, 1, 1)
    for organ in range(1, len(bodies) + 1):
        maps[organ - 1][label[0] == organ] = 0.9
    together = MetaTensor(maps.to(unsure.device), affine=unsure.affine)
    found = locate_organs(together, priors).position_mm
    true = torch.stack([measure_position(grid, prior) for prior in priors])
    if float((found - true).norm(dim=1).max()) > 10:
        raise RuntimeError(f"must find the organs at {true.tolist()}, got {found.tolist()}")
    return together, priors


def compare_organs(title: str, unsure: MetaTensor, *, rounds: int, backbone: float) -> None:
    """Four organs together, and one after another."""
    maps, priors = four_organs(unsure)
    one_by_one = [MetaTensor(q[None], affine=maps.affine) for q in maps.as_tensor()]

    def apart() -> Tensor:
        points = [locate_organ(q, p) for q, p in zip(one_by_one, priors, strict=True)]
        return torch.stack([p for p in points if p is not None])

    gpu = unsure.is_cuda
    candidates: dict[str, Callable[[], Tensor]] = {
        "locate_organ, one after another": apart,
        "locate_organs, together": lambda: locate_organs(maps, priors).position_mm,
    }
    seconds, peak, _ = measure(candidates, rounds=rounds, gpu=gpu)
    first = next(iter(seconds.values()))
    rows = [row_from(n, s, first, clock="wall" if gpu else "cpu") for n, s in seconds.items()]
    share = {row.name: f"{row.seconds / backbone:.4f}" for row in rows}
    print_table(title, rows, columns={"peak MiB": peak, "of the backbone": share})


def volumes(shape: tuple[int, int, int], device: str) -> dict[str, MetaTensor]:
    """The two probability volumes."""
    simulated = simulated_volume(shape, device)
    logit = simulated.as_tensor()[0]
    maps = {"unsure": torch.sigmoid(UNSURE * logit), "hard": (logit > 2.5).float()}
    return {name: MetaTensor(q, affine=simulated.affine[0]) for name, q in maps.items()}


def run_on(
    device: str,
    shape: tuple[int, int, int],
    *,
    rounds: int,
    tiny: bool = False,
    host: bool = True,
) -> None:
    """All tables of one device, or the first."""
    prior = simulated_prior()
    size = f"{' × '.join(map(str, shape))}, {device}"
    # the first call of a library loads it
    if device == "cuda" or shape[0] > 256:
        small = Ways(volumes((256, 256, 120), device)["hard"], prior)
        small.on_host = host
        compare_ways("", small, rounds=1, backbone=None, show=False)
    backbone = backbone_seconds(shape, device)
    for name, probability in volumes(shape, device).items():
        ways = Ways(probability, prior)
        ways.on_host = host
        compare_ways(f"{name}, {size}", ways, rounds=rounds, backbone=backbone)
        del ways
        if tiny:
            return
    unsure = volumes(shape, device)["unsure"]
    compare_organs(f"Four organs, {size}", unsure, rounds=rounds, backbone=backbone)


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="practice size: 8 GiB, minutes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: both")
    parser.add_argument("--no-host", action="store_true", help="beside a GPU, no SciPy on the CPU")
    parser.add_argument("--tiny", action="store_true", help="the tables at a small size, to try it")
    arguments = parser.parse_args()
    start = time.perf_counter()
    practice = (512, 512, 240)
    if arguments.tiny:
        run_on("cpu", (128, 128, 72), rounds=1, tiny=True)
    elif arguments.device != "cuda":
        run_on("cpu", practice if arguments.full else (256, 256, 120), rounds=arguments.rounds)
    if arguments.device != "cpu" and torch.cuda.is_available():
        rounds = max(arguments.rounds, 5)
        run_on("cuda", practice, rounds=rounds, host=not arguments.no_host)
    elif not arguments.tiny:
        print("The GPU tables are left out.")
    print(f"Done in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
