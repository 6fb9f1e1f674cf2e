"""Pixel likelihoods: they are densities, on the scale that their flags promise."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from scnf.distributions import LIKELIHOODS, PixelLikelihood
from scnf.distributions.pixels import BernoulliPixels, DiscretizedLogistic, GaussianPixels, LogisticPixels

IMAGE = (1, 2, 3)
IMAGES = ["bernoulli", "logistic", "gaussian"]


def numbers(likelihood: PixelLikelihood, rows: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, likelihood.numbers * math.prod(likelihood.shape), dtype=torch.float64)


def centres(levels: int) -> Tensor:
    return (torch.arange(levels, dtype=torch.float64) + 0.5) / levels


# --- the discretised logistic


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_logistic_masses_sum_to_one(levels: int) -> None:
    means = torch.tensor([-1e4, -30, -1, -0.01, 0, 0.2, 0.5, 0.998, 1, 1.3, 50, 1e4], dtype=torch.float64)
    log_scales = torch.tensor([-12, -7, -5, -3, -1, 0, 3, 8], dtype=torch.float64)
    mean, log_scale = (values.unsqueeze(-1) for values in torch.meshgrid(means, log_scales, indexing="ij"))
    log_density = DiscretizedLogistic(mean, log_scale, levels).log_prob(centres(levels).expand(12, 8, levels))
    assert log_density.isfinite().all()
    total = log_density.logsumexp(dim=2) - math.log(levels)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10)


def test_logistic_has_no_density_outside_of_its_support() -> None:
    logistic = DiscretizedLogistic(torch.tensor(0.4), torch.tensor(-2.0), 5)
    density = logistic.log_prob(torch.tensor([-0.01, 0.0, 0.3, 1.0, 1.01]))
    assert density.isfinite().tolist() == [False, True, True, True, False] and (density[[0, 4]] == -math.inf).all()


def test_logistic_masses_are_differences_of_the_cumulative_function() -> None:
    mean, scale, levels = 0.4, 0.1, 5
    edges = torch.sigmoid((torch.arange(1, levels, dtype=torch.float64) / levels - mean) / scale)
    ends = torch.tensor([0.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    masses = torch.cat([ends[0], edges, ends[1]]).diff()
    cells = DiscretizedLogistic(torch.tensor(mean), torch.tensor(scale).log(), levels)
    torch.testing.assert_close(cells.log_prob(centres(levels)).exp() / levels, masses, rtol=1e-6, atol=0)


def test_logistic_density_is_constant_on_a_cell_and_jumps_between_cells() -> None:
    inside = torch.tensor([0.0, 0.3, 0.7, 0.999], dtype=torch.float64)
    x = (torch.arange(16, dtype=torch.float64).unsqueeze(1) + inside) / 16
    density = DiscretizedLogistic(torch.tensor(0.43), torch.tensor(-2.0), 16).log_prob(x)
    assert (density == density[:, :1]).all()
    assert (density[1:, 0] != density[:-1, 0]).all()


def test_logistic_stays_finite_in_single_precision_with_gradients() -> None:
    likelihood = LogisticPixels((4,), 256)
    extreme = [[0.0, 1e3, -1e3, 0.5, 9, -30, -9, 40], [-0.5, 0.5, 0.2, 0, -9, -9, -9, -9]]
    parameters = torch.tensor(extreme, requires_grad=True)
    log_prob = likelihood.log_prob(torch.tensor([[0.0, 0.5, 0.25, 0.999]]).expand(2, 4), parameters)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert parameters.grad is not None and parameters.grad.isfinite().all()


def test_logistic_samples_fill_cells_by_their_mass() -> None:
    cells = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(-1.5), 8)
    samples = cells.sample((50_000,))
    assert samples.shape == (50_000,) and samples.min() >= 0 and samples.max() < 1
    shares = (samples * 8).long().bincount(minlength=8) / 50_000
    masses = cells.log_prob(centres(8)).exp().float() / 8
    torch.testing.assert_close(shares, masses, rtol=0, atol=0.01)
    torch.testing.assert_close((samples * 8).frac().mean(), torch.tensor(0.5), rtol=0, atol=0.01)
    assert DiscretizedLogistic(torch.tensor([-3.0, 0.3, 9.0]), torch.zeros(3), 8).mean.tolist() == pytest.approx(
        [0, 0.3, 1]
    )


# --- all are densities


def test_bernoulli_probabilities_sum_to_one() -> None:
    likelihood = BernoulliPixels((3,), 256)
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    parameters = numbers(likelihood, 1, 3.0)
    log_prob = likelihood.log_prob(images, parameters.expand(8, -1))
    torch.testing.assert_close(log_prob.logsumexp(dim=0), torch.zeros((), dtype=torch.float64))
    probability = parameters.sigmoid()
    expected = torch.where(images == 1, probability, 1 - probability).log().sum(dim=1)
    torch.testing.assert_close(log_prob, expected)


@pytest.mark.parametrize("levels", [None, 256])
def test_gaussian_density_integrates_to_one(levels: int | None) -> None:
    likelihood = GaussianPixels((2,), levels)
    axis = torch.linspace(-30, 30, 3001, dtype=torch.float64)
    for parameters in numbers(likelihood, 3, 0.7).split(1):
        distribution = likelihood.distribution(parameters)
        mean, deviation = distribution.mean[0], distribution.variance[0].sqrt()
        grid = torch.cartesian_prod(*(m + s * axis[::10] / 3 for m, s in zip(mean, deviation, strict=True)))
        area = float(deviation.prod()) * (60 / 300 / 3) ** 2
        mass = likelihood.log_prob(grid, parameters.expand(len(grid), -1)).exp().sum() * area
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", IMAGES)
def test_pixel_likelihood_of_a_row_is_the_sum_over_its_values(name: str) -> None:
    likelihood, alone = LIKELIHOODS[name](IMAGE, 17), LIKELIHOODS[name]((1,), 17)
    parameters = numbers(likelihood, 4)
    seen = likelihood.observe(torch.rand(4, *IMAGE, dtype=torch.float64))
    own = parameters.view(4, likelihood.numbers, 6).transpose(1, 2)
    parts = [alone.log_prob(seen.flatten(1)[:, [i]], own[:, i]) for i in range(6)]
    torch.testing.assert_close(likelihood.log_prob(seen, parameters), torch.stack(parts).sum(dim=0))


@pytest.mark.parametrize("name", IMAGES)
def test_pixel_likelihood_mean_is_that_of_samples(name: str) -> None:
    likelihood = LIKELIHOODS[name](IMAGE, 256)
    parameters = numbers(likelihood, 1, 0.1)
    if name == "logistic":
        parameters[:, 6:] -= 3  # narrow, or the tails that are cut off move the mean
    mean = likelihood.mean(parameters)
    assert mean.shape == (1, *IMAGE)
    samples = likelihood.distribution(parameters).sample((20_000,))
    error = (samples.mean(dim=0) - mean.flatten(1)).abs() / samples.std(dim=0)
    assert (error < 4 / 20_000**0.5 + 0.01).all()
    assert name != "bernoulli" or (mean.min() > 0 and mean.max() < 1)


def test_gaussian_pixel_samples_have_the_given_mean_and_scale() -> None:
    parameters = torch.tensor([[0.3, -1.0, 0.5, -0.7]], dtype=torch.float64)
    points = GaussianPixels((2,), None).distribution(parameters).sample((20_000,))[:, 0]
    torch.testing.assert_close(points.mean(dim=0), parameters[0, :2], rtol=0, atol=0.05)
    torch.testing.assert_close(points.std(dim=0), parameters[0, 2:].exp(), rtol=0.03, atol=0)
    pixels = GaussianPixels((2,), 256).distribution(torch.zeros_like(parameters))
    torch.testing.assert_close(pixels.mean, torch.full((1, 2), 0.5, dtype=torch.float64))
    torch.testing.assert_close(pixels.variance.sqrt(), torch.full((1, 2), math.exp(-2), dtype=torch.float64))


# --- what is observed


def test_bernoulli_observes_binary_images_without_bias() -> None:
    likelihood = BernoulliPixels((17,), 17)
    levels = torch.arange(17)
    draws = torch.stack([likelihood.observe((levels + torch.rand(17)) / 17) for _ in range(20_000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(dim=0), levels / 16, rtol=0, atol=0.016)
    assert draws[:, 0].max() == 0 and draws[:, 16].min() == 1


@pytest.mark.parametrize("name", ["logistic", "gaussian"])
def test_pixel_likelihoods_but_bernoulli_observe_images_unchanged(name: str) -> None:
    x = torch.rand(3, *IMAGE)
    assert torch.equal(LIKELIHOODS[name](IMAGE, 256).observe(x), x)


def test_comparable_likelihoods_share_one_scale() -> None:
    assert {name: cls.comparable for name, cls in LIKELIHOODS.items()} == {
        "bernoulli": False,
        "logistic": True,
        "gaussian": True,
    }
    # a wide logistic and a uniform density agree: log 1 = 0
    logistic = LogisticPixels((1,), 256)
    x = torch.tensor([[0.2]], dtype=torch.float64)
    uniform = DiscretizedLogistic(torch.tensor(0.5), torch.tensor(5.0), 2).log_prob(x)
    torch.testing.assert_close(uniform, torch.zeros_like(x), rtol=0, atol=1e-4)
    # a fine one and the continuous logistic density agree
    parameters = torch.tensor([[0.1, 0.3]], dtype=torch.float64)
    scale = math.exp(0.3 - 2)
    place = (x[:, 0] - 0.6) / scale
    continuous = -place - 2 * torch.nn.functional.softplus(-place) - math.log(scale)
    torch.testing.assert_close(logistic.log_prob(x, parameters), continuous, rtol=0, atol=0.02)


# --- what is refused


@pytest.mark.parametrize("name", ["bernoulli", "logistic"])
def test_pixel_likelihood_refuses_standardised_pixels(name: str) -> None:
    likelihood = LIKELIHOODS[name](IMAGE, 256)
    likelihood.check(torch.tensor([0.0, 0.4, 1.0]))
    for x in (torch.tensor([-0.42, 0.5]), torch.tensor([0.1, 2.8])):
        with pytest.raises(ValueError, match=rf"pixels in \[0, 1\] for a {name} likelihood.*do not standardise them"):
            likelihood.check(x)


def test_gaussian_likelihood_of_points_takes_any_values() -> None:
    GaussianPixels((2,), None).check(torch.tensor([[-7.0, 30.0]]))


@pytest.mark.parametrize("name", ["bernoulli", "logistic"])
def test_pixel_likelihoods_but_gaussian_refuse_points(name: str) -> None:
    with pytest.raises(ValueError, match=f"likelihood must be gaussian for points, not {name}"):
        LIKELIHOODS[name]((2,), None)
