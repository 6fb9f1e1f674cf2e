"""Bounds of linear-Gaussian models, whose likelihood is known, around networks that a user wrote."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.distributions import ClassPrior, GaussianLatent, LabelDraw, make_label_draw
from scnf.distributions.pixels import GaussianPixels
from scnf.models.base import JointOutput
from scnf.models.ladder import Ladder
from scnf.models.m2 import ADGM, M1M2, M2
from scnf.models.vae import VAE
from scnf.models.variational import VariationalModel
from scnf.nn import MLP
from scnf.objectives import Weights, semi_supervised_loss
from scnf.transforms import CompositeTransform, FullLinear, Planar, Transform, two_way_coupling

X, Z, K, A = 3, 2, 3, 2  # widths of x, z, y and of an auxiliary variable
NOISE = 0.5  # of x given z
MIDDLE = 0.6  # of z_1 given z_2
PRIOR = (0.5, 0.3, 0.2)


class LinearGaussian(nn.Module):
    """Means `matrix` inputs + offset + `by_context` context, and log-scales that are constant."""

    def __init__(self, matrix: Tensor, offset: Tensor, log_scale: Tensor | float, by_context: Tensor | None = None):
        super().__init__()
        self.matrix, self.offset = nn.Parameter(matrix.clone()), nn.Parameter(offset.clone())
        self.log_scale = nn.Parameter(torch.as_tensor(log_scale, dtype=matrix.dtype).expand(len(matrix)).clone())
        self.by_context = None if by_context is None else nn.Parameter(by_context.clone())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        mean = inputs @ self.matrix.t() + self.offset
        if context is not None:
            assert self.by_context is not None
            mean = mean + context @ self.by_context.t()
        return torch.cat([mean, self.log_scale.expand_as(mean)], dim=1)


class WithContext(nn.Module):
    """The numbers of a head, and a context for a flow."""

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.head, self.context = head, nn.Linear(X, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.head(inputs), torch.tanh(self.context(inputs))], dim=1)


class Discriminant(nn.Module):
    """Class logits: `sharpness` times a known log p(x, y), and something of a context."""

    def __init__(self, log_joint: Callable[[Tensor], Tensor], sharpness: float, by_context: float = 0.0) -> None:
        super().__init__()
        self.log_joint, self.by_context = log_joint, by_context
        self.sharpness = nn.Parameter(torch.tensor(sharpness, dtype=torch.float64))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        logits = self.sharpness * self.log_joint(inputs)
        if context is None:
            return logits
        return logits + self.by_context * torch.nn.functional.pad(context, (0, K - A))


class Constant(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tensor(PRIOR, dtype=inputs.dtype).log().expand(len(inputs), -1)


def columns(*norms: float, rows: int = X) -> Tensor:
    """Orthogonal columns [rows, len(norms)]: of two Gaussian variables, the posterior stays diagonal."""
    basis = torch.linalg.qr(torch.randn(rows, len(norms), dtype=torch.float64)).Q
    return basis * torch.tensor(norms, dtype=torch.float64)


def normal(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


def marginal(means: Tensor, covariance: Tensor) -> Callable[[Tensor], Tensor]:
    """x [N, D] -> log p(x, y) [N, K], for means [K, D] and one covariance."""
    log_prior = torch.tensor(PRIOR, dtype=torch.float64).log()
    return lambda x: MultivariateNormal(means, covariance).log_prob(x.unsqueeze(1)) + log_prior


def posterior_of(matrix: Tensor, means: Tensor, noise: float | Tensor, loose: bool, extra: int = 0) -> LinearGaussian:
    """q(z | x, y) for p(z) = N(0, 1), p(x | z, y) = N(matrix z + means_y, noise^2); exact, or wider and beside it."""
    precision = noise**-2 * torch.ones(len(matrix), dtype=torch.float64)
    covariance = (
        torch.eye(matrix.shape[1], dtype=torch.float64) + matrix.t() @ (precision[:, None] * matrix)
    ).inverse()
    assert loose or (covariance - covariance.diag().diag()).abs().max() < 1e-12
    back = covariance @ matrix.t() * precision
    by_context = torch.cat([-back @ means.t(), loose * 0.2 * normal(matrix.shape[1], extra)], dim=1)
    return LinearGaussian(
        back, loose * 0.3 * normal(len(back)), 0.5 * covariance.diag().log() + loose * 0.3, by_context
    )


class Case(NamedTuple):
    model: VariationalModel
    log_joint: Callable[[Tensor], Tensor]  # x [N, X] -> log p(x, y) [N, K]


def vae(loose: bool, flow: Callable[[], Transform] | None = None, **samples: int) -> Case:
    matrix, mean = columns(1.2, 0.7), normal(X)
    head: nn.Module = posterior_of(matrix, torch.zeros(K, X, dtype=torch.float64), NOISE, loose)
    head.offset.data -= head.matrix.data @ mean
    latent = GaussianLatent(Z)
    if flow is not None:
        latent, head = GaussianLatent(Z, flow(), A), WithContext(head, A).double()
        with torch.no_grad():
            head.head.log_scale.add_(0.8)  # wide enough for planar flows, which narrow it
            for parameter in latent.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    decoder = LinearGaussian(matrix, mean, math.log(NOISE))
    ladder = Ladder([nn.Identity()], [head], [latent])
    model = VAE(GaussianPixels((X,), None), ladder, decoder, Constant(), K, **samples)
    covariance = matrix @ matrix.t() + NOISE**2 * torch.eye(X, dtype=torch.float64)
    return Case(model.double(), marginal(mean.expand(K, -1), covariance))


def vae_with_full_covariance(loose: bool, **samples: int) -> Case:
    """A linear flow on the posterior makes any covariance: exact for a matrix whose columns are not orthogonal."""
    matrix, mean = normal(X, Z), normal(X)
    covariance = (torch.eye(Z, dtype=torch.float64) + matrix.t() @ matrix / NOISE**2).inverse()
    root = torch.linalg.cholesky(covariance)
    back = root.inverse() @ covariance @ matrix.t() / NOISE**2
    head = LinearGaussian(back, -back @ mean + loose * 0.3, loose * 0.3)
    flow = FullLinear(Z)
    latent = GaussianLatent(Z, flow).double()
    flow.weight.data = root
    ladder = Ladder([nn.Identity()], [head], [latent])
    decoder = LinearGaussian(matrix, mean, math.log(NOISE))
    model = VAE(GaussianPixels((X,), None), ladder, decoder, Constant(), K, **samples)
    covariance = matrix @ matrix.t() + NOISE**2 * torch.eye(X, dtype=torch.float64)
    return Case(model.double(), marginal(mean.expand(K, -1), covariance))


def two_layers(loose: bool, labels: bool, **samples: int) -> Case:
    """z_2 -> z_1 -> x, where the label, if any, moves z_1. Exact, as each conditional stays diagonal."""
    lower, upper, mean = columns(1.2, 0.7), torch.diag(torch.tensor([1.1, -0.6], dtype=torch.float64)), normal(X)
    shifts = normal(K, Z) if labels else normal(1, Z).expand(K, -1)
    norms = lower.square().sum(dim=0)
    back = (lower / norms).t()  # z_1 = back (x - mean), as x has it, give or take NOISE / |column|
    own = LinearGaussian(back, -back @ mean + loose * 0.3, math.log(NOISE) - 0.5 * norms.log() + loose * 0.4)
    top = posterior_of(upper, shifts, (MIDDLE**2 + NOISE**2 / norms).sqrt(), loose)
    top.offset.data -= top.matrix.data @ back @ mean
    top.matrix.data = top.matrix.data @ back
    if not labels:
        assert top.by_context is not None
        top.offset.data += top.by_context.data[:, 0]
    between = LinearGaussian(upper, torch.zeros(Z, dtype=torch.float64), math.log(MIDDLE), shifts.t())
    if not labels:
        between.offset.data += shifts[0]
    ladder = Ladder([nn.Identity(), nn.Identity()], [own, top], [GaussianLatent(Z), GaussianLatent(Z)], [between])
    eye = torch.eye(Z, dtype=torch.float64)
    covariance = lower @ (upper @ upper.t() + MIDDLE**2 * eye) @ lower.t() + NOISE**2 * torch.eye(
        X, dtype=torch.float64
    )
    truth = marginal(mean + shifts @ lower.t(), covariance)
    by_label = torch.zeros(X, K, dtype=torch.float64)
    decoder = LinearGaussian(lower, mean, math.log(NOISE), by_label)
    likelihood = GaussianPixels((X,), None)
    if not labels:
        return Case(VAE(likelihood, ladder, decoder, Constant(), K, **samples).double(), truth)
    classifier = Discriminant(truth, 0.5 if loose else 1.0)
    return Case(M2(likelihood, ClassPrior(K, PRIOR), ladder, decoder, classifier, **samples).double(), truth)


def m2(
    loose: bool, width: int = X, same: bool = False, labels: LabelDraw | None = None, **samples: int
) -> tuple[M2, Tensor, Tensor]:
    """(model, means [K, width], covariance)."""
    matrix = columns(1.2, 0.7, rows=width) if width > Z else torch.diag(torch.tensor([1.2, 0.7]).double())
    means = normal(1, width).expand(K, -1) if same else normal(K, width)
    covariance = matrix @ matrix.t() + NOISE**2 * torch.eye(width, dtype=torch.float64)
    head = posterior_of(matrix, means, NOISE, loose)
    decoder = LinearGaussian(matrix, torch.zeros(width, dtype=torch.float64), math.log(NOISE), means.t())
    model = M2(
        GaussianPixels((width,), None),
        ClassPrior(K, PRIOR),
        Ladder([nn.Identity()], [head], [GaussianLatent(Z)]),
        decoder,
        Discriminant(marginal(means, covariance), 0.5 if loose else 1.0),
        labels,
        **samples,
    )
    return model.double(), means, covariance


def m2_case(loose: bool, **samples: int) -> Case:
    model, means, covariance = m2(loose, **samples)
    return Case(model, marginal(means, covariance))


def adgm(loose: bool, **samples: int) -> Case:
    """An auxiliary variable, whatever its prior and posterior, leaves p(x, y) as it is."""
    inner, means, covariance = m2(loose)
    truth = marginal(means, covariance)
    posterior = LinearGaussian(0.3 * normal(A, X), normal(A), math.log(0.8))
    auxiliary_prior = LinearGaussian(
        posterior.matrix.detach() + loose * 0.1 * normal(A, X),
        posterior.offset.detach(),
        posterior.log_scale.detach() - loose * 0.2,
        loose * 0.1 * normal(A, K + Z),
    )
    matrix = inner.decoder.matrix.detach()  # type: ignore[union-attr, operator]
    model = ADGM(
        inner.likelihood,
        inner.prior,
        Ladder([nn.Identity()], [posterior_of(matrix, means, NOISE, loose, A)], [GaussianLatent(Z)]),
        inner.decoder,
        Discriminant(truth, 0.7 if loose else 1.0, loose * 0.5),
        auxiliary=GaussianLatent(A),
        posterior=posterior,
        auxiliary_prior=auxiliary_prior,
        **samples,
    )
    return Case(model.double(), truth)


def m1_m2(loose: bool, **samples: int) -> Case:
    """z_2 -> z_1 -> x. Where the label does not move z_1, its posterior is Gaussian and can be exact."""
    upper, means, middle = m2(loose, Z, same=not loose, **samples)
    lower, mean = columns(1.0, 0.8), normal(X)
    spread = middle.diag()
    assert (middle - spread.diag()).abs().max() < 1e-12
    precision = 1 / spread + lower.square().sum(dim=0) / NOISE**2
    back = (lower / precision).t() / NOISE**2
    centre = means[0] / spread / precision - back @ mean + loose * 0.2
    encoder = LinearGaussian(back, centre, -0.5 * precision.log() + loose * 0.3)
    decoder = LinearGaussian(lower, mean, math.log(NOISE))
    ladder = Ladder([nn.Identity()], [encoder], [GaussianLatent(Z)])
    m1 = VAE(GaussianPixels((X,), None), ladder, decoder, Constant(), K).double()
    covariance = lower @ middle @ lower.t() + NOISE**2 * torch.eye(X, dtype=torch.float64)
    return Case(M1M2(m1, upper), marginal(mean + means @ lower.t(), covariance))


def planar_flow() -> Transform:
    return CompositeTransform([Planar(Z, A), Planar(Z, A)])


def coupling_flow() -> Transform:
    return two_way_coupling(partial(MLP, hidden=4, blocks=0, context_features=A), Z)


EXACT: dict[str, Callable[..., Case]] = {
    "vae": vae,
    "vae-linear-flow": vae_with_full_covariance,
    "ladder-vae": partial(two_layers, labels=False),
    "m2": m2_case,
    "ladder-dgm": partial(two_layers, labels=True),
    "adgm": adgm,
    "m1-m2": m1_m2,
}
CASES = EXACT | {"vae-planar": partial(vae, flow=planar_flow), "vae-coupling": partial(vae, flow=coupling_flow)}
every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)
every_exact_case = pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)


def prepared(make: Callable[..., Case], **arguments: int) -> tuple[Case, Tensor]:
    """(case, x [3, X])."""
    torch.manual_seed(0)
    return make(**arguments), normal(3, X)


def mean_and_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of draws along the first axis, and never an error of exactly zero."""
    return draws.mean(dim=0), draws.std(dim=0) / len(draws) ** 0.5 + 1e-9


