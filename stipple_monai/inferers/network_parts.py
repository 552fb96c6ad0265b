"""What a fusion needs to know of a network, of whatever kind and however it is wrapped."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from stipple_monai.errors import PriorError
from stipple_monai.inferers.located import checked_calibration
from stipple_monai.networks import DEFAULT_FLOOR, Calibration, PriorDrivenNet

_log = logging.getLogger(__name__)

EQUATION_2 = "equation_2"
CONSTANTS = "constants"
"""For ``calibration``: network and prior count as they are."""


class NetworkParts(NamedTuple):
    """What the fusion needs to know of a network; ``calibration`` is that of the inferer."""

    backbone: nn.Module
    image_channels: int
    activation: Literal["softmax", "sigmoid"]
    strength: float = 1.0
    floor: float = DEFAULT_FLOOR
    own: Tensor | None = None
    calibration: Calibration | None = None


def network_parts(
    network: nn.Module,
    *,
    calibration: Calibration | str | None,
    labelled: Sequence[int],
    prior_in_training: bool,
    image_channels: int,
    activation: Literal["softmax", "sigmoid"],
) -> NetworkParts:
    """Look into a network.

    Args:
        network: a `PriorDrivenNet`, also wrapped or exported, or any other.
        calibration: see :func:`known_calibration`.
        labelled: how many label maps of each organ it was trained with.
        prior_in_training: whether it was trained with the prior.
        image_channels: of a network that is no `PriorDrivenNet`.
        activation: likewise.

    Raises:
        PriorError: a `PriorDrivenNet` is inside a module that is no known wrapper, or lost its
            settings when it was exported.
    """
    inner = _unwrap(network)
    _refuse_misuse(network, inner)
    if not _is_prior_driven(inner):
        return NetworkParts(
            backbone=network,
            image_channels=image_channels,
            activation=activation,
            calibration=_numbers(
                calibration or EQUATION_2,
                labelled,
                activation,
                prior_in_training=prior_in_training,
            ),
        )
    net = cast(PriorDrivenNet, inner)
    own = getattr(net, "calibration", None)
    known = calibration == CONSTANTS and own is not None and len(own) > 0
    return NetworkParts(
        backbone=net.network,
        image_channels=net.image_channels,
        activation=net.activation,
        strength=net.strength,
        floor=net.floor,
        own=own,
        calibration=_numbers(
            None if known else calibration,
            labelled,
            net.activation,
            prior_in_training=prior_in_training,
        ),
    )


def logits_of(output: Any, *, shape: Sequence[int]) -> Tensor:
    """The logits of whole scans that an inferer made, or :class:`PriorError`.

    Args:
        output: what it returned.
        shape: number of scans and their spatial shape, on whose grid the prior is placed.
    """
    if not isinstance(output, Tensor):
        raise PriorError(
            "The network must return its logits as one tensor B C W H D, got "
            f"{type(output).__name__}: of several outputs, such as those of deep supervision, "
            "return the first in a module around the network."
        )
    scans, *grid = shape
    if len(output) != scans or list(output.shape[2:]) != grid:
        raise PriorError(
            f"The network's logits must have the inputs' grid, {scans} × {tuple(grid)}, got "
            f"{len(output)} × {tuple(output.shape[2:])}: upsample them to it in the network, since "
            "priors are placed on the inputs' grid."
        )
    return output


def known_calibration(
    given: Calibration | str | os.PathLike[str] | None, *, organs: int
) -> Calibration | str | None:
    """What is given to count, read if it is a file, or :class:`PriorError`.

    A JSON file that is not there counts as ``"constants"``, and the log says so.
    """
    if given is None or (isinstance(given, str) and given in (EQUATION_2, CONSTANTS)):
        return given
    if not isinstance(given, Calibration):
        named = isinstance(given, str | os.PathLike)
        if not named or not (Path(given).is_file() or str(given).endswith(".json")):
            raise PriorError(
                f"`calibration` must be a Calibration, {EQUATION_2!r}, {CONSTANTS!r}, a JSON file "
                f"or None, got {given!r}, which is no file: correct the word or the path."
            )
        if not Path(given).is_file():
            _log.info(f"No calibration at {given}: the weights' own counts, or constants.")
            return CONSTANTS
        given = Calibration.load(given)
    if given.organs != organs:
        raise PriorError(
            f"`calibration` must have numbers for {organs} organs, one for each prior, got "
            f"{given.organs}: fit it for these priors."
        )
    return given


def _numbers(
    calibration: Calibration | str | None,
    labelled: Sequence[int],
    activation: Literal["softmax", "sigmoid"],
    *,
    prior_in_training: bool,
) -> Calibration | None:
    if calibration == CONSTANTS:
        return Calibration.unfitted(
            len(labelled),
            labelled=labelled,
            prior_in_training=prior_in_training,
            activation=activation,
        )
    if isinstance(calibration, str):
        return Calibration.identity(len(labelled), activation=activation)
    checked_calibration(calibration, activation=activation)
    return calibration


def _refuse_misuse(network: Any, inner: nn.Module) -> None:
    """Raise where a `PriorDrivenNet` lost its settings, or is inside what is run in its place."""
    if _is_prior_driven(inner):
        if not hasattr(inner, "image_channels"):
            raise PriorError(
                "`network` must know its image channels, got a PriorDrivenNet that was traced or "
                "frozen, which loses them: export it with torch.jit.script, and do not freeze it."
            )
        return
    owner = getattr(network, "__self__", network)
    if isinstance(owner, nn.Module) and any(map(_is_prior_driven, owner.modules())):
        raise PriorError(
            "`network` must be the PriorDrivenNet itself, got what has it inside, whose prior "
            f"would count twice, {type(owner).__name__}: pass that module."
        )


def _unwrap(network: nn.Module) -> nn.Module:
    inner = network
    while not _is_prior_driven(inner):
        wrapped = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            break
        inner = wrapped
    return inner


def _is_prior_driven(network: nn.Module) -> bool:
    if isinstance(network, torch.jit.ScriptModule):
        return network.original_name == PriorDrivenNet.__name__
    return isinstance(network, PriorDrivenNet)
