"""How the kernels become operators of PyTorch: for which arrays they are, and how they are called."""

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
    """Have torch.compile call a function once and keep its result in the graph.

    It is what `torch.compiler.assume_constant_result` does, but for the import of the compiler: a second at the start
    of every command.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _available() -> bool:
    return library() is not None


def fit(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether operators are for these: on the CPU, of one type, without the transforms of torch.func."""
    return (
        x.device.type == "cpu"
        and x.dtype in NAMES
        and all(w.device.type == "cpu" and w.dtype == x.dtype for w in weights)
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def takes(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether there is a kernel, and for these."""
    return fit(x, weights) and _available()


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operator for the CPU, without gradient; one of `custom_op` takes 25 us more at each call."""

    def define(function: Callable[..., Any]) -> Any:
        _OPERATORS.define(name + torch.library.infer_schema(function, mutates_args=()))
        _OPERATORS.impl(name, function, "CPU")
        return getattr(torch.ops.scnf, name).default

    return define


@_constant
def threads() -> int:
    """How many threads there are."""
    return torch.get_num_threads()


@_constant
def vector(dtype: torch.dtype) -> int:
    """How many numbers the kernels have in a vector of the processor."""
    return cast(int, getattr(library(), f"vector_{NAMES[dtype]}")())


def call(name: str, x: Tensor, sizes: Sequence[int], *arrays: Any) -> None:
    """Call a kernel on x and what else it takes; `sizes` are those of its struct `Sizes`, in order."""
    function = getattr(library(), f"{name}_{NAMES[x.dtype]}")
    function((ctypes.c_long * len(sizes))(*sizes), torch.get_num_threads(), at(x), *arrays)


def at(tensor: Tensor) -> ctypes.c_void_p:
    """Where the numbers of a tensor are."""
    return ctypes.c_void_p(tensor.data_ptr())


def table(tensors: Sequence[Tensor]) -> Any:
    """Where the numbers of each tensor are."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def differentiated_again() -> bool:
    """In a backward: whether its gradients are to be differentiated, which those of the kernels cannot be."""
    return (torch.is_grad_enabled() or forward_ad._current_level >= 0) and not torch.compiler.is_compiling()


def gradients_of_pytorch(
    network: Callable[..., Tensor], arrays: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Of a network of PyTorch's operators at each of its arrays, to be differentiated; None where none is asked for."""
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # views, as one array may come from another, whose gradient is no part of these
        arrays = [array.view_as(array) for array in arrays]
        asked = [array for array in arrays if array.requires_grad]
        found = iter(torch.autograd.grad(network(*arrays), asked, grad, create_graph=True))
    return tuple(next(found) if array.requires_grad else None for array in arrays)
