"""What every class-conditional distribution answers, and the one place where classes are enumerated."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence, register_kl
from torch.utils.checkpoint import checkpoint


def single_or_better(values: Tensor) -> Tensor:
    """What a network gave, in float32 where it came out in half precision: densities are computed from that."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


if TYPE_CHECKING:
    _Independent = Independent[Distribution]
else:
    _Independent = Independent


class Rows(_Independent):
    """Independent dimensions [M, D, ...] as one distribution over rows, of which there may be none.

    PyTorch's own sum over dimensions makes an error of M = 0.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p [M], in nats."""
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
    of_classes: Tensor | None = None,
) -> Tensor:
    """A function of rows and labels, such as log p(z | y), for every class: folds the classes into the batch.

    Args:
        function: (inputs [M, ...], y [M]) -> [M, ...], row by row independent (no batch normalisation inside).
        inputs: [N, ...], one or several.
        num_classes: K.
        chunk: at most this many classes in one call, to bound memory when K is large: for gradients, each call is then
            made again in backward (https://arxiv.org/abs/1604.06174). All at once by default.
        of_classes: [K, ...], what the function takes of each class in place of its number.

    Returns:
        [N, K, ...].
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    rows = inputs[0].shape[0]
    columns = []
    again = chunk is not None and chunk < num_classes and torch.is_grad_enabled()
    if of_classes is None:
        of_classes = torch.arange(num_classes, device=inputs[0].device)
    for classes in of_classes.split(chunk or num_classes):
        count = classes.shape[0]
        # the gradient of an expansion is a sum, that of repeat_interleave goes row by row, several times slower
        folded = [each.unsqueeze(1).expand(-1, count, *each.shape[1:]).flatten(0, 1) for each in inputs]
        folded.append(classes.unsqueeze(0).expand(rows, *classes.shape).flatten(0, 1))
        values = checkpoint(function, *folded, use_reentrant=False) if again else function(*folded)
        columns.append(values.view(rows, count, *values.shape[1:]))
    return torch.cat(columns, dim=1)


class ClassConditional(nn.Module):
    """p(z | y) for vectors z [N, D] and labels y [N] in 0..K-1.

    Args:
        num_classes: K.
        chunk: classes enumerated at once in :meth:`log_prob_all`; all of them by default.
    """

    def __init__(self, num_classes: int, chunk: int | None = None) -> None:
        super().__init__()
        self.num_classes, self.chunk = num_classes, chunk

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """Log p(z | y) [N], in nats."""
        raise NotImplementedError

    def log_prob_all(self, z: Tensor) -> Tensor:
        """Log p(z | y) for every class, [N, K], in nats."""
        return enumerate_classes(self.log_prob, z, self.num_classes, self.chunk)

    def sample(self, y: Tensor) -> Tensor:
        """One z [N, D] for each label of y [N]."""
        raise NotImplementedError

    def initialize(self, z: Tensor, y: Tensor) -> None:
        """Data-dependent start from labelled latents z [N, D], y [N]; most distributions need none."""
