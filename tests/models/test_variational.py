"""The variational family as its recipes build it: shapes, gradients, and what each model must and must not see."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scnf import UNLABELLED
from scnf.batch import Batch
from scnf.distributions import GaussianLatent
from scnf.distributions.labels import LABEL_DRAWS
from scnf.distributions.latent import merge_gaussians
from scnf.models.ladder import Ladder
from scnf.models.m2 import ADGM, M1M2, M2
from scnf.models.vae import VAE
from scnf.nn import ConvDecoder, Encoder, Features
from scnf.objectives import Weights, semi_supervised_loss
from scnf.recipes import RECIPES, FlowRecipe, ScnfReader, build
from scnf.transforms import ActNorm

VARIATIONAL = [name for name, recipe in RECIPES.items() if not issubclass(recipe, FlowRecipe | ScnfReader)]
K = 4
SHAPE = (1, 8, 8)
LABELS = ["enumerate", *LABEL_DRAWS]
WITH_LABELS = ["m2", "m1-m2", "adgm", "ladder-dgm"]
SMALL: dict[str, dict[str, Any]] = {
    "m1": dict(latent=4),
    "m2": dict(latent=4),
    "m1-m2": dict(latent=3),
    "adgm": dict(latent=4, auxiliary=3),
    "ladder-vae": dict(latent=(4, 3, 2)),
    "ladder-dgm": dict(latent=(4, 3, 2)),
    "gumbel-autoencoder": dict(variables=3, categories=4),
    "classifier": dict(),
}


def made(recipe: str, shape: tuple[int, ...] = SHAPE, noise: float = 0.1, **arguments: Any) -> Any:
    """A small model with perturbed parameters, in training mode."""
    torch.manual_seed(0)
    given = {"hidden": 16} | SMALL[recipe] | arguments
    if recipe == "m1-m2":
        given = {"m1": made("m1", shape)} | given
    model = build(recipe, shape, K, levels=17, **given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def batch(rows: int = 12, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Images, of which every other one has a label."""
    y = torch.arange(rows) % K
    y[::2] = UNLABELLED
    return torch.rand(rows, *shape), y


def settings(recipe: str) -> list[dict[str, Any]]:
    """The arguments with which a recipe is tested."""
    if recipe == "classifier":
        return [{}, dict(norm="batch")]
    many = dict(num_samples=2, importance_samples=2)
    tried: list[dict[str, Any]] = [{}, many]
    if recipe in WITH_LABELS:
        tried += [dict(labels=kind, num_samples=2) for kind in LABELS]
        tried += [dict(class_chunk=3)]
    if recipe != "gumbel-autoencoder":
        tried += [dict(posterior="planar"), dict(posterior="coupling", posterior_steps=1)]
    if recipe != "m1-m2":
        tried += [dict(likelihood="logistic"), dict(likelihood="gaussian"), dict(norm="layer", blocks=1)]
        tried += [dict(encoder="conv", decoder="conv")]
    return tried


def words(given: dict[str, Any]) -> str:
    return "-".join(f"{value}" for value in given.values()) or "defaults"


EVERY = [pytest.param(name, given, id=f"{name}-{words(given)}") for name in VARIATIONAL for given in settings(name)]
every_setting = pytest.mark.parametrize(("recipe", "given"), EVERY)


def frozen(recipe: str, name: str) -> bool:
    return recipe == "m1-m2" and name.startswith("m1.")


# --- all of them


@every_setting
def test_forward_gives_one_finite_row_for_each_image(recipe: str, given: dict[str, Any]) -> None:
    model, (x, y) = made(recipe, **given), batch()
    model.initialize(x, y)
    for mode in (True, False):
        output = model.train(mode)(Batch(x, y))
        assert output.log_likelihood.shape == (12,) and output.class_log_probs.shape == (12, K)
        assert output.log_likelihood.isfinite().all()
        torch.testing.assert_close(output.class_log_probs.exp().sum(dim=1), torch.ones(12), rtol=0, atol=1e-5)
        assert (output.kl is None) == (recipe == "classifier")
        assert output.kl is None or (output.kl.shape == (12,) and output.kl.isfinite().all())


