"""Define a semi-supervised classifier with the interface of scikit-learn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from scnf import UNLABELLED
from scnf.data.memory import rows_of
from scnf.data.sources import Dataset
from scnf.errors import InvalidArgument, UserError
from scnf.estimators.labels import Array, copies_of, encode
from scnf.estimators.state import pack, read, unpack, write
from scnf.fitting.arrays import settings_for, train_in_memory
from scnf.recipes import Recipe
from scnf.streams import no_line, print_line
from scnf.trained import TrainedModel


class SemiSupervisedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier learns p(x, y) from labelled and unlabelled rows, with the interface of scikit-learn.

    Vectors take the recipe scnf-vectors, which standardises them inside. Densities are of the original vectors, in
    nats. Columns of whole numbers are dequantised, see :class:`scnf.data.columns.Columns`.

    A fit depends on the rows and not on their order. It writes a temporary run directory, and leaves torch's generator
    and threads as they were. Vectors train on one thread, so that a search may train several models at once.

    Args:
        recipe: Name of a recipe; "auto" chooses one for the data.
        steps: Number of optimiser steps; None chooses it for the data.
        lr: Peak learning rate; None chooses it for the data.
        classifier_weight: Weight of the cross-entropy of labelled rows; None chooses it for the data.
        settings: Other settings by their full name, such as {"model.steps": 4}, as in :func:`scnf.fitting.arrays.fit`.
        random_state: Seed or generator of the initial weights, batches and noise.
        warm_start: Whether another fit goes on with the weights of the last.
        device: "cpu", "cuda", or "auto" for CUDA where it is available.
        verbose: Whether progress is printed.

    Attributes:
        classes_: Classes [K], sorted.
        n_features_in_: Number of numbers in a row, D or C * H * W.
        transduction_: Class [N] of each row of the last fit, as given or as predicted.
        model_: The `scnf.TrainedModel` of the rows.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(60, 2)) + 4 * (np.arange(60) % 2)[:, None]
        >>> y = np.where(np.arange(60) < 10, np.arange(60) % 2, -1)
        >>> classifier = SemiSupervisedClassifier(steps=20, random_state=0).fit(x, y)
        >>> classifier.predict(x).shape, classifier.score_samples(x).shape, classifier.sample(1, 3).shape
        ((60,), (60,), (3, 2))
    """

    classes_: Array
    n_features_in_: int
    transduction_: Array
    model_: TrainedModel
    _recipe: Recipe

    def __init__(
        self,
        recipe: str = "auto",
        *,
        steps: int | None = None,
        lr: float | None = None,
        classifier_weight: float | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.steps = steps
        self.lr = lr
        self.classifier_weight = classifier_weight
        self.settings = settings
        self.random_state = random_state
        self.warm_start = warm_start
        self.device = device
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        """Return the tags that scikit-learn reads."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on rows of which some have a label.

        Args:
            X: Vectors [N, D], or images [N, C, H, W] or [N, H, W] of whole grey levels 0..255 or of floats in [0, 1].
            y: Labels [N], integers or texts; -1, None or "" marks a row without one.
            sample_weight: Weights [N]. A row with the weight 2 counts as two rows, and with the weight 0 not at all.

        Raises:
            ValueError: X or y has a wrong shape or values, y has fewer than two classes, or a setting is wrong.
        """
        is_warm = self.warm_start and hasattr(self, "model_")
        x = self._checked(X, reset=not is_warm)
        classes, labels = encode(y, len(x))
        copies = copies_of(sample_weight, len(x))
        counted = copies > 0
        if len(np.unique(labels[counted & (labels != UNLABELLED)])) < len(classes):
            raise ValueError("every class needs a labelled row with a sample weight above 0")
        if is_warm and not np.array_equal(classes, self.classes_):
            raise ValueError(f"with warm_start the classes must stay {self.classes_.tolist()}, not {classes.tolist()}")
        dataset = _dataset(x, labels, copies, tuple(map(str, classes.tolist())))
        is_vectors, log = x.ndim == 2, print_line if self.verbose else no_line
        recipe, options = self.recipe, self._options(is_vectors)
        if is_warm and recipe == "auto":  # which may choose another one for more rows
            recipe = self._recipe.name
            options = {f"model.{name}": value for name, value in self._recipe.arguments().items()} | options
        try:
            settings, _ = settings_for(dataset, recipe, options, self.steps)
            if is_warm and settings.model != self._recipe:
                raise ValueError(f"with warm_start the model must stay {self._recipe}, not {settings.model}")
            model = train_in_memory(settings, dataset, self.model_.model.state_dict() if is_warm else None, log)
        except UserError as error:
            raise ValueError(str(error)) from error
        if is_vectors:
            model.model.double()  # so that the density of a row does not depend on the number of other rows
        self.classes_, self.model_ = classes, model
        self._recipe = settings.model
        predicted = self._answers(x)[0].argmax(axis=1)
        self.transduction_ = classes[np.where(labels == UNLABELLED, predicted, labels)]
        return self

    def predict(self, X: Any) -> Array:
        """Return the most likely class [N] of each row.

        Raises:
            ValueError: The rows differ from the rows of the fit in shape or type.
            NotFittedError: There was no fit.
        """
        posterior = self.predict_proba(X)
        return np.asarray(self.classes_[posterior.argmax(axis=1)])

    def predict_proba(self, X: Any) -> Array:
        """Return p(y | x) [N, K] with the classes in the order of `classes_`.

        Raises:
            ValueError: The rows differ from the rows of the fit in shape or type.
            NotFittedError: There was no fit.
        """
        check_is_fitted(self, "model_")
        return self._answers(self._checked(X, reset=False))[0]

    def score_samples(self, X: Any) -> Array:
        """Return log p(x) [N] in nats.

        It is the density of the original vectors, or of images on [0, 1)^D.

        Raises:
            ValueError: The rows differ from the rows of the fit in shape or type, or the recipe has no p(x).
            NotFittedError: There was no fit.
        """
        check_is_fitted(self, "model_")
        if not self.model_.has_density:
            raise InvalidArgument("recipe", "must know p(x), and a plain classifier does not")
        return self._answers(self._checked(X, reset=False))[1]

    def sample(self, label: Any, num: int = 1, seed: int = 0) -> Array:
        """Draw rows of a class.

        Args:
            label: Class, one of `classes_`.
            num: Number of rows.
            seed: Seed of the draw.

        Returns:
            Vectors [num, D] in the original units, or images [num, C, H, W] in [0, 1].

        Raises:
            ValueError: There is no such class, or the recipe draws no rows.
            NotFittedError: There was no fit.
        """
        check_is_fitted(self, "model_")
        matches = np.flatnonzero(self.classes_ == label)
        if len(matches) != 1:
            raise InvalidArgument("label", f"must be one of {self.classes_.tolist()}, not {label!r}")
        return self.model_.sample(int(matches[0]), num, seed)

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to a safetensors file, with a JSON header and without pickle.

        A `random_state` that is no number is not stored.

        Raises:
            NotFittedError: There was no fit.
            UserError: The file cannot be written.
        """
        check_is_fitted(self, "model_")
        write(Path(path), self.__getstate__())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an estimator that :meth:`save` has written.

        Raises:
            UserError: The file is missing, damaged, or holds no such estimator.
        """
        estimator = cls()
        estimator.__setstate__(read(Path(path)))
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters and attributes, with weights as arrays."""
        return pack(dict(super().__getstate__()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(unpack(state))

    def _options(self, is_vectors: bool) -> dict[str, Any]:
        """Return the settings that the parameters set."""
        if isinstance(self.random_state, int | np.integer):
            seed = int(self.random_state)
        else:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        named = {"train.lr": self.lr, "objective.classifier_weight": self.classifier_weight}
        options = {"seed": seed, "device": self.device} | ({"threads": 1} if is_vectors else {})
        return options | {k: v for k, v in named.items() if v is not None} | dict(self.settings or {})

    def _checked(self, x: Any, reset: bool) -> Array:
        """Return vectors, float64 [N, D], or images, uint8 [N, C, H, W]."""
        if getattr(x, "ndim", None) is None:  # a list, or an array of another library
            x = np.asarray(x)
        if x.ndim not in (3, 4):
            x = validate_data(self, x, reset=reset, dtype=np.float64, ensure_min_features=2 if reset else 1)
            if not reset and hasattr(self, "model_") and len(self.model_.inputs.shape) == 3:
                raise InvalidArgument("X", f"must be images of {list(self.model_.inputs.shape)}, not vectors")
            return np.asarray(x)
        shape = None if reset or not hasattr(self, "model_") else self.model_.inputs.shape
        images = rows_of(x).numpy()
        if shape is not None and images.shape[1:] != shape:
            raise InvalidArgument("X", f"must have rows of shape {list(shape)}, not {list(images.shape[1:])}")
        self.n_features_in_ = int(np.prod(images.shape[1:]))
        return np.asarray(images)

    def _answers(self, x: Array) -> tuple[Array, Array]:
        """Return p(y | x) [N, K] and log p [N] of rows."""
        return self.model_.answers(torch.from_numpy(np.require(x, requirements=["C", "W"])))


def _dataset(x: Array, labels: Array, copies: Array, names: tuple[str, ...]) -> Dataset:
    """Return the rows as often as they count; vectors are sorted."""
    levels = None if x.ndim == 2 else 256
    if levels is None:
        order = np.lexsort(np.column_stack([labels, x]).T)
        with np.errstate(over="ignore"):  # the dataset refuses numbers beyond float32
            x, labels, copies = x[order].astype(np.float32), labels[order], copies[order]
    rows, y = torch.from_numpy(np.repeat(x, copies, axis=0)), torch.from_numpy(np.repeat(labels, copies))
    return Dataset("arrays", rows, y, rows[:0], y[:0], len(names), levels, names)
