"""How a hidden label is drawn where it is not enumerated: points of the simplex, near its corners.

Each maps class logits [N, K] to y [N, K]; all but the score function's carry a gradient. Over such draws the bound of
M2 is estimated from one decoding a row in place of K. "gumbel-st" and "score" draw corners from softmax(logits), which
makes the estimate one of the bound (to the gradient of "gumbel-st" the relaxation lends a bias). The others make a
surrogate of it: a relaxed y lies inside the simplex, where the decoder is asked for no label of the data, and the
corner nearest to a logistic-normal draw has nearly, not quite, the classifier's distribution. The models enumerate in
evaluation, and report the bound itself.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Gamma, OneHotCategorical, RelaxedOneHotCategorical

from scnf.checks import check_choice
from scnf.distributions.latent import Temperature


class LabelDraw(nn.Module):
    """One y [N, K] on the simplex for each row of class logits [N, K].

    Args:
        temperature: of the relaxation; a sharpening of s in other work is a temperature of 1 / s.
        straight_through: y is one-hot in the forward pass, the nearest corner, and has the gradient of the relaxed draw
            (https://arxiv.org/abs/1308.3432).
    """

    score_function = False

    def __init__(self, temperature: Temperature, straight_through: bool = False) -> None:
        super().__init__()
        self.temperature, self.straight_through = temperature, straight_through

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """A differentiable draw [N, K]."""
        raise NotImplementedError

    def forward(self, class_logits: Tensor) -> Tensor:
        """Y [N, K]."""
        y = self.relaxed(class_logits) if len(class_logits) else class_logits
        if self.straight_through:
            hard = F.one_hot(y.argmax(dim=1), y.shape[1]).to(y.dtype)
            y = hard + (y - y.detach())
        return y


class GumbelSoftmax(LabelDraw):
    """Gumbel-softmax, or concrete, labels (https://arxiv.org/abs/1611.01144, eq. 2)."""

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """A differentiable draw [N, K]."""
        return RelaxedOneHotCategorical(self.temperature.value, logits=class_logits, validate_args=False).rsample()


class LogisticNormalLabel(LabelDraw):
    """A logistic-normal label, softmax((logits + noise) / temperature): Gaussian noise of the variance of Gumbel's.

    All K logits get noise. `torch.distributions.LogisticNormal` gives it to the K - 1 coordinates of stick-breaking,
    which makes classes that come early likelier than the classifier says, or less likely.
    """

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """A differentiable draw [N, K]."""
        noise = math.pi / math.sqrt(6.0) * torch.randn_like(class_logits)
        return torch.softmax((class_logits + noise) / self.temperature.value, dim=1)


class LogGammaLabel(LabelDraw):
    """A Dirichlet(temperature * softmax(logits)) label, by Gammas drawn as their logarithms.

    The mean is the classifier's own distribution at any temperature, but that no class goes below about 0.001; at a low
    temperature, draws lie at the corners. A Gamma of
    small shape a underflows, its logarithm does not: log G(a) = log G(a + 1) + log U / a (Marsaglia and Tsang, 2000).
    Gradients through G(a + 1) are implicit (https://arxiv.org/abs/1805.08498).
    """

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """A differentiable draw [N, K]."""
        shape = self.temperature.value * torch.softmax(class_logits, dim=1).clamp_min(1e-3)
        gamma = Gamma(shape + 1, torch.ones_like(shape), validate_args=False).rsample()
        uniform = torch.rand_like(shape).clamp_min(torch.finfo(shape.dtype).tiny)
        return torch.softmax(gamma.log() + uniform.log() / shape, dim=1)


class ScoreFunctionLabel(LabelDraw):
    """One-hot labels drawn from softmax(logits), without a gradient: the model adds that of log q (REINFORCE)."""

    score_function = True

    def relaxed(self, class_logits: Tensor) -> Tensor:
        """A draw [N, K], which carries no gradient."""
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
"""The class of each kind of draw by its name, and whether it is straight-through."""


def make_label_draw(kind: str, temperature: float = 0.67, final_temperature: float | None = None) -> LabelDraw | None:
    """How hidden labels are handled: "enumerate", which needs no draw and gives None, or a key of `LABEL_DRAWS`.

    Raises:
        ValueError: an unknown kind, or a temperature that is not above 0.

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
