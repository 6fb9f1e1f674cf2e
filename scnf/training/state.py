"""Write the state of a training to checkpoints, and check and restore it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from scnf import UNLABELLED
from scnf.data.batches import Batches
from scnf.errors import UserError
from scnf.models.base import JointModel
from scnf.runs import Run
from scnf.training.averaging import averaged_model
from scnf.training.checkpoint import (
    flatten_optimizer,
    full_state,
    join_problems,
    load_tensors,
    mismatches,
    non_finite,
    restore_optimizer,
    save_tensors,
    under_prefix,
    with_prefix,
)

_COUNT_LIMIT = 2**53
"""The upper limit of all counts of a training."""


@dataclass(frozen=True)
class Binding:
    """The run, label split, settings and machine of a checkpoint, stored in the checkpoint.

    Attributes:
        run: Key of the run, see `scnf.runs.Run.key`.
        split: SHA-256 of the label split.
        settings: Fixed settings of the run by full name.
        machine: Facts on which bitwise reproducibility depends besides the settings, by readable names.
    """

    run: str = ""
    split: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def differences(self, machine: Mapping[str, Any]) -> list[str]:
        """Describe how a `machine` differs from the machine that wrote the checkpoint."""
        pairs = {name: (self.machine.get(name), machine.get(name)) for name in [*self.machine, *machine]}
        return [
            f"{name} from {_text(before)} to {_text(now)}" for name, (before, now) in pairs.items() if before != now
        ]


@dataclass
class Progress:
    """The progress of a training, stored in every checkpoint.

    Attributes:
        epoch: Number of epochs done.
        step: Number of steps done in the current epoch.
        total_step: Number of optimiser steps done in all epochs.
        minutes: Minutes of training and evaluation.
        train_seconds: Seconds of training steps alone.
        images: Number of rows trained on, over all steps.
        best_score: Score of the best weights, see `scnf.training.loop.SELECTORS`.
        best_epoch: Epoch of the best weights, 0 where there are none.
        stopped_by: Signal that ended the training after a step, None otherwise.
    """

    epoch: int = 0
    step: int = 0
    total_step: int = 0
    minutes: float = 0.0
    train_seconds: float = 0.0
    images: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    stopped_by: int | None = None


class Checkpoint(NamedTuple):
    """A checkpoint, as :func:`load_checkpoint` reads it.

    Attributes:
        path: Path of the file.
        tensors: States of model, average and optimizer, sums of metrics, guesses and random generators.
        binding: Binding of the checkpoint to its run.
        progress: Progress of the training.
    """

    path: Path
    tensors: dict[str, Tensor]
    binding: Binding
    progress: Progress


@dataclass
class State:
    """The state on which the rest of a training depends, without the random generators.

    Attributes:
        model: Model to train.
        optimizer: Optimizer over the model's parameters.
        averaged: Exponential moving average of the weights, None without one.
        progress: Progress of the training.
        sums: Sums of metrics over the steps of the current epoch.
        guesses: Guessed labels [N], see :class:`scnf.data.batches.Batches`, or None where no labels are guessed.
    """

    model: JointModel
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None = None
    progress: Progress = field(default_factory=Progress)
    sums: dict[str, Any] = field(default_factory=dict)
    guesses: Tensor | None = None

    @property
    def evaluation_model(self) -> Any:
        """The model that is evaluated and saved, with averaged weights where there are any."""
        return self.model if self.averaged is None else self.averaged.module

    def save(self, run: Run, binding: Binding) -> None:
        """Write this state and the state of the random generators to the last checkpoint of `run`."""
        optimizer = flatten_optimizer(self.optimizer)
        tensors = _contents(self.model, self.averaged, optimizer, self.sums, self.guesses)
        tensors |= {"rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors |= {"rng.cuda": torch.cuda.get_rng_state()}
        metadata = {name: value for name, value in vars(self.progress).items() if name != "stopped_by"}
        metadata |= vars(binding)
        metadata["machine"] = {**binding.machine, "threads": torch.get_num_threads()}
        metadata["best_score"] = repr(self.progress.best_score)  # JSON does not know infinity
        save_tensors(run.checkpoint("last"), tensors, metadata)

    def save_best(self, metrics: Mapping[str, float], run: Run, binding: Binding) -> None:
        """Write the weights and their validation metrics to the best checkpoint of `run`."""
        progress = self.progress
        metadata = {"run": binding.run, "epoch": progress.best_epoch, "score": repr(progress.best_score)}
        save_tensors(run.checkpoint("best"), self.evaluation_model.state_dict(), {**metrics, **metadata})


def load_checkpoint(run: Run) -> Checkpoint:
    """Read the last checkpoint of `run`, and check everything that needs no model.

    Raises:
        UserError: The checkpoint is missing, damaged, of another run or of an earlier version, or contains impossible
            counts.
    """
    path = run.checkpoint("last")
    if not path.is_file():
        raise UserError(f"{run.path} has no checkpoint to resume from ({path} is missing): start a new run")
    tensors, metadata = load_tensors(path, require_checksum=True)
    names = {field.name for field in dataclasses.fields(Progress) if field.name != "stopped_by"}
    types = {name: dict if name in ("settings", "machine") else str for name in vars(Binding())}
    if set(metadata) != names | set(types) or not all(isinstance(metadata[name], types[name]) for name in types):
        raise UserError(
            f"{path} was written by another version and lacks information that a resume needs: start a new run from "
            f"its weights with --pretrained {run.path}"
        )
    if metadata["run"] != run.key:
        raise _misfit(path, ["it belongs to another run"])
    counts = {name: metadata[name] for name in names}
    return Checkpoint(path, tensors, Binding(**{name: metadata[name] for name in types}), _progress(counts, path))


def restore(
    checkpoint: Checkpoint,
    model: JointModel,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    run: Run,
    ema: float,
    split: str = "",
    guesses: bool = False,
) -> State:
    """Load a checkpoint into `model`, `optimizer` and the random generators, either all of it or nothing.

    Args:
        checkpoint: Checkpoint of :func:`load_checkpoint`.
        model: Model of the same recipe and settings as in the run.
        optimizer: Optimizer of the same kind as in the run, over the parameters of `model`.
        batches: Batches of the training.
        run: Run directory.
        ema: Decay of the averaged weights, as in :class:`scnf.training.loop.Plan`.
        split: SHA-256 of the label split.
        guesses: Whether this training guesses labels.

    Returns:
        The state from which :func:`scnf.training.loop.train` continues.

    Raises:
        UserError: The checkpoint, or the checkpoint of the best weights, belongs to another run, model, optimizer or
            dataset, is incomplete, or contains impossible values.
    """
    path, tensors, progress = checkpoint.path, checkpoint.tensors, checkpoint.progress
    device, averaged = next(model.parameters()).device, averaged_model(model, ema)
    problems = [] if checkpoint.binding.split == split else ["it belongs to another label split"]
    if not progress.step < batches.steps_per_epoch:
        problems.append(f"step is {progress.step}, and an epoch has {batches.steps_per_epoch}")
    if progress.total_step > progress.epoch * batches.steps_per_epoch + progress.step:
        problems.append(f"total_step is {progress.total_step}, more than {progress.epoch} epochs have")

    optimizer_tensors = under_prefix("optimizer", tensors)
    # a parameter that never had a gradient has no state
    indices = {name.partition(".")[0] for name in optimizer_tensors}
    state = full_state(optimizer) if progress.total_step else {}
    state = {name: value for name, value in state.items() if not indices or name.partition(".")[0] in indices}
    sums = dict.fromkeys(
        ["loss", "grad_norm", *under_prefix("sums", tensors)] if progress.step else [], torch.zeros(())
    )
    labels = batches.y if guesses and progress.total_step else None
    expected = _contents(model, averaged, state, sums, labels) | {"rng.cpu": torch.get_rng_state()}
    if "rng.cuda" in tensors:  # written on every machine with a GPU, even if training ran on the CPU
        expected["rng.cuda"] = torch.cuda.get_rng_state() if device.type == "cuda" else tensors["rng.cuda"]
    problems += mismatches(expected, tensors)
    if not problems:
        problems += [f"{name} holds NaN or infinity" for name in non_finite(tensors)] + _wrong_values(
            tensors, progress.total_step, model.num_classes
        )
    if problems:
        raise _misfit(path, problems)
    _check_best(checkpoint, model, run)
    run.read_metrics()  # refuses a damaged table before anything changes

    model.load_state_dict(under_prefix("model", tensors))
    if averaged is not None:
        averaged.load_state_dict(under_prefix("ema", tensors))
    restore_optimizer(optimizer, optimizer_tensors)
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    restored_sums = {name: value.to(device) for name, value in under_prefix("sums", tensors).items()}
    restored_guesses = None if labels is None else tensors["guesses"].to(device)
    return State(model, optimizer, averaged, progress, restored_sums, restored_guesses)


def _contents(
    model: JointModel,
    averaged: AveragedModel | None,
    optimizer: Mapping[str, Tensor],
    sums: Mapping[str, Any],
    guesses: Tensor | None,
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, without the random generators."""
    tensors = with_prefix("model", model.state_dict()) | with_prefix("optimizer", optimizer)
    tensors |= with_prefix("sums", {name: torch.as_tensor(value) for name, value in sums.items()})
    if averaged is not None:
        tensors |= with_prefix("ema", averaged.state_dict())
    return tensors if guesses is None else tensors | {"guesses": guesses}


