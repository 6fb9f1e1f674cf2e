"""Define flows that squeeze an image before the first convolution, and do most of their work on a coarse image."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from scnf.arguments import Range
from scnf.recipes.base import Shape, register_recipe
from scnf.recipes.parts import Blocks, Depth, ImageFlow, ImageLayers, SharedFlow, Width, is_even, squeezed
from scnf.transforms import (
    LINEAR,
    ActNorm,
    AffineCoupling,
    ChannelPartition,
    CheckerboardPartition,
    CompositeTransform,
    FactorOut,
    Flatten,
    FullLinear,
    Permutation,
    Squeeze,
    Transform,
    haar_matrix,
)


@dataclass(frozen=True)
class CoarseToFine(ImageLayers):
    """scnf-fast and scnf-hybrid share levels of coarse images, and couplings of the details at these levels.

    After a squeeze, a channel coupling does the work of a checkerboard coupling at a third of the cost. Each level
    squeezes the image, while both sides are even and down to 8 pixels. It mixes the four pixels of a block by a matrix
    that starts as the Haar wavelet (Ardizzone et al., https://arxiv.org/abs/1907.02392).

    At all levels but the last, couplings transform the details, a third at a time, given all other channels. Then the
    details are factored out, and the next level takes the coarse image. The last level takes Glow steps [ActNorm, 1x1
    convolution, channel coupling].
    """

    channels: Width = 96
    """Width of the coupling networks of the coarse image; a larger width costs more time."""
    steps: Depth = 8
    """Number of Glow steps on the coarse image; each step adds one coupling."""
    detail_channels: Width = 32
    """Width of the coupling networks of the details; a larger width costs more time."""
    detail_steps: Blocks = 3
    """Number of couplings of the details at each level but the last, where there are none."""

    def coupling(self, part: ChannelPartition | CheckerboardPartition, width: int) -> Transform:
        """Build an affine coupling with a network of width `width`."""
        network = self.coupling_network(part.num_identity, 2 * part.num_transformed, width)
        return AffineCoupling(network, part, self.scale)

    def glow_steps(self, shape: Shape) -> list[Transform]:
        """Build the Glow steps of the coarse image."""
        layers: list[Transform] = []
        for index in range(self.steps):
            one_channel = shape[0] == 1  # at an odd size, where a channel has no halves
            part = CheckerboardPartition(1, swap=index % 2 == 1) if one_channel else ChannelPartition(shape[0])
            # built before the matrix, because the order decides which weights a seed draws
            coupling = self.coupling(part, self.channels)
            layers += [ActNorm(shape[0]), LINEAR[self.linear](shape[0]), coupling]
        return layers

    def cyclic_couplings(self, shape: Shape, fine: int, turn: int, width: int, times: int) -> list[Transform]:
        """Build couplings of the first `fine` channels, which transform `turn` channels at a time given all others."""
        order = torch.cat([torch.arange(fine).roll(-turn), torch.arange(fine, shape[0])])
        layers: list[Transform] = [ActNorm(shape[0])]
        for _ in range(times):
            layers += [self.coupling(ChannelPartition(shape[0], swap=True, first=turn), width), Permutation(order)]
        return layers

    def detail_couplings(self, shape: Shape, coarse: int) -> list[Transform]:
        """Build couplings of the details, which transform `coarse` channels at a time.

        The details are all channels but the last `coarse` ones.
        """
        return self.cyclic_couplings(shape, shape[0] - coarse, coarse, self.detail_channels, self.detail_steps)

    def coarsest_level(self, shape: Shape, semantic_share: float) -> tuple[list[Transform], int]:
        """Build the layers of the last level, and count its semantic outputs."""
        least = min(shape[0], math.ceil(2 / math.prod(shape[1:])))
        semantic = max(least, round(semantic_share * shape[0]))
        semantic_shape, num_aside = (semantic, *shape[1:]), shape[0] - semantic
        if not num_aside:
            return [*self.glow_steps(shape), Flatten(shape)], math.prod(shape)
        couplings = self.cyclic_couplings(shape, num_aside, math.ceil(num_aside / 3), self.channels, times=3)
        layers = [*self.glow_steps(shape), *couplings, FactorOut(Flatten(semantic_shape), shape, num_aside)]
        return layers, math.prod(semantic_shape)

    def level(self, shape: Shape, semantic_share: float = 1.0, coarse_channels: int = 0) -> SharedFlow:
        """Build the transform of an image to a vector, and count its semantic outputs.

        `semantic_share` and `coarse_channels` are the arguments of scnf-fast.
        """
        layers: list[Transform] = []
        if is_even(shape):
            shape = squeezed(shape)
            layers += [Squeeze(), FullLinear(shape[0], haar_matrix(shape[0] // 4))]
        if not is_even(shape) or min(shape[1:]) <= 8:
            last, semantic = self.coarsest_level(shape, semantic_share)
            return CompositeTransform([*layers, *last]), semantic
        coarse = shape[0] // 4
        inner, semantic = self.level((coarse, *shape[1:]), semantic_share, coarse_channels)
        if coarse_channels:
            part = ChannelPartition(shape[0], first=shape[0] - coarse)
            layers += [ActNorm(shape[0]), self.coupling(part, coarse_channels)]
        factor_out = FactorOut(inner, shape, aside=shape[0] - coarse)
        return CompositeTransform([*layers, *self.detail_couplings(shape, coarse), factor_out]), semantic


@register_recipe("scnf-fast")
@dataclass(frozen=True)
class ScnfFast(CoarseToFine, ImageFlow):
    """A flow for small machines, which takes the paper's idea and squeezes images before the first convolution.

    See :class:`CoarseToFine` for the levels. With `coarse_channels`, a coupling transforms the coarse image given the
    details before the details are factored out. Without it, the details say nothing about the class that the coarse
    image does not say.

    With `semantic_share` below 1, only the last channels of the last level depend on the class. Three couplings
    transform the other channels, a third of them (rounded up) at a time, given all other channels. Then these channels
    are factored out too.
    """

    semantic_share: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the coarse latents that depend on the class, in whole channels and at least two numbers; 1 takes them
    all."""
    coarse_channels: Annotated[int, Range(0, 16_384)] = 0
    """Width of the network that transforms the coarse image given the details, at each level but the last; 0 leaves it
    out."""

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """Build the transform of images, and count its semantic outputs, which come last."""
        self.require_image(shape)
        body, semantic = self.level(shape, self.semantic_share, self.coarse_channels)
        return CompositeTransform([self.real_line(levels), body]), semantic


@register_recipe("scnf-gmm")
@dataclass(frozen=True)
class ScnfGmm(ScnfFast):
    """The shared flow of scnf-fast with one Gaussian per class.

    This is SCNF-GMM (https://arxiv.org/abs/1905.00505). FlowGMM (https://arxiv.org/abs/1912.13025) is a flow of the
    same kind.
    """

    conditional: Literal["flow", "gaussian"] = "gaussian"


@register_recipe("scnf-digits")
@dataclass(frozen=True)
class ScnfDigits(ScnfFast):
    """A small scnf-fast for 8x8 images."""

    channels: Width = 32
    steps: Depth = 6
    conditional_hidden: Width = 64
