"""Define autoencoders without a label among their latents: M1, beta-VAE, ladder VAE, Gumbel-softmax autoencoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.checks import check_labels
from scnf.distributions import GaussianLatent, PixelLikelihood, at_least_float32
from scnf.models.base import JointOutput, select_label
from scnf.models.ladder import Ladder
from scnf.models.variational import Table, VariationalModel, log_mean_exp


class VAE(VariationalModel):
    """A VAE is a variational model of x, here with a classifier p(y | z) on its latents (M1).

    log p(x) >= E_q [log p(x | z)] - KL(q(z | x) || p(z)).

    Kingma and Welling (https://arxiv.org/abs/1312.6114, eq. 3); M1 of Kingma et al. (https://arxiv.org/abs/1406.5298,
    section 2). The likelihood of x alone trains the autoencoder, and no gradient of the classifier reaches it. As y
    depends on z, log p(x, y) >= E_q [log p(x | z) + log p(y | z)] - KL. A KL weight other than 1, set in the objective,
    makes a beta-VAE.

    Args:
        likelihood: Pixel likelihood p(x | z).
        ladder: Latent variables z_1, ..., z_L.
        decoder: Network z_1 [M, D_1] -> parameters of the likelihood.
        classifier: Network [z_1, ..., z_L] [M, sum of D_l] -> logits of p(y | z) [M, K].
        num_classes: Number of classes K.
        num_samples: Number S of Monte Carlo samples, see :class:`~scnf.models.variational.VariationalModel`.
        importance_samples: Number k of importance samples, see the same class.

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

    def _terms(self, observed: Tensor, analytic: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(x | z) - KL [M], log p(y | z) [M, K] and KL [M] of one draw for each row."""
        latents, kl = self.ladder.down(self.ladder.up(observed), None, None, analytic)
        return self.likelihood.log_prob(observed, self.decoder(latents[0])) - kl, self._posterior(latents), kl

    def _posterior(self, latents: Sequence[Tensor]) -> Tensor:
        """Return log p(y | z) [M, K], from which no gradient reaches z."""
        return torch.log_softmax(at_least_float32(self.classifier(torch.cat(list(latents), dim=1).detach())), dim=1)

    def table(self, observed: Tensor, analytic: bool) -> Table:
        """Draw the latent variables once for each row; see :class:`~scnf.models.variational.Table`."""
        log_w, log_q, kl = self._terms(observed, analytic)
        return Table(log_w.unsqueeze(1) + log_q, log_q, kl.unsqueeze(1).expand_as(log_q))

    def bound(self, observed: Tensor, y: Tensor) -> JointOutput:
        """Compute the bound for each row of y [N] from k draws, and average the classifier over the weighted draws.

        log mean_i [w_i p(y | z_i)] = log mean_i w_i + log p(y | x). Here p(y | x) is the average of p(y | z_i) weighted
        by w_i. The weights in p(y | x) carry no gradient, so labels do not reach the autoencoder.
        """
        k = self.importance_samples
        log_w, log_q, kl = self._terms(observed, analytic=k == 1)
        bound = log_mean_exp(log_w, k)
        weights = torch.log_softmax(log_w.detach().view(-1, k), dim=1)
        class_log_probs = (weights.unsqueeze(2) + log_q.unflatten(0, (-1, k))).logsumexp(dim=1)
        label = torch.where(y == UNLABELLED, 0.0, select_label(class_log_probs, y))
        return JointOutput(bound + label, class_log_probs, kl.view(-1, k).mean(dim=1))

    def classify(self, observed: Tensor) -> Tensor:
        """Return log p(y | z) [N, K] at a draw of z."""
        return self._posterior(self._draw_latents(observed))

    def representation(self, x: Tensor) -> Tensor:
        """Return a draw of all latents, concatenated to [N, D]."""
        return torch.cat(self._draw_latents(self.likelihood.observe(x)), dim=1)

    def _draw_latents(self, observed: Tensor) -> list[Tensor]:
        return self.ladder.down(self.ladder.up(observed), None, None, analytic=True)[0]

    def encode(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw z [N, D] and log q(z | x) [N], for a model with one Gaussian latent."""
        latent = self.ladder.latents[0]
        assert isinstance(latent, GaussianLatent)
        return latent.sample(self.ladder.heads[0](self.ladder.up(observed)[0]))

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """Draw one x [M, ...] for each label of y [M].

        Draws from p(z | y), proportional to p(z) p(y | z), come from resampling 1,000 draws of p(z).
        """
        check_labels(y, self.num_classes, hidden=False)
        like = next(self.decoder.parameters())
        latents = self.ladder.generate(1000, None, like)
        weights = torch.softmax(self.classifier(torch.cat(latents, dim=1)), dim=1).t()
        z = latents[0][torch.multinomial(weights[y], 1).squeeze(1)]
        return self.likelihood.mean(self.decoder(z))