@every_setting
def test_loss_gives_all_trained_parameters_a_gradient(recipe: str, given: dict[str, Any]) -> None:
    model, (x, y) = made(recipe, **given), batch(24)
    loss, _ = semi_supervised_loss(model(Batch(x, y)), Batch(x, y), Weights(classifier=1.0))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        if frozen(recipe, name):
            assert not parameter.requires_grad and parameter.grad is None, name
            continue
        assert parameter.requires_grad and parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("recipe", [name for name in VARIATIONAL if name not in ("adgm", "m1-m2")])
@torch.no_grad()
def test_representation_is_the_input_of_the_last_classifier_layer(recipe: str) -> None:
    model, (x, _) = made(recipe).eval(), batch()
    last = {
        "classifier": lambda rows: model.network.head(rows),
        **dict.fromkeys(("m2", "ladder-dgm"), lambda rows: model.classifier.head(rows)),
    }.get(recipe, lambda rows: model.classifier(rows))
    torch.manual_seed(3)
    expected = model.class_log_probs(x)
    torch.manual_seed(3)
    torch.testing.assert_close(torch.log_softmax(last(model.representation(x)), dim=1), expected)


@torch.no_grad()
def test_representation_of_m1_m2_is_that_of_m2_at_a_mean_of_draws() -> None:
    model, (x, _) = made("m1-m2", norm="none").eval(), batch()
    with torch.no_grad():
        head = model.m1.ladder.heads[0]
        for layer in (module for module in head.modules() if isinstance(module, nn.Linear)):
            last = layer
        last.weight.zero_()  # one posterior for all images: mean 2, a standard deviation of 4e-5
        last.bias.copy_(torch.tensor([2.0] * 4 + [-10.0] * 4))
    rows = model.representation(x)
    expected = model.m2.classifier.body(torch.full((1, 4), 2.0)).expand_as(rows)
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_representation_of_adgm_is_that_of_the_image_alone() -> None:
    model, (x, _) = made("adgm").eval(), batch()
    torch.manual_seed(3)
    first = model.representation(x)
    torch.manual_seed(3)
    torch.testing.assert_close(first, model.classifier.body(model.likelihood.observe(x)))


@pytest.mark.parametrize("recipe", VARIATIONAL)
def test_evaluation_outputs_do_not_depend_on_hidden_labels(recipe: str) -> None:
    model, (x, y) = made(recipe).eval(), batch()
    other = torch.where(y == UNLABELLED, y, (y + 1) % K)
    outputs = []
    for labels in (y, other):
        torch.manual_seed(1)
        outputs.append(model(Batch(x, labels)))
    hidden = y == UNLABELLED
    assert torch.equal(outputs[0].log_likelihood[hidden], outputs[1].log_likelihood[hidden])
    assert torch.equal(outputs[0].class_log_probs, outputs[1].class_log_probs)
    assert not torch.equal(outputs[0].log_likelihood[~hidden], outputs[1].log_likelihood[~hidden])


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("recipe", WITH_LABELS)
def test_training_outputs_do_not_depend_on_hidden_labels(recipe: str, labels: str) -> None:
    # nor do the labels of other rows reach a row, or the classifier
    model, (x, y) = made(recipe, labels=labels, num_samples=2, norm="none"), batch()
    other = torch.where(y == UNLABELLED, y, (y + 1) % K)
    outputs = []
    for given in (y, other):
        torch.manual_seed(1)
        outputs.append(model(Batch(x, given)))
    hidden = y == UNLABELLED
    assert torch.equal(outputs[0].log_likelihood[hidden], outputs[1].log_likelihood[hidden])
    assert torch.equal(outputs[0].class_log_probs, outputs[1].class_log_probs)


