"""How well priors from a few labels foretell further labels: bins, Gaussians, their width.

From N labels of an organ, drawn at random, priors are made in several ways and asked about the
labels of other patients, at those labels' own positions. Figures are thousand nats a case over
voxels of 2.5 mm in a box of 200 × 160 × 160 mm, above a constant rate (the N labels' mean in that
box), probabilities kept in [0.001, 0.999]; more is better.

Candidates:
    bins: the paper's histogram, 5 bins along z, in the plane the first label's own voxels.
    S mm: a Gaussian of that width in all directions.
    auto: the width with the highest leave-one-out likelihood of the N labels (10 mm for one).
    auto, z: a width of its own along z, half to twice that in the plane, by the same likelihood;
        that in the plane is at most a step of `WIDTHS_MM` from auto's.
    auto, count: likewise a pseudo-count: that many further cases without an organ.

Both were to be kept if they won on labels that they were not chosen on, see `docs/decisions.md`.

Run: ``python benchmarks/prior_likelihood.py --out docs/results/prior_likelihood.csv`` (half an
hour on one core). ``--data`` is the folder of real labels.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from stipple_monai import SpatialPrior
from stipple_monai.positioning import measure_position
from stipple_monai.priors.alignment import CoarseMask, common_centers
from stipple_monai.priors.kernel import blurred, soft_mask
from stipple_monai.priors.likelihood import FLOOR, ONE_LABEL_MM, WIDTHS_MM
from stipple_monai.priors.organ import Crop, center_and_reach, open_label, organ_masks

DATA = Path(__file__).parents[2] / "shared" / "data"
HALF = np.array([40, 32, 32])
SPACING_MM = np.full(3, 2.5)
RATIOS_Z = (0.5, 0.7, 1.0, 1.4, 2.0)
COUNTS = (0.0, 0.25, 0.5, 1.0)
HEAD = ("data", "organ", "center", "labels", "draw", "candidate", "width_mm", "kilonats")
BTCV = {1: "spleen", 4: "gallbladder", 8: "aorta", 11: "pancreas"}


def crops_of(paths: Sequence[Path], organ: int) -> list[Crop]:
    """The organ's voxels in every map that has it."""
    found = (organ_masks(open_label(path), [organ])[0] for path in paths)
    return [crop for crop in found if crop is not None]


def tensor(crop: Crop) -> MetaTensor:
    """A crop as a label map."""
    mask = np.pad(crop[0], 1)
    affine = crop[1].copy()
    affine[:3, 3] -= affine[:3, :3].sum(1)
    return MetaTensor(torch.from_numpy(mask)[None].to(torch.uint8), affine=affine)


