"""Walking through folders that came from elsewhere: nothing outside of them is read.

A downloaded or unpacked folder may hold links and lists of paths that lead anywhere. Links are
followed within the folder; those that lead out, in circles or nowhere are errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stipple_monai.errors import DatasetError


def folders_below(root: Path) -> Iterator[Path]:
    """All folders of a tree, the root first; hidden ones are left out.

    Raises:
        DatasetError: a link leads out of the tree, in circles or nowhere.
    """
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(root, (root.resolve(),))]
    while waiting:
        folder, above = waiting.pop()
        yield folder
        for path in sorted(folder.iterdir(), reverse=True):
            if path.name.startswith("."):
                continue
            require_inside(path, root)
            if path.is_dir():
                real = path.resolve()
                if real in above:
                    raise DatasetError(f"Links must not lead in circles, got {path} to {real}.")
                waiting.append((path, (*above, real)))


def files_below(root: Path) -> Iterator[Path]:
    """All files of a tree, see :func:`folders_below`."""
    for folder in folders_below(root):
        yield from (path for path in listed(folder) if path.is_file())


def listed(folder: Path) -> list[Path]:
    """What is right in a folder, by name, hidden things left out; nothing where there is none."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def require_inside(path: Path, root: Path) -> None:
    """Raise if a path, or what it links to, is not there or not below the root.

    Raises:
        DatasetError: so it is, or the name is not UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DatasetError(
            f"Names must be UTF-8, got {shown}: rename it, such as with convmv."
        ) from None
    try:
        real = path.resolve(strict=path.is_symlink())
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"Links must lead to what is there, got {path}: remove it, or copy what it should be."
        ) from error
    if not real.is_relative_to(root.resolve()):
        raise DatasetError(
            f"Paths must stay in {root}, got {path}, which leads out: give the folder that holds "
            "everything, or copy what is linked."
        )
