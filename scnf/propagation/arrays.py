"""Arrays that are too many to compute at once, and numbers of any range."""

import math
from collections.abc import Callable

from torch import Tensor


def by_parts(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """What a function makes of each row of x, so many rows at once.

    Results are written where they stay: kept in a list, they would lie in between what each call needs for itself, and
    the C library would take new memory for every next call.

    Args:
        function: of rows [n, ...], gives [n, ...].
        x: [N, ...], a row at least.
        rows: n, all but the last time.

    Example:
        >>> import torch
        >>> by_parts(torch.exp, torch.zeros(5, 2), 2).shape
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

    So squares and products neither overflow nor vanish, whatever the range of x. The factor costs no bit: what does
    not depend on the range comes out as it would without it.

    Args:
        x: numbers of any type, one at least; where one is not finite, all stay as they are.

    Returns:
        x itself where nothing is to do, floats otherwise.

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
    half = exponent // 2  # the whole factor may be no number
    return ((x if x.is_floating_point() else x.float()) * 2.0**-half).mul_(2.0 ** (half - exponent))
