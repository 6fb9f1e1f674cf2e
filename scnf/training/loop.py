"""The training loop, read from top to bottom."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from scnf.batch import Batch
from scnf.data.batches import Batches
from scnf.errors import UserError
from scnf.interrupt import Interrupted, Signals, watch
from scnf.machine import compile_for
from scnf.models.base import JointModel, JointOutput
from scnf.runs import Run
from scnf.training.averaging import averaged_model, averaging, renormalize
from scnf.training.checkpoint import load_file
from scnf.training.diagnose import first_non_finite, without_density
from scnf.training.metrics import likelihood_text
from scnf.training.schedules import learning_rate_factor
from scnf.training.state import Binding, Progress, State

LossFunction = Callable[[JointOutput, Batch, float], tuple[Tensor, dict[str, Tensor]]]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adamax": torch.optim.Adamax,
}
SELECTORS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "accuracy": lambda figures: figures["accuracy"],
    "bits_per_dim": lambda figures: -figures["nll"],  # of binary images, nats
    "last": lambda figures: math.inf,
}
"""Scores of validation figures by the setting `train.select`. The higher score is kept; of equals, the later."""


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        epochs: number of epochs, as the batches count them.
        max_steps: optimiser steps after which training ends, whatever the epochs.
        schedule: of the learning rate, see :mod:`scnf.training.schedules`.
        warmup: share of all steps in which the learning rate rises, in the schedules where it does.
        grad_clip: largest norm of the gradient, 0 for no limit.
        ema: decay of the averaged weights that are evaluated and kept, 0 for none.
        select: which weights are best, a key of `SELECTORS`.
        autocast: bf16 inside the networks that have no kernel (the model keeps its densities in float32).
        compile: run the model through torch.compile.
    """

    epochs: int
    max_steps: int | None = None
    schedule: str = "none"
    warmup: float = 0.0
    grad_clip: float = 0.0
    ema: float = 0.0
    select: str = "accuracy"
    autocast: bool = False
    compile: bool = False

    def steps(self, batches: Batches) -> int:
        """Optimiser steps of the whole training."""
        steps = self.epochs * batches.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


def train(
    state: State,
    objective: LossFunction,
    batches: Batches,
    run: Run,
    plan: Plan,
    evaluate: Callable[[JointModel], dict[str, float]],
    *,
    guess: Callable[[JointModel, int], Tensor | None] | None = None,
    binding: Binding = Binding(),  # noqa: B008 (it is frozen)
    say: Callable[[str], None] = print,
    after_step: Callable[[], None] = lambda: None,
) -> Progress:
    """Train the model of `state`, leaving its best weights in it, and metrics and checkpoints in `run`.

    Args:
        state: of a model that is initialised (layers that start from data have), or what
            :func:`scnf.training.state.restore` gave. From there, the end on the CPU is the same, bit for bit, where
            `binding.machine` is. The optimizer's learning rate is taken as the highest.
        objective: (output, batch, share of the steps done) -> (loss, metrics), such as a
            :class:`scnf.objectives.Objective`.
        batches: where batches come from.
        run: the directory for metrics and checkpoints. Rows of metrics after later steps than those of `state` are
            dropped.
        plan: how to train.
        evaluate: figures on the validation split: "accuracy", "ece", and "nll" where the model knows p(x).
        guess: (model, epochs done) -> labels [N] for `batches.guesses` from here on, or None to leave them; asked
            before each epoch. A signal ends it at once.
        binding: what the checkpoints of this run belong to.
        say: takes one line per epoch.
        after_step: called after each step, see :class:`scnf.threads.Threads`.

    Returns:
        where the training stands; `stopped_by` tells of a signal.

    Raises:
        UserError: the loss is not finite, nothing can be written to the run directory, or another process has it.
        Interrupted: a signal came before the first step was done, or a second one.
    """
    if plan.ema and state.averaged is None:
        state.averaged = averaged_model(state.model, plan.ema)
    loop = _Loop(state, objective, batches, run, plan, binding, after_step)
    with run.locked(), watch() as signals, signals.deferred(), loop.bar:
        loop.cut_metrics()
        while loop.is_unfinished():
            if guess is not None and not loop.guessed(guess, signals):
                break
            loop.take_steps(signals)
            if signals.received and loop.is_within_epoch():
                break
            say(loop.end_epoch(evaluate))
            if signals.received:
                break
        if state.progress.step or not (state.progress.epoch or guess):  # else the last checkpoint holds all of this
            loop.save()
    state.progress.stopped_by = signals.received  # one that comes from here on raises
    if state.progress.best_epoch:
        load_file(state.model, run.checkpoint("best"))
    return state.progress


