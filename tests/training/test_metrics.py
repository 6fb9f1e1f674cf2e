import itertools
import math

import pytest
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.errors import NotFinite
from scnf.models.base import JointModel
from scnf.recipes import build
from scnf.training.metrics import (
    NOISE_DRAWS,
    bits_per_dim,
    check_metrics,
    evaluate,
    expected_calibration_error,
    noisy_batches,
)


@pytest.mark.parametrize(
    ("log_likelihood", "dims", "levels", "expected"),
    [
        (0.0, 784, 256, 8.0),  # uniform over [0, 1): as many bits as a grey level takes
        (0.0, 5, 2, 1.0),
        (64 * math.log(2.0), 64, 256, 7.0),  # twice the density: a bit less
        (100 * math.log(256.0), 100, 256, 0.0),  # all mass on one grey level
        (-3.0, 2, 16, 4 + 1.5 / math.log(2)),
    ],
)
def test_bits_per_dim_equals_values_computed_by_hand(
    log_likelihood: float, dims: int, levels: int, expected: float
) -> None:
    assert bits_per_dim(log_likelihood, dims, levels) == pytest.approx(expected)
    found = bits_per_dim(torch.tensor([log_likelihood]), dims, levels)
    assert isinstance(found, Tensor) and found.item() == pytest.approx(expected, abs=1e-5)


def test_calibration_error_equals_value_computed_by_hand() -> None:
    probs = torch.tensor([[0.95, 0.05], [0.9, 0.1], [0.55, 0.45], [0.3, 0.7], [0.45, 0.55]])
    y = torch.tensor([0, 1, 0, 1, 0])
    # Bins of width 0.2: (0.8, 1]: 0.95 right, 0.9 wrong; (0.6, 0.8]: 0.7 right; (0.4, 0.6]: 0.55 right, 0.55 wrong.
    expected = (abs(1 - 0.95 - 0.9) + abs(1 - 0.7) + abs(1 - 0.55 - 0.55)) / 5
    assert expected_calibration_error(probs.log(), y, bins=5) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_certain_predictions_is_their_error_rate() -> None:
    sure = torch.tensor([[1.0, 0.0]]).repeat(4, 1).log()
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 0])) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 1, 1, 1])) == 1
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 1])) == 0.25


