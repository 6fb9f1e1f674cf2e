"""Train a model on images or vectors in memory, in a run directory like the command's."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scnf.data.memory import dataset_of
from scnf.data.sources import Dataset
from scnf.errors import InvalidArgument, UserError
from scnf.files import atomic_write
from scnf.fitting.assembly import Log, Training, components, start
from scnf.fitting.automatic import choose, for_recipe, with_effect
from scnf.fitting.course import complete, optimize
from scnf.interrupt import Interrupted
from scnf.runs import Run
from scnf.settings import (
    SMALLER_STEPS,
    Settings,
    in_yaml,
    load_settings,
    not_finite_errors,
    setting_errors,
)
from scnf.streams import no_line, print_line
from scnf.threads import RANDOM
from scnf.trained import TrainedModel, read_usual
from scnf.weights import Weights

DATA = "data.npz"
"""File in a run with the arrays on which it was trained."""


@dataclass(frozen=True)
class FitResult:
    """A trained model and the run of its training.

    Attributes:
        model: Trained model.
        run: Directory of the run, which `scnf.load` and every command take.
        summary: Metrics, length and cost of the training, as in `summary.json`.
    """

    model: TrainedModel
    run: Path
    summary: dict[str, Any]


def fit(
    x: Any,
    y: Any,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    *,
    root: str | Path = "logs",
    keep_data: bool = True,
    verbose: bool = True,
    **more: Any,
) -> FitResult:
    """Train a model on images or vectors in memory, of which some have a label, like `scnf train` on files.

    Settings are chosen for the data. A run directory holds the weights, settings, metrics and pictures, and the data,
    so that `scnf train --resume` and `scnf evaluate` work. A signal ends the training after its step, and the run can
    resume. torch's generator and its number of threads stay as they were. Trainings and draws of samples in other
    threads of the process wait.

    Args:
        x: Images [N, C, H, W], [N, H, W, C] or [N, H, W] of whole grey levels 0..255 or of floats in [0, 1], or vectors
            [N, D], as arrays or tensors.
        y: Labels [N], integers or texts; -1, None or "" marks a row without a label.
        recipe: Name of a recipe; "auto" chooses one for the data.
        settings: Settings by their full name, such as {"train.lr": 1e-3}.
        root: Directory of all runs.
        keep_data: Whether the run holds the arrays. Without them nothing resumes or evaluates it, and
            `scnf.load` still reads it.
        verbose: Whether progress is printed.
        **more: Settings by the last part of their name, such as epochs=5 or seed=1.

    Raises:
        InvalidArgument: The arrays are no images or vectors with labels.
        UserError: A setting is unknown or wrong, or the run directory cannot be written.
        KeyboardInterrupt: A signal ended the training. A note tells how to resume.

    Example:
        >>> import tempfile
        >>> x = np.random.default_rng(0).normal(size=(60, 2)) + 3 * np.arange(60)[:, None] % 2
        >>> y = ["even", "odd", None] * 20
        >>> result = fit(x, y, max_steps=2, root=tempfile.mkdtemp(), verbose=False)
        >>> result.model.predict(x[:4]).shape, result.run.name.endswith("arrays-scnf-vectors")
        ((4,), True)
    """
    log = print_line if verbose else no_line
    dataset = dataset_of(x, y)
    resolved, chosen = settings_for(dataset, recipe, {**(settings or {}), **more, "runs.root": str(root)})
    log("chosen for these data: " + ", ".join(f"{name} {value}" for name, value in chosen.items()))
    with ExitStack() as stack:
        stack.enter_context(torch_state())
        training = start(resolved, dataset, stack, log)
        training.settings.data.root = str((training.run.path / DATA).resolve())
        if keep_data:
            _save(dataset, training.run)
        progress = complete(training)
        if progress is not None and progress.stopped_by is not None:
            error = Interrupted(progress.stopped_by)
            error.add_note(f"resume with: scnf train --resume {training.run.path}")
            raise error
    model, weights = model_of(training), Weights(training.run.path, training.run.weights)
    model.usual = read_usual(weights)
    return FitResult(model, training.run.path, training.run.read_json("summary.json"))


def settings_for(
    dataset: Dataset, recipe: str, settings: Mapping[str, Any], steps: int | None = None
) -> tuple[Settings, dict[str, str]]:
    """Choose the settings for data in memory, which a recipe and settings by name override.

    Args:
        dataset: Data in memory.
        recipe: Name of a recipe; "auto" chooses one.
        settings: Settings by name.
        steps: Number of optimiser steps; None chooses it.

    Returns:
        All settings, and those that were chosen and are in force, by name.

    Raises:
        UserError: A setting is unknown or wrong.
    """
    for name in ("data.name", "data.root"):
        if name in settings:
            raise InvalidArgument("settings", f"must leave {name} out, for the data are x and y")
    chosen = choose(dataset, steps)
    if recipe != "auto":
        chosen = for_recipe(chosen, recipe) | {"model.recipe": recipe}
    own = ["--data.name", "npz", "--data.root", DATA]
    words = [word for name, value in settings.items() for word in (f"--{name}", _word(value))]

    def load(chosen: Mapping[str, str]) -> Settings:
        return load_settings(None, [*own, *(w for name, value in chosen.items() for w in (f"--{name}", value)), *words])

    try:
        chosen = with_effect(chosen, load(chosen))
        resolved = load(chosen)
    except UserError as error:
        raise UserError(str(error).removeprefix("command line: ")) from error
    if resolved.data.features is not None:
        raise InvalidArgument("settings", "must leave data.features out: give the embeddings as x")
    return resolved, {
        name: value for name, value in chosen.items() if not {name, name.rpartition(".")[2]} & settings.keys()
    }


def train_in_memory(
    settings: Settings, dataset: Dataset, initial: Mapping[str, Tensor] | None = None, log: Log = no_line
) -> TrainedModel:
    """Train a model in a temporary run directory, one training at a time in a process.

    Args:
        settings: All settings.
        dataset: Data of the training.
        initial: Weights to start from; None for new weights.
        log: Function that prints a line for people.

    Raises:
        UserError: The settings fit no model, or the training fails.
        KeyboardInterrupt: A signal ended the training.
    """
    with torch_state(), TemporaryDirectory(prefix="scnf-") as folder:
        experiment, subject, batches = components(settings, None, dataset, log)
        if initial is not None:
            experiment.model.load_state_dict(initial)
        run = Run(Path(folder), events=False)
        run.write_json("env.json", {"key": secrets.token_hex(16)})
        training = Training(run, experiment, subject, batches, None, log, initial is not None)
        with not_finite_errors(SMALLER_STEPS), setting_errors(settings.model, dataset.name):
            result = optimize(training)
    if result is not None and result[0].stopped_by is not None:
        raise Interrupted(result[0].stopped_by)
    return model_of(training)


def model_of(training: Training) -> TrainedModel:
    """Return the trained model of a training."""
    return TrainedModel(training.experiment.model, training.experiment.dataset.inputs())


@contextmanager
def torch_state() -> Iterator[None]:
    """Keep the state of torch's generators and its number of threads during a block, which other threads wait for."""
    threads = torch.get_num_threads()
    with RANDOM, torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _word(value: Any) -> str:
    """Return the value of a setting as a word of the command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    return in_yaml(list(value) if isinstance(value, tuple) else value)


def _save(dataset: Dataset, run: Run) -> None:
    """Write the data to the run as the dataset npz reads them."""
    with atomic_write(run.path / DATA) as file:
        np.savez(
            file,
            x=dataset.train_x.numpy(),
            y=dataset.train_y.numpy(),
            class_names=np.array(dataset.class_names),
        )
