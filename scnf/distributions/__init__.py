"""Distributions, latent variables and label draws, which compute densities or draw samples."""

from scnf.distributions.base import ClassConditional, at_least_float32, enumerate_classes
from scnf.distributions.flow import ClassConditionalFlow, FlowDistribution
from scnf.distributions.gaussian import ClassConditionalGaussian, DiagonalGaussian
from scnf.distributions.labels import LABEL_DRAWS, LabelDraw, make_label_draw
from scnf.distributions.latent import CategoricalLatent, GaussianLatent, Temperature
from scnf.distributions.pixels import LIKELIHOODS, PixelLikelihood
from scnf.distributions.prior import ClassPrior, make_prior
from scnf.distributions.softmax import ClassConditionalSoftmax

__all__ = [
    "LABEL_DRAWS",
    "LIKELIHOODS",
    "CategoricalLatent",
    "ClassConditional",
    "ClassConditionalFlow",
    "ClassConditionalGaussian",
    "ClassConditionalSoftmax",
    "ClassPrior",
    "DiagonalGaussian",
    "FlowDistribution",
    "GaussianLatent",
    "LabelDraw",
    "PixelLikelihood",
    "Temperature",
    "at_least_float32",
    "enumerate_classes",
    "make_label_draw",
    "make_prior",
]