@pytest.mark.parametrize("recipe", [name for name in VARIATIONAL if name != "classifier"])
@torch.no_grad()
def test_sample_and_log_likelihood_have_one_valid_row_for_each_input(recipe: str) -> None:
    model, (x, _) = made(recipe).eval(), batch(5)
    samples = model.sample(torch.tensor([3, 0, 0, 1, 2, 2]))
    assert samples.shape == (6, *SHAPE) and samples.min() >= 0 and samples.max() <= 1
    for count in (1, 3):
        bound = model.log_likelihood(x, count)
        assert bound.shape == (5,) and bound.isfinite().all() and (bound < 0).all()
    assert not model.exact and model.likelihood_of == "binary"


@pytest.mark.parametrize("likelihood", ["logistic", "gaussian"])
@torch.no_grad()
def test_likelihood_of_grey_levels_is_said_to_be_of_levels(likelihood: str) -> None:
    model = made("m2", likelihood=likelihood)
    assert model.likelihood_of == "levels"
    assert model.sample(torch.tensor([0, 1])).shape == (2, *SHAPE)


def test_plain_classifier_refuses_likelihoods_and_samples() -> None:
    model, (x, y) = made("classifier"), batch()
    assert (model(Batch(x, y)).log_likelihood[y == UNLABELLED] == 0).all() and model.likelihood_of == "labels"
    for call in (lambda: model.log_likelihood(x), lambda: model.sample(y)):
        with pytest.raises(NotImplementedError, match="a plain classifier"):
            call()


@pytest.mark.parametrize("recipe", VARIATIONAL)
@torch.no_grad()
def test_loaded_model_gives_the_same_likelihoods(recipe: str) -> None:
    model, (x, y) = made(recipe).eval(), batch()
    loaded = made(recipe, noise=0.3).eval()
    loaded.load_state_dict(model.state_dict())
    outputs = []
    for each in (model, loaded):
        torch.manual_seed(1)
        outputs.append(each(Batch(x, y)).log_likelihood)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("recipe", WITH_LABELS)
def test_anneal_reaches_the_temperature_of_label_draws(recipe: str) -> None:
    model = made(recipe, labels="gumbel", temperature=1.0, final_temperature=0.25)
    model.anneal(0.5)
    labels = model.m2.labels if recipe == "m1-m2" else model.labels
    assert float(labels.temperature.value) == pytest.approx(0.5)


# --- enumeration


def narrow(module: nn.Module) -> None:
    """Posteriors whose draws are their means, and divergences in closed form: no noise is left."""
    for latent in module.modules():
        if isinstance(latent, GaussianLatent):

            def draw(
                parameters: Tensor, prior: Any = None, analytic: bool = True, latent: GaussianLatent = latent
            ) -> tuple[Tensor, Tensor]:
                _, kl = GaussianLatent.draw(latent, parameters, prior)
                return parameters[:, : latent.features], kl

            latent.draw = draw  # type: ignore[method-assign]


@pytest.mark.parametrize("recipe", ["m2", "ladder-dgm", "m1-m2"])
@torch.no_grad()
def test_class_chunk_does_not_change_likelihoods(recipe: str) -> None:
    model, (x, y) = made(recipe, class_chunk=3).double().eval(), batch()
    m2 = model.m2 if recipe == "m1-m2" else model
    narrow(m2)
    values = []
    for chunk in (3, None, 1):
        m2.class_chunk = chunk
        torch.manual_seed(1)
        values.append(model(Batch(x.double(), y)))
    assert values[0].log_likelihood.std() > 0
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_labelled_rows_have_the_column_of_their_label() -> None:
    model, (x, _) = made("m2", likelihood="gaussian").double().eval(), batch(5)
    narrow(model)
    x = x.double()
    table = model.table(x, analytic=True)
    for label in range(K):
        y = torch.full((5,), label)
        torch.testing.assert_close(model(Batch(x, y)).log_likelihood, table.log_joint[:, label])
    assert (table.log_joint.std(dim=1) > 0).all()