def in_box(crop: Crop, center_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """The organ on the box about its centre."""
    first_mm = center_mm - HALF * SPACING_MM
    return soft_mask(*crop, first_mm=first_mm, shape=2 * HALF + 1, spacing_mm=SPACING_MM)


def density(values: NDArray[np.float32], width_mm: float, ratio_z: float) -> NDArray[np.float32]:
    """Under a Gaussian, in the same box."""
    sigma = width_mm / SPACING_MM * [1, 1, ratio_z]
    return blurred(values, (0, 0, 0), box=[slice(0, n) for n in values.shape], sigma=sigma)


def nats(label: NDArray[np.float32], p: NDArray[np.floating]) -> float:
    """Log-likelihood of a label, plainly."""
    p = np.clip(p, FLOOR, 1 - FLOOR)
    present = label > 0
    absent = np.log1p(-p)
    odds = np.log(p[present]) - absent[present]
    return float(absent.sum(dtype=np.float64)) + float((label[present] * odds).sum())


def left_out(
    labels: Sequence[NDArray[np.float32]], width: float, ratio: float, counts: Sequence[float]
) -> dict[tuple[float, float, float], float]:
    """Leave-one-out likelihood of a width and a ratio along z, with each pseudo-count."""
    each = [density(label, width, ratio) for label in labels]
    total = np.sum(each, axis=0)
    scores = defaultdict(float)
    for label, q in zip(labels, each, strict=True):
        rest = total - q
        for count in counts:
            scores[width, ratio, count] += nats(label, rest / (len(labels) - 1 + count))
    return scores


def chosen(labels: Sequence[NDArray[np.float32]]) -> dict[str, tuple[float, float, float]]:
    """Width, ratio along z and pseudo-count of the highest leave-one-out likelihood, three times.

    Once the width alone, then with a ratio, then with a count.
    """
    alone = (ONE_LABEL_MM, 1.0, 0.0)
    if len(labels) == 1:
        return {"auto": alone, "auto, z": alone, "auto, count": alone}
    scores: dict[tuple[float, float, float], float] = {}
    for width in WIDTHS_MM:
        scores |= left_out(labels, width, 1.0, (0.0,))
    auto = max(scores, key=lambda key: scores[key])
    place = WIDTHS_MM.index(auto[0])
    near = WIDTHS_MM[max(0, place - 1) : place + 2]
    with_z, with_count = dict(scores), dict(scores)
    for width in near:
        with_count |= left_out(labels, width, 1.0, COUNTS)
        for ratio in RATIOS_Z:
            with_z |= left_out(labels, width, ratio, (0.0,))
    return {
        "auto": auto,
        "auto, z": max(with_z, key=lambda key: with_z[key]),
        "auto, count": max(with_count, key=lambda key: with_count[key]),
    }


def candidates(
    labels: Sequence[NDArray[np.float32]],
) -> Iterator[tuple[str, float, NDArray[np.floating]]]:
    """Name, width and prior of every density."""
    total, n = np.sum(labels, axis=0), len(labels)
    for width in WIDTHS_MM:
        yield f"{width:g} mm", width, density(total, width, 1.0) / n
    for name, (width, ratio, count) in chosen(labels).items():
        yield name, width, density(total, width, ratio) / (n + count)


def centers_of(crops: Sequence[Crop], center: str) -> list[NDArray[np.float64]]:
    """The centres that labels get together."""
    if center == "groupwise":
        return list(common_centers([CoarseMask(*crop) for crop in crops]))
    return [center_and_reach(*crop, center)[0] for crop in crops]


def draw_rows(train: Sequence[Crop], test: Sequence[Crop], center: str) -> Iterator[tuple]:
    """Candidate, width and thousand nats for one draw."""
    labels = [in_box(*pair) for pair in zip(train, centers_of(train, center), strict=True)]
    rate = np.full(labels[0].shape, np.mean(labels))
    bins = SpatialPrior.estimate(map(tensor, train), bins=5, center=center)
    smooth = SpatialPrior(
        np.clip(density(np.mean(labels, axis=0), 6.0, 1.0), 0, 1),
        spacing_mm=SPACING_MM,
        center=center,
        smoothing_mm=6.0,
    )

    def judged(prior: SpatialPrior) -> list[NDArray[np.float32]]:
        positions = [measure_position(tensor(crop), prior).numpy() for crop in test]
        return [in_box(crop, point) for crop, point in zip(test, positions, strict=True)]

    def mean(found: Sequence[NDArray[np.float32]], p: NDArray[np.floating]) -> float:
        return float(np.mean([nats(y, p) - nats(y, rate) for y in found])) / 1000

    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -SPACING_MM * HALF
    grid = MetaTensor(torch.zeros(1, *(2 * HALF + 1)), affine=affine)
    yield "bins", 0.0, mean(judged(bins), bins.place((0.0, 0.0, 0.0), grid)[0].numpy())
    found = judged(smooth)
    for name, width, prior in candidates(labels):
        yield name, width, mean(found, prior)


def all_rows(data: Path, draws: int) -> Iterator[tuple]:
    """Every row of the table."""
    pancreas = sorted((data / "pancreas_ct_labels" / "labels").glob("*.nii.gz"))
    several = sorted((data / "btcv_labels").glob("*.nii.gz"))
    sets = [("pancreas_ct_labels", "pancreas", crops_of(pancreas, 1), (1, 2, 3, 6, 20), 20)]
    sets += [("btcv_labels", name, crops_of(several, k), (2, 3, 8), 10) for k, name in BTCV.items()]
    for (name, organ, crops, sizes, tests), center in itertools.product(
        sets, ("bbox", "groupwise")
    ):
        for size, draw in itertools.product(sizes, range(draws)):
            order = np.random.default_rng(draw).permutation(len(crops))
            test = [crops[i] for i in order[-tests:]]
            train = [crops[i] for i in order[: min(size, len(crops) - tests)]]
            for row in draw_rows(train, test, center):
                yield name, organ, center, size, draw, *row


def print_means(rows: Sequence[tuple]) -> None:
    """Means over draws, a line for each organ, centre and number of labels."""
    mean = defaultdict(list)
    for *where, _, candidate, _, value in rows:
        mean[tuple(where)].append((candidate, value))
    names = list(dict.fromkeys(row[5] for row in rows))
    print("|", " | ".join(["data", "organ", "centre", "labels", *names]), "|")
    print("|---" * (4 + len(names)) + "|")
    for where, found in mean.items():
        values = [np.mean([v for c, v in found if c == name]) for name in names]
        print("|", " | ".join([*map(str, where), *(f"{v:.2f}" for v in values)]), "|")


def main() -> None:
    """Write the rows, print their means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for row in all_rows(arguments.data, arguments.draws):
            rows.append(row)
            writer.writerow([*row[:-1], f"{row[-1]:.4f}"])
            file.flush()
    print_means(rows)


if __name__ == "__main__":
    main()
