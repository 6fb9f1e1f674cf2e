"""Assemble a training from settings, which are its run, data, model and batches."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from scnf import parts, runs, streams
from scnf.data.batches import Batches
from scnf.data.sources import Dataset
from scnf.errors import InvalidArgument, UserError
from scnf.experiment import INPUTS, Experiment, prepare
from scnf.files import write_bytes
from scnf.m1 import M1_COPY
from scnf.machine import check_compiler, description
from scnf.models.flow import SemiConditionalFlow
from scnf.models.reader import ReaderFlow
from scnf.recipes import M1M2Recipe
from scnf.recipes.probe import probe
from scnf.registry import REGISTRATIONS
from scnf.runs import Run
from scnf.settings import (
    Settings,
    check_fixed_settings,
    check_model,
    load_settings,
    section_errors,
    setting_errors,
    to_yaml,
)
from scnf.streams import no_line, print_line, printable
from scnf.training.state import Checkpoint, load_checkpoint
from scnf.training.subject import ClassConditionalPart, WholeModel
from scnf.transforms import CompositeTransform
from scnf.weights import find_weights

Log = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """A training with its run, experiment and batches, and with the checkpoint from which it resumes.

    Attributes:
        run: Run, which is locked.
        experiment: Data, label split and model.
        subject: Trained part of the model.
        batches: Batches of the training rows.
        checkpoint: Checkpoint from which the training resumes; None for a new training.
        log: Function that prints a line for people.
        is_initialized: Whether the model has trained weights already.
    """

    run: Run
    experiment: Experiment
    subject: WholeModel
    batches: Batches
    checkpoint: Checkpoint | None = None
    log: Log = field(default=print_line)
    is_initialized: bool = False

    @property
    def settings(self) -> Settings:
        """The settings of the experiment."""
        return self.experiment.settings

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is printed, not even a progress bar."""
        return self.log is no_line


def start(settings: Settings, dataset: Dataset | None, locks: ExitStack, log: Log = print_line) -> Training:
    """Prepare a training, and create its run, which is locked until `locks` closes.

    Args:
        settings: All settings, which are not changed.
        dataset: Data of these settings, where they are already loaded.
        locks: Stack that holds the lock of the run.
        log: Function that prints a line for people.

    Raises:
        UserError: The data, weights or run directory cannot be used, or the settings fit no model.
    """
    experiment, subject, batches = components(settings, None, dataset, log)
    if settings.pretrained:
        weights = find_weights(settings.pretrained, Path(settings.runs.root), settings.model.name)
        if (weights.directory / "config.yaml").is_file():
            check_model(weights.settings(), settings, weights.directory)
        experiment.check_inputs(weights)
        subject.load_weights(weights.path)
        experiment.note_other_split(weights)
        experiment.settings.pretrained = weights.pinned  # `last` may be another run at the resume
    name = settings.runs.name or f"{experiment.dataset.name}-{settings.model.name}"
    run = Run.create(Path(settings.runs.root), name)
    locks.enter_context(run.locked())
    return Training(run, experiment, subject, batches, None, log, settings.pretrained is not None)


def resume(run: Run, overrides: Sequence[str], log: Log = print_line) -> Training:
    """Prepare a training that resumes a run, which is locked, from its last checkpoint.

    Args:
        run: Run to resume.
        overrides: Settings to change, `--name value`.
        log: Function that prints a line for people.

    Raises:
        UserError: The run or its data are incomplete, or a setting may not change.
    """
    if not (run.path / "config.yaml").is_file():
        raise UserError(f"{run.path} cannot resume, for its config.yaml is missing: restore it, or start a new run")
    parts.admit(run.path)
    settings = load_settings(run.path / "config.yaml", overrides, from_run=True)
    checkpoint = load_checkpoint(run)
    check_fixed_settings(checkpoint.binding.settings, settings, run.path)
    streams.make_output_optional()
    experiment, subject, batches = components(settings, run.path, None, log)
    experiment.check_split(run.path)
    return Training(run, experiment, subject, batches, checkpoint, log, settings.pretrained is not None)


def components(
    settings: Settings, run_directory: Path | None, dataset: Dataset | None = None, log: Log = print_line
) -> tuple[Experiment, WholeModel, Batches]:
    """Prepare and check the components of a training before anything is written (UserError).

    Args:
        settings: All settings, which are not changed.
        run_directory: Directory of an existing run, which may hold the M1 of an M1+M2.
        dataset: Data of these settings, where they are already loaded.
        log: Function that prints a line for people.
    """
    experiment, train_settings = prepare(settings, run_directory, dataset), settings.train
    for line in experiment.dataset.report:
        log(printable(line))
    experiment.check_views()
    if experiment.dataset.levels is None:
        if train_settings.baseline:
            raise UserError(
                "the baseline is a network of images, and these data are points: set train.baseline to false"
            )
        if settings.data.augmentation != "affine" and run_directory is None:  # an older run may have it
            raise UserError(
                "data.augmentation has an effect on images alone, and these data are points, which data.augment moves "
                "by noise: drop it"
            )
    if REGISTRATIONS:
        _probe(experiment)
    model, subject = experiment.model, WholeModel(experiment.model)
    if train_settings.adapt:
        if not isinstance(model, SemiConditionalFlow) or isinstance(model, ReaderFlow):
            raise UserError(
                f"the recipe {settings.model.name} has no class-conditional part to adapt: set train.adapt to false"
            )
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


def write_inputs(run: Run, experiment: Experiment) -> None:
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
