"""`scnf train`: train, evaluate once on test, leave everything in a run directory."""

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
from scnf.commands import options
from scnf.data.batches import Batches
from scnf.errors import UserError
from scnf.experiment import M1_COPY, Experiment, check_model, in_settings, prepare
from scnf.failures import traceback_in
from scnf.files import write_bytes
from scnf.machine import FreedMemory, check_compiler, description, peak_memory_mb
from scnf.models.flow import SemiConditionalFlow
from scnf.propagation.strategy import Propagation
from scnf.recipes import M1M2Recipe
from scnf.runs import Run
from scnf.settings import Settings, check_lasting, lasting, load_settings, to_yaml
from scnf.shipped import find_config
from scnf.threads import Threads
from scnf.training.checkpoint import save_tensors
from scnf.training.loop import OPTIMIZERS, Plan, trial_step
from scnf.training.loop import train as train_model
from scnf.training.metrics import figures_text
from scnf.training.state import Binding, Checkpoint, Progress, State, load_checkpoint, restore
from scnf.training.subject import ClassConditionalPart, Whole
from scnf.transforms import CompositeTransform
from scnf.weights import find_weights


def train(words: Sequence[str]) -> int:
    """Train, evaluate once on test, leave everything in a run directory, which is locked meanwhile."""
    own, overrides = options.take(words, "--config", "--resume")
    if own["--resume"] and own["--config"]:
        raise UserError("--resume goes on with the settings of its run: leave --config out")
    with ExitStack() as held:
        if not own["--resume"]:
            settings = load_settings(find_config(own["--config"] or "config.yaml"), overrides)
            streams.go_on_without()
            return _run(_begun(settings, held))
        run = Run.find(Path(load_settings(None, overrides).runs.root), own["--resume"])
        held.enter_context(run.locked())
        return _run(_resumed(run, overrides))


@dataclass(frozen=True)
class _Training:
    """What is trained, on what, and where it is kept."""

    run: Run
    experiment: Experiment
    subject: Whole
    batches: Batches
    kept: Checkpoint | None = None


def _begun(settings: Settings, held: ExitStack) -> _Training:
    """A new run, locked from here on, with its settings, split and environment."""
    experiment, subject, batches = _parts(settings, None)
    if settings.pretrained:
        weights = find_weights(settings.pretrained, Path(settings.runs.root), settings.model.recipe.name)
        if (weights.directory / "config.yaml").is_file():
            check_model(weights.settings(), settings, weights.directory)
        subject.load_weights(weights.path)
        experiment.note_other_split(weights)
        experiment.settings.pretrained = weights.pinned  # whatever `last` is by then
    name = settings.runs.name or f"{experiment.dataset.name}-{settings.model.recipe.name}"
    run = Run.create(Path(settings.runs.root), name)
    held.enter_context(run.locked())
    return _Training(run, experiment, subject, batches)


def _resumed(run: Run, overrides: Sequence[str]) -> _Training:
    """The training of a run that goes on from its last checkpoint."""
    if not (run.path / "config.yaml").is_file():
        raise UserError(f"{run.path} cannot go on, for its config.yaml is missing: restore it, or start a new run")
    parts.admit(run.path)
    settings = load_settings(run.path / "config.yaml", overrides, kept=True)

    kept = load_checkpoint(run)
    check_lasting(kept.binding.settings, settings, run.path)
    streams.go_on_without()
    experiment, subject, batches = _parts(settings, run.path)
    experiment.check_split(run.path)
    return _Training(run, experiment, subject, batches, kept)


def _parts(settings: Settings, near: Path | None) -> tuple[Experiment, Whole, Batches]:
    """What a training works with, checked before anything is written."""
    experiment, chosen = prepare(settings, near), settings.train
    experiment.check_views()
    model, subject = experiment.model, Whole(experiment.model)
    if chosen.adapt:
        if not isinstance(model, SemiConditionalFlow):
            raise UserError(
                f"the recipe {settings.model.recipe.name} has no shared flow to adapt: set train.adapt to false"
            )
        subject = ClassConditionalPart(model)
    batches = experiment.batches()
    if chosen.compile:
        check_compiler(experiment.device)
    for module in experiment.model.modules():
        if isinstance(module, CompositeTransform):
            module.reversible = chosen.reversible
    return experiment, subject, batches


