"""A flow of points."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from scnf.arguments import Choice
from scnf.errors import InvalidArgument
from scnf.nn import VECTOR_NETWORKS
from scnf.recipes.base import Shape, register_recipe
from scnf.recipes.parts import Blocks, Depth, FlowRecipe, SharedFlow, Width
from scnf.transforms import LINEAR, ActNorm, CompositeTransform, Transform, two_way_coupling


@register_recipe("scnf-toy")
@dataclass(frozen=True)
class ScnfToy(FlowRecipe):
    """Points in the plane, and other vectors.

    Steps of [ActNorm, dense mixing, two-way coupling].
    """

    channels: Width = 64
    """Width of the coupling networks."""
    steps: Depth = 6
    """Flow steps."""
    network: Annotated[str, Choice(VECTOR_NETWORKS)] = "mlp"
    """The networks of the couplings: mlp, or one that is registered."""
    blocks: Blocks = 1
    """Residual blocks in each network of a kind that has some."""
    means: Literal["random", "simplex", "data"] = "data"
    conditional_hidden: Width = 32
    conditional_steps: Depth = 4

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """The transform of points, all of whose outputs are semantic."""
        if len(shape) != 1 or shape[0] < 2:
            raise InvalidArgument(
                "shape",
                f"must be (D,) of at least 2 dimensions for {self.name}, not {list(shape)}: for images there is the "
                "recipe scnf-fast",
            )

        def network(inputs: int, outputs: int) -> nn.Module:
            return VECTOR_NETWORKS[self.network](inputs, outputs, self.channels, self.blocks)

        layers: list[Transform] = []
        for _ in range(self.steps):
            mixing = LINEAR[self.linear](shape[0])
            layers += [ActNorm(shape[0]), mixing, two_way_coupling(network, shape[0], self.scale)]
        return CompositeTransform([*layers, ActNorm(shape[0])]), shape[0]
