"""The names of the files that were written into a folder, and what may not be written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from stipple_monai.errors import DatasetError
from stipple_monai.files import read_json, write_json

MANIFEST = ".stipple_monai.json"
"""Names of the files that were written into a folder, relative to it, and by what commands."""


def owned(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The files in a folder that this package wrote, each with its command, empty if not kept."""
    try:
        found = read_json(Path(folder) / MANIFEST)
        commands = dict(found.get("commands", {}))
        return {str(name): str(commands.get(name, "")) for name in found["files"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def claim(
    folder: str | os.PathLike[str],
    targets: Iterable[str | os.PathLike[str]],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    command: str = "",
) -> None:
    """Enter files that are about to be written in the manifest of a folder.

    Args:
        folder: where the manifest is; made if need be.
        targets: files in it.
        inputs: files and folders that are read.
        command: that writes them, if it is to be kept.

    Raises:
        DatasetError: a target is an input, comes twice, or is there and not in the manifest, or of
            another command.
    """
    folder = Path(folder).absolute()
    paths = [Path(target).absolute() for target in targets]
    refuse_inputs(paths, inputs)
    refuse_foreign(folder, paths, command)
    _enter(folder, paths, command)


def adopt(folder: Path, targets: Iterable[Path], command: str = "") -> None:
    """Enter files of a folder that something else shows to be this package's, as its settings."""
    _enter(folder, [target for target in targets if target.exists()], command)


def refuse_foreign(folder: Path, targets: Iterable[Path], command: str = "") -> None:
    """Raise where a file that is to be written is there and not in the manifest of ``folder``.

    Raises:
        DatasetError: so it is, or the manifest says that another command wrote it.
    """
    known = owned(folder)
    for target in filter(os.path.lexists, targets):
        writer = known.get(os.path.relpath(target, folder))
        if writer is None or (writer and command and writer != command):
            raise DatasetError(
                "`out` must not be a file that is there and was not written by this "
                + (f"command, got {target} of `{writer}`" if writer else f"package, got {target}")
                + ": choose another, or remove it yourself."
            )


def _enter(folder: Path, paths: Iterable[Path], command: str) -> None:
    before = owned(folder)
    names = [os.path.relpath(path, folder) for path in paths]
    write_manifest(folder, {**before, **{n: before.get(n) or command for n in names}})


def write_manifest(folder: Path, names: Mapping[str, str]) -> None:
    """Write the names of files, each with its command, unless the manifest says the same."""
    if owned(folder) != names:
        commands = {name: command for name, command in sorted(names.items()) if command}
        write_json(folder / MANIFEST, {"files": sorted(names), "commands": commands}, indent=1)


def refuse_file_above(path: str | os.PathLike[str]) -> None:
    """Raise where something is to be written below a file.

    Raises:
        DatasetError: so it is.
    """
    above = next((p for p in Path(path).absolute().parents if p.is_file()), None)
    if above is not None:
        raise DatasetError(
            f"Outputs must lie in a folder, got {path}, where {above} is a file: choose another."
        )


def refuse_inputs(
    targets: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Raise where a file that is to be written is one that is read, or is written twice.

    Raises:
        DatasetError: so it is.
    """
    read = {os.path.realpath(path): path for path in inputs}
    seen: set[str] = set()
    for target in targets:
        real = os.path.realpath(target)
        if real in read:
            raise DatasetError(
                f"`out` must not be an input, got {target}, which is read: choose another name."
            )
        if real in seen:
            raise DatasetError(f"Outputs must be files of their own, got {target} twice.")
        seen.add(real)
