"""One labelled scan as the reference of positioning, as in section 3.2 of the paper.

The paper's centre is the box centre throughout. Where the priors have another centre, the middle
of one scan's bounding box lies elsewhere (for 16 real pancreases, 1 to 37 mm from the group-wise
centre), and every position found with it would be wrong by as much. So the organ is taken around
the centre that *the prior* has in that scan.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stipple_monai.errors import DatasetError, PositionError
from stipple_monai.positioning.joint import have_offsets
from stipple_monai.positioning.single import measure_position
from stipple_monai.priors import Label, SpatialPrior, organ_position


def random_references(
    labels: Sequence[Label], priors: Sequence[SpatialPrior], *, seed: int
) -> list[SpatialPrior]:
    """Draw a label map and take its organs as the references of a `PriorDrivenInferer`.

    Args:
        labels: label maps or NIfTI files, in an order that does not change between runs.
        priors: one per organ; their ``organ`` and ``center`` say what is taken, around which point.
        seed: of the draw. A map without one of the organs is passed over.

    Returns:
        One per prior, of the map's own slices (a histogram), with their offsets where the priors
        have them.

    Raises:
        DatasetError: no map contains all the organs, or a map cannot be read.

    Example:
        >>> from monai.data import MetaTensor
        >>> label = MetaTensor(torch.zeros(1, 9, 9, 9), affine=torch.eye(4))
        >>> label[0, 2:5, 3:6, 4:7] = 1
        >>> prior = SpatialPrior.estimate([label])
        >>> (reference,) = random_references([label], [prior], seed=0)
        >>> reference.probability.shape
        torch.Size([3, 3, 3])
    """
    for label in random.Random(seed).sample(list(labels), len(labels)):
        try:
            points = [measure_position(label, prior) for prior in priors]
        except PositionError:
            continue
        # measured anew in this scan, of whatever estimation the priors are
        together = have_offsets(priors)
        middle = torch.stack(points).mean(0)
        offsets = [(point - middle).tolist() if together else None for point in points]
        return [_around(label, *each) for each in zip(priors, points, offsets, strict=True)]
    organs = ", ".join(str(prior.organ) for prior in priors)
    raise DatasetError(
        f"`labels` must hold one map or more with all of the organs {organs}, got {len(labels)} "
        "maps without: give another datalist."
    )


def _around(
    label: Label, prior: SpatialPrior, point: torch.Tensor, offset_mm: list[float] | None
) -> SpatialPrior:
    """The organ around ``point``, to a quarter of a voxel.

    A prior's centre is the middle of its array. Half as many voxels as are added at one end move it
    towards that end; nothing is interpolated.
    """
    box = SpatialPrior.estimate([label], organ=prior.organ, smoothing_mm=None)
    shift_mm = organ_position(label, organ=prior.organ) - point
    halves = (2 * shift_mm / torch.tensor(box.spacing_mm)).round().int().tolist()
    pads = [(max(n, 0), max(-n, 0)) for n in reversed(halves)]
    return SpatialPrior(
        F.pad(box.probability, [n for pair in pads for n in pair]),
        spacing_mm=box.spacing_mm,
        organ=prior.organ,
        center=prior.center,
        offset_mm=offset_mm,
    )
