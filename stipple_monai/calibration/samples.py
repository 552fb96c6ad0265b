"""Voxels of a scan that stand for all of them when a calibration is fitted.

Words used here:
    stratum: the voxels of one class, beside the prior or elsewhere, and predicted as an organ or
        not. A few voxels are drawn from each, without replacement.
    weight: how many voxels of its stratum a drawn one stands for. A weighted sum over the sample
        is an unbiased estimate of the sum over the scan, and rare voxels, such as an organ that is
        predicted far from the prior, are not left to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stipple_monai.errors import DatasetError, PriorError
from stipple_monai.label_values import IGNORED
from stipple_monai.networks import DEFAULT_FLOOR, SILENT, prior_odds

__all__ = ["Samples", "draw_samples", "join_samples"]

BESIDE = 0.02
"""Voxels where an organ's prior is above this are beside the prior."""


class Samples(NamedTuple):
    """Weighted voxels of one scan or of several.

    Attributes:
        evidence: ``d``, ``(N, K)``, what the network says of each organ, see `calibration`.
        odds: ``r``, ``(N, K)``, what the prior says.
        known: ``(N, K)``, False where the organ's prior is silent in the voxel's scan.
        label: ``(N,)``, 0 to K.
        weight: ``(N,)``, how many voxels each stands for.
        scan: ``(N,)``, which scan each is from.
    """

    evidence: NDArray[np.float32]
    odds: NDArray[np.float32]
    known: NDArray[np.bool_]
    label: NDArray[np.uint8]
    weight: NDArray[np.float64]
    scan: NDArray[np.int64]


def draw_samples(
    logits: Tensor,
    prior: Tensor,
    label: Tensor,
    *,
    activation: str = "softmax",
    strength: float = 1.0,
    floor: float = DEFAULT_FLOOR,
    most: int | None = 2000,
    seed: int = 0,
    ignore: int = IGNORED,
) -> Samples:
    """Draw the voxels of one scan.

    Args:
        logits: of a network that was not trained on this scan, ``(K + 1, *spatial)``, for a
            sigmoid ``(K, *spatial)``.
        prior: placed in this scan, ``(K, *spatial)`` in ``[0, 1]``.
        label: ``(1, *spatial)``, 0 to K and `ignore`.
        activation: ``"softmax"`` or ``"sigmoid"``.
        strength: τ of the fusion.
        floor: lowest prior probability, see `softmax_logits`.
        most: voxels of a stratum, at least 1; None: all, each of weight 1.
        seed: the same draws the same voxels.
        ignore: label of voxels that are left out.

    Raises:
        PriorError: the shapes do not belong together.
        DatasetError: a label is no class.
        ValueError: ``most`` is below 1.

    Example:
        >>> logits, label = torch.zeros(2, 5), torch.tensor([[0, 0, 1, 1, 255]])
        >>> samples = draw_samples(logits, torch.full((1, 5), 0.2), label, most=1)
        >>> samples.label.tolist(), samples.weight.tolist()
        ([0, 1], [2.0, 2.0])
    """
    if most is not None and most < 1:
        raise ValueError(f"`most` must be at least 1, or None for all voxels, got {most}.")
    logits, prior, label = (x.detach().as_subclass(Tensor) for x in (logits, prior, label))
    _check(logits, prior, label, activation=activation, ignore=ignore)
    d = logits.double() if activation == "sigmoid" else (logits[1:].double() - logits[0].double())
    r = strength * prior_odds(prior[None].double(), activation, floor)[0]
    silent = r.abs().flatten(1).amax(1) < SILENT
    predicted = (d > 0).any(0)
    beside = (prior[~silent] > BESIDE).any(0)
    classes = label[0].long()
    stratum = (classes * 4 + beside.long() * 2 + predicted.long()).flatten()
    stratum[(classes == ignore).flatten()] = -1
    chosen, weight = _draw(stratum.cpu().numpy(), most, seed)
    at = torch.from_numpy(chosen).to(d.device)
    return Samples(
        evidence=d.flatten(1)[:, at].T.float().cpu().numpy(),
        odds=r.flatten(1)[:, at].T.float().cpu().numpy(),
        known=np.repeat((~silent).cpu().numpy()[None], len(chosen), 0),
        label=classes.flatten()[at].to(torch.uint8).cpu().numpy(),
        weight=weight,
        scan=np.zeros(len(chosen), dtype=np.int64),
    )


def join_samples(samples: Sequence[Samples]) -> Samples:
    """Samples of several scans as one, numbered in their order.

    Raises:
        PriorError: they have different numbers of organs, or there are none.
    """
    organs = {part.evidence.shape[1] for part in samples}
    if len(organs) != 1:
        raise PriorError(
            "`samples` must be of one scan or more, with the same organs, got "
            f"{len(samples)} with {sorted(organs)} organs."
        )
    first = np.cumsum([0, *(part.scan.max(initial=-1) + 1 for part in samples)])
    parts = [part._replace(scan=part.scan + n) for part, n in zip(samples, first, strict=False)]
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _draw(
    stratum: NDArray[np.int64], most: int | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices in ascending order within each stratum, and their weights; -1 is no stratum."""
    rng = np.random.default_rng(seed)
    chosen, weight = [np.empty(0, np.int64)], [np.empty(0)]
    for number in np.unique(stratum[stratum >= 0]):
        members = np.flatnonzero(stratum == number)
        size = len(members)
        if most is not None and size > most:
            members = np.sort(rng.choice(members, most, replace=False))
        chosen.append(members)
        weight.append(np.full(len(members), size / len(members)))
    return np.concatenate(chosen), np.concatenate(weight)


def _check(logits: Tensor, prior: Tensor, label: Tensor, *, activation: str, ignore: int) -> None:
    organs = len(logits) - (activation != "sigmoid")
    if activation not in ("softmax", "sigmoid"):
        raise PriorError(f"`activation` must be 'softmax' or 'sigmoid', got {activation!r}.")
    if organs < 1 or prior.shape != (organs, *logits.shape[1:]):
        raise PriorError(
            f"`prior` must be {(organs, *logits.shape[1:])} for logits {tuple(logits.shape)}, got "
            f"{tuple(prior.shape)}: place one for each organ on the grid of the scan."
        )
    if label.shape != (1, *logits.shape[1:]):
        raise DatasetError(
            f"`label` must be {(1, *logits.shape[1:])}, got {tuple(label.shape)}: it holds class "
            "numbers on the grid of the logits."
        )
    found = torch.unique(label)
    wrong = found[~((found >= 0) & (found <= organs) & (found == found.long())) & (found != ignore)]
    if len(wrong):
        raise DatasetError(
            f"`label` must hold 0 to {organs} or {ignore} (ignored), got {wrong[:5].tolist()}: "
            "check the label's organ numbers."
        )