def _progress(counts: Mapping[str, Any], path: Path) -> Progress:
    """Return the progress of a checkpoint, and refuse impossible counts (UserError)."""
    problems = []
    for name in ("epoch", "step", "total_step", "images", "best_epoch"):
        if type(counts[name]) is not int or not 0 <= counts[name] < _COUNT_LIMIT:
            problems.append(f"{name} is {counts[name]!r}")
    for name in ("minutes", "train_seconds"):
        if type(counts[name]) not in (int, float) or not 0 <= counts[name] < _COUNT_LIMIT:
            problems.append(f"{name} is {counts[name]!r}")
    try:
        score = float(counts["best_score"])
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        problems.append(f"best_score is {counts['best_score']!r}")
    if not problems:
        progress = Progress(**{**counts, "best_score": score})
        if progress.epoch + progress.step <= progress.total_step <= progress.images:
            if progress.best_epoch <= progress.epoch + 1:
                return progress
            problems.append(f"best_epoch is {progress.best_epoch} after {progress.epoch} epochs")
        else:
            problems.append(
                f"epoch {progress.epoch}, step {progress.step}, total_step {progress.total_step} and "
                f"images {progress.images} contradict each other"
            )
    raise _misfit(path, problems)


def _wrong_values(tensors: Mapping[str, Tensor], total_step: int, num_classes: int) -> list[str]:
    """Describe impossible values in tensors whose names, shapes and types are right."""
    problems = []
    step_counts = {
        name: value for name, value in tensors.items() if name.startswith("optimizer.") and name.endswith(".step")
    }
    for name, value in step_counts.items():
        if not (0 < float(value) <= total_step and float(value).is_integer()):
            problems.append(f"{name} is {float(value):g} after {total_step} steps")
    if "ema.n_averaged" in tensors and int(tensors["ema.n_averaged"]) != total_step:
        problems.append(f"ema.n_averaged is {int(tensors['ema.n_averaged'])} after {total_step} steps")
    if "guesses" in tensors and len(tensors["guesses"]):
        least, most = (int(value) for value in tensors["guesses"].aminmax())
        if least < UNLABELLED or most >= num_classes:
            problems.append(f"guesses lie between {least} and {most}, and there are {num_classes} classes")
    try:
        torch.Generator().set_state(tensors["rng.cpu"])
    except RuntimeError:
        problems.append("rng.cpu is no state of the random generator")
    return problems


