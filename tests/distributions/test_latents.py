"""Latent variables: divergences against Monte Carlo, flows against autograd, refusals."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from scnf.distributions import CategoricalLatent, GaussianLatent, Temperature
from scnf.distributions.latent import diagonal_gaussian, merge_gaussians, standard_gaussian
from scnf.nn import MLP
from scnf.transforms import ActNorm, CompositeTransform, FullLinear, Planar, Transform, two_way_coupling

D, C, M = 3, 2, 5


def planar() -> Transform:
    return CompositeTransform([Planar(D, C), Planar(D, C)])


def coupling() -> Transform:
    return CompositeTransform([FullLinear(D), two_way_coupling(partial(MLP, hidden=8, context_features=C), D)])


FLOWS: dict[str, Callable[[], Transform]] = {"planar": planar, "coupling": coupling}
every_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)


def with_flow(flow: Callable[[], Transform]) -> GaussianLatent:
    torch.manual_seed(0)
    latent = GaussianLatent(D, flow(), C).double()
    with torch.no_grad():
        for parameter in latent.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return latent


def numbers(width: int, rows: int = M) -> Tensor:
    return 0.7 * torch.randn(rows, width, dtype=torch.float64)


def assert_mean(draws: Tensor, expected: Tensor) -> None:
    """The mean over the first axis agrees within its standard error."""
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - expected).abs() <= 4.5 * error + 1e-9).all(), (draws.mean(dim=0), expected, error)


# --- Gaussians


@torch.no_grad()
def test_gaussian_divergence_equals_its_monte_carlo_estimate() -> None:
    latent, parameters = GaussianLatent(D), numbers(2 * D)
    for prior in (None, numbers(2 * D)):
        p = None if prior is None else diagonal_gaussian(prior)
        _, exact = latent.draw(parameters, p)
        draws = [
            latent.draw(
                parameters.repeat(500, 1), None if prior is None else diagonal_gaussian(prior.repeat(500, 1)), False
            )
            for _ in range(20)
        ]
        estimates = torch.cat([kl.view(500, M) for _, kl in draws])
        assert exact.shape == (M,) and (exact > 0).all()
        assert_mean(estimates, exact)
    mean, log_scale = parameters.chunk(2, dim=1)
    by_hand = 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(dim=1)
    torch.testing.assert_close(latent.draw(parameters)[1], by_hand)


@torch.no_grad()
def test_gaussian_draws_have_the_moments_and_the_density() -> None:
    torch.manual_seed(0)
    latent, parameters = GaussianLatent(D), numbers(2 * D, 1)
    mean, scale = parameters[0, :D], parameters[0, D:].exp()
    for draw in (latent.draw, latent.sample, partial(latent.draw, analytic=False)):
        z, _ = draw(parameters.expand(20_000, -1))
        assert_mean(z, mean)
        torch.testing.assert_close(z.std(dim=0), scale, rtol=0.03, atol=0)
    z, log_q = latent.sample(parameters)
    torch.testing.assert_close(log_q, torch.distributions.Normal(mean, scale).log_prob(z).sum(dim=1))
    torch.manual_seed(1)
    z, kl = latent.draw(parameters, analytic=False)
    log_q = torch.distributions.Normal(mean, scale).log_prob(z).sum(dim=1)
    torch.testing.assert_close(kl, log_q - torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1))
    prior = latent.sample_prior(20_000, z)
    assert prior.dtype == torch.float64
    torch.testing.assert_close(prior.std(dim=0), torch.ones(D, dtype=torch.float64), rtol=0.03, atol=0)


def test_latent_draws_carry_gradients_to_all_numbers_of_the_head() -> None:
    for latent in (GaussianLatent(D), with_flow(planar), with_flow(coupling)):
        parameters = numbers(latent.numbers).requires_grad_()
        z, kl = latent.draw(parameters)
        (z.square().sum() + kl.sum()).backward()
        assert parameters.grad is not None and (parameters.grad.abs() > 0).all()


def test_merged_gaussians_are_the_product_of_densities() -> None:
    first, second, z = numbers(2 * D), numbers(2 * D), torch.randn(200, M, D, dtype=torch.float64)
    merged = merge_gaussians(first, second)
    product = diagonal_gaussian(first).log_prob(z) + diagonal_gaussian(second).log_prob(z)
    gap = product - diagonal_gaussian(merged).log_prob(z)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))
    torch.testing.assert_close(merge_gaussians(second, first), merged)


def test_merged_gaussians_follow_the_sharp_one_with_finite_gradients() -> None:
    sharp = torch.tensor([[2.0, -60.0]], requires_grad=True)
    wide = torch.tensor([[-5.0, 60.0]], requires_grad=True)
    for merged in (merge_gaussians(sharp, wide), merge_gaussians(wide, sharp)):
        torch.testing.assert_close(merged, torch.tensor([[2.0, -60.0]]))
        (gradient,) = torch.autograd.grad(merged.sum(), sharp)
        assert gradient.isfinite().all()


# --- flows on them


@every_flow
def test_flow_posterior_density_has_the_log_determinant_of_autograd(flow: Callable[[], Transform]) -> None:
    latent, parameters = with_flow(flow), numbers(2 * D + C)
    context = parameters[:, 2 * D :]
    q = diagonal_gaussian(parameters[:, : 2 * D])
    torch.manual_seed(1)
    start = q.sample()
    torch.manual_seed(1)
    z, log_q = latent.sample(parameters)
    assert latent.transform is not None
    transform = latent.transform
    torch.testing.assert_close(z, transform(start, context)[0])
    for row in range(M):
        one = context[row : row + 1]
        matrix = jacobian(lambda x, one=one: transform(x.unsqueeze(0), one)[0][0], start[row])
        torch.testing.assert_close(log_q[row], q.log_prob(start)[row] - torch.linalg.slogdet(matrix).logabsdet)
    torch.manual_seed(1)
    again, kl = latent.draw(parameters)
    assert torch.equal(again, z)
    torch.testing.assert_close(kl, log_q - standard_gaussian(z).log_prob(z))


@every_flow
@torch.no_grad()
def test_flow_posterior_rows_are_independent(flow: Callable[[], Transform]) -> None:
    latent, parameters = with_flow(flow), numbers(2 * D + C)
    other = parameters.clone()
    other[2] += 0.5
    results = []
    for given in (parameters, other):
        torch.manual_seed(1)
        results.append(torch.cat([*latent.sample(given)[:1], latent.sample(given)[1].unsqueeze(1)], dim=1))
    changed = (results[0] - results[1]).abs() > 1e-12
    assert changed[2].all() and not changed[[0, 1, 3, 4]].any()


@every_flow
@torch.no_grad()
def test_flow_posterior_density_integrates_to_one(flow: Callable[[], Transform]) -> None:
    # the mean of p(z) / q(z) under q is 1, for any density p that q covers
    latent = with_flow(flow)
    parameters = numbers(2 * D + C, 1)
    parameters[:, D : 2 * D] = 0.5
    z, log_q = latent.sample(parameters.expand(50_000, -1))
    log_p = torch.distributions.Normal(z.median(dim=0).values, 0.5 * z.std(dim=0)).log_prob(z).sum(dim=1)
    assert_mean((log_p - log_q).exp(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("width", [1, D - 1, D + 1])
def test_flow_posterior_of_another_width_is_refused(width: int) -> None:
    for transform in (
        Planar(width),
        FullLinear(width),
        ActNorm(width),
        CompositeTransform([Planar(width), Planar(width)]),
    ):
        with pytest.raises(ValueError, match=f"flow must map vectors of width {D}"):
            GaussianLatent(D, transform)


def test_flow_posterior_of_another_context_width_is_refused() -> None:
    for transform, context in ((Planar(D, C), C + 1), (Planar(D, C), 0), (coupling(), 0), (coupling(), C + 1)):
        with pytest.raises(ValueError, match="width"):
            GaussianLatent(D, transform, context)


def test_flow_posterior_check_leaves_the_flow_unchanged() -> None:
    norm = ActNorm(D)
    flow = CompositeTransform([norm, Planar(D)])
    GaussianLatent(D, flow)
    assert not norm.initialized and norm.log_scale.abs().max() == 0
    assert all(module.training for module in flow.modules())
    assert not GaussianLatent(D, Planar(D).eval()).transform.training  # type: ignore[union-attr]


# --- categories


def categorical(temperature: float = 0.5) -> CategoricalLatent:
    torch.manual_seed(0)
    return CategoricalLatent(2, 3, Temperature(temperature)).double()


@torch.no_grad()
def test_categorical_divergence_equals_its_monte_carlo_estimate() -> None:
    latent = categorical().eval()
    logits = 2 * numbers(6)
    _, exact = latent.draw(logits)
    q = logits.view(M, 2, 3).softmax(dim=2)
    torch.testing.assert_close(exact, (q * (q * 3).log()).sum(dim=(1, 2)))
    _, estimates = latent.draw(logits.repeat(10_000, 1), analytic=False)
    assert_mean(estimates.view(10_000, M), exact)


@torch.no_grad()
def test_categorical_draws_are_one_hot_in_evaluation_and_follow_the_logits() -> None:
    latent = categorical().eval()
    logits = 2 * numbers(6)
    z, kl = latent.draw(logits.repeat(10_000, 1), analytic=False)
    z = z.view(10_000, M, 2, 3)
    assert set(z.unique().tolist()) == {0.0, 1.0} and (z.sum(dim=3) == 1).all()
    q = logits.view(M, 2, 3).softmax(dim=2)
    torch.testing.assert_close(z.mean(dim=0), q, rtol=0, atol=0.025)
    torch.testing.assert_close(kl.view(10_000, M), (z * (q * 3).log()).sum(dim=(2, 3)))


def test_categorical_draws_are_relaxed_in_training_with_gradients() -> None:
    logits = numbers(6, 400).requires_grad_()
    sharpness = []
    for temperature in (5.0, 0.5, 0.02):
        z, kl = categorical(temperature).draw(logits)
        blocks = z.view(400, 2, 3)
        torch.testing.assert_close(blocks.sum(dim=2), torch.ones(400, 2, dtype=torch.float64))
        sharpness.append(float(blocks.detach().max(dim=2).values.mean()))
        for value in (z.square().sum(), kl.sum()):
            (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
            assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert sharpness == sorted(sharpness) and sharpness[0] < 0.5 and sharpness[2] > 0.98
    z, kl = categorical().draw(logits, analytic=False)
    log_q = logits.view(400, 2, 3).log_softmax(dim=2)
    torch.testing.assert_close(kl, (z.view(400, 2, 3) * (log_q + math.log(3))).sum(dim=(1, 2)))  # at the draw


def test_categorical_prior_is_uniform() -> None:
    z = categorical().sample_prior(9000, torch.zeros(1, dtype=torch.float64))
    assert z.shape == (9000, 6) and z.dtype == torch.float64
    torch.testing.assert_close(z.mean(dim=0), torch.full((6,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.025)


# --- temperatures


def test_temperature_anneals_geometrically() -> None:
    temperature = Temperature(2.0, 0.5)
    for done, value in ((0.0, 2.0), (0.25, 2**0.5), (0.5, 1.0), (1.0, 0.5), (1.5, 0.5), (-1.0, 2.0)):
        temperature.anneal(done)
        assert math.isclose(float(temperature.value), value, rel_tol=1e-6)
    fixed = Temperature(0.7)
    fixed.anneal(0.6)
    assert math.isclose(float(fixed.value), 0.7, rel_tol=1e-6)


def test_temperature_is_saved_in_the_state() -> None:
    temperature, loaded = Temperature(2.0, 0.5), Temperature(2.0, 0.5)
    temperature.anneal(0.5)
    loaded.load_state_dict(temperature.state_dict())
    assert loaded.value == temperature.value and not list(temperature.parameters())
