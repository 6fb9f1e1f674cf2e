"""Invertible layers that share one contract, described in :mod:`scnf.transforms.base`."""

from scnf.transforms.base import InverseTransform, Transform
from scnf.transforms.composite import CompositeTransform
from scnf.transforms.coupling import AffineCoupling, ChannelPartition, CheckerboardPartition, two_way_coupling
from scnf.transforms.linear import (
    LINEAR,
    FixedLinear,
    FullLinear,
    HouseholderLinear,
    InvertibleLinear,
    PLULinear,
    QRLinear,
    haar_matrix,
    register_transform,
)
from scnf.transforms.normalization import ActNorm, Standardize, initialize_from_data, standardize
from scnf.transforms.pixels import GreyLevels, Logit
from scnf.transforms.planar import Planar
from scnf.transforms.shape import FactorOut, Flatten, Permutation, Squeeze, Unsqueeze

__all__ = [
    "LINEAR",
    "ActNorm",
    "AffineCoupling",
    "ChannelPartition",
    "CheckerboardPartition",
    "CompositeTransform",
    "FactorOut",
    "FixedLinear",
    "Flatten",
    "FullLinear",
    "GreyLevels",
    "HouseholderLinear",
    "InverseTransform",
    "InvertibleLinear",
    "Logit",
    "PLULinear",
    "Permutation",
    "Planar",
    "QRLinear",
    "Squeeze",
    "Standardize",
    "Transform",
    "Unsqueeze",
    "haar_matrix",
    "initialize_from_data",
    "register_transform",
    "standardize",
    "two_way_coupling",
]
