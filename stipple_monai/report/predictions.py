"""The report of a folder of predictions: scores, volumes, positions and the cases that matter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stipple_monai.errors import DatasetError
from stipple_monai.files import read_json, sha256
from stipple_monai.priors import SpatialPrior, prior_files
from stipple_monai.report.cases import (
    MOST_PICTURES,
    WORDS,
    Case,
    case_viewers,
    choose,
    label_values,
    name_colours,
    organ_names,
)
from stipple_monai.report.page import Block, Lines, Page, Picture, Section, Table, Text
from stipple_monai.report.plots import dots
from stipple_monai.report.provenance import settings_blocks, versions_table
from stipple_monai.report.results import Predictions, collect, measure_cases
from stipple_monai.report.summary import CONFIDENCE, filled, summary_blocks
from stipple_monai.visualize import CONVENTION

HEADER = [
    *("case", "organ", "predicted volume (ml)", "confidence (0–1)", "remarks"),
    *("true volume (ml)", "Dice (%)", "Jaccard (%)", "HD95 (mm)", "ASD (mm)"),
    *("position error (mm)", "position R, A, S (mm)", "time (s)"),
]
NOTES = {
    "confidence (0–1)": CONFIDENCE,
    "true volume (ml)": "True: of the label that a person drew.",
    "HD95 (mm)": "HD95: 95th percentile of the Hausdorff distance; ASD: average symmetric surface "
    "distance.",
    "position R, A, S (mm)": "Position: where the prior was put, RAS.",
    "position error (mm)": "Position error: from there to where the true label has the prior.",
    "time (s)": "Time: network, positioning and fusion.",
}
"""What is said of a column where it is there."""
EMPTY = (
    "An empty cell: not measured, or undefined, as distances are where nothing is predicted; "
    "columns without any number are left out."
)
ABOUT_PRIORS = (
    "Prior: how often each organ lay where, in the labelled scans that the model was made with, "
    "which are its cases. Each scan has it where it fits best; an organ without a certain "
    "position is segmented without it."
)


_MEASURES = (
    ("dice", "the mean Dice of their organs", WORDS),
    (
        "confidence",
        "the mean confidence of their positions (there is no Dice)",
        ("least confident", "median confidence", "most confident"),
    ),
    (
        "predicted_ml",
        "the predicted volume (there is neither Dice nor confidence)",
        ("smallest", "median", "largest"),
    ),
)
_ONLY = "Each plane begins with the slice that shows most of all organs."
_RULE = (
    "The first, the one at the lower median and the last can be scrolled through; the others show "
    "the slices that matter. Each plane shows the slice with most of all organs of the truth "
    "(without truth, of the prediction); “largest error”: most voxels that only truth or "
    "prediction has."
)


def predictions_page(
    run: Path,
    folder: Path,
    *,
    labels: Mapping[int, str] | None = None,
    datalist: Path | None = None,
    priors: Mapping[int, SpatialPrior] | None = None,
    most: int = MOST_PICTURES,
) -> Page:
    """Report on the results of ``segment`` or of the bundle's inference.

    Args:
        run: folder of the results.
        folder: for the pictures.
        labels: names by label value.
        datalist: that has the truth, and the scans where the results do not name them.
        priors: of the models that predicted.
        most: cases with pictures.

    Raises:
        DatasetError: there are no predictions.
    """
    known = collect(run, datalist)
    if not known.cases:
        raise DatasetError(f"`run` must have predictions, got {run}: neither tables nor *_seg.")
    values = {organ for _, organ in known.found}
    values = values or label_values(c.prediction for c in known.cases.values() if c.prediction)
    organs = organ_names(labels or known.names, datalist, values)
    measure_cases(known, organs, priors or {})
    missing = [*known.amiss, *_missing(known, datalist, priors)]
    ranks, words, rule = _ranks(known, organs)
    chosen = choose(ranks, words)
    ordered = sorted(known.cases.values(), key=lambda c: (_last(ranks.get(c.name)), c.name))
    shown = [replace(c, about=_caption(c, known, organs)) for c in ordered]
    pictures = case_viewers(shown, chosen, folder, organs=organs, priors=priors, most=most)
    lead = [f"{CONVENTION} Positions and sizes are in mm, RAS. For research, not for diagnosis."]
    kept = [run / name for name in ("settings.json", "provenance.json")]
    remarks = _remarks(known, organs)
    header, rows = filled(HEADER, _rows(known, ordered, organs), always=3)
    notes = [text for column, text in NOTES.items() if column in header]
    content = [
        Section("Summary", summary_blocks(known, organs, priors or {})),
        *([Section("What to look at", _look_at(remarks))] if remarks else []),
        Section("Every case", [Table("", header, rows, " ".join([*notes, EMPTY]))]),
        Section("Cases", [Text(rule, "lead"), *pictures]),
        Section("Distributions", _distributions(known, organs, folder)),
        *([Section("What is missing", [Lines(missing)])] if missing else []),
        Section("Settings and versions", [*settings_blocks(kept), versions_table()]),
    ]
    title = f"Predictions {run.parent.name}/{run.name}"
    return Page(title, lead, content, colours=name_colours(organs))


def _look_at(remarks: Sequence[str]) -> list[Block]:
    """Remarks, and what a prior is, if one of them speaks of it."""
    told = any("prior" in text for text in remarks)
    return [Lines(remarks, "alert"), *([Text(ABOUT_PRIORS, "lead")] if told else [])]


def _missing(
    known: Predictions,
    datalist: Path | None,
    priors: Mapping[int, SpatialPrior] | None,
) -> list[str]:
    said = []
    if all(c.truth is None for c in known.cases.values()):
        where = "was given (--datalist)" if datalist is None else f"in {datalist} has it"
        said.append(f"No truth: no datalist {where}.")
    if not any(f.position_mm for f in known.found.values()):
        sure = any(not math.isnan(f.confidence) for f in known.found.values())
        uncertain = "none was certain, so that no prior was used"
        absent = "a network without prior, or its table was moved away"
        said.append(f"No positions: {uncertain if sure else absent}.")
    elif not priors:
        said.append("No prior contours: no folder of priors was given (--models).")
    return said


def check_models(run: Path, models: Path | None) -> list[str]:
    """Say which priors are others than those that ``segment`` recorded."""
    settings = run / "settings.json"
    if models is None or not settings.is_file():
        return []
    recorded = read_json(settings).get("models", {})
    other = [p.name for p in prior_files(models) if recorded.get(p.name, "") != sha256(p)]
    return [f"{name} is another than that which the predictions were made with." for name in other]


def _ranks(
    known: Predictions, organs: Mapping[int, str]
) -> tuple[dict[str, float], Sequence[str], str]:
    """What cases are ordered by, lowest first, the words for the chosen, and the rule."""
    if len(known.cases) == 1:
        return dict.fromkeys(known.cases, 0.0), WORDS, _ONLY
    for measure, said, words in _MEASURES:
        ranks = {
            name: _mean(getattr(known.found[name, k], measure) for k in organs)
            for name in known.cases
        }
        if any(not math.isnan(v) for v in ranks.values()):
            return ranks, words, f"Ordered by {said}, lowest first. {_RULE}"
    return {}, WORDS, "Nothing to order the cases by."


def _mean(numbers: Iterable[float]) -> float:
    finite = [v for v in numbers if not math.isnan(v)]
    return float(np.mean(finite)) if finite else math.nan


def _last(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _caption(case: Case, known: Predictions, organs: Mapping[int, str]) -> str:
    parts = []
    for k, name in organs.items():
        found = known.found[case.name, k]
        numbers = [
            *([] if math.isnan(found.dice) else [f"Dice {100 * found.dice:.1f} %"]),
            f"{found.predicted_ml:.1f} ml predicted",
            *([] if math.isnan(found.true_ml) else [f"{found.true_ml:.1f} ml true"]),
            *([] if math.isnan(found.confidence) else [f"confidence {found.confidence:.2f}"]),
        ]
        error = found.position_error_mm
        numbers += [] if math.isnan(error) else [f"position {error:.1f} mm off"]
        parts.append(f"{name}: {', '.join(numbers)}")
    return "; ".join(parts) + "."


def _remarks(known: Predictions, organs: Mapping[int, str]) -> list[str]:
    """What a person should look at, a line for each scan that has something."""
    lines = []
    for name in known.cases:
        said = list(known.remarks.get(name, []))
        said += [
            f"{organs[k]}: {text}" for k in organs for text in known.found[name, k].remarks or ()
        ]
        if said:
            lines.append(f"{name}: {'; '.join(said)}.")
    return lines


def _rows(known: Predictions, cases: Sequence[Case], organs: Mapping[int, str]) -> list[list[str]]:
    def text(value: float, digits: int = 1, factor: float = 1) -> str:
        return "" if math.isnan(value) else f"{factor * value:.{digits}f}"

    rows, first = [], next(iter(organs), None)
    for name in (case.name for case in cases):
        for k, organ in organs.items():
            f = known.found[name, k]
            point = ", ".join(f"{v:.1f}" for v in f.position_mm or ())
            # the scan's own once, not for each organ
            remarks = [*(known.remarks.get(name, []) if k == first else []), *(f.remarks or ())]
            rows.append(
                [
                    *(name, organ, text(f.predicted_ml), text(f.confidence, 2)),
                    "; ".join(remarks),
                    text(f.true_ml),
                    *(text(f.dice, factor=100), text(f.jaccard, factor=100)),
                    *(text(f.hd95_mm), text(f.asd_mm), text(f.position_error_mm)),
                    *(point, text(f.seconds, 2)),
                ]
            )
    return rows


def _distributions(known: Predictions, organs: Mapping[int, str], folder: Path) -> list[Block]:
    blocks: list[Block] = []
    for measure, title, axis, factor in (
        ("dice", "Dice", "Dice (%)", 100.0),
        ("hd95_mm", "Surface distance", "HD95 (mm)", 1.0),
        ("predicted_ml", "Predicted volume", "volume (ml)", 1.0),
        ("position_error_mm", "Position error", "position error (mm)", 1.0),
        ("confidence", "Confidence", "confidence (0–1)", 1.0),
    ):
        values = {
            organ: [factor * getattr(known.found[name, k], measure) for name in known.cases]
            for k, organ in organs.items()
        }
        path = folder / f"distribution_{measure}.png"
        alt = dots(values, path, measure=axis, colours=name_colours(organs))
        if alt is not None:
            blocks.append(Picture(title, path, "", alt, small=True))
    if not blocks:
        return [Text("Too few cases to draw how they are distributed.", "lead")]
    return [Text("A dot for each case, a line at the median.", "lead"), *blocks]
