"""Choose the images that are most useful to label next, and find labels that a model doubts."""

from typing import Literal

import numpy as np
import torch

from scnf.errors import InvalidArgument
from scnf.propagation.graph import directions, nearest_neighbours

By = Literal["entropy", "margin", "diverse"]
CANDIDATES = 10
"""Number of uncertain images for each image that "diverse" chooses."""
NEIGHBOURS = 10
"""Number of labelled neighbours that count for a label."""
_FLOOR = 1e-6  # keeps the logarithm of a probability finite


def entropies(posteriors: np.ndarray) -> np.ndarray:
    """Return the entropy [N] of p(y | x) [N, K], in nats: 0 where the model is certain, at most log K.

    Example:
        >>> entropies(np.array([[0.5, 0.5], [1.0, 0.0]])).round(3)
        array([0.693, 0.   ])
    """
    p = np.asarray(posteriors, np.float64)
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1) + 0.0)  # no minus zero


def margins(posteriors: np.ndarray) -> np.ndarray:
    """Return the margin [N], by which the most likely class exceeds the second one, of p(y | x) [N, K].

    Example:
        >>> margins(np.array([[0.5, 0.4, 0.1], [1.0, 0.0, 0.0]])).round(3)
        array([0.1, 1. ])
    """
    top = np.sort(np.asarray(posteriors, np.float64), axis=1)
    return np.asarray(top[:, -1] - top[:, -2])


def suggest(posteriors: np.ndarray, features: np.ndarray, num: int, by: By = "diverse") -> np.ndarray:
    """Choose the rows whose labels are likely to help a model most, the most useful ones first.

    "entropy" takes the rows of largest entropy, and "margin" those of smallest margin (Scheffer et al., 2001). These
    rows may be much alike. "diverse" takes the ten times as many rows of smallest margin, groups them into `num`
    clusters by weighted k-means, and chooses the row nearest to each centre (Zhdanov, "Diverse mini-batch active
    learning", https://arxiv.org/abs/1901.05954). The weight of a row is 1 - margin, and the clusters are those of
    :func:`scnf.propagation.graph.directions`. The same arguments give the same rows.

    Args:
        posteriors: p(y | x) of rows without a label, [N, K].
        features: Features of the rows, such as a model's representation, [N, D].
        num: Number of rows.
        by: Criterion.

    Returns:
        Indices of the rows, int64 [min(num, N)], each once.

    Raises:
        InvalidArgument: The posteriors and features are no finite arrays of such shapes, or `num` or `by` is wrong.

    Example:
        >>> posteriors = np.array([[0.5, 0.5], [0.51, 0.49], [0.9, 0.1], [0.4, 0.6]])
        >>> features = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]])
        >>> suggest(posteriors, features, 2, "margin"), suggest(posteriors, features, 2, "diverse")
        (array([0, 1]), array([0, 3]))
    """
    _check_rows(posteriors, features)
    _check_num(num)
    if by not in ("entropy", "margin", "diverse"):
        raise InvalidArgument("by", f"must be entropy, margin or diverse, not {by!r}")
    num = min(num, len(posteriors))
    margin = margins(posteriors)
    if by == "entropy":
        return np.asarray(np.argsort(-entropies(posteriors), kind="stable")[:num])
    uncertain = np.argsort(margin, kind="stable")
    if by == "margin":
        return np.asarray(uncertain[:num])
    candidates = uncertain[: CANDIDATES * num]
    chosen = _centres(_directions(features)[candidates], 1 - margin[candidates], num)
    return np.asarray(candidates[np.sort(chosen)])


