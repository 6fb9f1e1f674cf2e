"""Flows that squeeze an image before the first convolution, and do most of the work on a coarse image."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from scnf.arguments import Range
from scnf.distributions import DiagonalGaussian, FlowDistribution
from scnf.errors import InvalidArgument
from scnf.nn import GlobalConvNet
from scnf.recipes.base import Shape, register_recipe
from scnf.recipes.parts import MAX_SEMANTIC, Blocks, Depth, ImageFlow, SharedFlow, Width, even, squeezed
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
    InverseTransform,
    Permutation,
    Squeeze,
    Transform,
    haar_matrix,
)


@dataclass(frozen=True)
class CoarseToFine(ImageFlow):
    """What scnf-fast and scnf-hybrid share: levels of a coarse image, and couplings of the details over it.

    A checkerboard coupling is a channel coupling after a squeeze, at a third of the cost. Each level squeezes, while
    both sides are even and down to 8 pixels, and mixes the four pixels of a block by a matrix that starts as the Haar
    wavelet (Ardizzone et al., https://arxiv.org/abs/1907.02392). At all levels but the last, couplings transform the
    details, a third at a time, given all other channels; then the details are factored out and the coarse image goes
    on. The last level takes Glow steps [ActNorm, 1x1 convolution, channel coupling].
    """

    channels: Width = 96
    """Width of the networks of the coarse image."""
    steps: Depth = 8
    """Glow steps of the coarse image."""
    detail_channels: Width = 32
    """Width of the networks of the details."""
    detail_steps: Blocks = 3
    """Couplings of the details at each level but the last, which has none."""

    def coupling(self, part: ChannelPartition | CheckerboardPartition, width: int) -> Transform:
        """An affine coupling with a network of that width."""
        network = self.coupling_network(part.num_identity, 2 * part.num_transformed, width)
        return AffineCoupling(network, part, self.scale)

    def glow_steps(self, shape: Shape) -> list[Transform]:
        """The steps of the coarse image."""
        layers: list[Transform] = []
        for index in range(self.steps):
            one_channel = shape[0] == 1  # at an odd size: there are no halves
            part = CheckerboardPartition(1, swap=index % 2 == 1) if one_channel else ChannelPartition(shape[0])
            last = self.coupling(part, self.channels)  # before the matrix: what a seed gives hangs on the order
            layers += [ActNorm(shape[0]), LINEAR[self.linear](shape[0]), last]
        return layers

    def in_turns(self, shape: Shape, fine: int, turn: int, width: int, times: int) -> list[Transform]:
        """Couplings of the `fine` first channels, `turn` of them at a time, given all others."""
        order = torch.cat([torch.arange(fine).roll(-turn), torch.arange(fine, shape[0])])
        layers: list[Transform] = [ActNorm(shape[0])]
        for _ in range(times):
            layers += [self.coupling(ChannelPartition(shape[0], swap=True, first=turn), width), Permutation(order)]
        return layers

    def detail_couplings(self, shape: Shape, coarse: int) -> list[Transform]:
        """Couplings of the details, which are all but the last `coarse` channels, as many as these at a time."""
        return self.in_turns(shape, shape[0] - coarse, coarse, self.detail_channels, self.detail_steps)

    def coarsest(self, shape: Shape, semantic_share: float) -> tuple[list[Transform], int]:
        """The layers of the last level, and how many of its numbers are semantic."""
        two_numbers = min(shape[0], math.ceil(2 / math.prod(shape[1:])))
        semantic = max(two_numbers, round(semantic_share * shape[0]))
        kept, aside = (semantic, *shape[1:]), shape[0] - semantic
        if not aside:
            return [*self.glow_steps(shape), Flatten(shape)], math.prod(shape)
        apart = self.in_turns(shape, aside, math.ceil(aside / 3), self.channels, times=3)
        return [*self.glow_steps(shape), *apart, FactorOut(Flatten(kept), shape, aside)], math.prod(kept)

    def level(self, shape: Shape, semantic_share: float = 1.0, coarse_channels: int = 0) -> SharedFlow:
        """An image to a vector; the arguments are those of scnf-fast."""
        layers: list[Transform] = []
        if even(shape):
            shape = squeezed(shape)
            layers += [Squeeze(), FullLinear(shape[0], haar_matrix(shape[0] // 4))]
        if not even(shape) or min(shape[1:]) <= 8:
            last, semantic = self.coarsest(shape, semantic_share)
            return CompositeTransform([*layers, *last]), semantic
        coarse = shape[0] // 4
        inner, semantic = self.level((coarse, *shape[1:]), semantic_share, coarse_channels)
        if coarse_channels:
            given_details = ChannelPartition(shape[0], first=shape[0] - coarse)
            layers += [ActNorm(shape[0]), self.coupling(given_details, coarse_channels)]
        aside = FactorOut(inner, shape, aside=shape[0] - coarse)
        return CompositeTransform([*layers, *self.detail_couplings(shape, coarse), aside]), semantic


@register_recipe("scnf-fast")
@dataclass(frozen=True)
class ScnfFast(CoarseToFine):
    """The paper's idea for small machines: squeezed before the first convolution.

    See :class:`CoarseToFine` for the levels. With `coarse_channels`, a coupling transforms the coarse image given the
    details before these are factored out: else details say nothing of the class that the coarse image does not say.
    With `semantic_share` below 1, the last channels of the last level tell the classes. The others are moved by three
    couplings, in turns of a third of them (rounded up) given all other channels, then factored out too.
    """

    semantic_share: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the coarse latents that tell the classes, in whole channels and at least two numbers."""
    coarse_channels: Annotated[int, Range(0, 16_384)] = 0
    """Width of the network by which details move the coarse image, at each level but the last; 0 for none."""

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """The transform of images, and how many of its last outputs are semantic."""
        self.require_image(shape)
        body, semantic = self.level(shape, self.semantic_share, self.coarse_channels)
        return CompositeTransform([self.real_line(levels), body]), semantic


@register_recipe("scnf-gmm")
@dataclass(frozen=True)
class ScnfGmm(ScnfFast):
    """The shared flow of scnf-fast with one Gaussian per class.

    This is SCNF-GMM (https://arxiv.org/abs/1905.00505); FlowGMM (https://arxiv.org/abs/1912.13025) is of that kind.
    """

    conditional: Literal["flow", "gaussian"] = "gaussian"


@register_recipe("scnf-digits")
@dataclass(frozen=True)
class ScnfDigits(ScnfFast):
    """A small scnf-fast, for 8x8 images."""

    channels: Width = 32
    steps: Depth = 6
    conditional_hidden: Width = 64


@register_recipe("scnf-hybrid")
@dataclass(frozen=True)
class ScnfHybrid(CoarseToFine):
    """The classes by a network that sees the whole image, the rest by scnf-fast: for few labels.

    One band of the Haar wavelet, given the three others, tells the classes. The image is squeezed and mixed as in
    scnf-fast. The last band starts as the diagonal details, which say least about an image. It is scaled and shifted
    twice given the other bands, first by a convolutional network and then by a :class:`~scnf.nn.GlobalConvNet`. The
    second coupling is to move it to where p(z_f | y) has its class. The other bands are z_aux, and p(z_aux) is a flow
    as that of scnf-fast, of two bands of details and the coarse image.
    """

    conditional: Literal["flow", "gaussian"] = "gaussian"
    semantic_channels: Width = 64
    """Width of the network that sees the whole image."""
    semantic_hidden: Width = 512
    """Numbers between its linear layers."""

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """The transform of images, and how many of its last outputs are semantic."""
        self.require_image(shape)
        if not even(shape):
            raise InvalidArgument(
                "shape",
                f"must be of even height and width for {self.name}, not {list(shape)}: for others there is the recipe "
                "scnf-fast",
            )
        band, shape = shape[0], squeezed(shape)
        part, kept = ChannelPartition(shape[0], first=3 * band), (band, *shape[1:])
        if math.prod(kept) > MAX_SEMANTIC:
            raise InvalidArgument(
                "shape",
                f"gives {math.prod(kept)} details that would tell the classes, {MAX_SEMANTIC} at most: use smaller "
                "images, or the recipe scnf-fast",
            )
        numbers = torch.arange(shape[0])
        last = torch.cat([numbers[: 2 * band], numbers[3 * band :], numbers[2 * band : 3 * band]])
        near = self.coupling_network(part.num_identity, 2 * band, self.detail_channels)
        whole = GlobalConvNet(part.num_identity, 2 * band, shape[1:], self.semantic_channels, self.semantic_hidden)
        layers: list[Transform] = [self.real_line(levels), Squeeze()]
        layers += [FullLinear(shape[0], haar_matrix(band)), Permutation(last)]
        for network in (near, whole):
            layers += [ActNorm(shape[0]), AffineCoupling(network, part, self.scale)]
        return CompositeTransform([*layers, FactorOut(Flatten(kept), shape, aside=3 * band)]), math.prod(kept)

    def auxiliary(self, shape: Shape, features: int) -> DiagonalGaussian | FlowDistribution | None:
        """p(z_aux): a flow whose detail couplings take the two bands in turns."""
        bands = (3 * shape[0], shape[1] // 2, shape[2] // 2)
        layers = [InverseTransform(Flatten(bands)), *self.detail_couplings(bands, shape[0])]
        inner, _ = self.level((shape[0], *bands[1:]))
        aside = FactorOut(inner, bands, aside=2 * shape[0])
        return FlowDistribution(CompositeTransform([*layers, aside]), features)
