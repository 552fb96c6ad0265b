"""Stages: commands of the bundle whose results are either complete or absent.

A *stage* works in a folder beside its own, which gets the final name when all is there. So whoever
finds a stage's folder finds it whole, and a stage that was interrupted finds what it had done, a
training its checkpoints, when it is run again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import monai.bundle
import yaml
from filelock import FileLock, Timeout

from stipple_monai.errors import DatasetError
from stipple_monai.files import remove_unfinished
from stipple_monai.ownership import begin_part, end_part
from stipple_monai.parallel import process_peak_mib

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "bundles" / "pancreas_stipple"

BUNDLE = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "bundles" / "pancreas_stipple"
"""The bundle, inside the package where a wheel was installed, in the repository beside it."""

GROWTH_MIB = 256
"""A process that has grown by so much looks for what runs of the bundle have left."""
_peak_mib = 0.0


def configs_of(bundle: str | Path) -> Path:
    """The folder with the configs of a bundle.

    Raises:
        DatasetError: ``bundle`` is not the folder of the bundle pancreas_stipple.
    """
    configs = Path(bundle).resolve() / "configs"
    if not (configs / "train.yaml").is_file():
        raise DatasetError(
            f"`bundle` must be the folder of the bundle pancreas_stipple, got {bundle}: the "
            "package brings one, leave --bundle out or give the path of your copy."
        )
    return configs


def run_bundle(configs: Path, names: Sequence[str | Path], **knobs: Any) -> None:
    """Run configs of the bundle in this process, as ``python -m monai.bundle run`` would.

    Args:
        configs: the bundle's folder of configs.
        names: the config and its overlays; a name is a file of ``configs`` without ``.yaml``, a
            path is any file.
        **knobs: values that replace those of the configs, also by None. Paths stay what they are
            whatever their names; of strings, those that begin with ``$``, ``@`` or ``%`` are in
            MONAI's language.
    """
    # MONAI takes None for "not given".
    given = {k: "$None" if v is None else as_written(v) for k, v in knobs.items()}
    try:
        monai.bundle.run(
            config_file=[str(config_path(configs, name)) for name in names],
            meta_file=str(configs / "metadata.json"),
            **given,
        )
    finally:
        _give_back()


def _give_back() -> None:
    """Free what a run has left, where that is much.

    Engines and configs refer to each other in circles and hold the last scans, a gigabyte of CT, to
    which the next runs of a study would add before Python looks for such circles. To look takes a
    fifth of a second, as long as a whole run of tiny scans.
    """
    global _peak_mib
    if process_peak_mib() > _peak_mib + GROWTH_MIB:
        gc.collect()
        _peak_mib = process_peak_mib()


def as_written(value: Any) -> Any:
    """A value of a config that MONAI does not interpret: an expression of the bytes of a text.

    In MONAI's configs ``#`` and ``::`` separate the names of settings, ``@`` refers to one, ``%``
    to a file and ``$`` begins an expression; as parts of a path they lead elsewhere.

    Args:
        value: a path, or of JSON's types. A string that begins with ``$``, ``@`` or ``%`` is meant
            for MONAI and stays.

    Example:
        >>> as_written("a/b"), as_written("@bundle_root")
        ('a/b', '@bundle_root')
        >>> eval(as_written("/runs#1")[1:])
        '/runs#1'
    """
    if isinstance(value, Mapping):
        return {key: as_written(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_written(element) for element in value]
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not any(sign in text for sign in ("#", "::", "@", "%", "$")):
        return text
    if text.startswith(("$", "@", "%")) and text is value:
        return text
    code = os.fsencode(text).hex()
    return f"$bytes.fromhex('{code}').decode('utf-8', 'surrogateescape')"


def config_path(configs: Path, name: str | Path) -> Path:
    """The file of a config that is given by its name in ``configs`` or by its path.

    Raises:
        DatasetError: there is none.
    """
    known = configs / f"{name}.yaml"
    path = known if known.is_file() else Path(name)
    if not path.is_file():
        raise DatasetError(
            f"Overlays must be names of configs in {configs} or paths of YAML files, got {name}."
        )
    return path.resolve()


def config_digests(configs: Path, names: Iterable[str | Path]) -> dict[str, str]:
    """What changes when the content of a config does, by its name; comments do not count.

    Args:
        configs: the bundle's folder of configs.
        names: as for `run_bundle`.

    Raises:
        DatasetError: a config is missing, or no YAML file with a mapping.
    """
    found = {str(name): _read(config_path(configs, name)) for name in names}
    return {
        name: hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        for name, content in found.items()
    }


def check_knobs(configs: Path, names: Sequence[str | Path], knobs: Iterable[str]) -> None:
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
    for name in names:
        for key, value in _read(config_path(configs, name)).items():
            if key == _first(key) and not _has_numbers(known.get(key)):
                known[key] = value
            known.setdefault(_first(key), None)
    if isinstance(knobs, Mapping):
        check_values(knobs)
        for name, value in knobs.items():
            _check_kind(name, value, known.get(name))
    unknown = sorted(knob for knob in knobs if _first(knob) not in known)
    if unknown:
        meant = get_close_matches(_first(unknown[0]), known, n=1)
        raise ValueError(
            f"Knobs must be in the configs, got {', '.join(unknown)}"
            + (f": did you mean {meant[0]}?" if meant else ".")
        )


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


def _read(path: Path) -> dict[str, Any]:
    """What a config holds."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} must be YAML: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must hold a mapping, got {type(content).__name__}.")
    return content


