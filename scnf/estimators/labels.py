"""Read labels and sample weights as scikit-learn gives them."""

from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from scnf import UNLABELLED

Array = np.ndarray[Any, np.dtype[Any]]
_MAX_COPIES = 4  # rows in place of one row, on average, where weights are no whole numbers


def is_labelled(y: Array) -> Array:
    """Return which labels [N] are known, as bool [N]; -1, None, NaN in texts and "" mark rows without a label.

    Example:
        >>> is_labelled(np.array(["cat", None, ""], dtype=object)), is_labelled(np.array([0, -1, 2]))
        (array([ True, False, False]), array([ True, False,  True]))
    """
    if y.dtype.kind in "biuf":
        return np.asarray(y != UNLABELLED)
    return np.array([not _is_missing(label) for label in y.tolist()], dtype=bool)


def encode(y: Any, rows: int) -> tuple[Array, Array]:
    """Return the classes [K], sorted, and the labels [N] as their indices, UNLABELLED where a row has none.

    Args:
        y: Labels [N], integers or texts.
        rows: Number of rows N.

    Raises:
        ValueError: y has another shape, holds no classes, or fewer than two.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None: mark rows without a label by -1 or None")
    y = column_or_1d(y, warn=True)
    check_consistent_length(y, np.empty(rows))
    if y.dtype.kind == "f":
        assert_all_finite(y, input_name="y")
    labelled = is_labelled(y)
    known = y[labelled]
    if known.dtype == object and len(known):
        known = np.array(known.tolist())
    if len(known):
        check_classification_targets(known)
    classes, indices = np.unique(known, return_inverse=True)
    if len(classes) < 2:
        number = "1 class" if len(classes) == 1 else "no class, for no row has a label"
        raise ValueError(f"y holds {number}, and at least 2 classes are required")
    labels = np.full(rows, UNLABELLED, dtype=np.int64)
    labels[labelled] = indices
    return classes, labels


def copies_of(sample_weight: Any, rows: int) -> Array:
    """Return how often each row counts [N] under its weight.

    Whole weights are numbers of copies, up to ten on average. Other weights are rounded to about a quarter of the mean
    weight. Equal weights change nothing.

    Raises:
        ValueError: The weights have another shape, are negative or not finite, or all 0.

    Example:
        >>> copies_of([2, 0, 1], 3), copies_of([0.5, 0.5], 2), copies_of([0.5, 1.5], 2)
        (array([2, 0, 1]), array([1, 1]), array([2, 6]))
    """
    if sample_weight is None:
        return np.ones(rows, dtype=np.int64)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(rows, float(weights))
    if weights.shape != (rows,):
        raise ValueError(f"Sample weights must be 1D array or scalar of {rows} rows, not of shape {weights.shape}")
    assert_all_finite(weights, input_name="sample_weight")
    if (weights < 0).any():
        raise ValueError("Negative values in data passed to `sample_weight`")
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number")
    if (weights == weights[0]).all():
        return np.ones(rows, dtype=np.int64)
    if (weights == weights.round()).all() and weights.mean() <= 10:
        return weights.astype(np.int64)
    edges = np.floor(np.cumsum(weights / weights.mean() * _MAX_COPIES) + 1e-9)
    return np.diff(edges, prepend=0).astype(np.int64)


def _is_missing(label: Any) -> bool:
    is_number = isinstance(label, int | float) and not isinstance(label, bool)
    return label is None or label == "" or (is_number and (label == UNLABELLED or label != label))
