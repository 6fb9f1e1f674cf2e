"""Weights and checkpoints as safetensors: tensors and a JSON header, nothing that could run code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scnf.errors import UserError
from scnf.files import require_file, write_bytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and metadata that JSON knows, to one safetensors file, atomically.

    Raises:
        UserError: the file cannot be written; what was there before is unchanged.
    """
    from safetensors.torch import save

    header = {"scnf": json.dumps(dict(metadata or {}))}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(plain, metadata=header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file: its tensors, on the CPU, and the metadata of :func:`save_tensors`.

    Where a file with its name and .sha256 lies beside it, as with the shipped weights, it must be of that check sum.

    Raises:
        UserError: the file is missing, damaged, or no safetensors file; it is never unpickled.
    """
    from safetensors import SafetensorError, safe_open

    try:
        require_file(path)
        with open(path, "rb") as handle:
            start = handle.read(4)
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise UserError(
                f"{path} is a pickled file, which could run code and is never loaded: give safetensors weights"
            )
        listed = path.with_name(f"{path.name}.sha256")
        if listed.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() not in listed.read_text(encoding="utf-8"):
            raise UserError(f"{path} is damaged, or not what {listed.name} is of: get both again")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = json.loads((file.metadata() or {}).get("scnf", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"cannot read weights from {path}: {error}. The file is missing, damaged or no safetensors file"
        ) from error
    return tensors, metadata


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load `tensors` into `model`, all or nothing.

    Raises:
        UserError: names or shapes do not match: the weights belong to another recipe or other arguments.
    """
    expected = model.state_dict()
    problems = []
    for name, value in expected.items():
        if name not in tensors:
            problems.append(f"{name} {list(value.shape)} is missing")
        elif tensors[name].shape != value.shape:
            problems.append(f"{name} is {list(tensors[name].shape)} in the file and {list(value.shape)} in the model")
    problems += [f"{name} is not in the model" for name in tensors if name not in expected]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        logit = any(name.endswith(".log_slope") and name not in tensors for name in expected)
        hint = "; flows from before model.pixels was a setting need --model.pixels logit" if logit else ""
        raise UserError(
            f"the weights in {source} do not fit this model: {'; '.join(problems[:3])}{more}. Use the recipe and the "
            "model settings that they were trained with" + hint
        )
    model.load_state_dict(dict(tensors))


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; its settings come from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo :func:`flatten_optimizer`."""
    tree = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    tree["state"] = state
    optimizer.load_state_dict(tree)
    for parameter, entry in optimizer.state.items():  # fused steps go through memory: all must be laid out alike
        for key, value in entry.items():
            if value.shape == parameter.shape:
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with `prefix.` in front."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
