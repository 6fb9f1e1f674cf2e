"""Define a semi-conditional flow that reads the class by a network of the whole image."""

import torch
from torch import Tensor, nn

from scnf.batch import Batch
from scnf.distributions import ClassConditionalSoftmax, ClassPrior, DiagonalGaussian, FlowDistribution
from scnf.models.base import output_from_table
from scnf.models.flow import SemiConditionalFlow
from scnf.nn import head_inputs
from scnf.transforms import Transform


class ReaderFlow(SemiConditionalFlow):
    """A reader flow is a semi-conditional flow whose last coupling adds the class logits of a network to z_f.

    `[z_aux, e] = f(x)` and `z_f = e + V^T r(x')` in the first K - 1 features, with the matrix V of
    :meth:`ClassConditionalSoftmax.move <scnf.distributions.softmax.ClassConditionalSoftmax.move>`. The network r reads
    the image x' of the same z_aux and e, but for these K - 1 numbers, which are 0: `x' = f^-1([z_aux, 0, e_K..])`,
    rounded to grey levels. It differs from x in a few pixels. The coupling is additive, so its log-determinant is 0,
    and `log p(x, y) = log p(y) + log p(z_aux) + log p(z_f | y) + log |det df/dx|` is exact. The classifier is Bayes'
    rule. With a uniform prior it is the softmax of r(x'), plus noise of standard deviation 1 / gain that comes from e.

    In a training step, cross-entropies train the network r alone, and the likelihood trains everything else. The
    likelihood does not bend the network, which classifies, and the labels do not bend the density. For f, these K - 1
    numbers of e are standard Gaussian, while p(z_f | y) is fitted to z_f as it is. Else f would scale them up, for then
    the logits cost less density, and their noise would hide the logits. Where a batch has
    moved rows, the rows themselves are in no cross-entropy, and the network takes no gradient of them.

    Args:
        transform: Transform f from images [N, C, H, W] to vectors [N, D], of which the last ones are e.
        reader: Network r from images to logits [N, K].
        auxiliary: Density p(z_aux).
        conditional: Density p(z_f | y).
        prior: Class prior p(y).
        semantic_features: Number d of features of z_f.
        levels: Number of grey levels, to which x' is rounded; None for no rounding.

    Example:
        >>> from scnf.recipes import build
        >>> model = build("scnf-reader", shape=(3, 8, 8), num_classes=5, levels=256)
        >>> x = torch.rand(4, 3, 8, 8)
        >>> model(Batch.unlabelled(x)).log_likelihood.shape, model.sample(torch.tensor([0, 4])).shape
        (torch.Size([4]), torch.Size([2, 3, 8, 8]))
    """

    conditional: ClassConditionalSoftmax

    def __init__(
        self,
        transform: Transform,
        reader: nn.Module,
        auxiliary: DiagonalGaussian | FlowDistribution,
        conditional: ClassConditionalSoftmax,
        prior: ClassPrior,
        semantic_features: int,
        levels: int | None = None,
    ) -> None:
        super().__init__(transform, auxiliary, conditional, prior, semantic_features)
        self.reader, self.levels = reader, levels

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z_aux [N, D - d], z_f [N, d] and `log |det df/dx|` [N]."""
        z_aux, e, logabsdet = super().latents(x)
        return z_aux, self.conditional.move(e, self._logits(z_aux, e)), logabsdet

    def image_read(self, z_aux: Tensor, e: Tensor) -> Tensor:
        """Return the image x' [N, C, H, W] that the network reads, from z_aux [N, D - d] and e [N, d]."""
        used = self.conditional.used
        with torch.no_grad():
            image: Tensor = self.transform.inverse(torch.cat([z_aux, torch.zeros_like(e[:, :used]), e[:, used:]], 1))[0]
            if self.levels is None:
                return image
            return ((self.levels * image).floor().clamp(0, self.levels - 1) + 0.5) / self.levels

    def _logits(self, z_aux: Tensor, e: Tensor) -> Tensor:
        logits: Tensor = self.reader(self.image_read(z_aux, e))
        return logits.to(e.dtype)

    def _train_step(self, inputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, None]:
        rows, grad = inputs[: len(batch.x)], torch.is_grad_enabled()
        z_aux, e, logabsdet = super().latents(rows)
        with torch.no_grad():
            more_z_aux, more_e, _ = super().latents(inputs[len(rows) :])
        with torch.set_grad_enabled(grad and batch.moved is None):
            logits = self._logits(z_aux, e)
        assert self.auxiliary is not None
        eta, rest = e.tensor_split([self.conditional.used], dim=1)
        gaussian = -0.5 * eta.square().sum(dim=1)  # whose gradient eta takes, while all values stay
        common = logabsdet + self.auxiliary.log_prob(z_aux) + (gaussian - gaussian.detach())
        z_f = self.conditional.move(torch.cat([eta.detach(), rest], dim=1), logits.detach())
        table = common.unsqueeze(1) + self._by_class(z_f)
        if len(more_e):
            logits = torch.cat([logits, self._logits(more_z_aux, more_e)])
        z_f = self.conditional.move(torch.cat([e.detach(), more_e]), logits)
        log_q = torch.log_softmax(self._by_class(z_f), dim=1)
        return output_from_table(table, table, batch.y).log_likelihood, log_q, None

    def representation(self, x: Tensor) -> Tensor:
        """Return the features [N, F] from which the network r computes its logits."""
        z_aux, e, _ = super().latents(x)
        return head_inputs(self.reader, self.image_read(z_aux, e))

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """Draw one x for each label of y [N]."""
        z_f = self.conditional.sample(y)
        assert self.auxiliary is not None
        z_aux = self.auxiliary.sample(len(y))
        e = self.conditional.move(z_f, self._logits(z_aux, z_f), sign=-1.0)
        return self.transform.inverse(torch.cat([z_aux, e], dim=1))[0]
