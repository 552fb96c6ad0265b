"""Dictionary forms of the transforms, as MONAI pipelines use them."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import TransformBackends, ensure_tuple

from stipple_monai.errors import PriorError
from stipple_monai.label_values import IGNORED
from stipple_monai.priors import Mode, SpatialPrior
from stipple_monai.transforms.array import (
    OrganPosition,
    OwnCases,
    PriorAlign,
    PriorAugment,
    SelectPseudoLabels,
    as_positions,
)

POSITION_KEY = "organ_position"
"""Key of the positions. It must not begin with another key and ``_``: ``Spacingd`` trips on it."""

CASES_KEY = "own_cases"
"""Key of the cases that are left out of the priors in their own scan."""

_TORCH = [TransformBackends.TORCH]


class OrganPositiond(MapTransform):
    """Dictionary form of :class:`OrganPosition`.

    Args:
        keys: the whole label map.
        priors: as in :class:`OrganPosition`.
        position_key: where the positions go. An item that has them already (a datalist may give
            them) keeps them.
        allow_missing_keys: do nothing for a missing label.
        leave_one_out: as in :class:`OrganPosition`; :class:`PriorAlignd` then leaves the same
            cases out.
        case_key: where these cases go, see :class:`OwnCases`: a byte for each label and organ.
    """

    backend = OrganPosition.backend

    def __init__(
        self,
        keys: KeysCollection,
        priors: Sequence[SpatialPrior],
        position_key: str = POSITION_KEY,
        allow_missing_keys: bool = False,
        *,
        leave_one_out: bool = False,
        case_key: str = CASES_KEY,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.measure = OrganPosition(priors)
        self.find = OwnCases(priors) if leave_one_out else None
        self.position_key, self.case_key = position_key, case_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the positions to a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            if self.find is not None:
                d[self.case_key] = self.find(d[key])
            if self.position_key in d:
                d[self.position_key] = as_positions(d[self.position_key])
            else:
                own = None if self.find is None else d[self.case_key]
                d[self.position_key] = self.measure(d[key], own)
        return d


class PriorAlignd(MapTransform):
    """Dictionary form of :class:`PriorAlign`.

    Args:
        keys: the image, or images, on whose grid the priors are placed.
        priors, mode, activation: as in :class:`PriorAlign`.
        position_key: positions that :class:`OrganPositiond`, a datalist or a locator gave.
        prior_key: where the priors go, one name per image.
        label_key: where ``position_key`` is missing, measure this label; right only while it
            is whole: after a crop there is a warning. Without either, the prior is neutral, with a
            warning.
        leave_one_out: in a scan that a prior was made of, place the prior of the other scans, so
            that a network is not taught to lean on its own label; with no other, a neutral prior.
            The cases come from :class:`OrganPositiond` with the same argument; where
            ``position_key`` is missing, from ``label_key``.
        case_key: where they are.
        allow_missing_keys: do nothing for a missing image.
    """

    backend = PriorAlign.backend

    def __init__(
        self,
        keys: KeysCollection,
        priors: Sequence[SpatialPrior],
        *,
        mode: Mode = "auto",
        activation: Literal["softmax", "sigmoid"] = "softmax",
        position_key: str = POSITION_KEY,
        prior_key: KeysCollection = "prior",
        label_key: str | None = "label",
        leave_one_out: bool = False,
        case_key: str = CASES_KEY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.align = PriorAlign(priors, mode=mode, activation=activation)
        self.measure = OrganPosition(priors)
        self.find = OwnCases(priors) if leave_one_out else None
        self.case_key = case_key
        self.position_key = position_key
        self.prior_key = ensure_tuple(prior_key)
        self.label_key = label_key
        if len(self.prior_key) != len(self.keys):
            raise PriorError(
                f"`prior_key` must name a key for each of {self.keys}, got {self.prior_key}."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the placed priors to a copy of ``data``."""
        d = dict(data)
        keys = list(self.key_iterator(d, self.prior_key))
        if not keys:
            return d
        positions, left_out = self._positions(d)
        for key, prior_key in keys:
            d[prior_key] = self.align(d[key], positions, left_out)
        return d

    def _positions(self, d: Mapping[Hashable, Any]) -> tuple[Any, Any]:
        """Positions, and the cases that are left out."""
        measured = self.position_key not in d
        label = d.get(self.label_key) if self.label_key is not None else None
        left_out = None
        if self.find is not None:
            left_out = d.get(self.case_key)
            if left_out is None and measured:
                left_out = None if label is None else self.find(label)
            elif left_out is None:
                raise PriorError(
                    f"`leave_one_out` needs {self.case_key!r}, the scan's own cases, got "
                    f"{sorted(map(str, d))}: put OrganPositiond(..., leave_one_out=True) where the "
                    "label is still whole."
                )
        if not measured:
            return d[self.position_key], left_out
        if label is not None:
            _warn_of_crop(label, self.label_key)
            return self.measure(label, left_out), left_out
        warnings.warn(
            f"There is neither {self.position_key!r} nor {self.label_key!r}: the prior stays "
            "neutral.",
            stacklevel=3,
        )
        return torch.full((len(self.align.priors), 3), torch.nan), left_out


