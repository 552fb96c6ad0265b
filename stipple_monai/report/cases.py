"""Cases of a report: their volumes, which of them are shown, and their viewers.

Of cases with scores, the worst, the one at the lower median and the best can be scrolled through;
equal ones are taken in the order of their names. The others show the slices that matter (see
:mod:`stipple_monai.report.viewer`), worst first, until :data:`MOST_PICTURES` cases are shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from stipple_monai.data import (
    first_file,
    label_names,
    read_label_map,
    read_sections,
    read_volume,
    stem_of,
    unique_names,
)
from stipple_monai.errors import DatasetError, PositionError
from stipple_monai.label_values import IGNORED
from stipple_monai.priors import SpatialPrior
from stipple_monai.report.page import Block, Text, Viewer
from stipple_monai.report.viewer import Placed, make_viewer
from stipple_monai.transforms import LoadScand
from stipple_monai.visualize import organ_colours

MOST_PICTURES = 20
"""Cases with pictures, by default."""

WORDS = ("worst", "median", "best")


@dataclass(frozen=True)
class Case:
    """A scan and what belongs to it.

    Attributes:
        name: of the case, unique in its report.
        image: file, files of one channel each, or the folder of a DICOM series.
        truth: label map.
        prediction: label map.
        positions: where the prior was, RAS mm, by organ; absent where unknown.
        about: of the case, in its caption.
    """

    name: str
    image: Any = None
    truth: str | None = None
    prediction: Path | None = None
    positions: Mapping[int, Sequence[float]] = field(default_factory=dict)
    about: str = ""


def read_scan(image: Any) -> MetaTensor:
    """Read a scan, the first channel of several, from NIfTI or the folder of a DICOM series.

    Raises:
        DatasetError: it cannot be read.
    """
    path = Path(first_file(image))
    if not path.is_dir():
        return read_volume(path)
    return LoadScand(keys="image", ensure_channel_first=True)({"image": str(path)})["image"][:1]


def datalist_cases(path: str | Path) -> dict[str, list[Case]]:
    """The cases of a datalist by section; names are files' names, with folders where equal."""
    sections = read_sections(path)
    images = [first_file(item["image"]) for items in sections.values() for item in items]
    names = dict(zip(images, unique_names(images), strict=True))
    return {
        section: [
            Case(
                names[first_file(item["image"])],
                item["image"],
                item.get("label") or item.get("truth"),
            )
            for item in items
        ]
        for section, items in sections.items()
    }


def scan_stem(image: Any) -> str:
    """A scan's file name without ``.nii.gz``."""
    return stem_of(Path(first_file(image)))


def organ_names(
    given: Mapping[int, str] | None, datalist: str | Path | None, values: Iterable[int] = ()
) -> dict[int, str]:
    """Names of organs by label value.

    They are those given, or of the datalist, or of the ``dataset.json`` beside it, or numbers.
    """
    names = dict(given or {})
    if not names and datalist is not None:
        # a split may have lost what the data set's own list says
        whole = Path(datalist).with_name("dataset.json")
        names = label_names(datalist) or (label_names(whole) if whole.is_file() else {})
    names = {k: name for k, name in sorted(names.items()) if k not in (0, IGNORED)}
    return names or {k: f"organ {k}" for k in sorted(values)}


def name_colours(organs: Mapping[int, str]) -> dict[str, str]:
    """The colour of each organ, by its name: the same in tables, plots and pictures of a page."""
    return dict(zip(organs.values(), organ_colours(len(organs)), strict=True))


def counted(number: int, noun: str) -> str:
    """A number and its noun, which has no s for one.

    Example:
        >>> counted(1, "scan"), counted(0, "scan")
        ('1 scan', '0 scans')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def label_values(labels: Iterable[str | Path]) -> set[int]:
    """The values of label maps, without 0 and 255; a map that cannot be read has none."""
    found: set[int] = set()
    for label in labels:
        try:
            found |= {int(v) for v in np.unique(read_label_map(label).numpy())}
        except DatasetError:
            continue
    return found - {0, IGNORED}


def choose(scores: Mapping[str, float], words: Sequence[str] = WORDS) -> dict[str, str]:
    """The cases that can be scrolled through: name and which it is.

    Args:
        scores: by case; NaN where there is none.
        words: for the lowest, the lower median and the highest score.

    Example:
        >>> choose({"a": 0.5, "b": 0.9, "c": 0.1, "d": float("nan")})
        {'c': 'worst', 'a': 'median', 'b': 'best'}
        >>> choose({"a": 0.5})
        {'a': 'only'}
    """
    order = [name for _, name in sorted((s, n) for n, s in scores.items() if not math.isnan(s))]
    if len(order) < 2:
        return dict.fromkeys(order, "only")
    chosen = {order[0]: words[0]}
    chosen.setdefault(order[(len(order) - 1) // 2], words[1])
    return {**chosen, order[-1]: words[2]}


def case_viewers(
    cases: Sequence[Case],
    chosen: Mapping[str, str],
    folder: Path,
    *,
    organs: Mapping[int, str],
    priors: Mapping[int, SpatialPrior] | None = None,
    most: int = MOST_PICTURES,
    prepare: Callable[[Case, MetaTensor | None], Case] | None = None,
) -> list[Block]:
    """Viewers of the chosen cases and of others, in their order.

    Args:
        cases: what is shown, the chosen ones first.
        chosen: see :func:`choose`.
        folder: for the still pictures.
        organs: names by label value.
        priors: by organ; drawn where the organ's position is known.
        most: cases that are shown.
        prepare: gives a case its positions, from its truth.
    """
    order = [c for name in chosen for c in cases if c.name == name]
    order += [c for c in cases if c.name not in chosen]
    blocks: list[Block] = []
    for number, case in enumerate(order[:most]):
        if case.image is None:
            blocks.append(Text(f"{case.name}: no picture, its scan is not known.", "warning"))
            continue
        path = folder / f"case_{number:02d}_{_safe(case.name)}.png"
        try:
            blocks.append(_viewer(case, path, chosen.get(case.name), organs, priors or {}, prepare))
        except (DatasetError, PositionError) as error:
            blocks.append(Text(f"{case.name}: no picture: {error}", "warning"))
    if len(order) > most:
        rest = f"{len(order) - most} further cases have no picture (--pictures)."
        blocks.append(Text(rest, "lead"))
    return blocks


def _viewer(
    case: Case,
    path: Path,
    which: str | None,
    organs: Mapping[int, str],
    priors: Mapping[int, SpatialPrior],
    prepare: Callable[[Case, MetaTensor | None], Case] | None,
) -> Viewer:
    """The viewer of a case; one that was chosen, as ``which``, can be scrolled through."""
    truth = None if case.truth is None else read_label_map(case.truth)
    known = case if prepare is None else prepare(case, truth)
    return make_viewer(
        read_scan(known.image),
        path,
        title=case.name if which in (None, "only") else f"{case.name} ({which})",
        organs=organs,
        truth=truth,
        prediction=None if case.prediction is None else read_label_map(case.prediction),
        placed={
            k: Placed(point, priors.get(k)) for k, point in known.positions.items() if k in organs
        },
        scroll=which is not None,
        caption=known.about,
    )


def _safe(name: str) -> str:
    """A name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:60]
