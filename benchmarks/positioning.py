"""How far positions are from the truth, on 40 real pancreas labels and two networks' predictions.

No training and no times: the labels of ``pancreas_ct_labels`` give priors and the truth, the
predictions beside them are what an over-segmenting network (``wce``) and a good one (``ce``) said.
Five folds: a scan is located with priors from 6, or from all, scans of the other folds.

How to read it. A method's *distance* is to the centre of the true label as that method defines a
centre, so distances compare methods only as far as their centres do. The other columns do not
depend on that: *share* is the log-likelihood of the true label under the placed prior (over that
of "nowhere") as a share of the best that any translation of this prior reaches, *nats* the same
per voxel of the organ, *Dice* that of the label with the placed prior above 0.5.

``--half dev`` are the 20 scans on which methods were chosen, ``--half test`` the 20 others.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from scipy import ndimage
from timing import machine, print_markdown
from tqdm import tqdm

from stipple_monai import SpatialPrior, locate_organ, locate_organs, measure_position
from stipple_monai.data import read_volume
from stipple_monai.positioning import around_center
from stipple_monai.spatial import correlate

DATA = Path(__file__).parents[2] / "shared" / "data" / "pancreas_ct_labels"
NETWORKS = ("wce", "ce")
GRID_MM = 2.5
FLOOR = 1e-3
FOLDS = 5


class Case(NamedTuple):
    """Label and predictions on a grid of 2.5 mm, cropped to what any of them marks."""

    label: MetaTensor
    predictions: dict[str, MetaTensor]


def load_case(name: str) -> Case:
    """Read a case; its predictions lie on the label's grid whatever their headers say."""
    label = read_volume(DATA / "labels" / f"{name}.nii.gz")
    maps = {n: read_volume(DATA / f"coarse_predictions_{n}" / f"{name}.nii.gz") for n in NETWORKS}
    # case 466: the predictions' headers have half the slice thickness
    stack = torch.cat([label, *(m.as_tensor() for m in maps.values())]).as_tensor()
    box = ndimage.find_objects((stack > 0.5).any(0).numpy().astype(np.uint8))[0]
    slices = [slice(max(s.start - 8, 0), s.stop + 8) for s in box]
    affine = label.affine.clone()
    affine[:3, 3] = label.affine[:3] @ torch.tensor([*(float(s.start) for s in slices), 1.0]).to(
        label.affine
    )
    crop = MetaTensor(stack[:, slices[0], slices[1], slices[2]].contiguous(), affine=affine)
    on_grid = Spacing(GRID_MM, mode="bilinear", scale_extent=True)(
        Orientation("RAS", labels=None)(crop)
    )
    binary = (on_grid.as_tensor() >= 0.5).float()
    parts = [MetaTensor(part[None], affine=on_grid.affine) for part in binary]
    return Case(parts[0], dict(zip(NETWORKS, parts[1:], strict=True)))


def halves(names: list[str]) -> dict[str, list[str]]:
    """The scans that methods were chosen on, and the others."""
    order = [str(n) for n in np.random.default_rng(0).permutation(names)]
    return {"dev": sorted(order[:20]), "test": sorted(order[20:]), "all": sorted(names)}


