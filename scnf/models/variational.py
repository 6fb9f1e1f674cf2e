"""What all variational models share: bounds from draws of latent variables."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scnf.distributions import PixelLikelihood
from scnf.errors import InvalidArgument
from scnf.models.base import JointModel, JointOutput, output_from_table


class Table(NamedTuple):
    """One draw of the latent variables for each row, with every label.

    Attributes:
        log_joint: [N, K]: log w = log p(x, y = k, latents) - log q(latents | x, y = k), whose mean is a lower bound of
            log p(x, y = k), and the mean of whose exponential is p(x, y = k).
        class_logits: [N, K]: of q(y | x).
        kl: [N, K]: what `log_joint` holds of log q(latents) - log p(latents), or of its mean in closed form.
    """

    log_joint: Tensor
    class_logits: Tensor
    kl: Tensor


def log_mean_exp(values: Tensor, k: int) -> Tensor:
    """Over every k consecutive rows of [N * k, ...]: [N, ...]."""
    return values.unflatten(0, (-1, k)).logsumexp(dim=1) - math.log(k) if k > 1 else values


class VariationalModel(JointModel):
    """A model with latent variables, trained by a lower bound of log p(x, y) and log p(x).

    With S = `num_samples` and k = `importance_samples`, a row's bound is the mean over S of the logarithm of the mean
    of k exponentiated draws: the ELBO for k = 1, else the importance-weighted bound (Burda et al.,
    https://arxiv.org/abs/1509.00519, eq. 8). Members of the family answer :meth:`table`, and `sample`.

    Args:
        likelihood: p(x | latents).
        num_classes: K.
        num_samples: S, Monte Carlo samples in training and evaluation.
        importance_samples: k.

    Raises:
        ValueError: fewer than one sample.
    """

    exact = False

    def __init__(
        self, likelihood: PixelLikelihood, num_classes: int, num_samples: int = 1, importance_samples: int = 1
    ) -> None:
        super().__init__()
        if num_samples < 1 or importance_samples < 1:
            raise InvalidArgument(
                "num_samples", f"and importance_samples must be 1 or more, not {num_samples} and {importance_samples}"
            )
        self.likelihood, self.num_classes = likelihood, num_classes
        self.num_samples, self.importance_samples = num_samples, importance_samples
        self.likelihood_of = "levels" if likelihood.comparable else "binary"

    @property
    def enumerates(self) -> bool:
        """Whether hidden labels are summed out now, by :meth:`table`, and not drawn, by :meth:`draw`."""
        return True

    def table(self, seen: Tensor, analytic: bool) -> Table:
        """One draw for each row of `seen` [N, ...], which the likelihood observed.

        Args:
            seen: the images as modelled.
            analytic: divergences in closed form where there is one: less noise, but exponentials mean nothing.
        """
        raise NotImplementedError

    def draw(self, seen: Tensor, y: Tensor) -> JointOutput:
        """Log w and the classifier for each row, from one draw, where labels are drawn and not enumerated."""
        raise NotImplementedError

    def bound(self, seen: Tensor, y: Tensor) -> JointOutput:
        """The bound for each row of y [N], from `seen` [N * k, ...]: every k rows are the same image, for k draws.

        Labels that are enumerated get a bound each before they are averaged: sum_y q(y) [log mean_i w_i(y) - log q(y)].
        """
        k = self.importance_samples
        if not self.enumerates:
            output = self.draw(seen, y.repeat_interleave(k))
            assert output.kl is not None
            log_w, log_q, kl = output.log_likelihood, output.class_log_probs, output.kl
            return JointOutput(log_mean_exp(log_w, k), log_mean_exp(log_q, k), kl.view(-1, k).mean(dim=1))
        table = self.table(seen, analytic=k == 1)
        class_logits = log_mean_exp(torch.log_softmax(table.class_logits, dim=1), k)
        kl = table.kl.unflatten(0, (-1, k)).mean(dim=1)
        return output_from_table(log_mean_exp(table.log_joint, k), class_logits, y, kl)

    def classify(self, seen: Tensor) -> Tensor:
        """Log q(y | x) [N, K] of images as modelled, from one draw of what it depends on."""
        raise NotImplementedError

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds of log p(x, y) where y is known and of log p(x) where hidden; log q(y | x); and divergences."""
        samples, own = self.num_samples, len(y)
        seen = self.likelihood.observe(x)
        if not own:
            nothing, draws = seen.new_zeros(0), samples * self.importance_samples
            return nothing, log_mean_exp(self.classify(seen.repeat_interleave(draws, dim=0)), draws), nothing
        repeated = seen[:own].repeat_interleave(samples * self.importance_samples, dim=0)
        output = self.bound(repeated, y.repeat_interleave(samples))
        assert output.kl is not None
        bound, kl = (each.view(-1, samples).mean(dim=1) for each in (output.log_likelihood, output.kl))
        log_q = log_mean_exp(output.class_log_probs, samples)
        if len(x) > own:
            log_q = torch.cat([log_q, self.classify(seen[own:])])
        return bound, log_q, kl

    def log_likelihood(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """The importance-weighted bound of log p(x) [N] in nats, with labels summed out exactly.

        log sum_y (1/k) sum_i w_i(y), with k = `num_samples` draws one after the other: memory does not grow with k.

        Raises:
            ValueError: k < 1.
        """
        if num_samples < 1:
            raise InvalidArgument("num_samples", f"must be 1 or more for a bound, not {num_samples}")
        self.check(x)
        seen = self.likelihood.observe(x)
        total = self.table(seen, analytic=False).log_joint
        for _ in range(num_samples - 1):
            total = torch.logaddexp(total, self.table(seen, analytic=False).log_joint)
        return total.logsumexp(dim=1) - math.log(num_samples)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """As of any model; and refuse what the likelihood does not fit (ValueError)."""
        super().check(x, y)
        self.likelihood.check(x)
