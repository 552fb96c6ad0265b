"""What a run was made with, as far as it was kept, and what made its page."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from stipple_monai.files import sha256
from stipple_monai.handlers import versions
from stipple_monai.report.page import Block, Table, Text


def software() -> dict[str, str]:
    """Names and versions of what this process runs on."""
    found = {name: str(version or "none") for name, version in versions().items()}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"system": platform.platform(), **found, "CUDA device": gpu}


def versions_table() -> Table:
    """The software that makes the page."""
    note = "Of the machine that made this page, which need not be the one that made the results."
    rows = [*map(list, software().items())]
    return Table("Versions", ["software", "version"], rows, note, folded=True)


def settings_blocks(paths: Iterable[Path], *, optional: bool = False) -> list[Block]:
    """A table of each JSON or YAML file of settings that is there; without any, that is said."""
    blocks: list[Block] = []
    for path in paths:
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            blocks.append(Text(f"{path} cannot be read: {error}", "warning"))
            continue
        rows = [[name, value] for name, value in flatten(content)]
        header, title = ["setting", "value"], f"Settings: {path.name}"
        blocks.append(Table(title, header, rows, str(path), folded=True))
    if not blocks and not optional:
        blocks.append(Text("The run kept no settings.", "warning"))
    return blocks


def flatten(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of all values in nested dictionaries.

    Example:
        >>> list(flatten({"a": {"b": 1, "c": [2, 3]}, "d": None}))
        [('a.b', '1'), ('a.c', '[2, 3]'), ('d', 'null')]
    """
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from flatten(value, f"{name}.{key}" if name else str(key))
    else:
        text = content if isinstance(content, str) else json.dumps(content, default=str)
        yield name or "value", text


def file_rows(paths: Iterable[Path]) -> list[list[str]]:
    """Name, size in MiB, time in UTC and the checksum's beginning of each file."""
    rows = []
    for path in paths:
        stat = path.stat()
        changed = datetime.fromtimestamp(stat.st_mtime, tz=timezone.utc)
        digest = sha256(path)
        size = f"{stat.st_size / 2**20:.2f}"
        rows.append([path.name, size, f"{changed:%Y-%m-%d %H:%M:%S}", digest[:16]])
    return rows


FILE_HEADER = ["file", "size (MiB)", "changed (UTC)", "SHA-256, first 16"]
