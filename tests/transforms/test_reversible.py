"""Backpropagation that inverts: the gradients of plain autograd, in memory that does not grow with depth."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scnf.nn import MLP, ConvNet
from scnf.transforms import (
    ActNorm,
    AffineCoupling,
    ChannelPartition,
    CheckerboardPartition,
    CompositeTransform,
    FactorOut,
    Flatten,
    FullLinear,
    HouseholderLinear,
    InverseTransform,
    Logit,
    Planar,
    PLULinear,
    QRLinear,
    Squeeze,
    Transform,
    initialize_from_data,
    two_way_coupling,
)

CONTEXT = 3


def step(channels: int, index: int) -> list[Transform]:
    part = ChannelPartition(channels, swap=index % 2 == 1)
    network = ConvNet(part.num_identity, 2 * part.num_transformed, 8)
    return [ActNorm(channels), FullLinear(channels), AffineCoupling(network, part)]


def checkerboard(swap: bool) -> AffineCoupling:
    part = CheckerboardPartition(1, swap)
    return AffineCoupling(ConvNet(1, 2, 8), part, scale="symmetric")


def images() -> CompositeTransform:
    inner = CompositeTransform([*step(2, 0), *step(2, 1), Flatten((2, 2, 2))])
    squeezed = [Squeeze(), *step(4, 1), FactorOut(inner, (4, 2, 2))]
    return CompositeTransform([Logit(0.05), checkerboard(False), checkerboard(True), CompositeTransform(squeezed)])


def vectors() -> CompositeTransform:
    def network(inputs: int, outputs: int) -> MLP:
        return MLP(inputs, outputs, 8, context_features=CONTEXT)

    layers = [[ActNorm(4), PLULinear(4), two_way_coupling(network, 4), Planar(4, CONTEXT)] for _ in range(2)]
    return CompositeTransform([layer for group in layers for layer in group])


def gradients(
    transform: CompositeTransform, reversible: bool, x: Tensor, context: Tensor | None, data: bool = False
) -> list[Tensor]:
    """Of a loss, at x unless that is data, at the parameters and the context."""
    transform = copy.deepcopy(transform)
    for module in transform.modules():
        if isinstance(module, CompositeTransform):
            module.reversible = reversible
    x = x.clone().requires_grad_(not data)
    context = None if context is None else context.clone().requires_grad_()
    outputs, logabsdet = transform(x, context)
    loss = (outputs.sin().sum(dim=1) * logabsdet.exp().clamp(max=3.0)).sum() + logabsdet.square().sum()
    leaves = [*([] if data else [x]), *transform.parameters(), *([context] if context is not None else [])]
    return [outputs.detach(), logabsdet.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("make", [images, vectors])
def test_reversible_gradients_equal_plain_autograd(make: Callable[[], CompositeTransform]) -> None:
    transform = make().double()
    x = torch.rand(5, 1, 4, 4).double() if make is images else torch.randn(5, 4).double()
    context = None if make is images else torch.randn(5, CONTEXT).double()
    with torch.no_grad():
        initialize_from_data(transform, x, context)
        for parameter in transform.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain, recomputed = (gradients(transform, reversible, x, context) for reversible in (False, True))
    assert len(plain) == len(recomputed)
    for expected, found in zip(plain, recomputed, strict=True):
        assert found.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def saved_bytes(depth: int, reversible: bool) -> int:
    """What autograd keeps between forward and backward, beside the parameters."""
    torch.manual_seed(0)
    transform = CompositeTransform([layer for index in range(depth) for layer in step(4, index)])
    transform.reversible = reversible
    x = torch.randn(16, 4, 8, 8)
    initialize_from_data(transform, x)
    own = {parameter.untyped_storage().data_ptr() for parameter in transform.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs, logabsdet = transform(x)
        loss = outputs.square().sum() - logabsdet.sum()
    total = sum(kept.values())
    loss.backward()
    return total


def test_reversible_saved_arrays_do_not_grow_with_depth() -> None:
    assert saved_bytes(32, reversible=True) <= 1.1 * saved_bytes(4, reversible=True)
    assert saved_bytes(32, reversible=False) > 5 * saved_bytes(4, reversible=False)


HELD = """
import sys
import torch
from scnf.machine import FreedMemory
from scnf.nn import ConvNet
from scnf.transforms import ActNorm, AffineCoupling, ChannelPartition, CompositeTransform, FullLinear
from scnf.transforms import initialize_from_data

def peak():
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

