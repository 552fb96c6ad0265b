"""What a scan's results are called by: a name of its own, made of its path."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stipple_monai.errors import DatasetError

LONGEST = 200
"""Bytes of a name, so that an ending fits behind it."""


def unique_names(scans: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name scans by their files, and by as many folders above as tell equal ones apart.

    Args:
        scans: NIfTI files, without whose endings they are named, or folders.

    Raises:
        DatasetError: two scans cannot be told apart.

    Example:
        >>> unique_names(["/a/1/ct.nii.gz", "/a/2/ct.nii.gz", "/a/2/1.2.840"])
        ['1_ct', '2_ct', '1.2.840']
    """
    paths = [Path(os.path.abspath(scan)) for scan in scans]
    stems = [stem_of(p) for p in paths]
    names, twice = list(stems), _repeated(stems)
    for depth in range(1, max((len(p.parts) for p in paths), default=1)):
        for i in twice:
            names[i] = "_".join([*paths[i].parts[1:-1][-depth:], stems[i]])
        twice = _repeated(names)
    if twice:
        first, second = [str(paths[i]) for i in twice][:2]
        raise DatasetError(
            f"Scans must have names of their own, got {first} and {second}, whose results would "
            "have the same: rename one, or write them into folders of their own."
        )
    return names


def plain_name(name: object, what: str) -> str:
    """A name that may be a part of a file's name: it leads nowhere else.

    Args:
        name: as somebody gave it.
        what: it is called that in the error.

    Raises:
        DatasetError: it is no text, empty, too long, hidden, or has a separator of folders or a
            control character.

    Example:
        >>> plain_name("patient 7", "name")
        'patient 7'
    """
    wrong = (
        not isinstance(name, str)
        or not 0 < len(name.encode(errors="replace")) <= LONGEST
        or name.startswith((".", "~"))
        or any(sign in "/\\" or unicodedata.category(sign) == "Cc" for sign in name)
    )
    if wrong:
        raise DatasetError(
            f"`{what}` must be a name of 1 to {LONGEST} bytes without /, \\ and control characters "
            f"that does not begin with a dot, got {name!r}: it becomes a part of file names."
        )
    return str(name)


def stem_of(path: Path) -> str:
    """A file's name without ``.nii`` or ``.nii.gz``, in upper or lower case."""
    return re.sub(r"(?i)\.nii(\.gz)?$|\.gz$", "", path.name)


def folded(name: str) -> str:
    """A name without what some file systems ignore: case, and how letters with accents are stored.

    Example:
        >>> folded("Mu\u0308ller") == folded("m\u00fcller")
        True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _repeated(names: Sequence[str]) -> list[int]:
    """Indices of names that occur again, for a file system that does not tell them apart."""
    count = Counter(map(folded, names))
    return [i for i, name in enumerate(names) if count[folded(name)] > 1]