# --- divergences


@pytest.mark.parametrize("recipe", ["m1", "m2", "adgm", "ladder-dgm", "m1-m2", "gumbel-autoencoder"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 4.0])
def test_kl_weight_scales_the_divergence_alone(recipe: str, weight: float) -> None:
    model, (x, y) = made(recipe), batch()
    output = model(Batch(x, y))
    loss, metrics = semi_supervised_loss(output, Batch(x, y), Weights(kl=weight))
    expected = -(output.log_likelihood - (weight - 1) * output.kl).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["kl"], output.kl.mean().detach())


@pytest.mark.parametrize("labels", [1.0, 5.0])
def test_labelled_weight_scales_their_divergence_too(labels: float) -> None:
    model, (x, y) = made("m2"), batch()
    output = model(Batch(x, y))
    loss, metrics = semi_supervised_loss(output, Batch(x, y), Weights(labelled=labels, kl=0.5))
    weights = torch.where(y == UNLABELLED, 1.0, labels)
    expected = (weights * (-output.log_likelihood - 0.5 * output.kl)).sum() / weights.sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["unlabelled_nll"], -output.log_likelihood[y == UNLABELLED].mean().detach())


@pytest.mark.parametrize("recipe", ["m2", "ladder-dgm", "adgm"])
@torch.no_grad()
def test_divergence_of_a_hidden_label_is_the_mean_over_labels(recipe: str) -> None:
    model, (x, _) = made(recipe).eval(), batch(6)
    seen = (x > 0.5).float()
    torch.manual_seed(1)
    table = model.table(seen, analytic=True)
    torch.manual_seed(1)
    output = model.bound(seen, torch.full((6,), UNLABELLED))
    q = table.class_logits.softmax(dim=1)
    torch.testing.assert_close(output.kl, (q * table.kl).sum(dim=1))
    log_q = table.class_logits.log_softmax(dim=1)
    torch.testing.assert_close(output.log_likelihood, (q * (table.log_joint - log_q)).sum(dim=1))
    for label in range(K):
        torch.manual_seed(1)
        output = model.bound(seen, torch.full((6,), label))
        torch.testing.assert_close(output.kl, table.kl[:, label])


@torch.no_grad()
def test_divergence_added_to_the_bound_leaves_the_decoder_likelihood() -> None:
    # log p(x | z) alone is left, in each model, once the divergence and the label are added back
    for recipe in ("m1", "m2"):
        model, (x, _) = made(recipe).double().eval(), batch(6)
        seen = (x > 0.5).double()
        drawn: list[Tensor] = []
        handle = model.decoder.register_forward_hook(lambda _module, _inputs, output, drawn=drawn: drawn.append(output))
        table = model.table(seen, analytic=True)
        handle.remove()
        label = table.class_logits if recipe == "m1" else model.prior.log_prob_all()
        rows = 1 if recipe == "m1" else K
        log_px = model.likelihood.log_prob(seen.repeat_interleave(rows, dim=0), drawn[0]).view(6, rows)
        torch.testing.assert_close(table.log_joint, log_px - table.kl + label)


# --- ladders


