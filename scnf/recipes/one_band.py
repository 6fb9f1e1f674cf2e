"""Define flows that find the class by a network of the whole image, and write it into one band of a wavelet."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from scnf.arguments import Range
from scnf.distributions import ClassConditionalSoftmax, ClassPrior, FlowDistribution
from scnf.errors import InvalidArgument
from scnf.models.reader import ReaderFlow
from scnf.nn import Encoder, GlobalConvNet, ResidualFeatures
from scnf.recipes.base import Shape, register_recipe
from scnf.recipes.coarse_to_fine import CoarseToFine
from scnf.recipes.parts import MAX_SEMANTIC, Depth, ImageFlow, SharedFlow, Width, is_even, squeezed
from scnf.transforms import (
    ActNorm,
    AffineCoupling,
    ChannelPartition,
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
class OneBand(CoarseToFine):
    """In scnf-hybrid and scnf-reader, one band of the Haar wavelet depends on the class, given the three other bands.

    The image is squeezed and mixed as in scnf-fast. The last band starts as the diagonal details, which say least about
    an image. It is scaled and shifted given the other bands, which are z_aux. Their density p(z_aux) is a flow like the
    one of scnf-fast, of two bands of details and the coarse image.
    """

    def local_network(self, shape: Shape) -> nn.Module:
        """Build the convolutional network of the last band's first coupling."""
        return self.coupling_network(3 * shape[0], 2 * shape[0], self.detail_channels)

    def split_bands(self, shape: Shape, levels: int | None, *networks: nn.Module) -> SharedFlow:
        """Build the transform of images to the bands z_aux and the last band, and count the last band's features.

        The last band is transformed by one coupling for each of `networks`.
        """
        band, shape = shape[0], squeezed(shape)
        channels = torch.arange(shape[0])
        order = torch.cat([channels[: 2 * band], channels[3 * band :], channels[2 * band : 3 * band]])
        layers: list[Transform] = [self.real_line(levels), Squeeze()]
        layers += [FullLinear(shape[0], haar_matrix(band)), Permutation(order)]
        part, semantic_shape = ChannelPartition(shape[0], first=3 * band), (band, *shape[1:])
        for network in networks:
            layers += [ActNorm(shape[0]), AffineCoupling(network, part, self.scale)]
        factor_out = FactorOut(Flatten(semantic_shape), shape, aside=3 * band)
        return CompositeTransform([*layers, factor_out]), math.prod(semantic_shape)

    def bands_density(self, shape: Shape) -> FlowDistribution:
        """Build p(z_aux), a flow whose detail couplings transform the two bands of details in turns."""
        bands = (3 * shape[0], shape[1] // 2, shape[2] // 2)
        layers = [InverseTransform(Flatten(bands)), *self.detail_couplings(bands, shape[0])]
        inner, _ = self.level((shape[0], *bands[1:]))
        factor_out = FactorOut(inner, bands, aside=2 * shape[0])
        return FlowDistribution(CompositeTransform([*layers, factor_out]), math.prod(bands))

    def require_even_image(self, shape: Shape) -> None:
        """Refuse points, and images of odd height or width (InvalidArgument)."""
        self.require_image(shape)
        if not is_even(shape):
            raise InvalidArgument(
                "shape",
                f"must be of even height and width for {self.name}, not {list(shape)}: for other sizes use the "
                "recipe scnf-fast",
            )


@register_recipe("scnf-hybrid")
@dataclass(frozen=True)
class ScnfHybrid(OneBand, ImageFlow):
    """A flow for few labels, which finds the class by a network of the whole image and models the rest by scnf-fast.

    See :class:`OneBand` for the bands. The last band is scaled and shifted twice given the other bands, first by a
    convolutional network and then by a :class:`~scnf.nn.couplings.GlobalConvNet`. The second coupling is meant to move
    the band to where p(z_f | y) has its class.
    """

    conditional: Literal["flow", "gaussian"] = "gaussian"
    semantic_channels: Width = 64
    """Width of the convolutions in the network that sees the whole image."""
    semantic_hidden: Width = 512
    """Number of hidden units between the linear layers of the network that sees the whole image."""

    def shared_flow(self, shape: Shape, levels: int | None) -> SharedFlow:
        """Build the transform of images, and count its semantic outputs, which come last."""
        self.require_even_image(shape)
        band, size = shape[0], squeezed(shape)[1:]
        num_semantic = band * math.prod(size)
        if num_semantic > MAX_SEMANTIC:
            raise InvalidArgument(
                "shape",
                f"gives {num_semantic} details that depend on the class, and {self.name} takes "
                f"{MAX_SEMANTIC} at most: use smaller images, or the recipe scnf-fast",
            )
        local_network = self.local_network(shape)  # built first, because the order decides which weights a seed draws
        global_network = GlobalConvNet(3 * band, 2 * band, size, self.semantic_channels, self.semantic_hidden)
        return self.split_bands(shape, levels, local_network, global_network)

    def auxiliary(self, shape: Shape, features: int) -> FlowDistribution:
        """Build p(z_aux)."""
        return self.bands_density(shape)


@register_recipe("scnf-reader")
@dataclass(frozen=True)
class ScnfReader(OneBand):
    """A flow for photos, which reads the class by a residual network and models the image by scnf-fast.

    See :class:`OneBand` for the bands. The residual network sees the image but for K - 1 numbers of the last band, to
    which its logits are added, see :class:`~scnf.models.reader.ReaderFlow`. The likelihood does not train this network,
    and cross-entropies train nothing else.
    """

    channels: Width = 64
    steps: Depth = 4
    reader_channels: Width = 32
    """Width of the first convolution in the network that reads the class; the last one is four times as wide."""
    gain: Annotated[float, Range(0, 1e3, above=True)] = 8.0
    """Factor of the logits in the band. A larger factor adds less noise to the posterior, and costs density."""

    def build(self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None) -> ReaderFlow:
        """Build the model; see :meth:`~scnf.recipes.base.Recipe.build`."""
        self.require_even_image(shape)
        transform, semantic = self.split_bands(shape, levels, self.local_network(shape))
        if semantic < num_classes - 1:
            raise InvalidArgument(
                "shape",
                f"{list(shape)} gives {semantic} details that tell {num_classes} classes, and {self.name} needs "
                f"{num_classes - 1}: use larger images, or the recipe scnf-fast",
            )
        features = ResidualFeatures(shape, self.reader_channels)
        reader = Encoder(features, nn.Linear(features.width, num_classes))
        conditional = ClassConditionalSoftmax(num_classes, semantic, self.gain)
        return ReaderFlow(transform, reader, self.bands_density(shape), conditional, prior, semantic, levels)
