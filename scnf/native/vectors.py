"""Networks on vectors: `mlp.cpp` as operators."""

import ctypes
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from scnf.native import operators
from scnf.native.build import library
from scnf.native.operators import at, differentiated_again, gradients_of_pytorch, operator

_LARGEST = 1 << 17  # weights, beyond which PyTorch is as fast: they do not fit into the cache of a core


def _shapes(inputs: int, hidden: int, residuals: int, outputs: int) -> list[tuple[int, ...]]:
    """Of weights and biases, in order."""
    sizes = [(inputs, hidden), *[(hidden, hidden)] * (2 * residuals), (hidden, outputs)]
    return [shape for before, after in sizes for shape in ((after, before), (after,))]


def _sizes(x: Tensor, weights: Tensor, hidden: int, outputs: int) -> tuple[int, int, int, int, int]:
    """What `Sizes` has in the kernel: vectors, inputs, hidden, residual blocks, outputs."""
    within = weights.numel() - hidden * (x.shape[1] + 1) - outputs * (hidden + 1)
    return x.shape[0], x.shape[1], hidden, within // (2 * hidden * (hidden + 1)), outputs


def _results(x: Tensor, weights: Tensor, hidden: int, outputs: int, keep: bool) -> tuple[Tensor, Tensor]:
    """Room for the outputs, and for the hidden layers behind ReLUs, in padded rows, where backward asks for them."""
    layers = 2 * _sizes(x, weights, hidden, outputs)[3] + 1
    row = getattr(library(), f"mlp_row_{operators.NAMES[x.dtype]}")(ctypes.c_long(hidden))
    kept = (layers, x.shape[0], row) if keep else (0,)
    return x.new_empty(x.shape[0], outputs), x.new_empty(kept)


@operator("mlp")
def _forward(x: Tensor, weights: Tensor, hidden: int, outputs: int, keep: bool) -> tuple[Tensor, Tensor]:
    x, weights = x.contiguous(), weights.contiguous()
    results, kept = _results(x, weights, hidden, outputs, keep)
    sizes = _sizes(x, weights, hidden, outputs)
    operators.call("mlp_forward", x, sizes, at(weights), at(results), at(kept) if keep else None)
    return results, kept


@operator("mlp_backward")
def _backward(grad: Tensor, kept: Tensor, x: Tensor, weights: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    grad, x, weights = grad.contiguous(), x.contiguous(), weights.contiguous()
    grad_x, grad_weights = torch.empty_like(x), torch.empty_like(weights)
    sizes = _sizes(x, weights, hidden, grad.shape[1])
    operators.call("mlp_backward", x, sizes, at(weights), at(kept), at(grad), at(grad_x), at(grad_weights))
    return grad_x, grad_weights


torch.library.register_fake("scnf::mlp", _results)


def _gradients(grad: Tensor, kept: Tensor, x: Tensor, weights: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weights)


torch.library.register_fake("scnf::mlp_backward", _gradients)


@register_flop_formula(torch.ops.scnf.mlp)
def _(x: Sequence[int], weights: Sequence[int], hidden: int, outputs: int, *rest: Any, **named: Any) -> int:
    within = weights[0] - hidden * (x[1] + 1) - outputs * (hidden + 1)
    return 2 * x[0] * (hidden * (x[1] + outputs) + within // (hidden + 1) * hidden)


def _of_pytorch(x: Tensor, weights: Tensor, hidden: int, outputs: int) -> Tensor:
    shapes = _shapes(*_sizes(x, weights, hidden, outputs)[1:])
    parts = [
        part.view(shape) for part, shape in zip(weights.split([math.prod(s) for s in shapes]), shapes, strict=True)
    ]
    enter, *within, leave = zip(parts[::2], parts[1::2], strict=True)
    sums = F.linear(x, *enter)
    for first, second in zip(within[::2], within[1::2], strict=True):
        sums = sums + F.linear(F.relu(F.linear(F.relu(sums), *first)), *second)
    return F.linear(F.relu(sums), *leave)


def _fits(x: Sequence[int], weights: Sequence[Sequence[int]]) -> bool:
    if len(x) != 2 or len(weights) < 4 or len(weights) % 4:
        return False
    hidden, outputs = weights[0][0], weights[-1][0]
    shapes = _shapes(x[1], hidden, len(weights) // 4 - 1, outputs)
    small = sum(math.prod(shape) for shape in shapes) <= _LARGEST
    return [tuple(w) for w in weights] == shapes and min(x[1], hidden, outputs) > 0 and small


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: bool, x: Tensor, weights: Tensor, hidden: int, outputs: int) -> Tensor:
        results: Tensor
        results, kept = _forward(x, weights, hidden, outputs, keep)
        if keep:
            ctx.sizes = hidden, outputs
            ctx.save_for_backward(kept, x, weights)
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, x, weights = ctx.saved_tensors
        hidden, outputs = ctx.sizes
        if differentiated_again():
            network = partial(_of_pytorch, hidden=hidden, outputs=outputs)
            return None, *gradients_of_pytorch(network, (x, weights), grad), None, None
        return None, *_backward(grad, kept, x, weights, hidden), None, None


def mlp(x: Tensor, *weights: Tensor) -> Tensor | None:
    """Linear -> residual blocks [ReLU, linear, ReLU, linear] -> ReLU -> linear, on vectors.

    A block of vectors goes through all layers, so that what lies between stays in the cache of a core. What the ReLUs
    give is kept for backward. For second derivatives PyTorch's operators compute all again.

    Args:
        x: [N, C], float32 or float64, on the CPU.
        weights: weight and bias of each layer: [M, C], [M], twice as often as there are residual blocks [M, M], [M],
            and [D, M], [D], like x.

    Returns:
        [N, D]; None where there is no kernel for these inputs. There is none for other types, devices or shapes, more
        than 131,072 weights, the transforms of torch.func, or forward-mode derivatives. Autocast changes nothing,
        because on the CPU the kernel is faster than PyTorch in bf16.

    Example:
        >>> weights = [torch.ones(*shape) for shape in ((8, 2), (8,), (8, 8), (8,), (8, 8), (8,), (4, 8), (4,))]
        >>> outputs = mlp(torch.zeros(5, 2), *weights)
        >>> assert outputs is None or outputs.shape == (5, 4)
    """
    if not _fits(x.shape, [w.shape for w in weights]) or not operators.takes(x, weights):
        return None
    keep = torch.is_grad_enabled() and any(array.requires_grad for array in (x, *weights))
    together = torch.cat([weight.flatten() for weight in weights])
    return cast(Tensor, _MLP.apply(keep, x, together, weights[0].shape[0], weights[-1].shape[0]))
