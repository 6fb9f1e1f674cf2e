"""What every class-conditional distribution answers, and the one place where classes are enumerated."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def enumerate_classes(
    log_prob: Callable[[Tensor, Tensor], Tensor], z: Tensor, num_classes: int, chunk: int | None = None
) -> Tensor:
    """Log p(z | y) for every class: folds the classes into the batch and calls `log_prob` once.

    Args:
        log_prob: (z [M, D], y [M]) -> [M], row by row independent (no batch normalisation inside).
        z: [N, D].
        num_classes: K.
        chunk: at most this many classes in one call, to bound memory when K is large; all at once by default.

    Returns:
        [N, K], in nats.
    """
    rows = z.shape[0]
    columns = []
    for classes in torch.arange(num_classes, device=z.device).split(chunk or num_classes):
        count = classes.shape[0]
        folded = z.unsqueeze(1).expand(-1, count, -1).reshape(rows * count, -1)
        columns.append(log_prob(folded, classes.repeat(rows)).view(rows, count))
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
