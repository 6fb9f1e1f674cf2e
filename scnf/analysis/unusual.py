"""Score how unusual images are, by their density and their code length beside those of training images."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from scnf.errors import InvalidArgument

FEWEST = 20
"""Number of reference rows below which there is no score."""
_FORMAT = 1
_SYMBOL = 0.5  # count that each symbol starts with in the estimator of Krichevsky and Trofimov


@dataclass(frozen=True)
class Usual:
    """The statistics of usual images, from which :meth:`scores` says how unusual others are.

    The density alone calls a plain grey picture more normal than a photo, because it is smooth (Nalisnick et al.,
    https://arxiv.org/abs/1810.09136). The code length tells smooth images apart (Serrà et al.,
    https://arxiv.org/abs/1909.11480). The two go together in usual images. An image is therefore measured by its
    Mahalanobis distance from the mean of both, so that it may be unusual by being too likely, too.

    :meth:`fit` makes one from reference rows.

    Attributes:
        mean: Mean [T] of the statistics of the reference rows.
        covariance: Their covariance [T, T].
        distances: Squared Mahalanobis distances [R] of the reference rows from the mean, sorted.

    Raises:
        InvalidArgument: The arrays do not fit together, are not finite, or hold too few rows.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> usual = Usual.fit(rng.normal(size=(1000, 1)))
        >>> usual.scores(np.array([[0.0], [2.0], [-9.0]])).round(2)
        array([0.04, 0.96, 1.  ])
        >>> Usual.from_json(usual.to_json()).scores(np.array([[2.0]])) == usual.scores(np.array([[2.0]]))
        array([ True])
    """

    mean: np.ndarray
    covariance: np.ndarray
    distances: np.ndarray

    def __post_init__(self) -> None:
        """Check the arrays."""
        terms = self.mean.shape
        if len(terms) != 1 or self.covariance.shape != (*terms, *terms) or self.distances.ndim != 1:
            raise InvalidArgument("covariance", f"must be of shape {[*terms, *terms]} for a mean of {list(terms)}")
        if not all(np.isfinite(each).all() for each in (self.mean, self.covariance, self.distances)):
            raise InvalidArgument("distances", "must be finite, as mean and covariance must")
        if np.linalg.eigvalsh(self.covariance).min() <= 0:
            raise InvalidArgument("covariance", "must be positive definite")
        if len(self.distances) < FEWEST or (np.diff(self.distances) < 0).any():
            raise InvalidArgument("distances", f"must be {FEWEST} or more, sorted")

    @classmethod
    def fit(cls, statistics: np.ndarray) -> "Usual":
        """Return what is usual among the statistics [R, T] of reference rows.

        Rows whose statistics are not finite do not count.

        Raises:
            InvalidArgument: There are fewer than 20 rows with finite statistics.
        """
        rows = statistics[np.isfinite(statistics).all(axis=1)]
        if len(rows) < FEWEST:
            raise InvalidArgument("statistics", f"must be finite for {FEWEST} rows or more, not for {len(rows)}")
        mean, covariance = rows.mean(axis=0), np.atleast_2d(np.cov(rows.T))
        # a statistic that is the same for all rows would have no inverse
        covariance = covariance + np.diag(1e-6 * np.diag(covariance) + 1e-9)
        return cls(mean, covariance, np.sort(_distances(rows, mean, covariance)))

    def scores(self, statistics: np.ndarray) -> np.ndarray:
        """Return the share of the reference rows that are less unusual [N], from 0 to R / (R + 1).

        It is one minus the p-value of conformal prediction, interpolated between the reference rows. A share of at most
        a of new images has a score of 1 - a or more, where they and the reference rows are drawn alike.

        Args:
            statistics: Statistics [N, T] as those of the reference rows; infinite ones score highest.
        """
        distances = _distances(statistics, self.mean, self.covariance)
        count = len(self.distances)
        shares: np.ndarray = np.interp(distances, [0.0, *self.distances], np.arange(count + 1) / (count + 1))
        return shares

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as they are written to `unusual.json`."""
        arrays = {"mean": self.mean, "covariance": self.covariance, "distances": self.distances}
        return {"format": _FORMAT} | {name: array.tolist() for name, array in arrays.items()}

    @classmethod
    def from_json(cls, values: Any) -> "Usual":
        """Return the statistics that :meth:`to_json` wrote. Other keys are ignored.

        Raises:
            InvalidArgument: The values are not the contents of such a file.
        """
        names = ("mean", "covariance", "distances")
        if not isinstance(values, dict) or values.get("format") != _FORMAT or not set(names) <= values.keys():
            raise InvalidArgument("values", f"must hold format {_FORMAT}, {', '.join(names)}, not {values!r:.80}")
        try:
            return cls(*(np.array(values[name], dtype=np.float64) for name in names))
        except (ValueError, TypeError, np.linalg.LinAlgError) as error:
            raise InvalidArgument("values", f"must hold arrays of numbers: {error}") from error


def statistics(log_probs: np.ndarray, rows: Tensor, levels: int | None) -> np.ndarray:
    """Return the statistics [N, T] of rows: log p(x), and for images the logarithm of their code length.

    Args:
        log_probs: log p(x) [N] in nats.
        rows: Images [N, C, H, W] of grey levels, or points [N, D].
        levels: Number of grey levels; None for points, which have no code length.
    """
    if levels is None:
        return log_probs[:, None]
    return np.stack([log_probs, np.log(code_lengths(rows.cpu().numpy(), levels))], axis=1)


def code_lengths(images: np.ndarray, levels: int) -> np.ndarray:
    """Return the length [N] in nats of a lossless code of images, which is small for smooth images.

    Of colours, green and the differences of the two others from it are coded. Each pixel is predicted from the pixels
    to the left, above, and above to the left (LOCO-I, https://doi.org/10.1109/83.855427, eq. 1). The errors modulo
    `levels` are coded with the adaptive probabilities of Krichevsky and Trofimov
    (https://doi.org/10.1109/TIT.1981.1056331), so that the length has a closed form. The length of a PNG would serve
    as well, but depends on the library that writes it.

    Args:
        images: Grey levels [N, C, H, W], whole numbers.
        levels: Number of grey levels.

    Example:
        >>> grey, noise = np.full((1, 1, 8, 8), 7), np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8))
        >>> code_lengths(np.concatenate([grey, noise]), 256).round()
        array([127., 359.])
    """
    return np.array([_adaptive_length(_prediction_errors(image.astype(np.int64), levels), levels) for image in images])


def _prediction_errors(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Return the errors [D] modulo `levels` of the prediction of each pixel of an image [C, H, W]."""
    if len(pixels) == 3:
        red, green, blue = pixels
        pixels = np.stack([green, red - green, blue - green])
    padded = np.pad(pixels, ((0, 0), (1, 0), (1, 0)))
    left, above, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    least, most = np.minimum(left, above), np.maximum(left, above)
    errors: np.ndarray = (pixels - np.clip(left + above - corner, least, most)) % levels
    return errors.ravel()


def _adaptive_length(symbols: np.ndarray, levels: int) -> float:
    """Return the code length in nats of symbols [D] under adaptive probabilities."""
    counts = np.unique(symbols, return_counts=True)[1]
    total = math.lgamma(len(symbols) + _SYMBOL * levels) - math.lgamma(_SYMBOL * levels)
    return total - sum(math.lgamma(count + _SYMBOL) - math.lgamma(_SYMBOL) for count in counts.tolist())


def _distances(statistics: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return squared Mahalanobis distances [N], infinite where a statistic is not finite."""
    is_finite = np.isfinite(statistics).all(axis=1)
    centred = np.where(is_finite[:, None], statistics - mean, 0.0)
    distances = (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1)
    return np.where(is_finite, distances, np.inf)
