"""Logits fused with priors whose positions they tell themselves: locate, place, fuse.

Words used here:
    coarse prediction: probabilities of the organs without their priors.
    silent prior: of an organ without position; it favours neither organ nor background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.inferers.certainty import least_confidence, silence
from stipple_monai.networks import DEFAULT_FLOOR, Calibration, sigmoid_logits, softmax_logits
from stipple_monai.positioning import (
    DEFAULT_EPSILON,
    DEFAULT_SPREAD_MM,
    Located,
    check_probability,
    check_search,
    check_spread,
    locate_organs,
)
from stipple_monai.priors import Center, Mode, SpatialPrior, organ_position
from stipple_monai.spatial import Extent
from stipple_monai.transforms import PriorAlign


class Fused(NamedTuple):
    """What :func:`fuse_logits` found.

    Attributes:
        logits: adjusted, of the shape that went in.
        prior: as it was placed, ``(B, K, W, H, D)``.
        position_mm: ``(B, K, 3)`` float64, RAS mm, NaN where unknown.
        confidence: ``(B, K)`` float64 in [0, 1], see :func:`locate_organs`.
    """

    logits: Tensor
    prior: Tensor
    position_mm: Tensor
    confidence: Tensor


def fuse_logits(
    logits: Tensor,
    affine: Tensor,
    priors: Sequence[SpatialPrior],
    *,
    calibration: Calibration | Tensor | None = None,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    coarse: Tensor | None = None,
    references: Sequence[SpatialPrior] | None = None,
    locate_with: Literal["raw", "calibrated"] = "raw",
    position: Literal["kl", "prediction_center"] = "kl",
    mode: Mode = "auto",
    minimum_confidence: float | None = None,
    spread_mm: float = DEFAULT_SPREAD_MM,
    max_shift_mm: float | None = None,
    minimum: float = 0.5,
    epsilon: float = DEFAULT_EPSILON,
    scan_vote: bool = True,
    strength: float = 1.0,
    floor: float = DEFAULT_FLOOR,
    names: Sequence[str] | None = None,
    extents: Sequence[Extent] | None = None,
) -> Fused:
    """Fuse any network's logits with priors.

    Args:
        logits: ``(B, K + 1, W, H, D)``, background first, for a sigmoid ``(B, K, W, H, D)``.
        affine: of their grid, ``(4, 4)`` or ``(B, 4, 4)``, voxel to RAS mm.
        priors: one for each organ, in the order of the channels.
        calibration: how much network and prior count; None: equation 2.
        activation: what the logits are meant for.
        coarse: other logits, of the same shape, that tell the positions; None: ``logits``.
        references: what the coarse prediction is compared with; None: the priors.
        locate_with: whether the coarse prediction is that of the network as it is or, with its
            logits calibrated, as without prior.
        position: how organs are located, see :class:`PriorDrivenInferer`.
        mode: of placing, see :meth:`SpatialPrior.place`.
        minimum_confidence: see :class:`PriorDrivenInferer`.
        spread_mm: see :func:`locate_organs`; so are the next four.
        max_shift_mm: how far from the prediction.
        minimum: of a prediction.
        epsilon: least probability.
        scan_vote: False for scans that begin elsewhere than the labelled ones.
        strength: see :func:`~stipple_monai.softmax_logits`.
        floor: likewise.
        names: of the scans, for warnings.
        extents: grids of the whole scans, of which the logits may show a part; None: their own.

    Returns:
        Adjusted logits, and how they came about. An organ that is predicted nowhere, or whose
        position is too uncertain, has a silent prior, with a warning.

    Raises:
        PriorError: priors, references or calibration do not belong to the logits, or these
            hold NaN or infinity.
        PositionError: an option of the search is out of its range.

    Example:
        >>> label = torch.zeros(1, 12, 12, 12)
        >>> label[0, 3:8, 4:9, 2:7] = 1
        >>> scan = MetaTensor(label, affine=torch.eye(4))
        >>> prior = SpatialPrior.estimate([scan], smoothing_mm=None)
        >>> logits = torch.cat([torch.zeros(1, 12, 12, 12), 8 * label - 4])[None]
        >>> fused = fuse_logits(logits, torch.eye(4), [prior])
        >>> fused.position_mm.tolist(), fused.logits.argmax(1).sum().item()
        ([[[5.0, 6.0, 4.0]]], 125)
    """
    logits = _finite(logits, "logits")
    coarse = logits if coarse is None else _finite(coarse, "coarse")
    references = priors if references is None else references
    calibration = checked_calibration(calibration, activation=activation)
    probability = _without_prior(coarse, calibration, locate_with, activation, len(priors))
    search: dict[str, Any] = {"max_shift_mm": max_shift_mm, "minimum": minimum, "epsilon": epsilon}
    check_options(position, locate_with, spread_mm, **search)
    vote = {"scan_vote": scan_vote}
    search |= {"spread_mm": None if position == "prediction_center" else spread_mm, **vote}
    scans = _scans(probability, torch.as_tensor(affine), extents)
    found = [_locate(s, priors, references, **search) for s in scans]
    if minimum_confidence is None:
        minimum_confidence = least_confidence(references, position, max_shift_mm, **vote)
    silence(found, priors, minimum_confidence, names or ["a scan"] * len(scans))
    prior = _place(scans, found, PriorAlign(priors, mode=mode, activation=activation))
    adjusted = fuse_placed(logits, prior, strength, floor, calibration, activation)
    return Fused(adjusted, prior, *map(torch.stack, zip(*(f[:2] for f in found), strict=True)))


def _scans(
    probability: Tensor, affine: Tensor, extents: Sequence[Extent] | None
) -> list[MetaTensor]:
    """The scans of a batch, with the extents of the whole ones as MONAI's readers note them."""
    affines = affines_of(affine, scans=len(probability), name="affine")
    scans = [MetaTensor(p, affine=a) for p, a in zip(probability, affines, strict=True)]
    for scan, extent in zip(scans, extents or (), strict=extents is not None):
        scan.meta.update(original_affine=extent.affine, spatial_shape=extent.shape)
    return scans


