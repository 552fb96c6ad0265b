"""Which positions are certain enough that a prior is placed there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from stipple_monai.positioning import Located, positioned_together
from stipple_monai.priors import SpatialPrior

MINIMUM_CONFIDENCE_ALONE = 0.51
MINIMUM_CONFIDENCE_HELPED = 0.2
"""Below these, positions were wrong so often that no prior was better, see `docs/results.md`."""


def least_confidence(
    references: Sequence[SpatialPrior],
    position: str = "kl",
    max_shift_mm: float | None = None,
    *,
    scan_vote: bool = True,
) -> float:
    """What is certain enough for organs that others or the scan help to locate, or nothing.

    Raises:
        PositionError: organs that are located together are of several estimations.
    """
    alone = position == "prediction_center" or max_shift_mm is not None
    scan = scan_vote and all(r.from_top_mm is not None for r in references)
    helped = not alone and (positioned_together(references) or scan)
    return MINIMUM_CONFIDENCE_HELPED if helped else MINIMUM_CONFIDENCE_ALONE


def silence(
    found: Sequence[Located], priors: Sequence[SpatialPrior], least: float, names: Sequence[str]
) -> None:
    """Take uncertain positions away, in place, with a warning for each organ that has none.

    And warn of a scan whose extent chose another place than the prediction.
    """
    for located, name in zip(found, names, strict=True):
        if located.scan_chose:
            warnings.warn(
                f"The network's output for {name} fits best far from the height at which the "
                "labelled scans have these organs. They were placed at that height: look at the "
                "result. With `scan_vote` False they are placed where the output fits best.",
                stacklevel=5,
            )
        for k, confidence in enumerate(located.confidence.tolist()):
            if located.position_mm[k].isnan().any():
                reason = "is predicted nowhere"
            elif confidence < least:
                located.position_mm[k] = torch.nan
                reason = f"has no certain position ({confidence:.2f})"
            else:
                continue
            warnings.warn(
                f"Organ {priors[k].organ} {reason} in {name}: its prior stays neutral.",
                stacklevel=5,
            )
