"""The kernels of convolutions: what PyTorch's give, and where there is no compiler, these."""

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from scnf import native
from scnf.machine import compile_for
from scnf.native import build, operators
from scnf.nn import ConvNet, GlobalConvNet
from scnf.transforms import FullLinear

needs_kernel = pytest.mark.skipif(native.library() is None, reason="no kernel can be built here")
fresh = native.library.__wrapped__
OPERATOR_TESTS = ["test_schema", "test_faketensor"]
# images, channels, hidden, outputs, height, width
CPU = torch.device("cpu")
SIZES = [
    (64, 2, 64, 4, 14, 14),
    (5, 3, 32, 2, 14, 14),
    (70, 2, 96, 4, 7, 7),
    (7, 1, 5, 3, 9, 11),
    (3, 2, 8, 2, 1, 1),
    (3, 2, 8, 2, 1, 5),
    (3, 2, 8, 2, 5, 1),
    (33, 4, 17, 6, 2, 2),
    (2, 12, 24, 7, 33, 20),
    (150, 3, 37, 2, 10, 10),
]


def drawn(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x and weights that make outputs of the order of one."""
    torch.manual_seed(0)
    images, channels, hidden, outputs, *size = sizes
    shapes = [(images, channels, *size)]
    for inputs, features, window in ((channels, hidden, 3), (hidden, hidden, 1), (hidden, outputs, 3)):
        shapes += [(features, inputs, window, window), (features,)]
    arrays = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [a / a[0].numel() ** 0.5 if a.dim() == 4 and n else a for n, a in enumerate(arrays)]


def convolutions(x: Tensor, *weights: Tensor) -> Tensor:
    for n, padding in ((0, 1), (2, 0), (4, 1)):
        x = F.conv2d(x, weights[n], weights[n + 1], padding=padding)
        x = F.relu(x) if n < 4 else x
    return x


def glow_network(**settings) -> ConvNet:
    torch.manual_seed(0)
    network = ConvNet(3, 5, hidden=8, **settings).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    return network


def outputs_and_gradients(network, arrays: list[Tensor]) -> list[Tensor]:
    arrays = [array.detach().requires_grad_() for array in arrays]
    outputs = network(*arrays)
    (outputs * torch.linspace(0.5, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum().backward()
    return [outputs.detach(), *(array.grad for array in arrays)]


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class CountKept(TorchDispatchMode):
    """How many numbers the network of convolutions hands to backward."""

    numbers = 0

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        results = operator(*arguments, **(named or {}))
        if operator is torch.ops.scnf.conv_net.default:
            self.numbers += results[1].numel()
        return results


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_conv_net_kernel_equals_three_convolutions(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    arrays = drawn(sizes)
    expected = outputs_and_gradients(convolutions, arrays)
    found = outputs_and_gradients(native.conv_net, [array.to(dtype) for array in arrays])
    close = 1e-12 if dtype == torch.float64 else 1e-3  # what is close to 0 before a ReLU may fall to either side of it
    for array, reference in zip(found, expected, strict=True):
        assert (array - reference).norm() <= close * reference.norm()
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize(
    "lay_out",
    [
        lambda x: torch.cat([x + 1, x], dim=1)[:, x.shape[1] :],
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x[:1].expand_as(x),
        lambda x: x[:, :1].expand_as(x),
    ],
    ids=["part", "channels-last", "transposed", "one-image", "one-channel"],
)
def test_conv_net_kernel_takes_inputs_of_any_layout(lay_out) -> None:
    x, *weights = drawn((6, 3, 8, 2, 6, 6))
    laid_out = lay_out(x)
    arrays = [laid_out.clone(memory_format=torch.contiguous_format), *weights]
    expected = outputs_and_gradients(convolutions, arrays)
    outer = laid_out.requires_grad_()
    torch.testing.assert_close(native.conv_net(outer, *weights), expected[0])
    grad = torch.autograd.grad(native.conv_net(outer, *weights), outer, torch.ones_like(expected[0]))[0]
    leaf = arrays[0].requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(convolutions(leaf, *weights).sum(), leaf)[0])


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_conv_net_kernel_is_deterministic_with_any_number_of_threads(threads: int) -> None:
    arrays = drawn((70, 2, 96, 4, 7, 7), torch.float32)
    alone = outputs_and_gradients(native.conv_net, arrays)
    with num_threads(threads):
        together, again = (outputs_and_gradients(native.conv_net, arrays) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@needs_kernel
def test_conv_net_kernel_forgets_nan_of_earlier_calls() -> None:
    arrays = [array.requires_grad_() for array in drawn((3, 2, 8, 2, 5, 5))]
    outputs = native.conv_net(*arrays)
    x, *weights = drawn((64, 2, 8, 2, 8, 8))
    outputs_and_gradients(native.conv_net, [x * float("nan"), *weights])
    found = torch.autograd.grad(outputs.sum(), arrays)
    torch.testing.assert_close(found, torch.autograd.grad(convolutions(*arrays).sum(), arrays))


@needs_kernel
@pytest.mark.parametrize("images", [7, 2])
def test_conv_net_kernel_backward_may_use_another_number_of_threads(images: int) -> None:
    arrays = drawn((images, 2, 96, 4, 7, 7))
    expected = outputs_and_gradients(convolutions, arrays)
    arrays = [array.detach().requires_grad_() for array in arrays]
    with num_threads(3):
        outputs = native.conv_net(*arrays)
    upstream = torch.linspace(0.5, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    with num_threads(1):
        grads = torch.autograd.grad(outputs, arrays, upstream)
    torch.testing.assert_close([outputs, *grads], expected)


@needs_kernel
def test_conv_net_kernel_keeps_nothing_without_gradients() -> None:
    arrays = drawn((4, 2, 8, 3, 5, 5))
    with_weights = [arrays[0], *(weight.requires_grad_() for weight in arrays[1:])]
    with CountKept() as asked:
        outputs = native.conv_net(*with_weights)
    with CountKept() as unasked, torch.no_grad():
        assert torch.equal(native.conv_net(*with_weights), outputs)
    blocks, stride = native.convolutions._layout(arrays[0], 8, 3)
    assert (asked.numbers, unasked.numbers) == (blocks * 8 * stride, 0)
    assert 0 <= asked.numbers - 4 * 8 * 5 * 5 < 8 * 32  # one layer, rows of whole vectors


@needs_kernel
def test_conv_net_kernel_gives_gradients_only_on_request() -> None:
    x, *weights = drawn((3, 2, 8, 2, 5, 5))
    weights[2].requires_grad_()
    native.conv_net(x, *weights).sum().backward()
    assert x.grad is None and weights[0].grad is None and weights[2].grad is not None
    assert not native.conv_net(x, *(weight.detach() for weight in weights)).requires_grad


@needs_kernel
def test_conv_net_kernel_of_no_images_gives_no_outputs() -> None:
    x, *weights = drawn((0, 2, 8, 2, 5, 5))
    outputs, grad_x, *grads = outputs_and_gradients(native.conv_net, [x, *weights])
    assert outputs.shape == (0, 2, 5, 5) and grad_x.shape == x.shape and all((grad == 0).all() for grad in grads)


@needs_kernel
def test_conv_net_kernel_compiles_into_one_graph() -> None:
    def around(x: Tensor, *weights: Tensor) -> Tensor:
        return native.conv_net(2 * x, *weights).tanh()

    arrays = drawn((4, 2, 8, 2, 5, 5))
    compiled = compile_for(around, CPU, fullgraph=True)
    torch.testing.assert_close(outputs_and_gradients(compiled, arrays), outputs_and_gradients(around, arrays))


@needs_kernel
def test_conv_net_kernel_compiles_for_any_number_and_size_of_images() -> None:
    x, *weights = drawn((6, 2, 8, 2, 5, 7))
    compiled = compile_for(native.conv_net, CPU, fullgraph=True, dynamic=True)
    for images, rows in ((6, 5), (4, 3)):
        part = x[:images, :, :rows].clone().requires_grad_()
        for dimension in (0, 2, 3):
            torch._dynamo.mark_dynamic(part, dimension)  # an error, where the graph holds for one number alone
        torch.testing.assert_close(compiled(part, *weights), native.conv_net(part, *weights))


@needs_kernel
def test_conv_net_kernel_forward_mode_is_that_of_pytorch() -> None:
    arrays = drawn((2, 2, 4, 2, 3, 3))
    tangents = [torch.randn_like(array) for array in arrays]
    found = []
    for network in (native.conv_net, convolutions):
        with forward_ad.dual_level():
            outputs = network(*(forward_ad.make_dual(a, t) for a, t in zip(arrays, tangents, strict=True)))
            found.append(forward_ad.unpack_dual(outputs).tangent)
    assert found[1].norm() > 0 and torch.equal(*found)


def gradients_of_a_gradient(network, arrays: list[Tensor]) -> list[Tensor]:
    """At each array, of the sum of squares of the gradients at the first and the third, the others without gradient."""
    arrays = [array.detach().requires_grad_(n in (0, 2)) for n, array in enumerate(arrays)]
    outputs = network(*arrays).tanh().sum()
    asked = [arrays[0], arrays[2]]
    found = torch.autograd.grad(outputs, asked, create_graph=True)
    return [*found, *torch.autograd.grad(sum(g.square().sum() for g in found), asked)]


@needs_kernel
def test_convolution_kernels_have_the_second_derivatives_of_pytorch() -> None:
    arrays = drawn((3, 2, 8, 2, 5, 5))
    expected = gradients_of_a_gradient(convolutions, arrays)
    torch.testing.assert_close(gradients_of_a_gradient(native.conv_net, arrays), expected)
    assert expected[2].norm() > 0 and expected[3].norm() > 0
    x, weight, bias = one_convolution(2, 8, 4, 5, 5)
    networks = [lambda x, _, w, f=f: f(x, w, bias) for f in (native.conv3x3, pytorch_convolution)]
    torch.testing.assert_close(*(gradients_of_a_gradient(network, [x, bias, weight]) for network in networks))
    weight, bias = torch.randn(8, 8, 3, 3, dtype=x.dtype) / 8, torch.zeros(8, dtype=x.dtype)
    twice = [lambda x, _, w, f=f: f(f(x, w, bias), w, bias) for f in (native.conv3x3, pytorch_convolution)]
    torch.testing.assert_close(*(gradients_of_a_gradient(network, [x, bias, weight]) for network in twice))


@needs_kernel
def test_conv_net_kernel_has_the_vectorized_jacobian_of_pytorch() -> None:
    x, *weights = drawn((2, 1, 4, 2, 3, 3))
    found = torch.autograd.functional.jacobian(lambda x: native.conv_net(x, *weights), x, vectorize=True)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(lambda x: convolutions(x, *weights), x))


@needs_kernel
def test_conv_net_supports_vmap_and_functional_gradients() -> None:
    network, x = glow_network(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    several = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(network)(several), torch.stack([network(x), network(2 * x)]))
    found = torch.func.grad(lambda x: network(x).sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(network(leaf).sum(), leaf)[0])


@needs_kernel
def test_conv_net_kernel_flops_are_counted() -> None:
    arrays = drawn((4, 2, 8, 2, 5, 6))
    counts = []
    for network in (native.conv_net, convolutions):
        with FlopCounterMode(display=False) as counter:
            network(*arrays)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@needs_kernel
def test_convolution_operators_pass_opcheck() -> None:
    for sizes in ((4, 2, 8, 2, 5, 6), (2, 1, 3, 4, 1, 1)):
        arrays = drawn(sizes, torch.float32)
        layout = native.convolutions._layout(arrays[0], *sizes[2:4])
        for keep in (False, True):
            torch.library.opcheck(native.convolutions._forward, [*arrays, keep, *layout], test_utils=OPERATOR_TESTS)
        backward = [*native.convolutions._forward(*arrays, True, *layout), *arrays]
        torch.library.opcheck(native.convolutions._backward, backward, test_utils=OPERATOR_TESTS)
    x = one_convolution(2, 9, 4, 5, 6)[0]
    grad = torch.zeros(2, 4, 5, 6, dtype=x.dtype)
    torch.library.opcheck(native.convolutions._weight_gradient, [grad, x], test_utils=OPERATOR_TESTS)


@needs_kernel
def test_conv_net_kernel_propagates_nan() -> None:
    for place in range(7):
        arrays = drawn((2, 2, 8, 2, 4, 4))
        arrays[place].view(-1)[0] = float("nan")
        outputs, *grads = outputs_and_gradients(native.conv_net, arrays)
        assert outputs.isnan().any()
        for found, expected in zip(grads, outputs_and_gradients(convolutions, arrays)[1:], strict=True):
            assert torch.equal(found.isnan(), expected.isnan())


def check_that_autocast_changes_nothing(network, arrays: list[Tensor]) -> None:
    """Outputs, gradients and second derivatives in float32 are the same bits under autocast."""
    arrays = [array.float() for array in arrays]

    def all_of_it() -> list[Tensor]:
        given = [array.detach().requires_grad_() for array in arrays]
        grads = torch.autograd.grad(network(*given).square().sum(), given, create_graph=True)
        with torch.autocast("cpu", enabled=False):
            again = torch.autograd.grad(sum(grad.square().sum() for grad in grads), given)
        return [*outputs_and_gradients(network, arrays), *grads, *again]

    expected = all_of_it()
    with torch.autocast("cpu", torch.bfloat16):
        found = all_of_it()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_kernel
def test_conv_net_kernel_ignores_autocast() -> None:
    check_that_autocast_changes_nothing(native.conv_net, drawn((2, 2, 8, 2, 4, 4)))


@needs_kernel
@pytest.mark.parametrize(
    ("settings", "given", "takes_it"),
    [({}, None, 1), ({"context_features": 2}, 2, 1), ({"blocks": 1}, None, 0), ({"padding": "reflect"}, None, 0)],
)
def test_coupling_networks_use_the_conv_net_kernel(
    settings: dict, given: int | None, takes_it: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, call = [], operators.call
    monkeypatch.setattr(operators, "call", lambda *arrays: calls.append(1) or call(*arrays))
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    context = torch.randn(4, given, dtype=torch.float64) if given else None
    found = glow_network(**settings)(x, context)
    assert len(calls) == takes_it
    monkeypatch.setattr(native.convolutions, "has_conv_net", lambda *arrays: False)
    torch.testing.assert_close(found, glow_network(**settings)(x, context))
    assert len(calls) == takes_it


@needs_kernel
def test_conv_net_kernel_leaves_unsupported_inputs_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arrays) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(operators, "call", refuse)
    network, x = glow_network(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert network.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    network = network.float()
    for wrong in (x, torch.randn(2, 4, 6, 6)):  # float64 for float32 weights; a channel too many
        with pytest.raises(RuntimeError):
            network(wrong)
    assert network.to("meta")(x.float().to("meta")).shape == (2, 5, 6, 6)
    huge = torch.zeros(1, 3, 400, 400)
    assert glow_network().float()(huge).shape == (1, 5, 400, 400)


def one_convolution(images: int, channels: int, outputs: int, *size: int) -> list[Tensor]:
    """x, weight and bias, with channels last as in the networks."""
    torch.manual_seed(0)
    shapes = (images, channels, *size), (outputs, channels, 3, 3)
    x, weight = (torch.randn(s, dtype=torch.float64).contiguous(memory_format=torch.channels_last) for s in shapes)
    return [x, weight, torch.randn(outputs, dtype=torch.float64)]


def pytorch_convolution(*arrays: Tensor) -> Tensor:
    return F.conv2d(*arrays, padding=1)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        (6, 8, 5, 14, 14),
        (5, 9, 3, 7, 7),
        (3, 64, 17, 9, 11),
        (2, 8, 1, 1, 1),
        (2, 8, 2, 1, 5),
        (2, 12, 2, 5, 1),
        (1, 11, 4, 33, 20),
        (2, 8, 3, 3, 70),
        (3, 32, 1, 6, 6),
        (0, 8, 3, 4, 4),
    ],
    ids=str,
)
def test_conv3x3_kernel_gives_the_gradients_of_pytorch(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    arrays = one_convolution(*sizes)
    expected = outputs_and_gradients(pytorch_convolution, arrays)
    found = outputs_and_gradients(native.conv3x3, [array.to(dtype) for array in arrays])
    for array, reference in zip(found, expected, strict=True):
        assert array.dtype == dtype and array.shape == reference.shape
        assert (array - reference).norm() <= (1e-13 if dtype == torch.float64 else 1e-5) * reference.norm()


@needs_kernel
def test_conv3x3_kernel_works_in_any_layout_compiled_vectorized_or_threaded() -> None:
    x, weight, bias = one_convolution(7, 9, 4, 5, 6)
    expected = outputs_and_gradients(pytorch_convolution, [x, weight, bias])
    layouts = [x.contiguous(), torch.cat([x, x])[7:], torch.stack([x, x], dim=-1)[..., 0]]
    for laid_out in layouts:
        leaf, weights = laid_out.detach(), (weight.contiguous().requires_grad_(), bias.requires_grad_())
        scale = torch.linspace(0.5, 2, expected[0].numel(), dtype=torch.float64).view_as(expected[0])
        found = torch.autograd.grad((scale * native.conv3x3(leaf, *weights)).sum(), weights)
        torch.testing.assert_close(list(found), expected[2:])
    compiled = compile_for(native.conv3x3, CPU, fullgraph=True)
    torch.testing.assert_close(outputs_and_gradients(compiled, [x, weight, bias]), expected)
    weight, bias = weight.detach().requires_grad_(), bias.detach()
    jacobians = [
        torch.autograd.functional.jacobian(lambda w, f=f: f(x[:1], w, bias), weight, vectorize=True)
        for f in (native.conv3x3, pytorch_convolution)
    ]
    torch.testing.assert_close(*jacobians)
    with num_threads(3):
        together, again = (outputs_and_gradients(native.conv3x3, [x, weight, bias]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    torch.testing.assert_close(together, expected)


@needs_kernel
def test_conv3x3_kernel_leaves_unsupported_inputs_to_pytorch() -> None:
    x, weight, bias = one_convolution(2, 8, 4, 5, 5)
    assert not native.convolutions.has_conv3x3(x, weight, bias)  # nobody asks for a gradient
    weight.requires_grad_()
    assert native.convolutions.has_conv3x3(x, weight, bias)
    for wrong in ((x.float(), weight), (x[:, :4], weight[:, :4]), (x[0], weight), (x[:, :7], weight)):
        assert not native.convolutions.has_conv3x3(*wrong, bias)
    with torch.no_grad():
        assert not native.convolutions.has_conv3x3(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.convolutions.has_conv3x3(x, weight, bias)
    sums = torch.func.grad(lambda w: pytorch_convolution(x, w, bias).sum())
    assert torch.func.grad(lambda w: native.conv3x3(x, w, bias).sum())(weight.detach()).equal(sums(weight.detach()))


def mixed_by_pytorch(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", weight, x)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(70, 4, 4, 7, 7), (3, 32, 9, 5, 31), (2, 1, 3, 1, 1), (0, 4, 4, 7, 7)], ids=str)
def test_mix_channels_kernel_equals_pytorch(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    images, channels, outputs, *size = sizes
    arrays = [torch.randn(images, channels, *size), torch.randn(outputs, channels)]
    expected = outputs_and_gradients(mixed_by_pytorch, [array.double() for array in arrays])
    found = outputs_and_gradients(native.mix_channels, [array.to(dtype) for array in arrays])
    close = 1e-12 if dtype == torch.float64 else 1e-5
    for array, reference in zip(found, expected, strict=True):
        assert (array - reference).norm() <= close * reference.norm()


@needs_kernel
def test_mix_channels_kernel_works_in_any_layout_compiled_or_threaded() -> None:
    x, weight = torch.randn(70, 6, 5, 5, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    expected = outputs_and_gradients(mixed_by_pytorch, [x, weight])
    laid_out = [x.contiguous(memory_format=torch.channels_last), weight.t().contiguous().t()]
    for network in (native.mix_channels, torch.compile(native.mix_channels, backend="aot_eager", fullgraph=True)):
        for threads in (1, 3):
            with num_threads(threads):
                for array, reference in zip(outputs_and_gradients(network, laid_out), expected, strict=True):
                    torch.testing.assert_close(array, reference)
    assert torch.autograd.gradcheck(native.mix_channels, (x[:2, :, :2].requires_grad_(), weight.requires_grad_()))
    assert torch.autograd.gradgradcheck(native.mix_channels, (x[:2, :, :2], weight))
    for operator, arguments in (
        (torch.ops.scnf.mix_channels, (x, weight)),
        (torch.ops.scnf.mix_channels_backward, (torch.randn_like(x), x, weight)),
    ):
        torch.library.opcheck(operator.default, tuple(a.detach() for a in arguments), test_utils=OPERATOR_TESTS)
    with FlopCounterMode(display=False) as counter:
        native.mix_channels(x, weight)
    assert counter.get_total_flops() == 2 * 70 * 25 * 36


@needs_kernel
def test_full_linear_uses_the_mix_channels_kernel_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, call = [], operators.call
    monkeypatch.setattr(operators, "call", lambda name, *arrays: calls.append(name) or call(name, *arrays))
    FullLinear(4)(torch.randn(3, 4))
    assert calls == ["log_abs_det"]
    FullLinear(4)(torch.randn(3, 4, 5, 5))
    assert calls == ["log_abs_det", "mix", "log_abs_det"]


@needs_kernel
def test_mix_channels_kernel_leaves_unsupported_inputs_to_pytorch() -> None:
    x = torch.randn(2, 6, 5, 5)
    for inputs, weight in (
        (x, torch.eye(6).double()),
        (x.bfloat16(), torch.eye(6).bfloat16()),
        (x, torch.eye(5)),
        (x[0], torch.eye(6)),
        (torch.randn(1, 33, 2, 2), torch.eye(33)),
        (torch.randn(1, 4, 600, 600), torch.eye(4)),
    ):
        assert not native.convolutions.has_mix_channels(inputs, weight)


@needs_kernel
def test_wide_convolution_networks_use_the_conv3x3_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, call = [], operators.call
    monkeypatch.setattr(operators, "call", lambda name, *arrays: calls.append(name) or call(name, *arrays))
    for network, convolutions_of_it in ((GlobalConvNet(3, 2, (8, 8), 16, 32), 2), (ConvNet(3, 2, 16, blocks=1), 3)):
        x = torch.randn(4, 3, 8, 8)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        calls.clear()
        network(x).square().sum().backward()
        assert calls == ["weight_gradient"] * convolutions_of_it
        found = {name: parameter.grad for name, parameter in network.named_parameters()}
        network.zero_grad()
        with monkeypatch.context() as context:
            context.setattr(native, "conv3x3", pytorch_convolution)
            network(x).square().sum().backward()
        assert len(calls) == convolutions_of_it
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3)
    reflecting = ConvNet(3, 2, 16, blocks=1, padding="reflect")
    calls.clear()
    reflecting(x).sum().backward()
    assert not calls


def test_conv_net_kernel_refuses_shapes_that_do_not_fit() -> None:
    x, *weights = drawn((2, 3, 8, 2, 5, 5))
    for wrong in ([x, *weights[:-1]], [x[0], *weights], [x[:, :2], *weights], [x, *weights[:5], weights[1]]):
        assert not native.convolutions.has_conv_net(*wrong)
        assert not native.convolutions._fits(wrong[0].shape, [weight.shape for weight in wrong[1:]])
    assert native.convolutions._fits(x.shape, [weight.shape for weight in weights])


ANSWER = 'extern "C" int answer() { return %d; }'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """The folder of a library that is compiled in no time: its `answer()` is 42."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    caplog.set_level(logging.INFO, logger="scnf.native")
    pretend_avx2(monkeypatch)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "answer.cpp").write_text(ANSWER % 42)
    monkeypatch.setattr(build, "_FOLDER", tmp_path / "source")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    return tmp_path / "not" / "there" / "scnf"