class Given(nn.Module):
    """A network with one answer."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = torch.tensor(numbers)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        return self.numbers.expand(len(inputs), -1)


def test_ladder_draws_from_its_merged_posterior() -> None:
    # the lower posterior is sharp at 3, its prior wide at -2, the top one sharp at 1
    latents = [GaussianLatent(1), GaussianLatent(1)]
    heads = [Given(3.0, -3.0), Given(1.0, -8.0)]
    ladder = Ladder([nn.Identity(), nn.Identity()], heads, latents, [Given(-2.0, -1.0)])
    features = ladder.up(torch.zeros(5000, 1))
    (lower, upper), kl = ladder.down(features, None, None, analytic=True)
    merged = merge_gaussians(torch.tensor([[3.0, -3.0]]), torch.tensor([[-2.0, -1.0]]))[0]
    assert merged[0] > 2.8
    torch.testing.assert_close(lower.mean(), merged[0], rtol=0, atol=0.01)
    torch.testing.assert_close(lower.std(), merged[1].exp(), rtol=0.05, atol=0)
    torch.testing.assert_close(upper, torch.ones(5000, 1), rtol=0, atol=0.01)
    own = torch.distributions.Normal(merged[0], merged[1].exp())
    below = torch.distributions.kl_divergence(own, torch.distributions.Normal(-2.0, torch.tensor(-1.0).exp()))
    top = torch.distributions.Normal(1.0, torch.tensor(-8.0).exp())
    above = torch.distributions.kl_divergence(top, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, (below + above).expand(5000))


class Recorder:
    """Keeps what a function returns."""

    def __init__(self, function: Any) -> None:
        self.function, self.results = function, list[Any]()

    def __call__(self, *arguments: Any) -> Any:
        self.results.append(self.function(*arguments))
        return self.results[-1]


@pytest.mark.parametrize("recipe", ["ladder-vae", "ladder-dgm", "m2", "adgm"])
def test_decoder_takes_the_lowest_draw(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = made(recipe), batch()
    recorder = Recorder(model.ladder.down)
    monkeypatch.setattr(model.ladder, "down", recorder)
    decoded: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _module, inputs: decoded.append(inputs[0]))
    model(Batch(x, y))
    assert len(decoded) == len(recorder.results) == 1
    drawn, _ = recorder.results[0]
    assert torch.equal(decoded[0], drawn[0]) and [z.shape[1] for z in drawn] == [
        latent.features for latent in model.ladder.latents
    ]


@pytest.mark.parametrize("recipe", ["ladder-vae", "ladder-dgm"])
def test_ladder_layers_see_the_draw_above(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = made(recipe), batch()
    recorder = Recorder(model.ladder.down)
    monkeypatch.setattr(model.ladder, "down", recorder)
    seen: dict[int, Tensor] = {}
    for index, prior in enumerate(model.ladder.priors):
        prior.register_forward_pre_hook(lambda _module, inputs, index=index: seen.update({index: inputs[0]}))
    model(Batch(x, y))
    drawn, _ = recorder.results[0]
    assert set(seen) == {0, 1} and torch.equal(seen[0], drawn[1]) and torch.equal(seen[1], drawn[2])


LADDERS: dict[str, tuple[int, int, int, int]] = {
    "bodies": (1, 2, 2, 1),
    "heads": (2, 1, 2, 1),
    "priors": (2, 2, 2, 0),
    "latents": (2, 2, 1, 1),
}


@pytest.mark.parametrize("counts", LADDERS.values(), ids=LADDERS)
def test_ladder_of_uneven_parts_is_refused(counts: tuple[int, int, int, int]) -> None:
    bodies, heads, latents, priors = ([nn.Identity() for _ in range(count)] for count in counts)
    gaussians: Any = [GaussianLatent(1) for _ in latents]
    with pytest.raises(ValueError, match="latents must be as many as bodies and heads, and one more than priors"):
        Ladder(bodies, heads, gaussians, priors)


# --- what single models promise


def test_m1_classifier_gives_the_autoencoder_no_gradient() -> None:
    model, (x, _) = made("m1"), batch()
    model(Batch(x, torch.arange(12) % K)).class_log_probs.square().sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"classifier"}


def test_m1_stays_frozen_inside_m1_m2() -> None:
    model, (x, y) = made("m1-m2"), batch()
    before = copy.deepcopy(model.m1.state_dict())
    for mode in (True, False, True):
        model.train(mode)
        assert all(not module.training for module in model.m1.modules())
        assert model.m2.training == mode
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        semi_supervised_loss(model(Batch(x, y)), Batch(x, y))[0].backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.m1.state_dict().items())
    assert isinstance(model, M1M2)


def test_m1_that_does_not_fit_m1_m2_is_refused() -> None:
    with pytest.raises(ValueError, match="train one"):
        build("m1-m2", SHAPE, K, levels=17)
    with pytest.raises(ValueError, match="trained on inputs of shape"):
        build("m1-m2", (1, 6, 6), K, levels=17, m1=made("m1"))
    with pytest.raises(ValueError, match="one Gaussian latent"):
        build("m1-m2", SHAPE, K, levels=17, m1=made("gumbel-autoencoder"))
    with pytest.raises(ValueError, match="one Gaussian latent"):
        build("m1-m2", SHAPE, K, levels=17, m1=made("ladder-vae"))
    with pytest.raises(ValueError, match="the latent of M1 is 4"):
        M1M2(made("m1"), build("m2", (5,), K, levels=None, likelihood="gaussian"))


@pytest.mark.parametrize("latent", [3, (4, 3)])
def test_adgm_uses_one_auxiliary_draw_in_all_parts(
    latent: int | tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, y) = made("adgm", latent=latent), batch()
    assert isinstance(model, ADGM)
    recorder = Recorder(model.auxiliary.sample)
    monkeypatch.setattr(model.auxiliary, "sample", recorder)
    seen: dict[str, Tensor] = {}
    model.classifier.register_forward_pre_hook(lambda _module, inputs: seen.update(classifier=inputs[1]))
    model.ladder.heads[-1].register_forward_pre_hook(lambda _module, inputs: seen.update(top=inputs[1]))
    model(Batch(x, y))
    assert len(recorder.results) == 1
    a, _ = recorder.results[0]
    assert torch.equal(seen["classifier"], a)
    label, given = seen["top"][:, :K], seen["top"][:, K:]
    assert torch.equal(given, a.repeat_interleave(K, dim=0))
    assert torch.equal(label, torch.eye(K).repeat(12, 1))


def test_m2_parts_see_the_label() -> None:
    for recipe in ("m2", "ladder-dgm", "adgm"):
        model, (x, _) = made(recipe), batch()
        assert isinstance(model, M2)
        seen: list[Tensor] = []
        parts = [model.decoder, model.ladder.heads[-1], *model.ladder.priors]
        for part in parts:
            part.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1][:, :K]))  # noqa: B023
        model(Batch(x, torch.full((12,), UNLABELLED)))
        assert len(seen) == len(parts) and all(torch.equal(each, torch.eye(K).repeat(12, 1)) for each in seen)


@torch.no_grad()
def test_m1_samples_the_requested_class() -> None:
    model = made("m1", latent=2)
    assert isinstance(model, VAE)
    model.classifier = nn.Linear(2, K)
    model.classifier.weight.copy_(4 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]))
    model.classifier.bias.zero_()
    decoded: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _module, inputs: decoded.append(inputs[0]))
    y = torch.arange(K).repeat(50)
    model.sample(y)
    assert (model.classifier(decoded[0]).argmax(dim=1) == y).float().mean() > 0.8


def test_initialize_starts_the_flow_posterior_once_on_its_draws() -> None:
    model, (x, y) = made("m2"), batch()
    latent = model.ladder.latents[0]
    latent.transform = ActNorm(latent.features)
    draws: list[Tensor] = []
    latent.transform.register_forward_pre_hook(lambda _module, inputs: draws.append(inputs[0]))
    model.initialize(x, y)
    torch.testing.assert_close(latent.transform.shift.detach(), -draws[0].mean(dim=0))
    model.initialize(x, y)
    assert len(draws) == 1, "what is started is not run again"


def test_initialize_refuses_standardised_pixels() -> None:
    _, y = batch()
    with pytest.raises(ValueError, match="do not standardise them"):
        made("m2").initialize(torch.randn(12, *SHAPE), y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(labels="concrete"), "labels must be one of enumerate, gumbel"),
        (dict(likelihood="poisson"), "likelihood must be one of bernoulli, logistic, gaussian; not 'poisson'"),
        (dict(posterior="spline"), "posterior must be one of gaussian, planar, coupling; not 'spline'"),
        (dict(posterior="coupling", latent=1), "latent must be 2 or more for a coupling posterior, not 1"),
        (dict(encoder="transformer"), "encoder must be one of mlp, conv; not"),
        (dict(norm="group"), "norm must be one of batch, layer, none; not"),
        (dict(labels="score"), "num_samples must be 2 or more, and importance_samples 1"),
        (dict(colour=1), "colour is not an argument of m2, which takes classifier, "),
    ],
)
def test_m2_refuses_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("m2", SHAPE, K, levels=17, **arguments)


# --- convolutions


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 7, 9)])
def test_convolutional_networks_take_any_size(shape: tuple[int, ...]) -> None:
    given = dict(encoder="conv", decoder="conv", classifier="conv", latent=3)
    for arguments in (given, given | dict(likelihood="logistic", norm="none", labels="gumbel")):
        model, (x, y) = made("m2", shape, **arguments), batch(4, shape)
        semi_supervised_loss(model(Batch(x, y)), Batch(x, y))[0].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert model.sample(torch.tensor([0, 3])).shape == (2, *shape)


@pytest.mark.parametrize("make", [lambda: Features((3,), kind="conv"), lambda: ConvDecoder(2, (3,))])
def test_convolutional_networks_of_points_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="for points there is mlp"):
        make()


def test_encoder_gives_its_context_to_the_head() -> None:
    class Head(nn.Module):
        def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
            return inputs if context is None else inputs + context

    encoder = Encoder(nn.Flatten(), Head())
    x = torch.rand(2, *SHAPE)
    assert torch.equal(encoder(x), x.flatten(1))
    assert torch.equal(encoder(x, torch.ones(2, 1)), x.flatten(1) + 1)


@pytest.mark.parametrize("kind", ["m1", "m2", "adgm"])
def test_points_accept_a_gaussian_likelihood_alone(kind: str) -> None:
    model = build(kind, (2,), K, levels=None, likelihood="gaussian", latent=2, hidden=8)
    x, y = 3 * torch.randn(12, 2), torch.arange(12) % K
    model.initialize(x, y)
    assert model(Batch(x, y)).log_likelihood.shape == (12,) and model.sample(y).shape == (12, 2)
    with pytest.raises(ValueError, match="likelihood must be gaussian for points"):
        build(kind, (2,), K, levels=None, latent=2, hidden=8)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("recipe", [name for name in VARIATIONAL if name != "classifier"])
@torch.no_grad()
def test_views_need_the_class_posterior_alone(recipe: str, samples: int) -> None:
    model = made(recipe, num_samples=samples).eval()
    model.likelihood.observe = lambda x: x  # type: ignore[method-assign]
    x, y = batch(8)
    torch.manual_seed(1)
    output = model(Batch(x, y, moved=x[:2], moved_y=y[:2], views=x[3:]))
    torch.manual_seed(1)
    own = model(Batch(x, y))
    for name in ("log_likelihood", "class_log_probs", "kl"):
        torch.testing.assert_close(getattr(output, name), getattr(own, name))
    assert output.moved.shape == (2, K) and output.views.shape == (5, K) and own.moved is own.views is None
    torch.testing.assert_close(output.views.exp().sum(dim=1), torch.ones(5))
    if recipe in ("m2", "ladder-dgm"):  # their classifier sees the image and no draw
        torch.testing.assert_close(output.moved, own.class_log_probs[:2])
        torch.testing.assert_close(output.views, own.class_log_probs[3:])
    torch.testing.assert_close(model.class_log_probs(x).exp().sum(dim=1), torch.ones(8))
