"""Networks for couplings: no probability in here.

Each is called as `network(inputs, context=None)` and ends in a layer that starts at zero, so that a coupling built on
it starts as a fixed scale without shift. The context [N, C] is concatenated to the input. No batch normalisation: rows
stay independent.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class _Residual(nn.Module):
    """Pre-activation residual block: x + second(act(first(act(x))))."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.second(F.relu(self.first(F.relu(inputs))))


class MLP(nn.Module):
    """Linear -> residual blocks -> ReLU -> zero-initialised linear, on vectors.

    Args:
        in_features: width of the input [N, in_features].
        out_features: width of the output [N, out_features].
        hidden: width inside.
        blocks: number of residual blocks.
        context_features: width of the context, 0 for none.

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
            *(_Residual(nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)) for _ in range(blocks))
        )
        self.leave = _zero(nn.Linear(hidden, out_features))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_features] to [N, out_features]."""
        if self.takes_context:
            if context is None:
                raise ValueError("this network was built with a context and none was given")
            inputs = torch.cat([inputs, context.to(inputs.dtype)], dim=1)
        return self.leave(F.relu(self.blocks(self.enter(inputs))))


class ConvNet(nn.Module):
    """3x3 convolution -> residual blocks of two 3x3 convolutions -> ReLU -> zero-initialised 3x3, on images.

    Args:
        in_channels: channels of the input [N, in_channels, H, W].
        out_channels: channels of the output [N, out_channels, H, W].
        hidden: channels inside.
        blocks: number of residual blocks; 0 for the Glow form, 3x3 -> 1x1 -> 3x3.
        padding: "zeros" or "reflect" (needs H and W of at least 2).
        context_features: width of a context [N, C] given to every pixel, 0 for none.

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
            return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding)

        self.takes_context = context_features > 0
        self.enter = conv(in_channels + context_features, hidden)
        self.blocks: nn.Module
        if blocks == 0:
            self.blocks = nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, hidden, 1))
        else:
            self.blocks = nn.Sequential(*(_Residual(conv(hidden, hidden), conv(hidden, hidden)) for _ in range(blocks)))
        self.leave = _zero(conv(hidden, out_channels))
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU than the default order

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H, W]."""
        if self.takes_context:
            if context is None:
                raise ValueError("this network was built with a context and none was given")
            everywhere = context.to(inputs.dtype)[:, :, None, None].expand(-1, -1, *inputs.shape[2:])
            inputs = torch.cat([inputs, everywhere], dim=1)
        return self.leave(F.relu(self.blocks(self.enter(inputs))))
