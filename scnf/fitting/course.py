"""Train a model to its end or to a signal, and finish its run."""

import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch

from scnf.analysis import plots
from scnf.analysis.samples import sample_picture
from scnf.data.batches import Batches
from scnf.errors import UserError
from scnf.experiment import Experiment
from scnf.failures import traceback_in
from scnf.fitting.assembly import Log, Training, write_inputs
from scnf.fitting.baseline import add_baseline, baseline_text
from scnf.fitting.unusual import write_usual
from scnf.machine import FreedMemory, peak_memory_mb
from scnf.propagation.strategy import Propagation
from scnf.runs import Run
from scnf.settings import SMALLER_STEPS, fixed_settings, not_finite_errors, setting_errors, to_yaml
from scnf.threads import Threads
from scnf.trained import UNUSUAL
from scnf.training.checkpoint import save_tensors
from scnf.training.loop import OPTIMIZERS, Plan, trial_step
from scnf.training.loop import train as train_model
from scnf.training.metrics import metrics_text
from scnf.training.state import Binding, Progress, State, restore
from scnf.transforms import standardize
from scnf.weights import Weights
from scnf.words import counted


def complete(training: Training) -> Progress | None:
    """Train to the end or to a signal, and finish a run that has come to its end.

    A finished run has weights, metrics on validation and (once) on test, pictures and a summary.

    Returns:
        The progress of the training, in which `stopped_by` is the signal that ended it. None where the run was finished
        before.

    Raises:
        UserError: The settings do not suit the model or data, or the run directory cannot be written.
        KeyboardInterrupt: A signal ended the work at once. A note tells how to resume.
    """
    run, experiment = training.run, training.experiment
    try:
        if training.checkpoint is None:
            write_inputs(run, experiment)
        recipe, data = experiment.settings.model, experiment.dataset.name
        with traceback_in(run.path), not_finite_errors(SMALLER_STEPS), setting_errors(recipe, data):
            return _complete(training)
    except KeyboardInterrupt as error:
        if run.checkpoint("last").is_file():
            error.add_note(f"resume with: scnf train --resume {run.path}")
        else:
            error.add_note(f"{run.path} has no checkpoint yet, and nothing can be resumed: start a new run")
        raise
    finally:
        run.close()


def _complete(training: Training) -> Progress | None:
    """Train, and write the summary of a run that has ended."""
    result = optimize(training)
    if result is None:
        training.log("the run is finished: nothing is left to do, and the test split is not evaluated again")
        return None
    progress, summary = result
    if progress.stopped_by is not None:
        training.run.write_json("summary.json", summary | {"status": "interrupted"})
    else:
        _finish(training, summary | {"status": "finished", "selected_epoch": progress.best_epoch})
    return progress


def optimize(training: Training) -> tuple[Progress, dict[str, Any]] | None:
    """Train the model to the end or to a signal, and load its best weights, without a finish of the run.

    torch's generator is seeded, and so is the number of threads set.

    Returns:
        The progress of the training, and its size, length, time and memory for a summary. None where a finished run has
        nothing left to do.

    Raises:
        UserError: The settings do not suit the model or data, or the run directory cannot be written.
        NotFinite: The loss or its gradient is not finite.
    """
    run, experiment, subject, settings = training.run, training.experiment, training.subject, training.settings
    memory = FreedMemory()
    torch.manual_seed(settings.seed)
    if experiment.model.likelihood_of == "labels" and settings.train.select == "bits_per_dim":
        raise UserError("a plain classifier knows no p(x): set train.select to accuracy or last")
    parameters, plan, optimizer = _announce(training), _plan(training), _optimizer(training)
    steps = plan.steps(training.batches)
    threads = _set_threads(training, plan)  # first, because the last bits depend on the number of threads
    binding = Binding(run.key, experiment.split.sha256, fixed_settings(settings), experiment.arithmetic())
    state = None if training.checkpoint is None else _restored_state(training, optimizer, binding, steps)
    if training.checkpoint is not None and state is None:
        return None
    started = time.perf_counter()
    batches = subject.encoded(training.batches, settings.seed, experiment.autocast)
    encoding = (time.perf_counter() - started) / 60

    def after_step() -> None:
        memory()
        if threads is not None:
            threads()

    summary: dict[str, Any] = {"status": "failed", "parameters": parameters, **add_baseline(training, steps)}
    try:
        progress = train_model(
            state or _initial_state(training, batches, optimizer),
            settings.objective,
            batches,
            run,
            plan,
            lambda model: experiment.evaluate("validation", subject.input_model(model)),
            guess=_propagation(training, batches),
            binding=binding,
            log=training.log,
            after_step=after_step,
            save_start="baseline" in summary,
        )
    except Exception:
        run.write_json("summary.json", summary)
        raise
    return progress, summary | _cost(progress, batches.steps_per_epoch, encoding, experiment)


