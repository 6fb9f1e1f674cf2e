"""Layers that start from the first batch: ActNorm, an affine map per channel that standardises it, and their kin."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scnf.errors import InvalidArgument
from scnf.transforms.base import Transform, Undone


class StartsFromData(Transform):
    """A transform whose parameters a first batch sets, see :func:`start_from`; without one they stay as they are.

    Whether that has been is known to the buffer `initialized` alone, so a state may be copied in place. Going forward
    neither reads nor changes it. Subclasses answer :meth:`start`.
    """

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.tensor(False))

    def start(self, inputs: Tensor) -> None:
        """Set the parameters from a batch [N, ...]."""
        raise NotImplementedError


@torch.no_grad()
def start_from(module: nn.Module, *inputs: Any) -> None:
    """Call a module once; each layer in it that starts from data starts from the first inputs that it is given.

    Layers that were started or loaded before stay as they are; where all were, nothing is called.

    Args:
        module: a layer or a model.
        *inputs: what it is called with.

    Raises:
        ValueError: the inputs of a layer are such that its parameters would not be finite.

    Example:
        >>> layer, x = ActNorm(3), 5 + 2 * torch.randn(64, 3)
        >>> start_from(layer, x)
        >>> bool(layer.initialized)
        True
    """

    def start(layer: StartsFromData, given: tuple[Tensor, ...]) -> None:
        if not layer.initialized:  # it may stand at several places
            layer.start(given[0].detach())
            if not all(bool(parameter.isfinite().all()) for parameter in layer.parameters()):
                raise InvalidArgument(
                    "inputs", f"must be finite, and not too large, for {type(layer).__name__} to start from"
                )
            layer.initialized.fill_(True)

    waiting = [m for m in module.modules() if isinstance(m, StartsFromData) and not m.initialized]
    handles = [layer.register_forward_pre_hook(start) for layer in waiting]
    try:
        if waiting:
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()


class ActNorm(StartsFromData):
    """y = (x + shift) * exp(log_scale) per channel, which a first batch sets to give mean 0 and variance 1.

    Glow (https://arxiv.org/abs/1807.03039, section 3.1). A channel that is constant in that batch is centred and keeps
    scale 1; so does every channel of a batch of one value. Until :func:`start_from` (or a loaded state) the layer is
    the identity.

    Args:
        size: number of channels or features.

    Example:
        >>> layer, x = ActNorm(3), 5 + 2 * torch.randn(64, 3)
        >>> start_from(layer, x)
        >>> bool((layer(x)[0].mean(0).abs() < 1e-4).all())
        True
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def start(self, inputs: Tensor) -> None:
        """Give each channel of a batch [N, C, ...] mean 0 and variance 1."""
        values = inputs.transpose(0, 1).flatten(1)  # [C, everything else]
        mean = values.mean(dim=1)
        deviation = (values - mean.unsqueeze(1)).square().mean(dim=1).sqrt()
        constant = deviation <= 1e-6 * (1.0 + mean.abs())
        self.shift.copy_(-mean)
        self.log_scale.copy_(-torch.where(constant, torch.ones_like(deviation), deviation).log())

    def _parameters_like(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (-1,) + (1,) * (inputs.dim() - 2)
        logabsdet = (math.prod(inputs.shape[2:]) * self.log_scale.sum()).expand(inputs.shape[0])
        return self.log_scale.view(shape), self.shift.view(shape), logabsdet

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs like `inputs`, logabsdet [N])."""
        log_scale, shift, logabsdet = self._parameters_like(inputs)
        return (inputs + shift) * log_scale.exp(), logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs like `inputs`, logabsdet [N])."""
        log_scale, shift, logabsdet = self._parameters_like(inputs)
        return inputs * (-log_scale).exp() - shift, -logabsdet

    def undo(self, outputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor) -> Undone:
        """Inputs and gradients from outputs, without another pass."""
        log_scale, shift, _ = self._parameters_like(outputs)
        scaled, grad_inputs = outputs * (-log_scale).exp(), grad_outputs * log_scale.exp()
        others = [dim for dim in range(outputs.dim()) if dim != 1]
        found: dict[Tensor, Tensor] = {self.shift: grad_inputs.sum(dim=others)}
        found[self.log_scale] = (grad_outputs * outputs).sum(dim=others) + (
            math.prod(outputs.shape[2:]) * grad_logabsdet.sum()
        )
        return Undone(scaled - shift, grad_inputs, found)
