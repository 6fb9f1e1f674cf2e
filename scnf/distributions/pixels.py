"""Pixel likelihoods p(x | parameters): what the last layer of a decoder means.

All speak of x in [0, 1): grey levels 0..L-1, each a cell of width 1/L (see :func:`scnf.data.batches.dequantize`). A
probability P of a grey level is the density L P, constant over its cell, so the log densities of a discretised and of a
continuous likelihood, and of a flow, stand on one scale: log p(x) = log P(levels) + D log L.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, constraints

from scnf.distributions.base import Rows, single_or_better
from scnf.errors import InvalidArgument


class DiscretizedLogistic(Distribution):
    """Logistic distribution whose mass is gathered in L cells of [0, 1), as a density that is constant on each.

    The outermost cells take the tails, so the cells' masses sum to 1 (after PixelCNN++, Salimans et al.,
    https://arxiv.org/abs/1701.05517, section 2.1).

    Args:
        mean: [...].
        log_scale: [...].
        levels: L.

    Example:
        >>> cells = (torch.arange(256) + 0.5) / 256
        >>> density = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(-2.0), 256).log_prob(cells).exp()
        >>> round(float(density.mean()), 4)
        1.0
    """

    arg_constraints = {}  # noqa: RUF012 (torch's own way)
    has_rsample = False

    def __init__(self, mean: Tensor, log_scale: Tensor, levels: int) -> None:
        self.mean_parameter, self.log_scale, self.levels = mean, log_scale, levels
        super().__init__(torch.broadcast_shapes(mean.shape, log_scale.shape), validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """[0, 1]."""
        return constraints.unit_interval

    @property
    def mean(self) -> Tensor:
        """The mean of the logistic distribution, moved into [0, 1]."""
        return self.mean_parameter.clamp(0, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, of any point of a cell; -inf outside of [0, 1]."""
        cell = (value * self.levels).floor().clamp(0, self.levels - 1)
        rate = (-self.log_scale).exp()
        low = (cell / self.levels - self.mean_parameter) * rate
        high = low + rate / self.levels
        # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high))
        below, above = F.logsigmoid(high), F.logsigmoid(-low)
        inner = below + above + torch.log(-torch.expm1(-rate / self.levels))
        log_mass = torch.where(cell == 0, below, torch.where(cell == self.levels - 1, above, inner))
        return (log_mass + math.log(self.levels)).masked_fill((value < 0) | (value > 1), -math.inf)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws from [0, 1)."""
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), device=self.log_scale.device)
        x = self.mean_parameter + self.log_scale.exp() * torch.logit(u, eps=1e-6)
        cell = (x * self.levels).floor().clamp(0, self.levels - 1)
        return (cell + torch.rand_like(cell)) / self.levels


class PixelLikelihood(nn.Module):
    """Turns a decoder's numbers into a distribution over images.

    Args:
        shape: of one input: (C, H, W), or (D,) for points.
        levels: grey levels L of the data; None for points, which no discrete likelihood takes.

    Attributes:
        numbers: how many numbers the decoder gives for each value.
        comparable: whether log densities are those of grey levels, as bits/dim and a flow's are.

    Raises:
        ValueError: it does not fit such data.
    """

    numbers: int = 2
    comparable: bool = True

    def __init__(self, shape: Sequence[int], levels: int | None) -> None:
        super().__init__()
        self.shape, self.levels = tuple(shape), levels

    def observe(self, x: Tensor) -> Tensor:
        """What is encoded and modelled, from dequantised x [N, ...]: x itself, unless pixels are binarised."""
        return x

    def check(self, x: Tensor) -> None:
        """Raise ValueError where x [N, ...] is no data for this likelihood."""

    def distribution(self, parameters: Tensor) -> Distribution:
        """Over vectors [M, D], from parameters [M, numbers * D]."""
        raise NotImplementedError

    def log_prob(self, seen: Tensor, parameters: Tensor) -> Tensor:
        """Log p [M] in nats of what was observed, [M, ...], given parameters [M, numbers * D]."""
        log_prob: Tensor = self.distribution(single_or_better(parameters)).log_prob(seen.flatten(1))
        return log_prob

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected x [M, ...], for parameters [M, numbers * D]: what one looks at as a sample."""
        mean: Tensor = self.distribution(parameters).mean.unflatten(1, self.shape)
        return mean


class BernoulliPixels(PixelLikelihood):
    """Bernoulli on stochastically binarised pixels: black or white by a coin as bright as the pixel, anew each time.

    Its numbers are probabilities of binary images; beside bits/dim of grey levels they mean nothing.
    """

    numbers = 1
    comparable = False

    def __init__(self, shape: Sequence[int], levels: int | None) -> None:
        super().__init__(shape, levels)
        if levels is None:
            raise InvalidArgument("likelihood", "must be gaussian for points, not bernoulli, which is of images")

    def observe(self, x: Tensor) -> Tensor:
        """Binary images, from dequantised grey levels."""
        assert self.levels is not None
        return torch.bernoulli(((x * self.levels).floor() / (self.levels - 1)).clamp(0, 1))

    def check(self, x: Tensor) -> None:
        """Raise ValueError where values leave [0, 1], as those of standardised pixels do."""
        _check_unit(x, "bernoulli")

    def distribution(self, parameters: Tensor) -> Distribution:
        """Over [M, D], from logits [M, D]."""
        return Rows(Bernoulli(logits=parameters, validate_args=False), 1, validate_args=False)


class LogisticPixels(PixelLikelihood):
    """Discretised logistic on grey levels, with mean and scale for each value."""

    def __init__(self, shape: Sequence[int], levels: int | None) -> None:
        super().__init__(shape, levels)
        if levels is None:
            raise InvalidArgument("likelihood", "must be gaussian for points, not logistic, which is of grey levels")

    def check(self, x: Tensor) -> None:
        """Raise ValueError where values leave [0, 1]."""
        _check_unit(x, "logistic")

    def distribution(self, parameters: Tensor) -> Distribution:
        """Over [M, D], from means and log-scales [M, 2 D]."""
        assert self.levels is not None
        mean, log_scale = parameters.chunk(2, dim=1)
        scale = (log_scale - 2.0).clamp(-7, 3)
        return Rows(DiscretizedLogistic(mean + 0.5, scale, self.levels), 1, validate_args=False)


class GaussianPixels(PixelLikelihood):
    """Gaussian density on dequantised grey levels, or on points, with mean and scale for each value.

    It gives some of its mass to values outside [0, 1), which never come: a valid density, at that price.
    """

    def distribution(self, parameters: Tensor) -> Distribution:
        """Over [M, D], from means and log-scales [M, 2 D]."""
        mean, log_scale = parameters.chunk(2, dim=1)
        if self.levels is not None:
            mean, log_scale = mean + 0.5, log_scale - 2.0
        return Rows(Normal(mean, log_scale.clamp(-7, 7).exp(), validate_args=False), 1, validate_args=False)


LIKELIHOODS: dict[str, type[PixelLikelihood]] = {
    "bernoulli": BernoulliPixels,
    "logistic": LogisticPixels,
    "gaussian": GaussianPixels,
}


def _check_unit(x: Tensor, name: str) -> None:
    low, high = map(float, x.aminmax()) if x.numel() else (0.0, 1.0)
    if low < 0 or high > 1:
        raise InvalidArgument(
            "x",
            f"must be of pixels in [0, 1] for a {name} likelihood, and these run from {low:.2f} to {high:.2f}: do not "
            "standardise them, or take a gaussian likelihood",
        )
