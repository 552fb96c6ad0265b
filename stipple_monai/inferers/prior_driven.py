"""Inference where the organ's position is unknown: predict, locate, place, fuse.

The backbone runs once. Its logits do not depend on the prior, so they serve both as the coarse
prediction that tells the position and, with the placed prior's bias, as the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from stipple_monai.errors import PositionError, PriorError
from stipple_monai.inferers.certainty import least_confidence
from stipple_monai.inferers.located import (
    Fused,
    affines_of,
    check_options,
    fuse_logits,
    fuse_placed,
)
from stipple_monai.inferers.network_parts import (
    NetworkParts,
    known_calibration,
    logits_of,
    network_parts,
)
from stipple_monai.networks import Calibration
from stipple_monai.nifti import RAS_REMEDY, leads_to_lps
from stipple_monai.positioning import DEFAULT_EPSILON, DEFAULT_SPREAD_MM
from stipple_monai.priors import Mode, SpatialPrior
from stipple_monai.spatial import Extent, scan_extent
from stipple_monai.transforms import PriorAlign

POSITION_META = "organ_position_mm"
"""Metadata key of the positions that were used: ``(B, K, 3)``, RAS mm, NaN where unknown."""

CONFIDENCE_META = "organ_position_confidence"
"""Metadata key of their confidences: ``(B, K)`` in [0, 1], see :func:`locate_organs`."""


class PriorDrivenInferer(Inferer):
    """Wrap any MONAI inferer for a :class:`PriorDrivenNet`, or for any other network.

    Args:
        inferer: what runs the network over a volume (``SlidingWindowInferer``, ``SliceInferer``,
            ``SimpleInferer``, …).
        priors: one per organ, in the order of the network's channels.
        locator: a second network whose prediction tells the positions, with the same channels
            and activation as the first: the prior-free baseline, as in the paper. It costs
            a pass of its own, in evaluation mode, on the network's device. ``None`` takes the
            backbone's own prediction without prior.
        references: what the prediction is compared with, one per organ; the priors where
            ``None``. The paper's is one labelled volume,
            ``SpatialPrior.estimate([label], smoothing_mm=None)``.
        position: how organs are located: ``"kl"`` by :func:`~stipple_monai.locate_organs`, or
            ``"prediction_center"``, the naive way, at the centre of the voxels that reach
            ``minimum``. It is the centre that the prior has, of mass or of the bounding box; the
            latter also for a group-wise prior, whose centre no mask has by itself. References and
            other organs do not matter to it, and there is no confidence to measure: it is 1 where
            the organ is predicted.
        mode: see :meth:`SpatialPrior.place`.
        minimum_confidence: an organ whose position is less certain keeps a neutral prior, with a
            warning; 0 places every prior. ``None`` takes 0.51 for organs that are located one by
            one without the scan's vote, which says that another place is as good, and otherwise
            0.2: what is ambiguous for one organ, other organs or the scan decide.
        spread_mm, max_shift_mm, minimum, epsilon: see :func:`~stipple_monai.locate_organs`.
        scan_vote: likewise; False for scans that begin elsewhere than the labelled ones. MONAI's
            crops and pads do not matter.
        calibration: how much network and prior count, or the file of it. ``None`` takes the
            network's own, or equation 2 where it has none; ``"equation_2"`` that alone, and
            ``"constants"`` the network's own or `Calibration.unfitted`. A file ``….json`` that is
            not there counts as ``"constants"``, and the log says so.
        labelled: how many labelled scans the network was trained with, or how many of them had each
            organ, for ``"constants"``. None: as many as each prior was estimated from; say it where
            priors are of other scans, such as those of :func:`~stipple_monai.atlas`.
        prior_in_training: whether the network was trained with the prior, likewise.
        locate_with: whether organs are located in the network's own prediction, ``"raw"``, or in
            the calibrated one without prior.
        image_channels: of a network that is no `PriorDrivenNet`; None: all channels.
        activation: likewise, what its logits are meant for.
        device: where organs are located and the prior is fused, and the result lies: "cpu" where a
            GPU has no memory for them. ``None``: where the inferer leaves the logits.

    Raises:
        PriorError: priors, references and calibration do not belong together, ``calibration`` is
            neither a known word nor a file, ``labelled`` is no number of scans, or ``mode`` or
            ``activation`` is unknown.
        PositionError: an option of positioning is unknown or out of its range, or organs are to be
            located together that were not estimated together.
    """

    def __init__(
        self,
        inferer: Inferer,
        priors: Sequence[SpatialPrior],
        *,
        locator: nn.Module | None = None,
        references: Sequence[SpatialPrior] | None = None,
        position: Literal["kl", "prediction_center"] = "kl",
        mode: Mode = "auto",
        minimum_confidence: float | None = None,
        spread_mm: float = DEFAULT_SPREAD_MM,
        max_shift_mm: float | None = None,
        minimum: float = 0.5,
        epsilon: float = DEFAULT_EPSILON,
        scan_vote: bool = True,
        calibration: Calibration | str | os.PathLike[str] | None = None,
        labelled: int | Sequence[int] | None = None,
        prior_in_training: bool = False,
        locate_with: Literal["raw", "calibrated"] = "raw",
        image_channels: int | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.inferer, self.device, self.locator = inferer, device, locator
        self.priors = PriorAlign(priors, mode=mode, activation=activation).priors
        self.references = _known_references(self.priors, references)
        search = {"max_shift_mm": max_shift_mm, "minimum": minimum, "epsilon": epsilon}
        check_options(position, locate_with, spread_mm, **search)
        self.calibration = known_calibration(calibration, organs=len(self.priors))
        self.labelled, self.prior_in_training = _counts(self.priors, labelled), prior_in_training
        self.image_channels, self.activation = image_channels, activation
        least = least_confidence(self.references, position, max_shift_mm, scan_vote=scan_vote)
        self.minimum_confidence = minimum_confidence = _known_confidence(minimum_confidence, least)
        self.search: dict[str, Any] = {
            **{"position": position, "mode": mode, "minimum_confidence": minimum_confidence},
            **{"locate_with": locate_with, "spread_mm": spread_mm, "scan_vote": scan_vote},
            **search,
        }

    def __call__(
        self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Infer a batch of volumes.

        Args:
            inputs: ``(B, C, W, H, D)``. With the image's channels alone, a MetaTensor whose
                affine locates the prior; with prior channels behind them, the position is known.
            network: a :class:`PriorDrivenNet`, also inside DDP or ``torch.compile``, or scripted to
                TorchScript; or any network that returns logits. Its backbone is run by itself: what
                was compiled as a whole runs here as if it were not, but
                ``PriorDrivenNet(torch.compile(backbone), …)`` runs compiled.
            *args: passed on to the inferer and the backbone.
            **kwargs: likewise.

        Returns:
            Adjusted logits ``(B, K + 1, W, H, D)`` (softmax) or ``(B, K, W, H, D)`` (sigmoid), a
            MetaTensor that keeps the positions under ``organ_position_mm`` and their confidences
            under ``organ_position_confidence``. So do ``inputs``, since ``Invertd`` replaces a
            prediction's metadata by its image's. Where an organ is predicted nowhere, or its
            position is too uncertain, its prior is neutral, with a warning.

        Raises:
            PriorError: priors, calibration and network do not belong together, ``inputs`` have
            other axes, or the network returns no single tensor of logits on their grid.
            PositionError: ``inputs`` have no affine.
        """
        net = self._parts(network, inputs)
        if inputs.shape[1] > net.image_channels and net.calibration is None:
            return self._run(inputs, network, *args, **kwargs).to(device=self.device)
        if inputs.shape[1] > net.image_channels:
            logits, prior = self.parts(inputs, network, *args, **kwargs)
            adjusted = fuse_placed(
                logits, prior, net.strength, net.floor, net.calibration, net.activation
            )
        else:
            adjusted = self._located(inputs, net, *args, **kwargs)[1].logits
        if not isinstance(inputs, MetaTensor):
            return adjusted
        # not by the constructor, which cannot read the metadata of several scans
        return MetaTensor(adjusted).copy_meta_from(inputs)

    def parts(
        self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What is fused: the logits without prior, and the priors as they are placed.

        Args:
            inputs: as for a call.
            network: likewise.
            *args: likewise.
            **kwargs: likewise.

        Returns:
            Plain tensors ``(B, K + 1, W, H, D)`` (softmax) or ``(B, K, W, H, D)`` (sigmoid), and
            ``(B, K, W, H, D)``.

        Raises:
            PriorError, PositionError: as in a call.
        """
        net = self._parts(network, inputs)
        if inputs.shape[1] > net.image_channels:
            image, prior = inputs[:, : net.image_channels], inputs[:, net.image_channels :]
            logits = self._logits(image, net.backbone, *args, **kwargs)
            return logits, torch.as_tensor(prior).as_subclass(Tensor).to(logits.device)
        logits, fused = self._located(inputs, net, *args, **kwargs)
        return logits, fused.prior

    def _located(
        self, inputs: Tensor, net: NetworkParts, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Fused]:
        if not isinstance(inputs, MetaTensor):
            raise PositionError(
                "`inputs` must be a MetaTensor, whose affine says where the scan lies, got "
                f"{type(inputs).__name__}: keep MONAI's metadata, or place the prior yourself and "
                "pass it in the channels behind the image's."
            )
        if leads_to_lps(inputs):
            raise PositionError(
                f"`inputs` must have an affine to RAS mm, got one to LPS: {RAS_REMEDY}."
            )
        logits = self._logits(inputs, net.backbone, *args, **kwargs)
        coarse = None
        if self.locator is not None:
            # A sliding window may run on another device than the one that holds the scan.
            device = next((p.device for p in net.backbone.parameters()), inputs.device)
            coarse = self._locator_logits(inputs, device, *args, **kwargs)
        fused = fuse_logits(
            logits,
            affines_of(inputs.affine, scans=len(inputs), name="inputs"),
            self.priors,
            calibration=net.own if net.calibration is None else net.calibration,
            activation=net.activation,
            coarse=coarse,
            references=self.references,
            strength=net.strength,
            floor=net.floor,
            names=_file_names(inputs),
            extents=_extents(inputs),
            **self.search,
        )
        inputs.meta[POSITION_META] = fused.position_mm
        inputs.meta[CONFIDENCE_META] = fused.confidence
        return logits, fused

    def _parts(self, network: nn.Module, inputs: Tensor) -> NetworkParts:
        if inputs.ndim != 5:
            raise PriorError(
                "`inputs` must have the axes B C W H D, got the shape "
                f"{tuple(inputs.shape)}: a single scan is `image[None]`, a slice has one voxel "
                "along D."
            )
        return network_parts(
            network,
            calibration=self.calibration,
            labelled=self.labelled,
            prior_in_training=self.prior_in_training,
            image_channels=self.image_channels or inputs.shape[1],
            activation=self.activation,
        )

    def _locator_logits(
        self, inputs: torch.Tensor, device: torch.device, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        assert self.locator is not None
        with eval_mode(self.locator):
            return self._logits(inputs, self.locator.to(device), *args, **kwargs)

    def _logits(
        self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        logits = self._run(inputs, network, *args, **kwargs)
        return logits.to(device=self.device).as_subclass(torch.Tensor)

    def _run(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        logits = self.inferer(inputs, network, *args, **kwargs)
        return logits_of(logits, shape=(len(inputs), *inputs.shape[2:]))


def _known_references(
    priors: Sequence[SpatialPrior], references: Sequence[SpatialPrior] | None
) -> Sequence[SpatialPrior]:
    """What was given, or the priors."""
    if references is None:
        return priors
    if len(references) != len(priors):
        raise PriorError(
            f"`references` must be one per prior, {len(priors)}, got {len(references)}."
        )
    return tuple(references)


def _counts(priors: Sequence[SpatialPrior], labelled: int | Sequence[int] | None) -> Sequence[int]:
    """Label maps of each organ that the network was trained with: as told, or as priors know."""
    if isinstance(labelled, np.ndarray | Tensor):
        labelled = labelled.tolist()
    if not isinstance(labelled, Sequence) and labelled == 0:
        raise PriorError(
            "`labelled` must be the scans that the network was trained with, at least 1, or how "
            f"many of them had each organ, got {labelled}: None counts those of the priors."
        )
    counts = [prior.case_count for prior in priors] if labelled is None else labelled
    known: Sequence[int] = Calibration.unfitted(len(priors), labelled=counts).record["labelled"]
    return known


def _known_confidence(minimum: float | None, least: float) -> float:
    minimum = least if minimum is None else minimum
    if not 0 <= minimum <= 1:
        raise PositionError(f"`minimum_confidence` must lie in [0, 1], got {minimum}.")
    return minimum


def _extents(inputs: MetaTensor) -> list[Extent]:
    """The grids of the whole scans of a batch, of which transforms may have left a part."""
    affines = affines_of(inputs.affine, scans=len(inputs), name="inputs")
    part = torch.empty(1).expand(inputs.shape[1:])  # takes no memory
    return [
        scan_extent(MetaTensor(part, affine=affine, meta=_notes(inputs, i)))
        for i, affine in enumerate(affines)
    ]


def _notes(inputs: MetaTensor, scan: int) -> dict[str, Any]:
    """What the reader noted of the grid of one scan of a batch."""
    notes = {}
    for key, axes in (("original_affine", 2), ("spatial_shape", 1), ("as_closest_canonical", 0)):
        value = inputs.meta.get(key)
        if value is None:
            continue
        if isinstance(value, list | tuple):  # numbers, or what a loader made of several scans'
            value = torch.stack([torch.as_tensor(v) for v in value], dim=-1)
        noted = torch.as_tensor(value).cpu()
        if noted.ndim <= axes:
            notes[key] = noted
        elif len(noted) == len(inputs):  # or they are those of other scans
            notes[key] = noted[scan]
    return notes


def _file_names(inputs: MetaTensor) -> list[str]:
    names = inputs.meta.get("filename_or_obj", "a scan")
    names = [names] if isinstance(names, str) else list(names)
    return [str(n) for n in names] if len(names) == len(inputs) else ["a scan"] * len(inputs)
