"""Deep generative models with the label among their latents: M2, ladder DGM, ADGM, and M2 on M1."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.checks import check_labels
from scnf.distributions import (
    ClassPrior,
    GaussianLatent,
    LabelDraw,
    PixelLikelihood,
    enumerate_classes,
    single_or_better,
)
from scnf.distributions.latent import diagonal_gaussian
from scnf.errors import InvalidArgument
from scnf.models.base import JointOutput
from scnf.models.ladder import Ladder
from scnf.models.vae import VAE
from scnf.models.variational import Table, VariationalModel
from scnf.nn import before_head


class M2(VariationalModel):
    """log p(x, y) >= E_q(z | x, y) [log p(x | y, z)] - KL(q(z | x, y) || p(z)) + log p(y), and q(y | x).

    Kingma et al. (https://arxiv.org/abs/1406.5298, eqs. 6 and 7). Hidden labels are enumerated, or drawn once for each
    row (`labels`) in training; evaluation always enumerates, so that the bound it gives is one. With a drawn y,
    E_q(y | x) log w(x, y) is replaced by log w at the draw, and the divergence of q(y | x) from p(y) taken in closed
    form, as by Jang et al. (https://arxiv.org/abs/1611.01144); with importance samples, at the draw. That estimates the
    bound where draws are one-hot and of q(y | x), and is a surrogate elsewhere; see :mod:`scnf.distributions.labels`.

    Args:
        likelihood: p(x | y, z).
        prior: p(y).
        ladder: the latents given y, whose context is y [M, K]; several make a ladder DGM.
        decoder: (z_1 [M, D_1], y [M, K]) -> parameters of the likelihood.
        classifier: x [N, ...] -> logits of q(y | x) [N, K].
        labels: how a hidden label is drawn; None enumerates.
        num_samples: as in :class:`~scnf.models.variational.VariationalModel`.
        importance_samples: likewise.
        class_chunk: classes enumerated at once; all by default.

    Raises:
        ValueError: a score function with fewer than two samples, or with importance samples.

    Example:
        >>> from scnf.recipes import build
        >>> model = build("m2", shape=(1, 8, 8), num_classes=10, levels=17, hidden=16, latent=4)
        >>> model.sample(torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        likelihood: PixelLikelihood,
        prior: ClassPrior,
        ladder: Ladder,
        decoder: nn.Module,
        classifier: nn.Module,
        labels: LabelDraw | None = None,
        num_samples: int = 1,
        importance_samples: int = 1,
        class_chunk: int | None = None,
    ) -> None:
        super().__init__(likelihood, prior.logits.shape[0], num_samples, importance_samples)
        if labels is not None and labels.score_function and (num_samples < 2 or importance_samples > 1):
            raise InvalidArgument(
                "num_samples",
                "must be 2 or more, and importance_samples 1, for the score function compares the samples of a row",
            )
        self.prior, self.ladder, self.decoder, self.classifier = prior, ladder, decoder, classifier
        self.labels, self.class_chunk = labels, class_chunk

    def encode(self, seen: Tensor) -> tuple[list[Tensor], Tensor]:
        """What does not depend on the label: features of N rows for :meth:`terms`, and class logits [N, K]."""
        return [seen, *self.ladder.up(seen)], single_or_better(self.classifier(seen))

    def classify(self, seen: Tensor) -> Tensor:
        """Log q(y | x) [N, K]."""
        return torch.log_softmax(single_or_better(self.classifier(seen)), dim=1)

    def representation(self, x: Tensor) -> Tensor:
        """What the last layers of the classifier see of x [N, hidden]."""
        return before_head(self.classifier, self.likelihood.observe(x))

    def terms(self, features: list[Tensor], y: Tensor, analytic: bool) -> Tensor:
        """(log p(x | latents, y), KL) [M, 2] of one draw, from features of M rows and y [M, K] on the simplex."""
        seen, *ups = features
        drawn, kl = self.ladder.down(ups, y, y, analytic)
        return torch.stack([self.likelihood.log_prob(seen, self.decoder(drawn[0], y)), kl], dim=1)

    def table(self, seen: Tensor, analytic: bool) -> Table:
        """One draw for each row and label; see :class:`~scnf.models.variational.Table`."""
        features, class_logits = self.encode(seen)

        def one_class(*inputs: Tensor) -> Tensor:
            return self.terms(list(inputs[:-1]), F.one_hot(inputs[-1], self.num_classes).to(seen.dtype), analytic)

        log_px, kl = enumerate_classes(one_class, features, self.num_classes, self.class_chunk).unbind(dim=2)
        return Table(log_px - kl + self.prior.log_prob_all(), class_logits, kl)

    @property
    def enumerates(self) -> bool:
        """Always in evaluation; in training unless labels are drawn."""
        return self.labels is None or not self.training

    def draw(self, seen: Tensor, y: Tensor) -> JointOutput:
        """Log w and the classifier for each row, with one draw of its label where that is hidden."""
        assert self.labels is not None
        features, class_logits = self.encode(seen)
        log_q, log_prior = torch.log_softmax(class_logits, dim=1), self.prior.log_prob_all()
        hidden = (y == UNLABELLED).unsqueeze(1)
        known = F.one_hot(y.masked_fill(y == UNLABELLED, 0), self.num_classes).to(log_q.dtype)
        label = torch.where(hidden, self.labels(class_logits), known)
        log_px, kl = self.terms(features, label, analytic=self.importance_samples == 1).unbind(dim=1)
        if self.labels.score_function:
            score = hidden.squeeze(1) * (label * log_q).sum(dim=1)
            log_px, kl = self._with_score(log_px, score), self._with_score(kl, score)
        log_w = log_px - kl
        # in closed form, but for importance weights, which are of the draw itself
        share = log_q.exp() if self.importance_samples == 1 else label
        divergence = torch.where(hidden, share * (log_q - log_prior), -known * log_prior).sum(dim=1)
        return JointOutput(log_w - divergence, log_q, kl)

    def _with_score(self, values: Tensor, score: Tensor) -> Tensor:
        """Values [M] as they are, with the score-function gradient of their mean over the labels drawn.

        The other draws of a row are the baseline (Mnih and Rezende, https://arxiv.org/abs/1602.06725).
        """
        draws = values.detach().view(-1, self.num_samples)
        others = (draws.sum(dim=1, keepdim=True) - draws) / (self.num_samples - 1)
        return values + (draws - others).flatten() * (score - score.detach())

    @torch.no_grad()
    def generate(self, y: Tensor) -> Tensor:
        """The parameters of p(x | y, z) at a draw of z from its prior, for labels y [M]."""
        label = F.one_hot(y, self.num_classes).to(self.prior.logits.dtype)
        parameters: Tensor = self.decoder(self.ladder.generate(len(y), label, label)[0], label)
        return parameters

    def sample(self, y: Tensor) -> Tensor:
        """One x [M, ...] for each label of y [M]: the mean of p(x | y, z) at a draw of z."""
        check_labels(y, self.num_classes, hidden=False)
        return self.likelihood.mean(self.generate(y))


class ADGM(M2):
    """M2 with an auxiliary variable a, which makes q(z | x) and the classifier richer.

    Maaløe et al., "Auxiliary Deep Generative Models" (https://arxiv.org/abs/1602.05473, section 2): q(a | x),
    q(y | x, a), q(z | x, y, a); p(z) p(y) p(x | y, z) p(a | x, y, z). One draw of a serves all that depends on it.

    Args:
        *arguments: as in :class:`M2`, but that `classifier` is called with a as its context, and the top of the ladder
            with [y, a].
        auxiliary: a.
        posterior: x [N, ...] -> parameters of q(a | x).
        auxiliary_prior: (features of x [M, hidden], [y, z] [M, K + D]) -> means and log-scales of p(a | x, y, z).
        **options: as in :class:`M2`.
    """

    def __init__(
        self,
        *arguments: object,
        auxiliary: GaussianLatent,
        posterior: nn.Module,
        auxiliary_prior: nn.Module,
        **options: object,
    ) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.auxiliary, self.posterior, self.auxiliary_prior = auxiliary, posterior, auxiliary_prior

    def encode(self, seen: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of N rows, with a draw of a and its log q(a | x), and class logits [N, K] given a."""
        a, log_q = self.auxiliary.sample(self.posterior(seen))
        return [seen, *self.ladder.up(seen), a, log_q], single_or_better(self.classifier(seen, a))

    def classify(self, seen: Tensor) -> Tensor:
        """Log q(y | x, a) [N, K] at a draw of a."""
        a, _ = self.auxiliary.sample(self.posterior(seen))
        return torch.log_softmax(single_or_better(self.classifier(seen, a)), dim=1)

    def terms(self, features: list[Tensor], y: Tensor, analytic: bool) -> Tensor:
        """(log p(x | y, z), KL) [M, 2] of one draw, the KL being that of z and a."""
        seen, *ups, a, log_q = features
        drawn, kl = self.ladder.down(ups, torch.cat([y, a], dim=1), y, analytic)
        log_p = diagonal_gaussian(self.auxiliary_prior(ups[-1], torch.cat([y, *drawn], dim=1))).log_prob(a)
        return torch.stack([self.likelihood.log_prob(seen, self.decoder(drawn[0], y)), kl + log_q - log_p], dim=1)


class M1M2(VariationalModel):
    """M2 on the latents of a trained M1, which stays as it is: M1+M2 (https://arxiv.org/abs/1406.5298, section 2).

    log p(x, y) >= E_q(z_1 | x) [log p(x | z_1) - log q(z_1 | x) + bound of M2 on log p(z_1, y)].

    Args:
        m1: with one Gaussian latent of width D; it is frozen.
        m2: over points of width D, with a Gaussian likelihood.

    Raises:
        ValueError: the two do not fit together.
    """

    def __init__(self, m1: VAE, m2: M2) -> None:
        super().__init__(m1.likelihood, m2.num_classes, m2.num_samples, m2.importance_samples)
        latents = m1.ladder.latents
        if len(latents) != 1 or not isinstance(latents[0], GaussianLatent):
            raise InvalidArgument("m1", "must have one Gaussian latent: train the recipe m1")
        if m2.likelihood.shape != (latents[0].features,):
            raise InvalidArgument(
                "m2", f"takes inputs of shape {m2.likelihood.shape}, and the latent of M1 is {latents[0].features}"
            )
        self.m1, self.m2 = m1.requires_grad_(False), m2

    def train(self, mode: bool = True) -> Self:
        """As ever, but M1 stays in evaluation mode."""
        super().train(mode)
        self.m1.eval()
        return self

    @torch.no_grad()
    def _lift(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(z_1 [N, D], log p(x | z_1) - log q(z_1 | x) [N]) of a draw from M1."""
        z, log_q = self.m1.encode(seen)
        return z, self.likelihood.log_prob(seen, self.m1.decoder(z)) - log_q

    def table(self, seen: Tensor, analytic: bool) -> Table:
        """One draw for each row and label; see :class:`~scnf.models.variational.Table`."""
        z, common = self._lift(seen)
        table = self.m2.table(z, analytic)
        return table._replace(log_joint=table.log_joint + common.unsqueeze(1))

    @property
    def enumerates(self) -> bool:
        """As M2 does."""
        return self.m2.enumerates

    def classify(self, seen: Tensor) -> Tensor:
        """Log q(y | z_1) [N, K] at a draw of z_1."""
        with torch.no_grad():
            z, _ = self.m1.encode(seen)
        return self.m2.classify(z)

    def representation(self, x: Tensor) -> Tensor:
        """That of M2, at the mean of 16 draws of z_1."""
        seen = self.likelihood.observe(x)
        draws = [self.m1.encode(seen)[0] for _ in range(16)]
        return self.m2.representation(torch.stack(draws).mean(dim=0))

    def draw(self, seen: Tensor, y: Tensor) -> JointOutput:
        """Log w and the classifier for each row, with one draw of its label where that is hidden."""
        z, common = self._lift(seen)
        output = self.m2.draw(z, y)
        return output._replace(log_likelihood=output.log_likelihood + common)

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """One x [M, ...] for each label of y [M]: the mean of p(x | z_1) at a draw of z_1 given y."""
        check_labels(y, self.num_classes, hidden=False)
        z = self.m2.likelihood.distribution(self.m2.generate(y)).sample()
        return self.likelihood.mean(self.m1.decoder(z))
