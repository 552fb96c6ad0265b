"""Several networks as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MeanLogits"]


class MeanLogits(nn.Module):
    """The mean of what several networks say of the same input; it costs a pass through each.

    As the backbone of a :class:`PriorDrivenNet` it is located and fused as one network.

    Args:
        networks: each gives logits of the same shape.

    Raises:
        ValueError: there is none.

    Example:
        >>> both = MeanLogits([nn.Identity(), nn.Hardtanh()])
        >>> both(torch.tensor([3.0]))
        tensor([2.])
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("`networks` must hold at least one network, got none.")
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Logits of the shape that each network gives."""
        return torch.stack([n(inputs, *args, **kwargs) for n in self.networks]).mean(0)
