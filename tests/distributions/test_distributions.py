"""Every class-conditional distribution, by one table. Parameters are perturbed first: couplings start at zero."""

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from scnf.distributions import (
    ClassConditional,
    ClassConditionalFlow,
    ClassConditionalGaussian,
    ClassConditionalSoftmax,
    ClassPrior,
    DiagonalGaussian,
    enumerate_classes,
    make_prior,
)
from scnf.distributions.gaussian import simplex_vertices
from scnf.nn import MLP
from scnf.transforms import ActNorm, CompositeTransform, PLULinear, two_way_coupling

Make = Callable[..., ClassConditional]


def flow(num_classes: int, features: int, chunk: int | None = None, scale: str = "symmetric") -> ClassConditionalFlow:
    net = partial(MLP, hidden=8, context_features=4)
    steps = [ActNorm(features), PLULinear(features), two_way_coupling(net, features, scale)]
    return ClassConditionalFlow(CompositeTransform(steps), features, num_classes, embedding=4, chunk=chunk)


CONDITIONALS: dict[str, Make] = {"flow-symmetric": flow, "flow-sigmoid": partial(flow, scale="sigmoid")}
for means, scales in product(("random", "simplex", "data"), ("shared", "own")):
    CONDITIONALS[f"gaussian-{means}-{scales}"] = partial(ClassConditionalGaussian, means=means, scales=scales)
CONDITIONALS["softmax"] = partial(ClassConditionalSoftmax, gain=1.5)
every_conditional = pytest.mark.parametrize("make", CONDITIONALS.values(), ids=CONDITIONALS)


def perturb(module: nn.Module, noise: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn_like(parameter))


def prepared(
    make: Make, num_classes: int = 3, features: int = 2, noise: float = 0.2, **arguments: int
) -> ClassConditional:
    torch.manual_seed(0)
    distribution = make(num_classes, features, **arguments).double().eval()
    perturb(distribution, noise)
    return distribution


