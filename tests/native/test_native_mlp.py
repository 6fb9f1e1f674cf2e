"""The kernel of networks on vectors: what PyTorch's layers give, whatever the sizes, types, threads and derivatives."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_native import (
    CPU,
    OPERATOR_TESTS,
    check_that_autocast_changes_nothing,
    gradients_of_a_gradient,
    needs_kernel,
    num_threads,
    outputs_and_gradients,
)
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from scnf import native
from scnf.distributions.flow import ClassConditionalFlow
from scnf.machine import compile_for
from scnf.nn import MLP
from scnf.transforms import AffineCoupling, ChannelPartition

# vectors, inputs, hidden, residual blocks, outputs
SIZES = [
    (2560, 108, 128, 1, 196),
    (200, 7, 16, 0, 5),
    (97, 9, 24, 3, 8),
    (96, 128, 128, 2, 128),
    (17, 1, 1, 1, 1),
    (5, 3, 13, 2, 31),
    (1, 2, 8, 1, 4),
    (33, 16, 7, 0, 15),
]


def drawn(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x and weights that make outputs of the order of one."""
    torch.manual_seed(0)
    vectors, inputs, hidden, residuals, outputs = sizes
    widths = [inputs, *[hidden] * (2 * residuals + 1), outputs]
    arrays = [torch.randn(vectors, inputs, dtype=dtype)]
    for before, after in itertools.pairwise(widths):
        arrays += [torch.randn(after, before, dtype=dtype) / before**0.5, torch.randn(after, dtype=dtype)]
    return arrays


