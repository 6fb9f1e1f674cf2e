"""Provide the models p(x, y), which :mod:`scnf.recipes` builds."""

from scnf.models.base import JointModel, JointOutput
from scnf.models.classifier import Classifier
from scnf.models.flow import SemiConditionalFlow
from scnf.models.m2 import ADGM, M1M2, M2
from scnf.models.reader import ReaderFlow
from scnf.models.vae import VAE

__all__ = [
    "ADGM",
    "M1M2",
    "M2",
    "VAE",
    "Classifier",
    "JointModel",
    "JointOutput",
    "ReaderFlow",
    "SemiConditionalFlow",
]
