"""Recipes: whole architectures as code, read as lists of layers.

A flow recipe is a shared flow, a class-conditional part and the defaults of both. Their keyword arguments are the
`model.*` settings. Images are squeezed (2x2 blocks become channels) while their sides are even, down to 8 pixels or, in
scnf-paper, twice; at an odd side the squeezing stops and the layers go on at that size. Nothing is padded, so densities
stay exact.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import nn

from scnf.distributions import (
    ClassConditional,
    ClassConditionalFlow,
    ClassConditionalGaussian,
    ClassPrior,
    DiagonalGaussian,
    FlowDistribution,
)
from scnf.models.flow import SemiConditionalFlow
from scnf.models.recipe import defaults_of, override
from scnf.models.variational_architectures import VARIATIONAL, VariationalRecipe
from scnf.nn import MLP, ConvNet, GlobalConvNet
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
    GreyLevels,
    InverseTransform,
    Logit,
    Permutation,
    Squeeze,
    Transform,
    haar_matrix,
    two_way_coupling,
)

Shape = tuple[int, ...]
SharedFlow = tuple[Transform, int]
"""A transform of inputs to vectors, and how many of its last outputs are semantic."""


def _real_line(pixels: str, levels: int | None, alpha: float | None) -> Transform:
    """From pixels in [0, 1] to the real line: what `pixels` names."""
    if pixels == "logit":
        return Logit() if alpha is None else Logit(alpha)
    if alpha is not None:
        raise ValueError("alpha is of the logit: set model.pixels to logit too, or drop it")
    if pixels != "levels":
        raise ValueError(f"pixels is levels or logit, not {pixels!r}")
    if levels is None:
        raise ValueError("there are no grey levels: set model.pixels to logit")
    return GreyLevels(levels)


MAX_SEMANTIC = 4096
"""The widest vector that a dense class-conditional part is built for."""


def _even(shape: Shape) -> bool:
    return shape[1] % 2 == 0 and shape[2] % 2 == 0


def _squeezed(shape: Shape) -> Shape:
    return 4 * shape[0], shape[1] // 2, shape[2] // 2


def _kept(shape: Shape) -> Shape:
    """What stays when the first half of the channels is factored out."""
    return shape[0] - shape[0] // 2, *shape[1:]


def _require_image(shape: Shape) -> None:
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ValueError("it takes images [C, H, W] of at least 2x2 pixels; for points use model.recipe scnf-toy")


def paper_flow(
    shape: Shape,
    levels: int | None,
    pixels: str = "logit",
    alpha: float | None = None,
    channels: int = 64,
    blocks: int = 4,
    linear: str = "full",
    scale: str = "sigmoid",
) -> SharedFlow:
    """The shared flow of arXiv 1905.00505: at most two squeezes, residual networks with reflection padding.

    At every level three [1x1 convolution, checkerboard coupling, ActNorm]; after a squeeze two [1x1 convolution,
    two-way channel coupling, ActNorm] and half of the channels factored out; the last level ends in two such couplings.
    """
    _require_image(shape)

    def network(inputs: int, outputs: int) -> nn.Module:
        return ConvNet(inputs, outputs, channels, blocks, padding="reflect")

    def checkerboards(shape: Shape) -> list[Transform]:
        layers: list[Transform] = []
        for swap in (False, True, False):
            part = CheckerboardPartition(shape[0], swap)
            coupling = AffineCoupling(network(part.num_identity, 2 * part.num_transformed), part, scale)
            layers += [LINEAR[linear](shape[0]), coupling, ActNorm(shape[0])]
        return layers

    def channel_couplings(shape: Shape) -> list[Transform]:
        if shape[0] < 2:  # one channel at an odd size: there are no halves
            return []
        layers: list[Transform] = []
        for _ in range(2):
            layers += [LINEAR[linear](shape[0]), two_way_coupling(network, shape[0], scale), ActNorm(shape[0])]
        return layers

    def level(shape: Shape, squeezes: int) -> SharedFlow:
        layers = checkerboards(shape)
        if squeezes == 0 or not _even(shape) or min(shape[1:]) < 4:
            return CompositeTransform([*layers, *channel_couplings(shape), Flatten(shape)]), math.prod(shape)
        shape = _squeezed(shape)
        inner, semantic = level(_kept(shape), squeezes - 1)
        return CompositeTransform([*layers, Squeeze(), *channel_couplings(shape), FactorOut(inner, shape)]), semantic

    body, semantic = level(shape, squeezes=2)
    return CompositeTransform([_real_line(pixels, levels, alpha), body]), semantic


def _coarse_to_fine(
    channels: int,
    steps: int,
    detail_channels: int,
    detail_steps: int,
    blocks: int,
    linear: str,
    scale: str,
    semantic_share: float = 1.0,
    coarse_channels: int = 0,
) -> tuple[Callable[[Shape], SharedFlow], Callable[[Shape, int], list[Transform]]]:
    """What scnf-fast and scnf-hybrid share: `level` of an image, `detail_couplings` of details over a coarse image."""
    if not 0 < semantic_share <= 1:
        raise ValueError(f"semantic_share is a share, above 0 and not above 1, not {semantic_share:g}")

    def coupling(part: ChannelPartition | CheckerboardPartition, width: int) -> Transform:
        return AffineCoupling(ConvNet(part.num_identity, 2 * part.num_transformed, width, blocks), part, scale)

    def glow_steps(shape: Shape) -> list[Transform]:
        layers: list[Transform] = []
        for index in range(steps):
            one_channel = shape[0] == 1  # at an odd size: there are no halves
            part = CheckerboardPartition(1, swap=index % 2 == 1) if one_channel else ChannelPartition(shape[0])
            last = coupling(part, channels)  # before the matrix: what a seed gives hangs on the order
            layers += [ActNorm(shape[0]), LINEAR[linear](shape[0]), last]
        return layers

    def in_turns(shape: Shape, fine: int, turn: int, width: int, times: int) -> list[Transform]:
        """Couplings of the `fine` first channels, `turn` of them at a time, given all others."""
        order = torch.cat([torch.arange(fine).roll(-turn), torch.arange(fine, shape[0])])
        layers: list[Transform] = [ActNorm(shape[0])]
        for _ in range(times):
            layers += [coupling(ChannelPartition(shape[0], swap=True, first=turn), width), Permutation(order)]
        return layers

    def detail_couplings(shape: Shape, coarse: int) -> list[Transform]:
        return in_turns(shape, shape[0] - coarse, coarse, detail_channels, detail_steps)

    def coarsest(shape: Shape) -> tuple[list[Transform], int]:
        two_numbers = min(shape[0], math.ceil(2 / math.prod(shape[1:])))
        semantic = max(two_numbers, round(semantic_share * shape[0]))
        kept, aside = (semantic, *shape[1:]), shape[0] - semantic
        if not aside:
            return [*glow_steps(shape), Flatten(shape)], math.prod(shape)
        apart = in_turns(shape, aside, math.ceil(aside / 3), channels, times=3)
        return [*glow_steps(shape), *apart, FactorOut(Flatten(kept), shape, aside)], math.prod(kept)

    def level(shape: Shape) -> SharedFlow:
        layers: list[Transform] = []
        if _even(shape):
            shape = _squeezed(shape)
            layers += [Squeeze(), FullLinear(shape[0], haar_matrix(shape[0] // 4))]
        if not _even(shape) or min(shape[1:]) <= 8:
            last, semantic = coarsest(shape)
            return CompositeTransform([*layers, *last]), semantic
        coarse = shape[0] // 4
        inner, semantic = level((coarse, *shape[1:]))
        if coarse_channels:
            given_details = ChannelPartition(shape[0], first=shape[0] - coarse)
            layers += [ActNorm(shape[0]), coupling(given_details, coarse_channels)]
        aside = FactorOut(inner, shape, aside=shape[0] - coarse)
        return CompositeTransform([*layers, *detail_couplings(shape, coarse), aside]), semantic

    return level, detail_couplings


def fast_flow(
    shape: Shape,
    levels: int | None,
    pixels: str = "levels",
    alpha: float | None = None,
    channels: int = 96,
    steps: int = 8,
    detail_channels: int = 32,
    detail_steps: int = 3,
    blocks: int = 0,
    linear: str = "full",
    scale: str = "symmetric",
    semantic_share: float = 1.0,
    coarse_channels: int = 0,
) -> SharedFlow:
    """Squeezed before the first convolution; most of the work is done on a coarse image.

    A checkerboard coupling is a channel coupling after a squeeze, at a third of the cost. Each level squeezes and mixes
    the four pixels of a block by a matrix that starts as the Haar wavelet (Ardizzone et al.,
    https://arxiv.org/abs/1907.02392). At all levels but the last, unless `coarse_channels` is 0, a coupling with a
    network of that width transforms the coarse image given the details: else details say nothing of the class that the
    coarse image does not say. Then `detail_steps` couplings each transform a third of the details given all other
    channels, the details are factored out and the coarse image goes on. The last level, at a side of at most 8 or an
    odd one, takes `steps` Glow steps [ActNorm, 1x1 convolution, channel coupling]. The last of its channels,
    `semantic_share` of them in whole channels and at least two numbers, tell the classes. The others, if any, are moved
    by three couplings, in turns of a third of them (rounded up) given all other channels, then factored out too.
    """
    _require_image(shape)
    level, _ = _coarse_to_fine(
        channels, steps, detail_channels, detail_steps, blocks, linear, scale, semantic_share, coarse_channels
    )
    body, semantic = level(shape)
    return CompositeTransform([_real_line(pixels, levels, alpha), body]), semantic


def hybrid_flow(
    shape: Shape,
    levels: int | None,
    pixels: str = "levels",
    alpha: float | None = None,
    detail_channels: int = 32,
    blocks: int = 0,
    semantic_channels: int = 64,
    semantic_hidden: int = 512,
    scale: str = "symmetric",
) -> SharedFlow:
    """One band of the Haar wavelet, given the three others by a network that sees the whole image, tells the classes.

    The image is squeezed and mixed as in scnf-fast, by a matrix that starts as the Haar wavelet. The last band starts
    as the diagonal details, which say least about an image. It is scaled and shifted twice given the other bands, first
    by a convolutional network and then by a :class:`~scnf.nn.GlobalConvNet`. The second coupling is to move it to where
    p(z_f | y) has its class. The other bands are z_aux: see `hybrid_auxiliary`.
    """
    _require_image(shape)
    if not _even(shape):
        raise ValueError("it takes images of even height and width; for others use model.recipe scnf-fast")
    band, shape = shape[0], _squeezed(shape)
    part, kept = ChannelPartition(shape[0], first=3 * band), (band, *shape[1:])
    if math.prod(kept) > MAX_SEMANTIC:
        raise ValueError(
            f"{math.prod(kept)} details would tell the classes, {MAX_SEMANTIC} at most: use smaller images, or "
            "model.recipe scnf-fast"
        )
    numbers = torch.arange(shape[0])
    last = torch.cat([numbers[: 2 * band], numbers[3 * band :], numbers[2 * band : 3 * band]])
    near = ConvNet(part.num_identity, 2 * band, detail_channels, blocks)
    whole = GlobalConvNet(part.num_identity, 2 * band, shape[1:], semantic_channels, semantic_hidden)
    layers: list[Transform] = [_real_line(pixels, levels, alpha), Squeeze()]
    layers += [FullLinear(shape[0], haar_matrix(band)), Permutation(last)]
    for network in (near, whole):
        layers += [ActNorm(shape[0]), AffineCoupling(network, part, scale)]
    return CompositeTransform([*layers, FactorOut(Flatten(kept), shape, aside=3 * band)]), math.prod(kept)


def hybrid_auxiliary(
    shape: Shape,
    channels: int = 96,
    steps: int = 8,
    detail_channels: int = 32,
    detail_steps: int = 3,
    blocks: int = 0,
    linear: str = "full",
    scale: str = "symmetric",
) -> FlowDistribution:
    """p(z_aux) for `hybrid_flow`: a flow as that of scnf-fast, of two bands of details and the coarse image.

    The `detail_steps` couplings take the two bands in turns.
    """
    level, detail_couplings = _coarse_to_fine(channels, steps, detail_channels, detail_steps, blocks, linear, scale)
    bands = (3 * shape[0], shape[1] // 2, shape[2] // 2)
    layers = [InverseTransform(Flatten(bands)), *detail_couplings(bands, shape[0])]
    inner, _ = level((shape[0], *bands[1:]))
    aside = FactorOut(inner, bands, aside=2 * shape[0])
    return FlowDistribution(CompositeTransform([*layers, aside]), math.prod(bands))


def point_flow(
    shape: Shape,
    levels: int | None,
    channels: int = 64,
    steps: int = 6,
    blocks: int = 1,
    linear: str = "plu",
    scale: str = "symmetric",
) -> SharedFlow:
    """Steps of [ActNorm, dense mixing, two-way coupling] on vectors [N, D]."""
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError("it takes points [D] of at least 2 dimensions; for images use model.recipe scnf-fast")

    def network(inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, outputs, channels, blocks)

    layers: list[Transform] = []
    for _ in range(steps):
        layers += [ActNorm(shape[0]), LINEAR[linear](shape[0]), two_way_coupling(network, shape[0], scale)]
    return CompositeTransform([*layers, ActNorm(shape[0])]), shape[0]


def conditional_flow(
    num_classes: int,
    features: int,
    conditional_hidden: int = 128,
    conditional_blocks: int = 1,
    conditional_steps: int = 2,
    conditional_scales: int = 1,
    embedding: int = 10,
    linear: str = "full",
    scale: str = "symmetric",
    class_chunk: int | None = None,
) -> ClassConditionalFlow:
    """h(z; y) of arXiv 1905.00505: steps of [ActNorm, dense mixing, two-way coupling given a label embedding].

    There are `conditional_scales` groups of such steps, with half of the features factored out between them.
    """

    def network(inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, outputs, conditional_hidden, conditional_blocks, context_features=embedding)

    def level(size: int, more: int) -> Transform:
        layers: list[Transform] = []
        for _ in range(conditional_steps):
            layers += [ActNorm(size), LINEAR[linear](size), two_way_coupling(network, size, scale)]
        if more and size >= 4:
            layers.append(FactorOut(level(size - size // 2, more - 1), (size,)))
        return CompositeTransform(layers)

    return ClassConditionalFlow(level(features, conditional_scales - 1), features, num_classes, embedding, class_chunk)


def conditional_gaussian(
    num_classes: int,
    features: int,
    means: str = "random",
    spread: float = 1.0,
    learn_means: bool = True,
    scales: str = "shared",
    learn_scales: bool = True,
    class_chunk: int | None = None,
) -> ClassConditionalGaussian:
    """One Gaussian per class on the semantic features: SCNF-GMM (arXiv 1905.00505), as FlowGMM (arXiv 1912.13025)."""
    return ClassConditionalGaussian(
        num_classes, features, means, spread, learn_means, scales, learn_scales, chunk=class_chunk
    )


CONDITIONALS: dict[str, Callable[..., ClassConditional]] = {"flow": conditional_flow, "gaussian": conditional_gaussian}


@dataclass(frozen=True)
class FlowRecipe:
    """A named semi-conditional flow.

    Attributes:
        summary: one line for people who choose.
        shared: builds the shared flow from the shape, the number of grey levels, and some of the arguments.
        defaults: the arguments in which the recipe differs from those of its parts; `conditional` names the
            class-conditional part, "flow" or "gaussian".
        auxiliary: builds p(z_aux) likewise; a diagonal Gaussian by default.
    """

    summary: str
    shared: Callable[..., SharedFlow]
    defaults: Mapping[str, Any]
    auxiliary: Callable[..., FlowDistribution] | None = None

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of the recipe, with `given` in place of its defaults.

        Raises:
            ValueError: an argument that this recipe does not take, or an unknown `conditional`.
        """
        kind = given.get("conditional", self.defaults["conditional"])
        if kind not in CONDITIONALS:
            raise ValueError(f"conditional is {' or '.join(CONDITIONALS)}, not {kind!r}")
        arguments = {"conditional": kind}
        for part in (self.shared, self.auxiliary, CONDITIONALS[kind]):
            arguments |= defaults_of(part) if part else {}
        arguments |= {name: value for name, value in self.defaults.items() if name in arguments}
        return override(arguments, given)

    def build(
        self, shape: Shape, num_classes: int, prior: ClassPrior, levels: int | None, given: Mapping[str, Any]
    ) -> SemiConditionalFlow:
        """The model for inputs of `shape` and, for images, so many grey levels."""
        arguments = self.resolve(given)

        def pick(part: Callable[..., Any]) -> dict[str, Any]:
            return {name: arguments[name] for name in inspect.signature(part).parameters if name in arguments}

        transform, semantic = self.shared(shape, levels, **pick(self.shared))
        if semantic > MAX_SEMANTIC:
            raise ValueError(
                f"{semantic} features are left for the class-conditional part, which takes at most {MAX_SEMANTIC}: "
                "crop or resize the images so that height and width can be halved more often"
            )
        conditional = CONDITIONALS[arguments["conditional"]]
        part = conditional(num_classes, semantic, **pick(conditional))
        rest = math.prod(shape) - semantic
        auxiliary: DiagonalGaussian | FlowDistribution | None = DiagonalGaussian(rest) if rest else None
        if self.auxiliary:
            auxiliary = self.auxiliary(shape, **pick(self.auxiliary))
        return SemiConditionalFlow(transform, auxiliary, part, prior, semantic)


FLOWS: dict[str, FlowRecipe] = {
    "scnf-paper": FlowRecipe(
        "the architecture of arXiv 1905.00505; for a GPU",
        paper_flow,
        dict(
            conditional="flow",
            conditional_hidden=256,
            conditional_blocks=4,
            conditional_steps=4,
            conditional_scales=2,
            scale="sigmoid",
        ),
    ),
    "scnf-fast": FlowRecipe(
        "the same idea for small machines: squeezed before the first convolution",
        fast_flow,
        dict(conditional="flow"),
    ),
    "scnf-hybrid": FlowRecipe(
        "the classes by a network that sees the whole image, the rest by scnf-fast: for few labels",
        hybrid_flow,
        dict(conditional="gaussian"),
        hybrid_auxiliary,
    ),
    "scnf-gmm": FlowRecipe(
        "the shared flow of scnf-fast, one Gaussian per class", fast_flow, dict(conditional="gaussian")
    ),
    "scnf-digits": FlowRecipe(
        "scnf-fast for 8x8 images",
        fast_flow,
        dict(conditional="flow", channels=32, steps=6, conditional_hidden=64, conditional_steps=2),
    ),
    "scnf-toy": FlowRecipe(
        "points in the plane",
        point_flow,
        dict(conditional="flow", means="data", conditional_hidden=32, conditional_steps=4),
    ),
}


def _plain(value: Any) -> Any:
    """A whole number as Python's own, where it is one of numpy."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


RECIPES: dict[str, FlowRecipe | VariationalRecipe] = {**FLOWS, **VARIATIONAL}


LEARNED_ELSEWHERE = frozenset(
    {
        *("class_chunk", "num_samples", "importance_samples"),  # how a model is computed
        *("labels", "temperature", "final_temperature", "learn_means", "learn_scales"),  # how it trains
        *("means", "spread", "m1"),  # where it starts
    }
)
"""Arguments that do not decide which function the weights of a model make."""


def build(
    recipe: str,
    shape: Sequence[int],
    num_classes: int,
    prior: ClassPrior | None = None,
    levels: int | None = 256,
    **arguments: Any,
) -> Any:
    """Build a model by its recipe.

    Args:
        recipe: a key of `RECIPES`.
        shape: shape of one input: (C, H, W), or (D,) for points.
        num_classes: K.
        prior: p(y); uniform by default.
        levels: grey levels of the data, None for points; what the first layer of flows and pixel likelihoods speak of.
        **arguments: settings of the recipe, in place of its defaults.

    Returns:
        a :class:`scnf.models.base.JointModel`, which takes inputs of this shape alone.

    Raises:
        ValueError: unknown recipe or argument, or a shape that the recipe cannot take.

    Example:
        >>> model = build("scnf-digits", shape=(1, 8, 8), num_classes=10, levels=17)
        >>> model.semantic_features
        64
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    num_classes, levels = int(num_classes), None if levels is None else int(levels)
    given, sizes = {name: _plain(value) for name, value in arguments.items()}, tuple(map(int, shape))
    try:
        model = RECIPES[recipe].build(sizes, num_classes, prior or ClassPrior(num_classes), levels, given)
    except (ValueError, KeyError) as error:
        reason = f"unknown value {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the recipe {recipe} cannot be built for inputs of shape {list(shape)}: {reason}") from error
    model.shape = sizes
    return model
