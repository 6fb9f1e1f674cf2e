"""Turn the state of an estimator into arrays and JSON, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scnf.data.inputs import Inputs
from scnf.errors import InvalidArgument, UserError
from scnf.experiment import empty_model
from scnf.recipes import recipe_of
from scnf.trained import TrainedModel
from scnf.training.checkpoint import load_tensors, save_tensors

_KIND = "scnf.SemiSupervisedClassifier"
_WEIGHTS = "weights."
_PARAMETERS = (
    *("recipe", "steps", "lr", "classifier_weight", "settings", "random_state", "warm_start", "device", "verbose"),
)


def pack(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of an estimator with its model as a mapping of arrays and plain values."""
    if "model_" in state:
        model, recipe = state["model_"], state.pop("_recipe")
        state["model_"] = {
            "recipe": recipe.name,
            "arguments": recipe.arguments(),
            "inputs": model.inputs.to_json(),
            "weights": {name: value.cpu().numpy().copy() for name, value in model.model.state_dict().items()},
        }
    return state


def unpack(state: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of an estimator from the result of :func:`pack`."""
    packed = state.get("model_")
    if packed is None:
        return state
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in packed["arguments"].items()}
    recipe, inputs = recipe_of(packed["recipe"]).from_arguments(**arguments), Inputs.from_json(packed["inputs"])
    model = empty_model(recipe, inputs)
    if inputs.levels is None:
        model.double()
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in packed["weights"].items()})
    return {**state, "model_": TrainedModel(model, inputs), "_recipe": recipe}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write the result of :func:`pack` to a safetensors file (UserError)."""
    packed = dict(state["model_"])
    tensors = {f"{_WEIGHTS}{name}": torch.from_numpy(value) for name, value in packed.pop("weights").items()}
    classes = state["classes_"]
    indices = np.searchsorted(classes, state["transduction_"])
    tensors["transduction"] = torch.from_numpy(indices)
    parameters = {name: _plain(state[name]) for name in _PARAMETERS}
    if not isinstance(parameters["random_state"], int | np.integer | None):
        parameters["random_state"] = None
    about = {
        "kind": _KIND,
        "parameters": parameters,
        "model": packed,
        "classes": classes.tolist(),
        "class_type": classes.dtype.str,
        "n_features_in": state["n_features_in_"],
        "feature_names_in": state["feature_names_in_"].tolist() if "feature_names_in_" in state else None,
    }
    save_tensors(path, tensors, about)


def _plain(value: Any) -> Any:
    """Return a parameter without numbers of NumPy, which JSON has not."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def read(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write` (UserError)."""
    tensors, about = load_tensors(path, require_checksum=True)
    if about.get("kind") != _KIND:
        raise UserError(f"{path} holds no classifier that SemiSupervisedClassifier.save has written")
    try:
        weights = {n.removeprefix(_WEIGHTS): v.numpy() for n, v in tensors.items() if n.startswith(_WEIGHTS)}
        classes = np.array(about["classes"], dtype=about.get("class_type"))
        state = {name: about["parameters"][name] for name in _PARAMETERS}
        state |= {
            "model_": {**about["model"], "weights": weights},
            "classes_": classes,
            "transduction_": classes[tensors["transduction"].numpy()],
            "n_features_in_": about["n_features_in"],
        }
        if about["feature_names_in"] is not None:
            state["feature_names_in_"] = np.array(about["feature_names_in"], dtype=object)
        return state
    except (KeyError, TypeError, IndexError, InvalidArgument) as error:
        raise UserError(f"{path} is damaged: {error!r}. Restore the file") from error
