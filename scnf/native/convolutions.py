"""Wrap `conv_net.cpp` as operators for convolutional networks, 3x3 weight gradients and 1x1 convolutions."""

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
from scnf.native.operators import needs_double_backward, operator, pointer, pointers, pytorch_gradients

_BLOCK = 49152  # numbers of a hidden layer in a block; four such layers of float32 fit into a megabyte
_COLUMNS = 784  # pixels of a block; with more, layers of few channels leave the first-level cache
_MIN_CHANNELS = 8  # with fewer channels, PyTorch's gradients are as fast
_MAX_CHANNELS_TO_MIX = 32  # with more channels, the matrix product takes most of the time
_LARGEST = 1 << 20  # numbers of one image in a layer with all its taps, since a thread holds a few such layers


def _fits(x: Sequence[int], weights: Sequence[Sequence[int]]) -> bool:
    if len(x) != 4 or len(weights) != 6:
        return False
    hidden, outputs = weights[1][0], weights[5][0]
    shapes = [(hidden, x[1], 3, 3), (hidden,), (hidden, hidden, 1, 1), (hidden,), (outputs, hidden, 3, 3), (outputs,)]
    return [tuple(w) for w in weights] == shapes and min(*x[1:], hidden, outputs) > 0


def _layout(x: Tensor, hidden: int, outputs: int) -> tuple[int, int]:
    """Return the number of blocks that images are split into, and the stride of rows in a block.

    Each thread gets the same number of blocks where there are enough images. All blocks hold nearly the same number of
    images, at least one. A row holds one number for each pixel of the largest block. Its stride is an odd number of the
    processor's vectors, so that few rows map to the same cache sets. The computation also works on symbolic sizes of a
    compiled graph.
    """
    images, pixels = torch.sym_max(x.shape[0], 1), math.prod(x.shape[2:])
    columns = min(_COLUMNS, _BLOCK // max(hidden, 4 * x.shape[1], 4 * outputs))
    images_per_round = torch.sym_max((columns + pixels // 2) // pixels, 1) * operators.threads()
    blocks: Any = torch.sym_min(-(-images // images_per_round) * operators.threads(), images)
    vector = operators.vector(x.dtype)
    vectors: Any = -(-(-(-images // blocks) * pixels) // vector)
    return blocks, (vectors // 2 * 2 + 1) * vector


def _call_network(name: str, x: Tensor, weights: Sequence[Tensor], layout: Sequence[int], *arrays: Any) -> None:
    """Call a kernel of the network on x with dense planes, the weights, and further arrays."""
    strides = ctypes.c_long(x.stride(0)), ctypes.c_long(x.stride(1))
    sizes = *x.shape[:2], weights[0].shape[0], weights[4].shape[0], *x.shape[2:], *layout
    operators.call(name, x, sizes, *strides, pointers(weights), *arrays)


def _small(x: Tensor, channels: int) -> bool:
    """Return whether a layer of so many channels and taps fits into the working memory of a thread."""
    return channels * math.prod(x.shape[2:]) <= _LARGEST


def _order(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format


def _dense(*weights: Tensor) -> list[Tensor]:
    return [weight.contiguous(memory_format=_order(weight)) for weight in weights]


def _with_dense_planes(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    dense = x.stride(3) == 1 and x.stride(2) == width
    return x if dense or height == width == 1 else x.contiguous()


def _results(x: Tensor, middle: Tensor, leave: Tensor, keep: bool, blocks: int, stride: int) -> tuple[Tensor, Tensor]:
    """Allocate the outputs and, where backward needs it, the second hidden layer of each block."""
    hidden_shape = (blocks, middle.shape[0], stride) if keep else (0,)
    return x.new_empty(x.shape[0], leave.shape[0], *x.shape[2:]), x.new_empty(hidden_shape)


# Each array is a separate argument, because torch.vmap loops over operators of tensors but not of lists.
@operator("conv_net")
def _forward(
    x: Tensor,
    enter: Tensor,
    enter_bias: Tensor,
    middle: Tensor,
    middle_bias: Tensor,
    leave: Tensor,
    leave_bias: Tensor,
    keep: bool,
    blocks: int,
    stride: int,
) -> tuple[Tensor, Tensor]:
    weights = _dense(enter, enter_bias, middle, middle_bias, leave, leave_bias)
    outputs, hidden = _results(x, middle, leave, keep, blocks, stride)
    arrays = pointer(outputs), pointer(hidden) if keep else None
    _call_network("forward", _with_dense_planes(x), weights, (blocks, stride), *arrays)
    return outputs, hidden


@operator("conv_net_backward")
def _backward(
    grad: Tensor,
    hidden: Tensor,
    x: Tensor,
    enter: Tensor,
    enter_bias: Tensor,
    middle: Tensor,
    middle_bias: Tensor,
    leave: Tensor,
    leave_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = _dense(enter, enter_bias, middle, middle_bias, leave, leave_bias)
    grad, grad_x = grad.contiguous(), x.new_empty(x.shape)
    grads = [torch.empty_like(w) for w in weights]
    arrays = pointer(hidden), pointer(grad), pointer(grad_x), pointers(grads)
    _call_network("backward", _with_dense_planes(x), weights, hidden.shape[::2], *arrays)
    return cast("tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]", (grad_x, *grads))


def _fake_results(x: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
    return _results(x, weights[2], weights[4], *weights[6:])


def _fake_gradients(grad: Tensor, hidden: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), *(torch.empty_like(w, memory_format=_order(w)) for w in weights)


torch.library.register_fake("scnf::conv_net", _fake_results)
torch.library.register_fake("scnf::conv_net_backward", _fake_gradients)


@register_flop_formula(torch.ops.scnf.conv_net)
def _(x: Sequence[int], *weights: Any, **rest: Any) -> int:
    count: int = sum(math.prod(weights[layer]) for layer in (0, 2, 4))
    return 2 * x[0] * math.prod(x[2:]) * count


def _conv_net_of_pytorch(x: Tensor, *weights: Tensor) -> Tensor:
    enter, enter_bias, middle, middle_bias, leave, leave_bias = weights
    hidden = F.conv2d(F.relu_(conv3x3(x, enter, enter_bias)), middle, middle_bias)
    return conv3x3(F.relu_(hidden), leave, leave_bias)


class _ConvNet(torch.autograd.Function):
    """Autograd function of the two operators, since a gradient registered with the first triples the overhead."""

    @staticmethod
    def forward(ctx: Any, keep: bool, *arrays: Tensor) -> Tensor:
        x, _, _, middle, _, leave, _ = arrays
        outputs: Tensor
        outputs, hidden = _forward(*arrays, keep, *_layout(x, middle.shape[0], leave.shape[0]))
        if keep:
            ctx.save_for_backward(hidden, *arrays)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *arrays = ctx.saved_tensors
        if needs_double_backward():
            return None, *pytorch_gradients(_conv_net_of_pytorch, arrays, grad)
        return None, *_backward(grad, hidden, *arrays)


def has_conv_net(x: Tensor, *weights: Tensor) -> bool:
    """Return whether :func:`conv_net` has a kernel for these inputs.

    It has none for other types than float32 and float64, for other devices than the CPU, for layers of more than a
    million numbers per image, in the transforms of torch.func, and for forward-mode derivatives.
    """
    if not _fits(x.shape, [w.shape for w in weights]) or not operators.takes(x, weights):
        return False
    return _small(x, max(weights[0].shape[0], 9 * x.shape[1], 9 * weights[4].shape[0]))


def conv_net(x: Tensor, *weights: Tensor) -> Tensor:
    """Compute a network of 3x3 convolution, ReLU, 1x1 convolution, ReLU and 3x3 convolution, padded with zeros.

    A few images at a time go through all three layers, so that hidden layers stay in the cache of a core. Only the
    second hidden layer is saved for backward, which computes the first again. For second derivatives PyTorch's
    convolutions compute everything again. Without a kernel, see `has_conv_net`, PyTorch's operators answer.

    Args:
        x: Inputs [N, C, H, W].
        weights: Weight and bias of each layer, of the type of x and in this order: [M, C, 3, 3], [M], [M, M, 1, 1],
            [M], [D, M, 3, 3], [D].

    Returns:
        Outputs [N, D, H, W]. Autocast has no effect on the kernel, because on the CPU it is faster than PyTorch in
        bf16.

    Example:
        >>> weights = [torch.ones(*shape) for shape in ((8, 2, 3, 3), (8,), (8, 8, 1, 1), (8,), (4, 8, 3, 3), (4,))]
        >>> conv_net(torch.zeros(5, 2, 7, 7), *weights).shape
        torch.Size([5, 4, 7, 7])
    """
    if not has_conv_net(x, *weights):
        return _conv_net_of_pytorch(x, *weights)
    keep = torch.is_grad_enabled() and any(array.requires_grad for array in (x, *weights))
    return cast(Tensor, _ConvNet.apply(keep, x, *weights))


@operator("conv3x3_weight_gradient")
def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    grad, x = (array.contiguous(memory_format=torch.channels_last) for array in (grad, x))
    result = x.new_empty(grad.shape[1], 3, 3, x.shape[1])
    operators.call(
        "weight_gradient", x, (*x.shape[:2], 0, grad.shape[1], *x.shape[2:], 0, 0), pointer(grad), pointer(result)
    )
    return result.permute(0, 3, 1, 2)


def _fake_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(grad.shape[1], 3, 3, x.shape[1]).permute(0, 3, 1, 2)


torch.library.register_fake("scnf::conv3x3_weight_gradient", _fake_weight_gradient)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if needs_double_backward():
            return pytorch_gradients(partial(F.conv2d, padding=1), (x, weight, bias), grad)
        arguments = (grad, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, False, False))
        grad_x = torch.ops.aten.convolution_backward(*arguments)[0] if ctx.needs_input_grad[0] else None
        return grad_x, _weight_gradient(grad, x), grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def has_conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Return whether :func:`conv3x3` has a kernel for these inputs.

    It has none where `has_conv_net` names a reason, for fewer than 8 input channels or more than a million
    weights, under autocast, and where the weights need no gradient.
    """
    needs_gradient = torch.is_grad_enabled() and weight.requires_grad
    fits = (
        x.dim() == 4
        and x.shape[1] >= _MIN_CHANNELS
        and weight.shape == (bias.numel(), x.shape[1], 3, 3)
        and weight.numel() <= _LARGEST  # each thread holds a partial sum
    )
    small = _small(x, max(x.shape[1], weight.shape[0]))
    if torch.is_autocast_enabled("cpu") or not (needs_gradient and fits and small):
        return False
    return operators.takes(x, (weight, bias))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a 3x3 convolution, padded with zeros, by PyTorch's operator.

    Its kernel is a faster gradient of the weights, see `has_conv3x3`.

    Args:
        x: Inputs [N, C, H, W].
        weight: Weight [D, C, 3, 3], of the type of x.
        bias: Bias [D], of the type of x.

    Returns:
        Outputs [N, D, H, W].

    Example:
        >>> conv3x3(torch.zeros(5, 8, 7, 7), torch.ones(4, 8, 3, 3, requires_grad=True), torch.ones(4)).shape
        torch.Size([5, 4, 7, 7])
    """
    if not has_conv3x3(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=1)
    return cast(Tensor, _Conv3x3.apply(x, weight, bias))


def _sizes_to_mix(x: Tensor, weight: Tensor) -> Sequence[int]:
    return *x.shape[:2], 0, weight.shape[0], *x.shape[2:], *_layout(x, 0, weight.shape[0])


@operator("mix_channels")
def _mix(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    outputs = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
    operators.call("mix", x, _sizes_to_mix(x, weight), pointer(weight), pointer(outputs))
    return outputs


@operator("mix_channels_backward")
def _mix_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    arrays = pointer(weight), pointer(grad), pointer(grad_x), pointer(grad_weight)
    operators.call("mix_backward", x, _sizes_to_mix(x, weight), *arrays)
    return grad_x, grad_weight


def _fake_mixed(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


def _fake_mixed_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


torch.library.register_fake("scnf::mix_channels", _fake_mixed)
torch.library.register_fake("scnf::mix_channels_backward", _fake_mixed_gradients)


@register_flop_formula(torch.ops.scnf.mix_channels)
def _(x: Sequence[int], weight: Sequence[int], **rest: Any) -> int:
    return 2 * x[0] * math.prod(x[2:]) * math.prod(weight)


def _mix_of_pytorch(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("ij,nj...->ni...", weight, x)  # a convolution would round to TF32 on CUDA


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return cast(Tensor, _mix(x, weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if needs_double_backward():
            return pytorch_gradients(_mix_of_pytorch, (x, weight), grad)
        grad_x, grad_weight = _mix_backward(grad, x, weight)
        return grad_x, grad_weight


def has_mix_channels(x: Tensor, weight: Tensor) -> bool:
    """Return whether :func:`mix_channels` has a kernel for these inputs.

    It has none where `has_conv_net` names a reason, for vectors, and for more than 32 channels.
    """
    fits = x.dim() == 4 and weight.dim() == 2 and weight.shape[1] == x.shape[1] and min(*x.shape[1:], *weight.shape) > 0
    small = max(weight.shape, default=0) <= _MAX_CHANNELS_TO_MIX
    return bool(fits and small and _small(x, max(weight.shape)) and operators.takes(x, (weight,)))


def mix_channels(x: Tensor, weight: Tensor) -> Tensor:
    """Compute a 1x1 convolution without bias, or a dense matrix on vectors.

    The kernel is for few channels, where PyTorch spends more time on copies than on sums, see `has_mix_channels`.

    Args:
        x: Inputs [N, C, H, W] or [N, C].
        weight: Weight [D, C], of the type of x.

    Returns:
        Outputs [N, D, H, W] or [N, D]. Autocast has no effect on the kernel.

    Example:
        >>> mix_channels(torch.zeros(5, 4, 7, 7), torch.eye(4)).shape
        torch.Size([5, 4, 7, 7])
    """
    return cast(Tensor, _Mix.apply(x, weight)) if has_mix_channels(x, weight) else _mix_of_pytorch(x, weight)
