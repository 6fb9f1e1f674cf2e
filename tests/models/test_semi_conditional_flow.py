"""The model's probabilities belong together: p(x, y), p(x), p(x | y) and p(y | x) of small models in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.data.labels import Split
from scnf.distributions import ClassConditionalGaussian, ClassPrior, DiagonalGaussian, FlowDistribution
from scnf.models import SemiConditionalFlow
from scnf.models.flow import LatentFlow
from scnf.nn import MLP
from scnf.objectives import Weights, semi_supervised_loss
from scnf.recipes import build
from scnf.transforms import (
    ActNorm,
    AffineCoupling,
    ChannelPartition,
    CompositeTransform,
    FactorOut,
    FullLinear,
    PLULinear,
)

PRIOR = (0.5, 0.3, 0.2)


def toy(conditional: str, **arguments: object) -> SemiConditionalFlow:
    prior = ClassPrior(3, PRIOR, learned=True)
    return build("scnf-toy", (2,), 3, prior, conditional=conditional, channels=8, steps=2, **arguments)


def with_auxiliary(auxiliary: nn.Module) -> SemiConditionalFlow:
    """One of two features is factored out."""
    steps = [ActNorm(2), PLULinear(2), AffineCoupling(MLP(1, 2, 8), ChannelPartition(2), "symmetric")]
    transform = CompositeTransform([*steps, FactorOut(ActNorm(1), (2,))])
    gaussians = ClassConditionalGaussian(3, 1, scales="own")
    return SemiConditionalFlow(transform, auxiliary, gaussians, ClassPrior(3, PRIOR, learned=True), 1)


MODELS: dict[str, Callable[[], SemiConditionalFlow]] = {
    "gaussian": lambda: toy("gaussian"),
    "gaussian-own": lambda: toy("gaussian", scales="own", means="random"),
    "flow": lambda: toy("flow", conditional_hidden=8, conditional_steps=1),
    "flow-chunked": lambda: toy("flow", conditional_hidden=8, conditional_steps=1, class_chunk=2),
    "auxiliary": lambda: with_auxiliary(DiagonalGaussian(1)),
    "auxiliary-flow": lambda: with_auxiliary(FlowDistribution(CompositeTransform([ActNorm(1), FullLinear(1)]), 1)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def perturb(module: nn.Module, noise: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn_like(parameter))


def points(rows: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(rows) % 3
    return torch.randn(rows, 2, dtype=torch.float64) + 2.0 * y.unsqueeze(1), y


def prepared(make: Callable[[], SemiConditionalFlow]) -> SemiConditionalFlow:
    """Started on data, then perturbed, and left in training mode."""
    torch.manual_seed(0)
    model = make().double()
    model.initialize(*points(60))
    perturb(model)
    return model


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@every_model
@torch.no_grad()
def test_flow_density_integrates_to_one_and_matches_samples(make: Callable[[], SemiConditionalFlow]) -> None:
    model = prepared(make)
    y = torch.arange(30_000) % 3
    samples = model.sample(y)
    low, high = samples.min(dim=0).values, samples.max(dim=0).values
    low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
    axes = [torch.linspace(float(a), float(b), 500, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    x = torch.cartesian_prod(*axes)
    mass = model.log_joint(x).exp() * float((high - low).prod()) / 499**2
    assert abs(float(mass.sum()) - 1) < 1e-4
    # each class holds its share, and its samples lie where its density does
    prior = model.prior.log_prob_all().exp()
    torch.testing.assert_close(mass.sum(dim=0), prior, rtol=1e-4, atol=0)
    for label in range(3):
        weights = (mass[:, label] / prior[label]).unsqueeze(1)
        mean = (weights * x).sum(dim=0)
        spread = (weights * (x - mean).square()).sum(dim=0).sqrt()
        assert ((samples[y == label].mean(dim=0) - mean).abs() < 0.05 * spread).all()
        torch.testing.assert_close(samples[y == label].std(dim=0), spread, rtol=0.05, atol=0)


@every_model
def test_flow_probabilities_of_labels_and_images_are_consistent(make: Callable[[], SemiConditionalFlow]) -> None:
    model = prepared(make)
    x, y = points(9)
    table = model.log_joint(x)
    visible, hidden = model(Batch(x, y)), model(Batch(x, torch.full_like(y, UNLABELLED)))
    mixed = model(Batch(x, torch.where(torch.arange(9) < 4, y, UNLABELLED)))
    log_prior = model.prior.log_prob_all()

    assert table.shape == (9, 3) and visible.class_log_probs.shape == (9, 3)
    torch.testing.assert_close(hidden.log_likelihood, table.exp().sum(dim=1).log())
    torch.testing.assert_close(hidden.log_likelihood, model.log_likelihood(x))
    torch.testing.assert_close(visible.log_likelihood, table[torch.arange(9), y])
    torch.testing.assert_close(visible.log_likelihood, model.log_prob(x, y) + log_prior[y])
    torch.testing.assert_close(mixed.log_likelihood[:4], visible.log_likelihood[:4])
    torch.testing.assert_close(mixed.log_likelihood[4:], hidden.log_likelihood[4:])
    torch.testing.assert_close(visible.class_log_probs.exp().sum(dim=1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(visible.class_log_probs, table - model.log_likelihood(x).unsqueeze(1))
    assert torch.equal(visible.class_log_probs, hidden.class_log_probs)

    # rows are independent
    for row in range(9):
        torch.testing.assert_close(model.log_joint(x[row : row + 1])[0], table[row])


@every_model
def test_unlabelled_rows_have_the_value_and_gradient_of_logsumexp(make: Callable[[], SemiConditionalFlow]) -> None:
    model = prepared(make)
    x, y = points(9)
    ours = model(Batch(x, torch.full_like(y, UNLABELLED))).log_likelihood.sum()
    theirs = model.log_joint(x).logsumexp(dim=1).sum()
    torch.testing.assert_close(ours, theirs)
    expected = gradients(model, theirs)
    for name, gradient in gradients(model, ours).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)
        assert gradient.abs().max() > 0, name


@every_model
def test_views_need_the_class_posterior_alone(make: Callable[[], SemiConditionalFlow]) -> None:
    model = prepared(make)
    x, y = points(9)
    computed: list[int] = []
    if model.auxiliary is not None:
        log_prob = model.auxiliary.log_prob
        model.auxiliary.log_prob = lambda z: computed.append(len(z)) or log_prob(z)
    every = model(Batch(x, y))
    own = model(Batch(x[:5], y[:5], moved=x[5:6], moved_y=y[5:6], views=x[6:], targets=y[6:]))
    assert computed == ([] if model.auxiliary is None else [9, 5])
    torch.testing.assert_close(own.log_likelihood, every.log_likelihood[:5])
    found = torch.cat([own.class_log_probs, own.moved, own.views])
    torch.testing.assert_close(found, every.class_log_probs)
    torch.testing.assert_close(model.class_log_probs(x), every.class_log_probs)
    assert len(computed) in (0, 2)
    rows = model.latent_rows(x).detach()
    adapted = LatentFlow(model)(Batch(rows[:5], y[:5], views=rows[5:]))
    torch.testing.assert_close(adapted.log_likelihood, own.log_likelihood)
    torch.testing.assert_close(adapted.views, every.class_log_probs[5:])


@every_model
def test_latent_rows_have_the_probabilities_of_their_images(make: Callable[[], SemiConditionalFlow]) -> None:
    flow = make().double()
    x, y = points(9)
    y[::2] = UNLABELLED
    flow.initialize(x, y)
    perturb(flow)
    rows, expected = flow.latent_rows(x).detach(), flow(Batch(x, y))
    adapted = LatentFlow(flow)
    found = adapted(Batch(rows, y))
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood)
    torch.testing.assert_close(found.class_log_probs, expected.class_log_probs)
    assert torch.equal(adapted.representation(rows), flow.representation(x))
    assert torch.equal(adapted.input_flow().log_likelihood(x), flow.log_likelihood(x))
    assert list(adapted.state_dict()) == list(flow.state_dict())
    found.log_likelihood.sum().backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == name.startswith(("conditional", "prior")), name


@every_model
def test_hidden_labels_do_not_reach_the_trained_flow(make: Callable[[], SemiConditionalFlow]) -> None:
    model = prepared(make)
    x, truth = points(12)
    split = Split(labelled=torch.tensor([0, 4, 8]), validation=torch.tensor([3, 10]), num_rows=12)
    is_hidden = torch.ones(12, dtype=torch.bool)
    is_hidden[split.labelled] = False

    def run(labels: Tensor) -> tuple[Tensor, dict[str, Tensor], SemiConditionalFlow]:
        started = prepared(make)
        visible = split.visible(labels)
        started.initialize(x, visible)
        batch = Batch(x, visible)
        loss, _ = semi_supervised_loss(model(batch), batch, Weights(3.0, 0.5))
        return loss.detach(), gradients(model, loss), started

    loss, gradient, started = run(truth)
    changed = torch.where(is_hidden, (truth + 1) % 3, truth)
    assert (changed != truth).sum() == 9
    other_loss, other_gradient, other_started = run(changed)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(gradient[name], other_gradient[name]) for name in gradient)
    other_state = other_started.state_dict()
    assert all(torch.equal(value, other_state[name]) for name, value in started.state_dict().items())
    # the test can fail: a visible label does count
    assert not torch.equal(loss, run(torch.where(is_hidden, truth, (truth + 1) % 3))[0])


@every_model
def test_loaded_flow_samples_as_the_saved_one(make: Callable[[], SemiConditionalFlow]) -> None:
    model = prepared(make)
    torch.manual_seed(1)
    loaded = make().double()
    loaded.load_state_dict(model.state_dict())
    y = torch.tensor([0, 2, 2, 1])
    torch.manual_seed(2)
    samples = loaded.sample(y)
    torch.manual_seed(2)
    assert samples.shape == (4, 2) and samples.isfinite().all() and not samples.requires_grad
    assert torch.equal(samples, model.sample(y))
    assert torch.equal(loaded.log_joint(samples), model.log_joint(samples))


@torch.no_grad()
def test_flow_samples_carry_their_label() -> None:
    """Classes far apart: Bayes' rule finds the label that a sample was drawn for, row by row."""
    model = toy("gaussian", means="simplex", spread=20.0).double().eval()
    perturb(model)
    y = torch.tensor([2, 0, 1, 1]).repeat(25)
    assert torch.equal(model.log_joint(model.sample(y)).argmax(dim=1), y)


