"""Define deep generative models with the label among their latents: M2, ladder DGM, ADGM, and M2 on M1."""

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
    at_least_float32,
    enumerate_classes,
)
from scnf.distributions.latent import diagonal_gaussian
from scnf.errors import InvalidArgument
from scnf.models.base import JointOutput
from scnf.models.ladder import Ladder
from scnf.models.vae import VAE
from scnf.models.variational import Table, VariationalModel
from scnf.nn import head_inputs


class M2(VariationalModel):
    """M2 is a variational model of x and y, in which a hidden label is a latent variable beside z.

    log p(x, y) >= E_q(z | x, y) [log p(x | y, z)] - KL(q(z | x, y) || p(z)) + log p(y). The classifier is q(y | x).

    Kingma et al. (https://arxiv.org/abs/1406.5298, eqs. 6 and 7). In training, hidden labels are enumerated, or drawn
    once for each row (`labels`). Evaluation always enumerates, so it reports a true bound.

    With a drawn y, log w at the draw replaces E_q(y | x) log w(x, y). The divergence of q(y | x) from p(y) is taken in
    closed form, as by Jang et al. (https://arxiv.org/abs/1611.01144). With importance samples it is taken at the draw.

    The result estimates the bound where draws are one-hot and follow q(y | x). Elsewhere it is a surrogate of the
    bound; see :mod:`scnf.distributions.labels`.

    Args:
        likelihood: Pixel likelihood p(x | y, z).
        prior: Class prior p(y).
        ladder: Latent variables given y, whose context is y [M, K]. Several latents make a ladder DGM.
        decoder: Network (z_1 [M, D_1], y [M, K]) -> parameters of the likelihood.
        classifier: Network x [N, ...] -> logits of q(y | x) [N, K].
        labels: Module that draws hidden labels in training; None enumerates them.
        num_samples: Number S of Monte Carlo samples, see :class:`~scnf.models.variational.VariationalModel`.
        importance_samples: Number k of importance samples, see the same class.
        class_chunk: Number of classes enumerated at once; all by default.

    Raises:
        InvalidArgument: A score function has fewer than two samples, or is combined with importance samples.

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
                "must be 2 or more, and importance_samples 1, because the score function compares the samples of a row",
            )
        self.prior, self.ladder, self.decoder, self.classifier = prior, ladder, decoder, classifier
        self.labels, self.class_chunk = labels, class_chunk

    def encode(self, observed: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features of N rows for :meth:`terms` and the class logits [N, K]; neither depends on the label."""
        return [observed, *self.ladder.up(observed)], at_least_float32(self.classifier(observed))

    def classify(self, observed: Tensor) -> Tensor:
        """Return log q(y | x) [N, K]."""
        return torch.log_softmax(at_least_float32(self.classifier(observed)), dim=1)

    def representation(self, x: Tensor) -> Tensor:
        """Return the hidden units [N, hidden] that the head of the classifier reads."""
        return head_inputs(self.classifier, self.likelihood.observe(x))

    def terms(self, features: list[Tensor], y: Tensor, analytic: bool) -> Tensor:
        """Return log p(x | latents, y) and the KL divergence of one draw, as the columns of [M, 2].

        Args:
            features: Features of M rows, from :meth:`encode`.
            y: Labels [M, K] on the simplex.
            analytic: Whether KL divergences are computed in closed form where there is one.
        """
        observed, *ladder_features = features
        latents, kl = self.ladder.down(ladder_features, y, y, analytic)
        return torch.stack([self.likelihood.log_prob(observed, self.decoder(latents[0], y)), kl], dim=1)

    def table(self, observed: Tensor, analytic: bool) -> Table:
        """Draw the latent variables once for each row and label; see :class:`~scnf.models.variational.Table`."""
        features, class_logits = self.encode(observed)

        def one_class(*inputs: Tensor) -> Tensor:
            return self.terms(list(inputs[:-1]), F.one_hot(inputs[-1], self.num_classes).to(observed.dtype), analytic)

        log_px, kl = enumerate_classes(one_class, features, self.num_classes, self.class_chunk).unbind(dim=2)
        return Table(log_px - kl + self.prior.log_prob_all(), class_logits, kl)

    @property
    def enumerates(self) -> bool:
        """Return whether hidden labels are enumerated, which is always so in evaluation or without a label draw."""
        return self.labels is None or not self.training

    def draw(self, observed: Tensor, y: Tensor) -> JointOutput:
        """Return log w and the classifier for each row, with one draw of each hidden label."""
        assert self.labels is not None
        features, class_logits = self.encode(observed)
        log_q, log_prior = torch.log_softmax(class_logits, dim=1), self.prior.log_prob_all()
        hidden = (y == UNLABELLED).unsqueeze(1)
        one_hot = F.one_hot(y.masked_fill(y == UNLABELLED, 0), self.num_classes).to(log_q.dtype)
        label = torch.where(hidden, self.labels(class_logits), one_hot)
        log_px, kl = self.terms(features, label, analytic=self.importance_samples == 1).unbind(dim=1)
        if self.labels.score_function:
            score = hidden.squeeze(1) * (label * log_q).sum(dim=1)
            log_px, kl = self._with_score(log_px, score), self._with_score(kl, score)
        log_w = log_px - kl
        # closed form, except with importance weights, which belong to the draw itself
        label_probs = log_q.exp() if self.importance_samples == 1 else label
        divergence = torch.where(hidden, label_probs * (log_q - log_prior), -one_hot * log_prior).sum(dim=1)
        return JointOutput(log_w - divergence, log_q, kl)

    def _with_score(self, values: Tensor, score: Tensor) -> Tensor:
        """Add the score-function gradient of the mean over drawn labels to values [M], which stay the same.

        The other draws of a row are the baseline (Mnih and Rezende, https://arxiv.org/abs/1602.06725).
        """
        draws = values.detach().view(-1, self.num_samples)
        others = (draws.sum(dim=1, keepdim=True) - draws) / (self.num_samples - 1)
        return values + (draws - others).flatten() * (score - score.detach())

    @torch.no_grad()
    def generate(self, y: Tensor) -> Tensor:
        """Return the parameters of p(x | y, z) at a draw of z from its prior, for labels y [M]."""
        label = F.one_hot(y, self.num_classes).to(self.prior.logits.dtype)
        parameters: Tensor = self.decoder(self.ladder.generate(len(y), label, label)[0], label)
        return parameters

    def sample(self, y: Tensor) -> Tensor:
        """Draw one x [M, ...] for each label of y [M], the mean of p(x | y, z) at a draw of z."""
        check_labels(y, self.num_classes, hidden=False)
        return self.likelihood.mean(self.generate(y))