def _warn_of_crop(label: Any, key: str | None) -> None:
    """Warn where a label has lost voxels, so that an organ's centre in it may be another."""
    done = [str(each["class"]) for each in getattr(label, "applied_operations", [])]
    # what lies outside a foreground has no organ
    crops = [name for name in done if "Crop" in name and "Foreground" not in name]
    if crops:
        warnings.warn(
            f"Positions were measured in {key!r} after {crops[0]}, which may have cut organs: put "
            "OrganPositiond before it.",
            stacklevel=4,
        )


class PriorAugmentd(Randomizable, MapTransform):
    """Dictionary form of :class:`PriorAugment`; all keys get the same shift.

    Args:
        keys: the positions.
        translation_mm, dropout, prob: as in :class:`PriorAugment`.
        allow_missing_keys: do nothing for missing positions.
    """

    backend = PriorAugment.backend

    def __init__(
        self,
        keys: KeysCollection = POSITION_KEY,
        translation_mm: float | Sequence[float] = 10.0,
        *,
        dropout: float = 0.0,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.augment = PriorAugment(translation_mm, dropout=dropout, prob=prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> PriorAugmentd:
        """Seed the draws."""
        super().set_random_state(seed, state)
        self.augment.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the positions in a copy of ``data``."""
        d = dict(data)
        drawn = False
        for key in self.key_iterator(d):
            d[key] = self.augment(d[key], randomize=not drawn)
            drawn = True
        return d


class SelectPseudoLabelsd(MapTransform):
    """Dictionary form of :class:`SelectPseudoLabels`; the label map replaces the prediction.

    Args:
        keys: probabilities.
        rule, share, count, minimum, background_minimum, components, ignore: as in
            :class:`SelectPseudoLabels`.
        allow_missing_keys: do nothing for a missing prediction.
    """

    backend = SelectPseudoLabels.backend

    def __init__(
        self,
        keys: KeysCollection,
        rule: Literal["top_k", "certain"] = "top_k",
        *,
        share: float | Sequence[float] | None = None,
        count: int | Sequence[int] | None = None,
        minimum: float = 0.0,
        background_minimum: float | None = None,
        components: int | None = None,
        ignore: int = IGNORED,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.select = SelectPseudoLabels(
            rule,
            share=share,
            count=count,
            minimum=minimum,
            background_minimum=background_minimum,
            components=components,
            ignore=ignore,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Select in a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.select(d[key])
        return d


OrganPositionD = OrganPositionDict = OrganPositiond
PriorAlignD = PriorAlignDict = PriorAlignd
PriorAugmentD = PriorAugmentDict = PriorAugmentd
SelectPseudoLabelsD = SelectPseudoLabelsDict = SelectPseudoLabelsd
