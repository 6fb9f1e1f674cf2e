"""Why a loss is not finite, in words."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scnf.batch import Batch
from scnf.models.base import JointModel


def first_non_finite(model: nn.Module, compute: Callable[[], Any]) -> str:
    """The name of the first layer of `model` whose output is not finite when `compute` runs it again."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if not found and any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in tensors):
                found.append(f"{name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            compute()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the first layer with a non-finite output is {found[0]}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"all outputs are finite, the first parameter with a non-finite gradient is {name}"
    return "no single layer is to blame"


@torch.no_grad()
def without_density(model: JointModel, batch: Batch) -> str:
    """How many rows of a batch have density 0 under `model`, as part of a sentence; nothing where none has."""
    rows = int((model(batch).log_likelihood == -math.inf).sum())
    return f"{rows} of {len(batch.y)} rows have density 0, for a pixel that the model rules out, say; " if rows else ""
