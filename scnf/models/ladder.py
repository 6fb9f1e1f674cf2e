"""The chain of latent variables between an image and its decoder: one, or a ladder of several."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scnf.distributions import CategoricalLatent, GaussianLatent
from scnf.distributions.latent import diagonal_gaussian, merge_gaussians


class Ladder(nn.Module):
    """q(z_L, ..., z_1 | x, context) and p(z_L) p(z_(L-1) | z_L) ... p(z_1 | z_2); z_1 is what gets decoded.

    Bottom-up, deterministic features d_1 = body_1(x), d_l = body_l(d_(l-1)), and from each the parameters of a
    Gaussian. The top posterior is that Gaussian, the only one that sees the context (a label, say). Going down, each
    lower posterior merges its own Gaussian with the prior that the layer above gives, weighted by precision (Sønderby
    et al., https://arxiv.org/abs/1602.02282, section 2.2), and its draw goes on downwards. With one layer this is the
    posterior and prior of a VAE.

    Args:
        bodies: L networks, bottom first.
        heads: L networks d_l -> parameters of the posterior; the last is called with the context where one is given.
        latents: L latent variables, bottom first.
        priors: L - 1 networks (z_(l+1), context) -> means and log-scales of p(z_l | z_(l+1)), bottom first.
    """

    def __init__(
        self,
        bodies: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        latents: Sequence[GaussianLatent | CategoricalLatent],
        priors: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        if not len(bodies) == len(heads) == len(latents) == len(priors) + 1:
            raise ValueError("a ladder of L latents takes L bodies, L heads and L - 1 priors")
        if len(latents) > 1 and not all(isinstance(latent, GaussianLatent) for latent in latents):
            raise ValueError("the latents of a ladder are Gaussian")
        self.bodies, self.heads, self.latents = nn.ModuleList(bodies), nn.ModuleList(heads), nn.ModuleList(latents)
        self.priors = nn.ModuleList(priors)
        self.features = sum(latent.features for latent in latents)

    def _latent(self, index: int) -> GaussianLatent | CategoricalLatent:
        latent = self.latents[index]
        assert isinstance(latent, GaussianLatent | CategoricalLatent)
        return latent

    def up(self, seen: Tensor) -> list[Tensor]:
        """Features d_1..d_L, each [N, hidden], of images [N, ...]."""
        features = []
        for body in self.bodies:
            seen = body(seen)
            features.append(seen)
        return features

    def down(
        self, features: Sequence[Tensor], context: Tensor | None, prior_context: Tensor | None, analytic: bool
    ) -> tuple[list[Tensor], Tensor]:
        """(z_1..z_L, each [M, D_l]; KL [M]) from features of M rows and what the top posterior and the priors see."""
        top = self.heads[-1](features[-1]) if context is None else self.heads[-1](features[-1], context)
        z, kl = self._latent(-1).draw(top, analytic=analytic)
        drawn = [z]
        for index in reversed(range(len(self.priors))):
            latent, prior = self._latent(index), self.priors[index](z, prior_context)
            own, size = self.heads[index](features[index]), prior.shape[1]
            merged = torch.cat([merge_gaussians(own[:, :size], prior), own[:, size:]], dim=1)
            z, divergence = latent.draw(merged, diagonal_gaussian(prior), analytic)
            kl = kl + divergence
            drawn.insert(0, z)
        return drawn, kl

    @torch.no_grad()
    def generate(self, num: int, prior_context: Tensor | None, like: Tensor) -> list[Tensor]:
        """z_1..z_L from the prior, each [num, D_l], on the device of `like`."""
        z = self._latent(-1).sample_prior(num, like)
        drawn = [z]
        for index in reversed(range(len(self.priors))):
            z = diagonal_gaussian(self.priors[index](z, prior_context)).sample()
            drawn.insert(0, z)
        return drawn
