"""Networks for couplings, and the registry that holds them by name.

Networks for couplings are called as `network(inputs, context=None)`. Their last layer starts at zero, so that a
coupling starts as a fixed scale without shift. They concatenate a context [N, C] to the input. They use no batch
normalisation, so that rows stay independent.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scnf import native
from scnf.checks import check_choice
from scnf.errors import InvalidArgument
from scnf.nn.layers import Conv3x3, Residual, replaceable, zero
from scnf.registry import registering


class MLP(nn.Module):
    """Map vectors by a linear layer, residual blocks, ReLU and a zero-initialised linear layer.

    The network is :func:`scnf.native.mlp` where possible.

    Args:
        in_features: Width of the input [N, in_features].
        out_features: Width of the output [N, out_features].
        hidden: Number of hidden units.
        blocks: Number of residual blocks.
        context_features: Width of the context; 0 for none.

    Example:
        >>> MLP(3, 6, hidden=16, context_features=2)(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: int, blocks: int = 2, context_features: int = 0
    ) -> None:
        super().__init__()
        self.takes_context = context_features > 0
        self.enter = nn.Linear(in_features + context_features, hidden)
        self.blocks = nn.Sequential(
            *(Residual(nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)) for _ in range(blocks))
        )
        self.leave = zero(nn.Linear(hidden, out_features))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_features] to [N, out_features]."""
        if self.takes_context:
            if context is None:
                raise InvalidArgument("context", "must be given, because this network was built with a context")
            inputs = torch.cat([inputs, context.to(inputs.dtype)], dim=1)
        layers = (self.enter, *(layer for block in self.blocks for layer in block.children()), self.leave)
        if replaceable(*layers):
            weights = (cast(Tensor, tensor) for layer in layers for tensor in (layer.weight, layer.bias))
            return native.mlp(inputs, *weights)
        outputs: Tensor = self.leave(F.relu(self.blocks(self.enter(inputs))))
        return outputs


class ConvNet(nn.Module):
    """Map images by a 3x3 convolution, residual blocks, ReLU and a zero-initialised 3x3 convolution.

    Each residual block has two 3x3 convolutions. The Glow form with zero padding is :func:`scnf.native.conv_net` where
    possible.

    Args:
        in_channels: Number of channels of the input [N, in_channels, H, W].
        out_channels: Number of channels of the output [N, out_channels, H, W].
        hidden: Number of hidden channels.
        blocks: Number of residual blocks; 0 for the Glow form, 3x3 -> 1x1 -> 3x3.
        padding: Kind of padding, "zeros" or "reflect" (which needs H and W of at least 2).
        context_features: Width of a context [N, C] that is given to every pixel; 0 for none.

    Example:
        >>> ConvNet(2, 4, hidden=8)(torch.zeros(5, 2, 7, 7)).shape
        torch.Size([5, 4, 7, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        blocks: int = 0,
        padding: Literal["zeros", "reflect"] = "zeros",
        context_features: int = 0,
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return Conv3x3(inputs, outputs, padding)

        self.takes_context = context_features > 0
        self.enter = conv(in_channels + context_features, hidden)
        self.glow_form = blocks == 0 and padding == "zeros"
        if blocks == 0:
            self.blocks = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(hidden, hidden, 1))
        else:
            self.blocks = nn.Sequential(*(Residual(conv(hidden, hidden), conv(hidden, hidden)) for _ in range(blocks)))
        self.leave = zero(conv(hidden, out_channels))
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU than the default order

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H, W]."""
        if self.takes_context:
            if context is None:
                raise InvalidArgument("context", "must be given, because this network was built with a context")
            context_channels = context.to(inputs.dtype)[:, :, None, None].expand(-1, -1, *inputs.shape[2:])
            inputs = torch.cat([inputs, context_channels], dim=1)
        layers = (self.enter, cast(nn.Conv2d, self.blocks[1 if self.glow_form else 0]), self.leave)
        if self.glow_form and replaceable(*layers):
            weights = (tensor for layer in layers for tensor in (layer.weight, cast(Tensor, layer.bias)))
            return native.conv_net(inputs, *weights)
        outputs: Tensor = self.leave(F.relu_(self.blocks(self.enter(inputs))))
        return outputs


class GlobalConvNet(nn.Module):
    """Map images by three 3x3 convolutions and two linear layers, so that each output depends on the whole image.

    The first two convolutions have the full size. A 2x2 maximum pooling follows them, and a maximum pooling to 4x4
    pixels follows the third. There is no normalisation, so that rows stay independent. The last layer starts at zero.

    Args:
        in_channels: Number of channels of the input [N, in_channels, H, W].
        out_channels: Number of channels of the output [N, out_channels, H, W].
        size: Size (H, W) of the images.
        channels: Number of channels of the first two convolutions; the third has twice as many.
        hidden: Number of hidden units between the linear layers.

    Example:
        >>> GlobalConvNet(3, 2, (14, 14))(torch.zeros(5, 3, 14, 14)).shape
        torch.Size([5, 2, 14, 14])
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: Sequence[int], channels: int = 64, hidden: int = 512
    ) -> None:
        super().__init__()
        self.out_shape = (out_channels, *size)
        layers: list[nn.Module] = []
        for inputs, outputs, pool in (
            (in_channels, channels, nn.Identity()),
            (channels, channels, nn.MaxPool2d(2, ceil_mode=True)),
            (channels, 2 * channels, nn.AdaptiveMaxPool2d(4)),
        ):
            layers += [
                Conv3x3(inputs, outputs),
                pool,
                nn.ReLU(inplace=True),
            ]  # pooling first leaves fewer pixels for ReLU
        self.features = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(2 * channels * 16, hidden), nn.ReLU(inplace=True)
        )
        self.leave = zero(nn.Linear(hidden, math.prod(self.out_shape)))
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H, W]; the context is ignored."""
        outputs: Tensor = self.leave(self.features(inputs)).unflatten(1, self.out_shape)
        return outputs


def _conv(inputs: int, outputs: int, hidden: int, blocks: int) -> nn.Module:
    return ConvNet(inputs, outputs, hidden)


NetworkFactory = Callable[[int, int, int, int], nn.Module]
"""Function (input width, output width, hidden width, number of residual blocks) -> network for couplings."""
IMAGE_NETWORKS: dict[str, NetworkFactory] = {
    "conv": _conv,
    "resnet": ConvNet,
    "resnet-reflect": partial(ConvNet, padding="reflect"),
}
"""Networks for couplings of images [N, C, H, W] by name; :func:`register_network` adds one."""
VECTOR_NETWORKS: dict[str, NetworkFactory] = {"mlp": MLP}
"""Networks for couplings of vectors [N, D] by name."""


def register_network(
    name: str, inputs: Literal["images", "vectors"] = "images"
) -> Callable[[NetworkFactory], NetworkFactory]:
    """Return a decorator that registers a network for couplings under a name for `model.network`.

    The decorated function is called with the input width, the output width, the hidden width and `model.blocks`. It
    returns a network that maps images [N, C_in, H, W] to [N, C_out, H, W], or vectors [N, D_in] to [N, D_out]. The rows
    of the network must be independent. If its last layer starts at zero, a coupling starts as the identity, up to a
    fixed scale.

    Args:
        name: Name of the network.
        inputs: Kind of inputs, "images" or "vectors".

    Raises:
        InvalidArgument: The name is taken or malformed, or the kind of inputs is unknown.

    Example:
        >>> @register_network("pointwise")
        ... def pointwise(inputs, outputs, hidden, blocks):
        ...     return nn.Sequential(nn.Conv2d(inputs, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1))
        >>> del IMAGE_NETWORKS["pointwise"]
    """
    check_choice("inputs", inputs, ("images", "vectors"))
    return registering(IMAGE_NETWORKS if inputs == "images" else VECTOR_NETWORKS, name, "network")
