"""Describe the columns of vectors: their mean, their spread, and the step of those that hold whole numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

_CONSTANT = 1e-6
"""Standard deviation, relative to the mean, below which a column counts as constant in single precision."""


class Columns(NamedTuple):
    """The statistics of the columns of training vectors [N, D].

    A column whose values are all whole has a step of 1. A column that is constant has a step of 1 as well, because it
    has no density otherwise. Training adds noise from [-step/2, step/2), as dequantisation does for grey levels.

    Attributes:
        mean: Mean of each column [D].
        scale: Standard deviation of each column with its noise [D], above 0.
        step: Distance of two values of each column [D], 0 for a column of real numbers.

    Example:
        >>> Columns.of(torch.tensor([[0.0, 0.5], [4.0, 1.5]]))
        Columns(mean=tensor([2., 1.]), scale=tensor([2.0207, 0.5000]), step=tensor([1., 0.]))
    """

    mean: Tensor
    scale: Tensor
    step: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Columns":
        """Return the statistics of vectors [N, D], computed in double precision."""
        values = x.double()
        mean = values.mean(dim=0)
        deviation = (values - mean).square().mean(dim=0).sqrt()
        constant = deviation <= _CONSTANT * mean.abs()
        step = (constant | (values == values.round()).all(dim=0)).double()
        variance = torch.where(constant, 0.0, deviation).square() + step.square() / 12
        return cls(mean.to(x.dtype), variance.sqrt().to(x.dtype), step.to(x.dtype))

    def dequantize(self, x: Tensor) -> Tensor:
        """Add noise to vectors x [N, D], uniform in [-step/2, step/2), from torch's generator where there is a step."""
        return x + self.step * (torch.rand_like(x) - 0.5) if self.step.any() else x
