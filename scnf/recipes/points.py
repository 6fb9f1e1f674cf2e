"""Define flows of points and of other vectors."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from scnf.arguments import Choice, Range
from scnf.errors import InvalidArgument
from scnf.nn import VECTOR_NETWORKS
from scnf.recipes.base import Shape, register_recipe
from scnf.recipes.parts import Blocks, Depth, FlowRecipe, Linear, SharedFlow, Width
from scnf.transforms import LINEAR, ActNorm, CompositeTransform, Standardize, Transform, two_way_coupling


@dataclass(frozen=True)
class VectorFlow(FlowRecipe):
    """A recipe of a flow of vectors has steps of [ActNorm, dense mixing, two-way coupling]."""

    channels: Width = 64
    """Width of the coupling networks; a larger width costs more time."""
    steps: Annotated[int, Range(0, 256)] = 6
    """Number of flow steps; each step adds one two-way coupling."""
    network: Annotated[str, Choice(VECTOR_NETWORKS)] = "mlp"
    """Kind of the coupling networks, which is mlp or a registered network."""
    blocks: Blocks = 1
    """Number of residual blocks in each coupling network, for kinds of networks that have residual blocks."""
    means: Literal["random", "simplex", "data"] = "data"

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """Build the transform of vectors, whose outputs are all semantic."""
        if len(shape) != 1 or shape[0] < 2:
            advice = "add a column, for example of zeros" if len(shape) == 1 else "for images use the recipe scnf-fast"
            raise InvalidArgument(
                "shape", f"must be (D,) of at least 2 dimensions for {self.name}, not {list(shape)}: {advice}"
            )

        def network(inputs: int, outputs: int) -> nn.Module:
            return VECTOR_NETWORKS[self.network](inputs, outputs, self.channels, self.blocks)

        layers: list[Transform] = []
        for _ in range(self.steps):
            mixing = LINEAR[self.linear](shape[0])
            layers += [ActNorm(shape[0]), mixing, two_way_coupling(network, shape[0], self.scale)]
        return CompositeTransform([*layers, ActNorm(shape[0])]), shape[0]


@register_recipe("scnf-toy")
@dataclass(frozen=True)
class ScnfToy(VectorFlow):
    """A flow of points in the plane, and of other vectors of one scale.

    It has steps of [ActNorm, dense mixing, two-way coupling].
    """

    conditional_hidden: Width = 32
    conditional_steps: Depth = 4


@register_recipe("scnf-vectors")
@dataclass(frozen=True)
class ScnfVectors(VectorFlow):
    """A flow of vectors of any scales, with one Gaussian per class.

    Its first layer standardises each column by all training rows. Steps of [ActNorm, dense mixing, two-way coupling]
    and one more dense mixing follow. Without steps, the flow is linear: classes are Gaussians of one covariance, and
    p(y | x) is logistic in x, as in linear discriminant analysis.
    """

    channels: Width = 32
    steps: Annotated[int, Range(0, 256)] = 2
    conditional: Literal["flow", "gaussian"] = "gaussian"
    linear: Linear = "full"

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """Build the transform of vectors, whose outputs are all semantic."""
        flow, semantic = super().shared_flow(shape, levels)
        return CompositeTransform([Standardize(semantic), flow, LINEAR[self.linear](semantic)]), semantic
