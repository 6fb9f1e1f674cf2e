"""Wrap `determinants.cpp` as an operator for the log-determinant of a small matrix."""

from typing import Any, cast

import torch
from torch import Tensor

from scnf.native import operators
from scnf.native.operators import at, differentiated_again, gradients_of_pytorch, operator

_LARGEST = 32  # rows; with more, LAPACK is as fast


@operator("log_abs_det")
def _log_abs_det(matrix: Tensor) -> tuple[Tensor, Tensor]:
    matrix = matrix.contiguous()
    inverse_transposed, logabsdet = torch.empty_like(matrix), matrix.new_empty(())
    operators.call("log_abs_det", matrix, (len(matrix),), at(inverse_transposed), at(logabsdet))
    return logabsdet, inverse_transposed


def _fake_results(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return matrix.new_empty(()), matrix.new_empty(matrix.shape)


torch.library.register_fake("scnf::log_abs_det", _fake_results)


def _of_pytorch(matrix: Tensor) -> Tensor:
    logabsdet: Tensor = torch.linalg.slogdet(matrix).logabsdet
    return logabsdet


class _LogAbsDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        logabsdet, inverse_transposed = _log_abs_det(matrix)
        ctx.save_for_backward(matrix, inverse_transposed)
        return cast(Tensor, logabsdet)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        matrix, inverse_transposed = ctx.saved_tensors
        if differentiated_again():
            return gradients_of_pytorch(_of_pytorch, (matrix,), grad)[0]
        return cast(Tensor, grad * inverse_transposed)


def log_abs_det(matrix: Tensor) -> Tensor | None:
    """Compute `log |det W|` and its gradient, the transposed inverse, in one elimination.

    PyTorch calls LAPACK three times for the same results.

    Args:
        matrix: Matrix W [D, D], float32 or float64, on the CPU.

    Returns:
        A scalar, -inf for a singular W, or None where there is no kernel for W, see :func:`scnf.native.conv_net`. There
        is none either for more than 32 rows, or where W needs no gradient.

    Example:
        >>> logabsdet = log_abs_det(torch.diag(torch.tensor([1.0, -1.0, 1.0])).requires_grad_())
        >>> assert logabsdet is None or logabsdet == 0
    """
    needs_gradient = torch.is_grad_enabled() and matrix.requires_grad
    fits = matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1] and 0 < len(matrix) <= _LARGEST
    if not (needs_gradient and fits and operators.takes(matrix, ())):
        return None
    return cast(Tensor, _LogAbsDet.apply(matrix))
