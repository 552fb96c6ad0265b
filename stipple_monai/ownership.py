"""Which files are this package's to replace: one rule for every command.

A command replaces only files that it can show it wrote, never an input, and the old only when the
new is whole. What it wrote stands in a *manifest*, a hidden file of names in the folder. A set of
files that is replaced is made in a *part*, a folder beside it with a *mark* that tells what it is
made of, so that nobody's work is taken for another's. A folder that grows keeps its *settings*,
what it was begun with, which a later command must not contradict. The manifest also tells which
command wrote a file: what replaces its older files leaves those of others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.errors import DatasetError
from stipple_monai.files import read_json, write_json, write_text

MANIFEST = ".stipple_monai.json"
"""Names of the files that were written into a folder, relative to it, and by what commands."""
CONTENTS = "configs"
"""The setting with the digests of config files, each of which may be new."""
LONGEST = 40
"""Characters of a setting's value that an error tells."""
MARK = ".made_with.json"
"""What a part is made of."""


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
    _write_manifest(folder, {**before, **{n: before.get(n) or command for n in names}})


def _write_manifest(folder: Path, names: Mapping[str, str]) -> None:
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


def remember(
    path: Path,
    settings: Mapping[str, Any],
    *,
    targets: Iterable[str | os.PathLike[str]] = (),
    taken: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuse settings other than those that a folder was begun with, and write those of a new one.

    Settings that led to nothing do not count: what failed at once may be repeated with others.

    Args:
        path: the file of the settings in the folder.
        settings: of JSON's types.
        targets: files and folders that the command will write beside it.
        taken: further ones that it takes where they are there, and writes otherwise.

    Raises:
        DatasetError: they contradict what is there, or are another command's, or the folder was
            not begun and has a target.
    """
    before, asked = begun_with(path), json.loads(json.dumps(settings))
    files = [path.parent / target for target in targets]
    if before is None:
        refuse_foreign(path.parent, files)
    elif not before.keys() & asked.keys() - {CONTENTS}:
        raise DatasetError(
            f"`out` must be a new folder or one of this command, got {path.parent}, where another "
            f"wrote {path.name}: choose another folder."
        )
    elif any(map(os.path.lexists, [*files, *(path.parent / each for each in taken)])):
        refuse_contradictions(path, contradictions(before, asked))
    else:
        before = None
    keep_settings(path, {**(before or {}), **asked})


def begun_with(path: Path) -> dict[str, Any] | None:
    """What a folder was begun with; None for a folder that was not.

    Raises:
        DatasetError: the file is no JSON of settings.
    """
    if not path.exists():
        return None
    try:
        settings = read_json(path)
    except ValueError as error:
        raise DatasetError(f"{path} must be JSON that this command wrote: {error}.") from error
    if not isinstance(settings, dict):
        raise DatasetError(
            f"{path} must be JSON that this command wrote, got {type(settings).__name__}."
        )
    return settings


def contradictions(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are other than before, short values with them.

    What an older version of the package did not keep contradicts nothing.

    Example:
        >>> contradictions({"seed": 0, "configs": {"a": 1, "b": 1}}, {"seed": 0, "new": 1})
        []
        >>> contradictions({"seed": 0, "configs": {"a": 1, "b": 1}}, {"configs": {"a": 2, "c": 1}})
        ['configs: a']
        >>> contradictions({"seed": 0, "options": {"decay": 9}}, {"seed": 1, "options": {}})
        ['seed (0, now 1)', 'options: decay (9, now not given)']
    """
    other = []
    for name, value in asked.items():
        old = before.get(name, value)
        if name == CONTENTS and isinstance(old, dict):
            other += [
                f"{name}: {each}" for each in value if old.get(each, value[each]) != value[each]
            ]
        elif isinstance(old, dict) and isinstance(value, dict):
            names = [
                each
                for each in {**old, **value}
                if _value_text(old, each) != _value_text(value, each)
            ]
            other += [f"{name}: {each}{_before_and_now(old, value, each)}" for each in names]
        elif old != value:
            other.append(f"{name}{_before_and_now(before, asked, name)}")
    return other


def _before_and_now(before: Mapping[str, Any], asked: Mapping[str, Any], name: str) -> str:
    """A setting's values before and now, unless they are long."""
    old, new = _value_text(before, name), _value_text(asked, name)
    return f" ({old}, now {new})" if max(len(old), len(new)) <= LONGEST else ""


def _value_text(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], sort_keys=True) if name in settings else "not given"


def refuse_contradictions(path: Path, other: Sequence[str]) -> None:
    """Raise where settings contradict those of a file.

    Raises:
        DatasetError: ``other``, the names of those that do, is not empty.
    """
    if other:
        raise DatasetError(
            f"`out` must be a new folder, or started with what it was begun with; {path.parent} "
            f"was begun with other {', '.join(other)}, see {path.name} there."
        )


def keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write what a folder is begun with."""
    write_json(path, settings)


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
    _write_manifest(folder, kept)
    shutil.rmtree(part)
