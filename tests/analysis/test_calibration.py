"""Temperatures, conformal prediction sets and their figures, against MAPIE, scipy and simulations."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from scnf.analysis import reliability
from scnf.analysis.calibration import (
    Calibration,
    calibrate,
    conformal_threshold,
    cross_fit,
    fit_temperature,
    measure,
    risk_coverage,
)
from scnf.errors import InvalidArgument


def draw(number: int, classes: int, seed: int = 0, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """log p(y | x) that are `sharpness` times too sure, and labels from the true posterior."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(number, classes))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return log_softmax(sharpness * logits, axis=1), y


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0, 200.0])
def test_temperature_has_the_greatest_likelihood(sharpness: float) -> None:
    log_probs, y = draw(4000, 5, sharpness=sharpness)

    def loss(temperature: float) -> float:
        return -float(log_softmax(log_probs / temperature, axis=1)[np.arange(len(y)), y].mean())

    best = minimize_scalar(loss, bounds=(0.05, 1000), method="bounded", options={"xatol": 1e-9})
    temperature = fit_temperature(log_probs, y)
    assert abs(temperature / best.x - 1) < 1e-3 and loss(temperature) <= best.fun + 1e-12
    assert abs(temperature / sharpness - 1) < 0.1


def test_temperature_has_bounds_where_the_likelihood_has_no_maximum() -> None:
    log_probs, y = draw(50, 3)
    assert fit_temperature(log_probs, log_probs.argmax(axis=1)) == 1  # all right: its maximum is at 0
    assert fit_temperature(log_probs, log_probs.argmin(axis=1)) == 1000  # all wrong: at infinity
    log_probs[0] = -np.inf, 0, -np.inf  # probabilities of 0
    assert np.isfinite(fit_temperature(log_probs, y))


def test_conformal_sets_are_those_of_mapie() -> None:
    classification = pytest.importorskip("mapie.classification")
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    model = LogisticRegression(C=1e-4, max_iter=200).fit(x[:300], y[:300])
    for alpha, number in ((0.05, 99), (0.05, 400), (0.2, 137)):
        rows = slice(300, 300 + number)
        reference = classification.SplitConformalClassifier(model, confidence_level=1 - alpha, conformity_score="lac")
        reference.conformalize(x[rows], y[rows])
        predicted, sets = reference.predict_set(x[1000:])
        sets = sets[:, :, 0].copy()
        sets[np.arange(len(sets)), predicted] = True  # ours hold the most likely class, too
        threshold = conformal_threshold(model.predict_proba(x[rows]), y[rows], alpha)
        ours = Calibration(1.0, threshold, alpha, number).sets(model.predict_proba(x[1000:]))
        assert 0 < threshold < 1 and ours.sum(axis=1).max() > 1
        np.testing.assert_array_equal(ours, sets)


@pytest.mark.parametrize(("number", "alpha"), [(19, 0.1), (30, 0.2), (100, 0.1), (500, 0.05)])
def test_prediction_sets_cover_as_promised_in_simulations(number: int, alpha: float) -> None:
    coverages = []
    for seed in range(400):
        log_probs, y = draw(number, 6, seed, sharpness=3)
        calibration = calibrate(log_probs, y, alpha)
        new, labels = draw(200, 6, 10_000 + seed, sharpness=3)
        sets = calibration.sets(calibration.posteriors(new))
        coverages.append(sets[np.arange(len(labels)), labels].mean())
    error = np.std(coverages) / 20
    assert 1 - alpha - 4 * error < np.mean(coverages) < 1 - alpha + 1 / (number + 1) + 4 * error + 0.01


def test_prediction_sets_hold_all_classes_with_too_few_labels() -> None:
    log_probs, y = draw(8, 4)
    assert calibrate(log_probs, y, 0.1).threshold == 0 < calibrate(log_probs, y, 0.2).threshold
    assert calibrate(log_probs, y, 0.1).sets(np.exp(log_probs)).all()
    log_probs, y = draw(9, 4)  # rank 9 of 9, although 10 * 0.9 is not 9 in every arithmetic
    assert calibrate(log_probs, y, 0.1).threshold > 0


def test_cross_fit_calibrates_no_row_by_itself() -> None:
    log_probs, y = draw(60, 3, sharpness=4)
    before = cross_fit(log_probs, y)
    for row in range(0, 60, 7):
        changed = y.copy()
        changed[row] = (y[row] + 1) % 3
        after = cross_fit(log_probs, changed)
        np.testing.assert_array_equal(before.log_probs[row], after.log_probs[row])
        np.testing.assert_array_equal(before.sets[row], after.sets[row])
        assert not np.array_equal(before.log_probs, after.log_probs)
    np.testing.assert_allclose(np.exp(before.log_probs).sum(axis=1), 1)


def test_calibration_mends_the_figures_of_a_model_that_is_too_sure() -> None:
    log_probs, y = draw(2000, 5, sharpness=5)
    before, after = measure(log_probs, y), measure(cross_fit(log_probs, y).log_probs, y)
    assert after["accuracy"] == before["accuracy"]
    assert before["ece"] > 0.1 > 0.03 > after["ece"]
    assert after["nll"] < before["nll"] and after["brier"] < before["brier"]
    expected = -log_probs[np.arange(len(y)), y].mean()
    assert before["nll"] == pytest.approx(expected)


def test_risk_coverage_counts_errors_among_the_surest_rows() -> None:
    log_probs = np.log([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    coverage, risk = risk_coverage(log_probs, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 4])


def test_risk_coverage_does_not_depend_on_the_order_of_rows() -> None:
    log_probs, y = draw(300, 3)
    log_probs = np.log(np.exp(log_probs).round(1).clip(0.01))  # many rows of one confidence
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_allclose(risk_coverage(log_probs, y)[1], risk_coverage(log_probs[order], y[order])[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": "2"}, "temperature must be a finite number, not '2'"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\]"),
        ({"alpha": 1.0}, r"alpha must lie in \(0, 1\)"),
        ({"num_labels": 0}, "num_labels must be a whole number above 0"),
        ({"format": 2}, "values must hold format 1"),
    ],
)
def test_calibration_refuses_other_contents(changes: dict[str, object], message: str) -> None:
    values = Calibration(2.0, 0.3, 0.1, 100).to_json()
    assert Calibration.from_json(json.loads(json.dumps(values))) == Calibration(2.0, 0.3, 0.1, 100)
    with pytest.raises(InvalidArgument, match=message):
        Calibration.from_json(values | changes)
    with pytest.raises(InvalidArgument, match="values must hold"):
        Calibration.from_json([])


@pytest.mark.parametrize(
    ("log_probs", "y", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), r"log_probs must be numbers \[N, K\]"),
        (np.full((1, 2), np.nan), np.zeros(1, int), "log_probs must be numbers"),
        (np.zeros((2, 2)), np.array([0, 2]), "y must be 2 labels from 0 to 1"),
        (np.zeros((2, 2)), np.array([0, -1]), "y must be 2 labels from 0 to 1"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "y must be 2 labels"),
        (np.zeros((1, 2)), np.array([0]), "y must hold two labels or more"),
    ],
)
def test_cross_fit_refuses_rows_that_do_not_fit(log_probs: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        cross_fit(log_probs, y)


def test_reliability_diagram_is_drawn_for_any_number_of_rows(tmp_path: Path) -> None:
    for number in (1, 500):
        log_probs, y = draw(number, 3)
        reliability.draw(log_probs, log_probs, y, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (1440, 480)
