"""Whether priors foretell further labels better if labels are scaled by how wide the patient is.

From N labels of an organ, drawn at random, a density is made in the usual way (centres by overlap,
the width of the Gaussian by leave-one-out likelihood), and asked about the labels of ten other
patients at those labels' own positions. Labels are first scaled by the mean of the N patients'
widths over the patient's own. Nats are thousands a case over voxels of 4 mm above a probability of
0.001 everywhere; those of scaled labels are divided by what scaling does to their volume, so that
they compare. Dice is that of the density above the threshold that is best on the same labels.

A width is the extent from left to right of the largest component of a slice that is brighter than
air (*body*) or than fat (*lean*), the median over the slices that show an organ. Labels are scaled
in the plane alone or in all directions.

Run: ``python benchmarks/body_width.py --out docs/results/body_width.csv`` (half an hour on one
core). ``--data`` is the folder of real scans.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from prior_likelihood import DATA, nats, tensor
from scipy import ndimage

from stipple_monai import SpatialPrior
from stipple_monai.positioning import measure_position
from stipple_monai.priors.alignment import CoarseMask, common_centers
from stipple_monai.priors.kernel import blurred, soft_mask
from stipple_monai.priors.likelihood import FLOOR, WIDTHS_MM
from stipple_monai.priors.organ import Crop, open_label, organ_masks

SPACING_MM = np.full(3, 4.0)
HALF = np.array([37, 32, 37])
TESTS = 10
SIZES = (3, 8)
BTCV = {
    **{1: "spleen", 2: "right kidney", 3: "left kidney", 6: "liver"},
    **{7: "stomach", 8: "aorta", 11: "pancreas"},
}
BRIGHTER = {"body": 0.02, "lean": 0.08}
"""Share of the way from the darkest to the brightest per cent of a scan."""
SCALINGS = {
    "none": ("body", (0, 0, 0)),
    "body, in the plane": ("body", (1, 1, 0)),
    "body, in all directions": ("body", (1, 1, 1)),
    "lean, in the plane": ("lean", (1, 1, 0)),
    "lean, in all directions": ("lean", (1, 1, 1)),
}
"""Which width, and along which of R, A and S it scales."""
THRESHOLDS = np.arange(0.05, 1, 0.05)
HEAD = ("data", "organ", "labels", "draw", "scaling", "gaussian_mm", "kilonats", "dice")


class Patient(NamedTuple):
    """A patient's organs, and how wide it is in mm by each measure."""

    organs: dict[int, Crop]
    width_mm: dict[str, float]


def widths_mm(image: Path, label: Path) -> dict[str, float]:
    """Extent from left to right by each measure, median over slices."""
    scan, organs = (nib.as_closest_canonical(nib.load(path)) for path in (image, label))
    values, found = np.asarray(scan.dataobj), np.asarray(organs.dataobj)
    low, high = np.percentile(values, (1, 99))
    sizes = defaultdict(list)
    for k in np.flatnonzero((found > 0).any((0, 1))):
        smooth = ndimage.gaussian_filter(values[..., k], 1)
        for measure, share in BRIGHTER.items():
            bright = smooth > low + share * (high - low)
            parts, count = ndimage.label(ndimage.binary_opening(bright, iterations=2))
            if count:
                body = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
                sizes[measure].append(np.ptp(np.flatnonzero(body.any(1))) + 1)
    zoom = scan.header.get_zooms()[0]
    return {measure: float(np.median(found) * zoom) for measure, found in sizes.items()}


def read_patients(folder: Path, organs: Sequence[int]) -> list[Patient]:
    """Every scan of a data set in MSD's layout."""
    found = []
    for label in sorted((folder / "labelsTr").glob("*.nii.gz")):
        crops = organ_masks(open_label(label), organs)
        there = {k: crop for k, crop in zip(organs, crops, strict=True) if crop is not None}
        found.append(Patient(there, widths_mm(folder / "imagesTr" / label.name, label)))
    return found


def scaled(crop: Crop, factors: Sequence[float]) -> Crop:
    """An organ made larger or smaller along R, A and S."""
    return crop[0], np.diag([*factors, 1.0]) @ crop[1]


