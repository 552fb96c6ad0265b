"""Knobs: which the configs have, and which values they may get."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent

from stipple_monai.bundle.configs import config_path, part_of, read_config

MOST_TOLD = 5
"""Knobs that an error tells of."""


def check_knobs(
    configs: Path,
    names: Sequence[str | Path],
    knobs: Collection[str],
    *,
    trained: bool = False,
) -> None:
    """Stop at a knob that none of the configs has: MONAI would take it and change nothing.

    The same holds for the knobs in overlays and plans that are not the bundle's own.

    Args:
        configs: the bundle's folder of configs.
        names: as for `run_bundle`.
        knobs: such as ``max_epochs`` or ``optimizer#weight_decay``.
        trained: overlays are those that a network was trained with, and are taken as they are.

    Raises:
        DatasetError: a config is missing, or no YAML file with a mapping.
        ValueError: a knob is unknown, or text where the configs have numbers.
    """
    contents = {path: read_config(path) for path in (config_path(configs, name) for name in names)}
    if not trained:
        _check_overlays(configs.resolve(), contents, knobs)
    known = _known(contents.values())
    if isinstance(knobs, Mapping):
        check_values(knobs)
        for name, value in knobs.items():
            _check_kind(name, value, known.get(name))
    _refuse_unknown([knob for knob in sorted(knobs) if part_of(knob) not in known], known)
    for knob in knobs:
        _check_place(knob, contents.values(), knobs)


def _check_overlays(
    configs: Path, contents: Mapping[Path, Mapping[str, Any]], knobs: Collection[str]
) -> None:
    """Stop at what is wrong in somebody's own overlay or plan, as if it were given as a knob.

    A name that is new to the bundle is right where one of the files, or a knob, refers to it.
    """
    own = {path: content for path, content in contents.items() if path.parent != configs}
    if not own:
        return
    shipped = [_read_shipped(path, path.stat().st_mtime_ns) for path in configs.glob("*.yaml")]
    known = _known([*(content for path, content in contents.items() if path not in own), *shipped])
    read = set(re.findall(r"[@%](\w+)", str([*contents.values(), knobs])))
    given = {key for content in contents.values() for key in content}
    for path, content in own.items():
        if isinstance(content.get("training"), list):
            raise ValueError(
                f"Overlays must hold knobs of the configs, got the datalist {path}: give a YAML "
                "file such as `plan` writes."
            )
        where = f" in {path}"
        new = [str(key) for key in content if part_of(str(key)) not in {*known, *read}]
        _refuse_unknown([name for name in new if not name.startswith("_")], known, where)
        check_values(content, where)
        for key, value in content.items():
            _check_kind(key, value, known.get(key), where)
            _check_place(key, [*contents.values(), *shipped], given, where)


@lru_cache(maxsize=256)
def _read_shipped(path: Path, changed: int) -> dict[str, Any]:
    """A config of the bundle, which is read again where its time of change is another."""
    return read_config(path)


def _known(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Knobs of configs, each with the first value that tells its kind; None where none does."""
    known: dict[str, Any] = {}
    for content in contents:
        for key, value in content.items():
            known.setdefault(part_of(key), None)
            if key in known and (known[key] is None or _is_expression(known[key])):
                known[key] = value
    return known


def _refuse_unknown(names: Sequence[str], known: Iterable[str], where: str = "") -> None:
    """Raise where there are knobs that no config has, with those that may be meant."""
    if not names:
        return
    told, known = names[:MOST_TOLD], list(known)
    more = f" and {len(names) - len(told)} more" if len(names) > len(told) else ""
    meant = [match for name in told for match in get_close_matches(part_of(name), known, n=1)]
    remedy = f"did you mean {', '.join(meant)}?" if meant else "leave it out."
    raise ValueError(f"Knobs must be in the configs, got {', '.join(told)}{more}{where}: {remedy}")


