"""Wrap `determinants.cpp` as an operator for the log-determinant of a small matrix."""

from typing import Any, cast

import torch
from torch import Tensor

from scnf.native import operators
from scnf.native.operators import needs_double_backward, operator, pointer, pytorch_gradients

_LARGEST = 32  # rows; with more, LAPACK is as fast


@operator("log_abs_det")
def _log_abs_det(matrix: Tensor) -> tuple[Tensor, Tensor]:
    matrix = matrix.contiguous()
    inverse_transposed, logabsdet = torch.empty_like(matrix), matrix.new_empty(())
    operators.call("log_abs_det", matrix, (len(matrix),), pointer(inverse_transposed), pointer(logabsdet))
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
        if needs_double_backward():
            return pytorch_gradients(_of_pytorch, (matrix,), grad)[0]
        return cast(Tensor, grad * inverse_transposed)


def has_log_abs_det(matrix: Tensor) -> bool:
    """Return whether :func:`log_abs_det` has a kernel for a matrix.

    It has none where `has_conv_net` names a reason, for more than 32 rows, and where the
    matrix needs no gradient.
    """
    needs_gradient = torch.is_grad_enabled() and matrix.requires_grad
    fits = matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1] and 0 < len(matrix) <= _LARGEST
    return needs_gradient and fits and operators.takes(matrix, ())


def log_abs_det(matrix: Tensor) -> Tensor:
    """Compute `log |det W|` and its gradient, the transposed inverse, in one elimination.

    PyTorch calls LAPACK three times for the same results, and answers where there is no kernel, see
    `has_log_abs_det`.

    Args:
        matrix: Matrix W [D, D].

    Returns:
        A scalar, which is -inf for a singular W.

    Example:
        >>> log_abs_det(torch.diag(torch.tensor([1.0, -1.0, 1.0])))
        tensor(0.)
    """
    return cast(Tensor, _LogAbsDet.apply(matrix)) if has_log_abs_det(matrix) else _of_pytorch(matrix)
