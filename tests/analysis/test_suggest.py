"""Images to label next and doubtful labels: the choice from posteriors and features, and what it is worth on digits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scnf.analysis.suggest import By, doubted, entropies, margins, nearest, suggest
from scnf.errors import InvalidArgument

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "suggest.py"
SMALL = ["--model.channels", "16", "--model.steps", "2", "--epochs", "8"]


def posteriors_of(confidence: np.ndarray) -> np.ndarray:
    """Posteriors of two classes, of which the first has the given probability."""
    return np.stack([confidence, 1 - confidence], axis=1)


def blobs(sizes: list[int], spread: float = 0.02) -> np.ndarray:
    """Features around one direction per group of rows."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(len(sizes)), sizes, axis=0)
    return centres + spread * rng.normal(size=centres.shape)


@pytest.mark.parametrize(("by", "measure"), [("entropy", lambda p: -entropies(p)), ("margin", margins)])
def test_suggestions_by_uncertainty_are_the_most_uncertain_rows_in_order(by: By, measure: Any) -> None:
    posteriors = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    chosen = suggest(posteriors, np.zeros((50, 2)), 8, by)
    values = measure(posteriors)
    assert values[chosen].tolist() == sorted(values)[:8]


def test_entropy_and_margin_suggest_other_rows() -> None:
    posteriors = np.array([[0.5, 0.5, 0.0], [0.45, 0.3, 0.25], [1.0, 0.0, 0.0]])
    features = np.zeros((3, 2))
    assert suggest(posteriors, features, 1, "margin").tolist() == [0]
    assert suggest(posteriors, features, 1, "entropy").tolist() == [1]


def test_diverse_suggestions_take_one_row_of_each_group() -> None:
    sizes = [20, 5, 5, 5]
    features, group = blobs(sizes), np.repeat(np.arange(4), sizes)
    posteriors = posteriors_of(np.where(group == 0, 0.5, 0.55))
    assert set(group[suggest(posteriors, features, 4, "margin")]) == {0}
    assert sorted(group[suggest(posteriors, features, 4, "diverse")]) == [0, 1, 2, 3]


def test_diverse_suggestions_leave_rows_out_of_which_the_model_is_certain() -> None:
    features = blobs([60, 20])
    posteriors = posteriors_of(np.where(np.arange(80) < 60, 0.999, 0.5))
    assert suggest(posteriors, features, 2, "diverse").min() >= 60


def test_diverse_suggestion_of_one_group_leans_to_its_uncertain_rows() -> None:
    features = blobs([3, 5])
    posteriors = posteriors_of(np.where(np.arange(8) < 3, 0.5, 0.95))
    assert suggest(posteriors, features, 1, "diverse")[0] < 3


@pytest.mark.parametrize("by", ["entropy", "margin", "diverse"])
def test_suggestions_are_distinct_rows_and_the_same_again(by: By) -> None:
    rng = np.random.default_rng(1)
    posteriors, features = rng.dirichlet(np.ones(3), 300), rng.normal(size=(300, 80))
    chosen = suggest(posteriors, features, 20, by)
    assert len(set(chosen.tolist())) == 20 and chosen.dtype == np.int64
    np.random.seed(5)
    np.testing.assert_array_equal(suggest(posteriors, features, 20, by), chosen)


@pytest.mark.parametrize("features", [np.zeros((6, 3)), np.ones((6, 3)), np.eye(6)[:, :1]], ids=["0", "1", "two"])
@pytest.mark.parametrize("num", [1, 4, 6, 9])
def test_diverse_suggestions_of_copies_are_distinct_rows(features: np.ndarray, num: int) -> None:
    chosen = suggest(posteriors_of(np.linspace(0.5, 1, 6)), features, num, "diverse")
    assert sorted(set(chosen.tolist())) == sorted(chosen.tolist()) and len(chosen) == min(num, 6)


def test_nearest_counts_each_row_for_the_chosen_row_of_its_group() -> None:
    features = blobs([6, 3, 2])
    assert np.bincount(nearest(features, np.array([10, 0, 7]))).tolist() == [2, 6, 3]


def test_doubted_labels_are_wrong_ones_that_the_model_has_learnt() -> None:
    features, labels = blobs([15, 15, 15]), np.repeat(np.arange(3), 15)
    labels[[3, 20, 40]] = [1, 2, 0]
    learnt = np.eye(3)[labels] * 0.97 + 0.01  # the model is as certain of wrong labels as of the others
    rows, shares = doubted(learnt, features, labels, 3)
    assert sorted(rows.tolist()) == [3, 20, 40] and shares.max() < 0.3


def test_doubted_labels_of_a_rare_class_are_not_all_of_its_rows() -> None:
    features, labels = blobs([30, 3, 1]), np.repeat(np.arange(3), [30, 3, 1])
    labels[5] = 1
    posteriors = np.full((34, 3), 1 / 3)
    rows, shares = doubted(posteriors, features, labels, 34)
    assert rows[0] == 5 and shares[rows.tolist().index(33)] == 1  # no other row has its label
    assert doubted(posteriors[:1], features[:1], labels[:1], 3)[0].tolist() == [0]


def test_doubted_labels_follow_the_posterior_where_neighbours_agree() -> None:
    labels = np.zeros(12, np.int64)
    posteriors = posteriors_of(np.linspace(0.95, 0.4, 12))
    assert doubted(posteriors, blobs([12], 0.1), labels, 2)[0].tolist() == [11, 10]


GOOD: dict[str, Any] = {"posteriors": np.full((4, 2), 0.5), "features": np.eye(4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posteriors": np.full(4, 0.5)}, "posteriors must be of shape"),
        ({"posteriors": np.full((4, 2), 0.7)}, "posteriors must be probabilities"),
        ({"posteriors": np.full((4, 2), np.nan)}, "posteriors must be probabilities"),
        ({"posteriors": np.ones((4, 1))}, "posteriors must be of shape"),
        ({"posteriors": np.zeros((0, 2)), "features": np.zeros((0, 2))}, "posteriors must be of shape"),
        ({"features": np.eye(3)}, r"features must be of shape \[4, D\]"),
        ({"features": np.full((4, 1), np.inf)}, "features must be finite"),
        ({"num": 0}, "num must be a whole number of at least 1"),
        ({"num": 2.0}, "num must be a whole number"),
        ({"by": "chance"}, "by must be entropy, margin or diverse"),
    ],
)
def test_suggest_refuses_wrong_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        suggest(**{**GOOD, "num": 2, "by": "diverse", **change})


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [0, 1, -1, 0], [0, 1], [0.0, 1.0, 0.0, 1.0]])
def test_doubted_refuses_labels_that_are_no_classes(labels: list[float]) -> None:
    with pytest.raises(InvalidArgument, match="labels must be 4 labels from 0 to 1"):
        doubted(**GOOD, labels=np.array(labels), num=2)


def measured(*words: str) -> dict[str, float]:
    """The means that the benchmark prints last."""
    done = subprocess.run([sys.executable, BENCHMARK, *words, *SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    means: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return means


def test_suggested_labels_of_digits_beat_random_ones() -> None:
    means = measured("labels")
    assert means["diverse"] > means["random"] > means["first"], means


def test_doubted_labels_of_digits_are_mostly_the_wrong_ones() -> None:
    assert measured("check", "--seeds", "0")["first 60"] >= 20
