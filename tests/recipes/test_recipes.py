"""Every recipe, for the shapes people have."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scnf import native
from scnf.batch import Batch
from scnf.data.columns import Columns
from scnf.distributions import LIKELIHOODS, ClassPrior
from scnf.distributions.labels import LABEL_DRAWS
from scnf.errors import InvalidArgument
from scnf.machine import compile_for
from scnf.models import SemiConditionalFlow
from scnf.models.base import JointModel
from scnf.objectives import semi_supervised_loss
from scnf.recipes import RECIPES, FlowRecipe, ScnfDigits, ScnfPaper, VectorFlow, build
from scnf.recipes.variational import POSTERIORS
from scnf.transforms import AffineCoupling, standardize

FLOWS = [name for name, recipe in RECIPES.items() if issubclass(recipe, FlowRecipe)]
IMAGES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 27, 27), (3, 30, 30), (1, 14, 21), (2, 5, 5)]
POINTS = [(2,), (5,)]
VECTORS = [name for name in FLOWS if issubclass(RECIPES[name], VectorFlow)]
EVEN = [shape for shape in IMAGES if shape[1] % 2 == 0 and shape[2] % 2 == 0]
SHAPES = {recipe: POINTS if recipe in VECTORS else EVEN if recipe == "scnf-hybrid" else IMAGES for recipe in FLOWS}
FAMILIES = [(recipe, shape) for recipe in FLOWS for shape in SHAPES[recipe]]
SMALL = {recipe: (2,) if recipe in VECTORS else (1, 8, 8) for recipe in FLOWS}


def started(model: SemiConditionalFlow, inputs: Tensor | tuple[int, ...], noise: float = 0.02) -> SemiConditionalFlow:
    """The model, started from eight inputs, or random ones of a shape, and then perturbed."""
    y = torch.arange(8) % model.num_classes
    model.initialize(inputs if isinstance(inputs, Tensor) else torch.rand(8, *inputs), y)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter) * parameter.abs().mean().clamp(0.1, 1))
    return model.eval()


@pytest.mark.parametrize(("recipe", "shape"), FAMILIES, ids=lambda value: str(value).replace(" ", ""))
@torch.no_grad()
def test_recipe_builds_for_all_shapes(recipe: str, shape: tuple[int, ...]) -> None:
    short = {"conditional_steps": 1} if RECIPES[recipe]().conditional == "flow" else {}  # only for speed
    model = build(recipe, shape, 10, **short).eval()
    x = torch.rand(2, *shape)
    z_aux, z_f, logabsdet = model.latents(x)
    assert z_aux.shape[1] + z_f.shape[1] == math.prod(shape) and z_f.shape[1] == model.semantic_features
    assert (model.auxiliary is None) == (z_aux.shape[1] == 0)
    restored, back = model.transform.inverse(torch.cat([z_aux, z_f], dim=1))
    torch.testing.assert_close(restored, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(back, -logabsdet, rtol=1e-4, atol=1e-2)
    assert model.sample(torch.tensor([0, 9])).shape == (2, *shape)
    assert torch.equal(model.representation(x), z_f)


@pytest.mark.parametrize("num_classes", [2, 10, 37])
@pytest.mark.parametrize("recipe", FLOWS)
def test_recipe_builds_for_any_number_of_classes(recipe: str, num_classes: int) -> None:
    shape = SMALL[recipe]
    model = build(recipe, shape, num_classes)
    output = model(Batch(torch.rand(3, *shape), torch.tensor([0, num_classes - 1, -1])))
    assert output.class_log_probs.shape == (3, num_classes) and output.log_likelihood.isfinite().all()
    output.log_likelihood.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("recipe", FLOWS)
def test_recipe_compiles_into_one_graph(recipe: str) -> None:
    model = started(build(recipe, SMALL[recipe], 3), SMALL[recipe])
    x, y = torch.rand(4, *SMALL[recipe]), torch.tensor([0, 2, -1, -1])
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # an error, where the graph breaks
    torch.testing.assert_close(compiled(Batch(x, y)).class_log_probs, model(Batch(x, y)).class_log_probs)


@pytest.mark.skipif(native.library() is None, reason="without kernels, networks are in bf16")
def test_recipe_compiled_under_autocast_has_the_gradients_of_the_kernels() -> None:
    shape = SMALL["scnf-digits"]
    model = started(build("scnf-digits", shape, 3), shape)
    x, y = torch.rand(4, *shape), torch.tensor([0, 2, -1, -1])
    compiled = compile_for(model, torch.device("cpu"), backend="aot_eager")

    def gradients(network: Any, autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = semi_supervised_loss(network(Batch(x, y)), Batch(x, y))[0]
        return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))

    torch.testing.assert_close(gradients(compiled, True), gradients(model, False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "shape"), [*SMALL.items(), ("scnf-paper", (1, 28, 28)), ("scnf-fast", (1, 28, 28))], ids=str
)
@torch.no_grad()
def test_recipe_inverts_in_single_precision_after_a_start(recipe: str, shape: tuple[int, ...]) -> None:
    model = started(build(recipe, shape, 3), shape)
    x = torch.rand(4, *shape)
    z, _ = model.transform(x)
    assert z.std() > 0.1
    restored, _ = model.transform.inverse(z)
    assert (restored - x).abs().max() <= 1e-4


@pytest.mark.parametrize("recipe", FLOWS)
@torch.no_grad()
def test_loaded_recipe_samples_as_the_saved_one(recipe: str) -> None:
    shape = SMALL[recipe]
    model = started(build(recipe, shape, 3), shape)
    loaded = build(recipe, shape, 3)
    loaded.load_state_dict(model.state_dict())
    y = torch.tensor([0, 2, 1])
    torch.manual_seed(2)
    samples = loaded.sample(y)
    torch.manual_seed(2)
    assert samples.shape == (3, *shape) and torch.equal(samples, model.sample(y))
    x = torch.rand(3, *shape)
    assert torch.equal(loaded.log_joint(x), model.log_joint(x)), "in training mode, and still not started again"


@pytest.mark.parametrize("recipe", FLOWS)
@pytest.mark.usefixtures("without_kernels")
@torch.no_grad()
def test_recipe_keeps_densities_in_single_precision_under_autocast(recipe: str) -> None:
    shape = SMALL[recipe]
    model = started(build(recipe, shape, 3), shape)
    x, y = torch.rand(4, *shape), torch.tensor([0, 1, -1, -1])
    full = model(Batch(x, y))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(Batch(x, y))
    for ours, theirs in zip(half[:2], full[:2], strict=True):
        assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
    per_dimension = (half.log_likelihood - full.log_likelihood).abs() / math.prod(shape)
    assert per_dimension.max() < 0.02
    torch.testing.assert_close(half.class_log_probs.exp(), full.class_log_probs.exp(), rtol=0, atol=0.1)


def test_scnf_paper_has_the_documented_number_of_parameters() -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    model = build("scnf-paper", (1, 28, 28), 10)
    assert count(model.transform) == 6_297_299
    assert count(model.conditional) - model.semantic_features == 9_566_484 and model.semantic_features == 196


def test_recipe_defaults_and_arguments_reach_the_parts() -> None:
    arguments = ScnfPaper(conditional_steps=1).arguments()
    assert arguments["conditional_steps"] == 1 and arguments["conditional_hidden"] == 256
    assert "means" not in arguments and "means" in ScnfPaper(conditional="gaussian").arguments()
    prior = ClassPrior(3, [0.5, 0.3, 0.2])
    model = build("scnf-digits", [1, 8, 8], 3, prior, class_chunk=2, conditional="gaussian", means="simplex")
    assert model.prior is prior and model.conditional.chunk == 2


def test_build_takes_the_class_prior_of_the_recipe_or_of_the_caller() -> None:
    learned = build(ScnfDigits(prior="learned"), (1, 8, 8), 3)
    assert "prior.logits" in dict(learned.named_parameters())
    named = build("scnf-digits", (1, 8, 8), 2, prior=[0.75, 0.25])
    torch.testing.assert_close(named.prior.log_prob_all().exp(), torch.tensor([0.75, 0.25]))
    with pytest.raises(InvalidArgument, match="prior must be a ClassPrior, because an empirical one needs labels"):
        build("scnf-digits", (1, 8, 8), 3, prior="empirical")
    with pytest.raises(InvalidArgument, match="prior must be a ClassPrior over 3 classes, not over 2"):
        build("scnf-digits", (1, 8, 8), 3, ClassPrior(2))
    with pytest.raises(InvalidArgument, match="probabilities must be 3 positive numbers that sum to 1"):
        build("scnf-digits", (1, 8, 8), 3, prior=[0.5, 0.5])
    with pytest.raises(InvalidArgument, match=r"prior must be a list .* or one of uniform, empirical, learned"):
        build("scnf-digits", (1, 8, 8), 3, prior="flat")


@pytest.mark.parametrize(
    ("shape", "share", "semantic"),
    [
        ((1, 4, 4), 0.25, 4),
        ((1, 4, 4), 0.5, 8),
        ((1, 4, 4), 0.75, 12),
        ((2, 4, 4), 0.25, 8),
        ((1, 5, 5), 0.25, 25),
        ((1, 2, 2), 0.25, 2),
    ],
    ids=str,
)
def test_fast_semantic_share_selects_that_many_coarse_latents(
    shape: tuple[int, ...], share: float, semantic: int
) -> None:
    model = build("scnf-fast", shape, 3, channels=8, steps=2, semantic_share=share, conditional_hidden=8)
    model = started(model, shape, noise=0.2).double()
    assert model.semantic_features == semantic
    x, y = torch.rand(2, *shape, dtype=torch.float64), torch.tensor([0, 2])
    for row, label in zip(x.split(1), y.split(1), strict=True):
        z_aux, z_f, _ = model.latents(row)
        size = math.prod(shape)
        jacobian = torch.autograd.functional.jacobian(lambda x: torch.cat(model.latents(x)[:2], dim=1), row)
        density = model.conditional.log_prob(z_f, label)
        density = density if model.auxiliary is None else density + model.auxiliary.log_prob(z_aux)
        logabsdet = torch.linalg.slogdet(jacobian.view(size, size)).logabsdet
        torch.testing.assert_close(model.log_prob(row, label), density + logabsdet)
    restored, _ = model.transform.inverse(torch.cat(model.latents(x)[:2], dim=1))
    torch.testing.assert_close(restored, x)


@pytest.mark.parametrize(("channels", "share", "third"), [(1, 0.25, 1), (1, 0.5, 1), (2, 0.25, 2), (3, 0.5, 2)])
@torch.no_grad()
def test_fast_couplings_move_other_coarse_latents_a_third_at_a_time(channels: int, share: float, third: int) -> None:
    shape = (channels, 4, 4)
    model = started(build("scnf-fast", shape, 3, channels=8, steps=2, semantic_share=share), shape)
    x = torch.rand(2, *shape)
    z_aux, z_f, _ = model.latents(x)
    couplings = [layer for layer in model.transform.modules() if isinstance(layer, AffineCoupling)][2:]
    assert [coupling.partition.num_transformed for coupling in couplings] == [third] * 3
    for coupling in couplings:
        for parameter in coupling.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved, same, _ = model.latents(x)
    assert torch.equal(same, z_f) and (moved != z_aux).all()


@pytest.mark.parametrize(("shape", "levels"), [((1, 20, 20), 1), ((2, 20, 20), 1), ((1, 40, 40), 2)], ids=str)
def test_fast_details_move_the_coarse_image_at_each_level(shape: tuple[int, ...], levels: int) -> None:
    def couplings(coarse_channels: int) -> tuple[SemiConditionalFlow, list[AffineCoupling]]:
        few = dict(channels=8, steps=1, detail_steps=1, conditional_hidden=8, coarse_channels=coarse_channels)
        model = started(build("scnf-fast", shape, 3, **few), shape).double()
        return model, [layer for layer in model.transform.modules() if isinstance(layer, AffineCoupling)]

    model, found = couplings(4)
    added = found[::2][:levels]
    assert len(found) - len(couplings(0)[1]) == levels
    assert [coupling.partition.num_transformed for coupling in added] == [shape[0]] * levels
    x = torch.rand(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        for coupling in added:
            _, z_f, _ = model.latents(x)
            for parameter in coupling.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert (model.latents(x)[1] != z_f).all()
    if math.prod(shape) == 400:
        z_aux, z_f, logabsdet = model.latents(x)
        jacobian = torch.autograd.functional.jacobian(lambda x: torch.cat(model.latents(x)[:2], dim=1), x)
        torch.testing.assert_close(logabsdet[0], torch.linalg.slogdet(jacobian.view(400, 400)).logabsdet)
        torch.testing.assert_close(model.transform.inverse(torch.cat([z_aux, z_f], dim=1))[0], x)


@pytest.mark.parametrize(
    ("recipe", "width"), [("scnf-hybrid", "semantic_channels"), ("scnf-reader", "reader_channels")]
)
def test_density_beside_one_band_is_that_of_its_jacobian(recipe: str, width: str) -> None:
    shape = (1, 6, 6)
    model = started(build(recipe, shape, 3, channels=8, steps=2, **{width: 8}), shape, noise=0.2).double()
    x, y = torch.rand(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 2])

    def noise(x: torch.Tensor) -> torch.Tensor:
        z_aux, z_f, _ = model.latents(x)
        return torch.cat([model.auxiliary.transform(z_aux)[0], z_f], dim=1)

    for row, label in zip(x.split(1), y.split(1), strict=True):
        jacobian = torch.autograd.functional.jacobian(noise, row).view(36, 36)
        e, z_f = noise(row).split([27, 9], dim=1)
        density = model.auxiliary.base.log_prob(e) + model.conditional.log_prob(z_f, label)
        torch.testing.assert_close(model.log_prob(row, label), density + torch.linalg.slogdet(jacobian).logabsdet)


def test_hybrid_posterior_depends_on_all_pixels_but_not_the_auxiliary_flow() -> None:
    model = started(build("scnf-hybrid", (1, 8, 8), 3), (1, 8, 8), noise=0.2).double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    posterior = model(Batch(x, torch.tensor([0, -1]))).class_log_probs
    posterior[:, 0].sum().backward()
    assert x.grad is not None and (x.grad != 0).all()
    assert all(parameter.grad is None for parameter in model.auxiliary.parameters())


@pytest.mark.parametrize("steps", [0, 2])
def test_vectors_density_moves_by_the_log_of_the_scale_alone(steps: int) -> None:
    x = torch.randn(40, 4, dtype=torch.float64)
    factor, offset = torch.tensor([0.01, 3.0, 1e4, 1.0]).double(), torch.tensor([5.0, 0.0, -1e6, 0.1]).double()
    densities, samples = [], []
    for rows in (x, factor * x + offset):
        torch.manual_seed(0)
        model = build("scnf-vectors", (4,), 3, levels=None, steps=steps).double()
        columns = Columns.of(rows)
        standardize(model, columns.mean, columns.scale)
        model = started(model, rows[:8])
        densities.append(model.log_likelihood(rows))
        torch.manual_seed(1)
        samples.append(model.sample(torch.arange(3)))
    torch.testing.assert_close(densities[1], densities[0] - factor.log().sum(), rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(samples[1], factor * samples[0] + offset, rtol=1e-9, atol=1e-6)


def test_vectors_without_steps_have_a_linear_posterior() -> None:
    model = started(build("scnf-vectors", (3,), 2, levels=None, steps=0), torch.rand(8, 3)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    middle = model.class_log_probs(torch.stack([x[0], x.mean(dim=0), x[1]]))
    logits = middle[:, 1] - middle[:, 0]
    torch.testing.assert_close(logits[1], logits[[0, 2]].mean(), rtol=1e-9, atol=1e-9)


IMAGE = (1, 8, 8)
ERRORS: dict[str, tuple[str, tuple[int, ...], dict[str, object], str]] = {
    "points-for-images": (
        "scnf-fast",
        (2,),
        {},
        r"shape must be \(C, H, W\) .* for scnf-fast, not \[2\].*scnf-vectors",
    ),
    "odd-for-reader": ("scnf-reader", (1, 8, 7), {}, "shape must be of even height and width.* recipe scnf-fast"),
    "odd-for-hybrid": ("scnf-hybrid", (1, 7, 8), {}, "shape must be of even height and width.* recipe scnf-fast"),
    "too-narrow": ("scnf-paper", (1, 1, 8), {}, "shape must be .* of at least 2x2 pixels"),
    "images-for-points": ("scnf-toy", IMAGE, {}, "shape must be .* for images use the recipe scnf-fast"),
    "one-dimension": ("scnf-toy", (1,), {}, "at least 2 dimensions"),
    "unknown-recipe": ("scnf-slow", IMAGE, {}, "recipe must be one of scnf-fast, .*; not 'scnf-slow'"),
    "unknown-argument": (
        "scnf-fast",
        IMAGE,
        {"width": 3},
        "width is not an argument of scnf-fast, which takes .*channels",
    ),
    "other-part": ("scnf-fast", IMAGE, {"means": "data"}, "means has an effect with conditional gaussian alone"),
    "conditional": ("scnf-fast", IMAGE, {"conditional": "vae"}, "conditional must be one of flow, gaussian; not 'vae'"),
    "no-share": ("scnf-fast", IMAGE, {"semantic_share": 0.0}, "semantic_share must be above 0 and not above 1, not 0"),
    "linear": ("scnf-fast", IMAGE, {"linear": "lu"}, "linear must be one of full, plu, householder, qr; not 'lu'"),
    "network": (
        "scnf-fast",
        IMAGE,
        {"network": "mlp"},
        "network must be one of conv, resnet, .*; not 'mlp'",
    ),
    "scale": ("scnf-fast", IMAGE, {"scale": "exp"}, "scale must be one of sigmoid, symmetric; not 'exp'"),
    "too-wide-for-hybrid": (
        "scnf-hybrid",
        (3, 512, 512),
        {},
        "shape gives 196608 details .* 4096 at most",
    ),
    "too-wide": ("scnf-gmm", (3, 63, 63), {}, "leaves 11907 features .* at most 4096: crop or resize"),
    "simplex": (
        "scnf-toy",
        (2,),
        {"conditional": "gaussian", "means": "simplex"},
        "means .* 4 vertices in 3",
    ),
}


@pytest.mark.parametrize(("recipe", "shape", "arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_build_refuses_invalid_arguments(
    recipe: str, shape: tuple[int, ...], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        build(recipe, shape, 4, **arguments)


def every_recipe() -> list[tuple[str, dict[str, object]]]:
    """Every recipe with its defaults, and the variational ones with the other parts that they can have."""
    small: dict[str, object] = dict(hidden=16, layers=1)
    more = [("m2", labels) for labels in LABEL_DRAWS]
    return [
        *((recipe, {} if recipe in FLOWS or recipe == "scnf-reader" else small) for recipe in RECIPES),
        ("classifier", {"classifier": "residual"}),
        *((recipe, {**small, "labels": labels, "num_samples": 2}) for recipe, labels in more),
        *(("m1", {**small, "likelihood": likelihood}) for likelihood in LIKELIHOODS),
        *(("adgm", {**small, "posterior": posterior}) for posterior in POSTERIORS),
        ("m2", {**small, "importance_samples": 3, "class_chunk": 2}),
        ("m2", {**small, "encoder": "conv", "decoder": "conv", "classifier": "conv"}),
        ("scnf-fast", {"conditional": "gaussian", "class_chunk": 2}),
    ]


def built(recipe: str, arguments: dict[str, object]) -> tuple[JointModel, tuple[int, ...]]:
    shape = SMALL.get(recipe, (1, 8, 8))
    parts = {"m1": build("m1", shape, 3, levels=17, hidden=8, latent=4)} if recipe == "m1-m2" else {}
    return build(recipe, shape, 3, levels=None if recipe in VECTORS else 17, **arguments, **parts), shape


@pytest.mark.parametrize(("recipe", "arguments"), every_recipe(), ids=str)
def test_recipe_of_no_rows_gives_no_rows(recipe: str, arguments: dict[str, object]) -> None:
    model, shape = built(recipe, arguments)
    model.initialize(torch.rand(8, *shape), torch.arange(8) % 3)
    x, y = torch.rand(0, *shape), torch.zeros(0, dtype=torch.long)
    for training in (True, False):
        output = model.train(training)(Batch(x, y))
        assert output.log_likelihood.shape == (0,) and output.class_log_probs.shape == (0, 3)
        assert model.representation(x).shape[0] == 0
        if model.likelihood_of != "labels":
            assert model.log_likelihood(x).shape == model.log_likelihood(x, 2).shape == (0,)
            assert model.sample(y).shape == (0, *shape)
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 2, 4), (3, 2, 2)], ids=str)
@torch.no_grad()
def test_hybrid_takes_the_smallest_images(shape: tuple[int, ...]) -> None:
    model = started(build("scnf-hybrid", shape, 3, channels=8, semantic_hidden=16), shape)
    x = torch.rand(5, *shape)
    restored, _ = model.transform.inverse(torch.cat(model.latents(x)[:2], dim=1))
    torch.testing.assert_close(restored, x, rtol=0, atol=1e-4)
    assert model.log_likelihood(x).isfinite().all() and model.sample(torch.arange(3)).shape == (3, *shape)


def test_build_accepts_numpy_integers() -> None:
    sizes = np.array([1, 8, 8])
    model = build("m2", sizes, np.int64(10), levels=np.int64(17), hidden=np.int64(8), latent=np.int64(4))
    assert model.sample(torch.arange(3)).shape == (3, 1, 8, 8)
    flow = build("scnf-digits", sizes, np.int64(10), levels=np.int64(17), channels=np.int64(8))
    assert flow.log_likelihood(torch.rand(2, 1, 8, 8)).shape == (2,)


@pytest.mark.parametrize("network", ["resnet", "resnet-reflect"])
def test_coupling_network_is_chosen_by_name(network: str) -> None:
    def padding(model: SemiConditionalFlow) -> set[str]:
        return {layer.padding_mode for layer in model.transform.modules() if isinstance(layer, nn.Conv2d)}

    model = build("scnf-fast", IMAGE, 3, network=network, blocks=2, channels=8, steps=1)
    plain = build("scnf-fast", IMAGE, 3, channels=8, steps=1)
    assert len(model.state_dict()) > len(plain.state_dict())
    assert padding(model) == {"reflect" if network == "resnet-reflect" else "zeros"} and padding(plain) == {"zeros"}


def test_recipe_subclass_keeps_range_condition_and_documentation() -> None:
    from scnf.arguments import TRAINING, Condition, Range, arguments_of, field_docs

    notes = arguments_of(RECIPES["scnf-toy"])["means"].notes
    assert TRAINING in notes and Condition("conditional", ("gaussian",)) in notes
    assert Range(1, 16_384) in arguments_of(RECIPES["scnf-digits"])["channels"].notes
    assert field_docs(RECIPES["scnf-digits"])["channels"].startswith(
        "Width of the coupling networks of the coarse image"
    )
