"""Configurations and weights that come with scnf, in a clone and in an installed package."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import REPOSITORY
from scnf import shipped
from scnf.settings import load_settings


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds its configurations and weights, as a wheel installs it; elsewhere/ is the current one."""
    package = tmp_path / "site-packages" / "scnf"
    for kind in ("configs", "pretrained"):
        shutil.copytree(REPOSITORY / kind, package / kind, ignore=shutil.ignore_patterns("*hybrid*"))
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return package


def test_folder_of_a_clone_lies_beside_the_package() -> None:
    assert shipped.folder("configs") == REPOSITORY / "configs"
    assert shipped.folder("pretrained") == REPOSITORY / "pretrained"


def test_folder_of_an_installed_package_lies_inside(installed: Path) -> None:
    assert shipped.find_config("digits.yaml") == installed / "configs" / "digits.yaml"
    assert shipped.find_weights("scnf-digits") == installed / "pretrained" / "scnf-digits"
    assert shipped.find_weights("scnf-hybrid") is None


def test_weights_in_the_current_directory_come_first(installed: Path) -> None:
    own = Path("pretrained") / "scnf-digits"
    own.mkdir(parents=True)
    assert shipped.find_weights("scnf-digits") == installed / "pretrained" / "scnf-digits"  # it holds no weights
    (own / "model.safetensors").touch()
    assert shipped.find_weights("scnf-digits") == own


@pytest.mark.parametrize("name", ["", ".", "nothing", "../pretrained/scnf-digits", "/scnf-digits", "logs/scnf-digits"])
def test_find_weights_knows_bare_names_and_pretrained_alone(installed: Path, name: str) -> None:
    assert shipped.find_weights(name) is None


@pytest.mark.parametrize("ref", ["scnf-digits", "pretrained/scnf-digits"])
def test_evaluate_finds_shipped_weights_from_any_directory(scnf: Callable[..., Any], ref: str) -> None:
    outcome = scnf("evaluate", ref, "--split validation --threads 1")
    assert outcome.code == 0 and outcome.out.startswith("validation  accuracy"), outcome.err


def test_train_starts_from_shipped_weights_by_name(scnf: Callable[..., Any]) -> None:
    outcome = scnf("train --config digits.yaml --epochs 0 --threads 1 --pretrained scnf-digits")
    assert outcome.code == 0, outcome.err
    recorded = load_settings(next(Path("logs").iterdir()) / "config.yaml").pretrained
    path = REPOSITORY / "pretrained" / "scnf-digits" / "model.safetensors"
    assert recorded is not None and recorded.partition("#sha256=")[0] == str(path)


def test_directory_without_weights_is_not_replaced_by_shipped_weights(scnf: Callable[..., Any]) -> None:
    Path("scnf-digits").mkdir()
    outcome = scnf("evaluate scnf-digits")
    assert outcome.code == 2 and "scnf-digits holds no weights" in outcome.err
