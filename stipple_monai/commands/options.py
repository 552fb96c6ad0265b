"""What the options of several commands have in common: their parsers, and pairs ``A=B``."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from stipple_monai.bundle import BUNDLE

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command adds its parser to."""


class UsageError(ValueError):
    """A command line cannot be parsed."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others of the command line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and ending."""
        raise UsageError(f"{self.prog}: {message} (--help shows what there is)")


def whole_number(text: str) -> int:
    """A number that is 0 or more, as type of an option.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 999999999, got {text}")
    return int(text)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add ``--bundle``, the folder of the bundle."""
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, the folder of a command that goes on in a begun one."""
    told = "folder of the results; what was begun there goes on"
    parser.add_argument("--out", type=Path, required=True, help=told)


def add_overlays(parser: argparse.ArgumentParser) -> None:
    """Add ``--overlays`` on every config, and those on training and on inference alone."""
    for name in ("overlays", "train-overlays", "infer-overlays"):
        parser.add_argument(f"--{name}", nargs="*", default=[], help="names or paths of configs")


def add_knobs(parser: argparse.ArgumentParser, text: str = "of the configs") -> None:
    """Add ``--set``, to be read by :func:`read_knobs`."""
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE", help=text)


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels``, to be read by :func:`read_names`."""
    parser.add_argument("--labels", nargs="*", default=[], metavar="VALUE=NAME", help="1=pancreas")


def read_knobs(texts: Sequence[str]) -> dict[str, Any]:
    """Values of knobs: JSON, lists and mappings in brackets also as YAML, or else text.

    Raises:
        ValueError: a text has no ``=``, or its value is a word that YAML takes for true or false.

    Example:
        >>> read_knobs(["max_epochs=5", "learning_rate=1e-4", "device=cpu", "name=a: b"])
        {'max_epochs': 5, 'learning_rate': 0.0001, 'device': 'cpu', 'name': 'a: b'}
    """
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ValueError(
            f"`--set` must be pairs KNOB=VALUE, got {', '.join(wrong)}: write such as max_epochs=5."
        )
    parted = (text.partition("=") for text in texts)
    return {name: _value(value.strip(), name) for name, _, value in parted}


def _value(text: str, name: str) -> Any:
    """A value as it is written; 007 and 2020-01-01 are no numbers and dates."""
    if text.lower() in ("yes", "no", "on", "off", "y", "n"):
        raise ValueError(
            f"`{name}` must be true or false, a number or text, got {text}: put it in quotes if "
            "the word is meant."
        )
    if text.lower() in ("", "true", "false"):
        return {"": None, "true": True, "false": False}[text.lower()]
    try:
        if text[0] in "[{":
            return yaml.safe_load(text)
        value = json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return float(text) if re.fullmatch(r"[+-]?(0?|[1-9]\d*)\.\d*|[+][1-9]\d*", text) else text
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {text}.")
    return value


def read_names(texts: Sequence[str], option: str = "--labels") -> dict[int, str]:
    """Names of label values.

    Raises:
        ValueError: a text is no pair, or its value no label.

    Example:
        >>> read_names(["1=pancreas", "2=left kidney"])
        {1: 'pancreas', 2: 'left kidney'}
    """
    pairs = read_pairs(texts, option, "1=pancreas")
    return {read_label(value, option): name for value, name in pairs}


def read_pairs(texts: Sequence[str], option: str, example: str) -> list[tuple[str, str]]:
    """What stands before and behind the first ``=``.

    Args:
        texts: the pairs.
        option: that has them.
        example: of a pair, for an error.

    Raises:
        ValueError: there is nothing.
    """
    wrong = [text for text in texts if not all(text.partition("="))]
    if wrong:
        raise ValueError(f"`{option}` must be pairs such as {example}, got {wrong[0]}.")
    return [(left, right) for left, _, right in (text.partition("=") for text in texts)]


def read_label(text: str, option: str) -> int:
    """A label value.

    Raises:
        ValueError: it is none that a label map of bytes can hold.
    """
    if not (text.isascii() and text.isdecimal()) or int(text) > 255:
        raise ValueError(f"`{option}` must have labels from 0 to 255, got {text}.")
    return int(text)
