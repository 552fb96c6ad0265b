"""A file, or a new folder, is whole or absent.

Whatever this package writes goes to a temporary file beside the target first and takes the
target's name in one step, so that an interrupted or failed write never leaves half a file and
never destroys the file that was there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNFINISHED = ".part-"
# a number of 32 digits, so that nothing that a person wrote is taken for it
_OURS = re.compile(re.escape(_UNFINISHED) + "[0-9a-f]{32}-.+")
_WRITER_OF_TORCH = re.compile("inline_container|PytorchStreamWriter")
# what spreadsheets take for a formula, and what keeps them from it
_FORMULA, _QUOTE = ("=", "+", "-", "@", "\t", "\r"), "'"

SAMPLE_BYTES = 65536
"""Read at the beginning and the end of a file; that of a ``.nii.gz`` has a checksum of it all."""


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` when the block ends without an error.

    Args:
        path: the file to write. Missing folders are made. The temporary name ends like
            ``path`` (``.nii.gz``), because writers choose the format by it.

    Yields:
        The temporary path, in the same folder.

    Raises:
        OSError: what the system says, with ``path`` in place of the temporary name or of none.

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
    except (OSError, RuntimeError) as error:
        _name_target(error, temporary, target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _name_target(error: OSError | RuntimeError, temporary: Path, target: Path) -> None:
    """Name in an error the path that somebody asked for, where it names a temporary one or none.

    A disk that is full is found out while an open file is written, and then the error has no name.
    """
    if not isinstance(error, OSError) or error.errno is None:
        # "3 requested and 1 written" of numpy, "[enforce fail at inline_container.cc…" of torch
        said = str(error).replace(str(temporary), str(target))
        if type(error) is OSError or _WRITER_OF_TORCH.search(said):
            told = f"{target} could not be written whole: {said} (is the disk full?)"
            error.args = (said if str(target) in said else told,)
        return
    given = [name for name in (error.filename, error.filename2) if name is not None]
    names = [n.replace(str(temporary), str(target)) if isinstance(n, str) else n for n in given]
    error.filename, *others = names or [str(target)]
    if others == [error.filename]:
        del error.filename2
    elif others:
        error.filename2 = others[0]


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


def fingerprint(*paths: str | os.PathLike[str]) -> str:
    """What changes when a file does: a checksum of the files' sizes, beginnings and ends.

    It does not depend on names, places and times, so that a copy has the same.

    Args:
        *paths: files, or folders of files such as a DICOM series.

    Raises:
        OSError: a file cannot be read.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = target.write_bytes(b"abc")
        >>> before = fingerprint(target)
        >>> _ = target.write_bytes(b"abd")
        >>> before == fingerprint(target)
        False
    """
    digest = hashlib.sha256()
    for path in paths:
        for file in files_of(path):
            size = file.stat().st_size
            digest.update(f"{size}:".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(SAMPLE_BYTES))
                opened.seek(max(size - SAMPLE_BYTES, 0))
                digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """A file, or all files below a folder but for hidden ones, in the order of their names."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    below = (p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in below if not any(x.startswith(".") for x in p.relative_to(path).parts))


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, nested too deeply, or has a number that is not finite.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(text: str) -> float:
    raise ValueError(f"numbers must be finite, got {text}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def write_text(path: str | os.PathLike[str], text: str, *, errors: str = "strict") -> None:
    """Write a text in UTF-8, whole or not at all.

    Args:
        path: the file.
        text: what is written.
        errors: what to do with what is no UTF-8, as in `str.encode`.
    """
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: str | os.PathLike[str], content: Any, **options: Any) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: the file.
        content: what is written, of JSON's types.
        **options: as for `json.dumps`.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(target, {"scans": 2})
        >>> read_json(target)
        {'scans': 2}
    """
    write_text(path, json.dumps(content, **{"indent": 2, **options}) + "\n")


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what writers that were killed have left below a folder in which nobody writes."""
    for path in Path(folder).rglob(f"{_UNFINISHED}*"):
        if _OURS.fullmatch(path.name) and path.is_file():
            path.unlink()


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder that becomes ``path`` at the end, and is removed after an error.

    Raises:
        FileExistsError: ``path`` is there already.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise FileExistsError(f"`path` must not exist yet, got {path}: choose another.")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(path)
    except (OSError, RuntimeError) as error:
        _name_target(error, part, path)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_csv(
    path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write a table as CSV, whole or not at all.

    Text that a spreadsheet would take for a formula gets a ``'`` in front.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.csv"
        >>> write_csv(target, ["scan", "dice"], [["a.nii.gz", 0.5]])
        >>> target.read_text().splitlines()
        ['scan,dice', 'a.nii.gz,0.5']
    """
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *([_cell(cell) for cell in row] for row in rows)])


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Rows of a table written by :func:`write_csv`, as text."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [{k: _text(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _cell(value: object) -> object:
    if not isinstance(value, str) or not value.startswith((*_FORMULA, _QUOTE)):
        return value
    try:
        float(value)
    except ValueError:
        return f"{_QUOTE}{value}"
    return value


def _text(cell: str) -> str:
    return cell[1:] if cell and cell[0] == _QUOTE else cell
