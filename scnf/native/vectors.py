"""Wrap `mlp.cpp` as operators for networks on vectors."""

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
from scnf.native.operators import needs_double_backward, operator, pointer, pytorch_gradients

_LARGEST = 1 << 17  # weights; more do not fit into the cache of a core, and PyTorch is as fast


def _shapes(inputs: int, hidden: int, residuals: int, outputs: int) -> list[tuple[int, ...]]:
    """Return the shapes of weights and biases, in order."""
    sizes = [(inputs, hidden), *[(hidden, hidden)] * (2 * residuals), (hidden, outputs)]
    return [shape for before, after in sizes for shape in ((after, before), (after,))]


def _sizes(x: Tensor, weights: Tensor, hidden: int, outputs: int) -> tuple[int, int, int, int, int]:
    """Return the kernel's `Sizes`, which are vectors, inputs, hidden units, residual blocks and outputs."""
    inner = weights.numel() - hidden * (x.shape[1] + 1) - outputs * (hidden + 1)
    return x.shape[0], x.shape[1], hidden, inner // (2 * hidden * (hidden + 1)), outputs


def _results(x: Tensor, weights: Tensor, hidden: int, outputs: int, keep: bool) -> tuple[Tensor, Tensor]:
    """Allocate the outputs and, where backward needs them, the hidden layers after ReLUs in padded rows."""
    layers = 2 * _sizes(x, weights, hidden, outputs)[3] + 1
    row = getattr(library(), f"mlp_row_{operators.NAMES[x.dtype]}")(ctypes.c_long(hidden))
    layers_shape = (layers, x.shape[0], row) if keep else (0,)
    return x.new_empty(x.shape[0], outputs), x.new_empty(layers_shape)


@operator("mlp")
def _forward(x: Tensor, weights: Tensor, hidden: int, outputs: int, keep: bool) -> tuple[Tensor, Tensor]:
    x, weights = x.contiguous(), weights.contiguous()
    results, layers = _results(x, weights, hidden, outputs, keep)
    sizes = _sizes(x, weights, hidden, outputs)
    operators.call("mlp_forward", x, sizes, pointer(weights), pointer(results), pointer(layers) if keep else None)
    return results, layers


@operator("mlp_backward")
def _backward(grad: Tensor, layers: Tensor, x: Tensor, weights: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    grad, x, weights = grad.contiguous(), x.contiguous(), weights.contiguous()
    grad_x, grad_weights = torch.empty_like(x), torch.empty_like(weights)
    sizes = _sizes(x, weights, hidden, grad.shape[1])
    operators.call(
        "mlp_backward",
        x,
        sizes,
        pointer(weights),
        pointer(layers),
        pointer(grad),
        pointer(grad_x),
        pointer(grad_weights),
    )
    return grad_x, grad_weights


torch.library.register_fake("scnf::mlp", _results)


def _fake_gradients(grad: Tensor, layers: Tensor, x: Tensor, weights: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weights)


torch.library.register_fake("scnf::mlp_backward", _fake_gradients)


@register_flop_formula(torch.ops.scnf.mlp)
def _(x: Sequence[int], weights: Sequence[int], hidden: int, outputs: int, *rest: Any, **named: Any) -> int:
    inner = weights[0] - hidden * (x[1] + 1) - outputs * (hidden + 1)
    return 2 * x[0] * (hidden * (x[1] + outputs) + inner // (hidden + 1) * hidden)


def _of_pytorch(x: Tensor, weights: Tensor, hidden: int, outputs: int) -> Tensor:
    shapes = _shapes(*_sizes(x, weights, hidden, outputs)[1:])
    parts = [
        part.view(shape) for part, shape in zip(weights.split([math.prod(s) for s in shapes]), shapes, strict=True)
    ]
    return _layers_of_pytorch(x, parts)


def _layers_of_pytorch(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    enter, *inner, leave = zip(weights[::2], weights[1::2], strict=True)
    sums = F.linear(x, *enter)
    for first, second in zip(inner[::2], inner[1::2], strict=True):
        sums = sums + F.linear(F.relu_(F.linear(F.relu(sums), *first)), *second)
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
        results, layers = _forward(x, weights, hidden, outputs, keep)
        if keep:
            ctx.sizes = hidden, outputs
            ctx.save_for_backward(layers, x, weights)
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layers, x, weights = ctx.saved_tensors
        hidden, outputs = ctx.sizes
        if needs_double_backward():
            network = partial(_of_pytorch, hidden=hidden, outputs=outputs)
            return None, *pytorch_gradients(network, (x, weights), grad), None, None
        return None, *_backward(grad, layers, x, weights, hidden), None, None


def has_mlp(x: Tensor, *weights: Tensor) -> bool:
    """Return whether :func:`mlp` has a kernel for these inputs.

    It has none for other types than float32 and float64, for other devices than the CPU, for more than 131,072 weights,
    in the transforms of torch.func, and for forward-mode derivatives.
    """
    return _fits(x.shape, [w.shape for w in weights]) and operators.takes(x, weights)


def mlp(x: Tensor, *weights: Tensor) -> Tensor:
    """Compute a residual network on vectors, as linear -> blocks [ReLU, linear, ReLU, linear] -> ReLU -> linear.

    A block of vectors goes through all layers, so that hidden layers stay in the cache of a core. The outputs of the
    ReLUs are saved for backward. For second derivatives PyTorch's operators compute everything again, and they answer
    where there is no kernel, see `has_mlp`.

    Args:
        x: Inputs [N, C].
        weights: Weight and bias of each layer, of the type of x: [M, C], [M] first, [M, M], [M] twice for each residual
            block, and [D, M], [D] last.

    Returns:
        Outputs [N, D]. Autocast has no effect on the kernel, because on the CPU it is faster than PyTorch in bf16.

    Example:
        >>> weights = [torch.ones(*shape) for shape in ((8, 2), (8,), (8, 8), (8,), (8, 8), (8,), (4, 8), (4,))]
        >>> mlp(torch.zeros(5, 2), *weights).shape
        torch.Size([5, 4])
    """
    if not has_mlp(x, *weights):
        return _layers_of_pytorch(x, weights)
    keep = torch.is_grad_enabled() and any(array.requires_grad for array in (x, *weights))
    flat = torch.cat([weight.flatten() for weight in weights])
    return cast(Tensor, _MLP.apply(keep, x, flat, weights[0].shape[0], weights[-1].shape[0]))
