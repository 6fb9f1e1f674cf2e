"""Pixel likelihoods p(x | parameters), which interpret the outputs of a decoder.

All model images x in [0, 1): each grey level 0..L-1 is a cell of width 1/L (see
:func:`scnf.data.batches.dequantize`). A probability P of a grey level is the density L P, constant over its cell. Log
densities of discretised likelihoods, continuous likelihoods and flows therefore share one scale:
log p(x) = log P(levels) + D log L.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, constraints

from scnf.distributions.base import Rows, at_least_float32
from scnf.errors import InvalidArgument


class DiscretizedLogistic(Distribution):
    """A logistic distribution whose mass is collected in L cells of [0, 1), with a constant density on each cell.

    The outermost cells take the tails, so the masses of the cells sum to 1 (after PixelCNN++, Salimans et al.,
    https://arxiv.org/abs/1701.05517, section 2.1).

    Args:
        mean: Means [...].
        log_scale: Log-scales [...].
        levels: Number of grey levels, L.

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
        """Return the interval [0, 1] as a constraint."""
        return constraints.unit_interval

    @property
    def mean(self) -> Tensor:
        """Return the mean of the logistic distribution, clamped to [0, 1]."""
        return self.mean_parameter.clamp(0, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of any point of a cell, in nats; -inf outside of [0, 1]."""
        cell = (value * self.levels).floor().clamp(0, self.levels - 1)
        rate = (-self.log_scale).exp()
        low = (cell / self.levels - self.mean_parameter) * rate
        high = low + rate / self.levels
        # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high))
        log_first, log_last = F.logsigmoid(high), F.logsigmoid(-low)
        log_inner = log_first + log_last + torch.log(-torch.expm1(-rate / self.levels))
        log_mass = torch.where(cell == 0, log_first, torch.where(cell == self.levels - 1, log_last, log_inner))
        return (log_mass + math.log(self.levels)).masked_fill((value < 0) | (value > 1), -math.inf)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw samples in [0, 1)."""
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), device=self.log_scale.device)
        x = self.mean_parameter + self.log_scale.exp() * torch.logit(u, eps=1e-6)
        cell = (x * self.levels).floor().clamp(0, self.levels - 1)
        return (cell + torch.rand_like(cell)) / self.levels


class PixelLikelihood(nn.Module):
    """A pixel likelihood turns the outputs of a decoder into a distribution over images.

    Args:
        shape: Shape of one input, (C, H, W) or (D,) for points.
        levels: Number of grey levels, L; None for points, which no discrete likelihood takes.

    Attributes:
        numbers: Number of decoder outputs for each value of x.
        comparable: Whether log densities refer to grey levels, and so compare with bits/dim and with flows.

    Raises:
        InvalidArgument: The likelihood does not fit the data.
    """

    numbers: int = 2
    comparable: bool = True

    def __init__(self, shape: Sequence[int], levels: int | None) -> None:
        super().__init__()
        self.shape, self.levels = tuple(shape), levels

    def observe(self, x: Tensor) -> Tensor:
        """Return the data to encode and model, from dequantised x [N, ...]: x itself, unless pixels are binarised."""
        return x

    def check(self, x: Tensor) -> None:
        """Raise InvalidArgument if this likelihood cannot model x [N, ...]."""

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return the distribution over vectors [M, D], from parameters [M, numbers * D]."""
        raise NotImplementedError

    def log_prob(self, observed: Tensor, parameters: Tensor) -> Tensor:
        """Return log p [M] of the observed data `observed` [M, ...], in nats, from parameters [M, numbers * D]."""
        log_prob: Tensor = self.distribution(at_least_float32(parameters)).log_prob(observed.flatten(1))
        return log_prob

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the expected x [M, ...], which is shown as a sample, from parameters [M, numbers * D]."""
        mean: Tensor = self.distribution(parameters).mean.unflatten(1, self.shape)
        return mean


class BernoulliPixels(PixelLikelihood):
    """Model stochastically binarised pixels by Bernoulli variables.

    A pixel becomes white with a probability equal to its brightness, drawn anew each time. The probabilities of binary
    images cannot be compared with bits/dim of grey levels.
    """

    numbers = 1
    comparable = False

    def __init__(self, shape: Sequence[int], levels: int | None) -> None:
        super().__init__(shape, levels)
        if levels is None:
            raise InvalidArgument("likelihood", "must be gaussian for points, not bernoulli, which models images")

    def observe(self, x: Tensor) -> Tensor:
        """Draw binary images from dequantised grey levels."""
        assert self.levels is not None
        return torch.bernoulli(((x * self.levels).floor() / (self.levels - 1)).clamp(0, 1))

    def check(self, x: Tensor) -> None:
        """Raise InvalidArgument if values leave [0, 1], as standardised pixels do."""
        _check_unit(x, "bernoulli")

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return the distribution over [M, D], from logits [M, D]."""
        return Rows(Bernoulli(logits=parameters, validate_args=False), 1, validate_args=False)


class LogisticPixels(PixelLikelihood):
    """Model grey levels by a discretised logistic distribution, with a mean and a scale for each value."""

    def __init__(self, shape: Sequence[int], levels: int | None) -> None:
        super().__init__(shape, levels)
        if levels is None:
            raise InvalidArgument("likelihood", "must be gaussian for points, not logistic, which models grey levels")

    def check(self, x: Tensor) -> None:
        """Raise InvalidArgument if values leave [0, 1]."""
        _check_unit(x, "logistic")

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return the distribution over [M, D], from means and log-scales [M, 2 D]."""
        assert self.levels is not None
        mean, log_scale = parameters.chunk(2, dim=1)
        scale = (log_scale - 2.0).clamp(-7, 3)
        return Rows(DiscretizedLogistic(mean + 0.5, scale, self.levels), 1, validate_args=False)


class GaussianPixels(PixelLikelihood):
    """Model dequantised grey levels, or points, by a Gaussian density, with a mean and a scale for each value.

    The density of images is valid, but gives some mass to values outside [0, 1), which never occur.
    """

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return the distribution over [M, D], from means and log-scales [M, 2 D]."""
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
            f"must hold pixels in [0, 1] for a {name} likelihood, not values from {low:.2f} to {high:.2f}: do not "
            "standardise them, or take a gaussian likelihood",
        )
