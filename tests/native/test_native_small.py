"""The kernels of look-ups and of log-determinants: what PyTorch's operators give, whatever the sizes and types."""

import math

import pytest
import torch
from test_native import OPERATOR_TESTS, fresh, needs_kernel, num_threads, outputs_and_gradients
from torch import Tensor
from torch.autograd import forward_ad

from scnf import native
from scnf.native import determinants, operators, tables
from scnf.transforms import FullLinear, GreyLevels

KERNELS = [pytest.param(True, marks=needs_kernel, id="kernel"), pytest.param(False, id="pytorch")]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture
def with_or_without_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setenv("SCNF_NATIVE", "0")
        monkeypatch.setattr(tables, "library", fresh)


# --- look-ups


def drawn(entries: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A table, and indices of which most are one."""
    torch.manual_seed(0)
    index = torch.randint(entries, shape, dtype=torch.int32) * (torch.rand(shape) < 0.3)
    return torch.randn(entries, dtype=dtype), index.int()


def selected(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view_as(index)


@pytest.mark.parametrize("with_or_without_kernel", KERNELS, indirect=True)
@pytest.mark.parametrize("shape", [(3, 256, 7), (5, 1), (1, 6001), (4, 0), (2, 3, 5, 7, 9)], ids=str)
@DTYPES
def test_look_up_gives_entries_and_their_summed_gradients(
    with_or_without_kernel: None, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    table, index = drawn(*shape, dtype=dtype)
    for threads in (1, 2, 3):
        with num_threads(threads):
            found, again = (outputs_and_gradients(lambda t: native.look_up(t, index), [table]) for _ in range(2))
        expected = outputs_and_gradients(lambda t: selected(t, index), [table.double()])
        assert torch.equal(found[0], expected[0].to(dtype)) and torch.equal(found[1], again[1])
        torch.testing.assert_close(
            found[1].double(), expected[1], rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0
        )


def test_look_up_takes_any_layout_and_has_all_kinds_of_derivatives() -> None:
    table, index = drawn(8, 12, 5)
    table, index = table.repeat_interleave(3)[::3], index.T
    assert torch.equal(native.look_up(table, index), selected(table, index))
    table.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: native.look_up(t, index), table)
    assert torch.autograd.gradgradcheck(lambda t: native.look_up(t, index).exp(), table)
    assert not tables.has_look_up(table.float().half(), index)
    assert not tables.has_look_up(table, index.long())
    assert torch.equal(native.look_up(table, index.long()), selected(table, index))
    assert not tables.has_look_up(torch.zeros(1 << 17), index)
    assert not tables.has_look_up(torch.zeros(0), index)
    found = native.look_up(table, index)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(found), torch.ones_like(found))
        (grad,) = torch.autograd.grad(found, table, dual)
        tangent = forward_ad.unpack_dual(grad).tangent
    assert torch.equal(tangent, torch.bincount(index.flatten(), minlength=8).double())
    assert torch.func.vmap(lambda t: native.look_up(t, index))(table.detach().expand(2, 8)).shape == (2, *index.shape)
    assert not native.look_up(table.detach(), index).requires_grad


@needs_kernel
def test_look_up_outside_of_the_table_gives_nan_and_no_gradient() -> None:
    index = torch.tensor([0, -1, 3, 2, 2**31 - 1, -(2**31)], dtype=torch.int32)
    found, grad = outputs_and_gradients(lambda t: native.look_up(t, index), [torch.ones(3)])
    assert found.isnan().tolist() == [False, True, True, False, True, True]
    assert grad.tolist() == pytest.approx([0.5, 0, 1.4])  # two of the weights of a line from 0.5 to 2


@pytest.mark.parametrize("with_or_without_kernel", KERNELS, indirect=True)
@pytest.mark.parametrize("entries", [1, 2, 3, 15, 16, 17, 255, 256])
@DTYPES
def test_intervals_count_the_entries_up_to_each_value(
    with_or_without_kernel: None, entries: int, dtype: torch.dtype
) -> None:
    table = torch.randint(0, entries, (entries,)).sort().values.to(dtype) / 4  # some entries are equal
    edges = torch.tensor([torch.nan, torch.inf, -torch.inf, -1, 0], dtype=dtype)
    values = torch.cat([edges, table, table.nextafter(edges[1]), table.nextafter(edges[2]), torch.randn(300).to(dtype)])
    expected = torch.tensor([int((~(table > value)).sum()) for value in values], dtype=torch.int32)
    for threads in (1, 3):
        with num_threads(threads):
            assert torch.equal(native.intervals(table, values), expected)
    columns = values[: len(values) // 3 * 3].view(-1, 3)
    assert torch.equal(native.intervals(table, columns.T), native.intervals(table, columns).T)


def test_intervals_take_any_types_and_empty_tables() -> None:
    values = torch.tensor([[0.5, 1.5]])
    assert native.intervals(torch.zeros(0), values).tolist() == [[0, 0]]
    assert native.intervals(torch.tensor([1.0]).double(), values.double()).tolist() == [[0, 1]]
    assert torch.func.vmap(lambda v: native.intervals(torch.tensor([1.0]), v))(values).tolist() == [[0, 1]]


@pytest.mark.parametrize("with_or_without_kernel", KERNELS, indirect=True)
def test_grey_levels_use_look_up_eager_and_compiled(with_or_without_kernel: None) -> None:
    torch._dynamo.reset()
    layer, x = GreyLevels(16).double(), torch.rand(6, 1, 5, 5).double()
    layer(x)
    expected = outputs_and_gradients(lambda x: layer(x)[0], [x])
    slopes = layer.log_slope.grad.clone()
    layer.zero_grad()
    found = outputs_and_gradients(lambda x: torch.compile(layer, backend="aot_eager", fullgraph=True)(x)[0], [x])
    torch.testing.assert_close([*found, layer.log_slope.grad], [*expected, slopes])


# --- log-determinants


@needs_kernel
@pytest.mark.parametrize("size", [1, 2, 4, 17, 32])
@DTYPES
def test_log_abs_det_kernel_equals_slogdet(size: int, dtype: torch.dtype) -> None:
    for _ in range(20):
        matrix = torch.randn(size, size).double()
        expected = outputs_and_gradients(lambda w: torch.linalg.slogdet(w).logabsdet, [matrix])
        found = outputs_and_gradients(native.log_abs_det, [matrix.to(dtype)])
        exact = torch.linalg.cond(matrix).item() * (2e-6 if dtype == torch.float32 else 1e-14)
        assert all((a - b).norm() <= exact * b.norm() + exact for a, b in zip(found, expected, strict=True))


@needs_kernel
def test_log_abs_det_takes_any_layout_and_has_all_kinds_of_derivatives() -> None:
    matrix = torch.randn(5, 5).double().T.requires_grad_()
    for function in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert function(native.log_abs_det, matrix)
    permuted = torch.eye(6)[[3, 5, 0, 1, 4, 2]].requires_grad_()
    (found,) = torch.autograd.grad(native.log_abs_det(permuted), permuted)
    assert torch.equal(found, permuted)


@needs_kernel
def test_log_abs_det_of_singular_and_nan_matrices_is_not_finite() -> None:
    for matrix in (torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 0.0, 2.0]))):
        log_abs_det, grad = outputs_and_gradients(native.log_abs_det, [matrix])
        assert log_abs_det == -math.inf and not grad.isfinite().any()
    nan = math.nan
    for numbers in (
        [[nan, nan], [nan, nan]],
        [[0, 1], [nan, 1]],
        [[0, nan], [0, 1]],
        [[0, 0], [nan, nan]],
        [[1, nan], [2, 0]],
    ):
        log_abs_det, grad = outputs_and_gradients(native.log_abs_det, [torch.tensor(numbers)])
        assert log_abs_det.isnan() and not grad.isfinite().all()
    for numbers in ([[1e-40, 0], [0, 1]], [[1e-39, 0.5], [0, 2]]):
        matrix = torch.tensor(numbers).requires_grad_()
        torch.testing.assert_close(native.log_abs_det(matrix), torch.linalg.slogdet(matrix).logabsdet)


@needs_kernel
def test_log_abs_det_kernel_leaves_unsupported_matrices_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.eye(4, requires_grad=True)
    for other in (torch.eye(33, requires_grad=True), matrix.detach(), matrix.half(), matrix[:, :3]):
        assert not determinants.has_log_abs_det(other)
    with torch.no_grad():
        assert not determinants.has_log_abs_det(matrix)
    calls, call = [], operators.call
    monkeypatch.setattr(operators, "call", lambda name, *arrays: calls.append(name) or call(name, *arrays))
    for size, expected in ((32, ["log_abs_det"]), (33, [])):
        layer, calls[:] = FullLinear(size), []
        layer.logabsdet().backward()
        assert calls == expected
        torch.testing.assert_close(layer.weight.grad, torch.linalg.inv(layer.weight.detach()).T)


@needs_kernel
def test_look_up_and_log_abs_det_operators_pass_opcheck() -> None:
    table, index = drawn(8, 12, 5)
    values = torch.randn(12, 5)
    for operator, arguments in (
        (native.tables._look_up, [table, index]),
        (native.tables._sums_by_index, [values, index, 8]),
        (native.tables._intervals, [table.float().sort().values, values]),
        (native.determinants._log_abs_det, [torch.randn(4, 4).T]),
    ):
        torch.library.opcheck(operator, arguments, test_utils=OPERATOR_TESTS)
