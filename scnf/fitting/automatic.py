"""Choose the settings of a training from the data, for people who name data and nothing else."""

from collections.abc import Mapping

from scnf import UNLABELLED
from scnf.data.sources import Dataset
from scnf.settings import Settings

_FEW_LABELS = 500
"""Number of labels below which none is held out for validation."""
_STEPS = 2000
"""Number of optimiser steps that a training takes at least."""
_BATCH = 64
_UNLABELLED_ROWS = 48  # in a batch
_VECTOR_STEPS = 2000
_STANDARDISED = {
    "model.recipe": "scnf-toy",
    "model.conditional": "gaussian",
    "model.steps": "2",
    "model.channels": "32",
    "data.augment": "0.8",
    "objective.classifier_weight": "100",
    "objective.consistency_weight": "100",
    "objective.temperature": "8",
    "objective.confidence": "0.8",
    "train.lr": "5e-3",
}
"""The settings of standardised vectors, chosen on validation rows, see benchmarks/vectors.py."""


def choose(dataset: Dataset, steps: int | None = None, standardised: bool = False) -> dict[str, str]:
    """Return settings by name for data of this size and with this number of labels.

    With few labels all of them train, and the last weights are kept. Otherwise a fifth of the labels selects the best
    weights. Images of 16 pixels or more train the recipe of the main job, smaller ones that of the digits.
    Large images get no consistency term: on photos with few labels, most targets by the model itself were wrong.

    Args:
        dataset: Data of the training.
        steps: Number of optimiser steps; None chooses it.
        standardised: Whether vectors have columns of mean 0 and standard deviation 1, so that noise may move them.
    """
    labels, rows = int((dataset.train_y != UNLABELLED).sum()), len(dataset.train_y)
    held_out = 0 if labels < _FEW_LABELS else min(5000, labels // 5)
    chosen = {
        "data.num_labels": "all",
        "data.num_validation": str(held_out),
        "train.select": "accuracy" if held_out else "last",
        "train.batch_size": str(_BATCH),
        "train.lr": "2e-3",
        "train.ema": "0.998",
    }
    if dataset.levels is None and standardised:
        chosen |= _STANDARDISED
        steps = _VECTOR_STEPS if steps is None else steps
    elif dataset.levels is None:
        chosen["model.recipe"] = "scnf-toy"
        chosen["objective.classifier_weight"] = "1"
    else:
        large = min(dataset.train_x.shape[2:]) >= 16
        colour = dataset.train_x.shape[1] == 3
        chosen |= {
            "model.recipe": "scnf-hybrid" if large else "scnf-digits",
            "data.augment": "1" if colour else "0.5",
            "data.flip": str(colour).lower(),
            "objective.classifier_weight": "2000" if large else "30",
            "objective.consistency_weight": "0" if large else "30",
            "objective.temperature": "4",
        }
    if steps is not None:
        return chosen | _length(rows - held_out, steps, 10 if held_out else 1)
    per_pass = max(1, (rows - held_out) // _UNLABELLED_ROWS)
    passes = max(1, -(-_STEPS // (10 * per_pass)))
    return chosen | {"train.epochs": "10", "train.passes": str(passes)}


def with_effect(chosen: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the chosen settings without moved images, where nothing of the settings in force learns from them."""
    objective, recipe = settings.objective, settings.model.name
    weights = objective.classifier_weight, objective.consistency_weight, settings.train.eval_views
    moved = () if any(weights) or recipe == "classifier" else ("data.augment", "data.flip")
    return {name: value for name, value in chosen.items() if name not in moved}


def _length(rows: int, steps: int, epochs: int) -> dict[str, str]:
    """Return the settings of a training of `steps` steps, with at most 1,000 passes over the rows in an epoch."""
    passes = min(1000, -(-steps * _UNLABELLED_ROWS // (epochs * rows)))
    per_epoch = max(1, passes * rows // _UNLABELLED_ROWS)
    epochs = max(epochs, -(-steps // per_epoch))
    return {"train.epochs": str(epochs), "train.passes": str(max(1, passes)), "train.max_steps": str(steps)}
