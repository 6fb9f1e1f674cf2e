"""Transforms that only reorder values, and :class:`FactorOut`, which builds multi-scale flows."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scnf.errors import InvalidArgument
from scnf.transforms.base import InverseTransform, Transform


class Squeeze(Transform):
    """Turn every 2x2 block into four channels, [N, C, H, W] -> [N, 4C, H/2, W/2] (Real NVP, arXiv 1605.08803).

    Channel c of block pixel p becomes channel 4 * c + p. H and W must be even.

    Example:
        >>> Squeeze()(torch.zeros(1, 1, 4, 4))[0].shape
        torch.Size([1, 4, 2, 2])
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs [N, 4C, H/2, W/2], zeros [N])."""
        rows, channels, height, width = inputs.shape
        shape = rows, 4 * channels, height // 2, width // 2
        # view: pixel_unshuffle does not change the shape of an empty batch
        return F.pixel_unshuffle(inputs, 2).view(shape), inputs.new_zeros(rows)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs [N, C, H, W], zeros [N])."""
        rows, channels, height, width = inputs.shape
        return F.pixel_shuffle(inputs, 2).view(rows, channels // 4, 2 * height, 2 * width), inputs.new_zeros(rows)


class Unsqueeze(InverseTransform):
    """Turn every four channels into a 2x2 block, [N, 4C, H/2, W/2] -> [N, C, H, W], which inverts :class:`Squeeze`."""

    def __init__(self) -> None:
        super().__init__(Squeeze())


class Flatten(Transform):
    """Flatten inputs `[N, *shape]` to vectors [N, D].

    Args:
        shape: Shape of one input, without the batch.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs [N, D], zeros [N])."""
        return inputs.flatten(1), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs `[N, *shape]`, zeros [N])."""
        return inputs.unflatten(1, self.shape), inputs.new_zeros(inputs.shape[0])


def _runs(permutation: Tensor, max_runs: int = 4) -> tuple[list[int], list[int]] | None:
    """Find runs of channels that stay side by side: return their sizes in the inputs and their order in the outputs.

    Return None if there are more than `max_runs`. Splitting and joining a few runs is faster than selecting by index,
    above all when compiled. The gradient of a selection adds values up, although each has a place of its own.
    """
    order = permutation.tolist()
    starts = [index for index, channel in enumerate(order) if index == 0 or channel != order[index - 1] + 1]
    if len(starts) > max_runs:
        return None
    first_channels = [order[start] for start in starts]
    in_order = sorted(first_channels)
    sizes = [end - first for first, end in pairwise([*in_order, len(order)])]
    return sizes, [in_order.index(first) for first in first_channels]


def _reorder(inputs: Tensor, sizes: list[int], order: list[int]) -> Tensor:
    parts = inputs.split(sizes, dim=1)
    return torch.cat([parts[run] for run in order], dim=1)


class Permutation(Transform):
    """Reorder channels or features by a fixed permutation, which is saved with the weights.

    The layer analyses the permutation when it is built or loaded, not at each call.

    Args:
        permutation: Indices int64 [C]: output i is input permutation[i].

    Raises:
        InvalidArgument: An index is missing, or occurs twice.
    """

    permutation: Tensor

    def __init__(self, permutation: Tensor) -> None:
        super().__init__()
        if not torch.equal(permutation.sort().values, torch.arange(len(permutation))):
            raise InvalidArgument(
                "permutation", f"must hold each of 0..{len(permutation) - 1} exactly once, not {permutation.tolist()}"
            )
        self.register_buffer("permutation", permutation.clone())
        self._runs = _runs(self.permutation)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._runs = _runs(self.permutation)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs like `inputs`, zeros [N])."""
        outputs = inputs.index_select(1, self.permutation) if self._runs is None else _reorder(inputs, *self._runs)
        return outputs, inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs like `inputs`, zeros [N])."""
        if self._runs is None:
            outputs = inputs.index_select(1, self.permutation.argsort())
        else:
            sizes, order = self._runs
            outputs = _reorder(inputs, [sizes[run] for run in order], [order.index(run) for run in range(len(order))])
        return outputs, inputs.new_zeros(inputs.shape[0])


class FactorOut(Transform):
    """Set the first channels aside and send the others through `inner`; nested, this gives a multi-scale flow.

    Images [N, C, H, W] become vectors [N, D]: first the flattened channels set aside, then the outputs of `inner`. The
    deepest features are thus the last entries (Real NVP, arXiv 1605.08803, section 3.6). Vectors [N, D] are split in
    the same way.

    Args:
        inner: Transform of the other channels [N, C - aside, H, W] to vectors [N, D'].
        shape: Shape of one input, (C, H, W) or (D,).
        aside: Number of channels set aside; half of them, rounded down, by default.

    Raises:
        InvalidArgument: No channel is set aside, or none is left.

    Example:
        >>> layer = FactorOut(Flatten((2, 3, 3)), shape=(4, 3, 3))
        >>> layer(torch.zeros(5, 4, 3, 3))[0].shape
        torch.Size([5, 36])
    """

    def __init__(self, inner: Transform, shape: Sequence[int], aside: int | None = None) -> None:
        super().__init__()
        aside = shape[0] // 2 if aside is None else aside
        if not 0 < aside < shape[0]:
            raise InvalidArgument("aside", f"must leave channels in both parts: {aside} of {shape[0]}")
        self.inner = inner
        self.aside_shape = (aside, *shape[1:])
        self.sizes = (aside, shape[0] - aside)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs [N, D], logabsdet [N])."""
        aside, rest = inputs.split(self.sizes, dim=1)
        outputs, logabsdet = self.inner(rest, context)
        return torch.cat([aside.flatten(1), outputs], dim=1), logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs `[N, *shape]`, logabsdet [N])."""
        size = math.prod(self.aside_shape)
        rest, logabsdet = self.inner.inverse(inputs[:, size:], context)
        aside = inputs[:, :size].unflatten(1, self.aside_shape)
        return torch.cat([aside, rest], dim=1), logabsdet
