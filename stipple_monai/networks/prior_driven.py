"""A wrapper that gives any MONAI segmentation network a spatial prior.

Words used here:
    backbone: the wrapped network; it sees the image and never the prior.
    head: one map of logits. Networks with deep supervision return several in training, at the
        image's resolution or below it.

    calibration: how much network and prior count for each organ
        (`stipple_monai.networks.calibration`).

The prior travels in the channels behind the image's. It is the one form that the default
``prepare_batch``, sliding-window and slice inferers, TorchScript, ONNX, ``torch.compile`` and DDP
all pass on; an optional second argument is silently dropped by several of them.
"""

import re
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stipple_monai.errors import PriorError
from stipple_monai.networks.calibration import COLUMNS, Calibration
from stipple_monai.networks.fusion import DEFAULT_FLOOR, sigmoid_logits, softmax_logits

_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


class PriorDrivenNet(nn.Module):
    """Run a segmentation network on the image and add the prior's bias to its logits.

    The output are adjusted logits (`stipple_monai.networks.fusion`), so losses and activations
    stay those of the bare network. The weights are the backbone's alone: a checkpoint of the bare
    network loads as it is, one that was saved through DDP or ``torch.compile`` likewise, and so
    does one of the wrapper. (``copy_model_state`` of a bare one needs ``dst_prefix="network."``.)
    A calibration is a buffer, which checkpoints and exports keep; without one there is none.

    Args:
        network: any module that maps ``(B, image_channels, *spatial)`` to logits of that spatial
            shape with ``C`` channels, or in training to several heads: stacked on dim 1 (DynUNet)
            or as a list or tuple (SegResNetDS). Each head is biased by itself; for a head of lower
            resolution the prior is averaged over the head's voxels.
        image_channels: number of leading input channels that are the image.
        activation: what the logits are meant for: ``"softmax"`` has ``C = K + 1`` channels with
            the background first (equation 2), ``"sigmoid"`` has ``C = K`` (equation 3).
        strength: factor of the bias; 1 is the paper, 0 switches the prior off. May be changed on
            the attribute later.
        floor: lowest prior probability, see `softmax_logits`.
        dropout: where given, the probability of all dropout layers of ``network``. MONAI Label sets
            it to measure uncertainty by repeated passes; they have no weights, so a network that
            was trained without dropout loads.
        organs: K, where known: tools that load only what has the shape of the network's own
            (``copy_model_state``) then load a calibration, too.

    Raises:
        TypeError: ``network`` is no module.
        ValueError: another argument is out of range (``strength`` and ``floor``: in `forward`), or
            ``network`` has no dropout layers to set.

    Example:
        >>> net = PriorDrivenNet(nn.Conv2d(1, 3, kernel_size=1), image_channels=1)
        >>> image, prior = torch.rand(2, 1, 8, 8), torch.rand(2, 2, 8, 8)
        >>> net(torch.cat([image, prior], dim=1)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_channels: int,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        strength: float = 1.0,
        floor: float = DEFAULT_FLOOR,
        dropout: float | None = None,
        organs: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"`network` must be a torch.nn.Module, got {type(network).__name__}")
        if image_channels < 1:
            raise ValueError(f"`image_channels` must be at least 1, got {image_channels}")
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f'`activation` must be "softmax" or "sigmoid", got {activation!r}')
        if dropout is not None:
            _set_dropout(network, dropout)
        self.network = network
        self.image_channels = image_channels
        self.activation = activation
        self.strength = float(strength)
        self.floor = float(floor)
        if organs is not None and organs < 1:
            raise ValueError(f"`organs` must be at least 1, got {organs}")
        self.calibration: Tensor
        self.register_buffer("calibration", torch.zeros(0, len(COLUMNS)))
        if organs is not None:
            self.calibrate(Calibration.identity(organs, activation=activation))
        self.register_load_state_dict_pre_hook(_accept_bare_keys)
        self.register_state_dict_post_hook(_leave_out_no_calibration)

    @torch.jit.unused
    def calibrate(self, calibration: Calibration | None) -> None:
        """Set how much network and prior count from now on.

        Args:
            calibration: None for equation 2.

        Raises:
            PriorError: it was fitted for another activation or number of organs.
        """
        rows = self.calibration.shape[0]
        if calibration is None:
            if rows == 0:
                return
            calibration = Calibration.identity(rows, activation=self.activation)
        if calibration.activation != self.activation or rows not in (0, calibration.organs):
            raise PriorError(
                f"`calibration` must be for {self.activation} and {rows or 'any number of'} "
                f"organs, got one for {calibration.activation} and {calibration.organs}; fit it "
                "for this network"
            )
        self.calibration = calibration.tensor().to(self.calibration.device)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return adjusted logits.

        Args:
            x: ``(B, image_channels + K, *spatial)``, the image and behind it the prior of each
                organ in ``[0, 1]``.

        Returns:
            Adjusted logits ``(B, C, *spatial)``, with stacked heads ``(B, heads, C, *spatial)``,
            and a list of heads where the backbone returns a list or tuple.

        Raises:
            PriorError: prior channels are missing or too many, or the logits have another spatial
                shape.
            TypeError: the backbone returns anything but logits or heads of logits.
        """
        if x.shape[1] <= self.image_channels:
            raise PriorError(
                f"`x` must carry prior channels behind its {self.image_channels} image channels, "
                f"got {x.shape[1]} channels in all; concatenate image and prior, image first"
            )
        image = x[:, : self.image_channels]
        prior = x[:, self.image_channels :]
        output = self.network(image)
        if isinstance(output, Tensor):
            if output.ndim == x.ndim + 1:
                return torch.stack([self._fuse(head, prior) for head in output.unbind(1)], dim=1)
            return self._fuse(output, prior)
        if not torch.jit.is_scripting():
            _check_heads(output, x.ndim)
        # for TorchScript, which is told that SegResNetDS may return None
        assert output is not None
        return [self._fuse_resampled(head, prior) for head in output]

    def _fuse_resampled(self, logits: Tensor, prior: Tensor) -> Tensor:
        if logits.shape[2:] != prior.shape[2:]:
            prior = F.interpolate(prior, size=logits.shape[2:], mode="area")
        return self._fuse(logits, prior)

    def _fuse(self, logits: Tensor, prior: Tensor) -> Tensor:
        organs = logits.shape[1] - (1 if self.activation == "softmax" else 0)
        if prior.shape[1] != organs:
            raise PriorError(
                f"`x` must carry {organs} prior channels behind its {self.image_channels} image "
                f"channels, since the network returns {logits.shape[1]} channels of logits, "
                f"got {prior.shape[1]}; pass one prior per organ, none for the background"
            )
        numbers = self.calibration
        if self.activation == "softmax":
            return softmax_logits(logits, prior, self.strength, self.floor, numbers)
        return sigmoid_logits(logits, prior, self.strength, self.floor, numbers)

    def extra_repr(self) -> str:
        """Settings shown when the module is printed."""
        text = (
            f"image_channels={self.image_channels}, activation={self.activation!r}, "
            f"strength={self.strength}, floor={self.floor}"
        )
        for name, values in zip(COLUMNS, self.calibration.T.tolist(), strict=True):
            if values:
                text += f", calibrated_{name}=[" + ", ".join(f"{v:.4g}" for v in values) + "]"
        return text


