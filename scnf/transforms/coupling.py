"""Affine coupling layers (Dinh et al., "Density estimation using Real NVP", https://arxiv.org/abs/1605.08803, eq. 7-8).

One part of the input passes unchanged and determines how the other part is scaled and shifted. A `Partition` defines
the two parts. Callers pass in the network that computes scale and shift, so this module depends on no networks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scnf.checks import check_choice
from scnf.errors import InvalidArgument
from scnf.transforms.base import Transform, UndoResult, gradients, sum_except_batch
from scnf.transforms.composite import CompositeTransform


def sigmoid_log_scale(raw: Tensor) -> Tensor:
    """Return log sigmoid(raw + 2): the scale lies in (0, 1) and starts near 0.88 (code of arXiv 1905.00505)."""
    return F.logsigmoid(raw + 2.0)


def symmetric_log_scale(raw: Tensor, bound: float = 2.0) -> Tensor:
    """Return bound * tanh(raw / bound): the scale lies in (e^-bound, e^bound) and starts at 1."""
    return bound * torch.tanh(raw / bound)


LOG_SCALES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": sigmoid_log_scale, "symmetric": symmetric_log_scale}


class ChannelPartition:
    """Split vectors [N, D] or images [N, C, H, W] into two parts along dimension 1.

    Args:
        size: Number of channels or features.
        swap: Whether the second part passes unchanged and the first is transformed; by default the other way round.
        first: Size of the first part; half of `size`, rounded down, by default.

    Attributes:
        num_identity: Number of channels that pass unchanged and enter the network.
        num_transformed: Number of channels that are scaled and shifted.
    """

    def __init__(self, size: int, swap: bool = False, first: int | None = None) -> None:
        first = size // 2 if first is None else first
        if not 0 < first < size:
            raise InvalidArgument("first", f"must leave channels in both parts: {first} of {size} does not")
        self.sizes, self.swap = (first, size - first), swap
        self.num_identity, self.num_transformed = self.sizes[::-1] if swap else self.sizes

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts (identity, transformed)."""
        first, second = inputs.split(self.sizes, dim=1)
        return (second, first) if self.swap else (first, second)

    def merge(self, identity: Tensor, transformed: Tensor) -> Tensor:
        """Join the two parts again, which undoes :meth:`split`."""
        return torch.cat([transformed, identity] if self.swap else [identity, transformed], dim=1)

    def mask(self, values: Tensor) -> Tensor:
        """Return `values` unchanged, as the transformed part has no entries to mask."""
        return values

    def mask_identity(self, values: Tensor) -> Tensor:
        """Return `values` unchanged, as the identity part has no entries to mask."""
        return values


