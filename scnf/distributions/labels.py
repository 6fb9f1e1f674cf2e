"""Draw hidden labels where models do not enumerate them: points of the simplex, near its corners.

Each draw maps class logits [N, K] to y [N, K]. All draws but "score" carry a gradient. With a draw, the bound of M2 is
estimated from one decoding per row instead of K.

"gumbel-st" and "score" draw corners from softmax(logits), so they estimate the bound itself. The relaxation gives the
gradient of "gumbel-st" a bias. The other draws make the objective a surrogate of the bound. A relaxed y lies inside the
simplex, where no label of the data lies. The corner nearest to a logistic-normal draw follows the classifier's
distribution only nearly. In evaluation, the models enumerate labels and report the bound itself.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Gamma, OneHotCategorical, RelaxedOneHotCategorical

from scnf.checks import check_choice
from scnf.distributions.latent import Temperature


class LabelDraw(nn.Module):
    """Draw one point y [N, K] on the simplex for each row of class logits [N, K].

    Args:
        temperature: Temperature of the relaxation; a sharpening of s in other work is a temperature of 1 / s.
        straight_through: Whether y is the nearest corner, which is one-hot, in the forward pass. Its gradient remains
            the gradient of the relaxed draw (https://arxiv.org/abs/1308.3432).
    """

    score_function = False

    def __init__(self, temperature: Temperature, straight_through: bool = False) -> None:
        super().__init__()
        self.temperature, self.straight_through = temperature, straight_through

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """Return a differentiable draw [N, K]."""
        raise NotImplementedError

    def forward(self, class_logits: Tensor) -> Tensor:
        """Return the draw y [N, K]."""
        y = self.relaxed(class_logits) if len(class_logits) else class_logits
        if self.straight_through:
            corner = F.one_hot(y.argmax(dim=1), y.shape[1]).to(y.dtype)
            y = corner + (y - y.detach())
        return y


class GumbelSoftmax(LabelDraw):
    """Draw Gumbel-softmax labels, also called concrete labels (https://arxiv.org/abs/1611.01144, eq. 2)."""

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """Return a differentiable draw [N, K]."""
        return RelaxedOneHotCategorical(self.temperature.value, logits=class_logits, validate_args=False).rsample()


class LogisticNormalLabel(LabelDraw):
    """Draw logistic-normal labels, softmax((logits + noise) / temperature).

    The noise is Gaussian with the variance of Gumbel noise. All K logits get noise.
    `torch.distributions.LogisticNormal` adds noise to the K - 1 coordinates of stick-breaking. This makes early classes
    more likely or less likely than the classifier says.
    """

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """Return a differentiable draw [N, K]."""
        noise = math.pi / math.sqrt(6.0) * torch.randn_like(class_logits)
        return torch.softmax((class_logits + noise) / self.temperature.value, dim=1)


class LogGammaLabel(LabelDraw):
    """Draw Dirichlet(temperature * softmax(logits)) labels from the logarithms of Gamma variables.

    The mean is the classifier's distribution at any temperature, except that no class goes below about 0.001. At a low
    temperature, draws lie at the corners. A Gamma variable of small shape a underflows, but its logarithm does not:
    log G(a) = log G(a + 1) + log U / a (Marsaglia and Tsang, 2000). Gradients through G(a + 1) are implicit
    (https://arxiv.org/abs/1805.08498).
    """

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """Return a differentiable draw [N, K]."""
        shape = self.temperature.value * torch.softmax(class_logits, dim=1).clamp_min(1e-3)
        gamma = Gamma(shape + 1, torch.ones_like(shape), validate_args=False).rsample()
        uniform = torch.rand_like(shape).clamp_min(torch.finfo(shape.dtype).tiny)
        return torch.softmax(gamma.log() + uniform.log() / shape, dim=1)


class ScoreFunctionLabel(LabelDraw):
    """Draw one-hot labels from softmax(logits) without a gradient; the model adds the gradient of log q (REINFORCE)."""

    score_function = True

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """Return a draw [N, K], which carries no gradient."""
        draw: Tensor = OneHotCategorical(logits=class_logits.detach(), validate_args=False).sample()
        return draw


LABEL_DRAWS: dict[str, tuple[type[LabelDraw], bool]] = {
    "gumbel": (GumbelSoftmax, False),
    "gumbel-st": (GumbelSoftmax, True),
    "logistic-normal": (LogisticNormalLabel, False),
    "logistic-normal-st": (LogisticNormalLabel, True),
    "log-gamma": (LogGammaLabel, False),
    "score": (ScoreFunctionLabel, False),
}
"""Class of each kind of draw by its name, and whether the draw is straight-through."""


def make_label_draw(kind: str, temperature: float = 0.67, final_temperature: float | None = None) -> LabelDraw | None:
    """Return the label draw of a kind, or None for "enumerate", which needs no draw.

    Args:
        kind: Key of `LABEL_DRAWS`, or "enumerate".
        temperature: Temperature at the first optimiser step.
        final_temperature: Temperature at the last optimiser step; the same by default.

    Raises:
        InvalidArgument: The kind is unknown, or a temperature is not above 0.

    Example:
        >>> y = make_label_draw("gumbel-st")(torch.zeros(4, 10))
        >>> y.sum(dim=1), y.max(dim=1).values
        (tensor([1., 1., 1., 1.]), tensor([1., 1., 1., 1.]))
    """
    if kind == "enumerate":
        return None
    check_choice("labels", kind, ("enumerate", *LABEL_DRAWS))
    cls, straight_through = LABEL_DRAWS[kind]
    return cls(Temperature(temperature, final_temperature), straight_through)
