"""The 2D U-Net of the paper (table 5), for axial slices.

MONAI has no network with these layers. Its ``BasicUNet`` is the nearest, but normalises after
*every* convolution, and its up-sampling without transposed convolution is a 1×1 convolution
*before* the interpolation, where table 5 has a 2×2 convolution with batch norm *after* it; its
``UNet`` and ``AttentionUnet`` down-sample by strided convolution or add attention gates.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SliceUNet(nn.Module):
    """U-Net with max-pooling, nearest up-sampling and batch norm after each block's second conv.

    Per level of the encoder and at the bottom: 3×3 convolution and ReLU, 3×3 convolution, batch
    norm and ReLU; 2×2 max-pooling between levels. Per level of the decoder: nearest up-sampling by
    2, 2×2 convolution, batch norm and ReLU, concatenation with the encoder's map of that level, two
    3×3 convolutions as above. As in the table, the last block (``final_prediction``) has no batch
    norm. A 1×1 convolution gives the logits.

    Every convolution has a bias and keeps the size ("same" padding; the even 2×2 kernel is padded
    at the far end). A size that is not a multiple of ``2 ** (levels − 1)`` works: what max-pooling
    dropped is replicated at the far end before the concatenation, as in MONAI's ``BasicUNet``.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits, the background included in softmax form.
        channels: feature maps per level, from the full resolution down; at least two levels. The
            default has 31.04 M parameters with one channel in and two out (the paper says 32 M).
        dropout: probability in ``[0, 1)`` of dropping a feature map at the end of each block; not
            in the table.

    Raises:
        ValueError: ``channels`` or ``dropout`` is out of range; in `forward`, a slice too small for
            the number of levels.

    Example:
        >>> net = SliceUNet(in_channels=1, out_channels=2, channels=(4, 8, 16))
        >>> net(torch.zeros(2, 1, 30, 17)).shape
        torch.Size([2, 2, 30, 17])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(
                "`channels` must hold at least two positive numbers, one per level, "
                f"got {tuple(channels)}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"`dropout` must lie in [0, 1), got {dropout}; 0 switches it off")
        self.smallest_size = 2 ** (len(channels) - 1)
        inputs = [in_channels, *channels[:-1]]
        self.encoder = nn.ModuleList(
            _two_convolutions(c_in, c_out, dropout=dropout)
            for c_in, c_out in zip(inputs[:-1], channels[:-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = _two_convolutions(inputs[-1], channels[-1], dropout=dropout)
        self.decoder = nn.ModuleList(
            _UpBlock(channels[level + 1], channels[level], dropout=dropout, second_norm=level > 0)
            for level in reversed(range(len(channels) - 1))
        )
        self.output = nn.Conv2d(channels[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map slices ``(B, in_channels, W, H)`` to logits ``(B, out_channels, W, H)``."""
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Map slices ``(B, in_channels, W, H)`` to the features of each level, the bottom last."""
        if min(x.shape[-2], x.shape[-1]) < self.smallest_size:
            raise ValueError(
                f"`x` must be at least {self.smallest_size} voxels wide and high, got "
                f"{list(x.shape)}; pad the slices or use fewer levels"
            )
        features: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            features.append(x)
            x = self.pool(x)
        features.append(self.bottom(x))
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Map the features of `encode` to logits ``(B, out_channels, W, H)``."""
        x, skips = features[-1], features[:-1]
        for block in self.decoder:
            x = block(x, skips.pop())
        return self.output(x)


class BFloat16SliceUNet(SliceUNet):
    """`SliceUNet` that computes in bfloat16, with channels last in memory.

    Weights stay float32, and their names are the same, so that weights of one serve the other.
    Logits are float32 as well. Made for processors with bfloat16 units (AVX-512 or AMX), where
    MONAI's engines offer no mixed precision; `benchmarks/README.md` has the ratio.

    Args:
        in_channels, out_channels, channels, dropout: as for `SliceUNet`.

    Example:
        >>> BFloat16SliceUNet(channels=(4, 8))(torch.zeros(1, 1, 16, 16)).dtype
        torch.float32
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, channels, dropout)
        # torch does not declare this overload
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Map slices ``(B, in_channels, W, H)`` to bfloat16 features, the bottom's last."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().encode(x)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Map the features of `encode` to float32 logits ``(B, out_channels, W, H)``."""
        with torch.autocast(features[-1].device.type, torch.bfloat16):
            return super().decode(features).float()


class _UpBlock(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, *, dropout: float, second_norm: bool
    ) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            # padding="same" does the same, but warns about even kernels
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(in_channels, out_channels, 2),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        self.convolutions = _two_convolutions(
            2 * out_channels, out_channels, dropout=dropout, second_norm=second_norm
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        missing = [0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]]
        x = F.pad(x, missing, mode="replicate")
        return self.convolutions(torch.cat([skip, x], dim=1))


def _two_convolutions(
    in_channels: int, out_channels: int, *, dropout: float, second_norm: bool = True
) -> nn.Sequential:
    norm = [nn.BatchNorm2d(out_channels)] if second_norm else []
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        *norm,
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
    )
