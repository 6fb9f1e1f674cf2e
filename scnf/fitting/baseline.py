"""Train the baseline of a training, which is the network that reads the class, on the labelled rows alone."""

import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scnf.data.batches import Batches
from scnf.distributions import ClassPrior
from scnf.fitting.assembly import Training
from scnf.models.classifier import Classifier
from scnf.recipes import ClassifierRecipe, ScnfReader
from scnf.training.averaging import renormalize
from scnf.training.metrics import evaluate_rows
from scnf.training.supervised import train_classifier
from scnf.words import counted

FILE = "baseline.json"
"""File in a run with the metrics of its baseline."""
STEPS = 2000
"""Largest number of optimiser steps of the baseline, over all networks of a cross-validation."""
_ROWS = 64
_FOLDS = 3


def add_baseline(training: Training, steps: int) -> dict[str, Any]:
    """Train the labels-only network where the settings ask for it, and return its metrics for the summary.

    It takes `STEPS` optimiser steps, or fewer if the training itself takes only `steps`. A resumed run has the metrics
    already. torch's generators are left unchanged.
    """
    run, device = training.run, training.experiment.device
    if not training.settings.train.baseline:
        return {}
    if not (run.path / FILE).is_file():
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(training.settings.seed)
            run.write_json(FILE, _labels_only(training, min(STEPS, steps)))
    result: dict[str, Any] = run.read_json(FILE)
    split = "validation" if result["validation"] else "cross_validation"
    if result[split]:
        training.log(baseline_text(result, split))
    return {"baseline": result}


def baseline_text(result: dict[str, Any], split: str) -> str:
    """Return a line on the accuracy of a baseline on a split, which is "validation", "test" or "cross_validation"."""
    accuracy = f"{100 * result[split]['accuracy']:.1f} % on {split.replace('_', '-')}"
    return (
        f"labels alone: {accuracy} (a network of the {result['labels']:,} labelled rows, {result['minutes']:.1f} min)"
    )


def _labels_only(training: Training, steps: int) -> dict[str, Any]:
    """Train the network, and return its metrics on validation and test rows.

    Where there are neither, its accuracy comes from a cross-validation over the labelled rows, if each class has two.
    """
    experiment, started = training.experiment, time.perf_counter()
    labelled = experiment.split.labelled
    result: dict[str, Any] = {"labels": len(labelled), "steps": steps}
    result |= {"validation": {}, "test": {}, "cross_validation": {}}
    labels = torch.bincount(experiment.visible[labelled], minlength=experiment.dataset.num_classes)
    folds = min(_FOLDS, int(labels.min()))
    held_out = any(len(experiment.rows_of(split)[0]) for split in ("validation", "test"))
    if not (len(labelled) if held_out else folds > 1):
        return result | {"minutes": 0.0}
    training.log(f"labels alone: {counted(steps, 'step')} of a network of the labelled rows, as a baseline")
    with tqdm(total=steps, unit="step", desc="labels alone", disable=True if training.is_quiet else None) as bar:
        if held_out:
            model = _trained(training, labelled, steps, bar)
            result |= {split: experiment.evaluate(split, model) for split in ("validation", "test")}
        else:
            result["cross_validation"] = {"accuracy": _cross_validated(training, steps, folds, bar)}
    return result | {"minutes": round((time.perf_counter() - started) / 60, 3)}


def _rows(training: Training, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and visible labels of rows, on the device."""
    experiment = training.experiment
    return experiment.dataset.train_x[rows].to(experiment.device), experiment.visible[rows].to(experiment.device)


def _trained(training: Training, rows: Tensor, steps: int, bar: "tqdm[Any]") -> Classifier:
    """Return the network after a training on the labels of `rows`."""
    experiment, dataset = training.experiment, training.experiment.dataset
    recipe, classes = training.settings.model, dataset.num_classes
    channels = recipe.reader_channels if isinstance(recipe, ScnfReader) else ClassifierRecipe.reader_channels
    network = ClassifierRecipe(classifier="residual", reader_channels=channels)
    model = network.build(experiment.shape, classes, ClassPrior(classes), dataset.levels).to(experiment.device)
    x, y = _rows(training, rows)
    batches = Batches(x, y, _ROWS, 1.0, training.settings.seed, dataset.levels, experiment.augmentation, in_place=True)
    train_classifier(model, batches, steps, experiment.autocast, bar.update)
    renormalize(model, batches)  # running averages of few steps still hold their start
    return model.eval()


def _cross_validated(training: Training, steps: int, folds: int, bar: "tqdm[Any]") -> float:
    """Return the accuracy on labelled rows, each by a network of the other folds' labels."""
    experiment, dataset = training.experiment, training.experiment.dataset
    labelled = experiment.split.labelled
    by_class = labelled[experiment.visible[labelled].argsort(stable=True)]
    fold = torch.arange(len(by_class)) % folds
    hits = 0.0
    for index in range(folds):
        model = _trained(training, by_class[fold != index], steps // folds, bar)
        rows = by_class[fold == index]
        x, y = _rows(training, rows)
        evaluation = evaluate_rows(model, x, y, dataset.levels, training.settings.train.eval_batch_size, draws=1)
        hits += len(rows) * evaluation.metrics["accuracy"]
    return hits / len(by_class)
