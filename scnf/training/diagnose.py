"""Explain why a loss is not finite."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scnf.batch import Batch
from scnf.models.base import JointModel


def first_non_finite(model: nn.Module, compute: Callable[[], Any]) -> str:
    """Run `compute` again, and describe the first layer or gradient of `model` that is not finite."""
    layers: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if not layers and any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in tensors):
                layers.append(f"{name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            compute()
    finally:
        for handle in handles:
            handle.remove()
    if layers:
        return f"the first layer with a non-finite output is {layers[0]}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"all outputs are finite, and the first parameter with a non-finite gradient is {name}"
    return "no layer has a non-finite output or gradient"


@torch.no_grad()
def zero_density_clause(model: JointModel, batch: Batch) -> str:
    """Return a clause on the number of rows with density 0 under `model`, empty where there are none."""
    rows = int((model(batch).log_likelihood == -math.inf).sum())
    if not rows:
        return ""
    return f"{rows} of {len(batch.y)} rows have density 0, for example because of a pixel that the model rules out; "
