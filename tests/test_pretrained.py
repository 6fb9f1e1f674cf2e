"""The weights that ship: what lies there is what the cards say, and gives the figures that they say."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scnf import config
from scnf.models.architectures import build
from scnf.training.checkpoint import load_tensors, load_weights

SHIPPED = Path(__file__).parents[1] / "pretrained"
FOLDERS = sorted(path.name for path in SHIPPED.iterdir())


@pytest.mark.parametrize("name", ["config.yaml", "mnist_adapt.yaml", "digits.yaml", "mnist_likelihood.yaml"])
def test_weights_ship_for(name: str) -> None:
    assert config.load(config.find_config(name)).model.recipe in FOLDERS


@pytest.mark.parametrize("name", FOLDERS)
def test_the_card_speaks_of_these_weights(name: str) -> None:
    folder = SHIPPED / name
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (folder / "model.safetensors.sha256").read_text() == f"{sha256}  model.safetensors\n"
    card = (folder / "README.md").read_text()
    assert f"sha256 `{sha256}`" in card and card.startswith(f"# {name} on ")
    settings = config.load(folder / "config.yaml", [])
    assert settings.model.recipe == name and settings.data.root == "data" and settings.pretrained is None
    shape, levels = {"mnist": ((1, 28, 28), 256), "digits": ((1, 8, 8), 17)}[settings.data.name]
    model = build(name, shape, 10, levels=levels, **settings.model.arguments())
    load_weights(model, load_tensors(folder / "model.safetensors")[0], folder / "model.safetensors")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count:,} parameters" in card
    assert (folder / "model.safetensors").stat().st_size < 8_000_000


def test_weights_of_digits_give_the_figures_of_their_card(scnf: Callable[..., Any]) -> None:
    card = (SHIPPED / "scnf-digits" / "README.md").read_text()
    outcome = scnf("evaluate", SHIPPED / "scnf-digits")
    assert outcome.code == 0
    for split in ("validation", "test"):
        told = re.search(rf"^\| {split} \| accuracy ([\d.]+) %, ([\d.]+) bits/dim", card, re.MULTILINE)
        found = re.search(rf"^{split} +accuracy ([\d.]+) %, ([\d.]+) bits/dim", outcome.out, re.MULTILINE)
        assert told and found
        for stated, measured, tolerance in zip(told.groups(), found.groups(), (0.45, 0.002), strict=True):
            assert abs(float(stated) - float(measured)) <= tolerance
