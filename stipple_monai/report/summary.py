"""The first table of a report of predictions: what each organ came to, in ten seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from stipple_monai.priors import SpatialPrior
from stipple_monai.report.cases import counted
from stipple_monai.report.page import Block, Table, Text
from stipple_monai.report.results import Found, Predictions

HEADER = [
    *("organ", "volume (ml)", "volume in the prior's cases (ml)", "confidence (0–1)"),
    *("Dice (%)", "HD95 (mm)", "position error (mm)", "scans with remarks"),
]
SEVERAL = "The median of all scans, and in brackets the least and the greatest."
SEVERAL_DICE = "Of Dice the mean and the standard deviation."
CONFIDENCE = (
    "Confidence: of the position; near 0.5 another place fits the network's output as well."
)


def summary_blocks(
    known: Predictions, organs: Mapping[int, str], priors: Mapping[int, SpatialPrior]
) -> list[Block]:
    """How many scans, how many of them to look at, and a row an organ.

    Args:
        known: measured.
        organs: names by label value.
        priors: by organ; the range of volumes of their cases.
    """
    with_truth = sum(case.truth is not None for case in known.cases.values())
    said = f"{counted(len(known.cases), 'scan')}, {with_truth} with truth."
    marked = sum(
        bool(known.remarks.get(name) or any(known.found[name, k].remarks for k in organs))
        for name in known.cases
    )
    if marked:
        said += f" {counted(marked, 'scan')} with remarks: see below what to look at."
    elif known.remarks:
        said += " No remarks."
    rows = [_row(known, k, name, priors.get(k)) for k, name in organs.items()]
    header, shown = filled(HEADER, rows, always=2)
    several = len(known.cases) > 1
    notes = [
        *([SEVERAL] if several else []),
        *([SEVERAL_DICE] if several and "Dice (%)" in header else []),
        *([CONFIDENCE] if "confidence (0–1)" in header else []),
    ]
    return [Text(said, "summary"), Table("", header, shown, " ".join(notes))]


def _row(known: Predictions, organ: int, name: str, prior: SpatialPrior | None) -> list[str]:
    found = [known.found[case, organ] for case in known.cases]
    cases = prior.volumes_ml if prior is not None else None
    marked = sum(bool(f.remarks) for f in found)
    return [
        name,
        _spread(found, "predicted_ml", 0),
        f"{cases.minimum:.0f} to {cases.maximum:.0f}" if cases is not None else "",
        _spread(found, "confidence", 2),
        _dice(found),
        _spread(found, "hd95_mm", 1),
        _spread(found, "position_error_mm", 1),
        str(marked) if marked else "",
    ]


def _finite(found: Sequence[Found], measure: str) -> list[float]:
    return [v for v in (getattr(f, measure) for f in found) if not math.isnan(v)]


def _spread(found: Sequence[Found], measure: str, digits: int) -> str:
    values = _finite(found, measure)
    if not values:
        return ""
    # a pancreas of 2.5 ml must not become one of 2 ml
    digits = digits if np.median(values) >= 10 or digits else 1
    text = f"{np.median(values):.{digits}f}"
    return text + (
        f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    )


def _dice(found: Sequence[Found]) -> str:
    values = [100 * v for v in _finite(found, "dice")]
    if not values:
        return ""
    return f"{np.mean(values):.1f}" + (
        f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    )


def filled(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, always: int
) -> tuple[list[str], list[list[str]]]:
    """Header and rows without the columns that are empty throughout, but for the first few."""
    kept = [i for i in range(len(header)) if i < always or any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]
