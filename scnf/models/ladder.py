"""Define the chain of latent variables between an image and its decoder, with one variable or a ladder of several."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scnf.distributions import CategoricalLatent, GaussianLatent
from scnf.distributions.latent import diagonal_gaussian, merge_gaussians
from scnf.errors import InvalidArgument


class Ladder(nn.Module):
    """A ladder is a chain of latent variables z_1, ..., z_L, of which the decoder reads z_1.

    The posterior is q(z_L, ..., z_1 | x, context), and the prior is p(z_L) p(z_(L-1) | z_L) ... p(z_1 | z_2).

    Bottom-up, the bodies compute deterministic features d_1 = body_1(x) and d_l = body_l(d_(l-1)). A head maps each of
    them to the parameters of a Gaussian. The top Gaussian is the top posterior, and it alone depends on the context,
    for example a label.

    Top-down, each lower posterior merges its own Gaussian with the prior from the layer above, weighted by precision
    (Sønderby et al., https://arxiv.org/abs/1602.02282, section 2.2). A draw from it then sets the prior of the layer
    below. With one layer, the ladder is the posterior and prior of a VAE.

    Args:
        bodies: L networks, bottom first.
        heads: L networks d_l -> parameters of the posterior, bottom first. The last one also takes the context, where
            there is one.
        latents: L latent variables, bottom first.
        priors: L - 1 networks (z_(l+1), context) -> means and log-scales of p(z_l | z_(l+1)), bottom first.

    Raises:
        InvalidArgument: The numbers of parts differ, or one of several latents is not Gaussian.
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
            raise InvalidArgument(
                "latents",
                "must be as many as bodies and heads, and one more than priors, "
                f"not {len(latents)} with {len(bodies)} bodies, {len(heads)} heads and {len(priors)} priors",
            )
        if len(latents) > 1 and not all(isinstance(latent, GaussianLatent) for latent in latents):
            kinds = ", ".join(type(latent).__name__ for latent in latents)
            raise InvalidArgument("latents", f"must be Gaussian where there are several, not {kinds}")
        self.bodies, self.heads, self.latents = nn.ModuleList(bodies), nn.ModuleList(heads), nn.ModuleList(latents)
        self.priors = nn.ModuleList(priors)
        self.features = sum(latent.features for latent in latents)

    def _latent(self, index: int) -> GaussianLatent | CategoricalLatent:
        latent = self.latents[index]
        assert isinstance(latent, GaussianLatent | CategoricalLatent)
        return latent

    def up(self, inputs: Tensor) -> list[Tensor]:
        """Return the features d_1, ..., d_L, each [N, hidden], of images [N, ...]."""
        features, hidden = [], inputs
        for body in self.bodies:
            hidden = body(hidden)
            features.append(hidden)
        return features

    def down(
        self, features: Sequence[Tensor], context: Tensor | None, prior_context: Tensor | None, analytic: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Draw z_1, ..., z_L, each [M, D_l], and return them with their KL divergence [M].

        Args:
            features: Features d_1, ..., d_L of M rows, from :meth:`up`.
            context: Context of the top posterior; None without one.
            prior_context: Context of the priors; None without one.
            analytic: Whether KL divergences are computed in closed form where there is one.
        """
        top = self.heads[-1](features[-1]) if context is None else self.heads[-1](features[-1], context)
        z, kl = self._latent(-1).draw(top, analytic=analytic)
        draws = [z]
        for index in reversed(range(len(self.priors))):
            latent, prior = self._latent(index), self.priors[index](z, prior_context)
            bottom_up, size = self.heads[index](features[index]), prior.shape[1]
            posterior = torch.cat([merge_gaussians(bottom_up[:, :size], prior), bottom_up[:, size:]], dim=1)
            z, divergence = latent.draw(posterior, diagonal_gaussian(prior), analytic)
            kl = kl + divergence
            draws.insert(0, z)
        return draws, kl

    @torch.no_grad()
    def generate(self, num: int, prior_context: Tensor | None, like: Tensor) -> list[Tensor]:
        """Draw z_1, ..., z_L from the prior, each [num, D_l], on the device of `like`."""
        z = self._latent(-1).sample_prior(num, like)
        draws = [z]
        for index in reversed(range(len(self.priors))):
            z = diagonal_gaussian(self.priors[index](z, prior_context)).sample()
            draws.insert(0, z)
        return draws
