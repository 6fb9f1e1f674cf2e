"""The training loop, read from top to bottom."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scnf.batch import Batch
from scnf.data.batches import Batches
from scnf.errors import UserError
from scnf.interrupt import Interrupted, watch
from scnf.machine import compile_for
from scnf.models.base import JointModel, JointOutput
from scnf.runs import Run
from scnf.training.averaging import renormalize
from scnf.training.checkpoint import load_tensors, load_weights
from scnf.training.metrics import likelihood_text
from scnf.training.schedules import learning_rate_factor
from scnf.training.state import Binding, Progress, Restart, averaged_model, save_best, save_checkpoint

Objective = Callable[[JointOutput, Batch, float], tuple[Tensor, dict[str, Tensor]]]
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
"""Scores of validation figures by `train.select`; the highest score is kept, and ties go to the later epoch."""


def first_non_finite(model: nn.Module, compute: Callable[[], Any]) -> str:
    """The name of the first layer of `model` whose output is not finite when `compute` runs it again."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if not found and any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in tensors):
                found.append(f"{name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            compute()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the first layer with a non-finite output is {found[0]}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"all outputs are finite, the first parameter with a non-finite gradient is {name}"
    return "no single layer is to blame"


@torch.no_grad()
def without_density(model: JointModel, batch: Batch) -> str:
    """How many rows of a batch have density 0 under `model`, as part of a sentence; nothing where none has."""
    rows = int((model(batch).log_likelihood == -math.inf).sum())
    return f"{rows} of {len(batch.y)} rows have density 0, for a pixel that the model rules out, say; " if rows else ""


def planned_steps(batches: Batches, epochs: int, max_steps: int | None) -> int:
    """Optimiser steps of a whole training."""
    steps = epochs * batches.steps_per_epoch
    return steps if max_steps is None else min(steps, max_steps)


def train(
    model: JointModel,
    objective: Objective,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    run: Run,
    *,
    evaluate: Callable[[JointModel], dict[str, float]],
    guess: Callable[[JointModel, int], Tensor | None] | None = None,
    epochs: int,
    max_steps: int | None = None,
    schedule: str = "none",
    warmup: float = 0.0,
    grad_clip: float = 0.0,
    ema: float = 0.0,
    select: str = "accuracy",
    autocast: bool = False,
    compile: bool = False,
    binding: Binding = Binding(),  # noqa: B008 (it is frozen)
    resume: Restart | None = None,
    say: Callable[[str], None] = print,
    after_step: Callable[[], None] | None = None,
) -> Progress:
    """Train `model`, leaving its best weights in it, and metrics and checkpoints in `run`.

    Args:
        model: already initialised (layers that start from data have) unless `resume`.
        objective: (output, batch, share of the steps done) -> (loss, metrics), such as a
            :class:`scnf.objectives.Objective`.
        batches: where batches come from.
        optimizer: over the parameters of `model`; its learning rate is taken as the highest.
        run: the directory for metrics and checkpoints.
        evaluate: figures on the validation split, "accuracy" among them, and "nll" where the model knows p(x).
        guess: (model, epochs done) -> labels [N] for `batches.guesses` from here on, or None to leave them; asked
            before each epoch. A signal ends it at once.
        epochs: as `batches` counts them.
        max_steps: fewer optimiser steps than the epochs would take.
        schedule: see :mod:`scnf.training.schedules`.
        warmup: likewise.
        grad_clip: largest norm of the gradient, 0 for no limit.
        ema: decay of the averaged weights that are evaluated and kept, 0 for none.
        select: which weights are best, a key of `SELECTORS`.
        autocast: bf16 inside the networks that have no kernel (the model keeps its densities in float32).
        compile: run the model through torch.compile.
        binding: what the checkpoints of this run belong to.
        resume: what :func:`scnf.training.state.restore` gave, to go on from there; on the CPU the end is the same, bit
            for bit, where `binding.machine` is.
        say: takes one line per epoch.
        after_step: called after each step, see :class:`scnf.threads.Threads`.

    Returns:
        where the training stands; `stopped_by` tells of a signal.

    Raises:
        UserError: the loss is not finite, nothing can be written to the run directory, or another process has it.
        Interrupted: a signal came before the first step was done, or a second one.
    """
    from tqdm import tqdm

    device = batches.x.device
    total_steps = planned_steps(batches, epochs, max_steps)
    progress, sums, averaged, guesses = resume or Restart(Progress(), {}, averaged_model(model, ema))
    batches.guesses = None if guess is None else guesses
    forward = compile_for(model, device) if compile else model
    parameters = list(model.parameters())  # finding them takes a millisecond, too long for every step
    keep_average = _averaging(averaged, model, ema)
    peak_lr = [group["lr"] for group in optimizer.param_groups]
    check_every = 1 if device.type == "cpu" else 25  # reading the loss waits for the device
    started, minutes_before, first_step = time.perf_counter(), progress.minutes, progress.total_step

    def loss_and_metrics(batch: Batch, run_model: Callable[..., Any]) -> tuple[Tensor, dict[str, Tensor]]:
        done = progress.total_step / total_steps
        model.anneal(done)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = run_model(batch)
        return objective(output, batch, done)

    def save_last() -> None:
        progress.minutes = minutes_before + (time.perf_counter() - started) / 60
        save_checkpoint(model, averaged, optimizer, progress, sums, batches.guesses, run, binding)

    bar = tqdm(
        total=total_steps, initial=progress.total_step, unit="step", dynamic_ncols=True, disable=None, leave=False
    )
    with run.locked(), watch() as signals, signals.deferred(), bar:
        left, cut = total_steps - progress.total_step, False
        if resume is not None:
            run.truncate_metrics(progress.total_step)
            seen = any(row.get("step") == progress.total_step for row in run.read_metrics())
            cut = left <= 0 and progress.step > 0 and not seen  # fewer steps now, and no figures of this epoch yet
        while left > 0 or cut:
            if guess is not None and progress.step == 0:
                if not progress.epoch:  # later there is the checkpoint of the epoch before
                    save_last()  # a guess may take minutes, and a resume asks again
                try:
                    with signals.at_once():
                        found = guess(model, progress.epoch)
                except Interrupted:
                    break
                batches.guesses = batches.guesses if found is None else found
            model.train()
            step_started = time.perf_counter()
            for batch in islice(batches.epoch(progress.epoch, start=progress.step), max(0, left)):
                for group, lr in zip(optimizer.param_groups, peak_lr, strict=True):
                    group["lr"] = lr * learning_rate_factor(schedule, progress.total_step, total_steps, warmup)
                optimizer.zero_grad(set_to_none=True)
                # The first step here may compile for minutes, and nothing is lost with it.
                with signals.at_once() if progress.total_step == first_step else nullcontext():
                    loss, metrics = loss_and_metrics(batch, forward)
                    loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf)
                last = batches.steps_per_epoch - progress.step == 1 or total_steps - progress.total_step == 1
                check = last or progress.total_step % check_every == 0  # before a checkpoint, always
                if check and not bool(torch.isfinite(loss + norm)):
                    reason = first_non_finite(model, partial(loss_and_metrics, batch, model))
                    reason = without_density(model, batch) + reason
                    raise UserError(
                        f"the loss or its gradient is not finite at step {progress.total_step} (epoch "
                        f"{progress.epoch + 1}): {reason}. Training stopped; {_kept(run)}. Lower train.lr or set "
                        "train.grad_clip"
                    )
                optimizer.step()
                keep_average()
                for name, value in {**metrics, "grad_norm": norm.detach()}.items():
                    sums[name] = sums.get(name, 0) + value
                progress.step += 1
                progress.total_step += 1
                progress.images += len(batch.y)
                bar.update()
                if after_step is not None:
                    after_step()
                if signals.received:
                    break
            left = total_steps - progress.total_step
            progress.train_seconds += time.perf_counter() - step_started
            if signals.received and progress.step < batches.steps_per_epoch and left > 0:
                break
            means = {f"train.{name}": float(value) / progress.step for name, value in sums.items()}
            epoch = progress.epoch + 1
            if progress.step == batches.steps_per_epoch:  # else max_steps ends it here, and a resume may go on with it
                progress.epoch, progress.step, sums = epoch, 0, {}
            kept: Any = averaged.module if averaged is not None else model
            if averaged is not None:
                renormalize(kept, batches)
            figures = evaluate(kept)
            score = SELECTORS[select](figures)
            if not score < progress.best_score and not (math.isnan(score) and progress.best_epoch):
                progress.best_score = -math.inf if math.isnan(score) else score
                progress.best_epoch = epoch
                save_best(kept, progress, figures, run, binding)
            progress.minutes = minutes_before + (time.perf_counter() - started) / 60
            run.log_metrics(  # before the checkpoint: a row too many is dropped on resume, a row too few stays lost
                {
                    "epoch": epoch,
                    "step": progress.total_step,
                    "minutes": round(progress.minutes, 4),
                    "images_per_second": round(progress.images / progress.train_seconds, 1),
                    "lr": optimizer.param_groups[0]["lr"],
                    **means,
                    **{f"validation.{name}": value for name, value in figures.items()},
                }
            )
            save_last()
            bar.clear()
            say(_epoch_line(progress, epochs, total_steps, means, figures))
            cut = False
            if signals.received:
                break
        if progress.step or not (progress.epoch or guess):  # else the last checkpoint holds all of this
            save_last()
    progress.stopped_by = signals.received  # one that comes from here on raises
    if progress.best_epoch:
        load_weights(model, load_tensors(run.checkpoint("best"))[0], run.checkpoint("best"))
    return progress


def _kept(run: Run) -> str:
    if run.checkpoint("last").is_file():
        return f"the last good checkpoint is kept in {run.path / 'checkpoints'}"
    return "it had not come to its first checkpoint"


def _averaging(averaged: AveragedModel | None, model: JointModel, decay: float) -> Callable[[], None]:
    """What `averaged.update_parameters(model)` does, but for what that looks up, and waits for, at every step."""
    if averaged is None:
        return lambda: None
    first, update = not averaged.n_averaged, get_ema_multi_avg_fn(decay)
    own, other = (list(each.parameters()) for each in (averaged.module, model))
    buffers = list(zip(averaged.module.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def keep_average() -> None:
        nonlocal first
        if first:  # there is nothing to average with
            averaged.update_parameters(model)
            first = False
            return
        update(own, other, averaged.n_averaged)
        for mine, its in buffers:
            mine.copy_(its)
        averaged.n_averaged += 1

    return keep_average


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