def in_box(crop: Crop, center_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """The organ on the box about its centre."""
    first_mm = center_mm - HALF * SPACING_MM
    return soft_mask(*crop, first_mm=first_mm, shape=2 * HALF + 1, spacing_mm=SPACING_MM)


def density(values: NDArray[np.float32], width_mm: float) -> NDArray[np.float32]:
    """Under a Gaussian, in the same box."""
    box = [slice(0, n) for n in values.shape]
    return blurred(values, (0, 0, 0), box=box, sigma=width_mm / SPACING_MM)


def above_floor(label: NDArray[np.float32], p: NDArray[np.floating]) -> float:
    """Log-likelihood of a label, above that of the floor everywhere."""
    return nats(label, p) - nats(label, np.full_like(label, FLOOR))


def best_width(labels: Sequence[NDArray[np.float32]]) -> float:
    """The Gaussian's, by leave-one-out likelihood."""
    scores = {}
    for width in WIDTHS_MM:
        each = [density(label, width) for label in labels]
        total = np.sum(each, axis=0)
        pairs = zip(labels, each, strict=True)
        scores[width] = sum(nats(y, (total - q) / (len(labels) - 1)) for y, q in pairs)
    return max(scores, key=lambda width: scores[width])


def best_dice(labels: Sequence[NDArray[np.float32]], p: NDArray[np.floating]) -> float:
    """Mean Dice in % at one threshold for all of them."""
    return 100 * max(
        np.mean([2 * y[p > t].sum() / max(y.sum() + (p > t).sum(), 1) for y in labels])
        for t in THRESHOLDS
    )


def judged(
    train: Sequence[Crop], test: Sequence[Crop], factors: Sequence[NDArray[np.float64]]
) -> tuple[float, float, float]:
    """The Gaussian's width, thousand nats and Dice of the test labels; the factors are theirs."""
    centers = common_centers([CoarseMask(*crop) for crop in train])
    labels = [in_box(*pair) for pair in zip(train, centers, strict=True)]
    width = best_width(labels)
    values = density(np.mean(labels, axis=0), width)
    prior = SpatialPrior(
        np.clip(values, 0, 1), spacing_mm=SPACING_MM, center="groupwise", smoothing_mm=width
    )
    found = [in_box(crop, measure_position(tensor(crop), prior).numpy()) for crop in test]
    pairs = zip(found, factors, strict=True)
    kilonats = np.mean([above_floor(y, values) / np.prod(f) for y, f in pairs]) / 1000
    return width, float(kilonats), best_dice(found, values)


def all_rows(patients: Sequence[Patient], draws: int) -> Iterator[tuple]:
    """Every row of the table."""
    for organ, size, draw in itertools.product(BTCV, SIZES, range(draws)):
        having = [patient for patient in patients if organ in patient.organs]
        order = np.random.default_rng(draw).permutation(len(having))
        tests = min(TESTS, len(having) - size)
        taken = [having[i] for i in (*order[:size], *order[-tests:])]
        for scaling, (measure, axes) in SCALINGS.items():
            widths = np.array([patient.width_mm[measure] for patient in taken])
            factors = (widths[:size].mean() / widths)[:, None] ** np.array(axes)
            crops = [scaled(p.organs[organ], f) for p, f in zip(taken, factors, strict=True)]
            found = judged(crops[:size], crops[size:], factors[size:])
            yield "btcv_ct", BTCV[organ], size, draw, scaling, *found


def print_means(rows: Sequence[tuple]) -> None:
    """Means of nats and Dice over draws, a line for each organ and number of labels."""
    mean = defaultdict(list)
    for _, organ, size, _, scaling, _, *values in rows:
        mean[organ, size].append((scaling, *values))
        mean["all", size].append((scaling, *values))
    print("|", " | ".join(["organ", "labels", *SCALINGS]), "|")
    print("|---" * (2 + len(SCALINGS)) + "|")
    for where, found in mean.items():
        cells = [
            f"{np.mean([n for s, n, _ in found if s == scaling]):.2f}, "
            f"{np.mean([d for s, _, d in found if s == scaling]):.1f}"
            for scaling in SCALINGS
        ]
        print("|", " | ".join([*map(str, where), *cells]), "|")


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
    rows = []
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        patients = read_patients(arguments.data / "btcv_ct", list(BTCV))
        for measure in BRIGHTER:
            print(measure, *(f"{p.width_mm[measure]:.0f}" for p in patients), "mm", flush=True)
        for row in all_rows(patients, arguments.draws):
            rows.append(row)
            writer.writerow([*row[:-2], *(f"{value:.4f}" for value in row[-2:])])
            file.flush()
    print_means(rows)


if __name__ == "__main__":
    main()
