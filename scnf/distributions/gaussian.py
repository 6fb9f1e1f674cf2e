"""Gaussians that have a diagonal covariance, alone or one per class."""

import math

import torch
from torch import Tensor, nn

from scnf.checks import check_choice
from scnf.distributions.base import ClassConditional
from scnf.errors import InvalidArgument


def gaussian_log_prob(z: Tensor, mean: Tensor | float, log_scale: Tensor) -> Tensor:
    """Return the log density [N] of N(mean, diag(exp(log_scale))^2) at z [N, D], in nats."""
    noise = (z - mean) * (-log_scale).exp()
    return -(0.5 * noise.square() + log_scale + 0.5 * math.log(2 * math.pi)).sum(dim=1)


class DiagonalGaussian(nn.Module):
    """A Gaussian N(0, diag(scale)^2) whose scales are learned and start at 1.

    Args:
        features: Width of the vectors, D.

    Example:
        >>> base = DiagonalGaussian(3)
        >>> base.log_prob(torch.zeros(2, 3)).shape, base.sample(5).shape
        (torch.Size([2]), torch.Size([5, 3]))
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(features))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density [N] of z [N, D], in nats."""
        return gaussian_log_prob(z, 0.0, self.log_scale)

    @torch.no_grad()
    def sample(self, num: int) -> Tensor:
        """Draw [num, D] samples."""
        noise = torch.randn(num, self.log_scale.shape[0], device=self.log_scale.device, dtype=self.log_scale.dtype)
        return noise * self.log_scale.exp()


def simplex_vertices(num_classes: int, features: int) -> Tensor:
    """Return K points [K, D] at unit distance from the origin, all pairs equally far apart; D is at least K - 1."""
    if features < num_classes - 1:
        raise InvalidArgument(
            "means",
            f"can be a simplex of {num_classes} vertices in {num_classes - 1} dimensions or more, not {features}",
        )
    centred = torch.eye(num_classes, dtype=torch.float64) - 1.0 / num_classes
    basis = torch.linalg.svd(centred).U[:, : num_classes - 1]  # the K - 1 directions that the vertices span
    vertices = torch.zeros(num_classes, features, dtype=torch.float64)
    vertices[:, : num_classes - 1] = centred @ basis
    lengths: Tensor = vertices.norm(dim=1, keepdim=True)
    return (vertices / lengths.clamp_min(1e-12)).float()


class ClassConditionalGaussian(ClassConditional):
    """Model each class by a Gaussian, p(z | y) = N(mean_y, diag(scale_y)^2).

    With a flow in front, the model follows FlowGMM (https://arxiv.org/abs/1912.13025). With learned means and shared
    scales it is the SCNF-GMM of arXiv 1905.00505, a learned shift per class.

    Args:
        num_classes: Number of classes, K.
        features: Width of the vectors, D.
        means: Placement of the means, "random" (Gaussian), "simplex" (equally far apart) or "data". The choice "data"
            takes class averages of the latents that :meth:`initialize` receives, the first batch in training. Before,
            and for a class without labels, the means are random.
        spread: Distance of the means from the origin, per root of D ("random") or in total ("simplex").
        learn_means: Whether training moves the means.
        scales: Kind of the scales, "shared" by all classes or each class its "own".
        learn_scales: Whether training changes the scales, which start at 1.
        chunk: Number of classes enumerated at once, see :class:`~scnf.distributions.base.ClassConditional`.

    Raises:
        InvalidArgument: `means` or `scales` is unknown, or the simplex does not fit into D dimensions.

    Example:
        >>> mixture = ClassConditionalGaussian(num_classes=3, features=2, means="simplex", spread=4.0)
        >>> mixture.log_prob_all(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    mean: Tensor
    log_scale: Tensor

    def __init__(
        self,
        num_classes: int,
        features: int,
        means: str = "random",
        spread: float = 1.0,
        learn_means: bool = True,
        scales: str = "shared",
        learn_scales: bool = True,
        chunk: int | None = None,
    ) -> None:
        super().__init__(num_classes, chunk)
        check_choice("means", means, ("random", "simplex", "data"))
        check_choice("scales", scales, ("shared", "own"))
        self.means = means
        if means == "simplex":
            mean = spread * simplex_vertices(num_classes, features)
        else:
            mean = spread * torch.randn(num_classes, features)
        self._register("mean", mean, learn_means)
        self._register("log_scale", torch.zeros(num_classes if scales == "own" else 1, features), learn_scales)

    def _register(self, name: str, value: Tensor, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _scales(self, y: Tensor) -> Tensor:
        return self.log_scale.index_select(0, y) if self.log_scale.shape[0] > 1 else self.log_scale

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        """Return log p(z | y) [N], in nats."""
        return gaussian_log_prob(z, self.mean.index_select(0, y), self._scales(y))

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """Draw one z [N, D] for each label of y [N]."""
        mean = self.mean.index_select(0, y)
        return mean + torch.randn_like(mean) * self._scales(y).exp()

    @torch.no_grad()
    def initialize(self, z: Tensor, y: Tensor) -> None:
        """Move the mean of each class to the average of its latents z [N, D] with labels y [N], if means="data"."""
        if self.means == "data":
            for label in y.unique().tolist():
                self.mean[label] = z[y == label].mean(dim=0)
