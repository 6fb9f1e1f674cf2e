"""The log-determinant of a small matrix: `determinants.cpp` as an operator."""

from typing import Any, cast

import torch
from torch import Tensor

from scnf.native import operators
from scnf.native.operators import at, differentiated_again, gradients_of_pytorch, operator

_LARGEST = 32  # rows, beyond which LAPACK is as fast


@operator("log_abs_det")
def _log_abs_det(matrix: Tensor) -> tuple[Tensor, Tensor]:
    matrix = matrix.contiguous()
    inverse_transposed, found = torch.empty_like(matrix), matrix.new_empty(())
    operators.call("log_abs_det", matrix, (len(matrix),), at(inverse_transposed), at(found))
    return found, inverse_transposed


def _results(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return matrix.new_empty(()), matrix.new_empty(matrix.shape)


torch.library.register_fake("scnf::log_abs_det", _results)


def _of_pytorch(matrix: Tensor) -> Tensor:
    logabsdet: Tensor = torch.linalg.slogdet(matrix).logabsdet
    return logabsdet


class _LogAbsDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        found, inverse_transposed = _log_abs_det(matrix)
        ctx.save_for_backward(matrix, inverse_transposed)
        return cast(Tensor, found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        matrix, inverse_transposed = ctx.saved_tensors
        if differentiated_again():
            return gradients_of_pytorch(_of_pytorch, (matrix,), grad)[0]
        return cast(Tensor, grad * inverse_transposed)


def log_abs_det(matrix: Tensor) -> Tensor | None:
    """`log |det W|` with its inverse, which is its gradient, in one elimination; PyTorch calls LAPACK three times.

    Args:
        matrix: W [D, D], float32 or float64, on the CPU.

    Returns:
        a scalar, -inf for a singular W; None where there is no kernel, or it is not for this, see
        :func:`scnf.native.conv_net`, or W has more than 32 rows or wants no gradient.

    Example:
        >>> found = log_abs_det(torch.diag(torch.tensor([1.0, -1.0, 1.0])).requires_grad_())
        >>> assert found is None or found == 0
    """
    asked = torch.is_grad_enabled() and matrix.requires_grad
    fits = matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1] and 0 < len(matrix) <= _LARGEST
    if not (asked and fits and operators.takes(matrix, ())):
        return None
    return cast(Tensor, _LogAbsDet.apply(matrix))
