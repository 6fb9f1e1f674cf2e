"""Standardise vectors, and account for it in their density."""

from dataclasses import dataclass

import numpy as np

from scnf.estimators.labels import Array


@dataclass(frozen=True)
class Standardisation:
    """A map of vectors to mean 0 and standard deviation 1, without the columns that are constant in training.

    Attributes:
        mean: Mean of each column [D].
        scale: Standard deviation of each column [D], 0 for constant columns.

    Example:
        >>> map = Standardisation.of(np.array([[0.0, 5.0, 1.0], [4.0, 5.0, 3.0]]))
        >>> map.forward(np.array([[2.0, 5.0, 3.0]])), round(map.logabsdet, 3)
        (array([[0., 1.]]), -0.693)
        >>> map.inverse(np.array([[0.0, 1.0]]))
        array([[2., 5., 3.]])
    """

    mean: Array
    scale: Array

    @classmethod
    def of(cls, x: Array) -> "Standardisation":
        """Return the standardisation of vectors [N, D]."""
        mean, scale = x.mean(axis=0), x.std(axis=0)
        rounding = 10 * np.finfo(np.float64).eps * np.abs(mean)
        return cls(mean, np.where(scale > rounding, scale, 0.0))

    @property
    def varying(self) -> Array:
        """Which columns [D] are not constant."""
        return np.asarray(self.scale > 0)

    @property
    def logabsdet(self) -> float:
        """The log-determinant of the map of the columns that vary, in nats."""
        return -float(np.log(self.scale[self.varying]).sum())

    def forward(self, x: Array) -> Array:
        """Return standardised vectors [N, D'] of the D' columns that vary."""
        columns = self.varying
        return np.asarray((x[:, columns] - self.mean[columns]) / self.scale[columns])

    def inverse(self, z: Array) -> Array:
        """Return vectors [N, D] of standardised vectors [N, D'], in which constant columns have their mean."""
        x = np.tile(self.mean, (len(z), 1))
        x[:, self.varying] += z * self.scale[self.varying]
        return x
