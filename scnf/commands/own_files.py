"""Find the settings of a training for files of one's own."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from scnf import streams
from scnf.commands import options
from scnf.data.sources import Dataset
from scnf.errors import UserError
from scnf.experiment import INPUTS, read_inputs
from scnf.fitting.automatic import choose, for_recipe, with_effect
from scnf.settings import Settings, load_settings, without_arguments
from scnf.settings.schema import values_of
from scnf.settings.text import in_yaml
from scnf.settings_data import load_data
from scnf.weights import Weights, find_weights


def kind_of(path: Path) -> str:
    """Return the name of the dataset for files of one's own, "folder" or "npz".

    Raises:
        UserError: There is no such path.
    """
    if not path.exists():
        raise UserError(
            f"there is no folder or file {path}: `scnf train FOLDER` trains on your own images, and "
            "`scnf train --config NAME` on the data of a configuration"
        )
    return "npz" if path.suffix.lower() == ".npz" else "folder"


def own_data(files: str) -> list[str]:
    """Return the settings that name files of one's own."""
    path = options.path(files)
    return ["--data.name", kind_of(path), "--data.root", os.path.abspath(path)]


def with_full_names(overrides: Sequence[str]) -> list[str]:
    """Return the command-line words with `--data.labels` for `--labels`, which some recipes have as an argument.

    Example:
        >>> with_full_names(["--labels=a.csv", "--epochs", "3"])
        ['--data.labels=a.csv', '--epochs', '3']
    """
    return [re.sub("^--labels(?==|$)", "--data.labels", word) for word in overrides]


def settings_of(files: str, overrides: Sequence[str]) -> tuple[Settings, Dataset]:
    """Choose the settings for files of one's own, which overrides may change, and load the data.

    With `pretrained`, the model, the objective, the classes and the shape of the images are those of the weights.
    """
    own, overrides = own_data(files), with_full_names(overrides)
    streams.make_output_optional()

    def but_model(values: Mapping[str, str]) -> Settings:
        others = {name: value for name, value in values.items() if not name.startswith("model.")}
        return load_settings(None, [*own, *_words(others), *without_arguments(overrides)])

    named = but_model({})
    weights = _weights_of(named)
    fixed = {} if weights is None else _settings_of_weights(weights, named.data.name)
    dataset = _load(but_model(fixed), weights)
    chosen = choose(dataset)
    chosen = with_effect(chosen, but_model(chosen | fixed))
    if weights is not None:
        chosen = {name: value for name, value in chosen.items() if name.startswith(("data.num_", "train."))}
    else:
        chosen = for_recipe(chosen, _recipe_of(chosen, own, overrides))
    settings = load_settings(None, [*own, *_words(chosen | fixed), *overrides])
    kept, before = values_of(settings), values_of(load_settings(None, [*own, *_words(chosen | fixed)]))
    shown = [f"{name} {value}" for name, value in chosen.items() if name in kept and kept[name] == before.get(name)]
    print("chosen for these data: " + ", ".join(shown), flush=True)
    if weights is not None:
        print(f"model, objective and classes are those of {weights.path}", flush=True)
    return settings, dataset


def _recipe_of(chosen: Mapping[str, str], own: Sequence[str], overrides: Sequence[str]) -> str:
    """Return the name of the recipe, which is the chosen one unless an override names another."""
    words = [*own, "--model.recipe", chosen["model.recipe"], *without_arguments(overrides)]
    return load_settings(None, words).model.name


def _weights_of(settings: Settings) -> Weights | None:
    """Return the weights from which a training starts, with the settings and inputs beside them; None without any."""
    if settings.pretrained is None:
        return None
    weights = find_weights(settings.pretrained, Path(settings.runs.root), settings.model.name)
    return weights if all((weights.directory / name).is_file() for name in ("config.yaml", INPUTS)) else None


def _settings_of_weights(weights: Weights, data: str) -> dict[str, str]:
    """Return settings of weights by name, as text, which a training on other labels of folder or npz `data` keeps."""
    settings, inputs = weights.settings(), read_inputs(weights)
    values = {name: value for name, value in values_of(settings).items() if name.startswith(("model.", "objective."))}
    values |= {"data.classes": inputs.class_names, "data.augment": settings.data.augment}
    values |= {"data.augmentation": settings.data.augmentation}
    if settings.data.features is not None:
        values |= {"data.features": settings.data.features}
    if data == "folder" and (shape := inputs.image_shape) is not None:
        values |= {"data.size": shape[1:], "data.channels": shape[0]}
        values |= {"data.background": inputs.background}
    return {name: in_yaml(value) for name, value in values.items()}


def _load(settings: Settings, weights: Weights | None) -> Dataset:
    """Load the data, and explain where weights do not know a class of the data (UserError)."""
    try:
        return load_data(settings.data)
    except UserError as error:
        if weights is None or getattr(error.__cause__, "argument", "") != "classes":
            raise
        raise UserError(
            f"{error}. The classes are those of {weights.path}: correct the label, or train without --pretrained"
        ) from error


def _words(values: Mapping[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]
