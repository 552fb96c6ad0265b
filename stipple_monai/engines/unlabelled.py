"""Which slices of a batch are unlabelled: those whose label is the ignored value throughout."""

from __future__ import annotations

from torch import Tensor

from stipple_monai.label_values import IGNORED

__all__ = ["unlabelled_slices"]


def unlabelled_slices(label: Tensor, *, ignore_index: int = IGNORED) -> Tensor:
    """Find the unlabelled slices of a batch.

    Args:
        label: ``(B, 1, *spatial)`` of classes and ``ignore_index``.
        ignore_index: label of ignored voxels.

    Returns:
        Bool, ``(B,)``.

    Raises:
        ValueError: there are none.

    Example:
        >>> import torch
        >>> unlabelled_slices(torch.tensor([[[0, 255]], [[255, 255]]]))
        tensor([False,  True])
    """
    found = (label == ignore_index).flatten(1).all(1)
    if not bool(found.any()):
        raise ValueError(
            f"Batches must have slices labelled {ignore_index} throughout, got none: "
            "add the unlabelled scans with configs/unlabelled.yaml."
        )
    return found
