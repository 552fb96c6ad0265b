"""Weights from files: tensors alone, and an error that names the file."""

from __future__ import annotations

import os
import struct
from pickle import UnpicklingError
from typing import Any

import torch

from stipple_monai.errors import DatasetError

NOT_WEIGHTS = (
    *(RuntimeError, UnpicklingError, OSError, EOFError, struct.error),
    *(KeyError, AttributeError, ValueError, TypeError, IndexError),
)
"""What torch lets through when a file holds no weights, or those of another network."""


def load_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state dict, by itself or under ``model``.

    Raises:
        DatasetError: the file holds none, or something other than tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        return {str(name): value for name, value in state.items()}
    except NOT_WEIGHTS as error:
        raise DatasetError(
            f"{path} must hold weights, as this bundle saves them: {reason(error)}"
        ) from error


def reason(error: BaseException) -> str:
    """What torch said, in some words; it recommends to load what it refuses."""
    if isinstance(error, UnpicklingError):
        return "it holds something other than tensors."
    return " ".join(str(error).split())[:200] or f"{type(error).__name__}."
