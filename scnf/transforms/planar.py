"""Planar flows for posteriors, which are cheap forward and are inverted numerically."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scnf.errors import InvalidArgument
from scnf.transforms.base import Transform


class Planar(Transform):
    """Compute z' = z + u tanh(w z + b)  (Rezende and Mohamed, https://arxiv.org/abs/1505.05770, eq. 10).

    u is moved along w so that u w > -1, as in appendix A.1 of the paper, which makes the map invertible.

    Args:
        features: Width of the vectors, D.
        context_features: Width of a context [N, C] on which u, w and b depend linearly; 0 makes them parameters.

    Example:
        >>> planar = Planar(3)
        >>> z = torch.randn(5, 3)
        >>> outputs, logabsdet = planar(z)
        >>> torch.allclose(planar.inverse(outputs)[0], z, atol=1e-5)
        True
    """

    def __init__(self, features: int, context_features: int = 0) -> None:
        super().__init__()
        self.features = features
        self.bias = nn.Parameter(0.1 * torch.randn(2 * features + 1))
        self.by_context = nn.Linear(context_features, 2 * features + 1, bias=False) if context_features else None
        if self.by_context is not None:
            nn.init.normal_(self.by_context.weight, std=0.01)

    def _vectors(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u [N, D], w [N, D], b [N], and 1 + u w [N], which is positive."""
        raw = self.bias.expand(len(inputs), -1)
        if self.by_context is not None:
            if context is None:
                raise InvalidArgument("context", "must be given, because this planar flow was built with a context")
            raw = raw + self.by_context(context).to(raw.dtype)
        u, w, b = raw[:, : self.features], raw[:, self.features : -1], raw[:, -1]
        product = (u * w).sum(dim=1)
        slack = F.softplus(product)
        squared_norm = w.square().sum(dim=1).clamp_min(torch.finfo(w.dtype).tiny)
        return u + ((slack - 1 - product) / squared_norm).unsqueeze(1) * w, w, b, slack

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map vectors [N, D] to (outputs [N, D], logabsdet [N])."""
        u, w, b, slack = self._vectors(inputs, context)
        activation = torch.tanh((inputs * w).sum(dim=1) + b)
        return inputs + u * activation.unsqueeze(1), _slope(activation, slack).log()

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Invert the forward map and return (outputs [N, D], logabsdet [N]).

        Bisection solves a + (u w) tanh(a + b) = w y for a = w z. The left side increases with a, as u w > -1. A last
        Newton step carries the gradients.
        """
        u, w, b, slack = self._vectors(inputs, context)
        target, product = (inputs * w).sum(dim=1), slack - 1
        with torch.no_grad():
            low, high = target - product.abs(), target + product.abs()
            for _ in range(60):
                middle = (low + high) / 2
                is_below = middle + product * torch.tanh(middle + b) < target
                low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
            start = (low + high) / 2
        activation = torch.tanh(start + b)
        root = start - (start + product * activation - target) / _slope(activation, slack)
        activation = torch.tanh(root + b)
        return inputs - u * activation.unsqueeze(1), -_slope(activation, slack).log()


def _slope(activation: Tensor, slack: Tensor) -> Tensor:
    """Return 1 + u w (1 - tanh^2), without cancellation where u w is close to -1."""
    return activation.square() + slack * (1 - activation.square())
