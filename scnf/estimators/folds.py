"""Split partly labelled rows into folds for cross-validation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import column_or_1d

from scnf.estimators.labels import Array, is_labelled


class LabelledFolds:
    """A splitter puts unlabelled rows into every training fold, and only labelled rows into test folds.

    Labelled rows are split as :class:`sklearn.model_selection.StratifiedKFold` splits them. Other splitters score rows
    without a label, whose label -1 no classifier predicts.

    Args:
        n_splits: Number of folds, at most the number of labels of the rarest class.
        shuffle: Whether rows are shuffled before the split.
        random_state: Seed of the shuffle.

    Example:
        >>> y = np.array([0, 1, 0, 1, -1, -1])
        >>> for train, test in LabelledFolds(2).split(np.zeros((6, 2)), y):
        ...     print(train, test)
        [2 3 4 5] [0 1]
        [0 1 4 5] [2 3]
    """

    def __init__(self, n_splits: int = 5, *, shuffle: bool = False, random_state: Any = None) -> None:
        self.n_splits, self.shuffle, self.random_state = n_splits, shuffle, random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def split(self, X: Any, y: Any, groups: Any = None) -> Iterator[tuple[Array, Array]]:
        """Yield the rows of training and of test, each int64, for each fold.

        Args:
            X: Rows [N, ...], of which the number alone counts.
            y: Labels [N], integers or texts; -1, None or "" marks a row without one.
            groups: Nothing; it is here because scikit-learn passes it.

        Raises:
            ValueError: No row has a label, or a class has too few.
        """
        values = column_or_1d(y)
        labelled = is_labelled(values)
        rows, others = np.flatnonzero(labelled), np.flatnonzero(~labelled)
        if not len(rows):
            raise ValueError("y holds no label, so there are no rows to score")
        folds = StratifiedKFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)
        known = np.array(values[rows].tolist())
        for train, test in folds.split(rows, known):
            yield np.sort(np.concatenate([rows[train], others])), rows[test]

    def __repr__(self) -> str:
        return f"LabelledFolds(n_splits={self.n_splits}, shuffle={self.shuffle}, random_state={self.random_state})"
