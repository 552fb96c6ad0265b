"""Labels against priors: whole maps that are mirrored or turned, and organs in another's place.

A scan and its label that are mirrored *together* fit each other, and each other's grid. What tells
is where organs lie to each other, which the priors know. A label's own part is left out of priors
that know their cases.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor

from stipple_monai.data import read_sections, rounded_label, unique_names
from stipple_monai.errors import DatasetError
from stipple_monai.nifti import UNREADABLE
from stipple_monai.positioning import (
    Orientation,
    check_orientation,
    measure_position,
    positioned_together,
)
from stipple_monai.priors import (
    SpatialPrior,
    Volume,
    open_volume,
    own_cases,
)
from stipple_monai.progress import follow

DISPLACED_MM = 100.0
"""How far an organ may lie from where the others put it: 73 mm at most in 26 patients of two data
sets."""


class LabelCheck(NamedTuple):
    """What is odd about label maps, a sentence each.

    Attributes:
        problems: what must not be.
        notes: what a person should look at.
    """

    problems: list[str]
    notes: list[str]


def check_labels(
    datalist: str | Path, priors: Sequence[SpatialPrior], *, progress: bool = True
) -> LabelCheck:
    """Hold every label of a datalist against priors.

    A problem is a map of two organs or more that fits the priors clearly better with other axes
    than its header's (:func:`~stipple_monai.check_orientation`), or an organ more than
    ``DISPLACED_MM`` from where the others put it. Of a single organ, which is nearly symmetric,
    other axes are a note. Labels that cannot be read are left to
    :func:`~stipple_monai.ingest.check_dataset`.

    Args:
        datalist: JSON in the style of the MSD.
        priors: one for each organ.
        progress: tell how far it is.

    Raises:
        DatasetError: no label has any of the organs.
        PositionError: the priors are of several estimations.
    """
    items = [item for found in read_sections(datalist).values() for item in found]
    labels = [str(label) for item in items if (label := item.get("label") or item.get("truth"))]
    checked, problems, notes = 0, [], []
    named = list(zip(labels, unique_names(labels), strict=True))
    for path, name in follow(named, "priors", unit="label", shown=progress):
        try:
            label = rounded_label(open_volume(path))
        except (DatasetError, *UNREADABLE):
            continue
        held = [prior for prior in priors if bool((label == prior.organ).any())]
        if not held or len(label) != 1:
            continue
        checked += 1
        known = [_of_others(prior, label) for prior in held]
        wrong = _orientation(label, known)
        if wrong is not None and len(known) > 1:
            problems.append(f"{name}: the label {wrong}")
        elif wrong is not None:
            notes.append(f"{name}: the label {wrong}; one organ alone may seem so")
        if wrong is None:
            problems += [f"{name}: {text}" for text in _displaced(label, known)]
    if not checked:
        organs = ", ".join(str(prior.organ) for prior in priors)
        raise DatasetError(
            f"`datalist` must have labels with the organs of the priors ({organs}), got none in "
            f"{datalist}: label values of both must be the same."
        )
    return LabelCheck(problems, notes)


def _of_others(prior: SpatialPrior, label: Volume) -> SpatialPrior:
    """The prior without a label's own part, where it knows that and others remain."""
    if prior.cases is None:
        return prior
    own = own_cases(label, prior)
    return prior.leave_out(own) if 0 < len(own) < prior.case_count else prior


def _orientation(label: MetaTensor, priors: Sequence[SpatialPrior]) -> str | None:
    with warnings.catch_warnings():
        # it warns of what is returned as well
        warnings.simplefilter("ignore")
        found: Orientation = check_orientation(_masked(label, priors), priors)
    if found.agrees:
        return None
    fits = f"{found.fit[found.best]:.2f} against {found.fit[found.header]:.2f}"
    return (
        f"fits the priors better with the axes {found.best} than with its header's {found.header} "
        f"({fits}): it may be mirrored or turned, perhaps together with its scan"
    )


def _masked(label: MetaTensor, priors: Sequence[SpatialPrior]) -> MetaTensor:
    """A channel for each organ."""
    values = label.as_tensor()
    return MetaTensor(
        torch.cat([(values == prior.organ).float() for prior in priors]), affine=label.affine
    )


def _displaced(label: MetaTensor, priors: Sequence[SpatialPrior]) -> list[str]:
    """Organs that lie elsewhere than the others say; which of two is wrong cannot be told."""
    known: list[Any] = [prior for prior in priors if prior.offset_mm is not None]
    if len(known) < 3 or not positioned_together(known):
        return []
    centers = torch.stack(
        [measure_position(label, p) - torch.tensor(p.offset_mm, dtype=torch.float64) for p in known]
    )
    told = []
    for k, prior in enumerate(known):
        others = torch.cat([centers[:k], centers[k + 1 :]]).quantile(0.5, dim=0)
        away = (centers[k] - others).tolist()
        far = float((centers[k] - others).norm())
        if far > DISPLACED_MM:
            axis = max(range(3), key=lambda i: abs(away[i]))
            side = ("left", "right", "back", "front", "feet", "head")[2 * axis + (away[axis] > 0)]
            told.append(
                f"organ {prior.organ} lies {far:.0f} mm from where the others put it, towards the "
                f"{side}: are label values exchanged?"
            )
    return told
