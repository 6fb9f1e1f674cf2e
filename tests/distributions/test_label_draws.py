"""Drawn labels: points of the simplex, by noise that is centred on the classifier."""

import math

import pytest
import torch
from torch import Tensor

from scnf.distributions import LabelDraw, Temperature, make_label_draw
from scnf.distributions.labels import LABEL_DRAWS

LOGITS = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, -1.0], [-2.0, 0.5, 0.3], [8.0, 0.0, -8.0]], dtype=torch.float64)
every_kind = pytest.mark.parametrize("kind", LABEL_DRAWS)
ONE_HOT = ("gumbel-st", "logistic-normal-st", "score")


def made(kind: str, temperature: float = 0.67) -> LabelDraw:
    torch.manual_seed(0)
    draw = make_label_draw(kind, temperature)
    assert draw is not None
    return draw.double()


def draws(draw: LabelDraw, logits: Tensor, num: int = 20_000) -> Tensor:
    """[num, K] of one row of logits [K]."""
    return draw(logits.expand(num, -1))


@every_kind
@pytest.mark.parametrize("temperature", [0.1, 0.67, 3.0])
def test_label_draws_lie_on_the_simplex(kind: str, temperature: float) -> None:
    y = made(kind, temperature)(LOGITS.repeat(500, 1))
    assert y.shape == (2000, 3) and y.dtype == torch.float64 and y.isfinite().all() and (y >= 0).all()
    torch.testing.assert_close(y.sum(dim=1), torch.ones(2000, dtype=torch.float64), rtol=0, atol=1e-6)


@every_kind
def test_label_draws_of_many_classes_and_extreme_logits_are_finite(kind: str) -> None:
    draw = made(kind, 0.2).float()
    logits = torch.cat([50 * torch.randn(64, 50), torch.zeros(64, 50)]).requires_grad_()
    y = draw(logits)
    assert y.isfinite().all()
    torch.testing.assert_close(y.sum(dim=1), torch.ones(128), rtol=0, atol=1e-4)
    if not draw.score_function:
        (y * torch.randn_like(y)).sum().backward()
        assert logits.grad is not None and logits.grad.isfinite().all()


@every_kind
def test_label_draw_gradients_reach_the_logits_of_their_own_row(kind: str) -> None:
    draw = made(kind)
    logits = LOGITS[:3].repeat(20, 1).requires_grad_()
    y = draw(logits)
    assert y.requires_grad != draw.score_function
    if not draw.score_function:
        (y[:30] * torch.randn(30, 3, dtype=torch.float64)).sum().backward()
        assert logits.grad is not None and logits.grad.isfinite().all()
        assert logits.grad[:30].abs().max() > 0 and logits.grad[30:].abs().max() == 0


@every_kind
def test_label_draws_differ_between_rows(kind: str) -> None:
    y = made(kind)(torch.zeros(200, 4, dtype=torch.float64))
    assert len(y.unique(dim=0)) > 3


@pytest.mark.parametrize("kind", ONE_HOT)
def test_straight_through_and_score_draws_are_one_hot(kind: str) -> None:
    y = made(kind)(LOGITS.repeat(100, 1).requires_grad_()).detach()
    torch.testing.assert_close(y.max(dim=1).values, torch.ones(400, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((y.abs() < 1e-12) | ((y - 1).abs() < 1e-12)).all()


@pytest.mark.parametrize("kind", ["gumbel", "logistic-normal"])
def test_straight_through_draws_have_the_corner_and_gradient_of_relaxed_ones(kind: str) -> None:
    weights, results = torch.randn(12, 3, dtype=torch.float64), []
    for name in (kind, f"{kind}-st"):
        logits = LOGITS[:3].repeat(4, 1).requires_grad_()
        y = made(name)(logits)
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad((y * weights).sum(), logits)
        results.append((y.detach(), gradient))
    (relaxed, gradient), (hard, same) = results
    assert torch.equal(relaxed.argmax(dim=1), hard.argmax(dim=1))
    torch.testing.assert_close(gradient, same)


@pytest.mark.parametrize("kind", ["gumbel", "gumbel-st", "score"])
@torch.no_grad()
def test_label_draws_have_nearest_corners_distributed_as_the_classifier(kind: str) -> None:
    for logits in LOGITS:
        corners = draws(made(kind), logits).argmax(dim=1).bincount(minlength=3) / 20_000
        torch.testing.assert_close(corners.double(), logits.softmax(dim=0), rtol=0, atol=0.015)


@pytest.mark.parametrize("temperature", [0.2, 0.67, 5.0])
@torch.no_grad()
def test_log_gamma_draws_have_the_mean_of_the_classifier(temperature: float) -> None:
    draw = made("log-gamma", temperature)
    for logits in LOGITS[:3]:
        y, q = draws(draw, logits), logits.softmax(dim=0)
        torch.testing.assert_close(y.mean(dim=0), q, rtol=0, atol=0.015)
        torch.testing.assert_close(y.var(dim=0), q * (1 - q) / (temperature + 1), rtol=0.06, atol=0.002)


@pytest.mark.parametrize("kind", ["logistic-normal", "logistic-normal-st"])
@torch.no_grad()
def test_logistic_normal_noise_is_centred_on_the_classifier(kind: str) -> None:
    draw = made(kind, 1.0)
    for logits in LOGITS[:3]:
        odds = (draw.relaxed(logits.expand(20_000, -1)).log() - logits).diff(dim=1)  # of neighbours: Gaussian
        torch.testing.assert_close(odds.mean(dim=0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=0.06)
        torch.testing.assert_close(odds.var(dim=0), torch.full((2,), math.pi**2 / 3).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in LABEL_DRAWS if kind != "log-gamma"])
@torch.no_grad()
def test_label_draws_favour_no_class_for_its_position(kind: str) -> None:
    corners = draws(made(kind), torch.zeros(10, dtype=torch.float64)).argmax(dim=1).bincount(minlength=10) / 20_000
    torch.testing.assert_close(corners, torch.full((10,), 0.1), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", ["gumbel", "logistic-normal", "log-gamma"])
@torch.no_grad()
def test_label_draws_of_low_temperature_go_to_corners(kind: str) -> None:
    sharpness = [float(draws(made(kind, t), LOGITS[1]).max(dim=1).values.mean()) for t in (5.0, 1.0, 0.3, 0.02)]
    assert sharpness == sorted(sharpness) and sharpness[-1] > 0.97, sharpness


@pytest.mark.parametrize("kind", ["gumbel", "logistic-normal", "log-gamma"])
@torch.no_grad()
def test_label_draws_get_sharper_with_an_annealed_temperature(kind: str) -> None:
    draw = make_label_draw(kind, 1.0, 0.05)
    assert draw is not None
    logits = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    before = draw(logits).max(dim=1).values.mean()
    draw.temperature.anneal(1.0)
    assert draw(logits).max(dim=1).values.mean() > before + 0.05


def test_enumerated_labels_need_no_draw() -> None:
    assert make_label_draw("enumerate") is None


@every_kind
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_of_zero_or_less_is_refused(kind: str, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        make_label_draw(kind, temperature)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        make_label_draw(kind, 1.0, temperature)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        Temperature(temperature)


def test_label_draw_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels must be one of enumerate, gumbel.*; not 'concrete'"):
        make_label_draw("concrete")