def fuse_placed(
    logits: Tensor,
    prior: Tensor,
    strength: float,
    floor: float,
    calibration: Calibration | Tensor | None,
    activation: Literal["softmax", "sigmoid"],
) -> Tensor:
    """Fuse logits with priors that are placed, each scan by the numbers that hold for it.

    Args:
        logits: as of :func:`fuse_logits`.
        prior: ``(B, K, W, H, D)``.
        strength: see :func:`~stipple_monai.softmax_logits`.
        floor: likewise.
        calibration: as of :func:`fuse_logits`.
        activation: what the logits are meant for.

    Returns:
        Adjusted logits, of the shape that went in.
    """
    fuse = softmax_logits if activation == "softmax" else sigmoid_logits
    if isinstance(calibration, Calibration) and not calibration.fitted and len(logits) > 1:
        pairs = zip(logits.split(1), prior.split(1), strict=True)
        return torch.cat([fuse_placed(*p, strength, floor, calibration, activation) for p in pairs])
    if isinstance(calibration, Calibration):
        calibration = calibration.for_scan(logits[0])
    numbers = None if calibration is None else calibration.to(logits.device)
    return fuse(logits, prior, strength, floor, numbers)


def affines_of(affine: Tensor, *, scans: int, name: str) -> Tensor:
    """An affine for each scan, ``(B, 4, 4)``, or :class:`PositionError`.

    Args:
        affine: one for all, ``(4, 4)``, or for each.
        scans: B.
        name: what error messages call it.
    """
    fits = affine.ndim in (2, 3) and affine.shape[-2:] == (4, 4)
    affines = affine.reshape(-1, 4, 4) if fits else affine
    if not fits or not scans or len(affines) not in (1, scans):
        raise PositionError(
            f"`{name}` must hold scans and a 4 × 4 affine for all or for each, got "
            f"{scans} scans and affines of shape {tuple(affine.shape)}."
        )
    return affines.expand(scans, 4, 4)