def grid_around(samples: Tensor, points: int = 500) -> tuple[Tensor, float]:
    """Points [M, 2] of a grid well beyond all samples [N, 2], and the area of its cells."""
    low, high = samples.min(dim=0).values, samples.max(dim=0).values
    low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)
    axes = [torch.linspace(float(a), float(b), points, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes), float((high - low).prod()) / (points - 1) ** 2


# --- densities


def test_diagonal_gaussian_integrates_to_one_and_matches_torch() -> None:
    base = DiagonalGaussian(2).double()
    perturb(base, 0.2)
    samples = base.sample(20_000)
    z, area = grid_around(samples)
    log_prob = base.log_prob(z)
    torch.testing.assert_close((log_prob.exp() * area).sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_prob, torch.distributions.Normal(0.0, base.log_scale.exp()).log_prob(z).sum(dim=1))
    torch.testing.assert_close(samples.std(dim=0), base.log_scale.detach().exp(), rtol=0.03, atol=0)
    torch.testing.assert_close(samples.mean(dim=0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=0.05)


@every_conditional
@torch.no_grad()
def test_class_density_integrates_to_one_and_matches_samples(make: Make) -> None:
    distribution = prepared(make)
    for label in range(3):
        samples = distribution.sample(torch.full((20_000,), label))
        assert samples.shape == (20_000, 2) and samples.dtype == torch.float64
        z, area = grid_around(samples)
        mass = distribution.log_prob(z, torch.full((len(z),), label)).exp().unsqueeze(1) * area
        assert abs(float(mass.sum()) - 1) < 1e-4
        mean, spread = (mass * z).sum(dim=0), ((mass * z.square()).sum(dim=0) - (mass * z).sum(dim=0).square()).sqrt()
        assert ((samples.mean(dim=0) - mean).abs() < 0.04 * spread).all()
        torch.testing.assert_close(samples.std(dim=0), spread, rtol=0.04, atol=0)


@every_conditional
@torch.no_grad()
def test_class_samples_have_one_row_for_each_label(make: Make) -> None:
    distribution = prepared(make)
    y = torch.tensor([2, 0, 1]).repeat(4000)
    torch.manual_seed(0)
    samples = distribution.sample(y)
    assert samples.shape == (12_000, 2)
    for label in range(3):
        alone = distribution.sample(torch.full((4000,), label))
        gap = (samples[y == label].mean(dim=0) - alone.mean(dim=0)).abs()
        assert (gap < 0.1 * alone.std(dim=0)).all()


# --- classes


@every_conditional
@pytest.mark.parametrize("num_classes", [1, 2, 10, 13])
@torch.no_grad()
def test_log_prob_all_equals_a_loop_over_classes(make: Make, num_classes: int) -> None:
    z = torch.randn(5, 12, dtype=torch.float64)
    loop: Tensor | None = None
    for chunk in (None, 1, 3, num_classes, 100):
        distribution = prepared(make, num_classes, 12, **({} if chunk is None else {"chunk": chunk}))
        if loop is None:
            loop = torch.stack([distribution.log_prob(z, torch.full((5,), k)) for k in range(num_classes)], dim=1)
        table = distribution.log_prob_all(z)
        assert table.shape == (5, num_classes)
        torch.testing.assert_close(table, loop, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 2])
def test_class_flow_runs_layers_without_labels_once_for_each_row(chunk: int | None) -> None:
    conditional = flow(10, 6, chunk)
    rows: list[tuple[str, int]] = []
    for layer in conditional.transform._transforms:
        layer.register_forward_pre_hook(lambda layer, inputs: rows.append((type(layer).__name__, len(inputs[0]))))
    conditional.log_prob_all(torch.randn(7, 6))
    by_class = [70] if chunk is None else 5 * [14]
    assert rows == [("ActNorm", 7), ("PLULinear", 7), *(("CompositeTransform", count) for count in by_class)]


def test_log_prob_all_follows_overridden_densities_and_transforms() -> None:
    class Louder(ClassConditionalFlow):
        def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
            return 2 * super().log_prob(z, y)

    class Mirrored(CompositeTransform):
        def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(-inputs, context)

    plain, z = flow(3, 6), torch.randn(5, 6)
    louder = Louder(plain.transform, 6, 3, embedding=4)
    mirrored = ClassConditionalFlow(Mirrored(list(plain.transform._transforms)), 6, 3, embedding=4)
    for distribution in (louder, mirrored):
        loop = torch.stack([distribution.log_prob(z, torch.full((5,), k)) for k in range(3)], dim=1)
        torch.testing.assert_close(distribution.log_prob_all(z), loop)


@pytest.mark.parametrize("make", [flow, ClassConditionalGaussian], ids=["flow", "gaussian"])
@torch.no_grad()
def test_log_prob_all_of_a_thousand_classes_is_the_same_in_chunks(make: Make) -> None:
    z = torch.randn(4, 2, dtype=torch.float64)
    distribution = prepared(make, 1000)
    whole = distribution.log_prob_all(z)
    distribution.chunk = 128
    torch.testing.assert_close(distribution.log_prob_all(z), whole, rtol=1e-12, atol=1e-12)
    y = torch.tensor([0, 127, 128, 999])
    torch.testing.assert_close(distribution.log_prob(z, y), whole.gather(1, y.unsqueeze(1)).squeeze(1))


def test_enumerate_classes_calls_once_without_a_chunk_and_else_by_chunks() -> None:
    calls: list[int] = []

    def log_prob(z: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y.unique()))
        return 100.0 * y + z[:, 0]

    z = torch.arange(3.0).unsqueeze(1)
    expected = 100.0 * torch.arange(7.0) + z
    assert torch.equal(enumerate_classes(log_prob, z, 7), expected) and calls == [7]
    calls.clear()
    assert torch.equal(enumerate_classes(log_prob, z, 7, chunk=3), expected) and calls == [3, 3, 1]