FreedMemory()
torch.set_num_threads(1)
torch.manual_seed(0)
layers = []
for index in range(int(sys.argv[1])):
    part = ChannelPartition(4, swap=index % 2 == 1)
    layers += [ActNorm(4), FullLinear(4), AffineCoupling(ConvNet(2, 4, 64), part, "symmetric")]
transform = CompositeTransform(layers)
transform.reversible = True
x = torch.randn(512, 4, 7, 7)
initialize_from_data(transform, x[:8])
before = peak()
for _ in range(2):
    outputs, logabsdet = transform(x)
    transform.zero_grad()
    (outputs.square().sum() - logabsdet.sum()).backward()
print(peak() - before - sum(4 * parameter.numel() for parameter in transform.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_reversible_process_memory_hardly_grows_with_depth() -> None:
    few, many = (
        int(subprocess.run([sys.executable, "-c", HELD, str(depth)], check=True, capture_output=True, text=True).stdout)
        for depth in (8, 64)
    )
    assert many < 2 * few  # 2.5 to 4.7 times where gradients of layers lie between their arrays


def test_reversible_gives_no_gradient_to_frozen_parameters_and_inputs() -> None:
    transform = CompositeTransform(step(4, 0) + step(4, 1))
    transform.reversible = True
    frozen = transform._transforms[1].weight.requires_grad_(False)
    outputs, logabsdet = transform(torch.randn(6, 4, 4, 4))
    (outputs.square().sum() - logabsdet.sum()).backward()
    assert frozen.grad is None
    assert all(parameter.grad is not None for parameter in transform.parameters() if parameter is not frozen)


class OneWay(ActNorm):
    """Goes forward only."""

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise AssertionError("inverted, though its inputs are known")


def test_reversible_gradients_at_data_need_no_inverse() -> None:
    x, context = torch.randn(5, 4).double(), torch.randn(5, CONTEXT).double()
    for layers in ([OneWay(4), *vectors()._transforms], shared()):
        transform = CompositeTransform(layers).double()
        given = context if isinstance(layers[0], OneWay) else None
        with torch.no_grad():
            initialize_from_data(transform, x, given)
            for parameter in transform.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        plain, recomputed = (gradients(transform, reversible, x, given, data=True) for reversible in (False, True))
        torch.testing.assert_close(recomputed, plain, rtol=1e-9, atol=1e-9)


class Blind(nn.Module):
    """A network that does not look at its input."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        return self.bias.expand(len(inputs), -1)


class Doubled(AffineCoupling):
    """Goes another way than the layer that it inherits from, and says nothing of undoing it."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = super().forward(inputs, context)
        return 2 * outputs, logabsdet + inputs[0].numel() * math.log(2)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = super().inverse(inputs / 2, context)
        return outputs, logabsdet - inputs[0].numel() * math.log(2)


class Tempered(AffineCoupling):
    """With a parameter of its own."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.factor = nn.Parameter(torch.tensor(0.7))

    def _log_scale_and_shift(self, identity: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = super()._log_scale_and_shift(identity, context)
        return self.factor * log_scale, shift


def shared() -> list[Transform]:
    norm, linear, network = ActNorm(4), FullLinear(4), MLP(2, 4, 8)
    parts = [ChannelPartition(4, swap=swap) for swap in (False, True)]
    return [norm, linear, norm, linear, *(AffineCoupling(network, part) for part in parts)]


@pytest.mark.parametrize(
    "make",
    [
        shared,
        lambda: [AffineCoupling(Blind(4), ChannelPartition(4)), HouseholderLinear(4), QRLinear(4)],
        lambda: [Doubled(MLP(2, 4, 8), ChannelPartition(4)), FullLinear(4)],
        lambda: [Tempered(MLP(2, 4, 8), ChannelPartition(4)), FullLinear(4)],
    ],
    ids=["shared", "blind", "another-forward", "own-parameter"],
)
def test_reversible_gradients_of_unusual_layers_equal_autograd(make: Callable[[], list[Transform]]) -> None:
    transform = CompositeTransform(make()).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    with torch.no_grad():
        initialize_from_data(transform, x)
        for parameter in transform.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain, recomputed = (gradients(transform, reversible, x, None) for reversible in (False, True))
    torch.testing.assert_close(recomputed, plain, rtol=1e-9, atol=1e-9)


def test_reversible_gradients_stay_in_single_precision_under_autocast() -> None:
    transform = CompositeTransform([InverseTransform(FullLinear(8)), FullLinear(8)])
    x = torch.randn(16, 8)
    full = gradients(transform, False, x, None)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients(transform, True, x, None)
    torch.testing.assert_close(half, full, rtol=1e-4, atol=1e-4)