def compiler(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is a shell script, in which `$DIR` is the test's directory."""
    (tmp_path / "compiler").write_text(f"#!/bin/sh\nDIR={tmp_path}\n{script}\n")
    (tmp_path / "compiler").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_kernel_library_is_built_once(cache: Path) -> None:
    library = fresh()
    assert library is not None and library.answer() == 42
    target, digest = sorted(cache.glob("kernels-*"))
    assert digest.name == f"{target.name}.sha256"
    assert digest.read_text() == f"{hashlib.sha256(target.read_bytes()).hexdigest()}  {target.name}\n"
    when = target.stat().st_mtime_ns
    assert fresh().answer() == 42 and target.stat().st_mtime_ns == when


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, other: bytes(len(content)),
        lambda content, other: b"",
        lambda content, other: content[: len(content) // 2],
        lambda content, other: content[:4096],
        lambda content, other: flip(content, content.index((42).to_bytes(4, "little"))),
        lambda content, other: flip(content, len(content) - 1),
        lambda content, other: b"not a library",
        lambda content, other: other,
        None,
    ],
    ids=["zeros", "empty", "half", "page", "answer", "last-byte", "text", "other-library", "no-digest"],
)
def test_kernel_library_that_is_damaged_is_rebuilt(cache: Path, tmp_path: Path, damage) -> None:
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-xc++", "-", "-o", tmp_path / "other.so"], input=ANSWER % 41, text=True, check=True
    )
    assert fresh().answer() == 42
    target, digest = sorted(cache.glob("kernels-*"))
    content = target.read_bytes()
    if damage is None:
        digest.unlink()
    else:
        target.write_bytes(damage(content, (tmp_path / "other.so").read_bytes()))
    assert fresh().answer() == 42
    assert names(cache) == [target.name, digest.name]  # and nothing is left lying about
    assert digest.read_text().startswith(hashlib.sha256(target.read_bytes()).hexdigest())


