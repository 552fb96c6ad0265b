"""Inference where the organ's position is unknown: predict, locate, place, fuse.

The backbone runs once. Its logits do not depend on the prior, so they serve both as the coarse
prediction that tells the position and, with the placed prior's bias, as the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import nn

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.networks import PriorDrivenNet, sigmoid_logits, softmax_logits
from stipple_monai.positioning import (
    DEFAULT_EPSILON,
    DEFAULT_SPREAD_MM,
    Located,
    check_probability,
    check_search,
    locate_organs,
    positioned_together,
)
from stipple_monai.priors import Center, SpatialPrior, organ_position
from stipple_monai.transforms import PriorAlign

POSITION_META = "organ_position_mm"
"""Metadata key of the positions that were used: ``(B, K, 3)``, RAS mm, NaN where unknown."""

CONFIDENCE_META = "organ_position_confidence"
"""Metadata key of their confidences: ``(B, K)`` in [0, 1], see :func:`locate_organs`."""

MINIMUM_CONFIDENCE_ALONE = 0.51
MINIMUM_CONFIDENCE_TOGETHER = 0.2
"""Below these, positions were wrong so often that no prior was better, see `docs/results.md`."""


class PriorDrivenInferer(Inferer):
    """Wrap any MONAI inferer for a :class:`PriorDrivenNet`.

    Args:
        inferer: what runs the network over a volume (``SlidingWindowInferer``, ``SliceInferer``,
            ``SimpleInferer``, …).
        priors: one per organ, in the order of the network's channels.
        locator: a second network whose prediction tells the positions, with the same channels
            and activation as the first: the prior-free baseline, as in the paper. It costs
            a pass of its own. ``None`` takes the backbone's own prediction without prior.
        references: what the prediction is compared with, one per organ; the priors where
            ``None``. The paper's is one labelled volume,
            ``SpatialPrior.estimate([label], bins=None)``.
        position: how organs are located: ``"kl"`` by :func:`~stipple_monai.locate_organs`, or
            ``"prediction_center"``, the naive way, at the centre of the voxels that reach
            ``minimum``. It is the centre that the prior has, of mass or of the bounding box; the
            latter also for a group-wise prior, whose centre no mask has by itself. References and
            other organs do not matter to it, and there is no confidence to measure: it is 1 where
            the organ is predicted.
        mode: see :meth:`SpatialPrior.place`.
        minimum_confidence: an organ whose position is less certain keeps a neutral prior, with a
            warning; 0 places every prior. ``None`` takes 0.51 for organs that are located one by
            one, which says that another place is as good, and 0.2 where they are located
            together: what is ambiguous for one organ the others decide.
        spread_mm, max_shift_mm, minimum, epsilon: see :func:`~stipple_monai.locate_organs`.
        device: where organs are located and the prior is fused, and the result lies: "cpu" where a
            GPU has no memory for them. ``None``: where the inferer leaves the logits.

    Raises:
        PriorError: priors and references do not belong together.
        PositionError: ``minimum_confidence`` is not in [0, 1], or ``position`` is unknown.
    """

    def __init__(
        self,
        inferer: Inferer,
        priors: Sequence[SpatialPrior],
        *,
        locator: nn.Module | None = None,
        references: Sequence[SpatialPrior] | None = None,
        position: Literal["kl", "prediction_center"] = "kl",
        mode: Literal["nearest", "linear"] = "nearest",
        minimum_confidence: float | None = None,
        spread_mm: float = DEFAULT_SPREAD_MM,
        max_shift_mm: float | None = None,
        minimum: float = 0.5,
        epsilon: float = DEFAULT_EPSILON,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.device = device
        self.priors = PriorAlign(priors).priors
        self.references = self.priors if references is None else tuple(references)
        if len(self.references) != len(self.priors):
            raise PriorError(
                f"`references` must be one per prior, {len(self.priors)}, got "
                f"{len(self.references)}."
            )
        if position not in ("kl", "prediction_center"):
            raise PositionError(
                f"`position` must be 'kl' or 'prediction_center', got {position!r}."
            )
        self.locator = locator
        self.position = position
        self.mode: Literal["nearest", "linear"] = mode
        if minimum_confidence is None:
            together = positioned_together(self.references) and max_shift_mm is None
            minimum_confidence = (
                MINIMUM_CONFIDENCE_TOGETHER if together else MINIMUM_CONFIDENCE_ALONE
            )
        if not 0 <= minimum_confidence <= 1:
            raise PositionError(
                f"`minimum_confidence` must lie in [0, 1], got {minimum_confidence}."
            )
        self.minimum_confidence = minimum_confidence
        self.search: dict[str, Any] = {
            "spread_mm": spread_mm,
            "max_shift_mm": max_shift_mm,
            "minimum": minimum,
            "epsilon": epsilon,
        }

    def __call__(
        self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Infer a batch of volumes.

        Args:
            inputs: ``(B, C, W, H, D)``. With the image's channels alone, a MetaTensor whose
                affine locates the prior; with prior channels behind them, the position is known
                and the network runs as it is.
            network: a :class:`PriorDrivenNet`, also inside DDP or ``torch.compile``, or exported to
                TorchScript.
            *args: passed on to the inferer and the backbone.
            **kwargs: likewise.

        Returns:
            Adjusted logits ``(B, K + 1, W, H, D)`` (softmax) or ``(B, K, W, H, D)`` (sigmoid), a
            MetaTensor that keeps the positions under ``organ_position_mm`` and their confidences
            under ``organ_position_confidence``. So do ``inputs``, since ``Invertd`` replaces a
            prediction's metadata by its image's. Where an organ is predicted nowhere, or its
            position is too uncertain, its prior is neutral, with a warning.

        Raises:
            PriorError: ``network`` is no :class:`PriorDrivenNet`.
            PositionError: ``inputs`` have no affine.
        """
        net = _unwrap(network)
        if inputs.shape[1] > net.image_channels:
            return self.inferer(inputs, network, *args, **kwargs).to(device=self.device)
        if not isinstance(inputs, MetaTensor):
            raise PositionError(
                "`inputs` must be a MetaTensor, whose affine says where the scan lies, got "
                f"{type(inputs).__name__}: keep MONAI's metadata, or place the prior yourself and "
                "pass it in the channels behind the image's."
            )
        softmax = net.activation == "softmax"
        logits = self._logits(inputs, net.network, *args, **kwargs)
        coarse = logits
        if self.locator is not None:
            # A sliding window may run on another device than the one that holds the scan.
            device = next((p.device for p in net.parameters()), inputs.device)
            coarse = self._locator_logits(inputs, device, *args, **kwargs)
        coarse = coarse.float().softmax(1)[:, 1:] if softmax else coarse.float().sigmoid()
        if coarse.shape[1] != len(self.priors):
            raise PriorError(
                f"`priors` must be one per organ of the network, {coarse.shape[1]}, got "
                f"{len(self.priors)}."
            )
        align = PriorAlign(self.priors, mode=self.mode, activation=net.activation)
        affines = _affines(inputs)
        names = _file_names(inputs)
        positions, confidences, placed = [], [], []
        for probability, affine, name in zip(coarse, affines, names, strict=True):
            found = self._locate(MetaTensor(probability, affine=affine), name)
            positions.append(found.position_mm)
            confidences.append(found.confidence)
            grid = MetaTensor(probability[:1], affine=affine)
            prior = align(grid, found.position_mm)
            placed.append(torch.as_tensor(prior).as_subclass(torch.Tensor))
        fuse = softmax_logits if softmax else sigmoid_logits
        adjusted = fuse(logits, torch.stack(placed), strength=net.strength, floor=net.floor)
        inputs.meta[POSITION_META] = torch.stack(positions)
        inputs.meta[CONFIDENCE_META] = torch.stack(confidences)
        result = MetaTensor(adjusted, meta=dict(inputs.meta))
        result.is_batch = inputs.is_batch
        result.applied_operations = inputs.applied_operations
        return result

    def _locator_logits(
        self, inputs: torch.Tensor, device: torch.device, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        assert self.locator is not None
        return self._logits(inputs, self.locator.to(device).eval(), *args, **kwargs)

    def _logits(
        self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        logits = torch.as_tensor(self.inferer(inputs, network, *args, **kwargs))
        return logits.to(device=self.device).as_subclass(torch.Tensor)

    def _locate(self, probability: MetaTensor, name: str) -> Located:
        """Positions, NaN where nothing is predicted or the position is uncertain."""
        if self.position == "prediction_center":
            found = self._prediction_centers(probability)
        else:
            found = locate_organs(probability, self.references, **self.search)
        for k, confidence in enumerate(found.confidence.tolist()):
            if found.position_mm[k].isnan().any():
                reason = "is predicted nowhere"
            elif confidence < self.minimum_confidence:
                found.position_mm[k] = torch.nan
                reason = f"has no certain position ({confidence:.2f})"
            else:
                continue
            warnings.warn(
                f"Organ {self.priors[k].organ} {reason} in {name}: its prior stays neutral.",
                stacklevel=3,
            )
        return found

    def _prediction_centers(self, probability: MetaTensor) -> Located:
        minimum, epsilon = self.search["minimum"], self.search["epsilon"]
        check_search(minimum=minimum, epsilon=epsilon, max_shift_mm=self.search["max_shift_mm"])
        check_probability(probability, organs=len(self.priors))
        predicted = (probability >= minimum) & (probability > epsilon)
        position = torch.full((len(self.priors), 3), torch.nan, dtype=torch.float64)
        for k in torch.nonzero(predicted.as_tensor().flatten(1).any(1)).flatten().tolist():
            mask = MetaTensor(predicted.as_tensor()[k : k + 1], affine=probability.affine)
            center: Center = "mass" if self.priors[k].center == "mass" else "bbox"
            position[k] = organ_position(mask, organ=1, center=center)
        return Located(position, position.isfinite().all(1).double())


def _unwrap(network: nn.Module) -> PriorDrivenNet:
    inner = network
    while not _is_prior_driven(inner):
        wrapped = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            break
        inner = wrapped
    if not _is_prior_driven(inner):
        raise PriorError(
            f"`network` must be a PriorDrivenNet, got {type(inner).__name__}: wrap the segmenter, "
            "or use the plain inferer for a network without prior."
        )
    return cast(PriorDrivenNet, inner)


def _is_prior_driven(network: nn.Module) -> bool:
    if isinstance(network, torch.jit.ScriptModule):
        return network.original_name == PriorDrivenNet.__name__
    return isinstance(network, PriorDrivenNet)


def _affines(inputs: MetaTensor) -> torch.Tensor:
    """An affine for each scan of a batch, of one for all or of as many."""
    affine = inputs.affine
    fits = affine.ndim in (2, 3) and affine.shape[-2:] == (4, 4)
    affines = affine.reshape(-1, 4, 4) if fits else affine
    if not fits or not len(inputs) or len(affines) not in (1, len(inputs)):
        raise PositionError(
            "`inputs` must hold scans and a 4 × 4 affine for all or for each, got "
            f"{len(inputs)} scans and affines of shape {tuple(affine.shape)}."
        )
    return affines.expand(len(inputs), 4, 4)


def _file_names(inputs: MetaTensor) -> list[str]:
    names = inputs.meta.get("filename_or_obj", "a scan")
    names = [names] if isinstance(names, str) else list(names)
    return [str(n) for n in names] if len(names) == len(inputs) else ["a scan"] * len(inputs)