def hidden(x: Tensor) -> Tensor:
    return torch.full((len(x),), UNLABELLED)


# --- equality where the posterior is exact


@every_exact_case
@torch.no_grad()
def test_exact_posterior_gives_the_likelihood_with_any_draw(make: Callable[..., Case]) -> None:
    case, x = prepared(make, loose=False)
    truth = case.log_joint(x)
    for _ in range(3):
        torch.testing.assert_close(case.model.table(x, analytic=False).log_joint, truth, rtol=0, atol=1e-6)
        torch.testing.assert_close(case.model.log_likelihood(x), truth.logsumexp(dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(case.model.log_likelihood(x, 7), truth.logsumexp(dim=1), rtol=0, atol=1e-6)


@every_exact_case
@torch.no_grad()
def test_forward_with_an_exact_posterior_gives_rows_their_own_likelihood(make: Callable[..., Case]) -> None:
    # importance samples take no divergence in closed form: no noise is left, and rows must not mix
    case, x = prepared(make, loose=False, num_samples=3, importance_samples=2)
    truth, x = case.log_joint(x), x.repeat(K + 1, 1)
    y = torch.tensor([UNLABELLED, *range(K)]).repeat_interleave(3)
    output = case.model(Batch(x, y))
    expected = torch.cat([truth.logsumexp(dim=1), *truth.unbind(dim=1)])
    torch.testing.assert_close(output.log_likelihood, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.class_log_probs, truth.log_softmax(dim=1).repeat(K + 1, 1), rtol=0, atol=1e-6)


@every_exact_case
@torch.no_grad()
def test_bound_with_closed_form_divergences_averages_to_the_likelihood(make: Callable[..., Case]) -> None:
    case, x = prepared(make, loose=False)
    truth = case.log_joint(x)
    y = torch.tensor([UNLABELLED, *range(K)]).repeat_interleave(3)
    expected = torch.cat([truth.logsumexp(dim=1), *truth.unbind(dim=1)])
    output = case.model(Batch(x.repeat(K + 1, 1).repeat(4000, 1), y.repeat(4000)))
    mean, error = mean_and_error(output.log_likelihood.view(4000, -1))
    assert ((mean - expected).abs() < 4.5 * error + 1e-6).all(), (mean - expected) / error


# --- bounds elsewhere


@every_case
@torch.no_grad()
def test_importance_weights_average_to_the_probability(make: Callable[..., Case]) -> None:
    case, x = prepared(make, loose=True)
    log_joint = case.model.table(x.repeat(20_000, 1), analytic=False).log_joint.view(20_000, 3, K)
    mean, error = mean_and_error((log_joint - case.log_joint(x)).exp())
    assert ((mean - 1).abs() < 4.5 * error).all(), (mean - 1) / error
    assert error.max() < 0.05


@every_case
@torch.no_grad()
def test_importance_samples_tighten_log_likelihood_towards_the_truth(make: Callable[..., Case]) -> None:
    case, x = prepared(make, loose=True)
    truth = case.log_joint(x).logsumexp(dim=1)
    bounds = [(truth - 1e9, torch.zeros_like(truth))]
    for samples, repeats in ((1, 3000), (5, 2000), (50, 400), (500, 40)):
        values = case.model.log_likelihood(x.repeat(repeats, 1), samples).view(repeats, 3)
        bounds.append(mean_and_error(values))
    bounds.append((truth, torch.zeros_like(truth)))
    for (lower, error), (upper, upper_error) in itertools.pairwise(bounds):
        assert (lower - upper <= 4 * (error.square() + upper_error.square()).sqrt()).all(), bounds
    assert (bounds[1][0] < truth - 8 * bounds[1][1]).all(), "the bound should be loose at one sample"
    torch.testing.assert_close(bounds[4][0], truth, rtol=0, atol=0.04)


@every_case
@torch.no_grad()
def test_importance_samples_tighten_the_bound_of_forward(make: Callable[..., Case]) -> None:
    y = torch.tensor([UNLABELLED, *range(K)]).repeat_interleave(3)
    means = []
    for samples in (1, 10):
        case, x = prepared(make, loose=True, **({} if samples == 1 else {"importance_samples": samples}))
        truth = case.log_joint(x)
        expected = torch.cat([truth.logsumexp(dim=1), *truth.unbind(dim=1)])
        output = case.model(Batch(x.repeat(K + 1, 1).repeat(1000, 1), y.repeat(1000)))
        mean, error = mean_and_error(output.log_likelihood.view(1000, -1))
        assert (mean < expected + 4 * error).all()
        means.append(mean)
    assert means[0].mean() < expected.mean() - 0.05, "the bound should be loose at one sample"
    assert (means[0] < means[1] + 2 * error).all() and means[0].mean() < means[1].mean()


@pytest.mark.parametrize("make", [vae, m2_case, adgm, m1_m2])
@torch.no_grad()
def test_forward_is_the_mean_of_log_mean_exponentials(make: Callable[..., Case]) -> None:
    samples, groups, repeats = 4, 3, 1500
    case, x = prepared(make, loose=True, num_samples=groups, importance_samples=samples)
    y = torch.tensor([UNLABELLED, 0, 2])
    output = case.model(Batch(x.repeat(repeats, 1), y.repeat(repeats)))
    mean, error = mean_and_error(output.log_likelihood.view(repeats, 3))
    tables = [case.model.table(x.repeat(repeats, 1), analytic=False) for _ in range(samples)]
    draws = torch.stack([table.log_joint for table in tables])

    def bound(draws: Tensor) -> Tensor:
        joint = draws.logsumexp(dim=0) - math.log(len(draws))
        known = joint.gather(1, y.repeat(repeats).clamp_min(0).unsqueeze(1)).squeeze(1)
        if make is vae:  # y is no latent variable of it
            return torch.where(y.repeat(repeats) == UNLABELLED, joint.logsumexp(dim=1), known)
        q = torch.stack([table.class_logits.softmax(dim=1) for table in tables[: len(draws)]]).mean(dim=0)
        return torch.where(y.repeat(repeats) == UNLABELLED, (q * (joint - q.log())).sum(dim=1), known)

    by_hand, other = mean_and_error(bound(draws).view(repeats, 3))
    assert ((mean - by_hand).abs() < 4.5 * (error.square() + other.square()).sqrt()).all(), (mean, by_hand)
    assert (error < 0.9 * other).all(), "groups of samples should average noise away"
    single, _ = mean_and_error(bound(draws[:1]).view(repeats, 3))
    assert (single < by_hand - 6 * other).all()


@torch.no_grad()
def test_importance_samples_leave_only_the_divergence_of_the_classifier() -> None:
    model, means, covariance = m2(True, num_samples=1, importance_samples=400)
    model.classifier.sharpness.zero_()  # type: ignore[union-attr, operator]
    x = normal(3, X)
    truth = marginal(means, covariance)(x)
    log_p = truth.log_softmax(dim=1)
    costs = (-math.log(K) - log_p).mean(dim=1)  # KL(uniform || posterior), and nothing of the loose q(z | x, y)
    mean = model(Batch(x.repeat(20, 1), hidden(x).repeat(20))).log_likelihood.view(20, 3).mean(dim=0)
    torch.testing.assert_close(mean, truth.logsumexp(dim=1) - costs, rtol=0, atol=0.05)


@pytest.mark.parametrize("importance_samples", [1, 5])
def test_m1_autoencoder_gradients_do_not_depend_on_labels(importance_samples: int) -> None:
    found = []
    for label in range(K):
        case, x = prepared(vae, loose=True, num_samples=1, importance_samples=importance_samples)
        torch.manual_seed(1)
        output = case.model(Batch(x, torch.full((len(x),), label)))
        own = [value for name, value in case.model.named_parameters() if not name.startswith("classifier")]
        loss = output.log_likelihood.sum() + output.class_log_probs[:, label].sum()
        gradients_of_own = torch.autograd.grad(loss, own, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients_of_own if g is not None]))
    assert found[0].abs().max() > 0
    for other in found[1:]:
        assert torch.equal(other, found[0])


