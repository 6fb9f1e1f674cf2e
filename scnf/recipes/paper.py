"""Define the architecture of the paper."""

import math
from dataclasses import dataclass
from typing import Literal

from scnf.recipes.base import Shape, register_recipe
from scnf.recipes.parts import (
    Blocks,
    Depth,
    ImageFlow,
    ImageNetwork,
    Scale,
    SharedFlow,
    Width,
    is_even,
    squeezed,
)
from scnf.transforms import (
    LINEAR,
    ActNorm,
    AffineCoupling,
    CheckerboardPartition,
    CompositeTransform,
    FactorOut,
    Flatten,
    Squeeze,
    Transform,
    two_way_coupling,
)


@register_recipe("scnf-paper")
@dataclass(frozen=True)
class ScnfPaper(ImageFlow):
    """The architecture of arXiv 1905.00505, which is meant for a GPU.

    It has at most two squeezes, and residual networks with reflection padding. Every level has three [1x1 convolution,
    checkerboard coupling, ActNorm]. After a squeeze come two [1x1 convolution, two-way channel coupling, ActNorm], and
    half of the channels are factored out. The last level ends in two such channel couplings.
    """

    channels: Width = 64
    """Width of the coupling networks; a larger width costs more time."""
    network: ImageNetwork = "resnet-reflect"
    blocks: Blocks = 4
    scale: Scale = "sigmoid"
    pixels: Literal["levels", "logit"] = "logit"
    conditional_hidden: Width = 256
    conditional_blocks: Blocks = 4
    conditional_steps: Depth = 4
    conditional_scales: Depth = 2

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """Build the transform of images, and count its semantic outputs, which come last."""
        self.require_image(shape)
        body, semantic = self._level(shape, squeezes=2)
        return CompositeTransform([self.real_line(levels), body]), semantic

    def _level(self, shape: Shape, squeezes: int) -> SharedFlow:
        layers = self._checkerboards(shape)
        if squeezes == 0 or not is_even(shape) or min(shape[1:]) < 4:
            return CompositeTransform([*layers, *self._channel_couplings(shape), Flatten(shape)]), math.prod(shape)
        shape = squeezed(shape)
        inner_shape = (shape[0] - shape[0] // 2, *shape[1:])  # the first half of the channels is factored out
        inner, semantic = self._level(inner_shape, squeezes - 1)
        layers += [Squeeze(), *self._channel_couplings(shape), FactorOut(inner, shape)]
        return CompositeTransform(layers), semantic

    def _checkerboards(self, shape: Shape) -> list[Transform]:
        layers: list[Transform] = []
        for swap in (False, True, False):
            part = CheckerboardPartition(shape[0], swap)
            network = self.coupling_network(part.num_identity, 2 * part.num_transformed, self.channels)
            mixing = LINEAR[self.linear](shape[0])
            layers += [mixing, AffineCoupling(network, part, self.scale), ActNorm(shape[0])]
        return layers

    def _channel_couplings(self, shape: Shape) -> list[Transform]:
        if shape[0] < 2:  # one channel at an odd size has no halves
            return []
        layers: list[Transform] = []
        for _ in range(2):
            mixing = LINEAR[self.linear](shape[0])
            coupling = two_way_coupling(lambda a, b: self.coupling_network(a, b, self.channels), shape[0], self.scale)
            layers += [mixing, coupling, ActNorm(shape[0])]
        return layers
