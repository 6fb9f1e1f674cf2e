"""Run `scnf train`, which trains a model in a run directory and evaluates it once on test."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from scnf import parts, runs, streams
from scnf.analysis import plots
from scnf.analysis.samples import sample_picture
from scnf.commands import automatic, options
from scnf.data.batches import Batches
from scnf.data.sources import Dataset
from scnf.errors import InvalidArgument, UserError
from scnf.experiment import INPUTS, Experiment, prepare
from scnf.failures import traceback_in
from scnf.files import write_bytes
from scnf.m1 import M1_COPY
from scnf.machine import FreedMemory, check_compiler, description, peak_memory_mb
from scnf.models.flow import SemiConditionalFlow
from scnf.propagation.strategy import Propagation
from scnf.recipes import M1M2Recipe
from scnf.recipes.probe import probe
from scnf.registry import REGISTRATIONS
from scnf.runs import Run
from scnf.settings import (
    SMALLER_STEPS,
    Settings,
    check_fixed_settings,
    check_model,
    fixed_settings,
    load_settings,
    not_finite_errors,
    runs_root,
    section_errors,
    setting_errors,
    to_yaml,
)
from scnf.shipped import find_config
from scnf.threads import Threads
from scnf.training.checkpoint import save_tensors
from scnf.training.loop import OPTIMIZERS, Plan, trial_step
from scnf.training.loop import train as train_model
from scnf.training.metrics import metrics_text
from scnf.training.state import Binding, Checkpoint, Progress, State, load_checkpoint, restore
from scnf.training.subject import ClassConditionalPart, WholeModel
from scnf.transforms import CompositeTransform
from scnf.weights import find_weights


def train(words: Sequence[str]) -> int:
    """Train a model in a locked run directory, and evaluate it once on test."""
    files = words[0] if words and not words[0].startswith("-") else None
    arguments, overrides = options.extract(words[1:] if files else words, "--config", "--resume")
    if files and arguments["--resume"]:
        raise UserError(f"--resume continues with the data of its run: leave {files} out")
    if arguments["--resume"] and arguments["--config"]:
        raise UserError("--resume continues with the settings of its run: leave --config out")
    with ExitStack() as locks:
        if not arguments["--resume"]:
            if files and not arguments["--config"]:
                return _run(_new_training(*automatic.settings_of(files, overrides), locks))
            if files:
                overrides = [*automatic.own_data(files), *automatic.with_full_names(overrides)]
            path = find_config(arguments["--config"] or "config.yaml")
            if path.with_name("split.json").is_file():  # the configuration of a run
                parts.admit(path.parent, adopt=True)
            settings = load_settings(path, overrides)
            streams.make_output_optional()
            return _run(_new_training(settings, None, locks))
        run = Run.find(runs_root(overrides), arguments["--resume"])
        locks.enter_context(run.locked())
        return _run(_resumed_training(run, overrides))


@dataclass(frozen=True)
class _Training:
    """A training with its run, experiment and batches, and with the checkpoint from which it resumes."""

    run: Run
    experiment: Experiment
    subject: WholeModel
    batches: Batches
    checkpoint: Checkpoint | None = None


def _new_training(settings: Settings, dataset: Dataset | None, locks: ExitStack) -> _Training:
    """Prepare a training, and create its run, which is locked until `locks` closes."""
    experiment, subject, batches = _components(settings, None, dataset)
    if settings.pretrained:
        weights = find_weights(settings.pretrained, Path(settings.runs.root), settings.model.name)
        if (weights.directory / "config.yaml").is_file():
            check_model(weights.settings(), settings, weights.directory)
        experiment.check_classes(weights)
        subject.load_weights(weights.path)
        experiment.note_other_split(weights)
        experiment.settings.pretrained = weights.pinned  # `last` may be another run at the resume
    name = settings.runs.name or f"{experiment.dataset.name}-{settings.model.name}"
    run = Run.create(Path(settings.runs.root), name)
    locks.enter_context(run.locked())
    return _Training(run, experiment, subject, batches)


def _resumed_training(run: Run, overrides: Sequence[str]) -> _Training:
    """Prepare a training that resumes a run from its last checkpoint."""
    if not (run.path / "config.yaml").is_file():
        raise UserError(f"{run.path} cannot resume, for its config.yaml is missing: restore it, or start a new run")
    parts.admit(run.path)
    settings = load_settings(run.path / "config.yaml", overrides, from_run=True)
    checkpoint = load_checkpoint(run)
    check_fixed_settings(checkpoint.binding.settings, settings, run.path)
    streams.make_output_optional()
    experiment, subject, batches = _components(settings, run.path)
    experiment.check_split(run.path)
    return _Training(run, experiment, subject, batches, checkpoint)


def _components(
    settings: Settings, run_directory: Path | None, dataset: Dataset | None = None
) -> tuple[Experiment, WholeModel, Batches]:
    """Prepare and check the components of a training before anything is written."""
    experiment, train_settings = prepare(settings, run_directory, dataset), settings.train
    for line in experiment.dataset.report:
        print(line, flush=True)
    experiment.check_views()
    if REGISTRATIONS:
        _probe(experiment)
    model, subject = experiment.model, WholeModel(experiment.model)
    if train_settings.adapt:
        if not isinstance(model, SemiConditionalFlow):
            raise UserError(f"the recipe {settings.model.name} has no shared flow to adapt: set train.adapt to false")
        subject = ClassConditionalPart(model)
    batches = experiment.batches()
    if train_settings.compile:
        with section_errors("train"):
            check_compiler(experiment.device)
    for module in experiment.model.modules():
        if isinstance(module, CompositeTransform):
            module.reversible = train_settings.reversible
    return experiment, subject, batches


def _probe(experiment: Experiment) -> None:
    """Try a model that may hold the user's own parts (UserError)."""
    name = experiment.settings.model.name
    try:
        with setting_errors(experiment.settings.model, experiment.dataset.name):
            probe(experiment.model, experiment.device)
    except UserError:
        raise
    except InvalidArgument as error:
        raise UserError(f"the recipe {name} cannot be used: {error}") from error
    except Exception as error:
        place = parts.location_of(error)
        where = f" in {place}" if place else ""
        raise UserError(
            f"the recipe {name} fails on four random inputs{where}: {type(error).__name__}: {error}"
        ) from error


