"""Latent variables of variational models, which have a prior and a posterior with parameters from an encoder."""

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

from scnf.distributions.base import Rows, at_least_float32
from scnf.errors import InvalidArgument
from scnf.transforms.base import Transform


class Temperature(nn.Module):
    """A temperature that changes geometrically from `start` to `end` in the course of training.

    Args:
        start: Temperature at the first optimiser step.
        end: Temperature at the last optimiser step; the same by default.

    Raises:
        InvalidArgument: A temperature is not above 0, or is infinite.

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
                "temperature", f"must be above 0 at the first and at the last step, not {self.start} and {self.end}"
            )
        self.register_buffer("value", torch.tensor(float(start)))

    def anneal(self, progress: float) -> None:
        """Set the value at a `progress`, the share of all optimiser steps that are done."""
        self.value.fill_(self.start * (self.end / self.start) ** min(max(progress, 0.0), 1.0))


def diagonal_gaussian(parameters: Tensor) -> Distribution:
    """Return N(mean, diag(scale)^2) over [M, D], from parameters [M, 2 D]: means, then log-scales."""
    mean, log_scale = at_least_float32(parameters).chunk(2, dim=1)
    return Rows(Normal(mean, log_scale.clamp(-8, 8).exp(), validate_args=False), 1, validate_args=False)


def standard_gaussian(like: Tensor) -> Distribution:
    """Return N(0, 1) over vectors with the shape [M, D] of `like`."""
    return Rows(Normal(torch.zeros_like(like), torch.ones_like(like), validate_args=False), 1)


def merge_gaussians(first: Tensor, second: Tensor) -> Tensor:
    """Return the precision-weighted product of two diagonal Gaussians (arXiv 1602.02282, eqs. 18 and 19).

    Args:
        first: Parameters [M, 2 D] of one Gaussian, see :func:`diagonal_gaussian`.
        second: Parameters [M, 2 D] of the other Gaussian.

    Returns:
        Parameters [M, 2 D] of a Gaussian. Its precision is the sum of both precisions, and its mean is the
        precision-weighted average of both means.

    Example:
        >>> merge_gaussians(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
        tensor([[ 2.0000, -0.3466]])
    """
    first, second = at_least_float32(first), at_least_float32(second)
    (mean_1, log_scale_1), (mean_2, log_scale_2) = first.chunk(2, dim=1), second.chunk(2, dim=1)
    log_precision_1, log_precision_2 = -2 * log_scale_1, -2 * log_scale_2
    weight = torch.sigmoid(log_precision_1 - log_precision_2)
    mean = weight * mean_1 + (1 - weight) * mean_2
    return torch.cat([mean, -0.5 * torch.logaddexp(log_precision_1, log_precision_2)], dim=1)


class GaussianLatent(nn.Module):
    """A latent z [M, D] that has a Gaussian prior and a diagonal Gaussian posterior, with or without a flow.

    Args:
        features: Width of z, D.
        transform: Flow z_0 -> z on the posterior (normalizing flows, https://arxiv.org/abs/1505.05770), any
            `Transform` of vectors [M, D]. Its forward direction is used.
        context_features: Width of the context that the encoder gives to the transform; 0 for none.

    Attributes:
        numbers: Number of values that the encoder returns: D means, D log-scales, and the context.

    Raises:
        InvalidArgument: The transform has another width.

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
        """Draw from the posterior with parameters [M, numbers] and return (z [M, D], log q(z) [M])."""
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
        """Draw from the posterior and return (z [M, D], KL [M]).

        Args:
            parameters: Parameters [M, numbers] of the posterior.
            prior: Prior over [M, D]; N(0, 1) by default.
            analytic: Whether to compute KL(q || prior) in closed form where there is one. The alternative is
                log q(z) - log p(z) at the draw.
        """
        prior = prior or standard_gaussian(at_least_float32(parameters[:, : self.features]))
        if analytic and self.transform is None:
            q = diagonal_gaussian(parameters)
            return q.rsample(), kl_divergence(q, prior)
        z, log_q = self.sample(parameters)
        return z, log_q - prior.log_prob(z)

    def sample_prior(self, num: int, like: Tensor) -> Tensor:
        """Draw [num, D] samples from N(0, 1), on the device and with the type of `like`."""
        return torch.randn(num, self.features, device=like.device, dtype=like.dtype)


class CategoricalLatent(nn.Module):
    """A latent of V one-hot variables that have C categories and a uniform prior.

    In training mode, draws are relaxed by Gumbel-softmax (Jang et al., https://arxiv.org/abs/1611.01144; Maddison et
    al., https://arxiv.org/abs/1611.00712). The KL remains the divergence of the categories, which makes the objective a
    surrogate of the bound. In evaluation mode, draws are one-hot and the bound holds.

    Args:
        variables: Number of one-hot variables, V.
        categories: Number of categories of each variable, C.
        temperature: Temperature of the relaxation.

    Attributes:
        features: Width of z, V * C.
        numbers: Number of logits, V * C.
    """

    def __init__(self, variables: int, categories: int, temperature: Temperature) -> None:
        super().__init__()
        self.variables, self.categories, self.temperature = variables, categories, temperature
        self.features = self.numbers = variables * categories

    def draw(
        self, parameters: Tensor, prior: Distribution | None = None, analytic: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw from the posterior and return (z [M, V C], KL [M]).

        Args:
            parameters: Logits [M, V C] of the posterior.
            prior: None, as the prior is uniform.
            analytic: Whether to compute KL(q || prior) in closed form. The alternative is log q(z) - log p(z) at the
                draw.
        """
        if not len(parameters):  # PyTorch raises an error for categories of no rows
            return parameters, parameters.sum(dim=1)
        logits = at_least_float32(parameters).view(-1, self.variables, self.categories)
        q = Rows(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)
        uniform = OneHotCategorical(logits=torch.zeros_like(logits), validate_args=False)
        p = Rows(uniform, 1, validate_args=False)
        if self.training:
            z = RelaxedOneHotCategorical(self.temperature.value, logits=logits, validate_args=False).rsample()
        else:
            z = q.sample()
        log_ratio = z * (torch.log_softmax(logits, dim=2) + math.log(self.categories))
        return z.flatten(1), kl_divergence(q, p) if analytic else log_ratio.sum(dim=(1, 2))

    def sample_prior(self, num: int, like: Tensor) -> Tensor:
        """Draw [num, V C] samples from the prior, on the device and with the type of `like`."""
        index = torch.randint(self.categories, (num, self.variables), device=like.device)
        return F.one_hot(index, self.categories).to(like.dtype).flatten(1)


def _check_width(transform: Transform, features: int, context_features: int) -> None:
    """Refuse a transform of another width, by comparing log-determinant and Jacobian at one point.

    Shapes alone do not show the width: a transform of width 1 would broadcast over any other.
    """
    trial = copy.deepcopy(transform).eval()  # an ActNorm must not take this for its first batch
    with torch.no_grad():
        for parameter in trial.parameters():  # a transform that starts as the identity would fit any width
            perturbation = torch.arange(parameter.numel(), device=parameter.device).cos().view_as(parameter)
            parameter.add_(0.1 * perturbation.to(parameter.dtype))
    reference = next(trial.parameters(), torch.zeros(()))
    point = torch.linspace(-1, 1, features, device=reference.device, dtype=reference.dtype)
    context = reference.new_zeros(1, context_features) if context_features else None
    try:
        jacobian = torch.autograd.functional.jacobian(lambda z: trial(z.unsqueeze(0), context)[0].squeeze(0), point)
        logabsdet = trial(point.unsqueeze(0), context)[1]
        is_valid = jacobian.shape == (features, features) and logabsdet.shape == (1,)
        is_valid = is_valid and torch.allclose(
            torch.linalg.slogdet(jacobian).logabsdet, logabsdet, rtol=1e-2, atol=1e-2
        )
    except (RuntimeError, ValueError, IndexError):
        is_valid = False
    if not is_valid:
        raise InvalidArgument(
            "flow",
            f"must map vectors of width {features}, as the latent has, to vectors of the same width: "
            f"build it for {features} features",
        )
