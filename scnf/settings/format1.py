"""Read settings that earlier versions wrote, with names that have changed and arguments that were left out.

Runs of the formats 1 and 2 store only the recipe arguments that the user set. This module holds the defaults of those
formats. They never change, whatever the defaults of a recipe become.
"""

from collections.abc import Mapping
from typing import Any

from scnf.errors import UserError

_FLOW = dict(conditional_hidden=128, conditional_blocks=1, conditional_steps=2, conditional_scales=1, embedding=10)
_GAUSSIAN = dict(means="random", spread=1.0, learn_means=True, scales="shared", learn_scales=True)
_COARSE = dict(channels=96, steps=8, detail_channels=32, detail_steps=3, blocks=0, linear="full", scale="symmetric")
_FAST = {**_COARSE, "pixels": "levels", "semantic_share": 1.0, "coarse_channels": 0}
_NETWORKS = dict(hidden=500, layers=2, blocks=0, norm="batch", num_samples=1, importance_samples=1)
_IMAGES = {**_NETWORKS, "encoder": "mlp", "decoder": "mlp", "likelihood": "bernoulli"}
_LATENT = dict(latent=50, posterior="gaussian", posterior_steps=4)
_LABELS = dict(labels="enumerate", temperature=0.67, final_temperature=None, class_chunk=None)
_M2 = {**_IMAGES, **_LATENT, **_LABELS, "classifier": "mlp"}

FLOWS: dict[str, dict[str, Any]] = {
    "scnf-paper": {
        **dict(channels=64, blocks=4, linear="full", scale="sigmoid", pixels="logit", conditional="flow"),
        **dict(conditional_hidden=256, conditional_blocks=4, conditional_steps=4, conditional_scales=2),
    },
    "scnf-fast": {**_FAST, "conditional": "flow"},
    "scnf-gmm": {**_FAST, "conditional": "gaussian"},
    "scnf-digits": {**_FAST, "conditional": "flow", "channels": 32, "steps": 6, "conditional_hidden": 64},
    "scnf-hybrid": {
        **_COARSE,
        **dict(pixels="levels", semantic_channels=64, semantic_hidden=512, conditional="gaussian"),
    },
    "scnf-toy": {
        **dict(channels=64, steps=6, blocks=1, scale="symmetric", conditional="flow"),
        **dict(means="data", conditional_hidden=32, conditional_steps=4),
    },
}
VARIATIONAL: dict[str, dict[str, Any]] = {
    "m1": {**_IMAGES, **_LATENT},
    "m2": _M2,
    "m1-m2": {**_NETWORKS, **_LATENT, **_LABELS, "layers": 1},
    "adgm": {**_M2, "auxiliary": 50},
    "ladder-vae": {**_IMAGES, **_LATENT, "latent": [64, 32, 16]},
    "ladder-dgm": {**_M2, "latent": [64, 32, 16]},
    "gumbel-autoencoder": {
        **_IMAGES,
        **dict(variables=30, categories=10, temperature=1.0, final_temperature=0.5),
    },
    "classifier": dict(hidden=600, layers=2, classifier="mlp", norm="none"),
}


def defaults(recipe: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the formats 1 and 2 for the arguments of a recipe that are not given.

    Args:
        recipe: Name of the recipe. A recipe that did not exist has no defaults.
        arguments: Arguments by name.

    Example:
        >>> defaults("scnf-toy", {"conditional": "gaussian"})["linear"], defaults("scnf-toy", {})["linear"]
        ('plu', 'full')
    """
    if recipe in VARIATIONAL:
        values = VARIATIONAL[recipe]
        return {name: value for name, value in values.items() if name not in arguments}
    if recipe not in FLOWS:
        return {}
    flow = arguments.get("conditional", FLOWS[recipe]["conditional"]) == "flow"
    # a class-conditional flow had a default of `linear` that overrode the default of the shared flow
    values = {"linear": "full" if flow else "plu", **(_FLOW if flow else _GAUSSIAN), "class_chunk": None}
    values |= {name: value for name, value in FLOWS[recipe].items() if name not in (_GAUSSIAN if flow else _FLOW)}
    if {**values, **arguments}.get("pixels") == "logit":
        values["alpha"] = 0.05
    blocks = arguments.get("blocks", values["blocks"])
    networks = {"scnf-paper": "resnet-reflect", "scnf-toy": "mlp"}
    values["network"] = networks.get(recipe, "resnet" if blocks else "conv")
    return {name: value for name, value in values.items() if name not in arguments}


def renamed(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings of format 1 under the names of today. Values of another type than in format 1 stay unchanged.

    Args:
        values: Settings by full name.
        source: Origin of the settings, for the message.

    Raises:
        UserError: The settings name the first neighbours twice.

    Example:
        >>> renamed({"objective.distortion": True, "objective.self_training": 0}, "a file")
        {'objective.neighbours': 'distortion'}
    """
    values = dict(values)
    neighbours: dict[str, Any] = {}
    if isinstance(values.get("objective.distortion"), bool) and values.pop("objective.distortion"):
        neighbours["distortion"] = {}
    if isinstance(values.get("objective.self_training"), int) and (number := values.pop("objective.self_training")):
        neighbours["self-training"] = {"objective.self_training_networks": number}
    if len(neighbours) + ("objective.neighbours" in values) > 1:
        raise UserError(
            f"{source} names the first neighbours twice: keep objective.neighbours, or one of the old names"
        )
    for name, networks in neighbours.items():
        values |= {"objective.neighbours": name, **networks}
    return values


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of format 1 or 2, completed by the recipe arguments that were left out.

    Args:
        values: Settings by full name. None as an argument stands for its default.
    """
    model = {name: value for name, value in values.items() if name.startswith("model.")}
    arguments = {name.partition(".")[2]: value for name, value in model.items() if value is not None}
    recipe = arguments.pop("recipe", "scnf-hybrid")
    missing = {f"model.{name}": value for name, value in defaults(str(recipe), arguments).items()}
    stored = {name: value for name, value in values.items() if name not in model or value is not None}
    return {**stored, **missing}