def test_initialize_starts_all_layers_and_keeps_the_mode() -> None:
    model = toy("gaussian", means="data").double().eval()
    x, y = points(60)
    hidden = torch.where(torch.arange(60) % 2 == 0, y, UNLABELLED)
    model.initialize(x, hidden)
    assert not model.training and not any(module.training for module in model.modules())
    assert all(bool(module.initialized) for module in model.modules() if isinstance(module, ActNorm))
    _, z, _ = model.latents(x)
    averages = torch.stack([z[hidden == label].mean(dim=0) for label in range(3)])
    torch.testing.assert_close(model.conditional.mean, averages)


def test_latents_have_the_semantic_features_last() -> None:
    """The semantic features come after the auxiliary ones."""
    model = prepared(MODELS["auxiliary"])
    x, _ = points(5)
    z, logabsdet = model.transform(x)
    z_aux, z_f, common = model.latents(x)
    assert torch.equal(z_aux, z[:, :1]) and torch.equal(z_f, z[:, 1:]) and torch.equal(common, logabsdet)
    assert model.auxiliary is not None
    by_hand = (
        model.auxiliary.log_prob(z[:, :1]) + model.conditional.log_prob(z[:, 1:], torch.zeros(5).long()) + logabsdet
    )
    torch.testing.assert_close(model.log_prob(x, torch.zeros(5, dtype=torch.int64)), by_hand)
