"""Embeddings of images: by a network of torchvision, or from a file."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from torch import nn

import scnf as package
from scnf.data import backbone
from scnf.data.backbone import Backbone, load_embeddings
from scnf.data.inputs import Inputs
from scnf.errors import InvalidArgument
from scnf.runs import Run

NETWORK = "shufflenet_v2_x0_5"
FILE = "shufflenetv2_x0.5-f707e7126e.pth"
SMALL = f"--data.features {NETWORK} --steps 0 --passes 1 --epochs 1 --propagations 0"


@pytest.fixture
def network(tmp_path: Path, image_cache: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Write weights of a network to where torchvision looks for them, and return the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    backbone._load.cache_clear()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(NETWORK, weights=None).eval()
    weights = tmp_path / "torch" / "hub" / "checkpoints" / FILE
    weights.parent.mkdir(parents=True)
    torch.save(model.state_dict(), weights)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    """Return photos."""
    return torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_embeddings_are_what_the_last_layer_takes(network: nn.Module, images: torch.Tensor) -> None:
    embeddings = Backbone.of(NETWORK, (3, 20, 30)).embed(images)
    inputs = torchvision.models.get_model_weights(NETWORK).DEFAULT.transforms()(images)
    with torch.no_grad():
        logits = network(inputs)
    torch.testing.assert_close(network.fc(embeddings), logits, rtol=1e-4, atol=1e-4)
    assert embeddings.shape == (3, 1024) and embeddings.std(0).max() > 0


def test_embeddings_are_computed_once(network: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    model = Backbone.of(NETWORK, (3, 20, 30))
    embeddings = model.embed_once(images)
    _place(tmp_path).unlink()
    backbone._load.cache_clear()
    assert torch.equal(model.embed_once(images), embeddings)
    (kept,) = (tmp_path / "cache" / "embeddings").iterdir()
    kept.write_bytes(kept.read_bytes()[:-7])  # a damaged file does not count
    torch.save(network.state_dict(), _place(tmp_path))
    assert torch.equal(model.embed_once(images), embeddings)
    assert torch.equal(load_embeddings(kept, 3), embeddings)


def test_weights_are_not_unpickled(network: nn.Module, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    _place(tmp_path).write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(InvalidArgument, match=rf"embeddings needs the trained weights of {NETWORK}, .* remove it"):
        Backbone.of(NETWORK, (3, 20, 30))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}], ids=["list", "tensor", "empty"])
def test_weights_that_are_none_are_refused(network: nn.Module, tmp_path: Path, content: Any) -> None:
    torch.save(content, _place(tmp_path))
    with pytest.raises(InvalidArgument, match="is damaged or holds something else: remove it"):
        Backbone.of(NETWORK, (3, 20, 30))


def test_other_weights_of_the_same_network_are_told_apart(
    network: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    model = Backbone.of(NETWORK, (3, 20, 30))
    before = model.embed_once(images)
    state = network.state_dict() | {"conv5.1.bias": network.state_dict()["conv5.1.bias"] + 1}
    torch.save(state, _place(tmp_path))
    backbone._load.cache_clear()
    with pytest.raises(InvalidArgument, match="that the model was trained with, and this machine has others"):
        model.embed(images)
    other = Backbone.of(NETWORK, (3, 20, 30))
    assert other != model and not torch.equal(other.embed_once(images), before)
    torch.save(state | {"conv5.1.bias": torch.full_like(state["conv5.1.bias"], torch.nan)}, _place(tmp_path))
    backbone._load.cache_clear()
    with pytest.raises(InvalidArgument, match="must be finite"):
        Backbone.of(NETWORK, (3, 20, 30)).embed_once(images)


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet19", "not 'resnet19'; did you mean resnet18"), ("fasterrcnn_resnet50_fpn", "classification network")],
)
def test_backbone_of_another_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Backbone.of(name, (3, 8, 8))


def test_inputs_with_a_backbone_survive_json() -> None:
    inputs = Inputs((1024,), None, ("cat", "dog"), backbone=Backbone(NETWORK, "IMAGENET1K_V1", (3, 20, 30), "f707"))
    assert Inputs.from_json(json.loads(json.dumps(inputs.to_json()))) == inputs
    for damage in ({"network": 3}, {"shape": [3]}, {"weights": None}):
        values = inputs.to_json()
        values["backbone"] |= damage
        with pytest.raises(InvalidArgument, match="network, weights and shape"):
            Inputs.from_json(values)


def test_train_and_predict_commands_embed_images(
    network: nn.Module, scnf: Callable[..., Any], photos: Path, last_run: Callable[[], Run], tmp_path: Path
) -> None:
    outcome = scnf("train photos", SMALL)
    assert outcome.code == 0, outcome.err
    assert f"1,024 numbers from {NETWORK} stand for each image" in outcome.out
    assert last_run().read_json("inputs.json")["backbone"]["network"] == NETWORK
    assert "images/s" not in outcome.out
    files = sorted((photos / "unlabelled").iterdir())
    model = package.load("last", tmp_path / "logs")
    assert model.inputs.backbone is not None
    embeddings = model.inputs.rows(files)
    posterior = model.predict_proba(files)
    np.testing.assert_allclose(posterior, model.predict_proba(embeddings), atol=1e-6)
    np.testing.assert_allclose(posterior[:1], model.predict_proba(files[0]), atol=1e-4)
    assert scnf("predict last photos/unlabelled --out p.csv").code == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + len(files)
    outcome = scnf("suggest last photos --num 2 --labels more.csv")
    assert outcome.code == 0 and (tmp_path / "suggestions.png").is_file()
    outcome = scnf("train --resume last --epochs 2")
    assert outcome.code == 0, outcome.err
    with pytest.raises(InvalidArgument, match=r"must be points \[N, 1024\] or images"):
        model.predict(np.zeros((40, 512)))
    outcome = scnf("train photos --pretrained 1 --data.size 16 --epochs 0")
    assert outcome.code == 2 and "keep data.features and data.size as they were" in outcome.err
    state = network.state_dict()
    torch.save(state | {"conv5.1.bias": state["conv5.1.bias"] + 1}, _place(tmp_path))
    backbone._load.cache_clear()
    commands = (
        "predict 1 photos",
        "suggest 1 photos --labels a.csv",
        "calibrate 1 --labels photos",
        "evaluate 1 photos",
    )
    for command in commands:
        outcome = scnf(command)
        assert outcome.code == 2 and "that the model was trained with, and this machine has others" in outcome.err


def test_train_command_takes_embeddings_of_a_file(scnf: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(54, 6))
    np.save(tmp_path / "embeddings.npy", x)
    words = SMALL.replace(NETWORK, "embeddings.npy")
    outcome = scnf("train photos", words)
    assert outcome.code == 0, outcome.err
    assert "6 numbers from embeddings.npy stand for each image" in outcome.out
    outcome = scnf("predict last photos")
    assert outcome.code == 2 and "the model takes vectors of 6 numbers, not images" in outcome.err
    assert package.load("last", tmp_path / "logs").predict_proba(x).shape == (54, 2)
    np.save(tmp_path / "embeddings.npy", 2 * x)
    for command in ("evaluate last", "train --resume last --epochs 2"):
        outcome = scnf(command)
        assert outcome.code == 2 and "embeddings.npy has changed: restore the file" in outcome.err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((53, 6)), "must have a row for each of the 54 images"),
        (np.zeros((54, 6, 1)), "needs one array [N, D]"),
        (np.full((54, 6), np.nan), "holds NaN"),
        (np.full((54, 6), "a"), "needs vectors of numbers"),
        (None, "does not exist"),
    ],
)
def test_train_command_refuses_other_embeddings(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path, array: Any, message: str
) -> None:
    if array is not None:
        np.save(tmp_path / "embeddings.npy", array)
    outcome = scnf("train photos --data.features embeddings.npy")
    assert outcome.code == 2 and "data.features" in outcome.err and message in outcome.err
    assert not (tmp_path / "logs").exists()


def _place(tmp_path: Path) -> Path:
    path = tmp_path / "torch" / "hub" / "checkpoints" / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