class ADGM(M2):
    """ADGM adds an auxiliary variable a to M2, which makes q(z | x) and the classifier richer.

    Maaløe et al., "Auxiliary Deep Generative Models" (https://arxiv.org/abs/1602.05473, section 2). The inference model
    is q(a | x), q(y | x, a), q(z | x, y, a). The generative model is p(z) p(y) p(x | y, z) p(a | x, y, z). All terms
    that depend on a share one draw of it.

    Args:
        *arguments: Arguments of :class:`M2`. Here `classifier` takes a as its context, and the top of the ladder takes
            [y, a].
        auxiliary: Latent variable a.
        posterior: Network x [N, ...] -> parameters of q(a | x).
        auxiliary_prior: Network (features of x [M, hidden], [y, z] [M, K + D]) -> means and log-scales of p(a | x, y,
            z).
        **options: Keyword arguments of :class:`M2`.
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

    def encode(self, observed: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return features of N rows, with a draw of a and its log q(a | x), and class logits [N, K] given a."""
        a, log_q = self.auxiliary.sample(self.posterior(observed))
        return [observed, *self.ladder.up(observed), a, log_q], at_least_float32(self.classifier(observed, a))

    def classify(self, observed: Tensor) -> Tensor:
        """Return log q(y | x, a) [N, K] at a draw of a."""
        a, _ = self.auxiliary.sample(self.posterior(observed))
        return torch.log_softmax(at_least_float32(self.classifier(observed, a)), dim=1)

    def terms(self, features: list[Tensor], y: Tensor, analytic: bool) -> Tensor:
        """Return log p(x | y, z) and the KL divergence of z and a for one draw, as the columns of [M, 2]."""
        observed, *ladder_features, a, log_q = features
        latents, kl = self.ladder.down(ladder_features, torch.cat([y, a], dim=1), y, analytic)
        prior = diagonal_gaussian(self.auxiliary_prior(ladder_features[-1], torch.cat([y, *latents], dim=1)))
        log_p = prior.log_prob(a)
        log_px = self.likelihood.log_prob(observed, self.decoder(latents[0], y))
        return torch.stack([log_px, kl + log_q - log_p], dim=1)


