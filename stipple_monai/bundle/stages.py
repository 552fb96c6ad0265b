"""Stages: commands of the bundle whose results are either complete or absent.

A *stage* works in a folder beside its own, which gets the final name when all is there. So whoever
finds a stage's folder finds it whole, and a stage that was interrupted finds what it had done, a
training its checkpoints, when it is run again.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import monai.bundle
from filelock import FileLock, Timeout

from stipple_monai.bundle.configs import (
    as_written,
    config_path,
    of_parts,
    part_of,
    read_config,
)
from stipple_monai.errors import DatasetError
from stipple_monai.files import remove_unfinished
from stipple_monai.memory import process_peak_mib
from stipple_monai.ownership import begin_part, end_part

GROWTH_MIB = 256
"""A process that has grown by so much looks for what runs of the bundle have left."""
_peak_mib = 0.0


def run_bundle(configs: Path, names: Sequence[str | Path], **knobs: Any) -> None:
    """Run configs of the bundle in this process, as ``python -m monai.bundle run`` would.

    Args:
        configs: the bundle's folder of configs.
        names: the config and its overlays; a name is a file of ``configs`` without ``.yaml``, a
            path is any file.
        **knobs: values that replace those of the configs, also by None. Paths stay what they are
            whatever their names; of strings, those that begin with ``$``, ``@`` or ``%`` are in
            MONAI's language. Those within a part that these configs have not are left out.
    """
    parts = {part_of(key) for name in names for key in read_config(config_path(configs, name))}
    # MONAI takes None for "not given".
    given = {k: "$None" if v is None else as_written(v) for k, v in of_parts(knobs, parts).items()}
    try:
        monai.bundle.run(
            config_file=[str(config_path(configs, name)) for name in names],
            meta_file=str(configs / "metadata.json"),
            **given,
        )
    finally:
        _free_memory()


def _free_memory() -> None:
    """Free what a run has left, where that is much.

    Engines and configs refer to each other in circles and hold the last scans, a gigabyte of CT, to
    which the next runs of a study would add before Python looks for such circles. To look takes a
    fifth of a second, as long as a whole run of tiny scans.
    """
    global _peak_mib
    if process_peak_mib() > _peak_mib + GROWTH_MIB:
        gc.collect()
        _peak_mib = process_peak_mib()


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


def remove_checkpoints(models: Path) -> None:
    """Remove what an interrupted training goes on from, where the training is whole."""
    for checkpoint in models.glob("checkpoint_*.pt"):
        checkpoint.unlink()


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
                _remove_lock(lock, made)
            raise


def _remove_lock(lock: Path, folders: Sequence[Path]) -> None:
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
