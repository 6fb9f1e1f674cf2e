"""Networks from inputs to features, such as encoders and classifiers, and from latents to images."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scnf.checks import check_choice
from scnf.errors import InvalidArgument
from scnf.nn.layers import Conv3x3, zero


def _check_image(shape: Sequence[int]) -> None:
    """Refuse the shape of vectors (InvalidArgument)."""
    if len(shape) != 3:
        raise InvalidArgument(
            "shape", f"must be (C, H, W) for a convolutional network, not {list(shape)}: for points there is mlp"
        )


class _Skip(nn.Module):
    """Add the inputs of a network to its outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.inner(inputs)
        return outputs


class _Squeeze(nn.Module):
    """Turn every 2x2 block into four channels."""

    def forward(self, inputs: Tensor) -> Tensor:
        rows, channels, height, width = inputs.shape
        # view: pixel_unshuffle does not change the shape of an empty batch
        return F.pixel_unshuffle(inputs, 2).view(rows, 4 * channels, height // 2, width // 2)


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that raises an error with a remedy for a single row, which has no variance."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) == 1:
            raise InvalidArgument(
                "norm",
                "must be layer or none where a batch holds one row: batch normalisation in training needs two or more",
            )
        return super().forward(inputs)


_NORMS: dict[str, Callable[[int], list[nn.Module]]] = {
    "batch": lambda width: [_BatchNorm(width)],
    "layer": lambda width: [nn.LayerNorm(width)],
    "none": lambda width: [],
}


class Features(nn.Sequential):
    """Map images or vectors to features [N, hidden], from which encoders and classifiers start.

    The kind "mlp" applies linear, normalisation and ReLU `layers` times. The kind "conv" applies two 5x5 convolutions,
    each with ReLU and maximum pooling, down to 4x4 pixels. They have batch normalisation if `norm` is "batch". Dropout,
    linear, normalisation and ReLU follow. The network takes no context. It is called once per row, never with classes
    folded into the batch, so batch normalisation uses the rows of the batch alone.

    Args:
        shape: Shape of one input, (C, H, W), or (D,) for "mlp".
        hidden: Width of the features.
        layers: Number of linear layers of "mlp".
        kind: Kind of network, "mlp" or "conv".
        norm: Kind of normalisation, "batch", "layer" or "none".
        channels: Number of channels of the first convolution; the second has twice as many.
        dropout: Dropout rate of the pooled features of "conv".

    Raises:
        InvalidArgument: The kind or the normalisation is unknown, or "conv" would take vectors.

    Example:
        >>> Features((1, 28, 28), hidden=64, kind="conv")(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int = 500,
        layers: int = 2,
        kind: str = "mlp",
        norm: str = "batch",
        channels: int = 16,
        dropout: float = 0.0,
    ) -> None:
        check_choice("norm", norm, _NORMS)
        check_choice("kind", kind, ("mlp", "conv"))
        width = math.prod(shape)
        modules: list[nn.Module] = []
        if kind == "conv":
            _check_image(shape)
            pools = (nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(4))
            for (inputs, outputs), pool in zip(
                itertools.pairwise((shape[0], channels, 2 * channels)), pools, strict=True
            ):
                norms = [nn.BatchNorm2d(outputs)] if norm == "batch" else []
                modules += [nn.Conv2d(inputs, outputs, 5, padding=2), *norms, nn.ReLU(), pool]
            modules.append(nn.Dropout(dropout))
            width, layers = 2 * channels * 16, 1
        modules.append(nn.Flatten())
        for _ in range(layers):
            modules += [nn.Linear(width, hidden), *_NORMS[norm](hidden), nn.ReLU()]
            width = hidden
        super().__init__(*modules)
        self.to(memory_format=torch.channels_last)


class ResidualFeatures(nn.Sequential):
    """Map images to features [N, 4 * channels] by a small residual network (He et al., https://arxiv.org/abs/1512.03385).

    Three 3x3 convolutions, of `channels`, twice and four times as many channels, are each followed by ReLU. Maximum
    pooling of 2x2 pixels and a residual block of two convolutions follow the second and the third. Before the first
    convolution, each block of 2x2 pixels becomes channels; where a side is odd, pooling follows it instead. The
    features are the maxima over all pixels. With batch normalisation, the rows of a batch depend on each other in
    training, but not in evaluation.

    Args:
        shape: Shape of one image, (C, H, W).
        channels: Number of channels of the first convolution.
        norm: Whether batch normalisation precedes the network and follows each convolution.

    Attributes:
        width: Number of features.

    Raises:
        InvalidArgument: The inputs are no images.

    Example:
        >>> ResidualFeatures((3, 32, 32), channels=8)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 32])
    """

    def __init__(self, shape: Sequence[int], channels: int = 32, norm: bool = True) -> None:
        _check_image(shape)

        def conv(inputs: int, outputs: int) -> list[nn.Module]:
            norms: list[nn.Module] = [nn.BatchNorm2d(outputs)] if norm else []
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm), *norms, nn.ReLU(inplace=True)]

        layers: list[nn.Module] = [nn.BatchNorm2d(shape[0], affine=False)] if norm else []
        squeezes = shape[1] % 2 == 0 and shape[2] % 2 == 0
        first = [_Squeeze(), *conv(4 * shape[0], channels)] if squeezes else conv(shape[0], channels)
        layers += first if squeezes else [*first, nn.MaxPool2d(2, ceil_mode=True)]
        for inputs, outputs in ((channels, 2 * channels), (2 * channels, 4 * channels)):
            layers += [*conv(inputs, outputs), nn.MaxPool2d(2, ceil_mode=True)]
            layers.append(_Skip(nn.Sequential(*conv(outputs, outputs), *conv(outputs, outputs))))
        super().__init__(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.width = 4 * channels
        self.to(memory_format=torch.channels_last)


class Encoder(nn.Module):
    """Apply a head to the features of a body: `head(body(x))`, or `head(body(x), context)`.

    Args:
        body: Network x [N, ...] -> [N, hidden], for example :class:`Features`.
        head: Network [N, hidden] -> [N, out_features], with or without a context.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [N, ...] to [N, out_features]."""
        hidden = self.body(inputs)
        outputs: Tensor = self.head(hidden) if context is None else self.head(hidden, context)
        return outputs


def head_inputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the features [N, hidden] that the head of an :class:`Encoder` takes, or the outputs of another network."""
    features: Tensor = network.body(inputs) if isinstance(network, Encoder) else network(inputs)
    return features


