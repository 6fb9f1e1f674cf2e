"""A class-conditional density whose posterior is the softmax of K - 1 features."""

import math

import torch
from torch import Tensor, nn

from scnf.distributions.base import ClassConditional
from scnf.distributions.gaussian import DiagonalGaussian, simplex_vertices
from scnf.errors import InvalidArgument

_PARTS = 4


class ClassConditionalSoftmax(ClassConditional):
    """Model the density of vectors given the class so that the posterior is a softmax of their first K - 1 features.

    With a = z_1..K-1, b the other features and the vertices v_1..K of a regular simplex at unit distance from the
    origin, `p(z | y) = K p0(a) softmax_k(v_k . a / gain)_y p(b)`.

    The density p0 stays the same where the vertices are exchanged. By this symmetry, each class has the mass 1 / K of
    p0 softmax, so that p(z | y) is normalised. With a uniform prior, p(y | z) is the softmax itself. Vectors to which
    :meth:`move` has added the logits of a network have the network's posterior, up to noise of standard deviation 1 /
    gain in each logit.

    p0 is a mixture of isotropic Gaussians on the rays through the vertices, at four distances with four scales, which
    are learned. p(b) is a :class:`~scnf.distributions.gaussian.DiagonalGaussian`.

    Args:
        num_classes: Number of classes, K.
        features: Width of the vectors, at least K - 1.
        gain: Scale of the first features relative to logits.
        chunk: Ignored, because the classes share nearly all computations.

    Raises:
        InvalidArgument: There are fewer than K - 1 features.

    Example:
        >>> density = ClassConditionalSoftmax(num_classes=3, features=5, gain=100.0)
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> z = density.move(torch.zeros(1, 5), logits)
        >>> torch.allclose(density.log_prob_all(z).softmax(dim=1), logits.softmax(dim=1))
        True
    """

    vertices: Tensor

    def __init__(self, num_classes: int, features: int, gain: float = 4.0, chunk: int | None = None) -> None:
        super().__init__(num_classes, chunk)
        self.used = num_classes - 1
        if features < self.used:
            raise InvalidArgument("features", f"must be {self.used} or more for {num_classes} classes, not {features}")
        self.gain = gain
        self.register_buffer("vertices", simplex_vertices(num_classes, self.used), persistent=False)
        steps = torch.arange(_PARTS, dtype=torch.float32)
        self.log_weights = nn.Parameter(torch.zeros(_PARTS))
        self.distance = nn.Parameter(3 * gain * steps)
        self.log_scale = nn.Parameter((1 + gain * steps / 2).log())
        self.rest = DiagonalGaussian(features - self.used)

    def log_prob_all(self, z: Tensor) -> Tensor:
        """Return log p(z | y) for every class, [N, K], in nats."""
        signal, rest = z.tensor_split([self.used], dim=1)
        along = signal @ self.vertices.T  # [N, K]
        common = self._symmetric_log_prob(signal, along) + self.rest.log_prob(rest) + math.log(self.num_classes)
        return common.unsqueeze(1) + torch.log_softmax(along / self.gain, dim=1)

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """Return log p(z | y) [N], in nats."""
        return self.log_prob_all(z).gather(1, y.unsqueeze(1)).squeeze(1)

    def move(self, z: Tensor, logits: Tensor, sign: float = 1.0) -> Tensor:
        """Return z [N, D] plus `sign` times the vector whose posterior is softmax(logits) [N, K]."""
        # the products v_k . v_l are 1 for k = l, else -1 / (K - 1)
        shift = sign * self.gain * (self.used / self.num_classes) * (logits @ self.vertices)
        return torch.cat([z[:, : self.used] + shift, z[:, self.used :]], dim=1)

    def _symmetric_log_prob(self, signal: Tensor, along: Tensor) -> Tensor:
        """Return log p0 [N] of features [N, K - 1], whose products with the vertices are `along` [N, K]."""
        distance = self.distance.unsqueeze(1)
        radius = signal.square().sum(dim=1).view(-1, 1, 1)
        squares = radius - 2 * distance * along.unsqueeze(1)  # [N, parts, K], less the distance's square
        if self.used:
            squares = squares + distance.square()
        log_scale = self.log_scale.unsqueeze(1)
        log_normal = -0.5 * squares * (-2 * log_scale).exp() - self.used * (log_scale + 0.5 * math.log(2 * math.pi))
        log_weights = torch.log_softmax(self.log_weights, dim=0) - math.log(self.num_classes)
        return (log_weights.unsqueeze(1) + log_normal).flatten(1).logsumexp(dim=1)

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """Draw one z [N, D] for each label of y [N].

        A draw of p0 has the class that its softmax draws. The reflection that exchanges the vertex of this class and
        that of y makes it a draw of p(a | y), because it leaves p0 as it is.
        """
        part = torch.multinomial(self.log_weights.softmax(dim=0).expand(len(y), -1), 1).squeeze(1)
        vertex = torch.randint(self.num_classes, (len(y),), device=y.device)
        noise = torch.randn(len(y), self.used, device=y.device, dtype=self.distance.dtype)
        signal = self.distance[part, None] * self.vertices[vertex] + self.log_scale.exp()[part, None] * noise
        drawn = torch.multinomial((signal @ self.vertices.T / self.gain).softmax(dim=1), 1).squeeze(1)
        axis = self.vertices[drawn] - self.vertices[y]
        length = axis.square().sum(dim=1, keepdim=True).clamp_min(1e-12)
        signal = signal - 2 * (signal * axis).sum(dim=1, keepdim=True) / length * axis
        return torch.cat([signal, self.rest.sample(len(y))], dim=1)
