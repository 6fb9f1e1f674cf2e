"""Latent variables of variational models: a prior, and a posterior whose parameters an encoder gives."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Normal,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    kl_divergence,
)

from scnf.distributions.base import Rows, single_or_better
from scnf.errors import InvalidArgument
from scnf.transforms.base import Transform


class Temperature(nn.Module):
    """A temperature that goes from `start` to `end` along a geometric line in the course of training.

    Args:
        start: at the first optimiser step.
        end: at the last; the same by default.

    Raises:
        ValueError: not above 0.

    Example:
        >>> temperature = Temperature(1.0, 0.25)
        >>> temperature.anneal(0.5)
        >>> temperature.value
        tensor(0.5000)
    """

    value: Tensor

    def __init__(self, start: float, end: float | None = None) -> None:
        super().__init__()
        self.start, self.end = start, start if end is None else end
        if not (0 < self.start < math.inf and 0 < self.end < math.inf):
            raise InvalidArgument(
                "temperature", f"must be above 0, at the first step and the last, not {self.start} or {self.end}"
            )
        self.register_buffer("value", torch.tensor(float(start)))

    def anneal(self, done: float) -> None:
        """Set the value for when the share `done` of all optimiser steps is behind."""
        self.value.fill_(self.start * (self.end / self.start) ** min(max(done, 0.0), 1.0))


def diagonal_gaussian(parameters: Tensor) -> Distribution:
    """N(mean, diag(scale)^2) over [M, D], from parameters [M, 2 D]: means, then log-scales."""
    mean, log_scale = single_or_better(parameters).chunk(2, dim=1)
    return Rows(Normal(mean, log_scale.clamp(-8, 8).exp(), validate_args=False), 1, validate_args=False)


def standard_gaussian(like: Tensor) -> Distribution:
    """N(0, 1) over vectors shaped like `like` [M, D]."""
    return Rows(Normal(torch.zeros_like(like), torch.ones_like(like), validate_args=False), 1)


def merge_gaussians(first: Tensor, second: Tensor) -> Tensor:
    """Precision-weighted product of two diagonal Gaussians (arXiv 1602.02282, eqs. 18 and 19).

    Args:
        first: parameters [M, 2 D] as in :func:`diagonal_gaussian`.
        second: the same.

    Returns:
        parameters [M, 2 D], whose precision is the sum of both and whose mean is their precision-weighted average.

    Example:
        >>> merge_gaussians(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
        tensor([[ 2.0000, -0.3466]])
    """
    first, second = single_or_better(first), single_or_better(second)
    (mean_1, log_scale_1), (mean_2, log_scale_2) = first.chunk(2, dim=1), second.chunk(2, dim=1)
    log_precision_1, log_precision_2 = -2 * log_scale_1, -2 * log_scale_2
    share = torch.sigmoid(log_precision_1 - log_precision_2)
    mean = share * mean_1 + (1 - share) * mean_2
    return torch.cat([mean, -0.5 * torch.logaddexp(log_precision_1, log_precision_2)], dim=1)


class GaussianLatent(nn.Module):
    """z [M, D]: a diagonal Gaussian posterior, with or without a flow on it, and a Gaussian prior.

    Args:
        features: D.
        transform: a flow z_0 -> z on the posterior (normalizing flows, https://arxiv.org/abs/1505.05770), any
            `Transform` of vectors [M, D]; its forward direction is used.
        context_features: width of the context that the encoder gives to the transform, 0 for none.

    Attributes:
        numbers: how many numbers the encoder gives: D means, D log-scales, and the context.

    Raises:
        ValueError: the transform is one of another width.

    Example:
        >>> latent = GaussianLatent(3)
        >>> z, kl = latent.draw(torch.zeros(5, 6))
        >>> z.shape, kl
        (torch.Size([5, 3]), tensor([0., 0., 0., 0., 0.]))
    """

    def __init__(self, features: int, transform: Transform | None = None, context_features: int = 0) -> None:
        super().__init__()
        self.features, self.context_features = features, context_features
        self.numbers = 2 * features + context_features
        self.transform = transform
        if transform is not None:
            _check_width(transform, features, context_features)

    def sample(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(z [M, D], log q(z) [M]) from parameters [M, numbers]."""
        q = diagonal_gaussian(parameters[:, : 2 * self.features])
        z = q.rsample()
        log_q = q.log_prob(z)
        if self.transform is not None:
            z, logabsdet = self.transform(z, parameters[:, 2 * self.features :] if self.context_features else None)
            log_q = log_q - logabsdet
        return z, log_q

    def draw(
        self, parameters: Tensor, prior: Distribution | None = None, analytic: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(z [M, D], KL [M]) from parameters [M, numbers].

        Args:
            parameters: of the posterior.
            prior: over [M, D]; N(0, 1) by default.
            analytic: take KL(q || prior) in closed form where there is one, else log q(z) - log p(z) at the draw.
        """
        prior = prior or standard_gaussian(single_or_better(parameters[:, : self.features]))
        if analytic and self.transform is None:
            q = diagonal_gaussian(parameters)
            return q.rsample(), kl_divergence(q, prior)
        z, log_q = self.sample(parameters)
        return z, log_q - prior.log_prob(z)

    def sample_prior(self, num: int, like: Tensor) -> Tensor:
        """[num, D] draws from N(0, 1), on the device of `like`."""
        return torch.randn(num, self.features, device=like.device, dtype=like.dtype)


class CategoricalLatent(nn.Module):
    """V one-hot variables of C categories, uniform a priori; relaxed by Gumbel-softmax in training.

    In training mode draws are relaxed (Jang et al., https://arxiv.org/abs/1611.01144; Maddison et al.,
    https://arxiv.org/abs/1611.00712) and the KL is that of the categories: a surrogate of the bound. In evaluation mode
    draws are one-hot and the bound holds.

    Args:
        variables: V.
        categories: C.
        temperature: of the relaxation.

    Attributes:
        features: V * C, the width of z.
        numbers: V * C logits.
    """

    def __init__(self, variables: int, categories: int, temperature: Temperature) -> None:
        super().__init__()
        self.variables, self.categories, self.temperature = variables, categories, temperature
        self.features = self.numbers = variables * categories

    def draw(
        self, parameters: Tensor, prior: Distribution | None = None, analytic: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(z [M, V C], KL [M]) from logits [M, V C]; `prior` must be None: it is uniform."""
        if not len(parameters):  # of which PyTorch's categories make an error
            return parameters, parameters.sum(dim=1)
        logits = single_or_better(parameters).view(-1, self.variables, self.categories)
        q = Rows(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)
        uniform = OneHotCategorical(logits=torch.zeros_like(logits), validate_args=False)
        p = Rows(uniform, 1, validate_args=False)
        if self.training:
            z = RelaxedOneHotCategorical(self.temperature.value, logits=logits, validate_args=False).rsample()
        else:
            z = q.sample()
        at_draw = z * (torch.log_softmax(logits, dim=2) + math.log(self.categories))
        return z.flatten(1), kl_divergence(q, p) if analytic else at_draw.sum(dim=(1, 2))

    def sample_prior(self, num: int, like: Tensor) -> Tensor:
        """[num, V C] draws from the prior, on the device of `like`."""
        index = torch.randint(self.categories, (num, self.variables), device=like.device)
        return F.one_hot(index, self.categories).to(like.dtype).flatten(1)


def _check_width(transform: Transform, features: int, context_features: int) -> None:
    """Compare the log-det with the Jacobian at one point: a transform of width 1 would broadcast over any other."""
    trial = copy.deepcopy(transform).eval()  # an ActNorm must not take this for its first batch
    with torch.no_grad():
        for parameter in trial.parameters():  # what starts as the identity would fit anything
            bend = torch.arange(parameter.numel(), device=parameter.device).cos().view_as(parameter)
            parameter.add_(0.1 * bend.to(parameter.dtype))
    like = next(trial.parameters(), torch.zeros(()))
    point = torch.linspace(-1, 1, features, device=like.device, dtype=like.dtype)
    context = like.new_zeros(1, context_features) if context_features else None
    try:
        jacobian = torch.autograd.functional.jacobian(lambda z: trial(z.unsqueeze(0), context)[0].squeeze(0), point)
        logabsdet = trial(point.unsqueeze(0), context)[1]
        fits = jacobian.shape == (features, features) and logabsdet.shape == (1,)
        fits = fits and torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, logabsdet, rtol=1e-2, atol=1e-2)
    except (RuntimeError, ValueError, IndexError):
        fits = False
    if not fits:
        raise InvalidArgument(
            "flow",
            f"must map vectors of width {features}, as the latent has, to such: build it for {features} features",
        )
