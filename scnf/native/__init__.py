"""Kernels in C++ for the CPU, compiled for this machine when they are first asked for.

They need Linux, a processor with AVX2 or AVX-512 and a C++ compiler with OpenMP: `$CXX`, else g++ or c++. The library
is kept in `$XDG_CACHE_HOME/scnf` (`~/.cache/scnf`). Where it cannot be built, or with `SCNF_NATIVE=0` in the
environment, PyTorch's own operators do the same, slower.
"""

import ctypes
import functools
import hashlib
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("conv_net.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")
_NAMES = {torch.float32: "float32", torch.float64: "float64"}
_FEW = 8  # channels, below which PyTorch's gradients are as fast
_LARGEST = 1 << 20  # numbers of one image in a layer, with all its taps: a thread has a few such layers in memory


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None with a line in the log that says why there are none."""
    if os.environ.get("SCNF_NATIVE") == "0":
        return None
    try:
        return _load()
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        _log.info("convolutions are PyTorch's, which are slower, for want of a kernel: %s", _said(error))
        return None


def _load() -> ctypes.CDLL:
    """The library for this source, compiler and processor; built if it is not there or damaged."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        raise OSError("it is for Linux on processors with AVX2 or AVX-512")
    wanted = (shlex.split(os.environ.get("CXX", "")), ["g++"], ["c++"])
    compiler = next((words for words in wanted if words and shutil.which(words[0])), None)
    if compiler is None:
        raise OSError("there is no C++ compiler: install g++")
    program = Path(str(shutil.which(compiler[0]))).resolve()
    about = compiler, program, program.stat().st_mtime, _FLAGS, torch.__version__, torch.cpu.get_capabilities()
    key = hashlib.sha256(_SOURCE.read_bytes() + repr(about).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scnf"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"others may write to {folder}, where it would be kept")
    target, failed = folder / f"conv_net-{key}.so", folder / f"conv_net-{key}.failed"
    if failed.is_file():
        raise OSError(f"{failed.read_text(encoding='utf-8')} (remove {failed} to try again)")
    if target.is_file():
        try:
            return ctypes.CDLL(str(target))
        except OSError:
            target.unlink(missing_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unlinked, linked = f"{scratch}/conv_net.o", f"{scratch}/conv_net.so"
            _run(*compiler, *_FLAGS, "-c", str(_SOURCE), "-o", unlinked)
            _run(*compiler, "-shared", unlinked, "-o", linked)  # without OpenMP's own library: that of torch serves
            Path(linked).replace(target)  # another process may have been faster
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        failed.write_text(_said(error), encoding="utf-8", errors="replace")
        raise


def _said(error: Exception) -> str:
    """The end of what the compiler wrote, or else of the error."""
    return (getattr(error, "stderr", None) or str(error)).strip()[-300:]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=300)


@torch.compiler.assume_constant_result
def _available() -> bool:
    return library() is not None


def _takes(x: Tensor, weights: Sequence[Tensor], channels: int) -> bool:
    """Whether a kernel is there and for these arrays, `channels` being those of the largest layer."""
    return (
        x.device.type == "cpu"
        and x.dtype in _NAMES
        and all(w.device.type == "cpu" and w.dtype == x.dtype for w in weights)
        and channels * math.prod(x.shape[2:]) <= _LARGEST
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and _available()
    )


def _fits(x: Sequence[int], weights: Sequence[Sequence[int]]) -> bool:
    if len(x) != 4 or len(weights) != 6:
        return False
    hidden, outputs = weights[1][0], weights[5][0]
    shapes = [(hidden, x[1], 3, 3), (hidden,), (hidden, hidden, 1, 1), (hidden,), (outputs, hidden, 3, 3), (outputs,)]
    return [tuple(w) for w in weights] == shapes and min(*x[1:], hidden, outputs) > 0


class _Sizes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("images", "channels", "hidden", "outputs", "height", "width"))


