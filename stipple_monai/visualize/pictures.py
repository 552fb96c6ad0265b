"""Pictures of test cases that are chosen by a rule (figure 4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.data import MetaTensor

from stipple_monai.data import first_file, read_label_map, unique_names
from stipple_monai.files import read_csv
from stipple_monai.priors import SpatialPrior
from stipple_monai.transforms import LoadScand, PriorAlign
from stipple_monai.visualize.comparison import Kind, best_case_for, comparison_figure

KINDS: dict[Kind, str] = {
    "recovered miss": "recovered_miss.png",
    "removed false positive": "removed_false_positive.png",
}
"""What is looked for, and the picture's file name."""


def draw_comparisons(
    items: Sequence[dict[str, Any]],
    prior: SpatialPrior,
    out: Path,
    *,
    baseline: Path,
    stipple: Path,
) -> dict[Kind, Path]:
    """Draw what the prior changed, of each kind in the case and slice where it changed most.

    Args:
        items: the test cases, of each the paths ``image`` and ``label``.
        prior: of the organ that is shown.
        out: folder of the pictures.
        baseline: folder that inference without prior wrote to, ``SCAN_seg.nii.gz``.
        stipple: folder that inference with prior wrote to, with ``positions.csv``.

    Returns:
        The pictures by kind; a kind that no case has is absent.
    """
    names = unique_names([first_file(item["image"]) for item in items])

    def case(index: int) -> dict[str, MetaTensor]:
        name = f"{names[index]}_seg.nii.gz"
        return {
            "truth": read_label_map(items[index]["label"]),
            "baseline": read_label_map(baseline / name),
            "stipple": read_label_map(stipple / name),
        }

    positions = read_positions(stipple / "positions.csv", prior.organ)
    drawn = {}
    for kind, name in KINDS.items():
        index = best_case_for(kind, map(case, range(len(items))), organ=prior.organ)
        if index is None:
            continue
        scan = items[index]["image"]
        # Of several channels the first, which shows the same anatomy as the others.
        image = LoadScand("image", ensure_channel_first=True)({"image": scan})["image"][:1]
        placed = PriorAlign([prior])(image, [positions[first_file(scan)]])
        drawn[kind] = out / name
        volumes = case(index)
        comparison_figure(
            image, **volumes, prior=placed, path=drawn[kind], kind=kind, organ=prior.organ
        )
    return drawn


def read_positions(path: Path, organ: int) -> dict[str, list[float]]:
    """Where a prior was put in each scan of ``positions.csv``, RAS mm; NaN where it was neutral."""
    return {
        row["scan"]: [float(row[axis] or "nan") for axis in ("r_mm", "a_mm", "s_mm")]
        for row in read_csv(path)
        if row["organ"] == str(organ)
    }