def _run(training: _Training) -> int:
    """Train, and add the command that resumes the run to the error of a signal."""
    run, experiment = training.run, training.experiment
    try:
        if training.checkpoint is None:
            _write_inputs(run, experiment)
        recipe, data = experiment.settings.model, experiment.dataset.name
        with traceback_in(run.path), not_finite_errors(SMALLER_STEPS), setting_errors(recipe, data):
            return _fit(training)
    except KeyboardInterrupt as error:
        if run.checkpoint("last").is_file():
            error.add_note(f"resume with: scnf train --resume {run.path}")
        else:
            error.add_note(f"{run.path} has no checkpoint yet, and nothing can be resumed: start a new run")
        raise
    finally:
        run.close()


def _write_inputs(run: Run, experiment: Experiment) -> None:
    """Write settings, label split, environment, parts and a copy of M1 to the run before the training."""
    if experiment.m1_files:
        recipe = experiment.settings.model
        assert isinstance(recipe, M1M2Recipe)
        # `last` may be another run at the resume
        experiment.settings.model = replace(recipe, m1=str(run.path / M1_COPY))
    run.write_text("config.yaml", to_yaml(experiment.settings))
    run.write_json("split.json", experiment.split.to_json())
    run.write_json(INPUTS, experiment.dataset.inputs().to_json())
    # the training sets the number of threads later
    machine = {name: value for name, value in description(experiment.device).items() if name != "threads"}
    run.write_json("env.json", runs.environment(sys.argv, machine))
    parts.save(run.path)
    for name, source in experiment.m1_files.items():
        write_bytes(run.path / M1_COPY / name, source.read_bytes())


