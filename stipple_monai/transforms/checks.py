"""Scans and labels that cannot be used stop a pipeline with an error that names them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from stipple_monai.data import check_pair, check_scan, rounded_label
from stipple_monai.errors import DatasetError

_TORCH = [TransformBackends.TORCH]


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


CheckPairD = CheckPairDict = CheckPaird
CheckScanD = CheckScanDict = CheckScand