@every_conditional
def test_distribution_gives_all_parameters_a_gradient(make: Make) -> None:
    distribution = prepared(make)
    distribution.log_prob_all(torch.randn(6, 2, dtype=torch.float64)).square().sum().backward()
    for name, parameter in distribution.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert not parameter.numel() or parameter.grad.abs().max() > 0, name
        assert "embedding" not in name or (parameter.grad.abs().sum(dim=1) > 0).all()


@every_conditional
@torch.no_grad()
def test_loaded_distribution_samples_and_evaluates_as_the_saved_one(make: Make) -> None:
    distribution = prepared(make)
    torch.manual_seed(1)
    loaded = make(3, 2).double()
    loaded.load_state_dict(distribution.state_dict())
    z, y = torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    torch.manual_seed(2)
    first = loaded.sample(y)
    torch.manual_seed(2)
    assert torch.equal(first, distribution.sample(y))
    assert torch.equal(loaded.eval().log_prob(z, y), distribution.log_prob(z, y))


# --- Gaussians


@pytest.mark.parametrize(("num_classes", "features"), [(2, 1), (2, 5), (3, 2), (10, 9), (10, 20)])
def test_simplex_vertices_are_equally_far_apart(num_classes: int, features: int) -> None:
    vertices = simplex_vertices(num_classes, features)
    assert vertices.shape == (num_classes, features)
    torch.testing.assert_close(vertices.norm(dim=1), torch.ones(num_classes))
    torch.testing.assert_close(vertices.sum(dim=0), torch.zeros(features), rtol=0, atol=1e-5)
    distances = torch.nn.functional.pdist(vertices)
    expected = (2 * num_classes / (num_classes - 1)) ** 0.5
    torch.testing.assert_close(distances, torch.full_like(distances, expected))
    mixture = ClassConditionalGaussian(num_classes, features, means="simplex", spread=3.0)
    torch.testing.assert_close(mixture.mean.detach(), 3 * vertices)


@pytest.mark.parametrize("scales", ["shared", "own"])
def test_class_conditional_gaussian_matches_torch(scales: str) -> None:
    mixture = prepared(partial(ClassConditionalGaussian, scales=scales), noise=0.7)
    z, y = torch.randn(7, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    scale = mixture.log_scale.exp()
    expected = torch.distributions.Normal(mixture.mean[y], scale[y] if scales == "own" else scale).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z, y), expected.sum(dim=1))


def test_class_means_from_data_are_class_averages() -> None:
    z, y = torch.randn(30, 2), torch.arange(30) % 2
    for means, moves in (("data", True), ("random", False), ("simplex", False)):
        for learned in (True, False):
            mixture = ClassConditionalGaussian(3, 2, means=means, learn_means=learned)
            before = mixture.mean.detach().clone()
            mixture.initialize(z, y)
            after = mixture.mean.detach()
            expected = torch.stack([z[y == 0].mean(dim=0), z[y == 1].mean(dim=0)]) if moves else before[:2]
            torch.testing.assert_close(after[:2], expected)
            assert torch.equal(after[2], before[2]), "a class without rows stays where it was"
    mixture = ClassConditionalGaussian(3, 2, means="data")
    mixture.initialize(z[:0], y[:0])
    assert mixture.mean.isfinite().all()


@pytest.mark.parametrize(("learn_means", "learn_scales"), list(product((True, False), (True, False))))
def test_class_conditional_gaussian_saves_parameters_not_learned(learn_means: bool, learn_scales: bool) -> None:
    mixture = ClassConditionalGaussian(3, 2, learn_means=learn_means, learn_scales=learn_scales)
    learned = {name for name, learn in (("mean", learn_means), ("log_scale", learn_scales)) if learn}
    assert {name for name, _ in mixture.named_parameters()} == learned
    assert set(mixture.state_dict()) == {"mean", "log_scale"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(means="grid"), "means must be one of random, simplex, data; not 'grid'"),
        (dict(scales="full"), "scales must be one of shared, own; not 'full'"),
        (dict(means="simplex"), "means can be a simplex of 5 vertices in 4 dimensions or more, not 3"),
    ],
)
def test_class_conditional_gaussian_refuses_invalid_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassConditionalGaussian(5, 3, **arguments)  # type: ignore[arg-type]