@torch.no_grad()
def test_bound_does_not_move_with_more_samples() -> None:
    means, errors = [], []
    for samples in (1, 8):
        case, x = prepared(m2_case, loose=True, num_samples=samples)
        output = case.model(Batch(x.repeat(2000, 1), hidden(x).repeat(2000)))
        mean, error = mean_and_error(output.log_likelihood.view(2000, 3))
        means.append(mean), errors.append(error)
    assert ((means[0] - means[1]).abs() < 4.5 * (errors[0].square() + errors[1].square()).sqrt()).all()
    torch.testing.assert_close(errors[1] * 8**0.5, errors[0], rtol=0.15, atol=0)


@torch.no_grad()
def test_bound_of_an_inexact_classifier_is_lower_by_its_divergence() -> None:
    # q(z | x, y) exact: the bound of log p(x) lies below by KL(q(y | x) || p(y | x)), and nothing else
    model, means, covariance = m2(False, num_samples=1, importance_samples=2)
    model.classifier.sharpness.fill_(0.3)  # type: ignore[union-attr, operator]
    x = normal(3, X)
    truth = marginal(means, covariance)(x)
    log_q, log_p = (0.3 * truth).log_softmax(dim=1), truth.log_softmax(dim=1)
    expected = truth.logsumexp(dim=1) - (log_q.exp() * (log_q - log_p)).sum(dim=1)
    torch.testing.assert_close(model(Batch(x, hidden(x))).log_likelihood, expected, rtol=0, atol=1e-6)


