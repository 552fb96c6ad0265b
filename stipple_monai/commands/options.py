"""What the options of several commands have in common: their parsers, and pairs ``A=B``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from stipple_monai.bundle import BUNDLE

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command adds its parser to."""


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add ``--bundle``, the folder of the bundle."""
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")


def add_knobs(parser: argparse.ArgumentParser, text: str = "of the configs") -> None:
    """Add ``--set``, to be read by :func:`read_knobs`."""
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE", help=text)


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels``, to be read by :func:`read_names`."""
    parser.add_argument("--labels", nargs="*", default=[], metavar="VALUE=NAME", help="1=pancreas")


def read_knobs(texts: Sequence[str]) -> dict[str, Any]:
    """Values of knobs, read as YAML.

    Raises:
        ValueError: a text has no ``=``.

    Example:
        >>> read_knobs(["max_epochs=5", "device=cpu"])
        {'max_epochs': 5, 'device': 'cpu'}
    """
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ValueError(f"Settings must look like KNOB=VALUE, got {', '.join(wrong)}.")
    parted = (text.partition("=") for text in texts)
    return {name: yaml.safe_load(value) for name, _, value in parted}


def read_names(texts: Sequence[str], option: str = "--labels") -> dict[int, str]:
    """Names of label values.

    Raises:
        ValueError: a text is no pair, or its value no label.

    Example:
        >>> read_names(["1=pancreas", "2=left kidney"])
        {1: 'pancreas', 2: 'left kidney'}
    """
    return {read_label(value, option): name for value, name in read_pairs(texts)}


def read_pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """What stands before and behind the first ``=``.

    Raises:
        ValueError: there is nothing.
    """
    wrong = [text for text in texts if not all(text.partition("="))]
    if wrong:
        raise ValueError(f"Pairs must look like A=B, got {wrong[0]}.")
    return [(left, right) for left, _, right in (text.partition("=") for text in texts)]


def read_label(text: str, option: str) -> int:
    """A label value.

    Raises:
        ValueError: it is none that a label map of bytes can hold.
    """
    if not (text.isascii() and text.isdecimal()) or int(text) > 255:
        raise ValueError(f"`{option}` must have labels from 0 to 255, got {text}.")
    return int(text)
