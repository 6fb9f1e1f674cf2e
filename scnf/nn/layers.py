"""Layers that networks share."""

from typing import Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from scnf import native

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)


def replaceable(*layers: nn.Module) -> bool:
    """Return whether a kernel may replace the layers: they have no hooks and no parametrised weights."""
    kinds, hooks = (nn.Linear, nn.Conv2d, Conv3x3), ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    return all(type(layer) in kinds and not any(getattr(layer, hook) for hook in hooks) for layer in layers)


def zero(layer: _Layer) -> _Layer:
    """Set the weights of a layer to zero, and return the layer."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size; padded with zeros, it is :func:`scnf.native.conv3x3` where possible."""

    def __init__(self, in_channels: int, out_channels: int, padding: Literal["zeros", "reflect"] = "zeros") -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, padding_mode=padding)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H, W]."""
        if self.padding_mode == "zeros" and self.bias is not None:
            return native.conv3x3(inputs, self.weight, self.bias)
        return super().forward(inputs)


class Residual(nn.Module):
    """A pre-activation residual block computes x + second(relu(first(relu(x))))."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, ...] to [N, ...]."""
        residual: Tensor = self.second(F.relu_(self.first(F.relu(inputs))))
        return inputs + residual