class ConvDecoder(nn.Module):
    """Map vectors, with or without a context, to images by a linear layer and two upsampling layers.

    An upsampling layer resizes to the next size and applies a 3x3 convolution.

    Args:
        in_features: Width of the input [M, in_features].
        shape: Shape (C, H, W) of the images, which are returned as vectors [M, C * H * W].
        channels: Number of channels of the first convolution, whose input has twice as many.
        context_features: Width of the context; 0 for none.

    Example:
        >>> ConvDecoder(8, (2, 28, 28), context_features=3)(torch.zeros(5, 8), torch.zeros(5, 3)).shape
        torch.Size([5, 1568])
    """

    def __init__(self, in_features: int, shape: Sequence[int], channels: int = 32, context_features: int = 0) -> None:
        super().__init__()
        _check_image(shape)
        self.context_features = context_features
        full = (shape[1], shape[2])
        half = ((full[0] + 1) // 2, (full[1] + 1) // 2)
        self.start = (2 * channels, (half[0] + 1) // 2, (half[1] + 1) // 2)
        self.enter = nn.Linear(in_features + context_features, math.prod(self.start))
        self.grow = nn.Sequential(
            nn.ReLU(),
            nn.Upsample(size=half),
            Conv3x3(2 * channels, channels),
            nn.ReLU(),
            nn.Upsample(size=full),
            zero(Conv3x3(channels, shape[0])),
        ).to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [M, in_features] to [M, C * H * W]."""
        if context is not None and self.context_features:
            inputs = torch.cat([inputs, context.to(inputs.dtype)], dim=1)
        outputs: Tensor = self.grow(self.enter(inputs).unflatten(1, self.start)).flatten(1)
        return outputs
