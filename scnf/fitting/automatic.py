"""Choose the settings of a training from the data, for people who name data and nothing else."""

from collections.abc import Mapping

from scnf import UNLABELLED
from scnf.data.sources import Dataset
from scnf.settings import Settings

_FEW_LABELS = 500
"""Number of labels below which none is held out for validation."""
_STEPS = 3000
"""Number of optimiser steps that a training takes at least."""
_LEAST_PASSES = 2
"""Number of passes over the rows in each of ten epochs at least."""
_SHARE_UNLABELLED = 0.75
"""Share of unlabelled rows in a batch."""
_PHOTOS = {
    "model.recipe": "scnf-reader",
    "data.augment": "1",
    "data.augmentation": "photo",
    "objective.classifier_weight": "1",
    "objective.consistency_weight": "1",
    "objective.confidence": "adaptive",
    "train.batch_size": "128",
    "train.optimizer": "adamw",
    "train.weight_decay": "0.05",
}
_SMALL_IMAGES = {
    "model.recipe": "scnf-digits",
    "data.augment": "0.5",
    "objective.classifier_weight": "30",
    "objective.consistency_weight": "30",
    "objective.temperature": "4",
}
_VECTORS = {
    "model.recipe": "scnf-vectors",
    "model.prior": "empirical",
    "objective.classifier_weight": "100",
    "objective.temperature": "8",
}
_FEW_VECTORS = _VECTORS | {
    "model.steps": "0",
    "data.augment": "1",
    "objective.consistency_weight": "1000",
    "objective.consistency_ramp": "0",
    "objective.confidence": "1",
    "objective.propagations": "10",
    "objective.neighbours": "posterior",
    "train.lr": "1e-2",
    "train.ema": "0.99",
}
"""The settings of a linear flow, see benchmarks/vectors.py, as are those of more vectors."""
_MANY_VECTORS = _VECTORS | {
    "model.steps": "2",
    "data.augment": "0.8",
    "objective.consistency_weight": "100",
    "objective.confidence": "0.8",
    "train.lr": "5e-3",
}
_MANY, _FEW_STEPS, _MANY_STEPS = 600, 800, 2000
"""Number of vectors from which the flow is not linear, and the least numbers of steps below and from it."""


def choose(dataset: Dataset, steps: int | None = None) -> dict[str, str]:
    """Return settings by name for data of this size and with this number of labels.

    With few labels all of them train, and the last weights are kept. Otherwise a tenth of the labels selects the best
    weights. Images of 16 pixels or more, of even sides, train the recipe of photos, and other images that of digits.

    Args:
        dataset: Data of the training.
        steps: Number of optimiser steps; None chooses it.
    """
    labels, rows = int((dataset.train_y != UNLABELLED).sum()), len(dataset.train_y)
    held_out = 0 if labels < _FEW_LABELS else min(5000, labels // 10)
    chosen = {
        "data.num_labels": "all",
        "data.num_validation": str(held_out),
        "train.select": "accuracy" if held_out else "last",
        "train.batch_size": "64",
        "train.lr": "2e-3",
        "train.ema": "0.998",
    }
    least = _STEPS
    if dataset.levels is None:
        is_linear = rows < _MANY
        chosen |= _FEW_VECTORS if is_linear else _MANY_VECTORS
        least = _FEW_STEPS if is_linear else _MANY_STEPS
    else:
        channels, *size = dataset.train_x.shape[1:]
        large = min(size) >= 16 and all(side % 2 == 0 for side in size)
        chosen |= {"train.baseline": "true"} | (_PHOTOS if large else _SMALL_IMAGES)
        if large and held_out:  # with few labels, the first targets by the model itself are often wrong
            chosen["objective.consistency_ramp"] = "0.05"
        if channels == 1:  # digits and letters must not be flipped
            chosen["data.augmentation"] = "affine"
    per_step = round(_SHARE_UNLABELLED * int(chosen["train.batch_size"]))
    if steps is not None:
        in_epochs = held_out or dataset.levels is None  # which evaluate, or renew the pseudo-labels
        return chosen | _length(rows - held_out, per_step, steps, 10 if in_epochs else 1)
    per_pass = max(1, (rows - held_out) // per_step)
    passes = max(_LEAST_PASSES, -(-least // (10 * per_pass)))
    return chosen | {"train.epochs": "10", "train.passes": str(passes)}


def for_recipe(chosen: Mapping[str, str], recipe: str) -> dict[str, str]:
    """Return the chosen settings, without those of the chosen model where a user names another recipe."""
    kept = recipe == chosen["model.recipe"]
    return {name: value for name, value in chosen.items() if kept or not name.startswith("model.")}


def with_effect(chosen: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the chosen settings without moved images, where nothing of the settings in force learns from them."""
    objective, recipe = settings.objective, settings.model.name
    weights = objective.classifier_weight, objective.consistency_weight, settings.train.eval_views
    moved = () if any(weights) or recipe == "classifier" else ("data.augment", "data.augmentation")
    return {name: value for name, value in chosen.items() if name not in moved}


def _length(rows: int, per_step: int, steps: int, epochs: int) -> dict[str, str]:
    """Return the settings of a training of `steps` steps, with at most 1,000 passes over the rows in an epoch.

    A step takes `per_step` unlabelled rows.
    """
    passes = min(1000, -(-steps * per_step // (epochs * rows)))
    per_epoch = max(1, passes * rows // per_step)
    epochs = max(epochs, -(-steps // per_epoch))
    return {"train.epochs": str(epochs), "train.passes": str(max(1, passes)), "train.max_steps": str(steps)}
