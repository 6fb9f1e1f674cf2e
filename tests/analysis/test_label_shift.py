"""Another mix of classes: EM against QuaPy, a direct maximisation and digits that are mixed 10 to 1."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

import scnf
from scnf.analysis.calibration import calibrate
from scnf.analysis.label_shift import check_prior, estimate_prior, reweight
from scnf.data.labels import draw_split
from scnf.data.sources import load
from scnf.errors import InvalidArgument


def mixture(number: int, prior: np.ndarray, trained: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Exact posteriors under the prior of training, of points that are drawn from another prior, and their labels."""
    rng = np.random.default_rng(seed)
    means = 3 * np.random.default_rng(3).normal(size=(len(prior), 2))
    y = rng.choice(len(prior), number, p=prior)
    x = means[y] + rng.normal(size=(number, 2))
    logits = -((x[:, None] - means) ** 2).sum(axis=2) / 2 + np.log(trained)
    return softmax(logits, axis=1), y


PRIORS = [
    (np.array([0.7, 0.2, 0.1]), np.full(3, 1 / 3)),
    (np.array([0.1, 0.1, 0.8]), np.array([0.5, 0.3, 0.2])),
    (np.array([0.0, 0.5, 0.5, 0.0]), np.full(4, 0.25)),
]


@pytest.mark.parametrize(("prior", "trained"), PRIORS)
def test_estimated_prior_has_the_greatest_likelihood(prior: np.ndarray, trained: np.ndarray) -> None:
    posteriors, _ = mixture(3000, prior, trained)

    def loss(shares: np.ndarray) -> float:
        return -float(np.log(posteriors @ (shares / trained)).mean())

    best = minimize(
        loss,
        np.full(len(prior), 1 / len(prior)),
        bounds=[(1e-9, 1)] * len(prior),
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    estimate = estimate_prior(posteriors, trained)
    assert loss(estimate) <= best.fun + 1e-7 and estimate.sum() == pytest.approx(1)
    np.testing.assert_allclose(estimate, best.x, atol=2e-3)
    np.testing.assert_allclose(estimate, prior, atol=0.05)


@pytest.mark.parametrize(("prior", "trained"), PRIORS)
def test_estimated_prior_and_posteriors_are_those_of_quapy(prior: np.ndarray, trained: np.ndarray) -> None:
    aggregative = pytest.importorskip("quapy.method.aggregative")
    posteriors, _ = mixture(3000, prior, trained)
    shares, corrected = aggregative.EMQ.EM(trained, posteriors, epsilon=1e-9)
    estimate = estimate_prior(posteriors, trained)
    np.testing.assert_allclose(estimate, shares, atol=2e-3)
    np.testing.assert_allclose(reweight(posteriors, trained, estimate), corrected, atol=0.02)


def test_reweighted_posteriors_are_exact_under_the_true_prior() -> None:
    prior, trained = PRIORS[0]
    posteriors, y = mixture(3000, prior, trained)
    exact, _ = mixture(3000, prior, prior)
    np.testing.assert_allclose(reweight(posteriors, trained, prior), exact, atol=1e-12)
    np.testing.assert_allclose(reweight(posteriors, trained, trained), posteriors, atol=1e-12)
    estimate = estimate_prior(posteriors, trained)
    corrected = reweight(posteriors, trained, estimate).argmax(axis=1)
    assert (corrected == y).mean() > (posteriors.argmax(axis=1) == y).mean()


def test_reweighted_posteriors_of_excluded_classes_are_the_new_prior() -> None:
    new = np.array([0.0, 0.25, 0.75])
    posteriors = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_array_equal(reweight(posteriors, np.full(3, 1 / 3), new), [new, [0, 1, 0]])


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_digits_that_are_mixed_ten_to_one_have_their_prior_estimated(is_calibrated: bool) -> None:
    model, digits = scnf.load("scnf-digits"), load("digits")
    trained, y = model.prior, digits.test_y.numpy()
    assert trained is not None
    np.testing.assert_allclose(trained, 0.1, atol=1e-6)
    if is_calibrated:
        validation = draw_split(digits.train_y, 10, 100, 250, data_seed=0).validation
        log_probs, _ = model.log_answers(digits.train_x[validation])
        model.calibration = calibrate(log_probs, digits.train_y[validation].numpy())
    answers = model.predict_proba(digits.test_x)
    before, after, total = 0, 0, 0
    for frequent, rare in ((8, 1), (8, 3), (3, 8), (4, 9), (1, 8), (9, 4)):
        rows = np.concatenate([np.flatnonzero(y == frequent), np.flatnonzero(y == rare)[:4]])
        shares = np.bincount(y[rows], minlength=10) / len(rows)
        estimate = estimate_prior(answers[rows], trained)
        np.testing.assert_allclose(estimate, shares, atol=0.08)  # 4 of 47 to 50 images
        assert abs(trained - shares).max() > 0.8
        total += len(rows)
        before += (answers[rows].argmax(axis=1) == y[rows]).sum()
        after += (reweight(answers[rows], trained, estimate).argmax(axis=1) == y[rows]).sum()
    assert after - before >= 0.01 * total


@pytest.mark.parametrize(
    ("posteriors", "prior", "message"),
    [
        (np.zeros((0, 2)), np.full(2, 0.5), r"posteriors must be \[N, K\]"),
        (np.zeros((3, 2)), np.full(2, 0.5), "posteriors must be 0 or more and sum to 1"),
        (np.full((3, 2), np.nan), np.full(2, 0.5), "posteriors must be 0 or more and sum to 1"),
        (np.full((3, 2), 0.5), np.full(3, 1 / 3), "prior must be 2 numbers of 0 or more that sum to 1"),
        (np.full((3, 2), 0.5), np.array([1.0, 0.0]), "prior must be above 0 for each class"),
    ],
)
def test_estimate_prior_refuses_what_is_no_probability(posteriors: np.ndarray, prior: np.ndarray, message: str) -> None:
    for call in (lambda: estimate_prior(posteriors, prior), lambda: reweight(posteriors, prior, np.full(2, 0.5))):
        with pytest.raises(InvalidArgument, match=message):
            call()


def test_check_prior_normalises_rounded_numbers() -> None:
    assert check_prior("prior", np.array([0.3333, 0.6666]), 2).sum() == 1
    with pytest.raises(InvalidArgument, match="prior must be 2 numbers"):
        check_prior("prior", np.array([np.nan, 1]), 2)
