"""Stages: commands of the bundle whose results are either complete or absent.

A *stage* works in a folder beside its own, which gets the final name when all is there. So whoever
finds a stage's folder finds it whole, and a stage that was interrupted finds what it had done, a
training its checkpoints, when it is run again.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.bundle

from stipple_monai.errors import DatasetError

BUNDLE = Path(__file__).parents[1] / "bundles" / "pancreas_stipple"
"""The bundle in the project's repository."""


def configs_of(bundle: str | Path) -> Path:
    """The folder with the configs of a bundle.

    Raises:
        DatasetError: ``bundle`` is not the folder of the bundle pancreas_stipple.
    """
    configs = Path(bundle).resolve() / "configs"
    if not (configs / "train.yaml").is_file():
        raise DatasetError(
            f"`bundle` must be the folder of the bundle pancreas_stipple, got {bundle}: it is part "
            "of the project's repository, give its path with --bundle."
        )
    return configs


def run_bundle(configs: Path, names: Sequence[str | Path], **knobs: Any) -> None:
    """Run configs of the bundle in this process, as ``python -m monai.bundle run`` would.

    Args:
        configs: the bundle's folder of configs.
        names: the config and its overlays; a name is a file of ``configs`` without ``.yaml``, a
            path is any file.
        **knobs: values that replace those of the configs, also by None.
    """
    # MONAI takes None for "not given".
    given = {name: "$None" if value is None else value for name, value in knobs.items()}
    monai.bundle.run(
        config_file=[str(config_path(configs, name)) for name in names],
        meta_file=str(configs / "metadata.json"),
        **given,
    )


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


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the folder to work in, ``path`` with ``.part`` behind; it becomes ``path`` at the end.

    After an error it stays, so that the work can go on there.

    Raises:
        FileExistsError: ``path`` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"`path` must not exist yet, got {path}: the stage is done.")
    part = path.with_name(f"{path.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    yield part
    part.rename(path)


@contextmanager
def progress_only() -> Iterator[None]:
    """Leave the stages and their progress bars on the screen, without MONAI's log.

    Errors are not logged either: they are raised, and told once.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(monai|torch|ignite)")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
