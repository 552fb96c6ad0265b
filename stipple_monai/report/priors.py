"""The part of a report about spatial priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from monai.data import MetaTensor

from stipple_monai.data import read_label_map
from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.positioning import measure_position
from stipple_monai.priors import SpatialPrior, prior_files
from stipple_monai.report.cases import Case, case_viewers, read_scan
from stipple_monai.report.page import Block, Picture, Table, Text
from stipple_monai.visualize import MAX_PANELS, prior_figure

HEADER = [
    *("organ", "name", "cases", "mean volume (ml)", "centre", "bins", "bin height (mm)"),
    *("size R × A × S (mm)", "voxel R × A × S (mm)", "highest probability (0–1)"),
    "offset R, A, S (mm)",
]
NOTE = (
    "Mean volume: the sum of the probabilities, which is the organ's mean volume. Offset: of the "
    "organ's mean position from that of all organs that were estimated together, in RAS mm; "
    "empty where it was estimated by itself."
)


def prior_blocks(
    priors: Mapping[int, SpatialPrior],
    folder: Path,
    *,
    organs: Mapping[int, str],
    references: Sequence[Case],
) -> list[Block]:
    """The table of priors, each one's bins over a reference scan, and all of them in the first.

    Args:
        priors: by organ.
        folder: for the pictures.
        organs: names by label value.
        references: labelled cases; each prior is drawn on the first that has its organ, at the
            organ's true position there.
    """
    rows = [_row(prior, organs.get(k, f"organ {k}")) for k, prior in priors.items()]
    blocks: list[Block] = [Table("", HEADER, rows, NOTE)]
    if not references:
        said = "No reference scan with a label was given (--datalist): the priors are on black."
        blocks.append(Text(said, "warning"))
    for k, prior in priors.items():
        name = organs.get(k, f"organ {k}")
        path = folder / f"prior_{k}.png"
        alt, where = _draw(prior, path, name, references)
        few = f"{MAX_PANELS} of its {prior.bins} bins" if prior.bins > MAX_PANELS else "every bin"
        caption = f"The slice through the middle of {few}, from inferior to superior. {where}"
        blocks.append(Picture(f"Prior of {name}", path, caption, alt, wide=True))
    first = [replace(c, about="All priors at the organs' true positions.") for c in references[:1]]
    return blocks + case_viewers(
        first,
        {case.name: "reference" for case in first},
        folder,
        organs={k: organs.get(k, f"organ {k}") for k in priors},
        priors=priors,
        prepare=lambda case, truth: with_true_positions(case, truth, priors),
    )


def with_true_positions(
    case: Case, truth: MetaTensor | None, priors: Mapping[int, SpatialPrior]
) -> Case:
    """Put priors where a label has their organs; an organ that it has not stays without."""
    if truth is None:
        return case
    found = {}
    for k, prior in priors.items():
        try:
            found[k] = measure_position(truth, prior).tolist()
        except PositionError:
            continue
    return replace(case, positions=found)


def _row(prior: SpatialPrior, name: str) -> list[str]:
    def triple(numbers: Sequence[float]) -> str:
        return " × ".join(f"{v:.4g}" for v in numbers)

    voxel_ml = float(torch.tensor(prior.spacing_mm, dtype=torch.float64).prod()) / 1000
    return [
        *(str(prior.organ), name, str(prior.case_count)),
        f"{float(prior.probability.sum()) * voxel_ml:.1f}",
        *(prior.center, str(prior.bins), f"{prior.spacing_mm[2]:.2f}"),
        *(triple(prior.size_mm), triple(prior.spacing_mm)),
        f"{float(prior.probability.max()):.3f}",
        ", ".join(f"{v:.1f}" for v in prior.offset_mm or ()),
    ]


def _draw(
    prior: SpatialPrior, path: Path, name: str, references: Sequence[Case]
) -> tuple[str, str]:
    """Draw a prior; what the picture shows, and where the prior lies."""
    for case in references:
        try:
            label = read_label_map(str(case.truth))
            position = measure_position(label, prior)
            image = read_scan(case.image)
            alt = prior_figure(image, prior, position, path, label=label, organ_name=name)
        except (DatasetError, PositionError):
            continue
        point = ", ".join(f"{v:.1f}" for v in position.tolist())
        return alt, f"Reference: {case.name}, at the organ's true position, RAS ({point}) mm."
    image = _empty_scan(prior)
    alt = prior_figure(image, prior, (0, 0, 0), path, organ_name=name)
    return alt, "No reference scan shows the organ: on black, around its own centre, in RAS mm."


def _empty_scan(prior: SpatialPrior) -> MetaTensor:
    """An empty scan on the prior's own grid."""
    spacing = torch.tensor(prior.spacing_mm, dtype=torch.float64)
    shape = torch.tensor(prior.probability.shape)
    affine = torch.diag(torch.cat([spacing, torch.ones(1, dtype=torch.float64)]))
    affine[:3, 3] = -spacing * (shape - 1) / 2
    return MetaTensor(torch.zeros(1, *prior.probability.shape), affine=affine)


def read_prior_files(paths: Sequence[Path]) -> tuple[dict[int, SpatialPrior], dict[int, Path]]:
    """Priors and their files by organ.

    Raises:
        PriorError: a file is no prior, or two are of one organ.
    """
    priors: dict[int, SpatialPrior] = {}
    files: dict[int, Path] = {}
    for path in paths:
        prior = SpatialPrior.load(path)
        if prior.organ in priors:
            raise PriorError(
                f"Priors must be of different organs, got {path} and {files[prior.organ]}: move "
                "one away."
            )
        priors[prior.organ], files[prior.organ] = prior, path
    order = sorted(priors)
    return {k: priors[k] for k in order}, {k: files[k] for k in order}


def priors_in(folder: str | Path) -> dict[int, SpatialPrior]:
    """All priors of a folder by organ.

    Raises:
        PriorError: there is none, or a file called like one is none.
    """
    found = prior_files(folder)
    if not found:
        raise PriorError(f"`models` must hold prior_*.nii.gz, got {folder}: give their folder.")
    return read_prior_files(found)[0]
