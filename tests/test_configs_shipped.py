"""The configurations in configs/: each one loads, and its model fits its data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scnf.batch import Batch
from scnf.distributions import make_prior
from scnf.recipes import RECIPES, M1M2Recipe, build
from scnf.settings import load_settings, to_yaml

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
SHAPES = {  # shape of an input, number of classes, training rows
    "mnist": ((1, 28, 28), 10, 60_000),
    "fashion": ((1, 28, 28), 10, 60_000),
    "svhn": ((3, 32, 32), 10, 73_257),
    "cifar10": ((3, 32, 32), 10, 50_000),
    "digits": ((1, 8, 8), 10, 1_347),
    "moons": ((2,), 2, 10_000),
    "circles": ((2,), 2, 10_000),
}


def test_shapes_table_lists_every_dataset() -> None:
    from scnf.data.sources import DATASETS

    assert set(SHAPES) == set(DATASETS)


def test_main_configurations_exist() -> None:
    assert {"config.yaml", "digits.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_loads_and_builds_its_model(path: Path) -> None:
    settings = load_settings(path)
    recipe = settings.model
    assert recipe.name in RECIPES and settings.device == "auto"
    assert settings.pretrained == ("shipped" if settings.train.adapt else None)
    shape, classes, rows = SHAPES[settings.data.name]
    visible = torch.arange(100 * classes) % classes
    prior = make_prior(settings.model.prior, classes, visible)
    if isinstance(recipe, M1M2Recipe):
        recipe = replace(recipe, m1=build("m1", shape, classes))
    levels = 256 if len(shape) == 3 else None
    model = build(recipe, shape, classes, prior, levels)
    x = torch.rand(2, *shape)
    with torch.no_grad():
        output = model.eval()(Batch(x, torch.tensor([0, -1])))
    assert output.class_log_probs.shape == (2, classes) and output.log_likelihood.isfinite().all()

    data, train = settings.data, settings.train
    labels = data.num_labels if data.labels_per_class is None else data.labels_per_class * classes
    assert 1 <= data.num_validation < rows and classes <= labels <= rows - data.num_validation
    assert not data.balanced or labels % classes == 0
    assert data.labelled_share == 0 or round(train.batch_size * data.labelled_share) >= 1
    assert len(shape) == 3 or data.augment == settings.objective.consistency_weight == 0
    assert train.max_steps is None and train.epochs >= 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_has_no_duplicate_key_and_survives_a_yaml_round_trip(path: Path, tmp_path: Path) -> None:
    settings = load_settings(path)
    (tmp_path / "again.yaml").write_text(to_yaml(settings), encoding="utf-8")
    assert load_settings(tmp_path / "again.yaml") == settings
    nodes = [yaml.compose(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys))
            nodes += [value for _, value in node.value]


def test_train_without_a_config_takes_config_yaml(scnf: Any) -> None:
    assert scnf("train", "--print_config").out == scnf("train", "--config", "config.yaml", "--print_config").out
    assert yaml.safe_load(scnf("train", "--print_config").out)["objective"]["neighbours"] == "distortion"
