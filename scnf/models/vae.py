"""Autoencoders without a label among their latents: M1, beta-VAE, ladder VAE, Gumbel-softmax autoencoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.checks import check_labels
from scnf.distributions import GaussianLatent, PixelLikelihood, single_or_better
from scnf.models.base import JointOutput, at_label
from scnf.models.ladder import Ladder
from scnf.models.variational import Table, VariationalModel, log_mean_exp


class VAE(VariationalModel):
    """log p(x) >= E_q [log p(x | z)] - KL(q(z | x) || p(z)), and a classifier p(y | z) on the latents: M1.

    Kingma and Welling (https://arxiv.org/abs/1312.6114, eq. 3); M1 of Kingma et al. (https://arxiv.org/abs/1406.5298,
    section 2). The autoencoder is trained by the likelihood of x alone: no gradient of the classifier reaches it. As
    y depends on z, log p(x, y) >= E_q [log p(x | z) + log p(y | z)] - KL. A KL weight other than 1, set in the
    objective, makes a beta-VAE.

    Args:
        likelihood: p(x | z).
        ladder: the latents.
        decoder: z_1 [M, D_1] -> parameters of the likelihood.
        classifier: [z_1, ..., z_L] [M, sum of D_l] -> logits of p(y | z) [M, K].
        num_classes: K.
        num_samples: as in :class:`~scnf.models.variational.VariationalModel`.
        importance_samples: likewise.

    Example:
        >>> from scnf.batch import Batch
        >>> from scnf.recipes import build
        >>> model = build("m1", shape=(1, 8, 8), num_classes=10, levels=17, hidden=16, latent=4)
        >>> output = model(Batch(torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, -1, -1, -1])))
        >>> output.log_likelihood.shape, output.class_log_probs.shape
        (torch.Size([6]), torch.Size([6, 10]))
    """

    def __init__(
        self,
        likelihood: PixelLikelihood,
        ladder: Ladder,
        decoder: nn.Module,
        classifier: nn.Module,
        num_classes: int,
        num_samples: int = 1,
        importance_samples: int = 1,
    ) -> None:
        super().__init__(likelihood, num_classes, num_samples, importance_samples)
        self.ladder, self.decoder, self.classifier = ladder, decoder, classifier

    def _terms(self, seen: Tensor, analytic: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(log p(x | z) - KL [M], log p(y | z) [M, K], KL [M]) of one draw for each row."""
        drawn, kl = self.ladder.down(self.ladder.up(seen), None, None, analytic)
        return self.likelihood.log_prob(seen, self.decoder(drawn[0])) - kl, self._posterior(drawn), kl

    def _posterior(self, drawn: Sequence[Tensor]) -> Tensor:
        """Log p(y | z) [M, K], from which no gradient reaches z."""
        return torch.log_softmax(single_or_better(self.classifier(torch.cat(list(drawn), dim=1).detach())), dim=1)

    def table(self, seen: Tensor, analytic: bool) -> Table:
        """One draw for each row; see :class:`~scnf.models.variational.Table`."""
        log_w, log_q, kl = self._terms(seen, analytic)
        return Table(log_w.unsqueeze(1) + log_q, log_q, kl.unsqueeze(1).expand_as(log_q))

    def bound(self, seen: Tensor, y: Tensor) -> JointOutput:
        """The bound for each row of y [N] from k draws; the classifier is averaged over them by their weights.

        log mean_i [w_i p(y | z_i)] = log mean_i w_i + log p(y | x), with p(y | x) that average: there the weights carry
        no gradient, so that labels do not reach the autoencoder.
        """
        k = self.importance_samples
        log_w, log_q, kl = self._terms(seen, analytic=k == 1)
        bound = log_mean_exp(log_w, k)
        weights = torch.log_softmax(log_w.detach().view(-1, k), dim=1)
        class_log_probs = (weights.unsqueeze(2) + log_q.unflatten(0, (-1, k))).logsumexp(dim=1)
        label = torch.where(y == UNLABELLED, 0.0, at_label(class_log_probs, y))
        return JointOutput(bound + label, class_log_probs, kl.view(-1, k).mean(dim=1))

    def classify(self, seen: Tensor) -> Tensor:
        """Log p(y | z) [N, K] at a draw of z."""
        return self._posterior(self._drawn(seen))

    def representation(self, x: Tensor) -> Tensor:
        """A draw of all latents, side by side [N, D]."""
        return torch.cat(self._drawn(self.likelihood.observe(x)), dim=1)

    def _drawn(self, seen: Tensor) -> list[Tensor]:
        return self.ladder.down(self.ladder.up(seen), None, None, analytic=True)[0]

    def encode(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(z [N, D], log q(z | x) [N]) for a model with one Gaussian latent."""
        latent = self.ladder.latents[0]
        assert isinstance(latent, GaussianLatent)
        return latent.sample(self.ladder.heads[0](self.ladder.up(seen)[0]))

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """One x [M, ...] for each label of y [M].

        p(z | y), proportional to p(z) p(y | z), is drawn from by resampling 1,000 draws of p(z).
        """
        check_labels(y, self.num_classes, hidden=False)
        like = next(self.decoder.parameters())
        drawn = self.ladder.generate(1000, None, like)
        weights = torch.softmax(self.classifier(torch.cat(drawn, dim=1)), dim=1).t()
        z = drawn[0][torch.multinomial(weights[y], 1).squeeze(1)]
        return self.likelihood.mean(self.decoder(z))