def _set_dropout(network: nn.Module, dropout: float) -> None:
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout` must lie in [0, 1), got {dropout}; 0 switches it off")
    layers = [module for module in network.modules() if isinstance(module, _DROPOUT)]
    if not layers and dropout > 0:
        raise ValueError(
            f"`dropout` must be 0 or None for a network without dropout layers, got {dropout} for "
            f"{type(network).__name__}; build it with dropout"
        )
    for layer in layers:
        layer.p = dropout


def _check_heads(heads: object, ndim: int) -> None:
    if isinstance(heads, list | tuple):
        if all(isinstance(head, Tensor) and head.ndim == ndim for head in heads):
            return
        found = [tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__ for h in heads]
    else:
        found = [type(heads).__name__]
    raise TypeError(
        "`network` must return logits, or a list or tuple of logits with "
        f"{ndim} axes each, got {found}; wrap it so that it returns its logits only"
    )


def _leave_out_no_calibration(
    module: PriorDrivenNet, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Without a calibration the weights are the network's alone."""
    if module.calibration.shape[0] == 0:
        del state_dict[f"{prefix}calibration"]


def _accept_bare_keys(
    module: PriorDrivenNet, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Rename the keys of a bare network's state dict, or of a DDP or compiled one, to its own.

    The calibration of a state takes the place of the module's, whose number of organs may be
    unknown; a state without one leaves it.
    """
    expected = {*module.state_dict(), "calibration"}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        inner = re.sub(r"^((module|_orig_mod)\.)+", "", name)
        for candidate in (name, f"network.{name}", inner, f"network.{inner}"):
            if candidate in expected:
                state_dict[prefix + candidate] = state_dict.pop(key)
                break
    own = module.calibration
    found = state_dict.get(f"{prefix}calibration")
    if found is None or found.shape[0] == 0:
        state_dict[f"{prefix}calibration"] = own
    elif own.shape[0] == 0:
        module.calibration = torch.zeros_like(found, dtype=own.dtype, device=own.device)
