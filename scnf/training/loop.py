"""Train a model in a loop of steps, evaluations and checkpoints."""

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
from scnf.errors import NotFinite
from scnf.interrupt import Interrupted, Signals, watch
from scnf.machine import compile_for
from scnf.models.base import JointModel, JointOutput
from scnf.runs import Run
from scnf.training.averaging import averaged_model, averaging, renormalize
from scnf.training.checkpoint import load_file
from scnf.training.diagnose import first_non_finite, zero_density_clause
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
    "accuracy": lambda metrics: metrics["accuracy"],
    "bits_per_dim": lambda metrics: -metrics["nll"],  # ranks alike, and exists for points and binary images, too
    "last": lambda metrics: math.inf,
}
"""Score of validation metrics for each value of `train.select`. The highest score selects the weights, and the latest
epoch wins a tie."""


@dataclass(frozen=True)
class Plan:
    """The length, learning rate, averaging and selection of a training.

    Attributes:
        epochs: Number of epochs, as the batches count them.
        max_steps: Number of optimiser steps after which training ends, whatever the number of epochs.
        schedule: Schedule of the learning rate, see :mod:`scnf.training.schedules`.
        warmup: Share of all steps in which the hat and cosine schedules raise the learning rate.
        grad_clip: Maximum norm of the gradient, 0 for no limit.
        ema: Decay of the averaged weights, which are evaluated and saved, 0 for none.
        select: Criterion of the best weights, a key of `SELECTORS`.
        autocast: Whether networks without a kernel compute in bf16. Densities stay in float32.
        compile: Whether to run the model through torch.compile.
        progress_bar: Whether a terminal shows a progress bar.
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
    progress_bar: bool = True

    def steps(self, batches: Batches) -> int:
        """Return the number of optimiser steps of the whole training."""
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
    log: Callable[[str], None] = print,
    after_step: Callable[[], None] = lambda: None,
    save_start: bool = False,
) -> Progress:
    """Train the model of `state`, load its best weights, and write metrics and checkpoints to `run`.

    Args:
        state: State of an initialised model (including data-dependent initialisation), or the result of
            :func:`scnf.training.state.restore`. A restored training on the CPU ends bit for bit the same where
            `binding.machine` is the same. The optimizer's learning rate is the peak learning rate.
        objective: Function (output, batch, progress) -> (loss, metrics), such as a
            :class:`scnf.objectives.Objective`.
        batches: Batches of the training rows.
        run: Run directory for metrics and checkpoints. Metrics of later steps than the step of `state` are dropped.
        plan: Plan of the training.
        evaluate: Function from a model to its metrics on the validation split, which are "accuracy", "ece", and "nll"
            where the model knows p(x).
        guess: Function (model, epochs done) -> labels [N], called before each epoch. The labels replace
            `batches.guesses`, and None leaves `batches.guesses` unchanged. A signal interrupts it at once.
        binding: Binding of the checkpoints to this run.
        log: Function that prints a line, called once per epoch.
        after_step: Function to call after each step, see :class:`scnf.threads.Threads`.
        save_start: Whether a checkpoint precedes the first step, so that a resume repeats no work that came before.

    Returns:
        The progress of the training, in which `stopped_by` is the signal that ended it.

    Raises:
        NotFinite: The loss or its gradient is not finite.
        UserError: The run directory cannot be written, or another process uses it.
        Interrupted: A signal arrived during the first step, or a second signal arrived.
    """
    if plan.ema and state.averaged is None:
        state.averaged = averaged_model(state.model, plan.ema)
    loop = _Loop(state, objective, batches, run, plan, binding, after_step)
    with run.locked(), watch() as signals, signals.deferred(), loop.bar:
        loop.truncate_metrics()
        if save_start and not state.progress.total_step:
            loop.save()
        while loop.is_unfinished():
            if guess is not None and not loop.update_guesses(guess, signals):
                break
            loop.take_steps(signals)
            if signals.received and loop.is_within_epoch():
                break
            log(loop.end_epoch(evaluate))
            if signals.received:
                break
        if state.progress.step or not (state.progress.epoch or guess):  # else the last checkpoint is up to date
            loop.save()
    state.progress.stopped_by = signals.received  # a later signal raises an exception
    if state.progress.best_epoch:
        load_file(state.model, run.checkpoint("best"))
    return state.progress


def trial_step(
    model: JointModel, objective: LossFunction, batches: Batches, autocast: bool = False
) -> Callable[[], None]:
    """Return a forward and backward pass to time, on a copy of the model and without side effects.

    Args:
        model: Model, as in :class:`scnf.training.state.State`.
        objective: Objective, as in :func:`train`.
        batches: Batches, of which the first is used.
        autocast: Whether to compute in bf16, as in :class:`Plan`.
    """
    trial_model = deepcopy(model).train()
    with torch.random.fork_rng([]):
        batch = next(batches.epoch(0))

    def step() -> None:
        with torch.random.fork_rng([]):
            with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=autocast):
                output = trial_model(batch)
            objective(output, batch, 0.0)[0].backward()

    return step


class _Loop:
    """The parts of a training loop, which :func:`train` calls in order."""

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
        self.device, self.total_steps = batches.device, plan.steps(batches)
        self.forward = compile_for(state.model, self.device) if plan.compile else state.model
        self.parameters = list(state.model.parameters())  # collected once, because it takes a millisecond
        self.update_average = averaging(state.averaged, state.model, plan.ema)
        self.peak_lr = [group["lr"] for group in state.optimizer.param_groups]
        self.first_step, self.lacks_evaluation = self.progress.total_step, False
        self.started, self.minutes_before = time.perf_counter(), self.progress.minutes
        batches.guesses = state.guesses
        self.bar = tqdm(
            total=self.total_steps,
            initial=self.first_step,
            unit="step",
            dynamic_ncols=True,
            disable=None if plan.progress_bar else True,
            leave=False,
        )

    @property
    def remaining_steps(self) -> int:
        """The number of steps still to take, below 0 where a resume has lowered the total number."""
        return self.total_steps - self.progress.total_step

    def truncate_metrics(self) -> None:
        """Drop metrics of later steps, and note whether a resume that ends within an epoch lacks its evaluation."""
        self.run.truncate_metrics(self.progress.total_step)
        is_evaluated = any(row.get("step") == self.progress.total_step for row in self.run.read_metrics())
        self.lacks_evaluation = self.remaining_steps <= 0 and self.progress.step > 0 and not is_evaluated

    def is_unfinished(self) -> bool:
        return self.remaining_steps > 0 or self.lacks_evaluation

    def is_within_epoch(self) -> bool:
        return self.progress.step < self.batches.steps_per_epoch and self.remaining_steps > 0

    def update_guesses(self, guess: Callable[[JointModel, int], Tensor | None], signals: Signals) -> bool:
        """Guess labels at the start of an epoch, and return False where a signal interrupts this."""
        if self.progress.step:
            return True
        if not self.progress.epoch:  # later epochs have the checkpoint of the epoch before
            self.save()  # guessing may take minutes, and a resume repeats it
        try:
            with signals.immediate():
                labels = guess(self.state.model, self.progress.epoch)
        except Interrupted:
            return False
        if labels is not None:
            self.state.guesses = self.batches.guesses = labels
        return True

    def take_steps(self, signals: Signals) -> None:
        """Take the remaining steps of this epoch, up to a signal."""
        self.state.model.train()
        started = time.perf_counter()
        batches = self.batches.epoch(self.progress.epoch, start=self.progress.step)
        for batch in islice(batches, max(0, self.remaining_steps)):
            # A signal may interrupt the first step, which may compile for minutes and has no progress to lose.
            is_first = self.progress.total_step == self.first_step
            self.step(batch, signals.immediate() if is_first else nullcontext())
            self.bar.update()
            self.after_step()
            if signals.received:
                break
        self.progress.train_seconds += time.perf_counter() - started

    def step(self, batch: Batch, interruptible: AbstractContextManager[None]) -> None:
        """Take one optimiser step."""
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
        self.update_average()
        for name, value in {**metrics, "grad_norm": norm.detach()}.items():
            self.state.sums[name] = self.state.sums.get(name, 0) + value
        progress.step += 1
        progress.total_step += 1
        progress.images += len(batch.y)

    def loss_and_metrics(self, batch: Batch, model: Callable[[Batch], Any]) -> tuple[Tensor, dict[str, Tensor]]:
        share = self.progress.total_step / self.total_steps
        self.state.model.anneal(share)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.autocast):
            output = model(batch)
        return self.objective(output, batch, share)

    def check(self, loss: Tensor, norm: Tensor, batch: Batch) -> None:
        """Refuse a loss or gradient that is not finite (NotFinite).

        On a GPU the check runs at every 25th step and before each checkpoint, because it waits for the device.
        """
        is_last = self.batches.steps_per_epoch - self.progress.step == 1 or self.remaining_steps == 1
        interval = 1 if self.device.type == "cpu" else 25
        if (not is_last and self.progress.total_step % interval) or bool(torch.isfinite(loss + norm)):
            return
        model, path = self.state.model, self.run.path / "checkpoints"
        reason = first_non_finite(model, partial(self.loss_and_metrics, batch, model))
        has_checkpoint = self.run.checkpoint("last").is_file()
        place = f"the last good checkpoint is kept in {path}" if has_checkpoint else "there is no checkpoint yet"
        raise NotFinite(
            f"the loss or its gradient is not finite at step {self.progress.total_step} (epoch "
            f"{self.progress.epoch + 1}): {zero_density_clause(model, batch)}{reason}. Training stopped; {place}"
        )

    def end_epoch(self, evaluate: Callable[[JointModel], dict[str, float]]) -> str:
        """Evaluate the model, save the weights if they are the best, log, and return a line on the epoch."""
        progress, state = self.progress, self.state
        means = {f"train.{name}": float(value) / progress.step for name, value in state.sums.items()}
        epoch = progress.epoch + 1
        if progress.step == self.batches.steps_per_epoch:  # else max_steps ended it, and a resume may complete it
            progress.epoch, progress.step, state.sums = epoch, 0, {}
        if state.averaged is not None:
            renormalize(state.evaluation_model, self.batches)
        metrics = evaluate(state.evaluation_model)
        self.save_best(epoch, metrics)
        self.log(epoch, means, metrics)  # before the checkpoint, because a resume can drop a row but not add one
        self.save()
        self.lacks_evaluation = False
        self.bar.clear()
        return _epoch_line(progress, self.plan.epochs, self.total_steps, means, metrics, self.batches.noun)

    def save_best(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Save the weights unless an earlier score is higher. A score of NaN ranks lowest."""
        progress, score = self.progress, SELECTORS[self.plan.select](metrics)
        if score < progress.best_score or (math.isnan(score) and progress.best_epoch):
            return
        progress.best_score = -math.inf if math.isnan(score) else score
        progress.best_epoch = epoch
        self.state.save_best(metrics, self.run, self.binding)

    def log(self, epoch: int, means: Mapping[str, float], metrics: Mapping[str, float]) -> None:
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
                **{f"validation.{name}": value for name, value in metrics.items()},
            }
        )

    def save(self) -> None:
        self.count_minutes()
        self.state.save(self.run, self.binding)

    def count_minutes(self) -> None:
        self.progress.minutes = self.minutes_before + (time.perf_counter() - self.started) / 60


def _validation_text(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "no validation"
    return f"validation {100 * metrics['accuracy']:.2f} %  {likelihood_text(metrics)}  ECE {metrics['ece']:.3f}"


def _epoch_line(
    progress: Progress,
    epochs: int,
    total_steps: int,
    means: Mapping[str, float],
    metrics: Mapping[str, float],
    noun: str,
) -> str:
    steps = max(total_steps - progress.total_step, 0)  # a resume may ask for fewer steps than there were
    remaining = progress.train_seconds / 60 / max(progress.total_step, 1) * steps
    return (
        f"epoch {progress.epoch + (progress.step > 0):>3}/{epochs}  loss {means['train.loss']:.2f}  "
        f"{_validation_text(metrics)}  "
        f"{progress.images / progress.train_seconds:.0f} {noun}s/s  "
        f"{progress.minutes:.1f} min  ETA {remaining:.1f} min"
    )
