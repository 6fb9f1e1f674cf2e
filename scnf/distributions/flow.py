"""Densities of vectors by a flow: alone, or depending on the class, the conditional part of SCNF."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scnf.distributions.base import ClassConditional, enumerate_classes
from scnf.distributions.gaussian import DiagonalGaussian
from scnf.transforms.base import Transform


class FlowDistribution(nn.Module):
    """`log p(z) = log N(f(z); 0, diag(scale)^2) + log |det df/dz|`, with learned scales.

    Args:
        transform: f, of vectors [N, D].
        features: D.

    Example:
        >>> from scnf.transforms import FullLinear
        >>> flow = FlowDistribution(FullLinear(3), features=3)
        >>> flow.log_prob(torch.zeros(2, 3)).shape, flow.sample(5).shape
        (torch.Size([2]), torch.Size([5, 3]))
    """

    def __init__(self, transform: Transform, features: int) -> None:
        super().__init__()
        self.transform, self.base = transform, DiagonalGaussian(features)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density [N] of z [N, D], in nats."""
        noise, logabsdet = self.transform(z)
        return self.base.log_prob(noise) + logabsdet

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """[num, D] draws."""
        return self.transform.inverse(self.base.sample(num))[0]


class ClassConditionalFlow(ClassConditional):
    """`log p(z | y) = log N(h(z; y)) + log |det dh/dz|` (arXiv 1905.00505, section 3).

    The label enters as a learned embedding, given to the transform as its context.

    Args:
        transform: h, of vectors [N, D], with context [N, embedding].
        features: D.
        num_classes: K.
        embedding: width of the label embedding.
        chunk: as in :class:`~scnf.distributions.base.ClassConditional`.

    Example:
        >>> from scnf.nn import MLP
        >>> from scnf.transforms import AffineCoupling, ChannelPartition
        >>> h = AffineCoupling(MLP(1, 2, 16, context_features=10), ChannelPartition(2))
        >>> flow = ClassConditionalFlow(h, features=2, num_classes=3)
        >>> flow.log_prob_all(torch.zeros(5, 2)).shape, flow.sample(torch.tensor([0, 2])).shape
        (torch.Size([5, 3]), torch.Size([2, 2]))
    """

    def __init__(
        self, transform: Transform, features: int, num_classes: int, embedding: int = 10, chunk: int | None = None
    ) -> None:
        super().__init__(num_classes, chunk)
        self.transform = transform
        self.embedding = nn.Embedding(num_classes, embedding)
        self.base = DiagonalGaussian(features)

    def _given(self, z: Tensor, embedding: Tensor, **part: int) -> Tensor:
        noise, logabsdet = self.transform(z, embedding, **part)
        return self.base.log_prob(noise) + logabsdet

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """Log p(z | y) [N], in nats."""
        return self._given(z, self.embedding(y))

    def log_prob_all(self, z: Tensor) -> Tensor:
        """Log p(z | y) for every class, [N, K], in nats; layers that no label reaches run but once for a row."""
        if type(self).log_prob is not ClassConditionalFlow.log_prob:
            return super().log_prob_all(z)
        before = getattr(self.transform, "before_context", None)
        common = before() if before is not None else 0
        given = self._given
        if common:
            in_parts: Any = self.transform  # what has `before_context` also takes `start` and `stop`
            z, logabsdet = in_parts(z, stop=common)
            given = partial(self._given, start=common)
        # looked up once: a gradient for each of the rows would be added to the table one by one
        embeddings = self.embedding(torch.arange(self.num_classes, device=z.device))
        table = enumerate_classes(given, z, self.num_classes, self.chunk, of_classes=embeddings)
        return table + logabsdet.unsqueeze(1) if common else table

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """One z [N, D] for each label of y [N]."""
        return self.transform.inverse(self.base.sample(y.shape[0]), self.embedding(y))[0]
