"""Try a model that has parts from outside of the package, before a training starts."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from scnf.batch import Batch
from scnf.errors import InvalidArgument
from scnf.models.base import JointModel
from scnf.transforms import AffineCoupling, Transform


@torch.no_grad()
def probe(model: JointModel, device: torch.device) -> None:
    """Run a copy of a model forward on four random inputs and backward to samples, and check what its layers give.

    A coupling network must keep rows apart. A transform from outside must return outputs and a log-determinant for each
    row, and its inverse must undo it, also with perturbed parameters. Nothing of the model changes, and the probe uses
    up no random number of torch.

    Args:
        model: Model, which knows the shape of its inputs.
        device: Device on which the model computes.

    Raises:
        InvalidArgument: A network or a transform breaks its contract.
    """
    copy = deepcopy(model).train()
    generator = torch.Generator().manual_seed(0)
    for module in copy.modules():
        if isinstance(module, AffineCoupling):
            module.network.register_forward_hook(_check_network)
        if isinstance(module, Transform) and not type(module).__module__.startswith("scnf."):
            module.register_forward_hook(_check_transform)
            for parameter in module.parameters():  # at its start a layer may be the identity
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise.to(parameter.device, parameter.dtype))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        assert copy.shape is not None
        copy(Batch.unlabelled(torch.rand(4, *copy.shape, device=device)))
        if copy.likelihood_of != "labels":
            copy.eval().sample(torch.tensor([0, 1], device=device))


def _check_network(network: nn.Module, arguments: tuple[Any, ...], outputs: Any) -> None:
    if not isinstance(outputs, Tensor) or len(outputs) != len(arguments[0]):
        raise InvalidArgument("network", f"must give a tensor with a row for each input, not {_describe(outputs)}")
    alone = network.forward(*(each[:1] for each in arguments if each is not None))
    if alone.shape[1:] != outputs.shape[1:] or not torch.allclose(alone, outputs[:1], rtol=1e-3, atol=1e-4):
        raise InvalidArgument("network", "must keep rows apart: its output for a row hangs on the other rows")


def _check_transform(layer: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
    assert isinstance(layer, Transform)
    name, inputs = type(layer).__name__, arguments[0]
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(each, Tensor) for each in result)):
        raise InvalidArgument("transform", f"{name} must return (outputs, logabsdet), not {_describe(result)}")
    outputs, logabsdet = result
    if logabsdet.shape != (len(inputs),):
        raise InvalidArgument(
            "transform", f"{name} must give logabsdet of shape {[len(inputs)]}, not {list(logabsdet.shape)}"
        )
    back, back_logabsdet = layer.inverse(*[outputs, *arguments[1:]])
    if back.shape != inputs.shape or not torch.allclose(back, inputs, rtol=1e-2, atol=1e-3):
        raise InvalidArgument("transform", f"{name} must have an inverse that gives its inputs back")
    if not torch.allclose(back_logabsdet, -logabsdet, rtol=1e-2, atol=1e-2):
        raise InvalidArgument("transform", f"{name} must give the negative logabsdet in its inverse")


def _describe(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
