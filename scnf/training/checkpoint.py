"""Weights as safetensors: tensors and a JSON header, nothing that could run code."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scnf.errors import UserError
from scnf.files import require_file, write_bytes

_DIGEST = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors, metadata that JSON knows, and a check sum of both to one safetensors file, atomically.

    Raises:
        UserError: the file cannot be written; what was there before is unchanged.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = json.loads(json.dumps(dict(metadata or {})))
    header = {"scnf": json.dumps({**about, _DIGEST: _check_sum(plain, about)})}  # one entry: safetensors mixes several
    write_bytes(path, save(plain, metadata=header))


def load_tensors(path: Path, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file: its tensors, on the CPU, and the metadata of :func:`save_tensors`.

    It must have the check sum that :func:`save_tensors` wrote into it, if there is one, and that of the file with its
    name and .sha256 beside it, as with the shipped weights.

    Args:
        path: the file.
        sealed: whether there must be a check sum in it.

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
            # copied, for they are the file's own bytes, which may change after they are checked
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = json.loads((file.metadata() or {}).get("scnf", "{}"))
        if not isinstance(metadata, dict):
            raise ValueError("its header is no mapping")
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read weights from {path}: {error}. The file is missing, damaged or no safetensors file"
        ) from error
    digest = metadata.pop(_DIGEST, None)
    if digest is None and sealed:
        raise UserError(
            f"{path} has no check sum: an earlier version wrote it, or somebody changed it, and training cannot go on "
            "from it. Start a new run, from weights with --pretrained RUN"
        )
    if digest is not None and digest != _check_sum(tensors, metadata):
        raise UserError(f"{path} is damaged, or was changed after it was written: restore the file, or take another")
    return tensors, metadata


def _check_sum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors on the CPU, and of metadata."""
    sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """In words, how `tensors` differ in names, shapes and types from those that are expected of them."""
    problems = []
    for name, value in expected.items():
        given = tensors.get(name)
        if given is None:
            problems.append(f"{name} {list(value.shape)} is missing")
        elif given.shape != value.shape:
            problems.append(f"{name} is {list(given.shape)} in the file and {list(value.shape)} in the model")
        elif given.dtype != value.dtype:
            types = (str(each.dtype).removeprefix("torch.") for each in (given, value))
            problems.append("{} is {} in the file and {} in the model".format(name, *types))
    return problems + [f"{name} is not in the model" for name in tensors if name not in expected]


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold NaN or infinity."""
    return [name for name, value in tensors.items() if not bool(value.isfinite().all())]


def few(problems: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load `tensors` into `model`, all or nothing.

    Raises:
        UserError: names, shapes or types do not match: the weights belong to another recipe or other arguments, or were
            converted; or they hold NaN or infinity.
    """
    expected = model.state_dict()
    if problems := misfits(expected, tensors):
        logit = any(name.endswith(".log_slope") and name not in tensors for name in expected)
        hint = "; flows from before model.pixels was a setting need --model.pixels logit" if logit else ""
        raise UserError(
            f"the weights in {source} do not fit this model: {few(problems)}. Use the recipe and the "
            "model settings that they were trained with" + hint
        )
    if bad := non_finite(tensors):
        raise UserError(
            f"the weights in {source} are no good: {few([f'{name} holds NaN or infinity' for name in bad])}. The "
            "training that wrote them diverged, or the file was changed: take others"
        )
    model.load_state_dict(dict(tensors))


def load_file(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load the weights of a file into `model`, as :func:`load_weights` does; what the file says of them."""
    tensors, about = load_tensors(path)
    load_weights(model, tensors, path)
    return about


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; its settings come from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def full_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What :func:`flatten_optimizer` gives once each parameter has had a gradient; found out on a copy."""
    other = copy.deepcopy(optimizer)
    for group in other.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    other.step()
    return flatten_optimizer(other)


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
