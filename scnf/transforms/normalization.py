"""Layers that start from the first batch: ActNorm, an affine map per channel that standardises it, and their kin."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scnf.transforms.base import Transform, Undone


class StartsFromData(Transform):
    """A transform whose parameters the first batch in training sets; until then, or a loaded state, they stay.

    Subclasses answer :meth:`start` and call :meth:`start_once` when they go forward.
    """

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.tensor(False))
        self._started = False  # `initialized` as a plain bool: reading the buffer would wait for the device

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._started = bool(self.initialized)

    def start(self, inputs: Tensor) -> None:
        """Set the parameters from a batch [N, ...]."""
        raise NotImplementedError

    @torch.no_grad()
    def start_once(self, inputs: Tensor) -> None:
        """Start from these inputs, in training, where nothing has started the layer before."""
        if self.training and not self._started:
            self.start(inputs.detach())
            self.initialized.fill_(True)
            self._started = True


class ActNorm(StartsFromData):
    """y = (x + shift) * exp(log_scale) per channel, set on the first training batch to give mean 0 and variance 1.

    Glow (https://arxiv.org/abs/1807.03039, section 3.1). A channel that is constant in that batch is centred and keeps
    scale 1; so does every channel of a batch of one value. Until a first training batch (or a loaded state) the layer
    is the identity.

    Args:
        size: number of channels or features.

    Example:
        >>> layer = ActNorm(3)
        >>> outputs, _ = layer(5 + 2 * torch.randn(64, 3))
        >>> bool((outputs.mean(0).abs() < 1e-4).all())
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
        self.start_once(inputs)
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
