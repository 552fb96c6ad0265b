"""What a run was made with, so that its weights and scores can be traced back.

A *record* is a JSON file beside the weights or scores: the settings, the seed, versions of the
packages, git revisions, and a *fingerprint* of each list of scans. It has no time and no command:
a run that was interrupted leaves the same. It names no scan: a fingerprint is a checksum of the
files' sizes, beginnings and ends, whatever they are called and wherever they lie. Paths among the
settings are not left out.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from ignite.engine import Engine, Events

from stipple_monai.files import fingerprint, sha256, write_json

PACKAGES = (
    *("stipple-monai", "monai", "torch", "numpy", "scipy", "nibabel", "itk"),
    *("pytorch-ignite", "mlflow", "mlflow-skinny", "pydicom", "highdicom"),
)
_STEPS = ("imports", "initialize", "run", "finalize")


class RunRecord:
    """Write a run's record beside what it leaves: after its first epoch, as it was at the start.

    Args:
        path: the file to write, whole or not at all. A resumed run writes it anew.
        config: settings by their name in the configs; ``$globals().get('__local_refs', {})`` are
            all those that MONAI has resolved when the run starts. Numbers, texts and lists are
            kept, objects by the name of their class; dictionaries, such as items, are left out.
        without: sections of ``config`` that are left out.
        data: lists of items whose scans and labels are fingerprinted, by name.
        weights: checkpoints that are fingerprinted whole, by name.
        seed: of the run.

    Example:
        >>> record = RunRecord("provenance.json", config={"organs": [1], "net": torch.nn.ReLU()})
        >>> record.content()["config"]
        {'net': 'torch.nn.modules.activation.ReLU', 'organs': [1]}
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        without: Sequence[str] = (),
        data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        weights: Mapping[str, str | Path] | None = None,
        seed: int | None = None,
    ) -> None:
        self.path = Path(path)
        # not copied: MONAI resolves further settings until the run starts
        self.config = {} if config is None else config
        self.without = tuple(without)
        self.data, self.weights, self.seed = data or {}, weights or {}, seed
        self._unwritten: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self._begin())
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._write())

    def content(self) -> dict[str, Any]:
        """What the record says."""
        return {
            "seed": self.seed,
            "versions": versions(),
            "git": {
                "package": git_revision(Path(__file__)),
                "working_directory": git_revision(Path.cwd()),
            },
            "data": {name: data_fingerprint(items) for name, items in self.data.items()},
            "weights": {name: sha256(path) for name, path in self.weights.items()},
            "config": self._settings(),
        }

    def parameters(self) -> dict[str, str]:
        """The record but for the settings, in one level, as MLflow takes parameters."""
        content = self.content()
        del content["config"]
        return dict(_flatten(content))

    def _settings(self) -> dict[str, Any]:
        out = {*_STEPS, *self.without}
        found = {}
        for key, value in sorted(self.config.items()):
            parts = key.split("::")
            # an element of a list is told with its list
            told = parts[0] not in out and not any(part.isdigit() for part in parts)
            told = told and parts[-1] not in self.without
            if told and _is_told(value):
                found["#".join(parts)] = _json_value(value)
        return found

    def _begin(self) -> None:
        self._unwritten = self.content()

    def _write(self) -> None:
        if self._unwritten is not None:
            write_json(self.path, self._unwritten)
            self._unwritten = None


def versions() -> dict[str, str | None]:
    """Versions of Python, CUDA and the packages that decide what a run computes.

    Example:
        >>> versions()["torch"] == torch.__version__
        True
    """
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **_installed(PACKAGES)}


@functools.cache
def _installed(packages: tuple[str, ...]) -> Mapping[str, str]:
    """Versions of packages; each is read from a file, and a run asks several times."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_revision(path: Path) -> dict[str, Any] | None:
    """The commit of the repository that a file or folder belongs to.

    Args:
        path: a file, which must be known to git (an installed package may lie in an unrelated
            repository), or a folder.

    Returns:
        ``{"revision": ..., "changed": ...}``, the latter whether known files differ from that
        commit; None without git, outside a repository, or before its first commit.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and _git(folder, "ls-files", "--error-unmatch", path.name) is None:
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "changed": bool(changes)}


def data_fingerprint(
    items: Iterable[Mapping[str, Any]], *, keys: Sequence[str] = ("image", "label")
) -> dict[str, Any]:
    """How many scans there are, and a checksum that another copy of them has as well.

    Args:
        items: of a datalist, in order. A path may be a file, or a folder such as a DICOM series.
        keys: those that hold a path or a list of paths.

    Returns:
        ``{"scans": ..., "sha256": ...}``.

    Raises:
        OSError: a file cannot be read.
    """
    digest, scans = hashlib.sha256(), 0
    for item in items:
        scans += 1
        for key in keys:
            listed = item.get(key, [])
            for path in listed if isinstance(listed, list | tuple) else [listed]:
                digest.update(f"{key}:{fingerprint(path)}".encode())
    return {"scans": scans, "sha256": digest.hexdigest()}


def _is_told(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_told(element) for element in value)
    return not isinstance(value, dict | FunctionType | ModuleType)


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device | torch.dtype | Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_json_value(element) for element in value]
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is absent."""
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
