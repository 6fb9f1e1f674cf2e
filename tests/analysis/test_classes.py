"""Scores of classes: against scikit-learn and SciPy, with many classes, and without rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, classification_report, f1_score

from scnf.analysis.classes import plot_confusion, score_classes, wilson_interval
from scnf.errors import InvalidArgument

Y = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
PREDICTIONS = np.array([0, 1, 1, 1, 1, 2, 0, 2, 1])
NAMES = ("cat", "nuit étoilée", "$dog")


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (5, 5), (3, 7), (970, 1000)])
def test_wilson_interval_agrees_with_scipy(hits: int, trials: int) -> None:
    expected = binomtest(hits, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson_interval(hits / trials, trials), (expected.low, expected.high), atol=1e-6)


def test_scores_agree_with_scikit_learn() -> None:
    report = score_classes(Y, PREDICTIONS, NAMES)
    expected = classification_report(Y, PREDICTIONS, target_names=NAMES, output_dict=True)
    for score in report.scores:
        row = expected[score.name]
        assert (score.precision, score.recall, score.f1, score.rows) == pytest.approx(
            (row["precision"], row["recall"], row["f1-score"], row["support"])
        )
    assert report.balanced_accuracy == pytest.approx(balanced_accuracy_score(Y, PREDICTIONS))
    assert report.macro_f1 == pytest.approx(f1_score(Y, PREDICTIONS, average="macro"))
    assert report.confused() == [("cat", "nuit étoilée", 2), ("$dog", "cat", 1), ("$dog", "nuit étoilée", 1)]


def test_scores_text_shows_rows_by_class_and_predictions_across() -> None:
    lines = score_classes(Y, PREDICTIONS, NAMES).text().splitlines()
    assert lines[1].split() == ["cat", "3", "50.0", "%", "33.3", "%", "6.1", "to", "79.2", "%", "40.0", "%"]
    assert [line.split()[-3:] for line in lines if line.startswith("cat ")][1] == ["1", "2", "."]
    assert "2 of 3 rows of cat were taken for nuit étoilée (67 %)" in lines


def test_scores_of_a_class_without_rows_are_unknown() -> None:
    report = score_classes(np.array([0, 0]), np.array([0, 0]), ("cat", "dog", "cow"))
    assert report.scores[1].precision is report.scores[1].recall is report.scores[1].recall_interval is None
    assert report.balanced_accuracy == 1 and json.dumps(report.to_json(), allow_nan=False)
    assert report.text().splitlines()[-1] == "no class was taken for another"


def test_scores_text_of_many_classes_stays_short(tmp_path: Path) -> None:
    y = np.arange(1000) % 200
    report = score_classes(y, np.where(y % 7 == 0, (y + 1) % 200, y), [f"class {index}" for index in range(200)])
    text = report.text()
    assert "the 20 of 200 classes with the lowest recall" in text and len(text.splitlines()) < 40
    plot_confusion({"test": report}, tmp_path / "many.png")
    assert max(image.imread(tmp_path / "many.png").shape) < 5000


def test_scores_text_is_no_wider_than_a_terminal_with_long_names() -> None:
    names = [f"a class with a very long name {index}" for index in range(20)]
    text = score_classes(np.arange(20), np.arange(20), names).text()
    assert max(map(len, text.splitlines())) <= 130


def test_confusion_picture_has_a_panel_for_each_split(tmp_path: Path) -> None:
    report = score_classes(Y, PREDICTIONS, NAMES)
    plot_confusion({"validation": report, "test": report}, tmp_path / "two.png")
    plot_confusion({"test": report}, tmp_path / "one.png")
    two, one = (image.imread(tmp_path / f"{name}.png").shape for name in ("two", "one"))
    assert two[0] == one[0] and two[1] > 1.5 * one[1]


@pytest.mark.parametrize(
    ("y", "predictions", "message"),
    [
        ([], [], "y must hold at least one label"),
        ([0, 3], [0, 1], "y must hold labels of 0 to 2"),
        ([0, 1], [0], "predictions must hold one label"),
        ([0, -1], [0, 1], "y must hold labels of 0 to 2"),
    ],
)
def test_scores_refuse_wrong_labels(y: list[int], predictions: list[int], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        score_classes(np.array(y, np.int64), np.array(predictions, np.int64), NAMES)
