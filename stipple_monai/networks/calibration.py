"""The numbers of calibrated fusion, and their file.

Words used here, for each organ k:
    evidence: what the network says, ``d_k = s~_k − s~_0``, its logit against the background's
        (``s~_k`` itself in the sigmoid form).
    prior odds: ``r_k = ln p_k − ln p_0`` (``ln p_k − ln(1 − p_k)`` in the sigmoid form).
    scale, strength and offset: ``a_k``, ``b_k`` and ``c_k`` of the calibrated odds
        ``z_k = a_k d_k + b_k r_k + c_k``, with ``z_0 = 0``; ``1 / a_k`` is the temperature.

``softmax(z)`` is the fused probability. The odds are against the background because a softmax
does not notice a constant that is added to all logits, whereas ``a_k s~_k`` with another ``a_k``
for each organ would. Equation 2 is a = b = 1, c = 0; b = 0 is the network alone, a = 0 the prior
alone.

A *silent* prior says nothing (an unknown position). The offset that is right beside a prior, which
forbids the organ nearly everywhere, would then fill the scan with it; so a silent prior has numbers
of its own, fitted without prior: ``z_k = a'_k d_k + c'_k``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stipple_monai.errors import PriorError
from stipple_monai.files import read_json, whole_file

__all__ = ["Calibration"]

COLUMNS = ("scale", "strength", "offset", "scale_alone", "offset_alone")
"""Of the tensor that the fusion takes."""

AFTERWARDS, IN_TRAINING = (0.1, 0.5, 0.5), (0.15, 0.75, 0.5)
"""Scale, strength and offset where nothing is fitted, see :meth:`Calibration.unfitted`, of networks
that never saw a prior, and of those that were trained with it. The scale is multiplied by the root
of the labelled scans and one. See `docs/decisions.md`."""

LEAST_MARGIN, LEAST_MARGIN_IN_TRAINING = 2.0, 1.0
"""Those constants are for networks that are too sure of themselves. Of a softer one they keep this
much of the margin by which it typically tells background from organs, see `docs/decisions.md`. One
that was trained with the prior has half the margin, since it leaves the rest to the prior."""

FEW = 3
"""Labelled scans up to which that scale is the same."""


@dataclass(frozen=True)
class Calibration:
    """How much network and prior count in the fusion, one number for each organ.

    Args:
        scale: ``a_k``, at least 0.
        strength: ``b_k``, at least 0.
        offset: ``c_k``.
        scale_alone: ``a'_k`` where the prior is silent, at least 0.
        offset_alone: ``c'_k`` where the prior is silent.
        activation: the form that they were fitted for.
        thresholds: probability above which a voxel is the organ's, each in (0, 1), see
            :func:`~stipple_monai.calibration.decide`; None: not fitted.
        record: what they were fitted on, any JSON.

    Raises:
        PriorError: a number is missing, not finite or out of its range.

    Example:
        >>> calibration = Calibration(
        ...     scale=[0.1], strength=[1], offset=[2], scale_alone=[0.2], offset_alone=[-1]
        ... )
        >>> calibration.tensor()
        tensor([[ 0.1000,  1.0000,  2.0000,  0.2000, -1.0000]])
    """

    scale: Sequence[float]
    strength: Sequence[float]
    offset: Sequence[float]
    scale_alone: Sequence[float]
    offset_alone: Sequence[float]
    activation: Literal["softmax", "sigmoid"] = "softmax"
    thresholds: Sequence[float] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check and freeze the numbers."""
        for name in (*COLUMNS, "thresholds"):
            values = getattr(self, name)
            if values is None and name == "thresholds":
                continue
            # as they are saved: 0.1 of a float32 tensor would not equal itself after loading
            object.__setattr__(self, name, tuple(float(value) for value in values))
            _check(name, getattr(self, name), organs=len(self.scale))
        if not isinstance(self.record, Mapping):
            raise PriorError(f"`record` must be a mapping, got {type(self.record).__name__}.")
        if self.activation not in ("softmax", "sigmoid"):
            raise PriorError(
                f"`activation` must be 'softmax' or 'sigmoid', got {self.activation!r}."
            )

    @classmethod
    def identity(
        cls, organs: int, *, activation: Literal["softmax", "sigmoid"] = "softmax"
    ) -> Calibration:
        """Equation 2: network and prior count as they are."""
        one, zero = [1.0] * organs, [0.0] * organs
        return cls(one, one, zero, one, zero, activation=activation)

    @classmethod
    def unfitted(
        cls,
        organs: int,
        *,
        labelled: int | Sequence[int] = FEW,
        prior_in_training: bool = False,
        activation: Literal["softmax", "sigmoid"] = "softmax",
    ) -> Calibration:
        """Constants, where none are fitted.

        ``a_k = 0.1 √(max(N_k, 3) + 1)``, 1 at most, ``b_k = c_k = 0.5``: the more labels a network
        was trained with, the more it knows beyond the prior, and the less it is too sure of itself.
        A network that was trained with the prior has learnt what the prior does not know, and both
        count for more: ``a_k = 0.15 √(max(N_k, 3) + 1)``, ``b_k = 0.75``. Where the prior is silent
        the network counts as it is.

        Args:
            organs: K.
            labelled: ``N``, label maps that the network was trained with, or how many of them had
                each organ.
            prior_in_training: whether the network was trained with the prior, as in the paper.
            activation: what the network's logits are meant for.

        Raises:
            PriorError: ``labelled`` is negative or not one for each organ.

        Example:
            >>> [round(a, 3) for a in Calibration.unfitted(2, labelled=[3, 8]).scale]
            [0.2, 0.3]
            >>> Calibration.unfitted(1, labelled=3, prior_in_training=True).scale
            (0.3,)
        """
        given = [*labelled] if isinstance(labelled, Iterable) else [labelled] * organs
        whole = [n for n in given if isinstance(n, int | np.integer) and not isinstance(n, bool)]
        counts = [int(n) for n in whole if n >= 0]
        if len(counts) != len(given) or len(counts) != organs:
            raise PriorError(
                f"`labelled` must be a number of label maps, or one for each of {organs} organs, "
                f"got {labelled}."
            )
        factor, strength, offset = IN_TRAINING if prior_in_training else AFTERWARDS
        scale = [min(1.0, factor * math.sqrt(max(count, FEW) + 1)) for count in counts]
        return cls(
            scale,
            strength=[strength] * organs,
            offset=[offset] * organs,
            scale_alone=[1.0] * organs,
            offset_alone=[0.0] * organs,
            activation=activation,
            record={"fitted": False, "labelled": counts, "prior_in_training": prior_in_training},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            PriorError: the file is no calibration.
        """
        try:
            return cls(**read_json(path))
        except (TypeError, ValueError) as error:
            raise PriorError(
                f"{path} must be a calibration as JSON, got something else ({error}): fit it anew."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers as JSON, whole or not at all."""
        with whole_file(path) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @property
    def organs(self) -> int:
        """How many organs it has numbers for."""
        return len(self.scale)

    @property
    def fitted(self) -> bool:
        """Whether the numbers are of scans, and not constants for want of them."""
        return bool(self.record.get("fitted", True))

    def for_scan(self, logits: Tensor) -> Tensor:
        """The numbers for one scan; those of `unfitted` look at what the network says of it.

        The *margin* of a scan is the median of ``−max_k d_k`` over the voxels that the network
        calls background (every fourth along each axis). Constants have a scale of at least
        ``LEAST_MARGIN / margin``, 1 at most, with the prior in training
        ``LEAST_MARGIN_IN_TRAINING``. Trained networks of few scans have margins of 9 to 20, with
        the prior in training of 5 to 7, which hardly change it. One that hardly tells background
        from organs would, scaled down, leave a little of the organ in every voxel, and label maps
        several times too large.

        Args:
            logits: ``(K + 1, *spatial)``, background first, for a sigmoid ``(K, *spatial)``.

        Returns:
            float32 ``(K, 5)`` as of :meth:`tensor`, on the device of ``logits``.
        """
        numbers = self.tensor().to(logits.device)
        if self.fitted:
            return numbers
        seen = logits[(slice(None), *[slice(None, None, 4)] * (logits.ndim - 1))].float()
        evidence = seen[1:] - seen[:1] if self.activation == "softmax" else seen
        margins = -evidence.amax(0)
        margins = margins[margins > 0]
        if len(margins):
            in_training = self.record.get("prior_in_training")
            most = LEAST_MARGIN_IN_TRAINING if in_training else LEAST_MARGIN
            least = (most / margins.median()).clamp(max=1)
            numbers[:, 0] = torch.maximum(numbers[:, 0], least)
        return numbers

    def tensor(self) -> Tensor:
        """The numbers as the fusion takes them, float32 ``(K, 5)`` in the order of ``COLUMNS``."""
        return torch.tensor([getattr(self, name) for name in COLUMNS], dtype=torch.float32).T


def _check(name: str, values: Sequence[float], *, organs: int) -> None:
    if not values or len(values) != organs:
        raise PriorError(
            f"`{name}` must have one number for each organ, as `scale` has, got {len(values)} for "
            f"{organs}."
        )
    if name == "thresholds":
        valid, expected = all(0 < value < 1 for value in values), "lie in (0, 1)"
    elif name.startswith("offset"):
        valid, expected = all(math.isfinite(value) for value in values), "be finite"
    else:
        valid = all(0 <= value < math.inf for value in values)
        expected = "be finite and at least 0"
    if not valid:
        raise PriorError(f"`{name}` must {expected}, got {list(values)}.")