def _check_place(
    knob: str, contents: Iterable[Any], knobs: Container[str], where: str = ""
) -> None:
    """Raise where no config has what a knob is a value of, or that takes no such value."""
    inside, _, name = knob.lstrip("+%").rpartition("#")
    places = [place for content in contents for place in _places(content, knob)]
    if not places:
        raise ValueError(
            f"Knobs must be in the configs, got {knob}{where}: there is no {inside} in them."
        )
    if name.startswith("_") or f"{inside}#_target_" in knobs:
        return
    taken = [_arguments(place) for place in places]
    if all(names is not None and name not in names for names in taken):
        raise ValueError(
            f"Knobs must be in the configs, got {knob}{where}: {places[0]['_target_']} has no "
            f"argument {name}, but {', '.join(taken[0] or ())}."
        )


def _places(content: Mapping[str, Any], knob: str) -> list[Any]:
    """What a knob is a value of, in a config that has it; its last name may be new.

    A config may have it within a part, or give it by a knob of its own, as ``train#sampler``.
    """
    inside = knob.lstrip("+%").split("#")[:-1]
    found = _inside(content, inside)
    for key, value in content.items():
        names = str(key).lstrip("+%").split("#")
        if len(names) > 1 and inside[: len(names)] == names:
            found += _inside(value, inside[len(names) :])
    return found


def _inside(content: Any, names: Iterable[str]) -> list[Any]:
    """What is found below names of parts; nothing where a part is not there."""
    for name in names:
        if isinstance(content, Mapping) and name in content:
            content = content[name]
        elif isinstance(content, list) and name.isdigit() and int(name) < len(content):
            content = content[int(name)]
        elif isinstance(content, str):  # what an expression stands for is not known before it runs
            return [content]
        else:
            return []
    return [content]


def _arguments(place: Any) -> list[str] | None:
    """What the class or function takes that a config names here; None: anything, or not known."""
    target = place.get("_target_") if isinstance(place, Mapping) else None
    if isinstance(target, str):
        target = locate(str(ConfigComponent(config=dict(place)).resolve_module_name()))
    try:
        arguments = signature(target).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return None
    return list(arguments)


def check_values(knobs: Mapping[str, Any], where: str = "") -> None:
    """Stop at values with which no training begins.

    Args:
        knobs: values by name.
        where: what an error says of where they are, such as `` in plan.yaml``.

    Raises:
        ValueError: a count is no whole number of at least 1.
    """
    for name in ("max_epochs", "batch_size", "slices_per_scan", "val_interval", "sw_batch_size"):
        value = knobs.get(name, 1)
        if _is_expression(value):
            continue
        if type(value) is not int or value < 1:
            raise ValueError(
                f"`{name}` must be a whole number of at least 1, got {value!r}{where}."
            )


def _check_kind(name: str, value: Any, known: Any, where: str = "") -> None:
    """Raise where a config has a number, or several, and the knob has something else."""
    if value is None or _is_expression(value):
        return
    if not _has_numbers(known):
        return
    several = isinstance(value, list) and all(_is_number(x) or _is_expression(x) for x in value)
    if isinstance(known, list) and not several:
        raise ValueError(
            f"`{name}` must be a list of numbers such as {known}, got {value!r}{where}: give "
            "numbers alone, in brackets."
        )
    if not isinstance(known, list) and isinstance(value, str):
        raise ValueError(
            f"`{name}` must be a number such as {known}, got {value!r}{where}: give the "
            "number alone."
        )


def _has_numbers(value: Any) -> bool:
    return all(map(_is_number, value)) if isinstance(value, list) and value else _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_expression(value: Any) -> bool:
    """Whether MONAI evaluates it."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def refuse_given(options: Iterable[str], given: Collection[str]) -> None:
    """Stop at knobs that follow from other arguments.

    Args:
        options: names of knobs that somebody gives.
        given: those that follow.

    Raises:
        ValueError: there is one.
    """
    taken = [name for name in options if name in given]
    if taken:
        raise ValueError(
            "`options` must not have knobs that follow from other arguments, got "
            f"{', '.join(taken)}: give those arguments."
        )