def _fit(training: _Training) -> int:
    """Train to the end or to a signal, and finish a run that has come to its end."""
    run, experiment, subject = training.run, training.experiment, training.subject
    settings, memory = experiment.settings, FreedMemory()
    torch.manual_seed(settings.seed)
    if experiment.model.likelihood_of == "labels" and settings.train.select == "bits_per_dim":
        raise UserError("a plain classifier knows no p(x): set train.select to accuracy or last")
    parameters, plan, optimizer = _announce(training), _plan(experiment), _optimizer(training)
    steps = plan.steps(training.batches)
    threads = _set_threads(training, plan)  # first, because the last bits depend on the number of threads
    binding = Binding(run.key, experiment.split.sha256, fixed_settings(settings), experiment.arithmetic())
    state = None if training.checkpoint is None else _restored_state(training, optimizer, binding, steps)
    if training.checkpoint is not None and state is None:
        print("the run is finished: nothing is left to do, and the test split is not evaluated again")
        return 0
    started = time.perf_counter()
    batches = subject.encoded(training.batches, settings.seed, experiment.autocast)
    encoding = (time.perf_counter() - started) / 60

    def after_step() -> None:
        memory()
        if threads is not None:
            threads()

    summary: dict[str, Any] = {"status": "failed", "parameters": parameters}
    try:
        progress = train_model(
            state or _initial_state(subject, batches, optimizer, settings),
            settings.objective,
            batches,
            run,
            plan,
            lambda model: experiment.evaluate("validation", subject.input_model(model)),
            guess=_propagation(experiment, batches, subject.fixed),
            binding=binding,
            log=options.print_line,
            after_step=after_step,
        )
    except Exception:
        run.write_json("summary.json", summary)
        raise
    summary |= _cost(progress, encoding, experiment)
    if progress.stopped_by is not None:
        run.write_json("summary.json", summary | {"status": "interrupted"})
        print(f"interrupted after step {progress.total_step}; resume with: scnf train --resume {run.path}")
        return 128 + progress.stopped_by
    _finish(run, experiment, summary | {"status": "finished", "selected_epoch": progress.best_epoch})
    return 0


def _plan(experiment: Experiment) -> Plan:
    """Return the plan of the training, from the settings and the abilities of the device."""
    train_settings = experiment.settings.train
    plan = Plan(
        **{field.name: getattr(train_settings, field.name) for field in fields(Plan) if field.name != "autocast"}
    )
    return replace(plan, autocast=experiment.autocast)


