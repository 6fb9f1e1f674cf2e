"""Save and load weights as safetensors, which hold tensors and a JSON header but no code."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scnf.errors import UserError
from scnf.files import require_file, sha256_of, write_bytes

_DIGEST = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors, JSON metadata and a checksum of both to one safetensors file, atomically.

    Raises:
        UserError: The file cannot be written. An existing file stays unchanged.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = json.loads(json.dumps(dict(metadata or {})))
    # a single entry, because safetensors does not preserve the order of several
    header = {"scnf": json.dumps({**about, _DIGEST: _checksum(plain, about)})}
    write_bytes(path, save(plain, metadata=header))


def load_tensors(path: Path, require_checksum: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a safetensors file, on the CPU, and the metadata of :func:`save_tensors`.

    Two checksums are verified where they exist: the one that :func:`save_tensors` wrote into the file, and the one in a
    file of the same name with the suffix .sha256, as beside shipped weights.

    Args:
        path: Path of the file.
        require_checksum: Whether the file must contain a checksum.

    Raises:
        UserError: The file is missing, damaged, or no safetensors file. It is never unpickled.
    """
    from safetensors import SafetensorError, safe_open

    try:
        require_file(path)
        with open(path, "rb") as handle:
            start = handle.read(9)
        # the first eight bytes of a safetensors file are the length of its header, which may be any of these
        is_pickle = start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if is_pickle and start[8:] != b"{":
            raise UserError(
                f"{path} is a pickled file, which could run code and is never loaded: give safetensors weights"
            )
        sidecar = path.with_name(f"{path.name}.sha256")
        sha256 = sha256_of(path) if sidecar.is_file() else ""
        if sidecar.is_file() and sha256 not in sidecar.read_text(encoding="utf-8"):
            raise UserError(f"{path} is damaged, or does not belong to {sidecar.name}: get both files again")
        with safe_open(path, framework="pt") as file:
            # copied, because the tensors map the file, whose bytes may change after the check
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = json.loads((file.metadata() or {}).get("scnf", "{}"))
        if not isinstance(metadata, dict):
            raise ValueError("its header is no mapping")
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read weights from {path}: {error}. The file is missing, damaged or no safetensors file"
        ) from error
    digest = metadata.pop(_DIGEST, None)
    if digest is None and require_checksum:
        raise UserError(
            f"{path} has no checksum: an earlier version wrote it, or somebody changed it, and training cannot resume "
            "from it. Start a new run from weights with --pretrained RUN"
        )
    if digest is not None and digest != _checksum(tensors, metadata):
        raise UserError(f"{path} is damaged, or was changed after it was written: restore the file, or take another")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return the SHA-256 of metadata and of the names, types, shapes and bytes of tensors on the CPU."""
    sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def mismatches(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Describe how `tensors` differ from the expected tensors in names, shapes and types."""
    problems = []
    for name, value in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"{name} {list(value.shape)} is missing")
        elif tensor.shape != value.shape:
            problems.append(f"{name} is {list(tensor.shape)} in the file and {list(value.shape)} in the model")
        elif tensor.dtype != value.dtype:
            types = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, value.dtype))
            problems.append("{} is {} in the file and {} in the model".format(name, *types))
    return problems + [f"{name} is not in the model" for name in tensors if name not in expected]


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that contain NaN or infinity."""
    return [name for name, value in tensors.items() if not bool(value.isfinite().all())]


def join_problems(problems: Sequence[str]) -> str:
    """Join the first three problems, and add the number of the remaining ones."""
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load `tensors` into `model`, either all of them or none.

    Raises:
        UserError: Names, shapes or types do not match, because the weights belong to another recipe or other arguments,
            or were converted. Or the weights contain NaN or infinity.
    """
    expected = model.state_dict()
    if problems := mismatches(expected, tensors):
        logit = any(name.endswith(".log_slope") and name not in tensors for name in expected)
        hint = "; flows that are older than the setting model.pixels need --model.pixels logit" if logit else ""
        raise UserError(
            f"the weights in {source} do not fit this model: {join_problems(problems)}. Use the recipe and the "
            "model settings with which they were trained" + hint
        )
    if names := non_finite(tensors):
        problems = [f"{name} holds NaN or infinity" for name in names]
        raise UserError(
            f"the weights in {source} are not finite: {join_problems(problems)}. The "
            "training that wrote them diverged, or the file was changed: use other weights"
        )
    model.load_state_dict(dict(tensors))


def load_file(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load the weights of a file into `model` by :func:`load_weights`, and return the metadata of the file."""
    tensors, about = load_tensors(path)
    load_weights(model, tensors, path)
    return about


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors, without the settings that the configuration holds."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def full_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a state of :func:`flatten_optimizer` in which every parameter has had a gradient, computed on a copy."""
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    trial.step()
    return flatten_optimizer(trial)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of :func:`flatten_optimizer` into an optimizer."""
    tree = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    tree["state"] = state
    optimizer.load_state_dict(tree)
    for parameter, entry in optimizer.state.items():  # fused steps need one memory layout for parameter and state
        for key, value in entry.items():
            if value.shape == parameter.shape:
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with `prefix.` in front of every name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix.`, under the names without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