# --- drawn labels


def drawn_labels(kind: str, temperature: float = 0.67, **samples: int) -> tuple[M2, M2, Tensor]:
    """(model that draws, the same that enumerates, x [3, X])."""
    models = []
    for labels in (make_label_draw(kind, temperature), None):
        torch.manual_seed(0)
        models.append(m2(True, labels=labels, **samples)[0].train())
    return models[0], models[1], normal(3, X)


def gradients(model: M2, x: Tensor, batches: int, repeats: int, kl_weight: float) -> Tensor:
    """[batches, number of all parameters] of the loss of unlabelled rows."""
    results = []
    for _ in range(batches):
        batch = Batch(x.repeat(repeats, 1), hidden(x).repeat(repeats))
        value = semi_supervised_loss(model(batch), batch, Weights(kl=kl_weight))[0]
        results.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    return torch.stack(results)


@pytest.mark.parametrize(("num_samples", "kl_weight"), [(2, 1.0), (5, 1.0), (2, 0.0), (2, -10.0)])
def test_score_function_has_the_gradient_of_the_enumerated_bound(num_samples: int, kl_weight: float) -> None:
    drawing, enumerating, x = drawn_labels("score", num_samples=num_samples)
    mean, error = mean_and_error(gradients(drawing, x, 60, 200, kl_weight))
    exact, exact_error = mean_and_error(gradients(enumerating, x, 60, 200, kl_weight))
    gap = (mean - exact).abs() / (error.square() + exact_error.square()).sqrt()
    assert (gap < 5).all(), gap
    sharpness = [name for name, _ in drawing.named_parameters()].index("classifier.sharpness")
    sizes = [parameter.numel() for parameter in drawing.parameters()]
    place = sum(sizes[:sharpness])
    assert exact[place].abs() > 10 * error[place], "the gradient of the classifier should stand out of the noise"


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [("score", 1.0), ("gumbel", 1e-3), ("gumbel-st", 1e-3), ("gumbel-st", 1.0), ("log-gamma", 0.01)],
)
@torch.no_grad()
def test_label_draws_at_corners_average_to_the_enumerated_bound(kind: str, temperature: float) -> None:
    drawing, enumerating, x = drawn_labels(kind, temperature, num_samples=2)
    x, y = x.repeat(2, 1), torch.tensor([UNLABELLED] * 3 + [0, 1, 2])
    outputs = [model(Batch(x.repeat(6000, 1), y.repeat(6000))) for model in (drawing, enumerating)]
    for field in ("log_likelihood", "kl"):
        values = [mean_and_error(getattr(output, field).view(6000, 6)) for output in outputs]
        (mean, error), (exact, exact_error) = values
        gap = (mean - exact).abs() / (error.square() + exact_error.square()).sqrt()
        assert (gap < 4.5).all(), (field, gap)


