"""What a source consists of: cases, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

Layout: TypeAlias = Literal["pancreas-ct", "dicom", "nifti", "nnunet", "msd", "totalsegmentator"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Case:
    """A scan and its label.

    Args:
        name: of its own in the dataset.
        images: the folder of a DICOM series, or a file for each channel.
        label: a file, a folder of pictures or of masks, or None.
        test: whether it belongs to a test set, whose labels are not public.
        section: of the source's own datalist, empty where it has none.
        patient: as the source's datalist has it, empty where it has none.
        structures: of a folder of masks, label values by the names of files.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    test: bool = False
    section: str = ""
    patient: str = ""
    structures: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_dicom(self) -> bool:
        """Whether the scan is a DICOM series."""
        return self.images[0].is_dir()


@dataclass(frozen=True)
class Source:
    """A dataset as it was found.

    Args:
        root: its folder.
        layout: how that is organised.
        cases: by name.
        skipped: what was left out, and why.
        labels: names of the label values, where the dataset says so.
        modality: of the channels, where the dataset says so.
        ignore: the label value of voxels that were not annotated, where the dataset has one.
    """

    root: Path
    layout: Layout
    cases: Sequence[Case]
    skipped: Sequence[tuple[str, str]] = ()
    labels: dict[int, str] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)
    ignore: int | None = None