class CheckerboardPartition:
    """Split pixels by the two colours of a checkerboard, which works with a single channel.

    Both parts keep the full size [N, C, H, W], with zeros on the squares of the other part.

    Args:
        size: Number of channels.
        swap: Whether the two colours exchange their roles.
    """

    def __init__(self, size: int, swap: bool = False) -> None:
        self.num_identity = self.num_transformed = size
        self.swap = swap

    def _squares(self, inputs: Tensor) -> Tensor:
        rows = torch.arange(inputs.shape[-2], device=inputs.device).unsqueeze(1)
        columns = torch.arange(inputs.shape[-1], device=inputs.device)
        return ((rows + columns + self.swap) % 2).to(inputs.dtype)

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts (identity, transformed), each with zeros on the squares of the other part."""
        squares = self._squares(inputs)
        return inputs * (1 - squares), inputs * squares

    def merge(self, identity: Tensor, transformed: Tensor) -> Tensor:
        """Join the two parts again, which undoes :meth:`split`."""
        return identity + transformed

    def mask(self, values: Tensor) -> Tensor:
        """Set values [N, C, H, W] to zero on the identity squares."""
        return values * self._squares(values)

    def mask_identity(self, values: Tensor) -> Tensor:
        """Set values [N, C, H, W] to zero on the transformed squares."""
        return values * (1 - self._squares(values))


Partition = ChannelPartition | CheckerboardPartition


class AffineCoupling(Transform):
    """Scale and shift one part of the input by functions of the other: y_b = x_b * exp(s(x_a)) + t(x_a).

    Args:
        network: Network that is called as `network(identity, context)`, with a context or None. It returns
            2 * `partition.num_transformed` channels, the raw scales before the shifts.
        partition: Partition into the identity part and the transformed part.
        scale: Name of the scale function. "sigmoid" means sigmoid(s + 2), as in arXiv 1905.00505. "symmetric" means the
            exponential of a bounded value, and starts at 1.

    Example:
        >>> from scnf.nn import MLP
        >>> partition = ChannelPartition(4)
        >>> layer = AffineCoupling(MLP(partition.num_identity, 2 * partition.num_transformed, 16), partition)
        >>> outputs, logabsdet = layer(torch.randn(8, 4))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([8, 4]), torch.Size([8]))
    """

    def __init__(self, network: nn.Module, partition: Partition, scale: str = "sigmoid") -> None:
        super().__init__()
        check_choice("scale", scale, LOG_SCALES)
        self.network, self.partition, self.scale = network, partition, scale

    def _log_scale_and_shift(self, identity: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        numbers = self.network(identity) if context is None else self.network(identity, context)
        if numbers.shape != (identity.shape[0], 2 * self.partition.num_transformed, *identity.shape[2:]):
            raise InvalidArgument(
                "network",
                f"must map {list(identity.shape)} to 2 x {self.partition.num_transformed} channels of the same size, "
                f"not to {list(numbers.shape)}",
            )
        raw, shift = numbers.to(identity.dtype).chunk(2, dim=1)
        return self.partition.mask(LOG_SCALES[self.scale](raw)), self.partition.mask(shift)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs like `inputs`, logabsdet [N])."""
        identity, transformed = self.partition.split(inputs)
        log_scale, shift = self._log_scale_and_shift(identity, context)
        outputs = self.partition.merge(identity, transformed * log_scale.exp() + shift)
        return outputs, sum_except_batch(log_scale)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs like `inputs`, logabsdet [N])."""
        identity, transformed = self.partition.split(inputs)
        log_scale, shift = self._log_scale_and_shift(identity, context)
        outputs = self.partition.merge(identity, (transformed - shift) * (-log_scale).exp())
        return outputs, -sum_except_batch(log_scale)

    def undo(self, outputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor) -> UndoResult:
        """Return inputs and gradients from outputs, with one pass of the network.

        One pass suffices, as the network has the same input in both directions.
        """
        identity, transformed = self.partition.split(outputs)
        leaf = identity.detach().requires_grad_()
        with torch.enable_grad():
            results = self._log_scale_and_shift(leaf, context)
        log_scale, shift = (result.detach() for result in results)
        grad_identity, grad_transformed = self.partition.split(grad_outputs)
        scaled, scale = transformed - shift, log_scale.exp()
        grad_log_scale = grad_transformed * scaled + grad_logabsdet.view(-1, *(1,) * (outputs.dim() - 1))
        leaves = [leaf, *self.parameters(), *([] if context is None else [context])]
        grads = gradients(results, (grad_log_scale, grad_transformed), leaves)
        if leaf in grads:
            grad_identity = grad_identity + self.partition.mask_identity(grads.pop(leaf))
        inputs = self.partition.merge(identity, scaled / scale)
        return UndoResult(inputs, self.partition.merge(grad_identity, grad_transformed * scale), grads)


def two_way_coupling(
    make_network: Callable[[int, int], nn.Module],
    size: int,
    scale: str = "sigmoid",
    partition: type[ChannelPartition] | type[CheckerboardPartition] = ChannelPartition,
) -> CompositeTransform:
    """Return two couplings with exchanged roles, which together transform every element once.

    Args:
        make_network: Function (input channels, output channels) -> network.
        size: Number of channels or features.
        scale: Name of the scale function, see :class:`AffineCoupling`.
        partition: Class of the partition, `ChannelPartition` or `CheckerboardPartition`.
    """
    partitions = [partition(size, swap=swap) for swap in (False, True)]
    return CompositeTransform(
        [AffineCoupling(make_network(each.num_identity, 2 * each.num_transformed), each, scale) for each in partitions]
    )
