"""The rule by which every reader takes label values: whole numbers, or nearly so.

A label map that was kept as floating point has 0.99999994 for 1; one that was interpolated has
fractions, which are no labels. The first is rounded, the second refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stipple_monai.errors import DatasetError

NEARLY = 1e-3
"""How far a label value may lie from a whole number."""

IGNORED = 255
"""Value of voxels of which a label map knows nothing: they are neither learnt nor scored."""


def whole_labels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Round the values of a label map that are whole but for rounding.

    Args:
        array: of any shape; that of whole numbers is given back as it is.
        name: its file, for the message.

    Returns:
        Whole numbers, in the type of ``array``.

    Raises:
        DatasetError: a value is not finite, or farther than 1e-3 from a whole number.

    Example:
        >>> whole_labels(np.array([0, 1.9999999]), "a.nii.gz").tolist()
        [0.0, 2.0]
    """
    if array.dtype.kind in "bui":
        return array
    rounded = np.rint(array)
    # NaN and infinity fail the comparison
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(array - rounded) <= NEARLY)
    if wrong.any():
        first = array[wrong].ravel()[0].item()
        raise DatasetError(
            f"`label` must have whole numbers, got {first!r} and {int(wrong.sum()) - 1} other such "
            f"voxels in {name}: an interpolated map is no label; resample it with the nearest "
            "neighbour."
        )
    return rounded


def whole_tensor(values: torch.Tensor, name: str) -> torch.Tensor:
    """Round the values of a label map as :func:`whole_labels` does, on whatever device.

    Args:
        values: of any shape; those that are whole are given back as they are.
        name: its file, for the message.

    Returns:
        Whole numbers, in the type of ``values``.

    Raises:
        DatasetError: see :func:`whole_labels`.
    """
    if not values.is_floating_point() or torch.equal(values, values.round()):
        return values
    # a type that numpy has not
    plain = values.float() if values.dtype == torch.bfloat16 else values
    return torch.from_numpy(whole_labels(plain.detach().cpu().numpy(), name)).to(values)
