"""Define the base of all variational models, which computes bounds from draws of latent variables."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scnf.distributions import PixelLikelihood
from scnf.errors import InvalidArgument
from scnf.models.base import JointModel, JointOutput, output_from_table


class Table(NamedTuple):
    """A table holds one draw of the latent variables for each row, with every label.

    Attributes:
        log_joint: log w = log p(x, y = k, latents) - log q(latents | x, y = k), [N, K]. The mean of log w is a lower
            bound of log p(x, y = k), and the mean of w is p(x, y = k).
        class_logits: Logits of q(y | x), [N, K].
        kl: log q(latents) - log p(latents), or its mean in closed form, [N, K]. It is already subtracted in
            `log_joint`.
    """

    log_joint: Tensor
    class_logits: Tensor
    kl: Tensor


def log_mean_exp(values: Tensor, k: int) -> Tensor:
    """Return the logarithm of the mean exponential of every k consecutive rows of [N * k, ...], as [N, ...]."""
    return values.unflatten(0, (-1, k)).logsumexp(dim=1) - math.log(k) if k > 1 else values


class VariationalModel(JointModel):
    """A variational model has latent variables, and is trained by a lower bound of log p(x, y) and log p(x).

    With S = `num_samples` and k = `importance_samples`, the bound of a row is a mean over S samples. Each sample is the
    logarithm of the mean of k exponentiated draws. This is the ELBO for k = 1, and otherwise the importance-weighted
    bound (Burda et al., https://arxiv.org/abs/1509.00519, eq. 8).

    Subclasses implement :meth:`table`, :meth:`classify`, `representation` and `sample`.

    Args:
        likelihood: Pixel likelihood p(x | latents).
        num_classes: Number of classes K.
        num_samples: Number S of Monte Carlo samples in training and evaluation.
        importance_samples: Number k of importance samples.

    Raises:
        InvalidArgument: A number of samples is below 1.
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
        """Return whether :meth:`table` sums hidden labels out now, in place of :meth:`draw`, which draws them."""
        return True

    def table(self, observed: Tensor, analytic: bool) -> Table:
        """Draw the latent variables once for each row.

        Args:
            observed: Images [N, ...] as the likelihood observes them.
            analytic: Whether divergences are taken in closed form where there is one. The closed form has less noise,
                but w = exp(log_joint) then has no meaning.
        """
        raise NotImplementedError

    def draw(self, observed: Tensor, y: Tensor) -> JointOutput:
        """Return log w and the classifier for each row from one draw, for models that draw labels."""
        raise NotImplementedError

    def bound(self, observed: Tensor, y: Tensor) -> JointOutput:
        """Compute the bound for each row of y [N] from `observed` [N * k, ...], which repeats each image for k draws.

        Each enumerated label gets a bound before the average over labels: sum_y q(y) [log mean_i w_i(y) - log q(y)].
        """
        k = self.importance_samples
        if not self.enumerates:
            output = self.draw(observed, y.repeat_interleave(k))
            assert output.kl is not None
            log_w, log_q, kl = output.log_likelihood, output.class_log_probs, output.kl
            return JointOutput(log_mean_exp(log_w, k), log_mean_exp(log_q, k), kl.view(-1, k).mean(dim=1))
        table = self.table(observed, analytic=k == 1)
        class_logits = log_mean_exp(torch.log_softmax(table.class_logits, dim=1), k)
        kl = table.kl.unflatten(0, (-1, k)).mean(dim=1)
        return output_from_table(log_mean_exp(table.log_joint, k), class_logits, y, kl)

    def classify(self, observed: Tensor) -> Tensor:
        """Return log q(y | x) [N, K] of observed images, from one draw of the latents that it depends on."""
        raise NotImplementedError

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return bounds of log p(x, y) or, for hidden y, of log p(x); log q(y | x); and KL divergences."""
        samples, rows = self.num_samples, len(y)
        observed = self.likelihood.observe(x)
        if not rows:
            empty, draws = observed.new_zeros(0), samples * self.importance_samples
            return empty, log_mean_exp(self.classify(observed.repeat_interleave(draws, dim=0)), draws), empty
        repeated = observed[:rows].repeat_interleave(samples * self.importance_samples, dim=0)
        output = self.bound(repeated, y.repeat_interleave(samples))
        assert output.kl is not None
        bound, kl = (each.view(-1, samples).mean(dim=1) for each in (output.log_likelihood, output.kl))
        log_q = log_mean_exp(output.class_log_probs, samples)
        if len(x) > rows:
            log_q = torch.cat([log_q, self.classify(observed[rows:])])
        return bound, log_q, kl

    def log_likelihood(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """Return the importance-weighted bound of log p(x) [N] in nats, with labels summed out exactly.

        The bound is log sum_y (1/k) sum_i w_i(y), with k = `num_samples` draws one after the other. Memory does not
        grow with k.

        Raises:
            InvalidArgument: `num_samples` is below 1.
        """
        if num_samples < 1:
            raise InvalidArgument("num_samples", f"must be 1 or more for a bound, not {num_samples}")
        self.check(x)
        observed = self.likelihood.observe(x)
        total = self.table(observed, analytic=False).log_joint
        for _ in range(num_samples - 1):
            total = torch.logaddexp(total, self.table(observed, analytic=False).log_joint)
        return total.logsumexp(dim=1) - math.log(num_samples)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Refuse inputs or labels that the model or its likelihood does not take (InvalidArgument)."""
        super().check(x, y)
        self.likelihood.check(x)
