"""Mix channels by an invertible matrix: a 1x1 convolution on images, a matrix product on vectors.

Glow (Kingma & Dhariwal, https://arxiv.org/abs/1807.03039, section 3.2) introduced the full and the PLU form.
Householder reflections are from Tomczak & Welling (https://arxiv.org/abs/1611.09630). The QR form is from Hoogeboom et
al. (https://arxiv.org/abs/1901.11137). Each class only defines its matrix and the log-determinant of the matrix.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scnf.native import log_abs_det, mix_channels
from scnf.registry import registering
from scnf.transforms.base import Transform, UndoResult, full_precision, gradients


def haar_matrix(channels: int) -> Tensor:
    """Return the orthogonal matrix [4C, 4C] that maps the four pixels of a 2x2 block to three details and a mean.

    The matrix is the two-dimensional Haar wavelet, scaled to be orthogonal. Its inputs have the layout of
    :class:`~scnf.transforms.shape.Squeeze`: channel c of pixel p has index 4 * c + p. In its outputs, the 3C details
    come first and the C means last.
    """
    pattern = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1], [1, 1, 1, 1]]) / 2
    per_channel = torch.kron(torch.eye(channels), pattern)
    order = [4 * c + band for band in range(3) for c in range(channels)] + [4 * c + 3 for c in range(channels)]
    return per_channel[order]


class InvertibleLinear(Transform):
    """Compute y = W x along dimension 1, for vectors [N, D] and for every pixel of images [N, D, H, W].

    Subclasses implement :meth:`matrix` and :meth:`logabsdet`. The inverse multiplies by the inverse matrix. Solving the
    linear system for all pixels takes two to three times as long, and is no more exact where W is well conditioned.

    Args:
        size: Number of channels or features, D.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def matrix(self) -> Tensor:
        """Return W [D, D]."""
        raise NotImplementedError

    def logabsdet(self) -> Tensor:
        """Return the scalar `log |det W|`."""
        raise NotImplementedError

    def inverse_matrix(self) -> Tensor:
        """Return the inverse of W [D, D]."""
        inverse: Tensor = torch.linalg.inv(self.matrix())
        return inverse

    def _logabsdet_per_row(self, inputs: Tensor) -> Tensor:
        return (math.prod(inputs.shape[2:]) * self.logabsdet()).expand(inputs.shape[0])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise and return (outputs like `inputs`, logabsdet [N])."""
        with full_precision(inputs):
            return mix_channels(inputs, self.matrix()), self._logabsdet_per_row(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data and return (outputs like `inputs`, logabsdet [N])."""
        with full_precision(inputs):
            return mix_channels(inputs, self.inverse_matrix()), -self._logabsdet_per_row(inputs)

    def undo(self, outputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor) -> UndoResult:
        """Return inputs and gradients from outputs, without another pass.

        The gradient of W sums g x^T over all vectors, and W^-T times the gradient of the log-determinant.
        """
        with full_precision(outputs):
            with torch.enable_grad():
                matrix = self.matrix()
            weight = matrix.detach()
            inverse = torch.linalg.inv_ex(weight).inverse  # inv would wait for the device; not finite for a singular W
            inputs = mix_channels(outputs, inverse)
            columns, grad_columns = (values.transpose(0, 1).flatten(1) for values in (inputs, grad_outputs))
            grad_weight = grad_columns @ columns.T + math.prod(outputs.shape[2:]) * grad_logabsdet.sum() * inverse.T
            grads = gradients([matrix], [grad_weight], self.parameters())
            return UndoResult(inputs, mix_channels(grad_outputs, weight.T), grads)


class FixedLinear(InvertibleLinear):
    """Mix channels as another transform does, whose matrix, inverse and log-determinant are computed once.

    Args:
        linear: Transform whose parameters change no more.

    Example:
        >>> x, linear = torch.randn(2, 3), FullLinear(3)
        >>> torch.equal(FixedLinear(linear).inverse(x)[0], linear.inverse(x)[0])
        True
    """

    fixed: Tensor
    fixed_inverse: Tensor
    fixed_logabsdet: Tensor

    def __init__(self, linear: InvertibleLinear) -> None:
        super().__init__(linear.size)
        self.register_buffer("fixed", linear.matrix().detach().clone())
        self.register_buffer(
            "fixed_inverse", linear.inverse_matrix().detach().clone(memory_format=torch.contiguous_format)
        )
        self.register_buffer("fixed_logabsdet", linear.logabsdet().detach().clone())

    def matrix(self) -> Tensor:
        """Return W [D, D]."""
        return self.fixed

    def inverse_matrix(self) -> Tensor:
        """Return the inverse of W [D, D]."""
        return self.fixed_inverse

    def logabsdet(self) -> Tensor:
        """Return the scalar `log |det W|`."""
        return self.fixed_logabsdet


