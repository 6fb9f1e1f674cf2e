"""Define the recipes of the variational family, with their networks, latents and likelihoods."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from torch import nn

from scnf.arguments import PATH, TRAINING, Choice, Condition, Range
from scnf.distributions import (
    LABEL_DRAWS,
    LIKELIHOODS,
    CategoricalLatent,
    ClassPrior,
    GaussianLatent,
    LabelDraw,
    PixelLikelihood,
    Temperature,
    make_label_draw,
)
from scnf.errors import InvalidArgument
from scnf.models.classifier import Classifier
from scnf.models.ladder import Ladder
from scnf.models.m2 import ADGM, M1M2, M2
from scnf.models.vae import VAE
from scnf.nn import MLP, ConvDecoder, Encoder, Features, ResidualFeatures
from scnf.recipes.base import Recipe, Shape, register_recipe
from scnf.recipes.parts import Blocks, Depth, Enumeration, Width
from scnf.transforms import LINEAR, CompositeTransform, Planar, Transform, two_way_coupling

CONTEXT = 32
"""Width of the context that an encoder gives to a posterior flow."""
Network = Literal["mlp", "conv"]
Draws = Annotated[int, Range(1, 10_000), TRAINING]
Heat = Annotated[float, Range(0, 1e6, above=True), TRAINING]


def planar_posterior(features: int, steps: int) -> Transform:
    """Build `steps` planar layers, whose parameters depend on x (arXiv 1505.05770)."""
    return CompositeTransform([Planar(features, CONTEXT) for _ in range(steps)])


def coupling_posterior(features: int, steps: int) -> Transform:
    """Build `steps` of [dense mixing, two-way affine coupling], which take a context of x."""

    def network(inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, outputs, 64, 0, context_features=CONTEXT)

    layers: list[Transform] = []
    for _ in range(steps):
        layers += [LINEAR["full"](features), two_way_coupling(network, features, "symmetric")]
    return CompositeTransform(layers)


POSTERIORS = {"planar": planar_posterior, "coupling": coupling_posterior}
"""Flows on a Gaussian posterior by name, as (width, steps) -> transform with a context of `CONTEXT` features."""


@dataclass(frozen=True)
class Networks(Recipe):
    """This part of a recipe holds the networks of a variational model."""

    hidden: Width = 500
    """Width of the hidden layers in encoder, decoder and classifier."""
    layers: Depth = 2
    """Number of linear layers in an mlp encoder and an mlp classifier."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """Kind of normalisation in encoder and classifier."""

    def features(self, shape: Shape, kind: str, dropout: float = 0.0) -> Features:
        """Build the layers below the head of an encoder or a classifier, for inputs of `shape`."""
        return Features(shape, self.hidden, self.layers, kind, self.norm, dropout=dropout)

    def ladder(
        self,
        shape: Shape,
        latents: Sequence[GaussianLatent | CategoricalLatent],
        encoder: str,
        top_context: int = 0,
        prior_context: int = 0,
    ) -> Ladder:
        """Build the encoder of `latents`, bottom first, and the priors of all latents but the top one."""
        bodies = [self.features(shape, encoder)]
        bodies += [Features((self.hidden,), self.hidden, 1, "mlp", self.norm) for _ in latents[1:]]
        contexts = [0] * (len(latents) - 1) + [top_context]
        heads = [
            MLP(self.hidden, latent.numbers, self.hidden, 0, context)
            for latent, context in zip(latents, contexts, strict=True)
        ]
        priors = [
            MLP(upper.features, 2 * lower.features, self.hidden, 0, prior_context)
            for lower, upper in itertools.pairwise(latents)
        ]
        return Ladder(bodies, heads, latents, priors)

    def label_network(self, shape: Shape, num_classes: int, kind: str, context: int = 0) -> Encoder:
        """Build the network of q(y | x), or with a context the network of q(y | x, a)."""
        head = (
            MLP(self.hidden, num_classes, self.hidden, 0, context) if context else nn.Linear(self.hidden, num_classes)
        )
        return Encoder(self.features(shape, kind, dropout=0.5), head)


@dataclass(frozen=True)
class ImageAutoencoder(Networks):
    """This part of a recipe adds the encoder, the decoder and the likelihood of images or points."""

    encoder: Network = "mlp"
    """Kind of the network of q(z | x)."""
    decoder: Network = "mlp"
    """Kind of the network of p(x | z)."""
    blocks: Blocks = 0
    """Number of residual blocks in an mlp decoder."""
    likelihood: Annotated[str, Choice(LIKELIHOODS)] = "bernoulli"
    """Likelihood p(x | z), either bernoulli (binarised pixels), logistic (the grey levels of the data) or gaussian."""

    def pixel_likelihood(self, shape: Shape, levels: int | None) -> PixelLikelihood:
        """Build the distribution of inputs of `shape`."""
        return LIKELIHOODS[self.likelihood](shape, levels)

    def decoder_network(self, features: int, likelihood: PixelLikelihood, context: int = 0) -> nn.Module:
        """Build the network from latents to the parameters of the likelihood."""
        if self.decoder == "conv":
            channels, *size = likelihood.shape
            return ConvDecoder(features, (likelihood.numbers * channels, *size), context_features=context)
        outputs = likelihood.numbers * math.prod(likelihood.shape)
        return MLP(features, outputs, self.hidden, self.blocks, context)


@dataclass(frozen=True)
class BoundSettings(Recipe):
    """This part of a recipe sets how the bound is computed."""

    num_samples: Draws = 1
    """Number of draws of the latents for each row, over which the bound is averaged. More draws reduce its noise and
    cost time."""
    importance_samples: Draws = 1
    """Number of draws in the importance-weighted bound; 1 gives the ELBO, and more draws a tighter bound."""


@dataclass(frozen=True)
class GaussianLatents(Recipe):
    """This part of a recipe sets latents whose posterior is a Gaussian, or a flow on a Gaussian."""

    latent: Width | tuple[Width, ...] = 50
    """Width of the latent variable. A list of widths, bottom first, makes a ladder."""
    posterior: Annotated[str, Choice({"gaussian": None, **POSTERIORS})] = "gaussian"
    """Posterior of the latents, either gaussian, or a planar or coupling flow on a Gaussian."""
    posterior_steps: Annotated[Depth, Condition("posterior", tuple(POSTERIORS))] = 4
    """Number of steps in the posterior flow; more steps make the posterior more flexible."""

    def gaussian_latent(self, features: int, argument: str = "latent") -> GaussianLatent:
        """Build a latent variable of width `features`, which `argument` sets."""
        if self.posterior == "gaussian":
            return GaussianLatent(features)
        if self.posterior == "coupling" and features < 2:
            raise InvalidArgument(argument, f"must be 2 or more for a coupling posterior, not {features}")
        return GaussianLatent(features, POSTERIORS[self.posterior](features, self.posterior_steps), CONTEXT)

    def latents(self) -> list[GaussianLatent]:
        """Build all latents, bottom first."""
        widths = [self.latent] if isinstance(self.latent, int) else self.latent
        return [self.gaussian_latent(width) for width in widths]


_RELAXED = Condition("labels", tuple(name for name in LABEL_DRAWS if name != "score"))


@dataclass(frozen=True)
class HiddenLabels(Enumeration):
    """This part of a recipe sets how training treats hidden labels."""

    labels: Annotated[str, Choice({"enumerate": None, **LABEL_DRAWS}), TRAINING] = "enumerate"
    """Treatment of hidden labels in training, either by a sum over every class (enumerate) or by a draw of q(y | x)."""
    temperature: Annotated[Heat, _RELAXED] = 0.67
    """Temperature of drawn labels at the first step; a lower value brings relaxed draws closer to one-hot labels."""
    final_temperature: Annotated[Heat | None, _RELAXED, TRAINING] = None
    """Temperature of drawn labels at the last step; the same as at the first step by default."""

    def label_draw(self) -> LabelDraw | None:
        """Build the module that draws hidden labels, or return None where labels are enumerated."""
        return make_label_draw(self.labels, self.temperature, self.final_temperature)


@register_recipe("m1")
@dataclass(frozen=True)
class M1Recipe(GaussianLatents, ImageAutoencoder, BoundSettings):
    """A VAE with a classifier on its latents.

    This is M1 of Kingma et al. (https://arxiv.org/abs/1406.5298). With several latents it is a ladder VAE.
    """

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> VAE:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`."""
        pixels, latents = self.pixel_likelihood(shape, levels), self.latents()
        ladder = self.ladder(shape, latents, self.encoder)
        network = self.decoder_network(latents[0].features, pixels)
        head = MLP(ladder.features, num_classes, self.hidden, 0)
        return VAE(pixels, ladder, network, head, num_classes, self.num_samples, self.importance_samples)


@register_recipe("ladder-vae")
@dataclass(frozen=True)
class LadderVAE(M1Recipe):
    """A VAE with a ladder of latents.

    It follows Sønderby et al. (https://arxiv.org/abs/1602.02282).
    """

    latent: Width | tuple[Width, ...] = (64, 32, 16)


@register_recipe("gumbel-autoencoder")
@dataclass(frozen=True)
class GumbelAutoencoder(ImageAutoencoder, BoundSettings):
    """An autoencoder with one-hot latents.

    It follows Jang et al. (https://arxiv.org/abs/1611.01144, section 4.2).
    """

    variables: Width = 30
    """Number of one-hot latents."""
    categories: Annotated[int, Range(2, 16_384)] = 10
    """Number of categories of each one-hot latent."""
    temperature: Heat = 1.0
    """Temperature of the one-hot latents at the first step; a lower value brings draws closer to one-hot vectors."""
    final_temperature: Annotated[Heat | None, TRAINING] = 0.5
    """Temperature of the one-hot latents at the last step; null keeps the temperature of the first step."""

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> VAE:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`."""
        pixels = self.pixel_likelihood(shape, levels)
        temperature = Temperature(self.temperature, self.final_temperature)
        latent = CategoricalLatent(self.variables, self.categories, temperature)
        ladder = self.ladder(shape, [latent], self.encoder)
        network = self.decoder_network(latent.features, pixels)
        head = MLP(ladder.features, num_classes, self.hidden, 0)
        return VAE(pixels, ladder, network, head, num_classes, self.num_samples, self.importance_samples)


@register_recipe("m2")
@dataclass(frozen=True)
class M2Recipe(GaussianLatents, HiddenLabels, ImageAutoencoder, BoundSettings):
    """A VAE with the label as a latent variable.

    This is M2 of Kingma et al. (https://arxiv.org/abs/1406.5298). With several latents it has a ladder of them.
    """

    classifier: Network = "mlp"
    """Kind of the network of q(y | x)."""

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> M2:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`."""
        pixels, latents = self.pixel_likelihood(shape, levels), self.latents()
        return M2(
            pixels,
            prior,
            self.ladder(shape, latents, self.encoder, num_classes, num_classes),
            self.decoder_network(latents[0].features, pixels, num_classes),
            self.label_network(shape, num_classes, self.classifier),
            self.label_draw(),
            self.num_samples,
            self.importance_samples,
            self.class_chunk,
        )


@register_recipe("ladder-dgm")
@dataclass(frozen=True)
class LadderDGM(M2Recipe):
    """M2 with a ladder of latents."""

    latent: Width | tuple[Width, ...] = (64, 32, 16)


@register_recipe("adgm")
@dataclass(frozen=True)
class ADGMRecipe(M2Recipe):
    """M2 with an auxiliary variable.

    It follows Maaløe et al. (https://arxiv.org/abs/1602.05473).
    """

    auxiliary: Width = 50
    """Width of the auxiliary variable."""

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> ADGM:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`."""
        pixels, latents = self.pixel_likelihood(shape, levels), self.latents()
        extra = self.gaussian_latent(self.auxiliary, "auxiliary")
        ladder = self.ladder(shape, latents, self.encoder, num_classes + self.auxiliary, num_classes)
        return ADGM(
            pixels,
            prior,
            ladder,
            self.decoder_network(latents[0].features, pixels, num_classes),
            self.label_network(shape, num_classes, self.classifier, self.auxiliary),
            self.label_draw(),
            self.num_samples,
            self.importance_samples,
            self.class_chunk,
            auxiliary=extra,
            posterior=Encoder(self.features(shape, self.encoder), MLP(self.hidden, extra.numbers, self.hidden, 0)),
            auxiliary_prior=MLP(self.hidden, 2 * self.auxiliary, self.hidden, 0, num_classes + ladder.features),
        )


@register_recipe("m1-m2")
@dataclass(frozen=True)
class M1M2Recipe(GaussianLatents, HiddenLabels, Networks, BoundSettings):
    """M2 on the latents of a trained M1.

    This is M1+M2 of Kingma et al. (https://arxiv.org/abs/1406.5298).
    """

    latent: Width = 50
    """Width of the latent variable of M2."""
    layers: Depth = 1
    blocks: Blocks = 0
    """Number of residual blocks in the decoder."""
    m1: Annotated[str | VAE | None, PATH, TRAINING] = None
    """Trained M1, as a run, a directory or a file of weights. In Python it is the model itself."""

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> M1M2:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`.

        Raises:
            InvalidArgument: There is no trained M1, or the trained M1 takes other inputs.
        """
        if not isinstance(self.m1, VAE):
            raise InvalidArgument("m1", f"must be a trained model of the recipe m1, not {self.m1!r}: train one")
        if self.m1.likelihood.shape != shape:
            raise InvalidArgument(
                "m1",
                f"was trained on inputs of shape {list(self.m1.likelihood.shape)}, but this data has {list(shape)}: "
                "take an M1 that was trained on this data",
            )
        shared = {field.name for field in fields(M2Recipe)} & {field.name for field in fields(self)}
        m2 = M2Recipe(likelihood="gaussian", **{name: getattr(self, name) for name in shared})
        return M1M2(self.m1, m2.build((self.m1.ladder.features,), num_classes, prior, None))


_NOT_RESIDUAL = Condition("classifier", ("residual",), negated=True)


@register_recipe("classifier")
@dataclass(frozen=True)
class ClassifierRecipe(Networks):
    """A plain classifier network, which has no density of inputs."""

    classifier: Literal["mlp", "conv", "residual"] = "mlp"
    """Kind of the network. residual is the network that reads the class in scnf-reader."""
    hidden: Annotated[Width, _NOT_RESIDUAL] = 600
    layers: Annotated[Depth, _NOT_RESIDUAL] = 2
    norm: Annotated[Literal["batch", "layer", "none"], _NOT_RESIDUAL] = "none"
    reader_channels: Annotated[Width, Condition("classifier", ("residual",))] = 32
    """Width of the first convolution in a residual network; the last one is four times as wide."""

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> Classifier:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`."""
        if self.classifier != "residual":
            return Classifier(self.label_network(shape, num_classes, self.classifier), num_classes)
        features = ResidualFeatures(shape, self.reader_channels)
        return Classifier(Encoder(features, nn.Linear(features.width, num_classes)), num_classes)
