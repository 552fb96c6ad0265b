"""How often mirrored labels are found: CHAOS MR, four organs, priors from 6 other scans.

A volume that is mirrored fits the priors with the codes of its mirrored axes as the volume itself
does with the header's, so that one table of fits per scan tells what becomes of all eight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from timing import print_markdown
from tqdm import tqdm

from stipple_monai import SpatialPrior, check_orientation
from stipple_monai.data import read_volume

LABELS = Path(__file__).parents[2] / "shared" / "data" / "chaos_mr_t2" / "labelsTr"
MARGINS = (0.05, 0.1, 0.2, 0.3)


def main() -> None:
    """Print false alarms and the mirrorings that are found, by margin."""
    torch.set_num_threads(1)
    if not LABELS.is_dir():
        print(f"Skipped: there is no {LABELS}.")
        return
    labels = [read_volume(path) for path in tqdm(sorted(LABELS.iterdir()), desc="labels")]
    order = np.random.default_rng(0).permutation(len(labels))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    alarms, found = [], []
    for train, test in (halves, halves[::-1]):
        priors = SpatialPrior.estimate_several([labels[i] for i in train[:6]], organs=[1, 2, 3, 4])
        for i in tqdm(test, desc="scans"):
            result = check_orientation(labels[i], priors, margin=float("inf"))
            others = [fit for codes, fit in result.fit.items() if codes != result.header]
            right = result.fit[result.header]
            alarms.append(max(others) / right)
            found += [right / fit for fit in others]
    body = []
    for margin in MARGINS:
        wrong, seen = (sum(r > 1 + margin for r in ratios) for ratios in (alarms, found))
        body.append([f"{margin}", f"{wrong} of {len(alarms)}", f"{seen} of {len(found)}"])
    print_markdown(["margin", "false alarms", "mirrorings found"], body)


if __name__ == "__main__":
    main()
