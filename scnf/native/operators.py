"""Define the kernels as PyTorch operators, check the arrays that they take, and call them."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from scnf.native.build import library

NAMES = {torch.float32: "float32", torch.float64: "float64"}
_OPERATORS = torch.library.Library("scnf", "DEF")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _constant(function: _Function) -> _Function:
    """Make torch.compile call a function once and treat its result as a constant.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler, which costs a second at the start
    of every command.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _available() -> bool:
    return library() is not None


@_constant
def exporting() -> bool:
    """Return whether torch.export traces a program, which has to run without this package and its operators.

    `torch.compiler.is_exporting` itself is True for torch.compile, which takes the operators.
    """
    return torch.compiler.is_exporting()


def fit(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Return whether the operators take these arrays.

    The arrays must be on the CPU, of one type, outside torch.func and outside torch.export.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in NAMES
        and all(w.device.type == "cpu" and w.dtype == x.dtype for w in weights)
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not exporting()
    )


def takes(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Return whether the kernels are available and take these arrays."""
    return fit(x, weights) and _available()


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as a CPU operator without gradient, in 25 us less per call than `custom_op` takes."""

    def define(function: Callable[..., Any]) -> Any:
        _OPERATORS.define(name + torch.library.infer_schema(function, mutates_args=()))
        _OPERATORS.impl(name, function, "CPU")
        return getattr(torch.ops.scnf, name).default

    return define


@_constant
def threads() -> int:
    """Return the number of threads of PyTorch."""
    return torch.get_num_threads()


@_constant
def vector(dtype: torch.dtype) -> int:
    """Return the count of numbers in one vector register of the kernels."""
    return cast(int, getattr(library(), f"vector_{NAMES[dtype]}")())


def call(name: str, x: Tensor, sizes: Sequence[int], *arrays: Any) -> None:
    """Call a kernel on x and further arrays; `sizes` are the fields of the kernel's struct `Sizes`, in order."""
    function = getattr(library(), f"{name}_{NAMES[x.dtype]}")
    function((ctypes.c_long * len(sizes))(*sizes), torch.get_num_threads(), pointer(x), *arrays)


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Return a pointer to the data of a tensor."""
    return ctypes.c_void_p(tensor.data_ptr())


def pointers(tensors: Sequence[Tensor]) -> Any:
    """Return an array of pointers to the data of each tensor."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def needs_double_backward() -> bool:
    """Return whether the gradients of a backward pass need derivatives, which the kernels do not provide."""
    return (torch.is_grad_enabled() or forward_ad._current_level >= 0) and not torch.compiler.is_compiling()


def pytorch_gradients(
    network: Callable[..., Tensor], arrays: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return differentiable gradients of a PyTorch network at its arrays, None for arrays that need no gradient."""
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # Gradients at views leave out paths between the arrays, where one is computed from another.
        arrays = [array.view_as(array) for array in arrays]
        leaves = [array for array in arrays if array.requires_grad]
        gradients = iter(torch.autograd.grad(network(*arrays), leaves, grad, create_graph=True))
    return tuple(next(gradients) if array.requires_grad else None for array in arrays)
