"""Kernels in C++ for the CPU, compiled for this machine when they are first asked for.

They need Linux and a C++ compiler with OpenMP: `$CXX`, else g++ or c++. The library is kept in `$XDG_CACHE_HOME/scnf`
(`~/.cache/scnf`). Where it cannot be built, or with `SCNF_NATIVE=0` in the environment, PyTorch's own operators do the
same, slower.
"""

import ctypes
import functools
import hashlib
import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("conv_net.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")
_NAMES = {torch.float32: "float32", torch.float64: "float64"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None with a line in the log that says why there are none."""
    if os.environ.get("SCNF_NATIVE") == "0":
        return None
    try:
        found = _built()
        try:
            return ctypes.CDLL(str(found))
        except OSError:  # damaged, or of a machine that shares this home: once more
            found.unlink(missing_ok=True)
            return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.info("convolutions are PyTorch's, which is slower: the kernel cannot be built (%s)", said.strip()[-300:])
        return None


def _built() -> Path:
    """The library for this source, compiler and processor; compiled if it is not there yet."""
    wanted = (os.environ.get("CXX"), "g++", "c++")
    compiler = next((path for name in wanted if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise OSError("there is no C++ compiler: install g++")
    about = [compiler, _FLAGS, sorted(torch.cpu.get_capabilities().items()), torch.__version__]
    key = hashlib.sha256(_SOURCE.read_bytes() + repr(about).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scnf"
    target = folder / f"conv_net-{key}.so"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unlinked, linked = Path(scratch) / "conv_net.o", Path(scratch) / "conv_net.so"
            _run(compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(unlinked))
            _run(compiler, "-shared", str(unlinked), "-o", str(linked))  # without OpenMP's: the one in torch serves
            linked.replace(target)  # another process may have been faster
    return target


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


class _Sizes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("images", "channels", "hidden", "outputs", "height", "width"))


def takes(x: Tensor) -> bool:
    """Whether the kernels are for tensors such as this one."""
    return x.device.type == "cpu" and x.dtype in _NAMES


def _call(name: str, x: Tensor, weights: Sequence[Tensor], *arrays: Any) -> None:
    """Call a kernel on x [N, C, H, W], whose planes are dense, the weights, and further arrays."""
    sizes = _Sizes(x.shape[0], x.shape[1], weights[0].shape[0], weights[4].shape[0], *x.shape[2:])
    function = getattr(library(), f"{name}_{_NAMES[x.dtype]}")
    strides = ctypes.c_long(x.stride(0)), ctypes.c_long(x.stride(1))
    threads = torch.get_num_threads()
    function(ctypes.byref(sizes), threads, _at(x), *strides, _table(weights), *arrays)


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _table(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _dense(weights: Sequence[Tensor]) -> list[Tensor]:
    return [w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w.contiguous() for w in weights]


def _with_dense_planes(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    dense = x.stride(3) == 1 and x.stride(2) == width
    return x if dense or height == width == 1 else x.contiguous()


@torch.library.custom_op("scnf::conv_net", mutates_args=())
def _forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    x, weights = _with_dense_planes(x), _dense(weights)
    outputs = x.new_empty(len(x), len(weights[4]), *x.shape[2:])
    _call("forward", x, weights, _at(outputs))
    return outputs


@torch.library.custom_op("scnf::conv_net_backward", mutates_args=())
def _backward(x: Tensor, weights: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    x, weights, grad = _with_dense_planes(x), _dense(weights), grad.contiguous()
    grad_x, *grads = x.new_empty(x.shape), *(torch.empty_like(w) for w in weights)
    _call("backward", x, weights, _at(grad), _at(grad_x), _table(grads))
    return [grad_x, *grads]


@_forward.register_fake
def _(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return x.new_empty(len(x), len(weights[4]), *x.shape[2:])


@register_flop_formula(torch.ops.scnf.conv_net)
def _(x: Sequence[int], weights: Sequence[Sequence[int]], **rest: Any) -> int:
    return 2 * x[0] * math.prod(x[2:]) * sum(math.prod(shape) for shape in weights if len(shape) == 4)


@_backward.register_fake
def _(x: Tensor, weights: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape), *(torch.empty_like(w) for w in weights)]


class _ConvNet(torch.autograd.Function):
    """The two operators as one with a gradient; a gradient registered with the first costs three times the overhead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        return _forward(x, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, *weights = ctx.saved_tensors
        return tuple(_backward(x, weights, grad))


def conv_net(x: Tensor, *weights: Tensor) -> Tensor:
    """3x3 convolution -> ReLU -> 1x1 convolution -> ReLU -> 3x3 convolution, padded with zeros.

    A few images at a time go through all three, so that what lies between stays in the cache of a core. Nothing of it
    is kept for backward, where it is computed again.

    Args:
        x: [N, C, H, W], float32 or float64, on the CPU.
        weights: weight and bias of each layer: [M, C, 3, 3], [M], [M, M, 1, 1], [M], [D, M, 3, 3], [D], like x.

    Returns:
        [N, D, H, W].

    Example:
        >>> weights = [torch.ones(*shape) for shape in ((8, 2, 3, 3), (8,), (8, 8, 1, 1), (8,), (4, 8, 3, 3), (4,))]
        >>> if library():
        ...     assert conv_net(torch.zeros(5, 2, 7, 7), *weights).shape == (5, 4, 7, 7)
    """
    return cast(Tensor, _ConvNet.apply(x, *weights))
