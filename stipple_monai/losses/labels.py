"""Labels checked in every training step, without waiting for a GPU in every step.

To raise an error the processor must know what the GPU found, and while it waits it queues no work.
Labels on the CPU are checked at once. Labels on a GPU are collected there, and looked at after the
calls 1, 2, 4, … and from then on every 64 calls; until then a value that is no class counts as
ignored, so that it stops no kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stipple_monai.errors import DatasetError

SELDOM = 64


class LabelCheck:
    """Find labels that are neither a class nor ignored.

    Args:
        ignore_index: label of ignored voxels.
        name: what it is, for the error.

    Example:
        >>> LabelCheck(255, name="`label`")(torch.tensor([0.0, 1.0, 255.0]), highest=1)
        tensor([  0,   1, 255])
    """

    def __init__(self, ignore_index: int, *, name: str) -> None:
        self.ignore_index = ignore_index
        self.name = name
        self._calls = 0
        self._worst: Tensor | None = None

    def __call__(self, label: Tensor, *, highest: int) -> Tensor:
        """Check a label map of classes 0 to ``highest``.

        Args:
            label: of any shape and integer or float dtype.
            highest: class.

        Returns:
            The label as int64, what is no class as `ignore_index`. Inside ``torch.compile`` nothing
            is checked.

        Raises:
            DatasetError: there is another value, in this label or in one since the last look.
        """
        classes = label.detach().long()
        valid = ((classes >= 0) & (classes <= highest)) | (classes == self.ignore_index)
        valid &= classes == label
        if not torch.compiler.is_compiling():
            self._check_worst(torch.where(valid, -math.inf, label.detach().float()), highest)
        return torch.where(valid, classes, self.ignore_index)

    def _check_worst(self, invalid: Tensor, highest: int) -> None:
        if invalid.numel() == 0:
            return
        worst = invalid.amax()
        if self._worst is not None:
            worst = torch.maximum(worst, self._worst.to(worst.device))
        self._calls += 1
        if not self.looks_now(worst.device):
            self._worst = worst
            return
        self._worst = None
        found = float(worst)
        if found != -math.inf:
            raise DatasetError(
                f"{self.name} must hold classes 0 to {highest} or {self.ignore_index} (ignored), "
                f"got {found:g}; check the label's organ numbers, and that it was resampled with "
                "nearest-neighbour interpolation."
            )

    def looks_now(self, device: torch.device) -> bool:
        """Whether to wait for what was found on a device."""
        n = self._calls
        return device.type == "cpu" or n % SELDOM == 0 or (n < SELDOM and n & (n - 1) == 0)
