"""Invertible linear mixing of channels: a 1x1 convolution on images, a dense matrix on vectors.

Glow (Kingma & Dhariwal, https://arxiv.org/abs/1807.03039, section 3.2) introduced the full and the PLU form;
Householder reflections are from Tomczak & Welling (https://arxiv.org/abs/1611.09630), the QR form from Hoogeboom et al.
(https://arxiv.org/abs/1901.11137). Each class says only how its matrix and log-determinant are made.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scnf.native import log_abs_det, mix_channels
from scnf.registry import registering
from scnf.transforms.base import Transform, Undone, full_precision, gradients


def haar_matrix(channels: int) -> Tensor:
    """Orthogonal [4C, 4C] from the four pixels of a squeezed 2x2 block to three details and, last, their mean.

    The layout is that of :class:`~scnf.transforms.shape.Squeeze`: channel c of pixel p stands at 4 * c + p. The 3C
    details come first and the C means last (the two-dimensional Haar wavelet, scaled to be orthogonal).
    """
    pattern = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1], [1, 1, 1, 1]]) / 2
    per_channel = torch.kron(torch.eye(channels), pattern)
    order = [4 * c + band for band in range(3) for c in range(channels)] + [4 * c + 3 for c in range(channels)]
    return per_channel[order]


class InvertibleLinear(Transform):
    """y = W x along dimension 1, for [N, D] and for every pixel of [N, D, H, W].

    Subclasses answer :meth:`matrix` and :meth:`logabsdet`. The inverse multiplies by the inverse matrix: to solve the
    linear system for all pixels takes two to three times as long, and is no more exact where W is well conditioned.

    Args:
        size: number of channels or features, D.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def matrix(self) -> Tensor:
        """W [D, D]."""
        raise NotImplementedError

    def logabsdet(self) -> Tensor:
        """The scalar `log |det W|`."""
        raise NotImplementedError

    def _logabsdet_of_all(self, inputs: Tensor) -> Tensor:
        return (math.prod(inputs.shape[2:]) * self.logabsdet()).expand(inputs.shape[0])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: (outputs like `inputs`, logabsdet [N])."""
        with full_precision(inputs):
            return _product(self.matrix(), inputs), self._logabsdet_of_all(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: (outputs like `inputs`, logabsdet [N])."""
        with full_precision(inputs):
            return _product(torch.linalg.inv(self.matrix()), inputs), -self._logabsdet_of_all(inputs)

    def undo(self, outputs: Tensor, context: Tensor | None, grad_outputs: Tensor, grad_logabsdet: Tensor) -> Undone:
        """Inputs and gradients from outputs, without another pass: at W, sums of g x^T, and of W^-T for the log-det."""
        with full_precision(outputs):
            with torch.enable_grad():
                matrix = self.matrix()
            weight = matrix.detach()
            inverse = torch.linalg.inv_ex(weight).inverse  # waits for no device; of a singular W not finite
            inputs = _product(inverse, outputs)
            columns, grad_columns = (values.transpose(0, 1).flatten(1) for values in (inputs, grad_outputs))
            grad_weight = grad_columns @ columns.T + math.prod(outputs.shape[2:]) * grad_logabsdet.sum() * inverse.T
            found = gradients([matrix], [grad_weight], self.parameters())
            return Undone(inputs, _product(weight.T, grad_outputs), found)


def _product(weight: Tensor, inputs: Tensor) -> Tensor:
    mixed = mix_channels(inputs, weight)
    if mixed is None:
        mixed = torch.einsum("ij,nj...->ni...", weight, inputs)  # no convolution: on CUDA it would round to TF32
    return mixed


class FullLinear(InvertibleLinear):
    """Every entry of the matrix is a parameter; `log |det W|` by elimination costs O(D^3) a call.

    Args:
        size: number of channels or features, D.
        initial: matrix [D, D] to start from; a random orthogonal one by default.

    Example:
        >>> outputs, logabsdet = FullLinear(3)(torch.randn(2, 3, 8, 8))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    def __init__(self, size: int, initial: Tensor | None = None) -> None:
        super().__init__(size)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(size, size)) if initial is None else initial.clone())

    def matrix(self) -> Tensor:
        """W [D, D]."""
        return self.weight

    def logabsdet(self) -> Tensor:
        """The scalar `log |det W|`."""
        found = log_abs_det(self.weight)
        return torch.linalg.slogdet(self.weight).logabsdet if found is None else found


class PLULinear(InvertibleLinear):
    """`W = P L (U + diag(s))` with a fixed permutation P; `log |det W| = sum log |s|` costs O(D).

    The sign of each diagonal entry is fixed at the start and its logarithm learned, so W stays invertible.

    Args:
        size: number of channels or features, D.
        initial: matrix [D, D] to start from; a random orthogonal one by default.
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
        """W [D, D]."""
        lower = self.lower.tril(-1) + torch.eye(self.size, dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        return self.permutation @ lower @ upper

    def logabsdet(self) -> Tensor:
        """The scalar `log |det W|`."""
        return self.log_diagonal.sum()


def _orthogonal(raw: Tensor) -> Tensor:
    """The product of D reflections I - 2 v v^T / |v|^2, where v_i is column i of `raw` below a leading one at row i."""
    vectors = raw.tril(-1)
    product: Tensor = torch.linalg.householder_product(vectors, 2.0 / (1.0 + vectors.square().sum(dim=0)))
    return product


class HouseholderLinear(InvertibleLinear):
    """An orthogonal matrix as a product of D Householder reflections: `log |det W|` = 0, perfectly conditioned.

    Args:
        size: number of channels or features, D.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.vectors = nn.Parameter(torch.randn(size, size).tril(-1))

    def matrix(self) -> Tensor:
        """W [D, D]."""
        return _orthogonal(self.vectors)

    def logabsdet(self) -> Tensor:
        """The scalar `log |det W|` = 0."""
        return self.vectors.new_zeros(())


class QRLinear(InvertibleLinear):
    """W = Q R: Q from Householder reflections, R upper triangular with a positive diagonal, the identity at the start.

    Args:
        size: number of channels or features, D.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.vectors = nn.Parameter(torch.randn(size, size).tril(-1))
        self.log_diagonal = nn.Parameter(torch.zeros(size))
        self.upper = nn.Parameter(torch.zeros(size, size))

    def matrix(self) -> Tensor:
        """W [D, D]."""
        triangular = self.upper.triu(1) + torch.diag(self.log_diagonal.exp())
        return _orthogonal(self.vectors) @ triangular

    def logabsdet(self) -> Tensor:
        """The scalar `log |det W|`."""
        return self.log_diagonal.sum()


LINEAR: dict[str, Callable[[int], Transform]] = {
    "full": FullLinear,
    "plu": PLULinear,
    "householder": HouseholderLinear,
    "qr": QRLinear,
}
"""Transforms that mix channels or features by name, which `model.linear` takes; see :func:`register_transform`."""


def register_transform(name: str) -> Callable[[type[Transform]], type[Transform]]:
    """Give a transform its name, which `model.linear` takes: a decorator.

    Flows put it between their couplings, where a linear layer mixes channels. It is made with their number, and
    transforms images [N, C, H, W] and vectors [N, C].

    Raises:
        InvalidArgument: the name is taken.

    Example:
        >>> from scnf.transforms import Permutation
        >>> @register_transform("reversed")
        ... class Reversed(Permutation):
        ...     def __init__(self, features):
        ...         super().__init__(torch.arange(features).flip(0))
        >>> del LINEAR["reversed"]
    """
    return registering(LINEAR, name, "transform")
