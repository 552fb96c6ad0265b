"""What a folder was begun with, which a later command must not contradict."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stipple_monai.errors import DatasetError
from stipple_monai.files import read_json, write_json
from stipple_monai.ownership.manifest import refuse_foreign

CONTENTS = "configs"
"""The setting with the digests of config files, each of which may be new."""
LONGEST = 40
"""Characters of a setting's value that an error tells."""


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
