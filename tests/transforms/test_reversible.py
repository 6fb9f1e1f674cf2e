"""Backpropagation that inverts: the gradients of plain autograd, in memory that does not grow with depth."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
    Logit,
    Planar,
    PLULinear,
    Squeeze,
    Transform,
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


def gradients(transform: CompositeTransform, reversible: bool, x: Tensor, context: Tensor | None) -> list[Tensor]:
    transform = copy.deepcopy(transform)
    for module in transform.modules():
        if isinstance(module, CompositeTransform):
            module.reversible = reversible
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    outputs, logabsdet = transform(x, context)
    loss = (outputs.sin().sum(dim=1) * logabsdet.exp().clamp(max=3.0)).sum() + logabsdet.square().sum()
    leaves = [x, *transform.parameters(), *([context] if context is not None else [])]
    return [outputs.detach(), logabsdet.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("make", [images, vectors])
def test_gradients_are_those_of_plain_autograd(make: Callable[[], CompositeTransform]) -> None:
    torch.manual_seed(0)
    transform = make().double()
    x = torch.rand(5, 1, 4, 4).double() if make is images else torch.randn(5, 4).double()
    context = None if make is images else torch.randn(5, CONTEXT).double()
    with torch.no_grad():
        transform(x, context)  # starts ActNorm
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
    with torch.no_grad():
        transform(x)
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


def test_what_is_kept_does_not_grow_with_depth() -> None:
    assert saved_bytes(32, reversible=True) <= 1.1 * saved_bytes(4, reversible=True)
    assert saved_bytes(32, reversible=False) > 5 * saved_bytes(4, reversible=False)


def test_frozen_parameters_and_inputs_without_gradient() -> None:
    torch.manual_seed(0)
    transform = CompositeTransform(step(4, 0) + step(4, 1))
    transform.reversible = True
    frozen = transform._transforms[1].weight.requires_grad_(False)
    outputs, logabsdet = transform(torch.randn(6, 4, 4, 4))
    (outputs.square().sum() - logabsdet.sum()).backward()
    assert frozen.grad is None
    assert all(parameter.grad is not None for parameter in transform.parameters() if parameter is not frozen)