def _call(name: str, x: Tensor, hidden: int, outputs: int, *arrays: Any) -> None:
    """Call a kernel on x [N, C, H, W] and what else it takes."""
    sizes = _Sizes(x.shape[0], x.shape[1], hidden, outputs, *x.shape[2:])
    function = getattr(library(), f"{name}_{_NAMES[x.dtype]}")
    function(ctypes.byref(sizes), torch.get_num_threads(), _at(x), *arrays)


def _call_network(name: str, x: Tensor, weights: Sequence[Tensor], *arrays: Any) -> None:
    """Call a kernel of the network on x, whose planes are dense, the weights, and further arrays."""
    strides = ctypes.c_long(x.stride(0)), ctypes.c_long(x.stride(1))
    _call(name, x, weights[0].shape[0], weights[4].shape[0], *strides, _table(weights), *arrays)


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _table(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _order(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format


def _dense(*weights: Tensor) -> list[Tensor]:
    return [weight.contiguous(memory_format=_order(weight)) for weight in weights]


def _with_dense_planes(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    dense = x.stride(3) == 1 and x.stride(2) == width
    return x if dense or height == width == 1 else x.contiguous()


def _shapes(x: Tensor, middle: Tensor, leave: Tensor, keep: bool) -> list[tuple[int, ...]]:
    """Of the outputs, and of the second hidden layer, which backward asks for."""
    images, *sides = x.shape  # its length would fix it in a compiled graph
    return [(images, leave.shape[0], *sides[1:]), (images, middle.shape[0], *sides[1:]) if keep else (0,)]


_OPERATORS = torch.library.Library("scnf", "DEF")


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operator for the CPU, without gradient; one of `custom_op` takes 25 us more at each call."""

    def define(function: Callable[..., Any]) -> Any:
        _OPERATORS.define(name + torch.library.infer_schema(function, mutates_args=()))
        _OPERATORS.impl(name, function, "CPU")
        return getattr(torch.ops.scnf, name).default

    return define


# Each array is an argument of its own: torch.vmap loops over operators of tensors, not over those of lists.
@_operator("conv_net")
def _forward(
    x: Tensor,
    enter: Tensor,
    enter_bias: Tensor,
    middle: Tensor,
    middle_bias: Tensor,
    leave: Tensor,
    leave_bias: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    weights = _dense(enter, enter_bias, middle, middle_bias, leave, leave_bias)
    outputs, kept = (x.new_empty(shape) for shape in _shapes(x, middle, leave, keep))
    _call_network("forward", _with_dense_planes(x), weights, _at(outputs), _at(kept))
    return outputs, kept


@_operator("conv_net_backward")
def _backward(
    grad: Tensor,
    kept: Tensor,
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
    _call_network("backward", _with_dense_planes(x), weights, _at(kept), _at(grad), _at(grad_x), _table(grads))
    return cast(Any, (grad_x, *grads))


@torch.library.register_fake("scnf::conv_net")
def _(x: Tensor, *weights: Any) -> Any:
    return tuple(x.new_empty(shape) for shape in _shapes(x, weights[2], weights[4], weights[6]))


@torch.library.register_fake("scnf::conv_net_backward")
def _(grad: Tensor, kept: Tensor, x: Tensor, *weights: Tensor) -> Any:
    return x.new_empty(x.shape), *(torch.empty_like(w, memory_format=_order(w)) for w in weights)


@register_flop_formula(torch.ops.scnf.conv_net)
def _(x: Sequence[int], *weights: Any, **rest: Any) -> int:
    return 2 * x[0] * math.prod(x[2:]) * sum(math.prod(weights[layer]) for layer in (0, 2, 4))


class _ConvNet(torch.autograd.Function):
    """The two operators as one with a gradient; a gradient registered with the first costs three times the overhead."""

    @staticmethod
    def forward(ctx: Any, keep: bool, *arrays: Tensor) -> Tensor:
        outputs, kept = _forward(*arrays, keep)
        if keep:
            ctx.save_for_backward(kept, *arrays)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_backward(grad, *ctx.saved_tensors)


def conv_net(x: Tensor, *weights: Tensor) -> Tensor | None:
    """3x3 convolution -> ReLU -> 1x1 convolution -> ReLU -> 3x3 convolution, padded with zeros.

    A few images at a time go through all three, so that what lies between stays in the cache of a core. Of it, only the
    second hidden layer is kept for backward, where the first is computed again. Second derivatives and forward-mode
    ones are refused by PyTorch: take its convolutions for them, with `SCNF_NATIVE=0` in the environment.

    Args:
        x: [N, C, H, W], float32 or float64, on the CPU.
        weights: weight and bias of each layer: [M, C, 3, 3], [M], [M, M, 1, 1], [M], [D, M, 3, 3], [D], like x.

    Returns:
        [N, D, H, W]; None where there is no kernel, or it is not for these: other types, devices or shapes, layers of
        more than a million numbers an image, autocast, the transforms of torch.func.

    Example:
        >>> weights = [torch.ones(*shape) for shape in ((8, 2, 3, 3), (8,), (8, 8, 1, 1), (8,), (4, 8, 3, 3), (4,))]
        >>> outputs = conv_net(torch.zeros(5, 2, 7, 7), *weights)
        >>> assert outputs is None or outputs.shape == (5, 4, 7, 7)
    """
    fits = _fits(x.shape, [w.shape for w in weights])
    if not fits or not _takes(x, weights, max(weights[0].shape[0], 9 * x.shape[1], 9 * weights[4].shape[0])):
        return None
    keep = torch.is_grad_enabled() and any(array.requires_grad for array in (x, *weights))
    return cast(Tensor, _ConvNet.apply(keep, x, *weights))


@_operator("conv3x3_weight_gradient")
def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    grad, x = (array.contiguous(memory_format=torch.channels_last) for array in (grad, x))
    found = x.new_empty(grad.shape[1], 3, 3, x.shape[1])
    _call("weight_gradient", x, 0, grad.shape[1], _at(grad), _at(found))
    return found.permute(0, 3, 1, 2)


@torch.library.register_fake("scnf::conv3x3_weight_gradient")
def _(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(grad.shape[1], 3, 3, x.shape[1]).permute(0, 3, 1, 2)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        back = (grad, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, False, False))
        grad_x = torch.ops.aten.convolution_backward(*back)[0] if ctx.needs_input_grad[0] else None
        return grad_x, _weight_gradient(grad, x), grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
    """3x3 convolution, padded with zeros: PyTorch's, but for the gradient at the weights, which comes sooner.

    That gradient cannot be differentiated again, and there is no forward mode: see :func:`conv_net`.

    Args:
        x: [N, C, H, W], float32 or float64, on the CPU.
        weight: [D, C, 3, 3], like x.
        bias: [D], like x.

    Returns:
        [N, D, H, W]; None where there is no kernel, it is not for these, see :func:`conv_net`, they have fewer than 8
        channels or more than a million weights, or the gradient at the weights is not asked for.

    Example:
        >>> outputs = conv3x3(torch.zeros(5, 8, 7, 7), torch.ones(4, 8, 3, 3, requires_grad=True), torch.ones(4))
        >>> assert outputs is None or outputs.shape == (5, 4, 7, 7)
    """
    asked = torch.is_grad_enabled() and weight.requires_grad
    fits = (
        x.dim() == 4
        and x.shape[1] >= _FEW
        and weight.shape == (bias.numel(), x.shape[1], 3, 3)
        and weight.numel() <= _LARGEST  # each thread has a sum of its own
    )
    if not asked or not fits or not _takes(x, (weight, bias), max(x.shape[1], weight.shape[0])):
        return None
    return cast(Tensor, _Conv3x3.apply(x, weight, bias))
