"""The interface that all class-conditional distributions share, and the function that enumerates classes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence, register_kl
from torch.utils.checkpoint import checkpoint


def at_least_float32(values: Tensor) -> Tensor:
    """Convert the half-precision outputs of a network to float32, as densities need float32 or better."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


if TYPE_CHECKING:
    _Independent = Independent[Distribution]
else:
    _Independent = Independent


class Rows(_Independent):
    """Treat independent dimensions [M, D, ...] as one distribution over rows, where M may be 0.

    The sum over dimensions in PyTorch's `Independent` raises an error for M = 0.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p [M], in nats."""
        log_probs: Tensor = self.base_dist.log_prob(value)
        return log_probs.sum(-1)


def _kl_of_rows(p: Rows, q: Rows) -> Tensor:
    return kl_divergence(p.base_dist, q.base_dist).sum(-1)


register_kl(Rows, Rows)(_kl_of_rows)


def enumerate_classes(
    function: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    num_classes: int,
    chunk: int | None = None,
    class_inputs: Tensor | None = None,
) -> Tensor:
    """Evaluate a function of rows and labels, such as log p(z | y), for every class, folded into the batch.

    Args:
        function: Function (inputs [M, ...], y [M]) -> [M, ...] of independent rows (no batch normalisation inside).
        inputs: One tensor [N, ...] or several.
        num_classes: Number of classes, K.
        chunk: Largest number of classes in one call, which bounds memory when K is large; all at once by default. With
            gradients, the backward pass then repeats each call (https://arxiv.org/abs/1604.06174).
        class_inputs: Values [K, ...] that the function takes for each class in place of its number.

    Returns:
        Values [N, K, ...] of the function for every row and class.
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    rows = inputs[0].shape[0]
    columns = []
    use_checkpoint = chunk is not None and chunk < num_classes and torch.is_grad_enabled()
    if class_inputs is None:
        class_inputs = torch.arange(num_classes, device=inputs[0].device)
    for classes in class_inputs.split(chunk or num_classes):
        count = classes.shape[0]
        # the gradient of expand is a sum; the gradient of repeat_interleave goes row by row, several times slower
        arguments = [each.unsqueeze(1).expand(-1, count, *each.shape[1:]).flatten(0, 1) for each in inputs]
        arguments.append(classes.unsqueeze(0).expand(rows, *classes.shape).flatten(0, 1))
        values = checkpoint(function, *arguments, use_reentrant=False) if use_checkpoint else function(*arguments)
        columns.append(values.view(rows, count, *values.shape[1:]))
    return torch.cat(columns, dim=1)


class ClassConditional(nn.Module):
    """A class-conditional distribution models p(z | y) for vectors z [N, D] and labels y [N] in 0..K-1.

    Args:
        num_classes: Number of classes, K.
        chunk: Number of classes that :meth:`log_prob_all` enumerates at once; all of them by default.
    """

    def __init__(self, num_classes: int, chunk: int | None = None) -> None:
        super().__init__()
        self.num_classes, self.chunk = num_classes, chunk

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """Return log p(z | y) [N], in nats."""
        raise NotImplementedError

    def log_prob_all(self, z: Tensor) -> Tensor:
        """Return log p(z | y) for every class, [N, K], in nats."""
        return enumerate_classes(self.log_prob, z, self.num_classes, self.chunk)

    def sample(self, y: Tensor) -> Tensor:
        """Draw one z [N, D] for each label of y [N]."""
        raise NotImplementedError

    def initialize(self, z: Tensor, y: Tensor) -> None:
        """Set parameters from latents z [N, D] with labels y [N]; the default does nothing."""
