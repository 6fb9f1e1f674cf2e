"""Transforms that only move numbers, and :class:`FactorOut`, from which multi-scale is made."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.transforms.base import InverseTransform, Transform


class Squeeze(Transform):
    """[N, C, H, W] -> [N, 4C, H/2, W/2]: every 2x2 block becomes four channels (Real NVP, arXiv 1605.08803).

    Channel c of block pixel p stands at 4 * c + p. H and W must be even.

    Example:
        >>> Squeeze()(torch.zeros(1, 1, 4, 4))[0].shape
        torch.Size([1, 4, 2, 2])
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs [N, 4C, H/2, W/2], zeros [N])."""
        rows, channels, height, width = inputs.shape
        shape = rows, 4 * channels, height // 2, width // 2
        return F.pixel_unshuffle(inputs, 2).view(shape), inputs.new_zeros(rows)  # PyTorch's leaves no rows as they are

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs [N, C, H, W], zeros [N])."""
        rows, channels, height, width = inputs.shape
        return F.pixel_shuffle(inputs, 2).view(rows, channels // 4, 2 * height, 2 * width), inputs.new_zeros(rows)


class Unsqueeze(InverseTransform):
    """[N, 4C, H/2, W/2] -> [N, C, H, W]: the inverse of :class:`Squeeze`."""

    def __init__(self) -> None:
        super().__init__(Squeeze())


class Flatten(Transform):
    """`[N, *shape]` -> [N, D].

    Args:
        shape: shape of one input, without the batch.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs [N, D], zeros [N])."""
        return inputs.flatten(1), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs `[N, *shape]`, zeros [N])."""
        return inputs.unflatten(1, self.shape), inputs.new_zeros(inputs.shape[0])


def _runs(permutation: Tensor, most: int = 4) -> tuple[list[int], list[int]] | None:
    """Channels that stay side by side: sizes of such runs, in order of the inputs, and their order in the outputs.

    None if there are many. To cut and join few is faster, above all compiled, than to take by index, whose gradient
    adds up what has a place of its own.
    """
    order = permutation.tolist()
    starts = [place for place, channel in enumerate(order) if place == 0 or channel != order[place - 1] + 1]
    if len(starts) > most:
        return None
    firsts = [order[start] for start in starts]
    ranked = sorted(firsts)
    sizes = [end - first for first, end in pairwise([*ranked, len(order)])]
    return sizes, [ranked.index(first) for first in firsts]


def _joined(inputs: Tensor, sizes: list[int], order: list[int]) -> Tensor:
    parts = inputs.split(sizes, dim=1)
    return torch.cat([parts[run] for run in order], dim=1)


class Permutation(Transform):
    """Reorder channels or features by a fixed permutation, kept with the weights.

    It is looked at when the layer is made or loaded, not at each call.

    Args:
        permutation: int64 [C]: output i is input permutation[i].
    """

    permutation: Tensor

    def __init__(self, permutation: Tensor) -> None:
        super().__init__()
        if not torch.equal(permutation.sort().values, torch.arange(len(permutation))):
            raise ValueError("a permutation holds each of 0..C-1 once")
        self.register_buffer("permutation", permutation.clone())
        self._runs = _runs(self.permutation)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._runs = _runs(self.permutation)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs like `inputs`, zeros [N])."""
        outputs = inputs.index_select(1, self.permutation) if self._runs is None else _joined(inputs, *self._runs)
        return outputs, inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs like `inputs`, zeros [N])."""
        if self._runs is None:
            outputs = inputs.index_select(1, self.permutation.argsort())
        else:
            sizes, order = self._runs
            outputs = _joined(inputs, [sizes[run] for run in order], [order.index(run) for run in range(len(order))])
        return outputs, inputs.new_zeros(inputs.shape[0])


class FactorOut(Transform):
    """Set the first channels aside, flattened, and send the others through `inner`: multi-scale by nesting.

    [N, C, H, W] -> [N, D]: the channels set aside come first, what `inner` gives comes last, so the deepest features
    are the last entries (Real NVP, arXiv 1605.08803, section 3.6). Vectors [N, D] are split likewise.

    Args:
        inner: a transform of the kept channels [N, C - aside, H, W] to vectors [N, D'].
        shape: shape of one input, (C, H, W) or (D,).
        aside: how many channels are set aside; half of them, rounded down, by default.

    Example:
        >>> layer = FactorOut(Flatten((2, 3, 3)), shape=(4, 3, 3))
        >>> layer(torch.zeros(5, 4, 3, 3))[0].shape
        torch.Size([5, 36])
    """

    def __init__(self, inner: Transform, shape: Sequence[int], aside: int | None = None) -> None:
        super().__init__()
        aside = shape[0] // 2 if aside is None else aside
        if not 0 < aside < shape[0]:
            raise ValueError(f"cannot set {aside} of {shape[0]} channels aside: at least one must go and one must stay")
        self.inner = inner
        self.aside_shape = (aside, *shape[1:])
        self.sizes = (aside, shape[0] - aside)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs [N, D], logabsdet [N])."""
        aside, kept = inputs.split(self.sizes, dim=1)
        outputs, logabsdet = self.inner(kept, context)
        return torch.cat([aside.flatten(1), outputs], dim=1), logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs `[N, *shape]`, logabsdet [N])."""
        size = math.prod(self.aside_shape)
        kept, logabsdet = self.inner.inverse(inputs[:, size:], context)
        aside = inputs[:, :size].unflatten(1, self.aside_shape)
        return torch.cat([aside, kept], dim=1), logabsdet
