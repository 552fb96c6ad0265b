"""Label maps of calibrated probabilities, as array and dictionary transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type

from stipple_monai.calibration import CAUTION, decide
from stipple_monai.errors import DatasetError
from stipple_monai.networks import Calibration

_TORCH = [TransformBackends.TORCH]

_SLACK = 0.02
"""Of sums over channels: bfloat16 rounds."""


class DecideLabel(Transform):
    """Make a label map of calibrated probabilities.

    Args:
        rule: ``"argmax"``, the class of the highest probability; ``"dice"``, the map of the highest
            expected Dice; or ``"fitted"``, with the thresholds of the calibration, see
            :func:`~stipple_monai.calibration.decide`.
        thresholds: for ``"fitted"``, one for each organ, or the calibration that has them. For
            ``"dice"``, a calibration that was fitted says that the probabilities are calibrated;
            else the thresholds are those of the expected Dice times
            :data:`~stipple_monai.calibration.CAUTION`, at most ½. A word for the numbers of an
            inferer that has none of its own, ``"constants"`` or ``"equation_2"``, is as None.

    Raises:
        ValueError: ``rule`` is unknown, or ``"fitted"`` has no thresholds.
    """

    backend = _TORCH

    def __init__(
        self,
        rule: Literal["argmax", "dice", "fitted"] = "argmax",
        *,
        thresholds: Calibration | Sequence[float] | str | None = None,
    ) -> None:
        if rule not in ("argmax", "dice", "fitted"):
            raise ValueError(f"`rule` must be 'argmax', 'dice' or 'fitted', got {rule!r}.")
        self.rule = rule
        found = thresholds.thresholds if isinstance(thresholds, Calibration) else thresholds
        if rule == "fitted" and (found is None or isinstance(found, str)):
            raise ValueError(
                f"`thresholds` must be given for the rule 'fitted', got {found!r}: fit a "
                "calibration, or choose another rule."
            )
        self.thresholds = None if rule != "fitted" or isinstance(found, str) else found
        fitted = isinstance(thresholds, Calibration) and thresholds.fitted
        self.caution = 1.0 if fitted else CAUTION

    def __call__(self, probability: NdarrayOrTensor) -> NdarrayOrTensor:
        """Decide ``(C, *spatial)``, background first, or ``(1, *spatial)`` of one organ.

        Returns uint8 ``(1, *spatial)`` of the same type.

        Raises:
            DatasetError: ``probability`` has a batch's axis in front of its channels, NaN or
                infinity, or is of several organs and does not sum to 1.
        """
        p = torch.as_tensor(probability)
        if p.ndim > 4:
            raise DatasetError(
                "`probability` must be of one scan, C W H D, got the shape "
                f"{tuple(p.shape)}: decide the scans of a batch one by one, `probability[0]` or "
                "after `decollate_batch`."
            )
        if not bool(torch.isfinite(p).all()):
            raise DatasetError(
                "`probability` must be finite, got NaN or infinity: look for them in the scan and "
                "the weights."
            )
        _check_sums(p)
        if self.rule != "argmax":
            label = decide(p, self.thresholds, caution=self.caution)
        elif len(p) == 1:
            label = p > 0.5
        else:
            label = p.argmax(0, keepdim=True)
        return convert_to_dst_type(label, probability, dtype=torch.uint8)[0]


def _check_sums(p: torch.Tensor) -> None:
    """A sigmoid's outputs have no background in front: the first organ would be taken for it."""
    if len(p) == 1:
        return
    some = (slice(None), *[slice(None, None, 4)] * (p.ndim - 1))
    seen = p.detach().as_subclass(torch.Tensor)[some].float()
    low, high = seen.aminmax()
    if low < 0 or high > 1 + _SLACK:
        return  # logits: argmax may have them, the other rules refuse them
    total = seen.sum(0)
    # An inverse transform pads with 0, and mixes that into the voxels beside it.
    total = total[total > 0]
    if 2 * int(((total - 1).abs() > _SLACK).sum()) > len(total):
        raise DatasetError(
            "`probability` must sum to 1 over its channels, background first, got "
            f"{float(total.median()):.3g} in the median voxel: decide a sigmoid's outputs one "
            "organ at a time, `probability[k : k + 1]`."
        )


class DecideLabeld(MapTransform):
    """Dictionary form of :class:`DecideLabel`; the label map replaces the probabilities.

    Args:
        keys: probabilities.
        rule: as in :class:`DecideLabel`.
        thresholds: likewise.
        allow_missing_keys: do nothing for a missing prediction.
    """

    backend = DecideLabel.backend

    def __init__(
        self,
        keys: KeysCollection,
        rule: Literal["argmax", "dice", "fitted"] = "argmax",
        *,
        thresholds: Calibration | Sequence[float] | str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.decide = DecideLabel(rule, thresholds=thresholds)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decide in a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.decide(d[key])
        return d


DecideLabelD = DecideLabelDict = DecideLabeld