# --- the prior


def test_class_priors_sum_to_one() -> None:
    uniform = ClassPrior(4)
    given = ClassPrior(3, [0.5, 0.3, 0.2])
    counted = ClassPrior.empirical(torch.tensor([0, 0, 1, -1, -1, -1]), 3)
    torch.testing.assert_close(uniform.log_prob_all().exp(), torch.full((4,), 0.25))
    torch.testing.assert_close(given.log_prob_all().exp(), torch.tensor([0.5, 0.3, 0.2]))
    torch.testing.assert_close(counted.log_prob_all().exp(), torch.tensor([3.0, 2.0, 1.0]) / 6)
    assert not list(given.parameters()) and "logits" in given.state_dict()
    torch.testing.assert_close(ClassPrior(1).log_prob_all(), torch.zeros(1))


def test_learned_prior_gets_gradients_and_stays_normalised() -> None:
    prior = ClassPrior(3, [0.5, 0.3, 0.2], learned=True)
    perturb(prior, 0.2)
    log_prob = prior.log_prob_all()
    torch.testing.assert_close(log_prob.exp().sum(), torch.ones(()))
    log_prob[0].backward()
    assert prior.logits.grad is not None and prior.logits.grad.abs().max() > 0


def test_prior_samples_follow_its_probabilities() -> None:
    samples = ClassPrior(3, [0.6, 0.3, 0.1]).sample(20_000)
    torch.testing.assert_close(samples.bincount() / 20_000, torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=0.015)


@pytest.mark.parametrize(
    "probabilities",
    [[0.5, 0.5], [0.5, 0.6, 0.2], [1.0, 0.0, 0.0], [0.7, 0.5, -0.2], [float("nan")] * 3, [[0.2, 0.3, 0.5]]],
)
def test_prior_refuses_probabilities_that_are_none(probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities must be 3 positive numbers that sum to 1"):
        ClassPrior(3, probabilities)


def test_make_prior_makes_priors_by_name_or_probabilities() -> None:
    visible = torch.tensor([0, 0, 1, -1, -1, -1])
    made = {kind: make_prior(kind, 3, visible) for kind in ("uniform", "learned", "empirical")}
    torch.testing.assert_close(made["uniform"].log_prob_all().exp(), torch.full((3,), 1 / 3))
    torch.testing.assert_close(made["learned"].log_prob_all().exp(), torch.full((3,), 1 / 3))
    torch.testing.assert_close(made["empirical"].log_prob_all().exp(), torch.tensor([3.0, 2.0, 1.0]) / 6)
    torch.testing.assert_close(
        make_prior([0.5, 0.3, 0.2], 3, visible).log_prob_all().exp(), torch.tensor([0.5, 0.3, 0.2])
    )
    assert [kind for kind, prior in made.items() if list(prior.parameters())] == ["learned"]
    with pytest.raises(ValueError, match="uniform, empirical, learned or a list of probabilities, not 'flat'"):
        make_prior("flat", 3, visible)


def test_class_chunk_bounds_the_memory_kept_for_backward() -> None:
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    kept, gradients = {}, {}
    for chunk in (None, 5):
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        def function(x: Tensor, y: Tensor) -> Tensor:
            return network(x * y.unsqueeze(1)).squeeze(1)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            table = enumerate_classes(function, x, 200, chunk)
        kept[chunk] = sum(saved.values())
        gradients[chunk] = torch.cat(
            [g.flatten() for g in torch.autograd.grad(table.sin().sum(), network.parameters())]
        )
    assert kept[5] < 0.2 * kept[None], kept  # type: ignore[index]
    torch.testing.assert_close(gradients[5], gradients[None])
