"""Scans into a pipeline: loaded, resampled and checked, with errors that name the file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import LoadImaged, MapTransform, Spacingd
from monai.utils import TransformBackends

from stipple_monai.data import check_pair, check_scan
from stipple_monai.errors import DatasetError
from stipple_monai.priors import UNREADABLE

_TORCH = [TransformBackends.TORCH]
_UNLOADABLE = (*UNREADABLE, RuntimeError, MemoryError)


class LoadScand(LoadImaged):
    """MONAI's loader with an error that names the file that cannot be read.

    Data whose keys hold tensors or arrays already are left as they are: MONAI Deploy hands over
    scans in memory, and takes out of a pipeline only loaders that are named ``LoadImage…``.

    Args:
        *args: as for ``monai.transforms.LoadImaged``.
        **kwargs: likewise.
    """

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, Any]:
        """Load the files of ``data``, or raise :class:`DatasetError`."""
        found = [data[key] for key in self.key_iterator(dict(data))]
        if found and all(isinstance(scan, (torch.Tensor, np.ndarray)) for scan in found):
            return dict(data)
        try:
            return super().__call__(data, reader)
        except _UNLOADABLE as error:
            for key in self.key_iterator(dict(data)):
                try:
                    self._loader(data[key], reader)
                except _UNLOADABLE as fault:
                    said = f" ({fault})" if str(fault) else ""
                    raise DatasetError(
                        f"`{key}` must be a scan that MONAI can read, got {data[key]}: "
                        f"{type(fault).__name__}{said}. It may be of another format, or its copy "
                        "may have been cut short."
                    ) from error
            raise


class SpacingScand(Spacingd):
    """MONAI's ``Spacingd`` for data that has other entries beside the scan.

    ``Spacingd`` takes every key that begins with the scan's own and ``_`` for a dictionary of
    metadata and updates it: a path under ``image_path``, as MONAI Label passes it, stops it. Here
    such entries stay as they are.

    Args:
        *args: as for ``monai.transforms.Spacingd``.
        **kwargs: likewise.

    Example:
        >>> from monai.data import MetaTensor
        >>> scan = MetaTensor(torch.rand(1, 5, 5, 5), meta={"filename_or_obj": "a.nii.gz"})
        >>> data = {"image": scan, "image_path": "a.nii.gz"}
        >>> result = SpacingScand("image", pixdim=(2.0, 2.0, 2.0))(data)
        >>> result["image"].shape, result["image_path"]
        (torch.Size([1, 3, 3, 3]), 'a.nii.gz')
    """

    def __call__(
        self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None
    ) -> dict[Hashable, torch.Tensor]:
        """Resample the scans in a copy of ``data``."""
        scans = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(scans, lazy)}


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
        """Return ``data`` as it is, or raise :class:`DatasetError`."""
        d = dict(data)
        found = [d[key] for key in self.key_iterator(d)]
        if len(found) == 2:
            check_pair(found[0], found[1], **self.options)
        return d


CheckPairD = CheckPairDict = CheckPaird
LoadScanD = LoadScanDict = LoadScand
SpacingScanD = SpacingScanDict = SpacingScand
CheckScanD = CheckScanDict = CheckScand
