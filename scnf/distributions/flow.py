"""Flows that model the density of vectors, alone or given the class (the conditional part of SCNF)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scnf.distributions.base import ClassConditional, enumerate_classes
from scnf.distributions.gaussian import DiagonalGaussian
from scnf.transforms.base import Transform


class FlowDistribution(nn.Module):
    """Model the density of vectors by a flow f to a Gaussian with learned scales.

    `log p(z) = log N(f(z); 0, diag(scale)^2) + log |det df/dz|`.

    Args:
        transform: Transform f of vectors [N, D].
        features: Width of the vectors, D.

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
        """Return the log density [N] of z [N, D], in nats."""
        noise, logabsdet = self.transform(z)
        return self.base.log_prob(noise) + logabsdet

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """Draw [num, D] samples."""
        return self.transform.inverse(self.base.sample(num))[0]


class ClassConditionalFlow(ClassConditional):
    """Model the density of vectors given the class by a conditional flow h (arXiv 1905.00505, section 3).

    `log p(z | y) = log N(h(z; y)) + log |det dh/dz|`. The label enters as a learned embedding, which is the context of
    the transform.

    Args:
        transform: Transform h of vectors [N, D], with context [N, embedding].
        features: Width of the vectors, D.
        num_classes: Number of classes, K.
        embedding: Width of the label embedding.
        chunk: Number of classes enumerated at once, see :class:`~scnf.distributions.base.ClassConditional`.

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

    def _conditional_log_prob(self, z: Tensor, embedding: Tensor, **part: int) -> Tensor:
        noise, logabsdet = self.transform(z, embedding, **part)
        return self.base.log_prob(noise) + logabsdet

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """Return log p(z | y) [N], in nats."""
        return self._conditional_log_prob(z, self.embedding(y))

    def log_prob_all(self, z: Tensor) -> Tensor:
        """Return log p(z | y) for every class, [N, K], in nats; layers that no label reaches run once per row."""
        if type(self).log_prob is not ClassConditionalFlow.log_prob:
            return super().log_prob_all(z)
        before_context = getattr(self.transform, "before_context", None)
        num_common = before_context() if before_context is not None else 0
        log_prob = self._conditional_log_prob
        if num_common:
            composite: Any = self.transform  # a transform with `before_context` also takes `start` and `stop`
            z, logabsdet = composite(z, stop=num_common)
            log_prob = partial(self._conditional_log_prob, start=num_common)
        # one look-up per class: with one per row, the gradients of all rows would be added to the table one by one
        embeddings = self.embedding(torch.arange(self.num_classes, device=z.device))
        log_probs = enumerate_classes(log_prob, z, self.num_classes, self.chunk, class_inputs=embeddings)
        return log_probs + logabsdet.unsqueeze(1) if num_common else log_probs

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """Draw one z [N, D] for each label of y [N]."""
        return self.transform.inverse(self.base.sample(y.shape[0]), self.embedding(y))[0]
