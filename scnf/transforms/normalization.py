"""Layers that start from a first batch, such as ActNorm, an affine map that standardises each channel."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scnf.errors import InvalidArgument
from scnf.transforms.base import Transform, UndoResult


class DataDependentTransform(Transform):
    """A transform whose parameters a first batch may set, see :func:`initialize_from_data`.

    The buffer `initialized` alone records whether a batch has set them, so a state may be copied in place. The forward
    pass neither reads nor changes the buffer. Subclasses implement :meth:`initialize`.
    """

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.tensor(False))

    def initialize(self, inputs: Tensor) -> None:
        """Set the parameters from a batch [N, ...]."""
        raise NotImplementedError


@torch.no_grad()
def initialize_from_data(module: nn.Module, *inputs: Any) -> None:
    """Call a module once, so that each layer that starts from data starts from the first inputs it receives.

    Layers that have already started, or were loaded as started, keep their parameters. If no layer is left to start,
    the module is not called.

    Args:
        module: Layer or model.
        *inputs: Arguments of the call.

    Raises:
        InvalidArgument: The inputs of a layer would give parameters that are not finite.

    Example:
        >>> layer, x = ActNorm(3), 5 + 2 * torch.randn(64, 3)
        >>> initialize_from_data(layer, x)
        >>> bool(layer.initialized)
        True
    """

    def initialize(layer: DataDependentTransform, arguments: tuple[Tensor, ...]) -> None:
        if not layer.initialized:  # the module may call a layer several times
            layer.initialize(arguments[0].detach())
            if not all(bool(parameter.isfinite().all()) for parameter in layer.parameters()):
                raise InvalidArgument(
                    "inputs", f"must be finite, and not too large, for {type(layer).__name__} to start from"
                )
            layer.initialized.fill_(True)

    layers = [m for m in module.modules() if isinstance(m, DataDependentTransform) and not m.initialized]
    handles = [layer.register_forward_pre_hook(initialize) for layer in layers]
    try:
        if layers:
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()


class Standardize(Transform):
    """Compute y = (x - mean) / scale per column of vectors [N, D], with fixed statistics of all training rows.

    The statistics are buffers, which :meth:`start` sets once, before the training. No gradient moves them. Until then
    the layer is the identity.

    Args:
        size: Number of columns, D.

    Example:
        >>> layer = Standardize(2)
        >>> layer.start(torch.tensor([3.0, 0.0]), torch.tensor([2.0, 0.5]))
        >>> layer(torch.tensor([[5.0, 1.0]]))
        (tensor([[1., 2.]]), tensor([-0.]))
    """

    mean: Tensor
    scale: Tensor
    started: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("started", torch.tensor(False))

    def start(self, mean: Tensor, scale: Tensor) -> None:
        """Set mean [D] and scale [D], unless they are set, or were loaded as set.

        Raises:
            InvalidArgument: A mean is not finite, or a scale is not above 0 and finite.
        """
        if not bool(mean.isfinite().all()):
            raise InvalidArgument("mean", "must be finite")
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise InvalidArgument("scale", "must be above 0 and finite")
        if not self.started:
            self.mean.copy_(mean)
            self.scale.copy_(scale)
            self.started.fill_(True)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs like `inputs`, logabsdet [N])."""
        return (inputs - self.mean) / self.scale, -self.scale.log().sum().expand(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs like `inputs`, logabsdet [N])."""
        return inputs * self.scale + self.mean, self.scale.log().sum().expand(inputs.shape[0])

    def undo(self, outputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor) -> UndoResult:
        """Return inputs and gradients from outputs, without another pass."""
        return UndoResult(outputs * self.scale + self.mean, grad_outputs / self.scale, {})


def standardize(module: nn.Module, mean: Tensor, scale: Tensor) -> None:
    """Start each :class:`Standardize` in a module from the mean [D] and scale [D] of all training rows.

    Raises:
        InvalidArgument: A mean is not finite, or a scale is not above 0 and finite.
    """
    for layer in module.modules():
        if isinstance(layer, Standardize):
            layer.start(mean, scale)


class ActNorm(DataDependentTransform):
    """Compute y = (x + shift) * exp(log_scale) per channel; a first batch gives y mean 0 and variance 1.

    The layer comes from Glow (https://arxiv.org/abs/1807.03039, section 3.1). A channel that is constant in the first
    batch is centred and keeps scale 1. This holds for every channel if the batch has one value per channel. The layer
    is the identity until :func:`initialize_from_data` starts it or a state is loaded.

    Args:
        size: Number of channels or features.

    Example:
        >>> layer, x = ActNorm(3), 5 + 2 * torch.randn(64, 3)
        >>> initialize_from_data(layer, x)
        >>> bool((layer(x)[0].mean(0).abs() < 1e-4).all())
        True
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def initialize(self, inputs: Tensor) -> None:
        """Set shift and scale so that each channel of a batch [N, C, ...] has mean 0 and variance 1."""
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
        """Map data to noise and return (outputs like `inputs`, logabsdet [N])."""
        log_scale, shift, logabsdet = self._parameters_like(inputs)
        return (inputs + shift) * log_scale.exp(), logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs like `inputs`, logabsdet [N])."""
        log_scale, shift, logabsdet = self._parameters_like(inputs)
        return inputs * (-log_scale).exp() - shift, -logabsdet

    def undo(self, outputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor) -> UndoResult:
        """Return inputs and gradients from outputs, without another pass."""
        log_scale, shift, _ = self._parameters_like(outputs)
        centred, grad_inputs = outputs * (-log_scale).exp(), grad_outputs * log_scale.exp()
        other_dims = [dim for dim in range(outputs.dim()) if dim != 1]
        grads: dict[Tensor, Tensor] = {self.shift: grad_inputs.sum(dim=other_dims)}
        grads[self.log_scale] = (grad_outputs * outputs).sum(dim=other_dims) + (
            math.prod(outputs.shape[2:]) * grad_logabsdet.sum()
        )
        return UndoResult(centred - shift, grad_inputs, grads)
