"""Networks for couplings."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from scnf.nn import MLP, ConvNet, GlobalConvNet

NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "mlp": (partial(MLP, 3, 5, hidden=8), (3,)),
    "mlp-no-blocks": (partial(MLP, 3, 5, hidden=8, blocks=0), (3,)),
    "conv-glow": (partial(ConvNet, 3, 5, hidden=8), (3, 4, 6)),
    "conv-residual": (partial(ConvNet, 3, 5, hidden=8, blocks=2), (3, 4, 6)),
    "conv-reflect": (partial(ConvNet, 3, 5, hidden=8, blocks=1, padding="reflect"), (3, 2, 3)),
}
every_network = pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)


def perturbed(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@every_network
def test_network_output_starts_at_zero(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    outputs = make()(torch.randn(4, *shape))
    assert outputs.shape == (4, 5, *shape[1:]) and (outputs == 0).all()


@every_network
@pytest.mark.parametrize("context", [0, 2])
def test_network_gives_all_parameters_a_gradient(
    make: Callable[..., nn.Module], shape: tuple[int, ...], context: int
) -> None:
    network = perturbed(make(context_features=context))
    network(torch.randn(4, *shape), torch.randn(4, context) if context else None).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@every_network
def test_network_treats_rows_independently(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    network = perturbed(make(context_features=2)).double()
    inputs, context = torch.randn(4, *shape, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    outputs = network(inputs, context)
    for row in range(4):
        torch.testing.assert_close(network(inputs[row : row + 1], context[row : row + 1])[0], outputs[row])


@every_network
def test_network_context_counts_and_is_required(make: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    network = perturbed(make(context_features=2))
    inputs = torch.randn(4, *shape)
    assert (network(inputs, torch.zeros(4, 2)) != network(inputs, torch.ones(4, 2))).any()
    with pytest.raises(ValueError, match="context must be given, because this network was built with a context"):
        network(inputs)


@every_network
def test_network_without_context_features_ignores_a_context(
    make: Callable[..., nn.Module], shape: tuple[int, ...]
) -> None:
    network = perturbed(make())
    inputs = torch.randn(4, *shape)
    assert torch.equal(network(inputs, torch.randn(4, 7)), network(inputs))


@pytest.mark.parametrize("size", [(14, 14), (4, 6), (5, 3)])
def test_global_network_sees_the_whole_image(size: tuple[int, int]) -> None:
    network = GlobalConvNet(3, 2, size, channels=16, hidden=32).double()
    images = torch.rand(4, 3, *size, dtype=torch.float64).requires_grad_()
    assert network(images).shape == (4, 2, *size) and (network(images) == 0).all()
    outputs = perturbed(network)(images)
    torch.testing.assert_close(network(images[1:2])[0], outputs[1])
    corner = (torch.autograd.grad(outputs[:, 0, -1, -1].sum(), images)[0] != 0).any(dim=0).any(dim=0)
    assert corner[0, 0] and corner[0, -1] and corner[-1, 0] and corner.double().mean() > 0.5


def test_network_calls_the_hooks_of_its_layers() -> None:
    for network, x in ((MLP(3, 4, 8, 1), torch.zeros(2, 3)), (ConvNet(3, 4, 8), torch.zeros(2, 3, 5, 5))):
        calls: list[int] = []
        network.enter.register_forward_hook(lambda *seen, calls=calls: calls.append(1))
        network(x)
        assert calls == [1]
