"""Wrap `tables.cpp` as operators that look up numbers in a table by index.

The operators exist without a kernel, too. Code that torch.compile generates for sums by index would make threads wait
for each other at each number.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from scnf.native import operators
from scnf.native.build import library
from scnf.native.operators import needs_double_backward, operator, pointer, pytorch_gradients

_LARGEST = 1 << 16  # entries, since each thread holds a few tables of sums


@operator("look_up")
def _look_up(table: Tensor, index: Tensor) -> Tensor:
    if library() is None:
        return _of_pytorch(table, index)
    table, index = table.contiguous(), index.contiguous()
    values = table.new_empty(index.shape)
    operators.call("look_up", table, (index.numel(), len(table)), pointer(index), pointer(values))
    return values


@operator("sums_by_index")
def _sums_by_index(values: Tensor, index: Tensor, entries: int) -> Tensor:
    if library() is None:
        return values.new_zeros(entries).index_add_(0, index.flatten(), values.flatten())
    values, index = values.contiguous(), index.contiguous()
    sums = values.new_empty(entries)
    operators.call("sums_by_index", values, (index.numel(), entries), pointer(index), pointer(sums))
    return sums


@operator("intervals")
def _intervals(table: Tensor, values: Tensor) -> Tensor:
    if library() is None:
        return _searched(table, values)
    table, values = table.contiguous(), values.contiguous()
    index = torch.empty(values.shape, dtype=torch.int32)
    operators.call("intervals", table, (values.numel(), len(table)), pointer(values), pointer(index))
    return index


def _fake_values(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty(index.shape)


def _fake_index(table: Tensor, values: Tensor) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.int32)


def _fake_sums(values: Tensor, index: Tensor, entries: int) -> Tensor:
    return values.new_empty(entries)


torch.library.register_fake("scnf::look_up", _fake_values)
torch.library.register_fake("scnf::sums_by_index", _fake_sums)
torch.library.register_fake("scnf::intervals", _fake_index)


def _of_pytorch(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view_as(index)


def _searched(table: Tensor, values: Tensor) -> Tensor:
    return torch.searchsorted(table, values.contiguous(), right=True, out_int32=True)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(table, index)
        return cast(Tensor, _look_up(table, index))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, index = ctx.saved_tensors
        if needs_double_backward():
            return *pytorch_gradients(partial(_of_pytorch, index=index), (table,), grad), None
        return _sums_by_index(grad, index, len(table)), None


def has_look_up(table: Tensor, index: Tensor) -> bool:
    """Return whether :func:`look_up` has an operator of its own for these inputs.

    It has none for other types than float32 and float64 with int32, for other devices than the CPU, for tables of no
    entries or more than 65,536, in the transforms of torch.func, and for forward-mode derivatives.
    """
    fits = table.dim() == 1 and index.dtype == torch.int32 and index.device == table.device
    return fits and 0 < len(table) <= _LARGEST and operators.fit(table, ())


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Return the entry of a table at each index.

    The operator's gradient sums in the same order at each call, see `has_look_up`.

    Args:
        table: Table [K].
        index: Indices in [0, K), of any shape.

    Returns:
        Entries in the shape of index.

    Raises:
        IndexError: an index lies outside of the table and there is no kernel; a kernel returns NaN.

    Example:
        >>> look_up(torch.tensor([1.0, 2.0]), torch.tensor([[1, 0, 1]], dtype=torch.int32))
        tensor([[2., 1., 2.]])
    """
    return cast(Tensor, _LookUp.apply(table, index)) if has_look_up(table, index) else _of_pytorch(table, index)


def intervals(table: Tensor, values: Tensor) -> Tensor:
    """Return, for each value, the number of entries of an ascending table that are at most this value.

    Args:
        table: Table [K], ascending.
        values: Values of the same type, of any shape, without gradients.

    Returns:
        Numbers in [0, K], int32, in the shape of values. NaN gives K.

    Example:
        >>> intervals(torch.tensor([1.0, 2.0]), torch.tensor([[0.5, 1.0], [1.5, 3.0]]))
        tensor([[0, 1],
                [1, 2]], dtype=torch.int32)
    """
    table, values = table.detach(), values.detach()
    fits = table.dim() == 1 and 0 < len(table) <= _LARGEST and operators.fit(table, (values,))
    return cast(Tensor, _intervals(table, values)) if fits else _searched(table, values)
