"""How far a scan reaches, whatever part of it is at hand.

Crops and pads change the grid of an image, not the scan: how high above an organ the scan begins is
the scanner's work, and how high a crop or a pad begins is a transform's.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray


class Extent(NamedTuple):
    """The grid of a scan.

    Attributes:
        affine: ``(4, 4)`` float64, voxel to RAS mm.
        shape: ``(W, H, D)``, voxels.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, ...]


def scan_extent(image: MetaTensor) -> Extent:
    """The grid of the file that an image was read from; its own where that is not known.

    MONAI's readers note ``original_affine`` and ``spatial_shape``, which crops, pads, flips and
    resampling leave as they are. Notes that do not fit the image do not count: those of a reader
    that was asked for the closest canonical axes, whose shape is of other axes than its affine,
    and those of a scan that lies elsewhere.

    Args:
        image: ``(C, W, H, D)`` or ``(W, H, D)``.

    Example:
        >>> import torch
        >>> from monai.transforms import SpatialPad
        >>> image = MetaTensor(torch.ones(1, 4, 4, 4), affine=torch.eye(4))
        >>> padded = SpatialPad((4, 4, 10))(image)
        >>> scan_extent(padded).shape
        (4, 4, 10)
        >>> image.meta.update(original_affine=image.affine, spatial_shape=(4, 4, 4))
        >>> scan_extent(SpatialPad((4, 4, 10))(image)).shape
        (4, 4, 4)
    """
    own = Extent(image.affine.cpu().numpy().astype(np.float64), tuple(image.shape[-3:]))
    affine, shape = (image.meta.get(key) for key in ("original_affine", "spatial_shape"))
    if affine is None or shape is None or image.meta.get("as_closest_canonical"):
        return own
    affine, shape = (torch.as_tensor(value).cpu() for value in (affine, shape))
    noted = Extent(affine.numpy().astype(np.float64), tuple(shape.tolist()))
    fits = noted.affine.shape == (4, 4) and len(noted.shape) == 3
    return noted if fits and _meet(noted, own) else own


def top_middle(extent: Extent) -> NDArray[np.float64]:
    """The middle of a grid's top, the highest plane through middles of voxels, ``(3,)`` RAS mm.

    Example:
        >>> top_middle(Extent(np.diag([-2.0, 2, 5, 1]), (11, 11, 7))).tolist()
        [-10.0, 10.0, 30.0]
    """
    low, high = _corners(extent)
    return np.array([*(low[:2] + high[:2]) / 2, high[2]])


def _corners(extent: Extent) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and greatest coordinates of the middles of voxels."""
    ends = np.array(list(product(*((0, n - 1) for n in extent.shape))))
    corners = ends @ extent.affine[:3, :3].T + extent.affine[:3, 3]
    return corners.min(0), corners.max(0)


def _meet(a: Extent, b: Extent) -> bool:
    (low, high), (other_low, other_high) = _corners(a), _corners(b)
    return bool((low <= other_high).all() and (other_low <= high).all())