def _first(knob: str) -> str:
    return knob.lstrip("+%").partition("#")[0].partition("::")[0]


@contextmanager
def whole_folder(path: str | os.PathLike[str], *, made_with: Mapping[str, Any]) -> Iterator[Path]:
    """Give the folder to work in, ``path`` with ``.part`` behind; it becomes ``path`` at the end.

    After an error it stays, so that the work can go on there.

    Args:
        path: of the folder.
        made_with: what tells this work from other work, of JSON's types.

    Raises:
        FileExistsError: ``path`` is there already.
        DatasetError: there is a part of something else.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"`path` must not exist yet, got {path}: the stage is done.")
    part = begin_part(path, made_with)
    yield part
    end_part(part, path)


@contextmanager
def only_process(out: Path) -> Iterator[None]:
    """Keep other processes away from a folder, and remove what a killed one was writing.

    A folder that is refused before anything was written there stays as it was.

    Args:
        out: the folder; made if need be.

    Raises:
        DatasetError: ``out`` is a file, or another process works in it.
    """
    if out.exists() and not out.is_dir():
        raise DatasetError(f"`out` must be a folder, got the file {out}: choose another.")
    lock = out / "logs" / "lock"
    made = [folder for folder in (lock.parent, out) if not folder.exists()]
    there = {lock.parent, *(out.iterdir() if out.exists() else ())}
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        claim = FileLock(lock, blocking=False).acquire()
    except Timeout as error:
        raise DatasetError(
            f"`out` must be a folder in which no other process works, got {out}: wait for it."
        ) from error
    with claim:
        remove_unfinished(out)
        try:
            yield
        except (DatasetError, ValueError):
            if made and set(out.iterdir()) == there:
                _unmake(lock, made)
            raise


def _unmake(lock: Path, folders: Sequence[Path]) -> None:
    """Remove a lock and the folders that were made for it, where they hold nothing else."""
    # Windows keeps a file that is open
    with suppress(OSError):
        if list(lock.parent.iterdir()) == [lock]:
            lock.unlink()
            for folder in folders:
                folder.rmdir()


@contextmanager
def progress_only() -> Iterator[None]:
    """Leave the stages and their progress bars on the screen, without MONAI's and ignite's log.

    An error is not logged either: it is raised as well.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(monai|torch|ignite)")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