def check_options(position: str, locate_with: str, spread_mm: float, **search: Any) -> None:
    """Raise :class:`PositionError` where an option of positioning is unknown or out of its range.

    Args:
        position: as of :func:`fuse_logits`.
        locate_with: likewise.
        spread_mm: likewise.
        **search: see :func:`~stipple_monai.positioning.check_search`.
    """
    if position not in ("kl", "prediction_center"):
        raise PositionError(f"`position` must be 'kl' or 'prediction_center', got {position!r}.")
    if locate_with not in ("raw", "calibrated"):
        raise PositionError(f"`locate_with` must be 'raw' or 'calibrated', got {locate_with!r}.")
    check_spread(spread_mm)
    check_search(**search)


def _finite(logits: Tensor, name: str) -> Tensor:
    """The network's output as a plain tensor, or :class:`PriorError`."""
    plain = logits.as_subclass(Tensor)
    if not all(bool(torch.isfinite(value)) for value in plain.detach().aminmax()):
        raise PriorError(
            f"`{name}` must be finite, got NaN or infinity, which the network returned: look for "
            "them in the scan and the weights (a training that diverged), and run the network in "
            "float32 where half precision overflows."
        )
    return plain


def _place(scans: Sequence[MetaTensor], found: Sequence[Located], align: PriorAlign) -> Tensor:
    """The priors on the grids of the scans, also where MONAI does not track metadata."""
    placed = []
    for scan, located in zip(scans, found, strict=True):
        # one channel, which takes no memory
        empty = torch.empty(1, device=scan.device).expand(1, *scan.shape[1:])
        grid = MetaTensor(empty, affine=scan.affine)
        placed.append(torch.as_tensor(align(grid, located.position_mm)).as_subclass(Tensor))
    return torch.stack(placed)


def _without_prior(
    coarse: Tensor,
    calibration: Calibration | Tensor | None,
    locate_with: str,
    activation: Literal["softmax", "sigmoid"],
    organs: int,
) -> Tensor:
    """Probabilities of the organs, ``(B, K, W, H, D)``."""
    found = coarse.shape[1] - (activation == "softmax")
    if found != organs:
        raise PriorError(f"`priors` must be one per organ of the network, {found}, got {organs}.")
    seen = coarse.float()
    if locate_with == "calibrated":
        # Strength 0 makes any prior silent.
        silent = torch.zeros_like(seen[:, -organs:])
        seen = fuse_placed(seen, silent, 0.0, DEFAULT_FLOOR, calibration, activation)
    return seen.softmax(1)[:, 1:] if activation == "softmax" else seen.sigmoid()


def _locate(
    probability: MetaTensor,
    priors: Sequence[SpatialPrior],
    references: Sequence[SpatialPrior],
    *,
    spread_mm: float | None,
    **search: Any,
) -> Located:
    """By correlation, or without a spread at the centre of the prediction."""
    if spread_mm is None:
        return _prediction_centers(probability, priors, **search)
    return locate_organs(probability, references, spread_mm=spread_mm, **search)


def checked_calibration(
    calibration: Calibration | Tensor | None, *, activation: str
) -> Calibration | Tensor | None:
    """What was given, where it is for the activation.

    Raises:
        PriorError: it was fitted for another activation.
    """
    if isinstance(calibration, Calibration) and calibration.activation != activation:
        raise PriorError(
            f"`calibration` must be for {activation}, got one for {calibration.activation}: fit it "
            "for this network."
        )
    return calibration


def _prediction_centers(
    probability: MetaTensor,
    priors: Sequence[SpatialPrior],
    *,
    minimum: float,
    epsilon: float,
    **_: Any,
) -> Located:
    check_probability(probability, organs=len(priors))
    predicted = (probability >= minimum) & (probability > epsilon)
    position = torch.full((len(priors), 3), torch.nan, dtype=torch.float64)
    for k in torch.nonzero(predicted.as_tensor().flatten(1).any(1)).flatten().tolist():
        mask = MetaTensor(predicted.as_tensor()[k : k + 1], affine=probability.affine)
        center: Center = "mass" if priors[k].center == "mass" else "bbox"
        position[k] = organ_position(mask, organ=1, center=center)
    return Located(position, position.isfinite().all(1).double())