@torch.no_grad()
def test_importance_weights_of_a_drawn_label_keep_a_tight_bound() -> None:
    model = m2(False, labels=make_label_draw("gumbel-st", 0.05), importance_samples=50)[0].train()
    model.classifier.sharpness.fill_(0.3)  # of an exact posterior; a divergence in closed form would break the bound
    x = normal(4, X)
    truth = model.eval().log_likelihood(x, 1)
    mean, error = mean_and_error(
        model.train()(Batch(x.repeat(300, 1), hidden(x).repeat(300))).log_likelihood.view(300, 4)
    )
    assert (mean < truth + 4 * error).all() and (mean > truth - 0.5).all()


@pytest.mark.parametrize("kind", ["gumbel", "score", "logistic-normal-st"])
@torch.no_grad()
def test_evaluation_enumerates_labels_whatever_training_draws(kind: str) -> None:
    drawing, enumerating, x = drawn_labels(kind, num_samples=2)
    outputs: list[JointOutput] = []
    for model in (drawing.eval(), enumerating.eval()):
        torch.manual_seed(1)
        outputs.append(model(Batch(x, hidden(x))))
    assert torch.equal(outputs[0].log_likelihood, outputs[1].log_likelihood)


@pytest.mark.parametrize("samples", [dict(num_samples=1), dict(num_samples=4, importance_samples=2)])
def test_score_function_refuses_one_sample_or_importance_samples(samples: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_samples must be 2 or more, and importance_samples 1"):
        m2(True, labels=make_label_draw("score"), **samples)


@pytest.mark.parametrize("samples", [dict(num_samples=0), dict(importance_samples=0)])
def test_bound_of_no_samples_is_refused(samples: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        m2(True, **samples)
    with pytest.raises(ValueError, match="num_samples must be 1 or more for a bound, not 0"):
        m2(True)[0].log_likelihood(torch.zeros(1, X, dtype=torch.float64), 0)


# --- samples


@pytest.mark.parametrize(
    "make", [m2_case, m1_m2, partial(two_layers, labels=True), vae], ids=["m2", "m1-m2", "dgm", "vae"]
)
@torch.no_grad()
def test_model_samples_have_the_mean_of_their_class(make: Callable[..., Case]) -> None:
    # of log p(x, y), quadratic in x, the gradient vanishes at the mean of the class
    case, _ = prepared(make, loose=True)
    for label in range(K):
        samples = case.model.sample(torch.full((4000,), label))
        mean, error = mean_and_error(samples)
        with torch.enable_grad():
            x = mean[None].requires_grad_()
            (slope,) = torch.autograd.grad(case.log_joint(x)[0, label], x)
        hessian = torch.autograd.functional.hessian(lambda x, k=label: case.log_joint(x[None])[0, k], mean)
        centre = mean - torch.linalg.solve(hessian, slope[0])
        assert ((mean - centre).abs() < 4.5 * error + 0.05 * (make is vae)).all(), (mean, centre)
