"""Define the semi-conditional normalizing flow, with exact log p(x), log p(x | y) and p(y | x) from one pass."""

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import check_labels
from scnf.distributions import ClassConditional, ClassPrior, DiagonalGaussian, FlowDistribution
from scnf.models.base import JointModel, output_from_table
from scnf.transforms import GreyLevels, Logit, Transform


class SemiConditionalFlow(JointModel):
    """A semi-conditional flow is an exact joint density of inputs x and labels y.

    `log p(x, y) = log p(y) + log p(z_aux) + log p(z_f | y) + log |det df/dx|`, with `[z_aux, z_f] = f(x)`.

    Atanov et al., "Semi-Conditional Normalizing Flows for Semi-Supervised Learning" (https://arxiv.org/abs/1905.00505),
    section 3. The shared flow f runs once for an image. Only the small class-conditional part runs for each of the K
    classes. The density log p(x) = logsumexp_y log p(x, y) is exact, and the classifier is Bayes' rule.

    Args:
        transform: Shared flow f from images [N, C, H, W] (or points [N, D]) to vectors [N, D], deepest features last.
        auxiliary: Density p(z_aux) of the first features; None where all features are semantic.
        conditional: Density p(z_f | y) of the remaining features.
        prior: Class prior p(y).
        semantic_features: Number of features of z_f.

    Example:
        >>> from scnf.batch import Batch
        >>> from scnf.recipes import build
        >>> model = build("scnf-toy", shape=(2,), num_classes=2)
        >>> output = model(Batch(torch.randn(6, 2), torch.tensor([0, 1, 0, -1, -1, -1])))
        >>> output.log_likelihood.shape, output.class_log_probs.shape
        (torch.Size([6]), torch.Size([6, 2]))
        >>> model.sample(torch.tensor([0, 1])).shape
        torch.Size([2, 2])
    """

    exact = True

    def __init__(
        self,
        transform: Transform,
        auxiliary: DiagonalGaussian | FlowDistribution | None,
        conditional: ClassConditional,
        prior: ClassPrior,
        semantic_features: int,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.auxiliary = auxiliary
        self.conditional = conditional
        self.prior = prior
        self.semantic_features = semantic_features
        self.num_classes = conditional.num_classes
        if any(isinstance(module, Logit | GreyLevels) for module in transform.modules()):
            self.pixels = (-1.0, 2.0)  # samples may leave [0, 1] slightly, and still have a density

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z_aux [N, D - d], z_f [N, d] and `log |det df/dx|` [N]."""
        z, logabsdet = self.transform(x)
        return z[:, : -self.semantic_features], z[:, -self.semantic_features :], logabsdet

    def _shared(self, x: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Return z_f [N, d], and `log p(z_aux) + log |det df/dx|` of the first `rows` rows (of all by default).

        All classes have the second result in common.
        """
        z_aux, z_f, logabsdet = self.latents(x)
        if self.auxiliary is not None and rows != 0:
            return z_f, logabsdet[:rows] + self.auxiliary.log_prob(z_aux[:rows])
        return z_f, logabsdet[:rows]

    def _by_class(self, z_f: Tensor) -> Tensor:
        """Return log p(z_f, y = k) [N, K]."""
        return self.conditional.log_prob_all(z_f) + self.prior.log_prob_all()

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, y = k) [N, K], in nats."""
        z_f, common = self._shared(x)
        return common.unsqueeze(1) + self.conditional.log_prob_all(z_f) + self.prior.log_prob_all()

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return log p(x, y) where y is known and log p(x) where it is hidden, and log p(y | x); all are exact."""
        z_f, common = self._shared(x, len(y))
        by_class = self._by_class(z_f)
        table = common.unsqueeze(1) + by_class[: len(y)]
        return output_from_table(table, table, y).log_likelihood, torch.log_softmax(by_class, dim=1), None

    def log_likelihood(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """Return the exact log p(x) [N] in nats; `num_samples` is ignored."""
        self.check(x)
        return self.log_joint(x).logsumexp(dim=1)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the exact log p(x | y) [N] in nats, for known labels y [N]."""
        self.check(x, y)
        check_labels(y, hidden=False)
        z_f, common = self._shared(x)
        return common + self.conditional.log_prob(z_f, y)

    def representation(self, x: Tensor) -> Tensor:
        """Return the semantic latents z_f [N, d]."""
        return self._shared(x, 0)[0]

    def latent_rows(self, x: Tensor) -> Tensor:
        """Return the rows [N, d + 1] that :class:`LatentFlow` takes in place of x."""
        z_f, common = self._shared(x)
        return torch.cat([z_f, common.unsqueeze(1)], dim=1)

    @torch.no_grad()
    def sample(self, y: Tensor) -> Tensor:
        """Draw one x for each label of y [N]."""
        check_labels(y, self.num_classes, hidden=False)
        z = self.conditional.sample(y)
        if self.auxiliary is not None:
            z = torch.cat([self.auxiliary.sample(y.shape[0]), z], dim=1)
        return self.transform.inverse(z)[0]

    def _initialize(self, x: Tensor, y: Tensor) -> None:
        super()._initialize(x, y)
        self.conditional.initialize(self.representation(x)[y != UNLABELLED], y[y != UNLABELLED])


class LatentFlow(SemiConditionalFlow):
    """A latent flow has a frozen shared part, whose outputs need to be computed only once.

    It holds the same modules under the same names as the flow of x. In place of x it takes rows [N, d + 1] of
    :meth:`SemiConditionalFlow.latent_rows`, which are z_f and `log p(z_aux) + log |det df/dx|`. All its likelihoods are
    likelihoods of x.

    Args:
        flow: Flow of x. All its parameters outside of the class-conditional part and the prior are frozen from here on.

    Example:
        >>> from scnf.recipes import build
        >>> flow, x = build("scnf-toy", shape=(2,), num_classes=2).eval(), torch.randn(6, 2)
        >>> rows = flow.latent_rows(x)
        >>> torch.allclose(LatentFlow(flow).eval().log_likelihood(rows), flow.log_likelihood(x), atol=1e-5)
        True
    """

    def __init__(self, flow: SemiConditionalFlow) -> None:
        super().__init__(flow.transform, flow.auxiliary, flow.conditional, flow.prior, flow.semantic_features)
        self._shape_of_inputs = flow.shape
        for part in (flow.transform, flow.auxiliary):
            if part is not None:
                part.requires_grad_(False)

    def input_flow(self) -> SemiConditionalFlow:
        """Return a flow of x with the same modules."""
        parts = self.transform, self.auxiliary, self.conditional, self.prior
        flow = SemiConditionalFlow(*parts, self.semantic_features)
        flow.shape = self._shape_of_inputs
        return flow

    def _shared(self, x: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor]:
        return x[:, :-1], x[:rows, -1]