@pytest.fixture
def model() -> JointModel:
    model = build("scnf-digits", (1, 4, 4), 3, channels=8, steps=2, conditional_hidden=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.initialize(torch.rand(20, 1, 4, 4), torch.full((20,), UNLABELLED))
    return model


X = torch.randint(17, (53, 1, 4, 4), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
Y = torch.arange(53) % 3


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_is_repeatable_and_changes_no_state(model: JointModel, training: bool) -> None:
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = evaluate(model, X, Y, levels=17)
    assert torch.equal(torch.get_rng_state(), state) and model.training is training
    torch.manual_seed(2)
    assert evaluate(model, X, Y, levels=17) == first
    assert evaluate(model, X, Y, levels=17, seed=1) != first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def test_views_are_averaged_with_the_image_itself(model: JointModel) -> None:
    batches = [next(noisy_batches(X, 17, 100, 0))]
    batches += [next(noisy_batches(X, 17, 100, 1_000_003 * view, 2.0)) for view in (1, 2, 3)]
    levels = [(17 * batch).floor() for batch in batches]
    assert all(bool((one != other).any()) for one, other in itertools.combinations(levels, 2))
    model.eval()
    found = sum(model(Batch.unlabelled(batch)).class_log_probs.exp() for batch in batches).argmax(dim=1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    figures = evaluate(model, X, found, 17, views=3, augment=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    plain = evaluate(model, X, found, 17)
    assert plain["accuracy"] < 1 and figures == {**plain, "views_accuracy": 1.0}


def test_evaluate_refuses_views_without_augmentation(model: JointModel) -> None:
    with pytest.raises(ValueError, match=r"augment must be above 0"):
        evaluate(model, X, Y, 17, views=2)


class Broken(JointModel):
    """log p(x) is as it is told, and the posterior no number where nothing else is asked for, as of moved images."""

    exact = True
    num_classes = 3

    def __init__(self, nats: float) -> None:
        super().__init__()
        self.nats = nats

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
        posterior = torch.full((len(x), 3), -math.log(3.0) if len(y) else math.nan)
        return torch.full((len(y),), self.nats), posterior, None


def test_nan_figures_are_refused_by_name() -> None:
    with pytest.raises(NotFinite, match=r"^test: nll, bits_per_dim, bits_per_dim_over_draws came out as NaN"):
        check_metrics(evaluate(Broken(math.nan), X, Y, 17, draws=2), "test")
    with pytest.raises(NotFinite, match=r"^test: views_accuracy came out as NaN"):
        check_metrics(evaluate(Broken(0.0), X, Y, 17, views=1, augment=1.0), "test")


def test_infinite_figures_of_density_zero_are_accepted() -> None:
    figures = evaluate(Broken(-math.inf), X, Y, 17, draws=2)
    check_metrics(figures, "test")
    assert figures["nll"] == figures["bits_per_dim_over_draws"] == math.inf


# --- several draws of the noise


def test_draws_are_averaged_in_probability_and_each_has_a_seed_of_its_own(model: JointModel) -> None:
    seeds = [1_000_003 * draw for draw in range(4)]
    alone = [evaluate(model, X, Y, 17, 20, seed) for seed in seeds]
    figures = evaluate(model, X, Y, 17, 20, draws=4)
    accuracies = torch.tensor([each["accuracy"] for each in alone], dtype=torch.double)
    assert len({each["nll"] for each in alone}) == 4  # accuracies may happen to be the same
    assert figures["one_draw_accuracy"] == pytest.approx(accuracies.mean().item())
    assert figures["one_draw_accuracy_std"] == pytest.approx(accuracies.std().item())
    for key in ("nll", "bits_per_dim"):  # the mean of what one draw says
        assert figures[key] == pytest.approx(sum(each[key] for each in alone) / 4, rel=1e-12)  # summed in float64
    with torch.no_grad():
        outputs = [model.eval()(Batch.unlabelled(torch.cat([*noisy_batches(X, 17, 20, seed)]))) for seed in seeds]
    posterior = sum(output.class_log_probs.double().exp() for output in outputs) / 4
    assert figures["accuracy"] == (posterior.argmax(dim=1) == Y).double().mean().item()
    assert figures["ece"] == pytest.approx(expected_calibration_error(posterior.log(), Y), abs=1e-5)
    log_mean = torch.stack([output.log_likelihood.double() for output in outputs]).logsumexp(dim=0) - math.log(4)
    assert figures["bits_per_dim_over_draws"] == pytest.approx(bits_per_dim(log_mean.mean().item(), 16, 17), abs=1e-6)
    assert figures["bits_per_dim_over_draws"] < figures["bits_per_dim"]


class Ramp(JointModel):
    """One pixel of density 2 x on [0, 1): of L grey levels, v has the probability (2 v + 1) / L^2."""

    exact = True
    num_classes = 2

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
        return (2 * x).log().flatten(), torch.tensor([[0.5, 0.5]]).log().expand(len(x), 2), None


def test_bound_over_draws_comes_to_the_code_length() -> None:
    x = torch.zeros(2000, 1, 1, 1, dtype=torch.uint8)  # level 0 of 4: 1/16, 4 bits; one draw: 3 + 1 / log 2 on average
    figures = evaluate(Ramp(), x, torch.zeros(2000, dtype=torch.long), levels=4, draws=64)
    assert figures["bits_per_dim"] == pytest.approx(3 + 1 / math.log(2), abs=0.02)  # five standard errors
    assert figures["bits_per_dim_over_draws"] == pytest.approx(4.0, abs=0.02)


def test_bound_over_draws_of_a_variational_model_is_of_unbiased_estimates() -> None:
    model = build("m2", (1, 4, 4), 3, levels=17, hidden=16, latent=4, likelihood="logistic").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        estimates = []
        for draw in range(3):
            for batch in noisy_batches(X, 17, 100, 1_000_003 * draw):
                model(Batch.unlabelled(batch))  # latents of the ELBO are drawn first
                estimates.append(model.log_likelihood(batch))
    log_mean = torch.stack(estimates).logsumexp(dim=0).mean().item() - math.log(3)
    figures = evaluate(model, X, Y, 17, draws=3)
    assert figures["bits_per_dim_over_draws"] == pytest.approx(bits_per_dim(log_mean, 16, 17), abs=1e-5)


def test_points_have_one_draw_unless_latents_are_drawn() -> None:
    points, y = torch.randn(30, 2), torch.arange(30) % 2
    flow = build("scnf-toy", (2,), 2)
    assert evaluate(flow, points, y, None, draws=NOISE_DRAWS) == evaluate(flow, points, y, None)
    m1 = build("m1", (2,), 2, hidden=8, latent=2, likelihood="gaussian")
    figures = evaluate(m1, points, y, None, draws=NOISE_DRAWS)
    assert set(figures) == {"accuracy", "one_draw_accuracy", "one_draw_accuracy_std", "nll", "ece"}


@pytest.mark.parametrize("batch_size", [1, 7, 52, 53, 1000])
def test_evaluate_does_not_depend_on_its_batches(model: JointModel, batch_size: int) -> None:
    points = X.flatten(1).float()[:, :2]
    for network, x, levels in ((model, X, 17), (build("scnf-toy", (2,), 3), points, None)):
        whole, parts = evaluate(network, x, Y, levels), evaluate(network, x, Y, levels, batch_size)
        assert parts == pytest.approx(whole, rel=1e-5)  # the noise is the same, sums in float32 are in another order


def test_evaluate_gives_likelihoods_that_ignore_labels(model: JointModel) -> None:
    first, other = evaluate(model, X, Y, 17), evaluate(model, X, (Y + 1) % 3, 17)
    assert (first["nll"], first["bits_per_dim"]) == (other["nll"], other["bits_per_dim"])
    assert first["accuracy"] != other["accuracy"]


class Fixed(JointModel):
    """Answers from the first pixel, and remembers which labels it was shown."""

    exact = True
    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
        self.seen.append(y)
        right = x[:, 0, 0, 0] < 0.5
        probs = torch.where(right.unsqueeze(1), torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6]))
        return torch.full((len(x),), -8 * math.log(4.0)), probs.log(), None


def test_evaluate_gives_figures_computed_by_hand() -> None:
    x = torch.tensor([0, 0, 0, 3], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 2, 2, 2)
    model = Fixed()
    figures = evaluate(model, x, torch.tensor([0, 0, 1, 1]), levels=4)
    assert figures == pytest.approx(
        {"accuracy": 0.75, "nll": 8 * math.log(4.0), "bits_per_dim": 4.0, "ece": (abs(2 - 2.4) + 0.4) / 4}, abs=1e-6
    )
    assert model.seen and all((y == UNLABELLED).all() for y in model.seen)


def test_points_have_no_bits_per_dim() -> None:
    assert set(evaluate(build("scnf-toy", (2,), 2), torch.randn(9, 2), torch.arange(9) % 2, None)) == {
        "accuracy",
        "nll",
        "ece",
    }


def test_binary_images_are_the_same_in_every_pass() -> None:
    x = torch.randint(256, (30, 1, 4, 4), dtype=torch.uint8)

    def binary(draws: int) -> Tensor:
        seen = []
        for batch in noisy_batches(x, 256, 10, seed=3):
            seen.append(torch.bernoulli(batch))
            torch.randn(draws)  # what a model draws after that
        return torch.cat(seen)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(binary(1), binary(1000)) and torch.equal(torch.get_rng_state(), before)
