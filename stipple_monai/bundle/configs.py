"""The bundle's configs: where they are, what they hold, and how values are written for MONAI."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from stipple_monai.errors import DatasetError

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "bundles" / "pancreas_stipple"

BUNDLE = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "bundles" / "pancreas_stipple"
"""The bundle, inside the package where a wheel was installed, in the repository beside it."""


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


def read_config(path: Path) -> dict[str, Any]:
    """What a config holds.

    Raises:
        DatasetError: it is no YAML file with a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} must be YAML: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must hold a mapping, got {type(content).__name__}.")
    return content


def merged_configs(
    configs: Path, names: Sequence[str | Path], knobs: Mapping[str, Any]
) -> ConfigParser:
    """Configs one upon the other and knobs on top, as `run_bundle` would run them.

    Args:
        configs: the bundle's folder of configs.
        names: as for `run_bundle`.
        knobs: values by name.
    """
    parser = ConfigParser()
    parser.read_config([str(config_path(configs, name)) for name in names])
    parser.update(as_written(of_parts(knobs, parser.get())))
    return parser


def part_of(knob: str) -> str:
    """The part of a config that a knob is in, such as ``optimizer`` of ``optimizer#lr``."""
    return knob.lstrip("+%").partition("#")[0].partition("::")[0]


def of_parts(knobs: Mapping[str, Any], parts: Container[str]) -> dict[str, Any]:
    """Knobs without those within a part that is not there.

    Such as ``optimizer#lr`` beside inference.yaml: it is another config's, and MONAI would stop.
    """
    return {k: v for k, v in knobs.items() if part_of(k) == k or part_of(k) in parts}


def config_digests(configs: Path, names: Iterable[str | Path]) -> dict[str, str]:
    """What changes when the content of a config does, by its name; comments do not count.

    Args:
        configs: the bundle's folder of configs.
        names: as for `run_bundle`.

    Raises:
        DatasetError: a config is missing, or no YAML file with a mapping.
    """
    found = {str(name): read_config(config_path(configs, name)) for name in names}
    return {
        name: hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        for name, content in found.items()
    }


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
