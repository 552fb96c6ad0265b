"""What must hold of a prediction and of the options before voxels are chosen."""

from __future__ import annotations

import torch

TOLERANCE = 1e-2
"""Slack of the range and of the sums: overlapping windows and bfloat16 round by up to 4e-3."""


def check_options(
    organs: int,
    *,
    minimum: float,
    background_minimum: float,
    components: int | None,
    ignore: int,
) -> None:
    """Raise ValueError where an option that all rules share is out of its range."""
    for name, value in (("minimum", minimum), ("background_minimum", background_minimum)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be a probability in [0, 1], got {value}.")
    if not organs < ignore <= 255:
        raise ValueError(
            f"`ignore` must lie above the classes and fit uint8, in [{organs + 1}, 255], "
            f"got {ignore}; 255 suits every number of organs."
        )
    if components is not None and components < 1:
        raise ValueError(f"`components` must be at least 1, or None for all, got {components}.")


def check_probability(probability: torch.Tensor) -> None:
    """Raise ValueError unless it is ``(C, *spatial)`` of probabilities."""
    maps = 2 <= probability.ndim <= 4 and probability.is_floating_point()
    if not maps or probability.numel() == 0:
        raise ValueError(
            "`probability` must be a non-empty floating-point (C, *spatial), got "
            f"{probability.dtype} {tuple(probability.shape)}; pass a batch one by one."
        )
    if probability.shape[0] > 255:
        raise ValueError(
            "`probability` must have at most 255 channels (labels are uint8 and one value is "
            f"`ignore`), got {probability.shape[0]}."
        )
    low, high = (float(extreme) for extreme in probability.aminmax())
    # Written so that NaN, which aminmax propagates, fails too.
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise ValueError(
            f"`probability` must lie in [0, 1], got [{low:g}, {high:g}]; apply softmax or "
            "sigmoid to logits first."
        )
    if probability.shape[0] > 1:
        total = probability[0].to(torch.promote_types(probability.dtype, torch.float32), copy=True)
        for channel in probability[1:]:
            total += channel
        low, high = (float(extreme) for extreme in total.aminmax())
        if not (low >= 1 - TOLERANCE and high <= 1 + TOLERANCE):
            raise ValueError(
                "`probability` must sum to 1 over its channels, background included, got sums "
                f"in [{low:g}, {high:g}]; sigmoid outputs go in one organ at a time, and an "
                "inverse transform that pads with 0 comes after this."
            )