def _optimizer(training: _Training) -> torch.optim.Optimizer:
    """Return the optimiser of all trainable parameters."""
    train_settings = training.experiment.settings.train
    parameters = [parameter for parameter in training.subject.model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[train_settings.optimizer]
    return optimizer(parameters, lr=train_settings.lr, weight_decay=train_settings.weight_decay)


def _set_threads(training: _Training, plan: Plan) -> Threads | None:
    """Set the number of threads by timing a training step, or an evaluation where no step can be timed."""
    experiment, subject, batches = training.experiment, training.subject, training.batches

    def make_trial() -> Callable[[], Any]:
        if plan.steps(batches) and subject.is_encoded(batches):
            return trial_step(subject.model, experiment.settings.objective, batches, plan.autocast)
        return experiment.trial_evaluation()  # there are no steps, or their latents are not yet computed

    num_threads = training.checkpoint and training.checkpoint.binding.machine.get("threads")
    return experiment.set_threads(make_trial, options.print_line, num_threads)


def _announce(training: _Training) -> int:
    """Print the run, model and data of the training, and return the number of parameters."""
    experiment, batches = training.experiment, training.batches
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    print(
        f"{training.run.path}: {experiment.settings.model.name} with {parameters:,} parameters on "
        f"{experiment.dataset.name}, {len(batches.labelled)} labelled of {len(batches.x):,} training rows, "
        f"{experiment.device}",
        flush=True,
    )
    if batches.num_labelled == 0 and len(batches.labelled):
        print("note: training uses no label, because data.labelled_share is 0", flush=True)
    return parameters


def _restored_state(training: _Training, optimizer: Any, binding: Binding, steps: int) -> State | None:
    """Restore the state of the checkpoint and prepare the run; None where nothing is left to do."""
    run, checkpoint, settings = training.run, training.checkpoint, training.experiment.settings
    assert checkpoint is not None
    model, guesses = training.subject.model, settings.objective.propagations > 0
    state = restore(checkpoint, model, optimizer, training.batches, run, settings.train.ema, binding.split, guesses)
    summary = run.read_json("summary.json") if (run.path / "summary.json").is_file() else None
    is_finished = isinstance(summary, dict) and summary.get("status") == "finished"
    is_complete = all((run.path / name).is_file() for name in (run.weights.name, "curves.png"))
    remaining_steps = steps - state.progress.total_step
    if remaining_steps <= 0 and is_finished and is_complete:
        return None
    print(f"resuming after epoch {state.progress.epoch}, step {state.progress.total_step}", flush=True)
    if differences := checkpoint.binding.differences(binding.machine):
        print(f"note: {', '.join(differences)}: the end is not bit for bit that without a stop", flush=True)
    # written only after the checkpoint has accepted the settings
    run.write_text("config.yaml", to_yaml(settings))
    if remaining_steps > 0:
        for name in ("summary.json", run.weights.name, "samples.png", "curves.png"):  # results of an earlier end
            (run.path / name).unlink(missing_ok=True)
    return state


def _initial_state(subject: WholeModel, batches: Batches, optimizer: Any, settings: Settings) -> State:
    """Return the state before the first step, after layers have been initialised from data."""
    if subject.starts_from_data(settings.pretrained is not None):
        first = next(batches.epoch(0))
        subject.model.initialize(first.x, first.y)
    return State(subject.model, optimizer)


def _propagation(experiment: Experiment, batches: Batches, fixed: bool) -> Any:
    """Return the label propagation of a training, or None without one."""
    objective, train = experiment.settings.objective, experiment.settings.train
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
        experiment.autocast,
        fixed,
        train.eval_batch_size,
        options.print_line,
    )


def _cost(progress: Progress, encoding: float, experiment: Experiment) -> dict[str, Any]:
    """Return the length, time and memory of the training for the summary; `encoding` is in minutes."""
    return {
        "epochs": progress.epoch,
        "steps": progress.total_step,
        "minutes": round(encoding + progress.minutes, 3),
        "images_per_second": round(progress.images / progress.train_seconds, 1) if progress.train_seconds else None,
        "threads": torch.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(experiment.device),
    }


def _finish(run: Run, experiment: Experiment, summary: dict[str, Any]) -> None:
    """Save the best weights, evaluate them (once on test), draw the pictures, and write the summary."""
    model = experiment.model
    save_tensors(run.weights, model.state_dict(), {"recipe": experiment.settings.model.name})
    summary["validation"], summary["test"] = experiment.evaluate("validation"), experiment.evaluate("test")
    if model.likelihood_of != "labels":
        classes = list(range(experiment.dataset.num_classes))
        sample_picture(model, run.path / "samples.png", classes, 10, experiment.dataset.inputs())
    plots.curves(run.read_metrics(), run.path / "curves.png")
    run.write_json("summary.json", summary)  # written last, because it marks the run as finished
    _print_summary(run, summary)


def _print_summary(run: Run, summary: dict[str, Any]) -> None:
    for split in ("validation", "test"):
        print(f"{split:<10}  {metrics_text(summary[split])}")
    rate = f", {summary['images_per_second']:.0f} images/s" if summary["images_per_second"] else ""
    selection = f"the weights of epoch {summary['selected_epoch']} are kept, " if summary["selected_epoch"] else ""
    minutes = summary["minutes"]
    seconds = round(60 * minutes)
    duration = f"{minutes:.1f} minutes" if minutes >= 1 else f"{seconds} second{'' if seconds == 1 else 's'}"
    cost = f"{duration}{rate}, " if summary["steps"] else ""
    memory = "" if summary["peak_memory_mb"] is None else f"{summary['peak_memory_mb']:.0f} MB at most; "
    print(f"{cost}{memory}{selection}all files are in {run.path}")
