import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from scnf.errors import UserError
from scnf.recipes import build
from scnf.training.checkpoint import (
    flatten_optimizer,
    load_tensors,
    load_weights,
    restore_optimizer,
    save_tensors,
    under_prefix,
    with_prefix,
)
from scnf.training.loop import OPTIMIZERS


def test_tensors_and_metadata_survive_saving_and_loading(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4),
        "double.deep.name": torch.randn(2, dtype=torch.float64),
        "scalar": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "bytes": torch.get_rng_state(),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(3, 4).T,
        "parameter": nn.Parameter(torch.ones(2)),
        "nan": torch.tensor([float("nan"), float("inf")]),
    }
    metadata = {"epoch": 3, "name": "é", "score": -0.5, "none": None}
    save_tensors(tmp_path / "new" / "x.safetensors", tensors, metadata)
    found, again = load_tensors(tmp_path / "new" / "x.safetensors")
    assert again == metadata and set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].nan_to_num(), value.detach().nan_to_num())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_loaded_tensors_stay_when_the_file_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(10_000)})
    found = load_tensors(path)[0]
    path.write_bytes(bytes(path.stat().st_size))  # in place, as cp does
    assert bool((found["a"] == 1).all())


def test_file_without_metadata_loads_with_empty_metadata(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a": torch.ones(1)})
    assert load_tensors(tmp_path / "x")[1] == {}


def test_prefix_selects_its_own_tensors_only() -> None:
    tensors = {"a": torch.ones(1), "b.c": torch.zeros(1)}
    both = with_prefix("x", tensors) | with_prefix("xy", tensors)
    assert set(both) == {"x.a", "x.b.c", "xy.a", "xy.b.c"}
    assert under_prefix("x", both) == tensors


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_survives_saving_and_loading(tmp_path: Path, name: str) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
        return model, OPTIMIZERS[name](model.parameters(), lr=0.05)

    model, optimizer = make()
    for seed in range(3):
        step(model, optimizer, seed)
    save_tensors(
        tmp_path / "x", with_prefix("model", model.state_dict()) | with_prefix("o", flatten_optimizer(optimizer))
    )
    other, restored = make()
    tensors, _ = load_tensors(tmp_path / "x")
    load_weights(other, under_prefix("model", tensors), tmp_path / "x")
    restore_optimizer(restored, under_prefix("o", tensors))
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, restored, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert len(flatten_optimizer(optimizer)) > 0


def test_fused_optimizer_restores_the_state_of_one_that_is_not_fused(tmp_path: Path) -> None:
    def make(fused: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), lr=0.05, fused=fused)

    (model, optimizer), (other, restored) = make(False), make(True)
    for seed in range(3):
        step(model, optimizer, seed)
    save_tensors(tmp_path / "x", flatten_optimizer(optimizer))
    other.load_state_dict(model.state_dict())
    restore_optimizer(restored, load_tensors(tmp_path / "x")[0])
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, restored, seed)
    torch.testing.assert_close(list(other.parameters()), list(model.parameters()))


