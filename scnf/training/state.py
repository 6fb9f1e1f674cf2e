"""The state of a training in its checkpoints: written, checked in every respect, and restored."""

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
    few,
    flatten_optimizer,
    full_state,
    load_tensors,
    misfits,
    non_finite,
    restore_optimizer,
    save_tensors,
    under_prefix,
    with_prefix,
)

_MOST = 2**53
"""No count of a training comes to this."""


@dataclass(frozen=True)
class Binding:
    """What a checkpoint belongs to, and by what it was made; written into it.

    Attributes:
        run: the run's key, see `scnf.runs.Run.key`.
        split: SHA-256 of the label split.
        settings: what may not change in the course of a run, by full name.
        machine: what the last bits of a result hang on beside settings, by a name that people understand.
    """

    run: str = ""
    split: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def differences(self, machine: Mapping[str, Any]) -> list[str]:
        """In words, what on this `machine` is not as it was where the checkpoint was written."""
        pairs = {name: (self.machine.get(name), machine.get(name)) for name in [*self.machine, *machine]}
        return [
            f"{name} from {_text(before)} to {_text(now)}" for name, (before, now) in pairs.items() if before != now
        ]


@dataclass
class Progress:
    """Where a training stands; kept in every checkpoint.

    Attributes:
        epoch: epochs done.
        step: steps done in the epoch under way.
        total_step: optimiser steps done in all.
        minutes: spent training and evaluating so far.
        train_seconds: of those, spent in training steps.
        images: rows trained on so far.
        best_score: of the weights kept as best, see `scnf.training.loop.SELECTORS`.
        best_epoch: the epoch at whose end they were kept, or in which `max_steps` ended the training.
        stopped_by: the signal that came and ended the training after a step, None otherwise.
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
    """A checkpoint as :func:`load_checkpoint` reads it.

    Attributes:
        path: the file.
        tensors: the states of model, average and optimizer, sums, guesses and random generators.
        binding: what it belongs to.
        progress: where the training stood.
    """

    path: Path
    tensors: dict[str, Tensor]
    binding: Binding
    progress: Progress


@dataclass
class State:
    """Everything that the rest of a training depends on, but for the random generators.

    Attributes:
        model: what is trained.
        optimizer: over its parameters.
        averaged: the moving average of its weights, None without one.
        progress: where the training stands.
        sums: of metrics over the steps of the epoch under way.
        guesses: [N], see :class:`scnf.data.batches.Batches`; None where no labels are guessed.
    """

    model: JointModel
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None = None
    progress: Progress = field(default_factory=Progress)
    sums: dict[str, Any] = field(default_factory=dict)
    guesses: Tensor | None = None

    @property
    def kept(self) -> Any:
        """The model whose weights are evaluated and kept, which is the average where there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def save(self, run: Run, binding: Binding) -> None:
        """Write this state and those of the random generators to one file, the last checkpoint of `run`."""
        optimizer = flatten_optimizer(self.optimizer)
        tensors = _contents(self.model, self.averaged, optimizer, self.sums, self.guesses)
        tensors |= {"rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors |= {"rng.cuda": torch.cuda.get_rng_state()}
        metadata = {name: value for name, value in vars(self.progress).items() if name != "stopped_by"}
        metadata |= vars(binding)
        metadata["machine"] = {**binding.machine, "threads": torch.get_num_threads()}
        metadata["best_score"] = repr(self.progress.best_score)  # may be infinite, which JSON does not know
        save_tensors(run.checkpoint("last"), tensors, metadata)

    def save_best(self, figures: Mapping[str, float], run: Run, binding: Binding) -> None:
        """Write the weights that are kept, with their figures, as the best so far."""
        progress = self.progress
        about = {"run": binding.run, "epoch": progress.best_epoch, "score": repr(progress.best_score)}
        save_tensors(run.checkpoint("best"), self.kept.state_dict(), {**figures, **about})


def load_checkpoint(run: Run) -> Checkpoint:
    """Read the last checkpoint of `run` and check what can be checked without a model.

    Raises:
        UserError: the checkpoint is missing, damaged, of another run or of an earlier version, or holds counts to which
            no training comes.
    """
    path = run.checkpoint("last")
    if not path.is_file():
        raise UserError(f"{run.path} has no checkpoint to resume from ({path} is missing): start it anew")
    tensors, metadata = load_tensors(path, sealed=True)
    names = {each.name for each in dataclasses.fields(Progress) if each.name != "stopped_by"}
    bound = {each.name: dict if each.name in ("settings", "machine") else str for each in dataclasses.fields(Binding)}
    if set(metadata) != names | set(bound) or not all(isinstance(metadata[name], bound[name]) for name in bound):
        raise UserError(
            f"{path} was written by another version and does not say all that it belongs to, so it cannot be resumed: "
            f"start a new run, from its weights with --pretrained {run.path}"
        )
    if metadata["run"] != run.key:
        raise _misfit(path, ["it belongs to another run"])
    counts = {name: metadata[name] for name in names}
    return Checkpoint(path, tensors, Binding(**{name: metadata[name] for name in bound}), _progress(counts, path))


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
    """Load a checkpoint into `model`, `optimizer` and the random generators: all of it, or nothing.

    Args:
        checkpoint: what :func:`load_checkpoint` gave.
        model: of the same recipe and settings as the run's.
        optimizer: of the same kind, over the parameters of `model`.
        batches: that training goes on with.
        run: its directory.
        ema: as in :class:`scnf.training.loop.Plan`.
        split: SHA-256 of the label split.
        guesses: whether labels are guessed in this training.

    Returns:
        where to go on from, for :func:`scnf.training.loop.train`.

    Raises:
        UserError: the checkpoint, or that of the best weights, is not of this run, model, optimizer or data, lacks
            something, or holds values to which no training comes.
    """
    path, tensors, progress = checkpoint.path, checkpoint.tensors, checkpoint.progress
    device, averaged = next(model.parameters()).device, averaged_model(model, ema)
    problems = [] if checkpoint.binding.split == split else ["it is of another label split"]
    if not progress.step < batches.steps_per_epoch:
        problems.append(f"step is {progress.step}, and an epoch has {batches.steps_per_epoch}")
    if progress.total_step > progress.epoch * batches.steps_per_epoch + progress.step:
        problems.append(f"total_step is {progress.total_step}, more than {progress.epoch} epochs have")

    given = under_prefix("optimizer", tensors)
    moved = {name.partition(".")[0] for name in given}  # a parameter that never has a gradient has no state
    state = full_state(optimizer) if progress.total_step else {}
    state = {name: value for name, value in state.items() if not moved or name.partition(".")[0] in moved}
    sums = dict.fromkeys(
        ["loss", "grad_norm", *under_prefix("sums", tensors)] if progress.step else [], torch.zeros(())
    )
    labels = batches.y if guesses and progress.total_step else None
    expected = _contents(model, averaged, state, sums, labels) | {"rng.cpu": torch.get_rng_state()}
    if "rng.cuda" in tensors:  # of a machine that has a GPU, whether or not it was used
        expected["rng.cuda"] = torch.cuda.get_rng_state() if device.type == "cuda" else tensors["rng.cuda"]
    problems += misfits(expected, tensors)
    if not problems:
        problems += [f"{name} holds NaN or infinity" for name in non_finite(tensors)] + _wrong_values(
            tensors, progress.total_step, model.num_classes
        )
    if problems:
        raise _misfit(path, problems)
    _check_best(checkpoint, model, run)
    run.read_metrics()  # a damaged table is refused before anything changes

    model.load_state_dict(under_prefix("model", tensors))
    if averaged is not None:
        averaged.load_state_dict(under_prefix("ema", tensors))
    restore_optimizer(optimizer, given)
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    on_device = {name: value.to(device) for name, value in under_prefix("sums", tensors).items()}
    found = None if labels is None else tensors["guesses"].to(device)
    return State(model, optimizer, averaged, progress, on_device, found)


def _contents(
    model: JointModel,
    averaged: AveragedModel | None,
    optimizer: Mapping[str, Tensor],
    sums: Mapping[str, Any],
    guesses: Tensor | None,
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the random generators."""
    tensors = with_prefix("model", model.state_dict()) | with_prefix("optimizer", optimizer)
    tensors |= with_prefix("sums", {name: torch.as_tensor(value) for name, value in sums.items()})
    if averaged is not None:
        tensors |= with_prefix("ema", averaged.state_dict())
    return tensors if guesses is None else tensors | {"guesses": guesses}


def _progress(counts: Mapping[str, Any], path: Path) -> Progress:
    """The counts of a checkpoint, where a training may come to them."""
    problems = []
    for name in ("epoch", "step", "total_step", "images", "best_epoch"):
        if type(counts[name]) is not int or not 0 <= counts[name] < _MOST:
            problems.append(f"{name} is {counts[name]!r}")
    for name in ("minutes", "train_seconds"):
        if type(counts[name]) not in (int, float) or not 0 <= counts[name] < _MOST:
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
    """Of tensors that have names, shapes and types as they should, those whose values no training comes to."""
    problems = []
    counted = {
        name: value for name, value in tensors.items() if name.startswith("optimizer.") and name.endswith(".step")
    }
    for name, value in counted.items():
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
    """See that the best weights are those which the checkpoint speaks of.

    A process may have died between writing them and the checkpoint. Their epoch is then done again, and with the same
    bits gives the same weights; until then, they are the best that there are.
    """
    path, progress = run.checkpoint("best"), checkpoint.progress
    if not path.is_file():
        if progress.best_epoch:
            raise UserError(
                f"{path} is missing, and with it the weights of epoch {progress.best_epoch}, the best so far: restore "
                "the file, or start a new run"
            )
        return
    tensors, about = load_tensors(path, sealed=True)
    if about.get("run") != checkpoint.binding.run:
        raise _misfit(path, ["it belongs to another run"])
    try:
        epoch, score = int(about["epoch"]), float(about["score"])
    except (KeyError, TypeError, ValueError):
        epoch, score = -1, math.nan
    as_said = (epoch, score) == (progress.best_epoch, progress.best_score) and epoch > 0
    if not (as_said or (epoch == progress.epoch + 1 and not math.isnan(score))):
        raise _misfit(
            path, [f"it is of epoch {about.get('epoch')}, and by {checkpoint.path} it is of {progress.best_epoch}"]
        )
    problems = misfits(model.state_dict(), tensors)
    problems = problems or [f"{name} holds NaN or infinity" for name in non_finite(tensors)]
    if problems:
        raise _misfit(path, problems)
    progress.best_epoch, progress.best_score = epoch, score


def _text(value: Any) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def _misfit(path: Path, problems: list[str]) -> UserError:
    return UserError(
        f"{path} does not fit this run: {few(problems)}. It was changed, damaged or put there from elsewhere: restore "
        f"the file, or start a new run, from its weights with --pretrained {path.parent.parent}"
    )
