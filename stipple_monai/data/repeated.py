"""Scans of which several slices or patches are drawn in an epoch."""

from collections.abc import Callable, Sequence
from typing import Any

from monai.data import CacheDataset


class RepeatedDataset(CacheDataset):
    """MONAI's ``CacheDataset`` that gives each item several times; the cache holds it once.

    The number is an argument of its own, so that ``data`` stays the list of scans: MONAI Label and
    federated clients put theirs in its place and count on that.

    Args:
        data: the items.
        transform: as for ``CacheDataset``; what is random in it is drawn anew each time.
        repeats: how often an epoch has each item.
        **kwargs: as for ``CacheDataset``, but for ``hash_as_key``, which is set.

    Raises:
        ValueError: ``repeats`` is below 1.

    Example:
        >>> items = [{"x": 1}, {"x": 2}]
        >>> dataset = RepeatedDataset(items, repeats=3, num_workers=0, progress=False)
        >>> len(dataset), [dataset[i]["x"] for i in (0, 1, 2, 5)]
        (6, [1, 2, 1, 2])
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Callable[..., Any] | None = None,
        *,
        repeats: int,
        **kwargs: Any,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"`repeats` must be at least 1, got {repeats}: draw more of each.")
        super().__init__(list(data) * repeats, transform, hash_as_key=True, **kwargs)
