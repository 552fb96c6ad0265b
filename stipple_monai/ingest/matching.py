"""Which label belongs to which scan, by the names of their files.

Names are equal, or equal but for words that tell a scan from its label, such as ``ct`` and
``seg``; names that tell of two modalities, sequences or time points, as ``t1`` and ``t2`` do, are
those of two scans. Of several scans the one counts that fewest such words have to be taken from;
what stays ambiguous is an error, since a label on another scan's voxels trains without complaint.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stipple_monai.data import OTHER_GRIDS, folded
from stipple_monai.errors import DatasetError
from stipple_monai.nifti import NIFTI

VOLUMES = (*NIFTI, *OTHER_GRIDS)
"""Endings of the volumes that are read."""

_ROLES = "labels?|segmentation|seg|masks?|truth|gt"
_SEEN = "cta?|mri?|pet|t[12]w?|flair|dwi|adc"
_KINDS = f"{_ROLES}|images?|img|scan|volume|{_SEEN}"
# a word ends where letters end, or where an upper-case one begins
_KIND = re.compile(rf"(?i:(?<![a-z])(?:{_KINDS})(?![a-z]))|(?<=[a-z])(?:Seg|SEG|Label|CT|MR|GT)\b")
# what an image is of; "mr" fits each of the sequences
_SCANNED = re.compile(_SEEN)
_SEQUENCES = {"t1", "t2", "flair", "dwi", "adc"}
_SAME = {"cta": "ct", "mri": "mr", "t1w": "t1", "t2w": "t2"}
_ROLE = re.compile(rf"(?i:(?<![a-z])(?:{_ROLES})(?![a-z]))")


def is_volume(path: Path) -> bool:
    """Whether a file's ending is that of a volume, in upper or lower case."""
    return path.name.lower().endswith(VOLUMES)


def stem(path: Path) -> str:
    """A volume's name without its ending.

    Example:
        >>> stem(Path("a.b.NII.GZ")), stem(Path("c.nrrd"))
        ('a.b', 'c')
    """
    endings = sorted(VOLUMES, key=len, reverse=True)
    ending = next((e for e in endings if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def is_called_a_label(path: Path) -> bool:
    """Whether a file's name has a word such as ``seg``."""
    return _ROLE.search(stem(path)) is not None


def key(path: Path) -> str:
    """What is left of a name without the words that tell a scan from its label.

    Example:
        >>> key(Path("case_7_label.nii.gz")) == key(Path("case_7_ct.nii.gz")) == "case_7"
        True
    """
    left = _KIND.sub("", stem(path))
    return folded(re.sub(r"[_\-. ]+", "_", left).strip("_"))


def _words(path: Path) -> Counter[str]:
    return Counter(word.casefold() for word in _KIND.findall(stem(path)))


def _contradict(one: Counter[str], two: Counter[str]) -> bool:
    """Whether words of two names tell of two modalities, sequences or time points."""
    first, second = (
        {_SAME.get(word, word) for word in words if _SCANNED.fullmatch(word)}
        for words in (one, two)
    )
    if not first or not second:
        return False
    # the sequence says more than that it is one
    first, second = (kinds - {"mr"} if kinds & _SEQUENCES else kinds for kinds in (first, second))
    unnamed = {"mr"} in (first, second) and bool((first | second) & _SEQUENCES)
    return not first & second and not unnamed


def _cost(scan: Path, label: Path) -> int | None:
    """How many words have to be taken from both names to make them one; None: they stay two."""
    if folded(stem(scan)) == folded(stem(label)):
        return 0
    if key(scan) != key(label):
        return None
    one, two = _words(scan), _words(label)
    if _contradict(one, two):
        return None
    return 1 + ((one - two) + (two - one)).total()


def match_labels(
    scans: Sequence[Path], labels: Sequence[Path]
) -> tuple[dict[Path, Path], list[Path]]:
    """Give scans their labels.

    Args:
        scans: files.
        labels: files.

    Returns:
        Labels by scan, and the labels of no scan.

    Raises:
        DatasetError: a label fits two scans, or a scan two labels, equally well.
    """
    chosen: dict[Path, list[tuple[int, Path]]] = {}
    left = []
    for label in labels:
        costs = sorted((c, s) for s in scans if (c := _cost(s, label)) is not None)
        if not costs:
            left.append(label)
            continue
        best = [scan for cost, scan in costs if cost == costs[0][0]]
        if len(best) > 1:
            raise DatasetError(
                f"A label must be of one scan, got {label}, which may be of {best[0]} or "
                f"{best[1]}: give it the name of its scan."
            )
        chosen.setdefault(best[0], []).append((costs[0][0], label))
    matched = {}
    for scan, found in chosen.items():
        found.sort()
        if len(found) > 1 and found[0][0] == found[1][0]:
            raise DatasetError(
                f"A scan must have one label, got {found[0][1]} and {found[1][1]} for {scan}: "
                "rename one, or give a dataset.json."
            )
        matched[scan] = found[0][1]
        left += [label for _, label in found[1:]]
    return matched, left


def require_matches(matched: int, left: Sequence[Path]) -> list[tuple[str, str]]:
    """What the report says of labels without scan.

    Raises:
        DatasetError: there are labels, and none belongs to a scan.
    """
    if left and not matched:
        raise DatasetError(
            f"Labels must belong to scans, got {len(left)} of which none does, such as {left[0]}: "
            "give them their scans' names, or scans and labels in folders of their own."
        )
    return [(path.name, "a label without scan") for path in left]