class FullLinear(InvertibleLinear):
    """Mix channels by a matrix of D^2 free parameters; `log |det W|` by elimination costs O(D^3) per call.

    Args:
        size: Number of channels or features, D.
        initial: Initial matrix [D, D]; a random orthogonal matrix by default.

    Example:
        >>> outputs, logabsdet = FullLinear(3)(torch.randn(2, 3, 8, 8))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    def __init__(self, size: int, initial: Tensor | None = None) -> None:
        super().__init__(size)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(size, size)) if initial is None else initial.clone())

    def matrix(self) -> Tensor:
        """Return W [D, D]."""
        return self.weight

    def logabsdet(self) -> Tensor:
        """Return the scalar `log |det W|`."""
        return log_abs_det(self.weight)


class PLULinear(InvertibleLinear):
    """Mix channels by `W = P L (U + diag(s))` with a fixed permutation P; `log |det W| = sum log |s|` costs O(D).

    The sign of each entry of s is fixed at the start and `log |s|` is learned, so W stays invertible.

    Args:
        size: Number of channels or features, D.
        initial: Initial matrix [D, D]; a random orthogonal matrix by default.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, size: int, initial: Tensor | None = None) -> None:
        super().__init__(size)
        start = nn.init.orthogonal_(torch.empty(size, size)) if initial is None else initial
        permutation, lower, upper = torch.linalg.lu(start)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))

    def matrix(self) -> Tensor:
        """Return W [D, D]."""
        lower = self.lower.tril(-1) + torch.eye(self.size, dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        return self.permutation @ lower @ upper

    def logabsdet(self) -> Tensor:
        """Return the scalar `log |det W|`."""
        return self.log_diagonal.sum()


def _orthogonal(raw: Tensor) -> Tensor:
    """Return the product of D reflections I - 2 v v^T / |v|^2.

    The vector v_i has zeros above row i, a one in row i, and the entries of column i of `raw` below.
    """
    vectors = raw.tril(-1)
    product: Tensor = torch.linalg.householder_product(vectors, 2.0 / (1.0 + vectors.square().sum(dim=0)))
    return product


class HouseholderLinear(InvertibleLinear):
    """Mix channels by a product of D Householder reflections, which is orthogonal and has `log |det W|` = 0.

    Args:
        size: Number of channels or features, D.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.vectors = nn.Parameter(torch.randn(size, size).tril(-1))

    def matrix(self) -> Tensor:
        """Return W [D, D]."""
        return _orthogonal(self.vectors)

    def logabsdet(self) -> Tensor:
        """Return the scalar `log |det W|`, which is 0."""
        return self.vectors.new_zeros(())


class QRLinear(InvertibleLinear):
    """Mix channels by W = Q R, where Q is a product of D Householder reflections.

    R is upper triangular with a positive diagonal, and starts as the identity.

    Args:
        size: Number of channels or features, D.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.vectors = nn.Parameter(torch.randn(size, size).tril(-1))
        self.log_diagonal = nn.Parameter(torch.zeros(size))
        self.upper = nn.Parameter(torch.zeros(size, size))

    def matrix(self) -> Tensor:
        """Return W [D, D]."""
        triangular = self.upper.triu(1) + torch.diag(self.log_diagonal.exp())
        return _orthogonal(self.vectors) @ triangular

    def logabsdet(self) -> Tensor:
        """Return the scalar `log |det W|`."""
        return self.log_diagonal.sum()


LINEAR: dict[str, Callable[[int], Transform]] = {
    "full": FullLinear,
    "plu": PLULinear,
    "householder": HouseholderLinear,
    "qr": QRLinear,
}
"""Transforms that mix channels or features, by the names that `model.linear` takes; see :func:`register_transform`."""


def register_transform(name: str) -> Callable[[type[Transform]], type[Transform]]:
    """Return a decorator that registers a transform under a name for `model.linear`.

    Flows place the transform between their couplings, to mix channels. They build it with the number of channels. It
    must map images [N, C, H, W] and vectors [N, C].

    Args:
        name: Name of the transform.

    Raises:
        InvalidArgument: The name is taken or malformed.

    Example:
        >>> from scnf.transforms import Permutation
        >>> @register_transform("reversed")
        ... class Reversed(Permutation):
        ...     def __init__(self, features):
        ...         super().__init__(torch.arange(features).flip(0))
        >>> del LINEAR["reversed"]
    """
    return registering(LINEAR, name, "transform")