def _check_best(checkpoint: Checkpoint, model: JointModel, run: Run) -> None:
    """Check that the file of the best weights agrees with the checkpoint, and update the progress.

    A process may have died after it wrote the best weights and before it wrote the checkpoint. The resume then repeats
    their epoch, which gives the same weights where results are bit for bit the same. Until then, the file holds the
    best weights.
    """
    path, progress = run.checkpoint("best"), checkpoint.progress
    if not path.is_file():
        if progress.best_epoch:
            raise UserError(
                f"{path} is missing, and with it the weights of epoch {progress.best_epoch}, the best so far: restore "
                "the file, or start a new run"
            )
        return
    tensors, metadata = load_tensors(path, require_checksum=True)
    if metadata.get("run") != checkpoint.binding.run:
        raise _misfit(path, ["it belongs to another run"])
    try:
        epoch, score = int(metadata["epoch"]), float(metadata["score"])
    except (KeyError, TypeError, ValueError):
        epoch, score = -1, math.nan
    agrees = (epoch, score) == (progress.best_epoch, progress.best_score) and epoch > 0
    if not (agrees or (epoch == progress.epoch + 1 and not math.isnan(score))):
        raise _misfit(
            path,
            [f"it is of epoch {metadata.get('epoch')}, and {checkpoint.path} expects epoch {progress.best_epoch}"],
        )
    problems = mismatches(model.state_dict(), tensors)
    problems = problems or [f"{name} holds NaN or infinity" for name in non_finite(tensors)]
    if problems:
        raise _misfit(path, problems)
    progress.best_epoch, progress.best_score = epoch, score


def _text(value: Any) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def _misfit(path: Path, problems: list[str]) -> UserError:
    return UserError(
        f"{path} does not fit this run: {join_problems(problems)}. It was changed, damaged or copied from elsewhere: "
        f"restore the file, or start a new run from its weights with --pretrained {path.parent.parent}"
    )
