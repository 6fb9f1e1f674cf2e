"""Recipes of the variational family, as code: networks, latents and likelihood of each model."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from scnf.distributions import (
    LIKELIHOODS,
    CategoricalLatent,
    ClassPrior,
    GaussianLatent,
    PixelLikelihood,
    Temperature,
    make_label_draw,
)
from scnf.models.base import JointModel
from scnf.models.classifier import Classifier
from scnf.models.ladder import Ladder
from scnf.models.m2 import ADGM, M1M2, M2
from scnf.models.recipe import defaults_of, override
from scnf.models.vae import VAE
from scnf.nn import MLP, ConvDecoder, Encoder, Features
from scnf.transforms import LINEAR, CompositeTransform, Planar, Transform, two_way_coupling

Shape = tuple[int, ...]
CONTEXT = 32
"""Width of what an encoder tells a posterior flow."""


def _likelihood(kind: str, shape: Shape, levels: int | None) -> PixelLikelihood:
    if kind not in LIKELIHOODS:
        raise ValueError(f"model.likelihood is {', '.join(LIKELIHOODS)}; not {kind!r}")
    return LIKELIHOODS[kind](shape, levels)


def planar_posterior(features: int, steps: int) -> Transform:
    """`steps` planar layers, whose parameters depend on x (arXiv 1505.05770)."""
    return CompositeTransform([Planar(features, CONTEXT) for _ in range(steps)])


def coupling_posterior(features: int, steps: int) -> Transform:
    """`steps` of [dense mixing, two-way affine coupling], given a context of x."""
    if features < 2:
        raise ValueError("a coupling posterior needs a latent of at least 2 features: set model.latent")

    def network(inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, outputs, 64, 0, context_features=CONTEXT)

    layers: list[Transform] = []
    for _ in range(steps):
        layers += [LINEAR["full"](features), two_way_coupling(network, features, "symmetric")]
    return CompositeTransform(layers)


POSTERIORS = {"planar": planar_posterior, "coupling": coupling_posterior}
"""Flows on a Gaussian posterior by name, as (width, steps) -> transform with a context of `CONTEXT` features."""


def gaussian_latent(features: int, posterior: str = "gaussian", posterior_steps: int = 4) -> GaussianLatent:
    """A latent whose posterior is a diagonal Gaussian, or a flow of `posterior_steps` steps on one."""
    if posterior == "gaussian":
        return GaussianLatent(features)
    if posterior not in POSTERIORS:
        raise ValueError(f"model.posterior is gaussian, {', '.join(POSTERIORS)}; not {posterior!r}")
    return GaussianLatent(features, POSTERIORS[posterior](features, posterior_steps), CONTEXT)


def _decoder(
    kind: str, features: int, likelihood: PixelLikelihood, hidden: int, blocks: int, context: int
) -> nn.Module:
    if kind == "conv":
        channels, *size = likelihood.shape
        return ConvDecoder(features, (likelihood.numbers * channels, *size), context_features=context)
    return MLP(features, likelihood.numbers * math.prod(likelihood.shape), hidden, blocks, context)


def _ladder(
    shape: Shape,
    latents: Sequence[GaussianLatent | CategoricalLatent],
    hidden: int,
    layers: int,
    encoder: str,
    norm: str,
    top_context: int,
    prior_context: int,
) -> Ladder:
    bodies = [Features(shape, hidden, layers, encoder, norm)]
    bodies += [Features((hidden,), hidden, 1, "mlp", norm) for _ in latents[1:]]
    contexts = [0] * (len(latents) - 1) + [top_context]
    heads = [MLP(hidden, latent.numbers, hidden, 0, context) for latent, context in zip(latents, contexts, strict=True)]
    priors = [
        MLP(upper.features, 2 * lower.features, hidden, 0, prior_context)
        for lower, upper in itertools.pairwise(latents)
    ]
    return Ladder(bodies, heads, latents, priors)


def _widths(latent: int | Sequence[int]) -> list[int]:
    return [latent] if isinstance(latent, int) else list(latent)


def _classifier(
    shape: Shape, num_classes: int, hidden: int, layers: int, kind: str, norm: str, context: int
) -> Encoder:
    head = MLP(hidden, num_classes, hidden, 0, context) if context else nn.Linear(hidden, num_classes)
    return Encoder(Features(shape, hidden, layers, kind, norm, dropout=0.5), head)


def build_vae(
    shape: Shape,
    num_classes: int,
    prior: ClassPrior,
    levels: int | None,
    latent: int | Sequence[int] = 50,
    hidden: int = 500,
    layers: int = 2,
    encoder: str = "mlp",
    decoder: str = "mlp",
    blocks: int = 0,
    norm: str = "batch",
    likelihood: str = "bernoulli",
    posterior: str = "gaussian",
    posterior_steps: int = 4,
    num_samples: int = 1,
    importance_samples: int = 1,
) -> VAE:
    """M1, or with several latents a ladder VAE."""
    pixels = _likelihood(likelihood, shape, levels)
    latents = [gaussian_latent(width, posterior, posterior_steps) for width in _widths(latent)]
    ladder = _ladder(shape, latents, hidden, layers, encoder, norm, 0, 0)
    network = _decoder(decoder, latents[0].features, pixels, hidden, blocks, 0)
    head = MLP(ladder.features, num_classes, hidden, 0)
    return VAE(pixels, ladder, network, head, num_classes, num_samples, importance_samples)


def build_gumbel_autoencoder(
    shape: Shape,
    num_classes: int,
    prior: ClassPrior,
    levels: int | None,
    variables: int = 30,
    categories: int = 10,
    temperature: float = 1.0,
    final_temperature: float | None = 0.5,
    hidden: int = 500,
    layers: int = 2,
    encoder: str = "mlp",
    decoder: str = "mlp",
    blocks: int = 0,
    norm: str = "batch",
    likelihood: str = "bernoulli",
    num_samples: int = 1,
    importance_samples: int = 1,
) -> VAE:
    """An autoencoder with one-hot latents (arXiv 1611.01144, section 4.2)."""
    pixels = _likelihood(likelihood, shape, levels)
    latent = CategoricalLatent(variables, categories, Temperature(temperature, final_temperature))
    ladder = _ladder(shape, [latent], hidden, layers, encoder, norm, 0, 0)
    network = _decoder(decoder, latent.features, pixels, hidden, blocks, 0)
    head = MLP(ladder.features, num_classes, hidden, 0)
    return VAE(pixels, ladder, network, head, num_classes, num_samples, importance_samples)


def build_m2(
    shape: Shape,
    num_classes: int,
    prior: ClassPrior,
    levels: int | None,
    latent: int | Sequence[int] = 50,
    hidden: int = 500,
    layers: int = 2,
    encoder: str = "mlp",
    decoder: str = "mlp",
    classifier: str = "mlp",
    blocks: int = 0,
    norm: str = "batch",
    likelihood: str = "bernoulli",
    posterior: str = "gaussian",
    posterior_steps: int = 4,
    labels: str = "enumerate",
    temperature: float = 0.67,
    final_temperature: float | None = None,
    num_samples: int = 1,
    importance_samples: int = 1,
    class_chunk: int | None = None,
) -> M2:
    """M2, or with several latents a ladder DGM."""
    pixels = _likelihood(likelihood, shape, levels)
    latents = [gaussian_latent(width, posterior, posterior_steps) for width in _widths(latent)]
    return M2(
        pixels,
        prior,
        _ladder(shape, latents, hidden, layers, encoder, norm, num_classes, num_classes),
        _decoder(decoder, latents[0].features, pixels, hidden, blocks, num_classes),
        _classifier(shape, num_classes, hidden, layers, classifier, norm, 0),
        make_label_draw(labels, temperature, final_temperature),
        num_samples,
        importance_samples,
        class_chunk,
    )


def build_adgm(
    shape: Shape,
    num_classes: int,
    prior: ClassPrior,
    levels: int | None,
    latent: int | Sequence[int] = 50,
    auxiliary: int = 50,
    hidden: int = 500,
    layers: int = 2,
    encoder: str = "mlp",
    decoder: str = "mlp",
    classifier: str = "mlp",
    blocks: int = 0,
    norm: str = "batch",
    likelihood: str = "bernoulli",
    posterior: str = "gaussian",
    posterior_steps: int = 4,
    labels: str = "enumerate",
    temperature: float = 0.67,
    final_temperature: float | None = None,
    num_samples: int = 1,
    importance_samples: int = 1,
    class_chunk: int | None = None,
) -> ADGM:
    """An auxiliary deep generative model."""
    pixels = _likelihood(likelihood, shape, levels)
    latents = [gaussian_latent(width, posterior, posterior_steps) for width in _widths(latent)]
    extra = gaussian_latent(auxiliary, posterior, posterior_steps)
    ladder = _ladder(shape, latents, hidden, layers, encoder, norm, num_classes + auxiliary, num_classes)
    return ADGM(
        pixels,
        prior,
        ladder,
        _decoder(decoder, latents[0].features, pixels, hidden, blocks, num_classes),
        _classifier(shape, num_classes, hidden, layers, classifier, norm, auxiliary),
        make_label_draw(labels, temperature, final_temperature),
        num_samples,
        importance_samples,
        class_chunk,
        auxiliary=extra,
        posterior=Encoder(Features(shape, hidden, layers, encoder, norm), MLP(hidden, extra.numbers, hidden, 0)),
        auxiliary_prior=MLP(hidden, 2 * auxiliary, hidden, 0, num_classes + ladder.features),
    )


def build_m1_m2(
    shape: Shape,
    num_classes: int,
    prior: ClassPrior,
    levels: int | None,
    m1: VAE | None = None,
    latent: int = 50,
    hidden: int = 500,
    layers: int = 1,
    blocks: int = 0,
    norm: str = "batch",
    posterior: str = "gaussian",
    posterior_steps: int = 4,
    labels: str = "enumerate",
    temperature: float = 0.67,
    final_temperature: float | None = None,
    num_samples: int = 1,
    importance_samples: int = 1,
    class_chunk: int | None = None,
) -> M1M2:
    """M2 on the latent of a trained M1."""
    if m1 is None:
        raise ValueError(
            "M1+M2 stands on a trained M1: train one (--config mnist_m1.yaml), then set model.m1 to its run"
        )
    if m1.likelihood.shape != shape:
        raise ValueError(
            f"the M1 of model.m1 was trained on inputs of shape {list(m1.likelihood.shape)}: give one trained on "
            f"this data, or set data.name"
        )
    m2 = build_m2(
        (m1.ladder.features,),
        num_classes,
        prior,
        None,
        latent=latent,
        hidden=hidden,
        layers=layers,
        blocks=blocks,
        norm=norm,
        likelihood="gaussian",
        posterior=posterior,
        posterior_steps=posterior_steps,
        labels=labels,
        temperature=temperature,
        final_temperature=final_temperature,
        num_samples=num_samples,
        importance_samples=importance_samples,
        class_chunk=class_chunk,
    )
    return M1M2(m1, m2)


def build_classifier(
    shape: Shape,
    num_classes: int,
    prior: ClassPrior,
    levels: int | None,
    hidden: int = 600,
    layers: int = 2,
    classifier: str = "mlp",
    norm: str = "none",
) -> Classifier:
    """A network on the labels alone."""
    return Classifier(_classifier(shape, num_classes, hidden, layers, classifier, norm, 0), num_classes)


@dataclass(frozen=True)
class VariationalRecipe:
    """A named member of the variational family, or the plain network beside it.

    Attributes:
        summary: one line for people who choose.
        function: builds the model from shape, classes, prior, levels and its keyword arguments.
        defaults: the arguments in which the recipe differs from the defaults of `function`.
    """

    summary: str
    function: Callable[..., JointModel]
    defaults: Mapping[str, Any]

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of the recipe, with `given` in place of its defaults.

        Raises:
            ValueError: an argument that this recipe does not take.
        """
        return override({**defaults_of(self.function), **self.defaults}, given)

    def build(
        self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None, given: Mapping[str, Any]
    ) -> JointModel:
        """The model for inputs of `shape` with `levels` grey levels, None for points."""
        return self.function(shape, num_classes, prior, levels, **self.resolve(given))


VARIATIONAL: dict[str, VariationalRecipe] = {
    "m1": VariationalRecipe("a VAE, and a classifier on its latents", build_vae, {}),
    "m2": VariationalRecipe("a VAE with the label as a latent variable", build_m2, {}),
    "m1-m2": VariationalRecipe("M2 on the latents of a trained M1", build_m1_m2, {}),
    "adgm": VariationalRecipe("M2 with an auxiliary variable", build_adgm, {}),
    "ladder-vae": VariationalRecipe("a VAE with a ladder of latents", build_vae, dict(latent=(64, 32, 16))),
    "ladder-dgm": VariationalRecipe("M2 with a ladder of latents", build_m2, dict(latent=(64, 32, 16))),
    "gumbel-autoencoder": VariationalRecipe("an autoencoder with one-hot latents", build_gumbel_autoencoder, {}),
    "classifier": VariationalRecipe("a plain network on the labels alone", build_classifier, {}),
}
