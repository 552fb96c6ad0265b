"""A file is whole or absent.

Whatever this package writes goes to a temporary file beside the target first and takes the
target's name in one step, so that an interrupted or failed write never leaves half a file and
never destroys the file that was there.
"""

from __future__ import annotations

import csv
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".part-"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` when the block ends without an error.

    Args:
        path: the file to write. Missing folders are made. The temporary name ends like
            ``path`` (``.nii.gz``), because writers choose the format by it.

    Yields:
        The temporary path, in the same folder.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole_file(target) as path:
        ...     _ = path.write_text("all of it")
        >>> target.read_text()
        'all of it'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose files nobody else may read.
    temporary = target.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}-{target.name}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = target.write_bytes(b"abc")
        >>> sha256(target)[:16]
        'ba7816bf8f01cfea'
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what writers that were killed have left below a folder in which nobody writes."""
    for path in Path(folder).rglob(f"{_UNFINISHED}*"):
        path.unlink()


def write_csv(
    path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write a table as CSV, whole or not at all.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.csv"
        >>> write_csv(target, ["scan", "dice"], [["a.nii.gz", 0.5]])
        >>> target.read_text().splitlines()
        ['scan,dice', 'a.nii.gz,0.5']
    """
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Rows of a table written by :func:`write_csv`, as text."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