def trial_step(
    model: JointModel, objective: LossFunction, batches: Batches, autocast: bool = False
) -> Callable[[], None]:
    """The forward and backward pass of a training step, on a copy of the model, to be timed; it leaves nothing behind.

    Args:
        model: as in :class:`scnf.training.state.State`.
        objective: as in :func:`train`.
        batches: where one batch comes from.
        autocast: as in :class:`Plan`.
    """
    copied = deepcopy(model).train()
    with torch.random.fork_rng([]):
        batch = next(batches.epoch(0))

    def step() -> None:
        with torch.random.fork_rng([]):
            with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=autocast):
                output = copied(batch)
            objective(output, batch, 0.0)[0].backward()

    return step


class _Loop:
    """A training under way; :func:`train` says in which order its methods are called."""

    def __init__(
        self,
        state: State,
        objective: LossFunction,
        batches: Batches,
        run: Run,
        plan: Plan,
        binding: Binding,
        after_step: Callable[[], None],
    ) -> None:
        from tqdm import tqdm

        self.state, self.objective, self.batches, self.run, self.plan = state, objective, batches, run, plan
        self.binding, self.after_step, self.progress = binding, after_step, state.progress
        self.device, self.total_steps = batches.x.device, plan.steps(batches)
        self.forward = compile_for(state.model, self.device) if plan.compile else state.model
        self.parameters = list(state.model.parameters())  # finding them takes a millisecond, too long for every step
        self.keep_average = averaging(state.averaged, state.model, plan.ema)
        self.peak_lr = [group["lr"] for group in state.optimizer.param_groups]
        self.first_step, self.lacks_figures = self.progress.total_step, False
        self.started, self.minutes_before = time.perf_counter(), self.progress.minutes
        batches.guesses = state.guesses
        self.bar = tqdm(
            total=self.total_steps,
            initial=self.first_step,
            unit="step",
            dynamic_ncols=True,
            disable=None,
            leave=False,
        )

    @property
    def left(self) -> int:
        """Steps to be done; fewer than none where a resume has fewer in all."""
        return self.total_steps - self.progress.total_step

    def cut_metrics(self) -> None:
        """Drop metrics of later steps, and see whether an epoch that is cut short now has its figures."""
        self.run.truncate_metrics(self.progress.total_step)
        seen = any(row.get("step") == self.progress.total_step for row in self.run.read_metrics())
        self.lacks_figures = self.left <= 0 and self.progress.step > 0 and not seen

    def is_unfinished(self) -> bool:
        return self.left > 0 or self.lacks_figures

    def is_within_epoch(self) -> bool:
        return self.progress.step < self.batches.steps_per_epoch and self.left > 0

    def guessed(self, guess: Callable[[JointModel, int], Tensor | None], signals: Signals) -> bool:
        """Ask for guesses where an epoch begins; whether no signal came."""
        if self.progress.step:
            return True
        if not self.progress.epoch:  # later there is the checkpoint of the epoch before
            self.save()  # a guess may take minutes, and a resume asks again
        try:
            with signals.at_once():
                found = guess(self.state.model, self.progress.epoch)
        except Interrupted:
            return False
        if found is not None:
            self.state.guesses = self.batches.guesses = found
        return True

    def take_steps(self, signals: Signals) -> None:
        """The steps that are left of this epoch, up to a signal."""
        self.state.model.train()
        started = time.perf_counter()
        batches = self.batches.epoch(self.progress.epoch, start=self.progress.step)
        for batch in islice(batches, max(0, self.left)):
            # The first step here may compile for minutes, and nothing is lost with it.
            first = self.progress.total_step == self.first_step
            self.step(batch, signals.at_once() if first else nullcontext())
            self.bar.update()
            self.after_step()
            if signals.received:
                break
        self.progress.train_seconds += time.perf_counter() - started

    def step(self, batch: Batch, interruptible: AbstractContextManager[None]) -> None:
        """One optimiser step."""
        progress, optimizer, plan = self.progress, self.state.optimizer, self.plan
        factor = learning_rate_factor(plan.schedule, progress.total_step, self.total_steps, plan.warmup)
        for group, lr in zip(optimizer.param_groups, self.peak_lr, strict=True):
            group["lr"] = lr * factor
        optimizer.zero_grad(set_to_none=True)
        with interruptible:
            loss, metrics = self.loss_and_metrics(batch, self.forward)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, plan.grad_clip or math.inf)
        self.check(loss, norm, batch)
        optimizer.step()
        self.keep_average()
        for name, value in {**metrics, "grad_norm": norm.detach()}.items():
            self.state.sums[name] = self.state.sums.get(name, 0) + value
        progress.step += 1
        progress.total_step += 1
        progress.images += len(batch.y)

    def loss_and_metrics(self, batch: Batch, model: Callable[[Batch], Any]) -> tuple[Tensor, dict[str, Tensor]]:
        done = self.progress.total_step / self.total_steps
        self.state.model.anneal(done)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.autocast):
            output = model(batch)
        return self.objective(output, batch, done)

    def check(self, loss: Tensor, norm: Tensor, batch: Batch) -> None:
        """Refuse a loss or gradient that is not finite; on a GPU now and then, for reading it waits for the device."""
        last = self.batches.steps_per_epoch - self.progress.step == 1 or self.left == 1  # before a checkpoint, always
        every = 1 if self.device.type == "cpu" else 25
        if (not last and self.progress.total_step % every) or bool(torch.isfinite(loss + norm)):
            return
        model, path = self.state.model, self.run.path / "checkpoints"
        reason = first_non_finite(model, partial(self.loss_and_metrics, batch, model))
        saved = self.run.checkpoint("last").is_file()
        kept = f"the last good checkpoint is kept in {path}" if saved else "it had not come to its first checkpoint"
        raise UserError(
            f"the loss or its gradient is not finite at step {self.progress.total_step} (epoch "
            f"{self.progress.epoch + 1}): {without_density(model, batch)}{reason}. Training stopped; {kept}. Lower "
            "train.lr or set train.grad_clip"
        )

    def end_epoch(self, evaluate: Callable[[JointModel], dict[str, float]]) -> str:
        """Evaluate, keep the weights if they are the best, log and save; the line that says all this."""
        progress, state = self.progress, self.state
        means = {f"train.{name}": float(value) / progress.step for name, value in state.sums.items()}
        epoch = progress.epoch + 1
        if progress.step == self.batches.steps_per_epoch:  # else max_steps ends it, and a resume may go on with it
            progress.epoch, progress.step, state.sums = epoch, 0, {}
        if state.averaged is not None:
            renormalize(state.kept, self.batches)
        figures = evaluate(state.kept)
        self.keep_best(epoch, figures)
        self.log(epoch, means, figures)  # before the checkpoint: a resume drops a row too many, and cannot add one
        self.save()
        self.lacks_figures = False
        self.bar.clear()
        return _epoch_line(progress, self.plan.epochs, self.total_steps, means, figures)

    def keep_best(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Save the weights if no score before was higher; one that is not a number is the lowest."""
        progress, score = self.progress, SELECTORS[self.plan.select](figures)
        if score < progress.best_score or (math.isnan(score) and progress.best_epoch):
            return
        progress.best_score = -math.inf if math.isnan(score) else score
        progress.best_epoch = epoch
        self.state.save_best(figures, self.run, self.binding)

    def log(self, epoch: int, means: Mapping[str, float], figures: Mapping[str, float]) -> None:
        progress = self.progress
        self.count_minutes()
        self.run.log_metrics(
            {
                "epoch": epoch,
                "step": progress.total_step,
                "minutes": round(progress.minutes, 4),
                "images_per_second": round(progress.images / progress.train_seconds, 1),
                "lr": self.state.optimizer.param_groups[0]["lr"],
                **means,
                **{f"validation.{name}": value for name, value in figures.items()},
            }
        )

    def save(self) -> None:
        self.count_minutes()
        self.state.save(self.run, self.binding)

    def count_minutes(self) -> None:
        self.progress.minutes = self.minutes_before + (time.perf_counter() - self.started) / 60


def _epoch_line(
    progress: Progress, epochs: int, total_steps: int, means: Mapping[str, float], figures: Mapping[str, float]
) -> str:
    left = progress.train_seconds / 60 / max(progress.total_step, 1) * (total_steps - progress.total_step)
    return (
        f"epoch {progress.epoch + (progress.step > 0):>3}/{epochs}  loss {means['train.loss']:.2f}  "
        f"validation {100 * figures['accuracy']:.2f} %  {likelihood_text(figures)}  ECE {figures['ece']:.3f}  "
        f"{progress.images / progress.train_seconds:.0f} images/s  "
        f"{progress.minutes:.1f} min  ETA {left:.1f} min"
    )
