"""The estimator of scikit-learn: its conventions, partly labelled data, density, storage, and the tools around it."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from scnf import LabelledFolds, SemiSupervisedClassifier
from scnf.errors import UserError

SMALL = {"model.channels": 8, "model.steps": 1, "model.conditional": "gaussian", "train.ema": 0.9}


def tiny(**more: Any) -> SemiSupervisedClassifier:
    arguments = {"steps": 10, "lr": 2e-2, "settings": SMALL, "random_state": 0, "device": "cpu", **more}
    return SemiSupervisedClassifier(**arguments)


EXPECTED = {
    "check_classifiers_classes": "it takes -1 for a class, and here -1 marks a row without a label",
}
"""Checks of scikit-learn that must fail, with the reason."""


@parametrize_with_checks([tiny(random_state=None)], expected_failed_checks=lambda estimator: EXPECTED)
def test_classifier_keeps_the_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def blobs(rows: int = 120, labelled: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of two classes in three columns, their labels of which some are hidden, and all labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, rows)
    x = rng.normal(size=(rows, 3)) * [1, 20, 0.3] + np.stack([4 * y, 5 + 0 * y, y], axis=1)
    return x, np.where(np.arange(rows) < labelled, y, -1), y


@pytest.mark.parametrize("kind", ["integers", "texts", "objects"])
def test_classifier_learns_from_rows_of_which_some_have_labels(kind: str) -> None:
    x, visible, y = blobs()
    names = np.array(["cat", "dog", ""])  # the last for -1
    labels = {
        "integers": visible,
        "texts": names[visible],
        "objects": np.array([None if each < 0 else names[each] for each in visible], dtype=object),
    }[kind]
    truth = y if kind == "integers" else names[y]
    classifier = tiny(steps=40).fit(x, labels)
    assert classifier.classes_.tolist() == ([0, 1] if kind == "integers" else ["cat", "dog"])
    assert classifier.score(x, truth) > 0.9 and classifier.n_features_in_ == 3
    np.testing.assert_array_equal(classifier.transduction_[visible >= 0], truth[visible >= 0])
    np.testing.assert_array_equal(classifier.transduction_[visible < 0], classifier.predict(x[visible < 0]))
    np.testing.assert_array_equal(classifier.predict_proba(x).argmax(1), (classifier.predict(x) == truth[y == 1][0]))


def test_fit_of_classifier_does_not_depend_on_the_order_of_rows() -> None:
    x, visible, _ = blobs()
    order = np.random.default_rng(1).permutation(len(x))
    expected = tiny().fit(x, visible)
    again = tiny().fit(x[order], visible[order])
    np.testing.assert_allclose(again.predict_proba(x), expected.predict_proba(x), atol=1e-9)
    np.testing.assert_array_equal(again.transduction_, expected.transduction_[order])


def test_score_samples_is_the_density_of_the_original_rows() -> None:
    x, visible, _ = blobs()
    classifier = tiny().fit(x[:, :2], visible)
    width = 200
    first, second = np.linspace(-20, 20, width), np.linspace(-200, 200, width)
    grid = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    cell = (first[1] - first[0]) * (second[1] - second[0])
    assert abs(np.exp(classifier.score_samples(grid)).sum() * cell - 1) < 0.02
    scaled = tiny().fit(x[:, :2] * [1, 10], visible)  # ten times as wide, so a tenth as dense
    np.testing.assert_allclose(
        scaled.score_samples(x[:, :2] * [1, 10]), classifier.score_samples(x[:, :2]) - np.log(10), atol=1e-5
    )


def test_sample_draws_rows_of_a_class_in_original_units() -> None:
    x, visible, y = blobs()
    settings = {**SMALL, "objective.consistency_weight": 0}
    classifier = tiny(steps=80, classifier_weight=1, settings=settings)
    classifier.fit(np.column_stack([x, np.full(len(x), 7.0)]), visible)
    rows = classifier.sample(1, 200)
    assert rows.shape == (200, 4) and abs(rows[:, 3] - 7).max() < 2  # a constant column has the noise of one step
    assert abs(rows[:, 0].mean() - x[y == 1, 0].mean()) < 1 and 10 < rows[:, 1].std() < 40
    with pytest.raises(ValueError, match="label must be one of"):
        classifier.sample("cat")


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_classifier_takes_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(30) % 2
    x = rng.random((30, *shape)) / 2 + y.reshape(-1, *[1] * len(shape)) / 2
    small = {"model.channels": 8, "model.steps": 1, "model.conditional_hidden": 8, "threads": 1}
    classifier = tiny(settings=small, steps=3, lr=None).fit(x, np.where(np.arange(30) < 10, y, -1))
    assert classifier.n_features_in_ == np.prod(shape) and classifier.predict_proba(x).shape == (30, 2)
    assert np.isfinite(classifier.score_samples(x)).all()
    assert classifier.sample(0, 2).shape == (2, *(shape if len(shape) == 3 else (1, *shape)))
    classifier.save(tmp_path / "images.safetensors")
    loaded = SemiSupervisedClassifier.load(tmp_path / "images.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(x), classifier.predict_proba(x))
    for other in (x[..., :4], np.zeros((3, classifier.n_features_in_))):
        with pytest.raises(ValueError, match="X "):
            classifier.predict(other)


def test_warm_start_goes_on_with_the_weights() -> None:
    x, visible, _ = blobs()
    classifier = tiny(warm_start=True, lr=1e-9).fit(x, visible)
    first = classifier.predict_proba(x)
    np.testing.assert_allclose(classifier.fit(x, visible).predict_proba(x), first, atol=1e-4)
    assert not np.allclose(tiny(lr=1e-9, random_state=1).fit(x, visible).predict_proba(x), first, atol=1e-4)
    with pytest.raises(ValueError, match="with warm_start the classes must stay"):
        classifier.fit(x, np.where(visible == 1, 2, visible))


def test_sample_weight_is_a_number_of_copies() -> None:
    x, visible, _ = blobs()
    weight = np.random.default_rng(0).integers(0, 3, len(x))
    weighted = tiny().fit(x, visible, sample_weight=weight)
    repeated = tiny().fit(x.repeat(weight, axis=0), visible.repeat(weight))
    np.testing.assert_allclose(weighted.predict_proba(x), repeated.predict_proba(x), atol=1e-9)


@pytest.mark.parametrize("how", ["joblib", "file"])
def test_stored_classifier_gives_the_same_answers(how: str, tmp_path: Path) -> None:
    x, visible, _ = blobs()
    names = np.array(["cat", "dog", ""])
    classifier = tiny().fit(x, names[visible])
    if how == "joblib":
        stream = io.BytesIO()
        joblib.dump(classifier, stream)
        stream.seek(0)
        other = joblib.load(stream)
    else:
        classifier.save(tmp_path / "classifier.safetensors")
        other = SemiSupervisedClassifier.load(tmp_path / "classifier.safetensors")
    assert other.get_params() == classifier.get_params()
    for method in ("predict", "predict_proba", "score_samples"):
        np.testing.assert_array_equal(getattr(other, method)(x), getattr(classifier, method)(x))
    np.testing.assert_array_equal(other.transduction_, classifier.transduction_)
    np.testing.assert_array_equal(other.sample("dog", 3), classifier.sample("dog", 3))
    assert not hasattr(clone(other), "model_")


def test_stored_classifier_of_another_kind_is_refused(tmp_path: Path) -> None:
    x, visible, _ = blobs()
    path = tmp_path / "classifier.safetensors"
    tiny().fit(x, visible).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        SemiSupervisedClassifier.load(path)
    with pytest.raises(UserError, match=r"holds no classifier|has no checksum"):
        SemiSupervisedClassifier.load(Path(__file__).parents[1] / "pretrained/scnf-digits/model.safetensors")


def test_classifier_leaves_the_generator_and_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    x, visible, _ = blobs()
    tiny().fit(x, visible)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "scnf-none"}, "model.recipe must be one of"),
        ({"settings": {"model.width": 3}}, "there is no setting 'model.width'"),
        ({"recipe": "scnf-fast"}, "shape must be"),
        ({"lr": -1.0}, "train.lr must be"),
    ],
)
def test_classifier_with_wrong_parameters_says_so_in_fit(change: dict[str, Any], message: str) -> None:
    x, visible, _ = blobs()
    with pytest.raises(ValueError, match=message):
        tiny(**change).fit(x, visible)


def test_labelled_folds_train_on_unlabelled_rows_and_score_labelled_ones() -> None:
    _, visible, _ = blobs()
    parts = list(LabelledFolds(3, shuffle=True, random_state=0).split(np.zeros(len(visible)), visible))
    for train, test in parts:
        assert not set(train) & set(test) and len(train) + len(test) == len(visible)
        assert (visible[test] >= 0).all() and set(np.flatnonzero(visible < 0)) <= set(train)
    assert sorted(np.concatenate([test for _, test in parts])) == np.flatnonzero(visible >= 0).tolist()
    with pytest.raises(ValueError, match="y holds no label"):
        next(LabelledFolds().split(np.zeros(3), np.array([-1, -1, -1])))


def test_cross_validation_with_labelled_folds_scores_known_labels() -> None:
    x, visible, _ = blobs()
    assert cross_val_score(tiny(steps=40), x, visible, cv=LabelledFolds(3)).mean() > 0.9
    names = np.array([None if each < 0 else ("cat", "dog")[each] for each in visible], dtype=object)
    pipeline = make_pipeline(MinMaxScaler(), tiny(steps=40))
    assert cross_val_score(pipeline, x, names, cv=LabelledFolds(3)).mean() > 0.9


def test_grid_search_chooses_a_parameter_of_the_classifier() -> None:
    x, visible, y = blobs()
    search = GridSearchCV(make_pipeline(MinMaxScaler(), tiny(steps=30)), {}, cv=LabelledFolds(3))
    search.set_params(param_grid={"semisupervisedclassifier__lr": [1e-9, 2e-2]})
    search.fit(x, visible)
    assert search.best_params_ == {"semisupervisedclassifier__lr": 2e-2} or search.best_score_ > 0.9
    assert search.score(x, y) > 0.9


def test_calibration_and_importance_take_the_classifier() -> None:
    x, visible, y = blobs()
    classifier = tiny(steps=40).fit(x, visible)
    calibrated = CalibratedClassifierCV(FrozenEstimator(classifier)).fit(x[visible >= 0], y[visible >= 0])
    assert calibrated.predict_proba(x).shape == (len(x), 2) and calibrated.score(x, y) > 0.9
    assert CalibratedClassifierCV(tiny(), cv=2).fit(x, y).score(x, y) > 0.8
    importance = permutation_importance(classifier, x, y, n_repeats=2, random_state=0).importances_mean
    assert importance.argmin() == 1  # the column that is the same for both classes


def test_classifier_is_imported_when_asked_for() -> None:
    code = (
        "import sys, scnf; print('torch' in sys.modules); scnf.SemiSupervisedClassifier; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_warm_start_keeps_the_model_where_the_rows_grow() -> None:
    x, visible, _ = blobs()
    classifier = SemiSupervisedClassifier(steps=5, random_state=0, warm_start=True).fit(x, visible)
    recipe = classifier._recipe
    classifier.fit(np.tile(x, (6, 1)), np.tile(visible, 6))
    assert classifier._recipe == recipe
    classifier.set_params(settings={"model.steps": 3})
    with pytest.raises(ValueError, match="with warm_start the model must stay"):
        classifier.fit(x, visible)


def test_saved_classifier_keeps_numbers_of_numpy_and_the_type_of_its_classes(tmp_path: Path) -> None:
    x, visible, _ = blobs()
    classifier = tiny(lr=np.float32(1e-2), steps=np.int64(5), settings={**SMALL, "train.weight_decay": np.float32(0.5)})
    classifier.fit(x, visible.astype(np.int8)).save(tmp_path / "c.safetensors")
    loaded = SemiSupervisedClassifier.load(tmp_path / "c.safetensors")
    assert loaded.steps == 5 and loaded.settings["train.weight_decay"] == 0.5
    assert loaded.classes_.dtype == np.int8 and loaded.transduction_.dtype == np.int8
