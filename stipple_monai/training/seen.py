"""Which scans a folder of weights has learnt from, by the record of its run."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stipple_monai.ownership import begun_with

SETTINGS = "settings.json"
"""What a run, or all rounds of a self-training, were begun with."""
LEARNT = ("training", "validation")
"""Sections of whose scans a network has seen the labels; the second chooses its best epoch."""


def scans_seen(folder: Path) -> set[str]:
    """Real paths of the scans that weights were trained or chosen by.

    Of a later round of self-training also those that had pseudo-labels, in ``unlabelled``.

    Args:
        folder: of the weights: a run's, or ``round_…/models`` of a self-training. One that keeps
            no record, such as published weights, has none.
    """
    number = re.fullmatch(r"round_(\d+)", folder.parent.name)
    place = folder.parents[1] if number and folder.name == "models" else folder
    sections = [*LEARNT, *["unlabelled"] * bool(number and int(number[1]))]
    # the folder may keep a file of another kind, or of another version
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, SyntaxError):
        scans: Mapping[str, Any] = (begun_with(place / SETTINGS) or {})["scans"]
        listed = [
            file for name in sections for text in scans.get(name, []) for file in _files(text)
        ]
        return {os.path.realpath(file) for file in listed}
    return set()


def _files(text: str) -> Iterator[str]:
    """The files of a scan as the record has it: a path, or the text of a list of paths.

    Example:
        >>> [*_files("/a/ct.nii.gz"), *_files("['/b_0000.nii.gz', '/b_0001.nii.gz']")]
        ['/a/ct.nii.gz', '/b_0000.nii.gz', '/b_0001.nii.gz']
    """
    yield from ast.literal_eval(text) if text.startswith("[") else [text]
