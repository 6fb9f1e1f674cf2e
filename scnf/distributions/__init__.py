"""Everything with `log_prob` and `sample`."""

from scnf.distributions.base import ClassConditional, enumerate_classes
from scnf.distributions.flow import ClassConditionalFlow
from scnf.distributions.gaussian import ClassConditionalGaussian, DiagonalGaussian
from scnf.distributions.prior import ClassPrior, make_prior

__all__ = [
    "ClassConditional",
    "ClassConditionalFlow",
    "ClassConditionalGaussian",
    "ClassPrior",
    "DiagonalGaussian",
    "enumerate_classes",
    "make_prior",
]
