"""Rows of a study that was never run."""

import csv
import re

import numpy as np

HEADER = [
    *("method", "proportion", "fold", "seed", "bins", "scan", "organ"),
    *("dice", "jaccard", "hd95_mm", "asd_mm", "predicted_voxels", "true_voxels"),
    *("position_error_mm", "confidence", "calibration_error", "seconds", "peak_memory_mib"),
]


def row(method="baseline", proportion=0.5, fold=0, seed=0, scan="a", organ=1, dice=0.5, **more):
    known = dict.fromkeys(HEADER, "")
    known |= {"predicted_voxels": "9", "true_voxels": "9", "seconds": "1", "peak_memory_mib": "100"}
    given = {"method": method, "proportion": proportion, "fold": fold, "seed": seed}
    given |= {"scan": scan, "organ": organ, "dice": dice, **more}
    return known | {name: str(value) for name, value in given.items()}


def made_up(methods, proportions=(1.0, 0.5), folds=3, seeds=2, organs=(1,)):
    rng = np.random.default_rng(0)
    rows = []
    for method in methods:
        for proportion in proportions:
            for fold in range(folds):
                for seed in range(seeds):
                    for scan in range(4):
                        for organ in organs:
                            dice = float(np.clip(rng.normal(0.7, 0.1), 0, 1))
                            prior = method.startswith("stipple")
                            position = {"position_error_mm": rng.gamma(2, 5), "confidence": 0.8}
                            numbers = {"jaccard": dice / 2, "hd95_mm": 9.5, "asd_mm": 2.5}
                            numbers |= {"dice": dice, **(position if prior else {})}
                            where = {"scan": f"f{fold}_{scan}", "fold": fold, "seed": seed}
                            bins = re.sub(r"\D", "", method) or "5" if prior else ""
                            rows.append(
                                row(method, proportion, organ=organ, bins=bins, **where, **numbers)
                            )
    return rows


def write(folder, name, rows):
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
