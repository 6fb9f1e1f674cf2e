"""Define the arguments that recipes of flows share, the step from pixels to the real line, and p(z_f | y)."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from scnf.arguments import TRAINING, Choice, Condition, Range
from scnf.distributions import (
    ClassConditional,
    ClassConditionalFlow,
    ClassConditionalGaussian,
    ClassPrior,
    DiagonalGaussian,
    FlowDistribution,
)
from scnf.errors import InvalidArgument
from scnf.models.flow import SemiConditionalFlow
from scnf.nn import IMAGE_NETWORKS, MLP
from scnf.recipes.base import Recipe, Shape
from scnf.transforms import (
    LINEAR,
    ActNorm,
    CompositeTransform,
    FactorOut,
    GreyLevels,
    Logit,
    Transform,
    two_way_coupling,
)

Width = Annotated[int, Range(1, 16_384)]
Depth = Annotated[int, Range(1, 256)]
Blocks = Annotated[int, Range(0, 256)]
Linear = Annotated[str, Choice(LINEAR)]
ImageNetwork = Annotated[str, Choice(IMAGE_NETWORKS)]
Scale = Literal["sigmoid", "symmetric"]

_FLOW, _GAUSSIAN = Condition("conditional", ("flow",)), Condition("conditional", ("gaussian",))

SharedFlow = tuple[Transform, int]
"""A transform of inputs to vectors, and the number of its semantic outputs, which come last."""

MAX_SEMANTIC = 4096
"""Largest number of semantic features for which a dense class-conditional part is built."""


@dataclass(frozen=True)
class Enumeration(Recipe):
    """This part of a recipe sets how a model enumerates the classes."""

    class_chunk: Annotated[int | None, Range(1, 16_384), TRAINING] = None
    """Number of classes enumerated at once. A smaller number needs less memory, and makes training take about a third
    more time. All classes by default."""


@dataclass(frozen=True)
class ClassConditionalPart(Enumeration):
    """This part of a recipe holds the arguments of p(z_f | y)."""

    conditional: Literal["flow", "gaussian"] = "flow"
    """Kind of the class-conditional part p(z_f | y), either a flow or one Gaussian per class."""
    conditional_hidden: Annotated[Width, _FLOW] = 128
    """Width of the networks in the class-conditional flow."""
    conditional_blocks: Annotated[Blocks, _FLOW] = 1
    """Number of residual blocks in each network of the class-conditional flow."""
    conditional_steps: Annotated[Depth, _FLOW] = 2
    """Number of flow steps in each scale of the class-conditional flow."""
    conditional_scales: Annotated[Depth, _FLOW] = 1
    """Number of scales in the class-conditional flow, between which half of the features are factored out."""
    embedding: Annotated[Width, _FLOW] = 10
    """Width of the label embedding in the class-conditional flow."""
    means: Annotated[Literal["random", "simplex", "data"], TRAINING, _GAUSSIAN] = "random"
    """Starting point of the class means, either drawn at random (random), equally far apart (simplex), or the class
    averages of the first labelled rows (data)."""
    spread: Annotated[float, Range(0, 1e6), TRAINING, _GAUSSIAN] = 1.0
    """Distance of the class means from the origin at the start; a larger value starts the classes further apart. With
    random means it is the distance per square root of the number of features."""
    learn_means: Annotated[bool, TRAINING, _GAUSSIAN] = True
    """Whether training moves the class means."""
    scales: Annotated[Literal["shared", "own"], _GAUSSIAN] = "shared"
    """Whether the classes share the scales of their Gaussians (shared), or each class has its own (own)."""
    learn_scales: Annotated[bool, TRAINING, _GAUSSIAN] = True
    """Whether training changes the scales of the Gaussians."""


@dataclass(frozen=True)
class FlowLayers(Recipe):
    """This part of a recipe holds the arguments that the layers of all flows share."""

    linear: Linear = "full"
    """Parametrisation of the invertible matrices that mix channels or features."""
    scale: Scale = "symmetric"
    """Scale function of the couplings, either sigmoid, as in the paper, or symmetric around 1."""


@dataclass(frozen=True)
class FlowRecipe(FlowLayers, ClassConditionalPart):
    """A recipe of a semi-conditional flow has a shared flow, p(z_f | y) and p(z_aux).

    A subclass overrides `shared_flow`.
    """

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """Build the transform of inputs of `shape` to vectors [N, D], and count its semantic outputs, the last ones."""
        raise NotImplementedError

    def auxiliary(self, shape: Shape, features: int) -> DiagonalGaussian | FlowDistribution | None:
        """Build p(z_aux) of `features` features, or return None where there are none."""
        return DiagonalGaussian(features) if features else None

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> SemiConditionalFlow:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`."""
        transform, semantic = self.shared_flow(shape, levels)
        if semantic > MAX_SEMANTIC:
            raise InvalidArgument(
                "shape",
                f"{list(shape)} leaves {semantic} features for the class-conditional part, which takes at most "
                f"{MAX_SEMANTIC}: crop or resize the images so that height and width can be halved more often",
            )
        conditional = self._class_conditional(semantic, num_classes)
        return SemiConditionalFlow(
            transform, self.auxiliary(shape, math.prod(shape) - semantic), conditional, prior, semantic
        )

    def _class_conditional(self, features: int, num_classes: int) -> ClassConditional:
        if self.conditional == "flow":
            return self._class_conditional_flow(features, num_classes)
        return ClassConditionalGaussian(
            num_classes,
            features,
            self.means,
            self.spread,
            self.learn_means,
            self.scales,
            self.learn_scales,
            chunk=self.class_chunk,
        )

    def _class_conditional_flow(self, features: int, num_classes: int) -> ClassConditionalFlow:
        """Build steps of [ActNorm, dense mixing, two-way coupling], whose networks take an embedding of the label.

        After each scale but the last, half of the features are factored out.
        """

        def network(inputs: int, outputs: int) -> nn.Module:
            return MLP(
                inputs, outputs, self.conditional_hidden, self.conditional_blocks, context_features=self.embedding
            )

        def level(size: int, scales_left: int) -> Transform:
            layers: list[Transform] = []
            for _ in range(self.conditional_steps):
                mixing = LINEAR[self.linear](size)
                layers += [ActNorm(size), mixing, two_way_coupling(network, size, self.scale)]
            if scales_left and size >= 4:
                layers.append(FactorOut(level(size - size // 2, scales_left - 1), (size,)))
            return CompositeTransform(layers)

        body = level(features, self.conditional_scales - 1)
        return ClassConditionalFlow(body, features, num_classes, self.embedding, self.class_chunk)


@dataclass(frozen=True)
class ImageLayers(FlowLayers):
    """This part of a recipe holds the coupling networks of images, and the map from pixels to the real line."""

    network: ImageNetwork = "conv"
    """Kind of the coupling networks, which is conv (3x3, 1x1 and 3x3 convolutions), resnet, resnet-reflect, or a
    registered network."""
    blocks: Annotated[Blocks, Condition("network", ("conv",), negated=True)] = 2
    """Number of residual blocks in each coupling network."""
    pixels: Literal["levels", "logit"] = "levels"
    """Map from pixels to the real line, either by a learned length for each grey level (levels) or by the paper's logit
    (logit)."""
    alpha: Annotated[float, Range(0, 0.5, above=True, below=True), Condition("pixels", ("logit",))] = 0.05
    """Margin that keeps pixels away from 0 and 1 before the logit; a larger margin gives smaller logits."""

    def coupling_network(self, inputs: int, outputs: int, width: int) -> nn.Module:
        """Build a network for a coupling, from `inputs` to `outputs` channels."""
        return IMAGE_NETWORKS[self.network](inputs, outputs, width, self.blocks)

    def real_line(self, levels: int | None) -> Transform:
        """Build the map from pixels in [0, 1] to the real line."""
        if self.pixels == "logit":
            return Logit(self.alpha)
        if levels is None:
            raise InvalidArgument("pixels", "must be logit where there are no grey levels")
        return GreyLevels(levels)

    def require_image(self, shape: Shape) -> None:
        """Refuse points, and images with a side of one pixel (InvalidArgument)."""
        if len(shape) != 3 or min(shape[1:]) < 2:
            raise InvalidArgument(
                "shape",
                f"must be (C, H, W) of at least 2x2 pixels for {self.name}, not {list(shape)}: for points use the "
                "recipe scnf-vectors",
            )


@dataclass(frozen=True)
class ImageFlow(ImageLayers, FlowRecipe):
    """A recipe of a flow of images squeezes them, which turns 2x2 blocks of pixels into channels.

    At an odd side it keeps the size of the image. It pads nothing, so densities stay exact.
    """


def is_even(shape: Shape) -> bool:
    """Return whether both sides of an image are even, so that it can be squeezed."""
    return shape[1] % 2 == 0 and shape[2] % 2 == 0


def squeezed(shape: Shape) -> Shape:
    """Return the shape of an image after a squeeze."""
    return 4 * shape[0], shape[1] // 2, shape[2] // 2
