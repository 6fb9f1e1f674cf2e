"""Compute large arrays in chunks, and rescale numbers of any range."""

import math
from collections.abc import Callable

from torch import Tensor


def map_chunks(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """Apply a function to the rows of x in chunks.

    Results are written into one array at once. Results in a list would fragment the memory between calls, and the C
    library would allocate new memory for each call.

    Args:
        function: Function that maps rows [n, ...] to results [n, ...].
        x: Array [N, ...] of at least one row.
        rows: Number n of rows in a chunk; the last chunk may be smaller.

    Example:
        >>> import torch
        >>> map_chunks(torch.exp, torch.zeros(5, 2), 2).shape
        torch.Size([5, 2])
    """
    first = function(x[:rows])
    results = first.new_empty(len(x), *first.shape[1:])
    results[:rows] = first
    del first
    for start in range(rows, len(x), rows):
        results[start : start + rows] = function(x[start : start + rows])
    return results


def rescaled(x: Tensor) -> Tensor:
    """Multiply x by a power of two where its largest absolute value is below 2^-32 or above 2^32, to bring it near 1.

    Squares and products then neither overflow nor vanish, whatever the range of x. A power of two rounds nothing, so
    results that do not depend on the range stay exactly the same.

    Args:
        x: At least one number of any type. Where a number is not finite, x stays unchanged.

    Returns:
        x itself where no factor is needed, and floats otherwise.

    Example:
        >>> import torch
        >>> rescaled(torch.tensor([3.0, -8.0, 1.0])), rescaled(torch.tensor([0.0, 2.0**100]))
        (tensor([ 3., -8.,  1.]), tensor([0., 1.]))
    """
    low, high = (float(end) for end in x.aminmax())
    mantissa, exponent = math.frexp(max(-low, high))
    exponent -= mantissa == 0.5
    if abs(exponent) <= 32:
        return x
    half = exponent // 2  # the whole factor may overflow
    return ((x if x.is_floating_point() else x.float()) * 2.0**-half).mul_(2.0 ** (half - exponent))
