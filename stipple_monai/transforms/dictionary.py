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

from stipple_monai.data import check_pair, check_scan, rounded_label
from stipple_monai.errors import DatasetError, PriorError
from stipple_monai.priors import SpatialPrior
from stipple_monai.transforms.array import (
    OrganPosition,
    PriorAlign,
    PriorAugment,
    SelectPseudoLabels,
    as_positions,
)
from stipple_monai.transforms.reading import LoadScand, SpacingScand

POSITION_KEY = "organ_position"
"""Key of the positions. It must not begin with another key and ``_``: ``Spacingd`` trips on it."""

_TORCH = [TransformBackends.TORCH]


class OrganPositiond(MapTransform):
    """Dictionary form of :class:`OrganPosition`.

    Args:
        keys: the whole label map.
        priors: as in :class:`OrganPosition`.
        position_key: where the positions go. An item that has them already (a datalist may give
            them) keeps them.
        allow_missing_keys: do nothing for a missing label.
    """

    backend = OrganPosition.backend

    def __init__(
        self,
        keys: KeysCollection,
        priors: Sequence[SpatialPrior],
        position_key: str = POSITION_KEY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.measure = OrganPosition(priors)
        self.position_key = position_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the positions to a copy of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            if self.position_key in d:
                d[self.position_key] = as_positions(d[self.position_key])
            else:
                d[self.position_key] = self.measure(d[key])
        return d


class PriorAlignd(MapTransform):
    """Dictionary form of :class:`PriorAlign`.

    Args:
        keys: the image, or images, on whose grid the priors are placed.
        priors, mode, activation: as in :class:`PriorAlign`.
        position_key: positions that :class:`OrganPositiond`, a datalist or a locator gave.
        prior_key: where the priors go, one name per image.
        label_key: where ``position_key`` is missing, measure this label; right only while it
            is whole. Without either, the prior is neutral, with a warning.
        allow_missing_keys: do nothing for a missing image.
    """

    backend = PriorAlign.backend

    def __init__(
        self,
        keys: KeysCollection,
        priors: Sequence[SpatialPrior],
        *,
        mode: Literal["nearest", "linear"] = "nearest",
        activation: Literal["softmax", "sigmoid"] = "softmax",
        position_key: str = POSITION_KEY,
        prior_key: KeysCollection = "prior",
        label_key: str | None = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.align = PriorAlign(priors, mode=mode, activation=activation)
        self.measure = OrganPosition(priors)
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
        if self.position_key in d:
            positions = d[self.position_key]
        elif self.label_key is not None and self.label_key in d:
            positions = self.measure(d[self.label_key])
        else:
            warnings.warn(
                f"There is neither {self.position_key!r} nor {self.label_key!r}: the prior stays "
                "neutral.",
                stacklevel=2,
            )
            positions = torch.full((len(self.align.priors), 3), torch.nan)
        for key, prior_key in keys:
            d[prior_key] = self.align(d[key], positions)
        return d


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
        share, count, minimum, background_minimum, components, ignore: as in
            :func:`select_top_k`.
        allow_missing_keys: do nothing for a missing prediction.
    """

    backend = SelectPseudoLabels.backend

    def __init__(
        self,
        keys: KeysCollection,
        *,
        share: float | Sequence[float] | None = None,
        count: int | Sequence[int] | None = None,
        minimum: float = 0.0,
        background_minimum: float = 0.0,
        components: int | None = None,
        ignore: int = 255,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.select = SelectPseudoLabels(
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


class CheckScand(MapTransform):
    """Stop at a scan that is not 3D or not finite.

    See :func:`~stipple_monai.data.check_scan`.

    Args:
        keys: images.
        channels: channels of the image.
        allow_missing_keys: check nothing where one is missing.
    """

    backend = _TORCH

    def __init__(
        self, keys: KeysCollection, *, channels: int = 1, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` as it is, or raise :class:`DatasetError`."""
        d = dict(data)
        for key in self.key_iterator(d):
            check_scan(d[key], channels=self.channels)
        return d


class CheckPaird(MapTransform):
    """Stop at a scan and label that do not belong together.

    See :func:`~stipple_monai.data.check_pair`.

    Args:
        keys: image and label, in this order.
        classes: number of classes with the background.
        values: of the label besides 0; 1 to ``classes - 1`` if None.
        channels: channels of the image.
        allow_missing_keys: check nothing where one is missing.
    """

    backend = _TORCH

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        *,
        classes: int,
        values: Sequence[int] | None = None,
        channels: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 2:
            raise DatasetError(f"`keys` must be image and label, got {self.keys}.")
        self.options: dict[str, Any] = {"classes": classes, "values": values, "channels": channels}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data``, the label's values whole, or raise :class:`DatasetError`."""
        d = dict(data)
        found = [d[key] for key in self.key_iterator(d)]
        if len(found) == 2:
            check_pair(found[0], found[1], **self.options)
            d[self.keys[1]] = rounded_label(found[1])
        return d


OrganPositionD = OrganPositionDict = OrganPositiond
PriorAlignD = PriorAlignDict = PriorAlignd
PriorAugmentD = PriorAugmentDict = PriorAugmentd
SelectPseudoLabelsD = SelectPseudoLabelsDict = SelectPseudoLabelsd
CheckPairD = CheckPairDict = CheckPaird
LoadScanD = LoadScanDict = LoadScand
SpacingScanD = SpacingScanDict = SpacingScand
CheckScanD = CheckScanDict = CheckScand