def doubted(
    posteriors: np.ndarray, features: np.ndarray, labels: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows whose label is doubtful, the most doubtful ones first.

    A label is doubtful where p(label | x) is small and few of the nearest labelled rows have it. The score is the
    product of the two. The neighbours help with models that were trained on these labels, and may have learnt wrong
    ones: a row is no neighbour of itself.

    Args:
        posteriors: p(y | x) of rows with a label, [N, K].
        features: Features of the rows, such as a model's representation, [N, D].
        labels: Labels of the rows, which may be wrong, [N].
        num: Number of rows.

    Returns:
        Indices of the rows, int64 [min(num, N)], and the share of neighbours that have the label of each, [min(num,
        N)]. Up to ten neighbours count, at most as many as there are other rows of that label.

    Raises:
        InvalidArgument: The arguments have other shapes, or a label is none of the K classes.

    Example:
        >>> features = np.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])
        >>> posteriors = np.where(features[:, :1] < 0.5, [[0.9, 0.1]], [[0.1, 0.9]])
        >>> rows, shares = doubted(posteriors, features, np.array([0, 0, 1, 1, 1, 1]), 2)
        >>> rows, shares.round(2)
        (array([2, 3]), array([0.33, 0.67]))
    """
    _check_rows(posteriors, features)
    labels = np.asarray(labels)
    in_range = labels.shape == (len(posteriors),) and labels.dtype.kind in "iu"
    if not in_range or labels.min() < 0 or labels.max() >= posteriors.shape[1]:
        raise InvalidArgument("labels", f"must be {len(posteriors)} labels from 0 to {posteriors.shape[1] - 1}")
    _check_num(num)
    shares = _shares(features, labels)
    score = np.log(posteriors[np.arange(len(labels)), labels] + _FLOOR) + np.log(shares + 0.5 / NEIGHBOURS)
    chosen = np.argsort(score, kind="stable")[:num]
    return chosen, shares[chosen]


def _shares(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share [N] of the nearest other rows that have the label of each row; 1 where no other row has it."""
    if len(labels) == 1:
        return np.ones(1)
    number = min(NEIGHBOURS, len(labels) - 1)
    index = nearest_neighbours(torch.as_tensor(features), number)[0].numpy()
    counts = np.minimum(np.bincount(labels)[labels] - 1, number)
    agrees = (labels[index] == labels[:, None]) & (np.arange(number) < counts[:, None])
    return np.where(counts > 0, agrees.sum(axis=1) / counts.clip(1), 1.0)


def nearest(features: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the position [N] in `chosen` of the chosen row that is nearest to each row, by the cosine of features.

    Args:
        features: Features [N, D].
        chosen: Indices of the chosen rows, [M].

    Example:
        >>> nearest(np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]), np.array([3, 0]))
        array([1, 1, 0, 0])
    """
    unit = _directions(features)
    centres = unit[chosen].T
    return np.concatenate([(rows @ centres).argmax(axis=1) for rows in np.array_split(unit, -(-len(unit) // 10_000))])


def _directions(features: np.ndarray) -> np.ndarray:
    """Return unit vectors [N, P], whose squared distances are 2 - 2 cosine."""
    return np.asarray(directions(torch.as_tensor(features)).double().numpy())


def _centres(features: np.ndarray, weights: np.ndarray, num: int) -> np.ndarray:
    """Return the index of the row nearest to the centre of each of `num` clusters, each row once."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if num == len(features):
        return np.arange(num)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        means = KMeans(num, n_init=10, random_state=0).fit(features, sample_weight=weights.clip(1e-9))
    distances = np.square(features - means.cluster_centers_[means.labels_]).sum(axis=1)
    order = np.lexsort((distances, means.labels_))
    first = np.unique(means.labels_[order], return_index=True)[1]
    chosen = order[first]
    rest = np.setdiff1d(np.arange(len(features)), chosen)  # fills up where rows are alike, the most uncertain first
    return np.concatenate([chosen, rest[: num - len(chosen)]])


def _check_num(num: int) -> None:
    if not isinstance(num, int) or isinstance(num, bool) or num < 1:
        raise InvalidArgument("num", f"must be a whole number of at least 1, not {num!r}")


def _check_rows(posteriors: np.ndarray, features: np.ndarray) -> None:
    if posteriors.ndim != 2 or not len(posteriors) or posteriors.shape[1] < 2:
        raise InvalidArgument("posteriors", f"must be of shape [N, K], not {list(posteriors.shape)}")
    if features.ndim != 2 or len(features) != len(posteriors):
        raise InvalidArgument("features", f"must be of shape [{len(posteriors)}, D], not {list(features.shape)}")
    if (
        not np.isfinite(posteriors).all()
        or posteriors.min() < 0
        or not np.allclose(posteriors.sum(axis=1), 1, atol=1e-3)
    ):
        raise InvalidArgument("posteriors", "must be probabilities that sum to 1 in each row")
    if not np.isfinite(features).all():
        raise InvalidArgument("features", "must be finite, and some are not")