def layers(x: Tensor, *weights: Tensor) -> Tensor:
    enter, *within, leave = zip(weights[::2], weights[1::2], strict=True)
    x = F.linear(x, *enter)
    for first, second in zip(within[::2], within[1::2], strict=True):
        x = x + F.linear(F.relu(F.linear(F.relu(x), *first)), *second)
    return F.linear(F.relu(x), *leave)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_mlp_kernel_equals_its_layers(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    arrays = drawn(sizes)
    expected = outputs_and_gradients(layers, arrays)
    found = outputs_and_gradients(native.mlp, [array.to(dtype) for array in arrays])
    close = 1e-13 if dtype == torch.float64 else 1e-3  # what is close to 0 before a ReLU may fall to either side of it
    for array, reference in zip(found, expected, strict=True):
        assert array.dtype == dtype and (array - reference).norm() <= close * reference.norm()
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(native.mlp(*(array.to(dtype) for array in arrays)), found[0])


@needs_kernel
@pytest.mark.parametrize("vectors", [1, 40, 500])
def test_mlp_kernel_is_deterministic_with_any_number_of_threads(vectors: int) -> None:
    arrays = drawn((vectors, 9, 24, 1, 8))
    expected = outputs_and_gradients(layers, arrays)
    for threads in (1, 2, 3, 5):
        with num_threads(threads):
            found, again = (outputs_and_gradients(native.mlp, arrays) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        torch.testing.assert_close(found, expected)
    arrays = [array.detach().requires_grad_() for array in arrays]
    with num_threads(3):
        outputs = native.mlp(*arrays)
    with num_threads(1):  # what is kept for backward does not depend on threads
        upstream = torch.linspace(0.5, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
        found = torch.autograd.grad(outputs, arrays, upstream)
    torch.testing.assert_close([outputs, *found], expected)


@needs_kernel
def test_mlp_kernel_propagates_nan_and_forgets_earlier_calls() -> None:
    for place in range(9):
        arrays = drawn((20, 3, 8, 1, 4))
        arrays[place].view(-1)[0] = float("nan")
        outputs, *grads = outputs_and_gradients(native.mlp, arrays)
        reference, *expected = outputs_and_gradients(layers, arrays)
        assert outputs.isnan().any() and torch.equal(outputs.isnan(), reference.isnan())
        assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(grads, expected, strict=True))
    arrays = drawn((20, 3, 8, 1, 4))
    arrays[0][0] = float("inf")
    assert torch.equal(native.mlp(*arrays).isnan(), layers(*arrays).isnan())
    x, *weights = drawn((7, 3, 8, 1, 4))
    torch.testing.assert_close(
        outputs_and_gradients(native.mlp, [x, *weights]), outputs_and_gradients(layers, [x, *weights])
    )


@needs_kernel
def test_mlp_kernel_ignores_autocast() -> None:
    check_that_autocast_changes_nothing(native.mlp, drawn((12, 3, 8, 1, 4)))


@needs_kernel
def test_mlp_kernel_of_no_vectors_gives_no_outputs() -> None:
    outputs, grad_x, *grads = outputs_and_gradients(native.mlp, drawn((0, 3, 8, 1, 4)))
    assert outputs.shape == (0, 4) and grad_x.shape == (0, 3) and all((grad == 0).all() for grad in grads)


@needs_kernel
def test_mlp_kernel_takes_any_layout_and_gives_gradients_only_on_request() -> None:
    x, *weights = drawn((12, 3, 8, 1, 4))
    expected = layers(x, *weights)
    for laid_out in (x.T.contiguous().T, torch.cat([x, x], dim=1)[:, 3:], torch.stack([x, x], dim=-1)[..., 0]):
        torch.testing.assert_close(native.mlp(laid_out, *weights), expected)
    turned = [weight.T.contiguous().T if weight.dim() == 2 else weight for weight in weights]
    turned[2].requires_grad_()
    outputs = native.mlp(x[:1].expand_as(x), *turned)
    torch.testing.assert_close(outputs, layers(x[:1].expand_as(x), *weights))
    outputs.T.contiguous().T.sum().backward()
    assert turned[2].grad is not None and turned[0].grad is None and x.grad is None
    assert not native.mlp(x, *weights).requires_grad


@needs_kernel
def test_mlp_kernel_compiles_for_any_number_of_vectors() -> None:
    x, *weights = drawn((6, 3, 8, 1, 4))
    compiled = compile_for(lambda *arrays: native.mlp(*arrays).tanh(), CPU, fullgraph=True, dynamic=True)
    for vectors in (6, 4):
        part = x[:vectors].clone()
        torch._dynamo.mark_dynamic(part, 0)  # an error, where the graph holds for one number alone
        torch.testing.assert_close(compiled(part, *weights), layers(part, *weights).tanh())
    found = outputs_and_gradients(compiled, [x, *weights])
    torch.testing.assert_close(found, outputs_and_gradients(lambda *arrays: layers(*arrays).tanh(), [x, *weights]))


@needs_kernel
def test_mlp_kernel_has_all_kinds_of_derivatives() -> None:
    arrays = drawn((5, 3, 8, 2, 4))
    found = gradients_of_a_gradient(native.mlp, arrays)
    expected = gradients_of_a_gradient(layers, arrays)
    torch.testing.assert_close(found, expected)
    assert expected[2].norm() > 0 and expected[3].norm() > 0
    x, *weights = arrays
    mixed = [
        gradients_of_a_gradient(lambda x, _, w, f=f: f(x, weights[0] * x.sum(), weights[1], w, *weights[3:]), parts)
        for f in (native.mlp, layers)
        for parts in [[x, x, weights[2]]]  # a weight that comes from x
    ]
    torch.testing.assert_close(*mixed)
    jacobians = [
        torch.autograd.functional.jacobian(lambda x, f=f: f(x, *weights), x, vectorize=True)
        for f in (native.mlp, layers)
    ]
    torch.testing.assert_close(*jacobians)
    network = MLP(3, 4, 8, 2).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    parts = list(network.parameters())
    torch.testing.assert_close(torch.func.vmap(network)(x[:, None])[:, 0], layers(x, *parts))
    torch.testing.assert_close(torch.func.jacrev(network)(x), torch.func.jacrev(lambda x: layers(x, *parts))(x))
    with forward_ad.dual_level():
        tangents = [
            forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
            for f in (network, lambda x: layers(x, *parts))
        ]
        torch.testing.assert_close(*tangents)


@needs_kernel
def test_mlp_operators_count_their_flops_and_pass_opcheck() -> None:
    arrays, counts = drawn((6, 3, 8, 2, 4), torch.float32), []
    for network in (native.mlp, layers):
        with FlopCounterMode(display=False) as counter:
            network(*arrays)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    x, weights = arrays[0], torch.cat([weight.flatten() for weight in arrays[1:]])
    for keep in (False, True):
        torch.library.opcheck(native.vectors._forward, [x, weights, 8, 4, keep], test_utils=OPERATOR_TESTS)
    outputs, kept = native.vectors._forward(x, weights, 8, 4, True)
    torch.library.opcheck(native.vectors._backward, [outputs, kept, x, weights, 8], test_utils=OPERATOR_TESTS)


@needs_kernel
def test_coupling_networks_use_the_mlp_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, call = [], native.operators.call
    monkeypatch.setattr(native.operators, "call", lambda name, *arrays: calls.append(name) or call(name, *arrays))
    torch.manual_seed(0)
    network = MLP(2, 4, 16, blocks=1, context_features=10)
    flow = ClassConditionalFlow(AffineCoupling(network, ChannelPartition(4)), features=4, num_classes=3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = []
    for one_pass in (["mlp_forward", "mlp_backward"], []):
        z = torch.linspace(-1, 1, 20).view(5, 4).requires_grad_()
        table = flow.log_prob_all(z)
        found.append([table, *torch.autograd.grad(table.square().sum(), [z, *flow.parameters()])])
        assert calls == one_pass
        calls.clear()
        monkeypatch.setattr(native.vectors, "has_mlp", lambda *arrays: False)
    torch.testing.assert_close(*found)


@needs_kernel
def test_mlp_kernel_leaves_unsupported_inputs_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.operators, "call", lambda *arrays: pytest.fail("the kernel was called"))
    x, *weights = drawn((6, 3, 8, 1, 4))
    for wrong in ([x[0], *weights], [x[:, :2], *weights], [x, *weights[:-2]], [x, *weights[:-1]], [x, weights[0]], [x]):
        assert not native.vectors.has_mlp(*wrong)
    assert not native.vectors.has_mlp(x.float(), *weights) and not native.vectors.has_mlp(
        x, *weights[:-2], *weights[:2]
    )
    network = MLP(3, 4, 8, 1)
    assert network.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    network = network.float()
    for shape in ((6, 2), (6, 3, 1)):
        with pytest.raises(RuntimeError):
            network(torch.zeros(shape))
    assert network(torch.zeros(6, 5, 3)).shape == (6, 5, 4)  # more dimensions in front, as PyTorch's layers take
    assert MLP(300, 400, 500)(torch.zeros(2, 300)).shape == (2, 400)
    assert network.to("meta")(torch.zeros(6, 3, device="meta")).shape == (6, 4)