def test_kernel_library_in_use_survives_damage_of_its_file(cache: Path) -> None:
    library = fresh()
    target = min(cache.glob("kernels-*"))
    target.write_bytes(b"")
    assert library.answer() == 42


def test_kernel_library_that_cannot_be_loaded_is_rebuilt(cache: Path) -> None:
    assert fresh() is not None
    target, digest = sorted(cache.glob("kernels-*"))
    target.write_bytes(b"of another C library")
    digest.write_text(hashlib.sha256(target.read_bytes()).hexdigest())
    assert fresh().answer() == 42


@pytest.mark.parametrize("failure", ["kill -9 $$", "ulimit -f 0", "echo No space left on device >&2; exit 1"])
def test_kernel_build_is_retried_after_a_passing_failure(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: str,
) -> None:
    compiler(f"[ -e $DIR/well ] || {{ {failure}; }}\nexec g++ $*", tmp_path, monkeypatch)
    assert fresh() is None and len(caplog.records) == 2 and "networks are PyTorch's" in caplog.text
    assert names(cache) == []
    (tmp_path / "well").touch()
    assert fresh().answer() == 42


def test_kernel_build_that_timed_out_is_retried_later(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler("[ -e $DIR/well ] || exec sleep 60\nexec g++ $*", tmp_path, monkeypatch)
    monkeypatch.setattr(build, "_PATIENCE", 0.2)
    assert fresh() is None and "the compiler took more than 0.2 seconds, and is tried" in caplog.text
    (slow,) = cache.glob("kernels-*")
    (tmp_path / "well").touch()
    monkeypatch.setattr(build, "_PATIENCE", 300)
    assert fresh() is None and f"remove {slow} to try again" in caplog.text
    for when in (time.time() - 3700, time.time() + 3700):  # or by a clock that was wrong
        os.utime(slow, (when, when))
        assert fresh().answer() == 42
        for path in cache.glob("*.so*"):
            path.unlink()


def start_to_build(cache: Path) -> int:
    """A process that builds the library: its exit code is the library's answer."""
    process = os.fork()
    if not process:
        library = fresh()
        os._exit(0 if library is None else library.answer())
    return process


def test_kernel_build_happens_in_one_process_while_others_wait(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("echo $* >> $DIR/calls; sleep 0.2; exec g++ $*", tmp_path, monkeypatch)
    processes = [start_to_build(cache) for _ in range(6)]
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [42] * 6
    assert len((tmp_path / "calls").read_text().splitlines()) == 2  # one source, and the link


def test_kernel_build_removes_the_remains_of_a_killed_process(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("[ -e $DIR/well ] || { touch $DIR/begun; exec sleep 2; }\nexec g++ $*", tmp_path, monkeypatch)
    process = start_to_build(cache)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert any(name.startswith("build-") for name in names(cache))
    (tmp_path / "well").touch()
    assert fresh().answer() == 42
    assert [name for name in names(cache) if name.startswith("build-")] == []


def test_kernel_cache_that_cannot_be_written_is_logged_in_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    assert fresh() is None and len(caplog.records) == 1
    cache.unlink()
    cache.mkdir(mode=0o700)
    (cache / ".lock").mkdir()  # no lock can be made
    assert fresh() is None and len(caplog.records) == 2 and ".lock" in caplog.records[1].getMessage()


def pretend_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCNF_NATIVE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def test_kernel_build_without_a_working_compiler_falls_back_to_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="scnf.native")
    pretend_avx2(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fresh() is None and "install g++" in caplog.text
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho it does not compile >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert fresh() is None and "it does not compile" in caplog.text
    assert names(tmp_path / "cache" / "scnf") == []  # it is tried again every time: it takes no time to see
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # where no folder can be made
    assert fresh() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert fresh() is None and "no home" in caplog.text
    monkeypatch.setenv("CXX", "'g++")
    assert fresh() is None and "quotation" in caplog.text


@pytest.mark.parametrize("capability", ["DEFAULT", "SVE256"])
def test_kernel_library_is_absent_on_other_processors(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fresh() is None


def test_kernel_cache_writable_by_others_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="scnf.native")
    pretend_avx2(monkeypatch)
    (tmp_path / "scnf").mkdir()
    (tmp_path / "scnf").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "true")
    assert fresh() is None and "other users may write" in caplog.text


def test_kernels_can_be_turned_off_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCNF_NATIVE", "0")
    assert fresh() is None
    monkeypatch.setattr(operators, "library", fresh)
    network, x = ConvNet(2, 4, hidden=8), torch.zeros(1, 2, 5, 5)
    assert not native.convolutions.has_conv_net(x, *network.parameters())
    assert network(x).shape == (1, 4, 5, 5)
    x, weight, bias = one_convolution(2, 8, 4, 5, 5)
    assert not native.convolutions.has_conv3x3(x, weight.requires_grad_(), bias)
