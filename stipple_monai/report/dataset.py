"""The report of a data set: what its scans are like, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from stipple_monai.data import check_pair, check_scan, organ_volumes, read_label_map
from stipple_monai.errors import DatasetError
from stipple_monai.parallel import map_in_order
from stipple_monai.priors import SpatialPrior
from stipple_monai.report.cases import (
    MOST_PICTURES,
    Case,
    case_viewers,
    choose,
    counted,
    datalist_cases,
    label_values,
    name_colours,
    organ_names,
    read_scan,
)
from stipple_monai.report.page import Block, Lines, Page, Picture, Section, Table, Text
from stipple_monai.report.plots import dots, histogram
from stipple_monai.report.priors import with_true_positions
from stipple_monai.report.provenance import settings_blocks, versions_table
from stipple_monai.visualize import CONVENTION

SCAN_HEADER = [
    *("case", "section", "size (voxels)", "spacing (mm)", "field of view (mm)", "axes"),
    *("intensity, 1st percentile (HU or a.u.)", "median (HU or a.u.)"),
    "99th percentile (HU or a.u.)",
]
ORGAN_HEADER = [
    *("case", "section", "organ", "volume (ml)", "height (mm)", "intensity, mean (HU or a.u.)"),
    "sd (HU or a.u.)",
    "at the edge",
]
ORGAN_NOTE = (
    "Intensity as stored, over the organ's voxels: HU in CT, arbitrary units (a.u.) in MR. An "
    "outlier may be a label that lies elsewhere than its organ. Height: along the axis nearest to "
    "S. At the edge: the organ reaches the border of the scan and may be cut."
)


@dataclass
class Measured:
    """Rows of a case, its volume by organ, what is wrong with it and what is to be known."""

    scan: list[str] = field(default_factory=list)
    organs: list[list[str]] = field(default_factory=list)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    spacing_mm: Sequence[float] = (math.nan,) * 3
    fault: str = ""
    notes: list[str] = field(default_factory=list)


def dataset_page(
    datalist: Path,
    folder: Path,
    *,
    labels: Mapping[int, str] | None = None,
    priors: Mapping[int, SpatialPrior] | None = None,
    most: int = MOST_PICTURES,
    num_workers: int = 2,
) -> Page:
    """Report on all sections of a datalist.

    Args:
        datalist: JSON.
        folder: for the pictures.
        labels: names by label value, in place of the datalist's.
        priors: by organ; drawn at the organs' true positions.
        most: cases with pictures.
        num_workers: cases that are measured at once.

    Raises:
        DatasetError: the datalist cannot be read, has no scan or misses a file.
    """
    sections = datalist_cases(datalist)
    cases = [(section, case) for section, listed in sections.items() for case in listed]
    if not cases:
        raise DatasetError(f"`datalist` must list scans, got {datalist}, whose sections are empty.")
    values = () if labels else label_values(str(c.truth) for _, c in cases if c.truth)
    organs = organ_names(labels, datalist, values)
    found = list(
        map_in_order(lambda sc: measure(*sc, organs=organs), cases, num_workers=num_workers)
    )
    faults = [
        f"{c.name}: {text}"
        for (_, c), m in zip(cases, found, strict=True)
        for text in [*([m.fault] if m.fault else []), *m.notes]
    ]
    amiss: list[Block] = [Lines(faults)] if faults else [Text("Nothing was found to be wrong.")]
    content = [
        Section("What is wrong", amiss),
        Section("Scans", [Table("", SCAN_HEADER, [m.scan for m in found if m.scan])]),
        Section("Organs", _organ_blocks(found, organs, folder)),
        Section(
            "Cases", _case_blocks(cases, found, folder, organs=organs, priors=priors, most=most)
        ),
        Section("Settings and versions", [*_recipe(datalist), versions_table()]),
    ]
    lead = _introduction(sections, organs)
    title = f"Data set {datalist.parent.name}/{datalist.name}"
    return Page(title, lead, content, colours=name_colours(organs))


def _introduction(sections: Mapping[str, Sequence[Case]], organs: Mapping[int, str]) -> list[str]:
    counts = ", ".join(
        f"{section}: {len(listed)} ({sum(c.truth is not None for c in listed)} with label or truth)"
        for section, listed in sections.items()
    )
    count = sum(map(len, sections.values()))
    return [
        f"{counted(count, 'scan')}: {counts}. Organs: {', '.join(organs.values()) or 'none'}.",
        f"{CONVENTION} Positions and sizes are in mm, RAS.",
    ]


def _case_blocks(
    cases: Sequence[tuple[str, Case]],
    found: Sequence[Measured],
    folder: Path,
    *,
    organs: Mapping[int, str],
    priors: Mapping[int, SpatialPrior] | None,
    most: int,
) -> list[Block]:
    """Viewers of the cases without fault, and how they were chosen."""
    scores = {
        c.name: sum(m.volumes_ml.values()) if m.volumes_ml else math.nan
        for (_, c), m in zip(cases, found, strict=True)
    }
    chosen = choose(scores, ("smallest", "median", "largest"))
    shown = [
        Case(c.name, c.image, c.truth, about=_caption(section, scores[c.name]))
        for (section, c), m in zip(cases, found, strict=True)
        if not m.fault
    ]
    rule = (
        "By the volume of all organs together, the smallest, the one at the lower median and the "
        "largest can be scrolled through. Each plane shows the slice with most of all organs."
    )
    given = priors or {}
    pictures = case_viewers(
        shown,
        chosen,
        folder,
        organs=organs,
        priors=given,
        most=most,
        prepare=lambda case, truth: with_true_positions(case, truth, given),
    )
    return [Text(rule, "lead"), *pictures]


def measure(section: str, case: Case, *, organs: Mapping[int, str]) -> Measured:
    """Read a case, check it and measure what the tables tell."""
    found = Measured()
    try:
        image = read_scan(case.image)
        found.spacing_mm = image.pixdim.tolist()
        found.notes += image.meta.get("notes", [])
        found.scan = _scan_row(section, case, image)
        check_scan(image)
        if case.truth is not None:
            label = read_label_map(case.truth)
            found.notes += [f"label: {text}" for text in label.meta["notes"]]
            check_pair(image, label, classes=max(organs, default=1) + 1)
            _measure_organs(found, section, case, image, label, organs)
    except DatasetError as error:
        found.fault = str(error)
    return found


def _scan_row(section: str, case: Case, image: MetaTensor) -> list[str]:
    shape, spacing = image.shape[1:], image.pixdim.tolist()
    low, middle, high = np.nanpercentile(image.numpy(), (1, 50, 99))
    return [
        *(case.name, section, " × ".join(map(str, shape))),
        " × ".join(f"{s:.3g}" for s in spacing),
        " × ".join(f"{n * s:.0f}" for n, s in zip(shape, spacing, strict=True)),
        "".join(code or "?" for code in nib.aff2axcodes(image.affine.numpy())),
        *(f"{v:.5g}" for v in (low, middle, high)),
    ]


def _measure_organs(
    found: Measured,
    section: str,
    case: Case,
    image: MetaTensor,
    label: MetaTensor,
    organs: Mapping[int, str],
) -> None:
    volumes = organ_volumes(label, organs)
    spacing = label.pixdim.numpy()
    upright = int(np.abs(label.affine.numpy()[2, :3] / spacing).argmax())
    for (k, name), ml in zip(organs.items(), volumes, strict=True):
        mask = label[0].numpy() == k
        if not mask.any():
            found.organs.append([case.name, section, name, "0.0", "", "", "", ""])
            continue
        where = np.argwhere(mask)
        low, high = where.min(0), where.max(0)
        height = (high - low + 1)[upright] * spacing[upright]
        inside = image[0].numpy()[mask]
        edge = bool((low == 0).any() or (high == np.array(mask.shape) - 1).any())
        found.volumes_ml[name] = ml
        found.organs.append(
            [
                *(case.name, section, name, f"{ml:.1f}", f"{height:.0f}"),
                *(f"{inside.mean():.1f}", f"{inside.std():.1f}", "yes" if edge else "no"),
            ]
        )


def _caption(section: str, volume_ml: float) -> str:
    if math.isnan(volume_ml):
        return f"Section {section}; no label."
    return f"Section {section}; all organs together {volume_ml:.1f} ml."


def _organ_blocks(
    found: Sequence[Measured], organs: Mapping[int, str], folder: Path
) -> list[Block]:
    blocks: list[Block] = []
    rows = [row for m in found for row in m.organs]
    blocks.append(
        Table("", ORGAN_HEADER, rows, ORGAN_NOTE) if rows else Text("No scan has a label.")
    )
    colours = name_colours(organs)
    volumes = {n: [m.volumes_ml.get(n, math.nan) for m in found] for n in organs.values()}
    spacings = {
        f"axis {'WHD'[a]}": [m.spacing_mm[a] for m in found if not math.isnan(m.spacing_mm[0])]
        for a in range(3)
    }
    drawn = (
        ("Volumes", dots(volumes, folder / "volumes.png", measure="volume (ml)", colours=colours)),
        ("Voxel sizes", histogram(spacings, folder / "voxel_sizes.png", measure="voxel size (mm)")),
    )
    for title, alt in drawn:
        if alt is not None:
            path = folder / f"{title.lower().replace(' ', '_')}.png"
            said = {"Volumes": "A dot for each case, a line at the median."}
            caption = said.get(title, "A count of cases.")
            blocks.append(Picture(title, path, caption, alt, small=True))
    return blocks


def _recipe(datalist: Path) -> list[Block]:
    """Files of settings beside a datalist: what generated scans were made from."""
    recipes = [datalist.parent / name for name in ("phantom.json", "simulated.json")]
    return settings_blocks([path for path in recipes if path.is_file()], optional=True)
