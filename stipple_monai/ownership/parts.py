"""Sets of files that are made beside the older ones and take their place at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stipple_monai.errors import DatasetError
from stipple_monai.files import write_text
from stipple_monai.ownership.manifest import (
    adopt,
    claim,
    owned,
    refuse_foreign,
    refuse_inputs,
    write_manifest,
)

MARK = ".made_with.json"
"""What a part is made of."""


def begin_set(
    folder: Path,
    targets: Iterable[str],
    *,
    command: str,
    made_with: Mapping[str, Any],
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool,
) -> Path:
    """Claim the files of a set, and tell where to make it: in its place, or in a part beside it.

    Args:
        folder: of the set.
        targets: names of its files.
        command: that makes it; files of others stay.
        made_with: see :func:`begin_part`.
        inputs: files and folders that are read.
        overwrite: make it in a part, so that the older one stays until the new one is whole; see
            :func:`replace_set`.

    Raises:
        DatasetError: as :func:`claim` does.
    """
    targets, inputs = list(targets), list(inputs)
    older = {name for name, writer in owned(folder).items() if writer == command}
    refuse_inputs({folder / name for name in older.union(targets)}, inputs)
    refuse_foreign(folder, [folder / name for name in targets], command)
    work = begin_part(folder, made_with) if overwrite else folder
    claim(work, [work / name for name in targets], inputs=inputs, command=command)
    return work


@contextmanager
def made_anew(
    folder: Path,
    *,
    command: str,
    made_with: Mapping[str, Any],
    targets: Iterable[str] = (),
    inputs: Iterable[str | os.PathLike[str]] = (),
    last: str | None = None,
) -> Iterator[Path]:
    """Give the folder in which a whole set is made, from nothing, which then replaces the older.

    Args:
        folder: of the set.
        command: that makes it.
        made_with: see :func:`begin_part`; what a killed command left of the same is thrown away.
        targets: names of its files, as far as they are known.
        inputs: files and folders that are read.
        last: see :func:`replace_set`; None: the last of the files that were made, by name.

    Raises:
        DatasetError: as :func:`begin_set` does. Nothing has changed in ``folder`` then, nor where
            the set could not be made.
    """
    shutil.rmtree(begin_part(folder, made_with))
    work = begin_set(
        folder, targets, command=command, made_with=made_with, inputs=inputs, overwrite=True
    )
    try:
        yield work
        made = sorted(path for path in work.iterdir() if path.is_file() and path.name[0] != ".")
        adopt(work, made, command)
        replace_set(work, folder, command=command, last=last or made[-1].name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def begin_part(path: str | os.PathLike[str], made_with: Mapping[str, Any]) -> Path:
    """Make, or find, the folder ``path.part`` in which ``path`` is made.

    Args:
        path: what it is to become.
        made_with: of JSON's types; a part of the same is gone on with.

    Raises:
        DatasetError: there is a part of something else.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    text = json.dumps(made_with, indent=1, sort_keys=True, default=str) + "\n"
    mark = part / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == text:
        return part
    if part.exists() and (not part.is_dir() or any(part.iterdir())):
        raise DatasetError(
            f"{part} must be empty or begun with the same, got one that was not made so: remove it "
            "yourself, if nobody needs it."
        )
    write_text(mark, text)
    return part


def end_part(part: Path, path: Path) -> None:
    """Give a part its name.

    Raises:
        OSError: ``path`` is there.
    """
    (part / MARK).unlink(missing_ok=True)
    part.rename(path)


def replace_set(part: Path, folder: Path, *, command: str, last: str) -> None:
    """Put a whole set of files in the place of an older one of the same command.

    What is not ours there stays, and what another command wrote.

    Args:
        part: where the new one is, with its manifest; removed.
        folder: of the older one, with its manifest.
        command: that made both.
        last: the file by which a set is known to be whole.

    Raises:
        DatasetError: a file that is not ours, or another command's, would be replaced.
    """
    new = owned(part)
    claim(folder, [folder / name for name in new], command=command)
    older = {name for name, writer in owned(folder).items() if writer == command} - {*new}
    (folder / last).unlink(missing_ok=True)
    for name in sorted(older - {last}):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: (name == last, name)):
        if (part / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).replace(folder / name)
    kept = {name: writer for name, writer in owned(folder).items() if name not in older}
    write_manifest(folder, kept)
    shutil.rmtree(part)
