"""The weights that ship: what lies there is what the cards say, and gives the figures that they say."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from scnf.data.sources import load
from scnf.models.base import JointModel
from scnf.recipes import build
from scnf.settings import Settings, load_settings
from scnf.shipped import find_config
from scnf.training.checkpoint import load_tensors, load_weights
from scnf.training.metrics import evaluate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ship

SHIPPED = Path(__file__).parents[1] / "pretrained"
FOLDERS = sorted(path.name for path in SHIPPED.iterdir())


def told(name: str) -> Any:
    """What card.json says."""
    return json.loads((SHIPPED / name / "card.json").read_text())


def shipped(name: str) -> tuple[JointModel, Settings]:
    """The model with its weights, and its settings."""
    settings, weights = (
        load_settings(SHIPPED / name / "config.yaml", [], from_run=True),
        SHIPPED / name / "model.safetensors",
    )
    shape, levels = {"mnist": ((1, 28, 28), 256), "digits": ((1, 8, 8), 17)}[settings.data.name]
    model = build(settings.model, shape, 10, levels=levels)
    load_weights(model, load_tensors(weights)[0], weights)
    return model, settings


@pytest.mark.parametrize("name", ["config.yaml", "mnist_adapt.yaml", "digits.yaml", "mnist_likelihood.yaml"])
def test_main_configurations_have_shipped_weights(name: str) -> None:
    assert load_settings(find_config(name)).model.name in FOLDERS


@pytest.mark.parametrize("name", FOLDERS)
def test_model_card_describes_the_weights_beside_it(name: str) -> None:
    folder = SHIPPED / name
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (folder / "model.safetensors.sha256").read_text() == f"{sha256}  model.safetensors\n"
    card = (folder / "README.md").read_text()
    assert f"sha256 `{sha256}`" in card and card.startswith(f"# {name} on ")
    model, settings = shipped(name)
    assert settings.model.name == name and settings.data.root == "data" and settings.pretrained is None
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count:,} parameters" in card
    assert (folder / "model.safetensors").stat().st_size < 8_000_000


@pytest.mark.parametrize("name", FOLDERS)
def test_model_card_is_what_ship_renders(name: str) -> None:
    assert (SHIPPED / name / "README.md").read_text() == ship.render(SHIPPED / name)


def test_weights_of_digits_give_the_figures_of_their_card(tmp_path: Path) -> None:
    assert ship.differences(told("scnf-digits"), ship.measure(SHIPPED / "scnf-digits", tmp_path)) == []


def test_ship_differences_name_changed_figures() -> None:
    found = told("scnf-digits")
    found["figures"]["test"] |= {"accuracy": 0.98, "bits_per_dim": float("nan")}
    del found["figures"]["validation"]["ece"]
    lines = ship.differences(told("scnf-digits"), found)
    assert [line.split(":")[0] for line in lines] == ["validation ece", "test accuracy", "test bits_per_dim"]


@pytest.mark.parametrize("name", ["scnf-fast", "scnf-hybrid"])
def test_weights_of_mnist_give_the_figures_of_their_card(name: str) -> None:
    """One draw of the noise on the test split, some ten seconds; `ship.py --check` compares all that a card says."""
    roots = [*map(Path, filter(None, [os.environ.get("SCNF_DATA_ROOT")])), SHIPPED.parent / "data"]
    root = next((root for root in roots if (root / "MNIST/raw").is_dir()), None)
    if root is None:
        pytest.skip("no MNIST files; set SCNF_DATA_ROOT")
    dataset, (model, settings) = load("mnist", str(root)), shipped(name)
    figures = evaluate(model, dataset.test_x, dataset.test_y, dataset.levels, settings.train.eval_batch_size)
    expected = told(name)["figures"]["test"]
    # One draw of 10,000 rows: the mean of log p(x) is known to 0.05 nats, the accuracy to its deviation over draws.
    assert figures["bits_per_dim"] == pytest.approx(expected["bits_per_dim"], abs=5e-4)
    deviation = expected["one_draw_accuracy_std"]
    assert figures["accuracy"] == pytest.approx(expected["one_draw_accuracy"], abs=5 * deviation)
    assert expected["accuracy"] >= expected["one_draw_accuracy"]