def test_optimizer_without_steps_has_no_state_to_save(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    assert flatten_optimizer(optimizer) == {}
    restore_optimizer(optimizer, {})


# --- what is refused


class Payload:
    """Runs code when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trace, path = tmp_path / "was-here", tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"weight": Payload(trace)}, protocol))
    with pytest.raises(UserError, match=r"weights\.pt"):
        load_tensors(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # the payload works: it was not run before


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["weights.pt", "model.safetensors"])
def test_torch_files_are_refused_and_not_run(tmp_path: Path, name: str, zipped: bool) -> None:
    trace, path = tmp_path / "was-here", tmp_path / name
    torch.save({"weight": Payload(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="pickled file, which could run code and is never loaded"):
        load_tensors(path)
    assert not trace.exists()


def test_weights_whose_header_has_the_length_of_a_pickle_are_read(tmp_path: Path) -> None:
    lengths = set()
    for letters in range(600, 1500):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"text": letters * "a"})
        with (tmp_path / "a.safetensors").open("rb") as file:
            lengths.add(file.read(2))
        assert load_tensors(tmp_path / "a.safetensors")[0]["x"].tolist() == [1, 1]
    assert {b"\x80\x03", b"\x80\x04", b"\x80\x05"} <= lengths


def test_unreadable_weight_files_are_user_errors(tmp_path: Path) -> None:
    good = tmp_path / "good"
    save_tensors(good, {"a": torch.randn(100), "b": torch.randn(100)})
    data = good.read_bytes()
    (tmp_path / "directory").mkdir()
    cases = {
        "empty": b"",
        "short": data[:4],
        "header": data[:40],
        "truncated": data[:-1],
        "half": data[: len(data) // 2],
        "longer": data + b"\0",
        "length": (2**62).to_bytes(8, "little") + data[8:],
        "json": data[:8] + b"x" * (len(data) - 8),
        "text": b"no weights at all",
        "zeros": bytes(len(data)),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name in (*cases, "directory", "missing"):
        with pytest.raises(UserError, match=f"cannot read weights from .*{name}"):
            load_tensors(tmp_path / name)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_unwritable_weight_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_tensors(tmp_path / "file" / "x", {"a": torch.ones(1)})


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"0.weight": torch.zeros(5, 3)}, ["0.weight is [5, 3] in the file and [4, 3] in the model"]),
        ({"0.weight": None}, ["0.weight [4, 3] is missing"]),
        ({"9.bias": torch.zeros(1)}, ["9.bias is not in the model"]),
        ({"1.bias": torch.zeros(2, 1)}, ["1.bias is [2, 1] in the file and [2] in the model"]),
        (
            {"0.weight": None, "0.bias": None, "1.weight": None, "1.bias": None, "x": torch.zeros(1)},
            ["0.weight [4, 3] is missing; 0.bias [4] is missing; 1.weight [2, 4] is missing (and 2 more)"],
        ),
    ],
)
def test_weights_of_another_model_are_refused_and_change_nothing(changes: dict[str, Any], messages: list[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {name: torch.full_like(value, 9.0) for name, value in before.items()} | changes
    with pytest.raises(UserError) as caught:
        load_weights(model, {name: value for name, value in given.items() if value is not None}, Path("some/file"))
    assert "some/file" in str(caught.value) and all(message in str(caught.value) for message in messages)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda w: w.index_fill(1, torch.tensor(1), float("nan")), "0.weight holds NaN or infinity"),
        (lambda w: w.index_fill(1, torch.tensor(1), float("inf")), "0.weight holds NaN or infinity"),
        (lambda w: w.long(), "0.weight is int64 in the file and float32 in the model"),
        (lambda w: w.bool(), "0.weight is bool in the file"),
        (lambda w: w.double(), "0.weight is float64 in the file"),
        (lambda w: w.half(), "0.weight is float16 in the file"),
        (lambda w: w.bfloat16(), "0.weight is bfloat16 in the file"),
        (lambda w: w.to(torch.float8_e4m3fn), "0.weight is float8_e4m3fn in the file"),
        (lambda w: w.to(torch.complex64), "0.weight is complex64 in the file"),
    ],
)
def test_weights_of_another_dtype_or_not_finite_are_refused(tmp_path: Path, given: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # it has a count, int64, among its buffers
    state, before = model.state_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    save_tensors(tmp_path / "x", {**state, "0.weight": given(state["0.weight"])})
    with pytest.raises(UserError, match=message):
        load_weights(model, load_tensors(tmp_path / "x")[0], tmp_path / "x")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    load_weights(model, before, tmp_path / "x")


def test_changed_weight_file_fails_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_tensors(path, {"a": torch.ones(3), "b": torch.zeros(0, 2)}, {"epoch": 3, "score": float("nan")})
    content = path.read_bytes()
    for change in (
        content.replace(b'epoch\\": 3', b'epoch\\": 4'),
        content[:-1] + b"\0",
        content.replace(b'"a"', b'"c"'),
    ):
        assert change != content
        path.write_bytes(change)
        with pytest.raises(UserError, match="is damaged, or was changed"):
            load_tensors(path)
    path.write_bytes(save({"a": torch.ones(3)}))  # somebody else's
    assert load_tensors(path)[0]["a"].equal(torch.ones(3))
    with pytest.raises(UserError, match="has no checksum"):
        load_tensors(path, require_checksum=True)


@pytest.mark.parametrize("header", ["[]", "3", "{", "[" * 100_000, "null"])
def test_header_that_is_no_mapping_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "x").write_bytes(save({"a": torch.ones(3)}, metadata={"scnf": header}))
    with pytest.raises(UserError, match="cannot read weights from"):
        load_tensors(tmp_path / "x")


def test_weights_of_logit_pixels_are_refused_by_name_of_their_setting(tmp_path: Path) -> None:
    before, now = (build("scnf-digits", (1, 8, 8), 10, levels=17, pixels=pixels) for pixels in ("logit", "levels"))
    with pytest.raises(UserError, match=r"log_slope .* is missing.*--model.pixels logit"):
        load_weights(now, before.state_dict(), tmp_path)