def _plan(training: Training) -> Plan:
    """Return the plan of the training, from the settings and the abilities of the device."""
    train_settings, others = training.settings.train, ("autocast", "progress_bar")
    plan = Plan(
        **{field.name: getattr(train_settings, field.name) for field in fields(Plan) if field.name not in others}
    )
    return replace(plan, autocast=training.experiment.autocast, progress_bar=not training.is_quiet)


def _optimizer(training: Training) -> torch.optim.Optimizer:
    """Return the optimiser of all trainable parameters."""
    train_settings = training.settings.train
    parameters = [parameter for parameter in training.subject.model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[train_settings.optimizer]
    return optimizer(parameters, lr=train_settings.lr, weight_decay=train_settings.weight_decay)


def _set_threads(training: Training, plan: Plan) -> Threads | None:
    """Set the number of threads by timing a training step, or an evaluation where no step can be timed."""
    experiment, subject, batches = training.experiment, training.subject, training.batches

    def make_trial() -> Callable[[], Any]:
        if plan.steps(batches) and subject.is_encoded(batches):
            return trial_step(subject.model, training.settings.objective, batches, plan.autocast)
        return experiment.trial_evaluation()  # there are no steps, or their latents are not yet computed

    num_threads = training.checkpoint and training.checkpoint.binding.machine.get("threads")
    return experiment.set_threads(make_trial, training.log, num_threads)


def _announce(training: Training) -> int:
    """Print the run, model and data of the training, and return the number of parameters."""
    experiment, batches = training.experiment, training.batches
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    training.log(
        f"{training.run.path}: {training.settings.model.name} with {parameters:,} parameters on "
        f"{experiment.dataset.name}, {len(batches.labelled)} labelled of {len(batches.y):,} training rows, "
        f"{experiment.device}"
    )
    if batches.num_labelled == 0 and len(batches.labelled):
        training.log("note: training uses no label, because data.labelled_share is 0")
    return parameters


def _restored_state(training: Training, optimizer: Any, binding: Binding, steps: int) -> State | None:
    """Restore the state of the checkpoint and prepare the run; None where nothing is left to do."""
    run, checkpoint, settings = training.run, training.checkpoint, training.settings
    assert checkpoint is not None
    model, guesses = training.subject.model, settings.objective.propagations > 0
    state = restore(checkpoint, model, optimizer, training.batches, run, settings.train.ema, binding.split, guesses)
    summary = run.read_json("summary.json") if (run.path / "summary.json").is_file() else None
    is_finished = isinstance(summary, dict) and summary.get("status") == "finished"
    is_complete = all((run.path / name).is_file() for name in (run.weights.name, "curves.png"))
    remaining_steps = steps - state.progress.total_step
    if remaining_steps <= 0 and is_finished and is_complete:
        return None
    training.log(f"resuming after epoch {state.progress.epoch}, step {state.progress.total_step}")
    if differences := checkpoint.binding.differences(binding.machine):
        training.log(f"note: {', '.join(differences)}: the end is not bit for bit that without a stop")
    # written only after the checkpoint has accepted the settings
    run.write_text("config.yaml", to_yaml(settings))
    if remaining_steps > 0:
        for name in (
            "summary.json",
            run.weights.name,
            "samples.png",
            "curves.png",
            UNUSUAL,
        ):  # results of an earlier end
            (run.path / name).unlink(missing_ok=True)
    return state


def _initial_state(training: Training, batches: Batches, optimizer: Any) -> State:
    """Return the state before the first step, after layers have been initialised from data."""
    subject = training.subject
    if subject.starts_from_data(training.is_initialized):
        if batches.columns is not None:
            standardize(subject.model, batches.columns.mean, batches.columns.scale)
        first = next(batches.epoch(0))
        subject.model.initialize(first.x, first.y)
    return State(subject.model, optimizer)


def _propagation(training: Training, batches: Batches) -> Any:
    """Return the label propagation of a training, or None without one."""
    objective, train = training.settings.objective, training.settings.train
    if not objective.propagations:
        return None
    return Propagation(
        batches.x,
        batches.y,
        batches.levels,
        objective.propagations,
        train.epochs,
        objective.neighbours,
        objective.self_training_networks,
        batches.augment,
        training.experiment.autocast,
        training.subject.fixed,
        train.eval_batch_size,
        training.log,
    )


def _cost(progress: Progress, steps_per_epoch: int, encoding: float, experiment: Experiment) -> dict[str, Any]:
    """Return the length, time and memory of the training for the summary; `encoding` is in minutes.

    A training that `max_steps` or a signal has ended within an epoch counts the share of the epoch that it has taken.
    """
    share = round(progress.step / steps_per_epoch, 4)
    return {
        "epochs": progress.epoch + share if share else progress.epoch,
        "steps": progress.total_step,
        "minutes": round(encoding + progress.minutes, 3),
        "images_per_second": round(progress.images / progress.train_seconds, 1) if progress.train_seconds else None,
        "threads": torch.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(experiment.device),
    }


def _finish(training: Training, summary: dict[str, Any]) -> None:
    """Save the best weights, evaluate them (once on test), draw the pictures, and write the summary."""
    run, experiment, model = training.run, training.experiment, training.experiment.model
    save_tensors(run.weights, model.state_dict(), {"recipe": experiment.settings.model.name})
    summary["validation"], summary["test"] = experiment.evaluate("validation"), experiment.evaluate("test")
    if model.likelihood_of != "labels":
        classes = list(range(experiment.dataset.num_classes))
        sample_picture(model, run.path / "samples.png", classes, 10, experiment.dataset.inputs())
    write_usual(experiment, Weights(run.path, run.weights))
    plots.curves(run.read_metrics(), run.path / "curves.png")
    run.write_json("summary.json", summary)  # written last, because it marks the run as finished
    _log_summary(run, summary, training.log, training.batches.noun)


def _log_summary(run: Run, summary: dict[str, Any], log: Log, noun: str) -> None:
    for split in ("validation", "test"):
        log(f"{split:<10}  {metrics_text(summary[split])}")
    alone: dict[str, Any] = summary.get("baseline", {})
    if alone.get("test"):
        log(baseline_text(alone, "test"))
    if alone.get("validation") and alone["validation"]["accuracy"] > summary["validation"]["accuracy"]:
        log(
            f"note: labels alone were better on validation, so the unlabelled {noun}s did harm: try "
            "--consistency_weight 0 --propagations 0"
        )
    rate = f", {summary['images_per_second']:.0f} {noun}s/s" if summary["images_per_second"] else ""
    selection = f"the weights of epoch {summary['selected_epoch']} are kept, " if summary["selected_epoch"] else ""
    minutes = summary["minutes"]
    seconds = round(60 * minutes)
    duration = f"{minutes:.1f} minutes" if minutes >= 1 else counted(seconds, "second")
    steps = f"{counted(summary['steps'], 'step')} in " if summary["epochs"] % 1 else ""  # max_steps cut an epoch
    cost = f"{steps}{duration}{rate}, " if summary["steps"] else ""
    memory = "" if summary["peak_memory_mb"] is None else f"{summary['peak_memory_mb']:.0f} MB at most; "
    log(f"{cost}{memory}{selection}all files are in {run.path}")