class M1M2(VariationalModel):
    """M1+M2 is an M2 on the latents of a trained, frozen M1 (https://arxiv.org/abs/1406.5298, section 2).

    log p(x, y) >= E_q(z_1 | x) [log p(x | z_1) - log q(z_1 | x) + bound of M2 on log p(z_1, y)].

    Args:
        m1: Trained M1 with one Gaussian latent of width D. Its parameters are frozen.
        m2: M2 over points of width D, with a Gaussian likelihood.

    Raises:
        InvalidArgument: The two models do not fit together.
    """

    def __init__(self, m1: VAE, m2: M2) -> None:
        super().__init__(m1.likelihood, m2.num_classes, m2.num_samples, m2.importance_samples)
        latents = m1.ladder.latents
        if len(latents) != 1 or not isinstance(latents[0], GaussianLatent):
            raise InvalidArgument("m1", "must have one Gaussian latent: train the recipe m1")
        if m2.likelihood.shape != (latents[0].features,):
            raise InvalidArgument(
                "m2", f"takes inputs of shape {m2.likelihood.shape}, but the latent of M1 is {latents[0].features} wide"
            )
        self.m1, self.m2 = m1.requires_grad_(False), m2

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, and keep M1 in evaluation mode."""
        super().train(mode)
        self.m1.eval()
        return self

    @torch.no_grad()
    def _lift(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw z_1 [N, D] from M1, and log p(x | z_1) - log q(z_1 | x) [N]."""
        z, log_q = self.m1.encode(observed)
        return z, self.likelihood.log_prob(observed, self.m1.decoder(z)) - log_q

    def table(self, observed: Tensor, analytic: bool) -> Table:
        """Draw the latent variables once for each row and label; see :class:`~scnf.models.variational.Table`."""
        z, common = self._lift(observed)
        table = self.m2.table(z, analytic)
        return table._replace(log_joint=table.log_joint + common.unsqueeze(1))

    @property
    def enumerates(self) -> bool:
        """Return whether M2 enumerates hidden labels."""
        return self.m2.enumerates

    def classify(self, observed: Tensor) -> Tensor:
        """Return log q(y | z_1) [N, K] at a draw of z_1."""
        with torch.no_grad():
            z, _ = self.m1.encode(observed)
        return self.m2.classify(z)

    def representation(self, x: Tensor) -> Tensor:
        """Return the representation of M2 at the mean of 16 draws of z_1."""
        observed = self.likelihood.observe(x)
        draws = [self.m1.encode(observed)[0] for _ in range(16)]
        return self.m2.representation(torch.stack(draws).mean(dim=0))

    def draw(self, observed: Tensor, y: Tensor) -> JointOutput:
        """Return log w and the classifier for each row, with one draw of each hidden label."""
        z, common = self._lift(observed)
        output = self.m2.draw(z, y)
        return output._replace(log_likelihood=output.log_likelihood + common)

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """Draw one x [M, ...] for each label of y [M], the mean of p(x | z_1) at a draw of z_1 given y."""
        check_labels(y, self.num_classes, hidden=False)
        z = self.m2.likelihood.distribution(self.m2.generate(y)).sample()
        return self.likelihood.mean(self.m1.decoder(z))