def folds(names: list[str], seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Scans to locate, and those that priors may come from."""
    order = [str(n) for n in np.random.default_rng(100 + seed).permutation(names)]
    for k in range(FOLDS):
        chosen = order[k::FOLDS]
        yield chosen, [n for n in order if n not in chosen]


def centre(volume: MetaTensor, kind: str) -> torch.Tensor:
    """Centre of what a map marks."""
    points = torch.nonzero(volume[0].as_tensor() >= 0.5).double()
    low, high = points.amin(0), points.amax(0)
    index = (low + high) / 2 if kind == "bbox" else points.mean(0)
    return volume.affine[:3, :3].double() @ index + volume.affine[:3, 3].double()


class Judge:
    """The log-likelihood of a label under a prior at any position."""

    def __init__(self, label: MetaTensor, prior: SpatialPrior) -> None:
        self.label, self.prior = label, prior
        self.affine = label.affine.double()
        kernel = around_center(prior, self.affine).double()
        inside = kernel.clamp(FLOOR, 1 - FLOOR)
        organ, other = torch.log(inside / FLOOR), torch.log((1 - inside) / (1 - FLOOR))
        self.gain = correlate(label[0].as_tensor().double(), organ - other) + other.sum()
        self.first = -((torch.tensor(kernel.shape) - 1) // 2)
        self.voxels = float((label > 0.5).sum())

    def __call__(self, point: torch.Tensor) -> tuple[float, float, float]:
        """Share of the best, nats a voxel, and Dice."""
        index = torch.linalg.inv(self.affine[:3, :3]) @ (point - self.affine[:3, 3]) - self.first
        i = [int(x) for x in index.round()]
        inside = all(0 <= a < n for a, n in zip(i, self.gain.shape, strict=True))
        gain = float(self.gain[tuple(i)]) if inside else float("nan")
        marked = self.prior.place(point, self.label) > 0.5
        label = self.label > 0.5
        dice = 2 * float((marked & label).sum()) / float(marked.sum() + label.sum())
        return gain / float(self.gain.max()), gain / self.voxels, dice


def methods(
    priors: dict[str, SpatialPrior], one: SpatialPrior
) -> dict[str, tuple[str, Callable[[MetaTensor], torch.Tensor | None]]]:
    """Each method's prior, and where it puts it for a prediction."""
    return {
        "centre of the prediction": ("mass", lambda q: centre(q, "mass")),
        "box centre of the prediction": ("bbox", lambda q: centre(q, "bbox")),
        "one random reference (the paper)": ("bbox", lambda q: locate_organ(q, one)),
        "mean reference": ("bbox", lambda q: locate_organ(q, priors["bbox"])),
        "**group-wise reference**": ("groupwise", lambda q: locate_organ(q, priors["groupwise"])),
    }


def main() -> None:
    """Locate every case of a half and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=("dev", "test", "all"), default="test")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not DATA.is_dir():
        print(f"Skipped: there is no {DATA}.")
        return
    names = halves(sorted(json.loads((DATA / "cases.json").read_text())))[options.half]
    cases = {name: load_case(name) for name in tqdm(names, desc="cases")}

    rows = defaultdict(list)
    confidences = []
    for seed in range(options.seeds):
        for chosen, others in tqdm(list(folds(names, seed)), desc=f"seed {seed}"):
            for count in (6, len(others)):
                train = [cases[n].label for n in others[:count]]
                priors = {
                    kind: SpatialPrior.estimate(train, center=kind, spacing_mm=[GRID_MM] * 3)
                    for kind in ("bbox", "mass", "groupwise")
                }
                one = SpatialPrior.estimate(train[0], smoothing_mm=None)
                for name in chosen:
                    case = cases[name]
                    judges = {k: Judge(case.label, p) for k, p in priors.items()}
                    truth = {k: measure_position(case.label, p) for k, p in priors.items()}
                    for network, q in case.predictions.items():
                        for method, (kind, locate) in methods(priors, one).items():
                            point = locate(q)
                            assert point is not None, f"{network} marks nothing in {name}"
                            distance = float((point - truth[kind]).norm())
                            key = (network, "6" if count == 6 else "all", method)
                            rows[key].append((distance, *judges[kind](point)))
                        found = locate_organs(q, [priors["groupwise"]])
                        error = float((found.position_mm[0] - truth["groupwise"]).norm())
                        confidences.append((float(found.confidence[0]), error))

    print(f"{machine()}\n\n{len(names)} scans ({options.half}), {options.seeds} seeds\n")
    head = [
        "network",
        "priors from",
        "method",
        "mean mm",
        "median",
        "90 %",
        "share",
        "nats",
        "Dice",
    ]
    body = []
    for network in NETWORKS:
        for count in ("6", "all"):
            for (n, c, method), values in rows.items():
                if (n, c) == (network, count):
                    mm, share, nats, dice = np.array(values).T
                    figures = [f"{x:.1f}" for x in (mm.mean(), *np.percentile(mm, (50, 90)))]
                    judged = f"{np.nanmedian(share):.2f}", f"{np.nanmean(nats):.2f}"
                    body.append([network, count, method, *figures, *judged, f"{dice.mean():.3f}"])
    print_markdown(head, body)
    print("\nConfidence of the group-wise positions\n")
    print_confidence(confidences, limits=(0, 0.51, 0.525, 0.55, 0.6, 0.7, 1.01))


def print_confidence(pairs: list[tuple[float, float]], *, limits: tuple[float, ...]) -> None:
    """Print how large errors, in mm, are at which confidence."""
    confidence, error = np.array(pairs).T
    body = []
    for low, high in itertools.pairwise(limits):
        part = error[(confidence >= low) & (confidence < high) & ~np.isnan(error)]
        if len(part):
            right = f"{(part <= 20).mean():.2f}"
            body.append([f"{low} – {min(high, 1)}", str(len(part)), right, f"{part.mean():.1f}"])
    print_markdown(["confidence", "n", "within 20 mm", "mean mm"], body)


if __name__ == "__main__":
    main()