def _run(training: _Training) -> int:
    """Train, and say how to go on where a signal ends it."""
    run, experiment = training.run, training.experiment
    try:
        if training.kept is None:
            _write_begin(run, experiment)
        with traceback_in(run.path), in_settings(experiment.settings.model.recipe, experiment.dataset.name):
            return _fit(training)
    except KeyboardInterrupt as error:
        if run.checkpoint("last").is_file():
            error.add_note(f"go on with: scnf train --resume {run.path}")
        else:
            error.add_note(f"{run.path} had not come to its first checkpoint, and nothing can be resumed: start anew")
        raise
    finally:
        run.close()


def _write_begin(run: Run, experiment: Experiment) -> None:
    """Write what is known before a training: settings, label split, environment, and a copy of M1."""
    if experiment.m1_files:
        model = experiment.settings.model
        assert isinstance(model.recipe, M1M2Recipe)
        model.recipe = replace(model.recipe, m1=str(run.path / M1_COPY))  # whatever `last` is by then
    run.write_text("config.yaml", to_yaml(experiment.settings))
    run.write_json("split.json", experiment.split.to_json())
    about = {name: value for name, value in description(experiment.device).items() if name != "threads"}
    run.write_json("env.json", runs.environment(sys.argv, about))  # how many threads, the training finds
    parts.keep(run.path)
    for name, source in experiment.m1_files.items():
        write_bytes(run.path / M1_COPY / name, source.read_bytes())


def _fit(training: _Training) -> int:
    """Train to the end, or to a signal, and finish the run."""
    run, experiment, subject = training.run, training.experiment, training.subject
    settings, memory = experiment.settings, FreedMemory()
    torch.manual_seed(settings.seed)
    if experiment.model.likelihood_of == "labels" and settings.train.select == "bits_per_dim":
        raise UserError("a plain classifier knows no p(x): set train.select to accuracy or last")
    parameters, plan, optimizer = _announce(training), _plan(experiment), _optimizer(training)
    steps = plan.steps(training.batches)
    threads = _settle_threads(training, plan)  # before any number is computed: bits hang on how many there are
    binding = Binding(run.key, experiment.split.sha256, lasting(settings), experiment.arithmetic())
    state = None if training.kept is None else _restored(training, optimizer, binding, steps)
    if training.kept is not None and state is None:
        print("it is finished: nothing is left to do, and the test split is not looked at again")
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
            state or _fresh(subject, batches, optimizer, settings),
            settings.objective,
            batches,
            run,
            plan,
            lambda kept: experiment.figures("validation", subject.on_inputs(kept)),
            guess=_propagation(experiment, batches, subject.fixed),
            binding=binding,
            say=options.say,
            after_step=after_step,
        )
    except Exception:
        run.write_json("summary.json", summary)
        raise
    summary |= _spent(progress, encoding, experiment)
    if progress.stopped_by is not None:
        run.write_json("summary.json", summary | {"status": "interrupted"})
        print(f"interrupted after step {progress.total_step}; go on with: scnf train --resume {run.path}")
        return 128 + progress.stopped_by
    _finish(run, experiment, summary | {"status": "finished", "selected_epoch": progress.best_epoch})
    return 0


def _plan(experiment: Experiment) -> Plan:
    """How to train, by the settings and what the device can."""
    chosen = experiment.settings.train
    plan = Plan(**{each.name: getattr(chosen, each.name) for each in fields(Plan) if each.name != "autocast"})
    return replace(plan, autocast=experiment.autocast)


def _optimizer(training: _Training) -> torch.optim.Optimizer:
    """The optimiser of all parameters that learn."""
    chosen = training.experiment.settings.train
    learned = [parameter for parameter in training.subject.trained.parameters() if parameter.requires_grad]
    return OPTIMIZERS[chosen.optimizer](learned, lr=chosen.lr, weight_decay=chosen.weight_decay)


def _settle_threads(training: _Training, plan: Plan) -> Threads | None:
    """Set the number of threads, by a trial of a training step where one is to come."""
    experiment, subject, batches = training.experiment, training.subject, training.batches

    def begin() -> Callable[[], Any]:
        """A training step, or a piece of an evaluation where none is to come, or waits for the number of threads."""
        if plan.steps(batches) and subject.is_encoded(batches):
            return trial_step(subject.trained, experiment.settings.objective, batches, plan.autocast)
        return experiment.evaluation()

    before = training.kept and training.kept.binding.machine.get("threads")
    return experiment.settle_threads(begin, options.say, before)


