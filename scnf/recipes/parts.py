"""What the recipes of flows share: sizes of arguments, the step from pixels to the real line, p(z_f | y)."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from scnf.arguments import HOW, Choice, Range, When
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

_FLOW, _GAUSSIAN = When("conditional", ("flow",)), When("conditional", ("gaussian",))

SharedFlow = tuple[Transform, int]
"""A transform of inputs to vectors, and how many of its last outputs are semantic."""

MAX_SEMANTIC = 4096
"""The widest vector that a dense class-conditional part is built for."""


@dataclass(frozen=True)
class ClassConditionalPart(Recipe):
    """The arguments of p(z_f | y)."""

    conditional: Literal["flow", "gaussian"] = "flow"
    """The class-conditional part p(z_f | y): a flow, or one Gaussian per class."""
    conditional_hidden: Annotated[Width, _FLOW] = 128
    """Width of the networks of the class-conditional flow."""
    conditional_blocks: Annotated[Blocks, _FLOW] = 1
    """Residual blocks in each of them."""
    conditional_steps: Annotated[Depth, _FLOW] = 2
    """Its steps per scale."""
    conditional_scales: Annotated[Depth, _FLOW] = 1
    """Its scales, between which half of the features are factored out."""
    embedding: Annotated[Width, _FLOW] = 10
    """Width of its label embedding."""
    means: Annotated[Literal["random", "simplex", "data"], HOW, _GAUSSIAN] = "random"
    """Where the means of the class-conditional Gaussians start; data takes those of the first labelled rows."""
    spread: Annotated[float, Range(0, 1e6), HOW, _GAUSSIAN] = 1.0
    """How far apart these means start."""
    learn_means: Annotated[bool, HOW, _GAUSSIAN] = True
    """Whether training moves them."""
    scales: Annotated[Literal["shared", "own"], _GAUSSIAN] = "shared"
    """Whether the classes share the scales of their Gaussians, or each has its own."""
    learn_scales: Annotated[bool, HOW, _GAUSSIAN] = True
    """Whether training changes the scales."""
    class_chunk: Annotated[int | None, Range(1, 16_384), HOW] = None
    """Classes enumerated at once. Fewer need less memory, in training for about a third more time. All by default."""


@dataclass(frozen=True)
class FlowRecipe(ClassConditionalPart):
    """A semi-conditional flow: a shared flow, p(z_f | y) and p(z_aux). A recipe of one overrides `shared_flow`."""

    linear: Linear = "full"
    """Mixing of channels or features: an invertible matrix, and how it is written."""
    scale: Scale = "symmetric"
    """The scale of the couplings: sigmoid, as in the paper, or symmetric around 1."""

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """The transform of inputs of `shape` to [N, D] vectors, whose last outputs are semantic, and how many are."""
        raise NotImplementedError

    def auxiliary(self, shape: Shape, features: int) -> DiagonalGaussian | FlowDistribution | None:
        """p(z_aux) of so many features; None where there are none."""
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
        """Steps of [ActNorm, dense mixing, two-way coupling], whose networks are given an embedding of the label.

        After each scale but the last, half of the features are factored out.
        """

        def network(inputs: int, outputs: int) -> nn.Module:
            return MLP(
                inputs, outputs, self.conditional_hidden, self.conditional_blocks, context_features=self.embedding
            )

        def level(size: int, more: int) -> Transform:
            layers: list[Transform] = []
            for _ in range(self.conditional_steps):
                mixing = LINEAR[self.linear](size)
                layers += [ActNorm(size), mixing, two_way_coupling(network, size, self.scale)]
            if more and size >= 4:
                layers.append(FactorOut(level(size - size // 2, more - 1), (size,)))
            return CompositeTransform(layers)

        body = level(features, self.conditional_scales - 1)
        return ClassConditionalFlow(body, features, num_classes, self.embedding, self.class_chunk)


@dataclass(frozen=True)
class ImageFlow(FlowRecipe):
    """A flow of images, which squeezes them: 2x2 blocks become channels.

    It goes on at the size that it has at an odd side, and pads nothing, so densities stay exact.
    """

    network: ImageNetwork = "conv"
    """The networks of the couplings: conv (3x3, 1x1, 3x3), resnet, resnet-reflect, or one that is registered."""
    blocks: Blocks = 0
    """Residual blocks in each network of a kind that has some."""
    pixels: Literal["levels", "logit"] = "levels"
    """How pixels come to the real line: by a learned length for each grey level, or by the paper's logit."""
    alpha: Annotated[float, Range(0, 0.5, above=True, below=True), When("pixels", ("logit",))] = 0.05
    """Of that logit."""

    def coupling_network(self, inputs: int, outputs: int, width: int) -> nn.Module:
        """A network for a coupling, from channels to channels."""
        return IMAGE_NETWORKS[self.network](inputs, outputs, width, self.blocks)

    def real_line(self, levels: int | None) -> Transform:
        """From pixels in [0, 1] to the real line."""
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
                f"must be (C, H, W) of at least 2x2 pixels for {self.name}, not {list(shape)}: for points there is the "
                "recipe scnf-toy",
            )


def even(shape: Shape) -> bool:
    """Whether an image can be squeezed."""
    return shape[1] % 2 == 0 and shape[2] % 2 == 0


def squeezed(shape: Shape) -> Shape:
    """The shape of an image after a squeeze."""
    return 4 * shape[0], shape[1] // 2, shape[2] // 2
