"""Knobs: which the configs have, and which values they may get."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent

from stipple_monai.bundle.configs import config_path, part_of, read_config


def check_knobs(configs: Path, names: Sequence[str | Path], knobs: Collection[str]) -> None:
    """Stop at a knob that none of the configs has: MONAI would take it and change nothing.

    Args:
        configs: the bundle's folder of configs.
        names: as for `run_bundle`.
        knobs: such as ``max_epochs`` or ``optimizer#weight_decay``.

    Raises:
        DatasetError: a config is missing, or no YAML file with a mapping.
        ValueError: a knob is unknown, or text where the configs have numbers.
    """
    known: dict[str, Any] = {}
    contents = [read_config(config_path(configs, name)) for name in names]
    for content in contents:
        for key, value in content.items():
            if key == part_of(key) and not _has_numbers(known.get(key)):
                known[key] = value
            known.setdefault(part_of(key), None)
    if isinstance(knobs, Mapping):
        check_values(knobs)
        for name, value in knobs.items():
            _check_kind(name, value, known.get(name))
    unknown = sorted(knob for knob in knobs if part_of(knob) not in known)
    if unknown:
        meant = get_close_matches(part_of(unknown[0]), known, n=1)
        raise ValueError(
            f"Knobs must be in the configs, got {', '.join(unknown)}"
            + (f": did you mean {meant[0]}?" if meant else ".")
        )
    for knob in knobs:
        _check_place(knob, contents, knobs)


def _check_place(knob: str, contents: Iterable[Any], knobs: Container[str]) -> None:
    """Raise where no config has what a knob is a value of, or that takes no such value."""
    inside, _, name = knob.lstrip("+%").rpartition("#")
    places = [place for content in contents for place in _places(content, knob)]
    if not places:
        raise ValueError(f"Knobs must be in the configs, got {knob}: there is no {inside} in them.")
    if name.startswith("_") or f"{inside}#_target_" in knobs:
        return
    taken = [_arguments(place) for place in places]
    if all(names is not None and name not in names for names in taken):
        raise ValueError(
            f"Knobs must be in the configs, got {knob}: {places[0]['_target_']} has no argument "
            f"{name}, but {', '.join(taken[0] or ())}."
        )


def _places(content: Any, knob: str) -> list[Any]:
    """What a knob is a value of, in a config that has it; its last name may be new."""
    for name in knob.lstrip("+%").split("#")[:-1]:
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


def check_values(knobs: Mapping[str, Any]) -> None:
    """Stop at values with which no training begins.

    Raises:
        ValueError: a count is no whole number of at least 1.
    """
    for name in ("max_epochs", "batch_size", "slices_per_scan", "val_interval", "sw_batch_size"):
        value = knobs.get(name, 1)
        if _is_expression(value):
            continue
        if type(value) is not int or value < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


def _check_kind(name: str, value: Any, known: Any) -> None:
    """Raise where a config has a number, or several, and the knob has something else."""
    if value is None or _is_expression(value):
        return
    if not _has_numbers(known):
        return
    several = isinstance(value, list) and all(_is_number(x) or _is_expression(x) for x in value)
    if isinstance(known, list) and not several:
        raise ValueError(
            f"`{name}` must be a list of numbers such as {known}, got {value!r}: give numbers "
            "alone, in brackets."
        )
    if not isinstance(known, list) and isinstance(value, str):
        raise ValueError(
            f"`{name}` must be a number such as {known}, got {value!r}: give the number alone."
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