def _announce(training: _Training) -> int:
    """Say what is trained on what; the number of the model's parameters."""
    experiment, batches = training.experiment, training.batches
    parameters = sum(parameter.numel() for parameter in experiment.model.parameters())
    print(
        f"{training.run.path}: {experiment.settings.model.recipe.name} with {parameters:,} parameters on "
        f"{experiment.dataset.name}, {len(batches.labelled)} labelled of {len(batches.x):,} training rows, "
        f"{experiment.device}",
        flush=True,
    )
    if batches.num_labelled == 0 and len(batches.labelled):
        print("note: no label is read, for data.labelled_share is 0", flush=True)
    return parameters


def _restored(training: _Training, optimizer: Any, binding: Binding, steps: int) -> State | None:
    """The state of the checkpoint, and a run that is ready to go on; None where nothing is left to do."""
    run, kept, settings = training.run, training.kept, training.experiment.settings
    assert kept is not None
    model, guesses = training.subject.trained, settings.objective.propagations > 0
    state = restore(kept, model, optimizer, training.batches, run, settings.train.ema, binding.split, guesses)
    found = run.read_json("summary.json") if (run.path / "summary.json").is_file() else None
    finished = isinstance(found, dict) and found.get("status") == "finished"
    made = all((run.path / name).is_file() for name in (run.weights.name, "curves.png"))
    left = steps - state.progress.total_step
    if left <= 0 and finished and made:
        return None
    print(f"going on after epoch {state.progress.epoch}, step {state.progress.total_step}", flush=True)
    if other := kept.binding.differences(binding.machine):
        print(f"note: {', '.join(other)}: the end is not bit for bit that without a stop", flush=True)
    # only now: settings that the checkpoint does not fit must not stay behind
    run.write_text("config.yaml", to_yaml(settings))
    if left > 0:
        for name in ("summary.json", run.weights.name, "samples.png", "curves.png"):  # of an earlier end
            (run.path / name).unlink(missing_ok=True)
    return state


def _fresh(subject: Whole, batches: Batches, optimizer: Any, settings: Settings) -> State:
    """The state before the first step; layers that start from data have started."""
    if subject.starts_from_data(settings.pretrained is not None):
        first = next(batches.epoch(0))
        subject.trained.initialize(first.x, first.y)
    return State(subject.trained, optimizer)


def _propagation(experiment: Experiment, batches: Batches, fixed: bool) -> Any:
    """What guesses labels in a training, see :class:`scnf.propagation.strategy.Propagation`; None without it."""
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
        options.say,
    )


def _spent(progress: Progress, encoding: float, experiment: Experiment) -> dict[str, Any]:
    """Of the summary: how far the training came, and what it took; `encoding` in minutes."""
    return {
        "epochs": progress.epoch,
        "steps": progress.total_step,
        "minutes": round(encoding + progress.minutes, 3),
        "images_per_second": round(progress.images / progress.train_seconds, 1) if progress.train_seconds else None,
        "threads": torch.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(experiment.device),
    }


def _finish(run: Run, experiment: Experiment, summary: dict[str, Any]) -> None:
    """The kept weights, their figures (the one look at the test split), pictures, and where all that is."""
    model = experiment.model
    save_tensors(run.weights, model.state_dict(), {"recipe": experiment.settings.model.recipe.name})
    summary["validation"], summary["test"] = experiment.figures("validation"), experiment.figures("test")
    if model.likelihood_of != "labels":
        classes = list(range(experiment.dataset.num_classes))
        sample_picture(model, run.path / "samples.png", classes, 10, experiment.shape, experiment.device)
    plots.curves(run.read_metrics(), run.path / "curves.png")
    run.write_json("summary.json", summary)  # the last file: with it, the run is whole
    _print_summary(run, summary)


def _print_summary(run: Run, summary: dict[str, Any]) -> None:

    for split in ("validation", "test"):
        print(f"{split:<10}  {figures_text(summary[split])}")
    rate = f", {summary['images_per_second']:.0f} images/s" if summary["images_per_second"] else ""
    kept = f"the weights of epoch {summary['selected_epoch']} are kept, " if summary["selected_epoch"] else ""
    minutes = summary["minutes"]
    spent = f"{minutes:.1f} minutes" if minutes >= 1 else f"{60 * minutes:.0f} seconds"
    cost = f"{spent}{rate}, " if summary["steps"] else ""
    memory = "" if summary["peak_memory_mb"] is None else f"{summary['peak_memory_mb']:.0f} MB at most; "
    print(f"{cost}{memory}{kept}all is in {run.path}")
