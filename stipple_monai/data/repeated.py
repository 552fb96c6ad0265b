"""Scans of which several slices or patches are drawn in an epoch."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import cycle, islice
from typing import Any

from monai.data import CacheDataset


class RepeatedDataset(CacheDataset):
    """MONAI's ``CacheDataset`` that gives each item several times; the cache holds it once.

    The number is an argument of its own, so that ``data`` stays the list of scans: MONAI Label and
    federated clients put theirs in its place and count on that.

    Args:
        data: the items.
        transform: as for ``CacheDataset``; what is random in it is drawn anew each time.
        repeats: how often an epoch has each item; its length is the number of items times this.
        labelled_share: part of the epoch in (0, 1) that labelled items have, however many others
            carry a pseudo-label (the key ``pseudo_label``). Within both groups items come in
            turns. Shuffled, that is the share of every batch in expectation. None, and where one
            of the groups is empty: all items alike. An epoch too short for each item to occur is
            made longer.
        length: of an epoch, in place of ``repeats`` times the items, so that training takes as many
            steps from two scans as from twenty; at least the number of items. None: ``repeats``.
        **kwargs: as for ``CacheDataset``, but for ``hash_as_key``, which is set.

    Raises:
        ValueError: ``repeats`` is below 1, ``length`` below the number of items, or
            ``labelled_share`` is out of its range.

    Example:
        >>> items = [{"x": 1}, {"x": 2}]
        >>> dataset = RepeatedDataset(items, repeats=3, num_workers=0, progress=False)
        >>> len(dataset), [dataset[i]["x"] for i in (0, 1, 2, 5)]
        (6, [1, 2, 1, 2])
        >>> items = [{"x": 1}, {"x": 2, "pseudo_label": {}}, {"x": 3, "pseudo_label": {}}]
        >>> [item["x"] for item in turns(items, repeats=2, labelled_share=0.5)]
        [1, 1, 1, 2, 3, 2]
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Callable[..., Any] | None = None,
        *,
        repeats: int,
        labelled_share: float | None = None,
        length: int | None = None,
        **kwargs: Any,
    ) -> None:
        items = turns(data, repeats=repeats, labelled_share=labelled_share, length=length)
        super().__init__(items, transform, hash_as_key=True, **kwargs)


def turns(
    data: Sequence[Any],
    *,
    repeats: int,
    labelled_share: float | None = None,
    length: int | None = None,
) -> list[Any]:
    """The items of an epoch, see :class:`RepeatedDataset`; with a share, labelled ones first."""
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}: draw more of each.")
    if labelled_share is not None and not 0 < labelled_share < 1:
        raise ValueError(
            f"`labelled_share` must lie in (0, 1), got {labelled_share}: None draws all items "
            "alike."
        )
    if length is not None and length < len(data):
        raise ValueError(
            f"`length` must be at least the number of scans, {len(data)}, got {length}: each "
            "occurs in every epoch."
        )
    wanted = len(data) * repeats if length is None else length
    pseudo = [item for item in data if isinstance(item, Mapping) and "pseudo_label" in item]
    labelled = [item for item in data if not (isinstance(item, Mapping) and "pseudo_label" in item)]
    if labelled_share is None or not pseudo or not labelled:
        return list(islice(cycle(data), wanted))
    share = Fraction(str(labelled_share))
    total = max(
        wanted,
        math.ceil(len(labelled) / share),
        math.ceil(len(pseudo) / (1 - share)),
    )
    # halves up: a labelled item is worth more than a pseudo-labelled one
    first = math.floor(total * share + Fraction(1, 2))
    first = min(max(first, len(labelled)), total - len(pseudo))
    return [*islice(cycle(labelled), first), *islice(cycle(pseudo), total - first)]
