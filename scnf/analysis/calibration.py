"""Calibrate posteriors by a temperature, find sets of classes that hold the true one, and measure both."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from scnf.checks import check_count, check_share
from scnf.errors import InvalidArgument
from scnf.training.metrics import brier_score, expected_calibration_error

FOLDS = 5
"""Number of parts in cross-fitting."""
_FORMAT = 1
_LOWEST, _HIGHEST = 0.01, 1000.0
"""The range of temperatures. Beyond it, a posterior of a hundred nats is one class alone, or nearly uniform."""
_SMALLEST = -1e5  # nats, for a class of probability 0


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the smallest probability of a class in a prediction set.

    :func:`calibrate` fits one to labelled rows that the model was not trained on.

    Attributes:
        temperature: Number T by which log p(y | x) is divided.
        threshold: Probability at or above which a class is in the prediction set.
        alpha: Share of images whose prediction set may miss the true class.
        num_labels: Number of labelled rows that it was fitted to.

    Raises:
        InvalidArgument: An attribute is out of range.

    Example:
        >>> calibration = Calibration(temperature=2.0, threshold=0.3, alpha=0.1, num_labels=100)
        >>> posteriors = calibration.posteriors(np.log([[0.64, 0.32, 0.04]]))
        >>> posteriors.round(3), calibration.sets(posteriors)
        (array([[0.511, 0.361, 0.128]]), array([[ True,  True, False]]))
        >>> Calibration.from_json(calibration.to_json()) == calibration
        True
    """

    temperature: float
    threshold: float
    alpha: float
    num_labels: int

    def __post_init__(self) -> None:
        """Check the attributes."""
        for name in ("temperature", "threshold", "alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidArgument(name, f"must be a finite number, not {value!r:.80}")
        if not self.temperature > 0:
            raise InvalidArgument("temperature", f"must be above 0, not {self.temperature}")
        check_share("threshold", self.threshold)
        check_share("alpha", self.alpha, ends=False)
        if type(self.num_labels) is not int or self.num_labels < 1:
            raise InvalidArgument("num_labels", f"must be a whole number above 0, not {self.num_labels!r:.80}")

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as it is written to `calibration.json`."""
        return {
            "format": _FORMAT,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "alpha": self.alpha,
            "num_labels": self.num_labels,
        }

    @classmethod
    def from_json(cls, values: Any) -> "Calibration":
        """Return the calibration that :meth:`to_json` wrote. Other keys are ignored.

        Raises:
            InvalidArgument: The values are not the contents of such a file.
        """
        names = ("temperature", "threshold", "alpha", "num_labels")
        if not isinstance(values, dict) or values.get("format") != _FORMAT or not set(names) <= values.keys():
            raise InvalidArgument("values", f"must hold format {_FORMAT}, {', '.join(names)}, not {values!r:.80}")
        return cls(*(values[name] for name in names))

    def posteriors(self, log_probs: np.ndarray) -> np.ndarray:
        """Return softmax(log p(y | x) / T) [N, K] from log p(y | x) [N, K]."""
        posteriors: np.ndarray = np.exp(_tempered(log_probs, self.temperature))
        return posteriors

    def sets(self, posteriors: np.ndarray) -> np.ndarray:
        """Return whether each class is in the prediction set [N, K], from calibrated posteriors [N, K].

        The most likely class always is.
        """
        return _sets(posteriors, self.threshold)


def calibrate(log_probs: np.ndarray, y: np.ndarray, alpha: float = 0.1) -> Calibration:
    """Fit a temperature, and the threshold of prediction sets, to labelled rows.

    Both are fitted to the same rows. A temperature is one number, so the coverage of the sets moves by little;
    :func:`cross_fit` measures it.

    Args:
        log_probs: log p(y | x) [N, K] in nats, of rows that the model was not trained on.
        y: Labels [N].
        alpha: Share of images whose prediction set may miss the true class, in (0, 1).

    Raises:
        InvalidArgument: There are no rows, the labels do not fit the rows, or a number is NaN or out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> logits = rng.normal(size=(2000, 3))
        >>> y = (logits + rng.gumbel(size=(2000, 3))).argmax(axis=1)  # so that p(y | x) = softmax(logits)
        >>> calibration = calibrate(4 * logits, y)  # four times too sure
        >>> round(calibration.temperature)
        4
    """
    temperature = fit_temperature(log_probs, y)
    posteriors = np.exp(_tempered(log_probs, temperature))
    return Calibration(temperature, conformal_threshold(posteriors, y, alpha), alpha, len(y))


def fit_temperature(log_probs: np.ndarray, y: np.ndarray) -> float:
    """Return the temperature T of maximum likelihood (Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2).

    The loss is the mean of -log softmax(log p / T)_y. It is convex in b = 1 / T, and its slope in b is

        mean of sum_k softmax(b log p)_k log p_k - log p_y,

    so that T is the root of the slope, in [0.01, 1000]. Where every row is classified correctly, the likelihood has no
    maximum, because it grows for ever as T falls. The result is then 1, which leaves the posteriors as they are.

    Args:
        log_probs: log p(y | x) [N, K] in nats.
        y: Labels [N].

    Raises:
        InvalidArgument: There are no rows, the labels do not fit the rows, or a number is NaN.
    """
    from scipy.optimize import brentq

    log_probs, y = _checked(log_probs, y)
    of_label = log_probs[np.arange(len(y)), y]
    if (of_label >= log_probs.max(axis=1)).all():
        return 1.0

    def slope(inverse: float) -> float:
        expected = (np.exp(_tempered(log_probs, 1 / inverse)) * log_probs).sum(axis=1)
        return float((expected - of_label).mean())

    low, high = 1 / _HIGHEST, 1 / _LOWEST
    if slope(low) >= 0:
        return _HIGHEST
    if slope(high) <= 0:
        return _LOWEST
    return 1 / float(brentq(slope, low, high, xtol=1e-9))


def conformal_threshold(posteriors: np.ndarray, y: np.ndarray, alpha: float) -> float:
    """Return the smallest probability of a class in a prediction set, by split-conformal prediction.

    The score of a labelled row is 1 - p(y | x), which is called LAC, for least ambiguous set-valued classifier
    (Sadinle, Lei and Wasserman 2019, https://arxiv.org/abs/1609.00451). The score at rank ceil((n + 1)(1 - alpha)) of
    the n scores is the largest that a class of a set may have. For rows that are exchangeable with these n, the set
    misses the true class with probability alpha at most (Vovk et al. 2005; Angelopoulos and Bates 2021,
    https://arxiv.org/abs/2107.07511, appendix D). For alpha below 1 / (n + 1) the set holds all classes.

    Args:
        posteriors: p(y | x) [N, K].
        y: Labels [N].
        alpha: Share of images whose prediction set may miss the true class, in (0, 1).

    Raises:
        InvalidArgument: There are no rows, the labels do not fit the rows, or alpha is out of range.

    Example:
        >>> posteriors = np.array([[p, 1 - p] for p in (0.9, 0.8, 0.7, 0.6)])
        >>> conformal_threshold(posteriors, np.zeros(4, int), alpha=0.2)  # rank 4 of 4
        0.6
        >>> conformal_threshold(posteriors, np.zeros(4, int), alpha=0.1)  # too few labels
        0.0
    """
    check_share("alpha", alpha, ends=False)
    posteriors, y = _checked(posteriors, y, "posteriors")
    rank = math.ceil(round((len(y) + 1) * (1 - alpha), 9))  # 1 - alpha has an error of rounding
    of_label = np.sort(posteriors[np.arange(len(y)), y])[::-1]
    return 0.0 if rank > len(y) else min(1.0, float(of_label[rank - 1]))


class CrossFit(NamedTuple):
    """Calibrated answers of rows, each from a temperature and a threshold that were fitted without the row.

    Attributes:
        log_probs: Calibrated log p(y | x) [N, K].
        sets: Whether each class is in the prediction set [N, K].
    """

    log_probs: np.ndarray
    sets: np.ndarray


def cross_fit(log_probs: np.ndarray, y: np.ndarray, alpha: float = 0.1, folds: int = FOLDS, seed: int = 0) -> CrossFit:
    """Calibrate each part of the rows by the other parts, so that no figure is of the rows that were fitted.

    Args:
        log_probs: log p(y | x) [N, K] in nats.
        y: Labels [N], two or more.
        alpha: Share of images whose prediction set may miss the true class, in (0, 1).
        folds: Number of parts, at most one for each row.
        seed: Seed of the draw of the parts.

    Raises:
        InvalidArgument: There are fewer than two rows or parts, or the arguments do not fit :func:`calibrate`.
    """
    log_probs, y = _checked(log_probs, y)
    check_count("folds", folds, 2)
    if len(y) < 2:
        raise InvalidArgument("y", "must hold two labels or more, because each row is calibrated by the others")
    order = np.random.default_rng(seed).permutation(len(y))
    calibrated, sets = np.empty(log_probs.shape), np.empty(log_probs.shape, bool)
    for part in np.array_split(order, min(folds, len(y))):
        others = np.setdiff1d(order, part)
        calibration = calibrate(log_probs[others], y[others], alpha)
        calibrated[part] = _tempered(log_probs[part], calibration.temperature)
        sets[part] = calibration.sets(np.exp(calibrated[part]))
    return CrossFit(calibrated, sets)


def measure(log_probs: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return how well log p(y | x) [N, K] describes the labels y [N].

    Returns:
        "accuracy"; "ece", the expected calibration error over 15 bins; "nll", the mean of -log p(y | x) in nats;
        "brier", from 0 to 2; and "aurc", the area under the risk-coverage curve. All but the accuracy are better where
        they are smaller.

    Raises:
        InvalidArgument: There are no rows, the labels do not fit the rows, or a number is NaN.

    Example:
        >>> measure(np.log([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]))["aurc"]
        0.25
    """
    log_probs, y = _checked(log_probs, y)
    tensors = torch.from_numpy(log_probs), torch.from_numpy(y)
    return {
        "accuracy": float((log_probs.argmax(axis=1) == y).mean()),
        "ece": expected_calibration_error(*tensors),
        "nll": -float(log_probs[np.arange(len(y)), y].mean()),
        "brier": brier_score(*tensors),
        "aurc": float(risk_coverage(log_probs, y)[1].mean()),
    }


def risk_coverage(log_probs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverages [N] and the error rates [N] among that share of the rows [N, K], the surest first.

    Arguments and errors are those of :func:`measure`. The area under the curve is the mean of the error rates (Geifman,
    Uziel and El-Yaniv 2019, https://arxiv.org/abs/1805.08206). Rows of equal confidence count by their mean error,
    whatever their order.
    """
    log_probs, y = _checked(log_probs, y)
    errors = (log_probs.argmax(axis=1) != y).astype(float)
    _, group, size = np.unique(-log_probs.max(axis=1), return_inverse=True, return_counts=True)
    errors = (np.bincount(group, errors) / size)[np.sort(group)]
    number = np.arange(1, len(y) + 1)
    return number / len(y), np.cumsum(errors) / number


def _tempered(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """Return log softmax(log p / T) [N, K]."""
    logits: np.ndarray = np.maximum(log_probs, _SMALLEST) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _sets(posteriors: np.ndarray, threshold: float) -> np.ndarray:
    sets: np.ndarray = posteriors >= threshold
    sets[np.arange(len(sets)), posteriors.argmax(axis=1)] = True
    return sets


def _checked(scores: np.ndarray, y: np.ndarray, argument: str = "log_probs") -> tuple[np.ndarray, np.ndarray]:
    """Return scores [N, K] as float64, not below the smallest log p, and labels [N] as int64 (InvalidArgument)."""
    scores, y = np.asarray(scores, np.float64), np.asarray(y)
    if scores.ndim != 2 or not len(scores) or np.isnan(scores).any():
        raise InvalidArgument(argument, f"must be numbers [N, K] with one row or more, not of shape {scores.shape}")
    if y.shape != scores.shape[:1] or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= scores.shape[1]:
        raise InvalidArgument("y", f"must be {len(scores)} labels from 0 to {scores.shape[1] - 1}, one for each row")
    return np.maximum(scores, _SMALLEST), y.astype(np.int64)
