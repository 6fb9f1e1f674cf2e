"""Build an experiment from settings, which is the data, label split, model and device of a command."""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scnf.batch import Batch
from scnf.data.augment import Augmentation
from scnf.data.backbone import Backbone
from scnf.data.batches import Batches
from scnf.data.columns import Columns
from scnf.data.inputs import Inputs
from scnf.data.labels import Split, draw_split
from scnf.data.sources import Dataset
from scnf.distributions import ClassPrior, make_prior
from scnf.errors import InvalidArgument, UserError
from scnf.m1 import build_m1, find_m1
from scnf.machine import description, has_bfloat16
from scnf.models.base import JointModel
from scnf.native import library
from scnf.recipes import M1M2Recipe, Recipe, build
from scnf.runs import Run
from scnf.settings import OTHER_WEIGHTS, Settings, check_model, not_finite_errors, section_errors, setting_errors
from scnf.settings.schema import DEFAULT_RECIPE
from scnf.settings_data import load_data, resolve
from scnf.threads import RANDOM, Threads, one_thread
from scnf.training.checkpoint import load_file
from scnf.training.metrics import NOISE_DRAWS, Evaluation, check_metrics, evaluate_rows, noisy_batches
from scnf.weights import Weights, find_weights

INPUTS = "inputs.json"
"""File in a run, or beside shipped weights, with the inputs and classes of the model."""
_ADAPT_SEED_OFFSET = 1_000_003
"""The offset that `train.adapt` adds to the seed. The flow may have had the same seed and drawn the same class
means."""


@dataclass(frozen=True)
class Experiment:
    """The data, label split and model of some settings, which :func:`prepare` builds.

    Attributes:
        settings: All settings.
        dataset: Images or points, with all labels.
        split: Label split, which selects the labelled rows and the validation rows.
        visible: Labels [N] of the training rows, UNLABELLED where hidden.
        model: Model on the device.
        device: Device of the model.
        m1_files: Files of the trained M1 by name, for M1+M2.
    """

    settings: Settings
    dataset: Dataset
    split: Split
    visible: Tensor
    model: JointModel
    device: torch.device
    m1_files: dict[str, Path] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, (C, H, W) or (D,)."""
        return tuple(self.dataset.train_x.shape[1:])

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of moved images."""
        return Augmentation(self.settings.data.augment, self.settings.data.augmentation)

    @property
    def autocast(self) -> bool:
        """Whether networks train in bf16."""
        return self.settings.train.autocast and has_bfloat16(self.device)

    def set_threads(
        self, make_trial: Callable[[], Callable[[], Any]], log: Callable[[str], None], num_threads: int | None = None
    ) -> Threads | None:
        """Set the number of threads to the setting `threads`, else to the number of the run, else by a trial.

        Args:
            make_trial: Function that returns a piece of work to time.
            log: Function that prints a line.
            num_threads: Number of threads of a resumed run, so that its results stay bit for bit the same.

        Returns:
            The object that may change the number later, or None where the number is fixed.
        """
        if self.settings.threads != "auto":
            torch.set_num_threads(self.settings.threads)
        if self.settings.threads != "auto" or self.device.type != "cpu":
            return None
        library()  # the first use compiles the kernels, which no trial should time
        threads = Threads(make_trial, log, retry=not self.settings.train.compile)
        if num_threads is None:
            threads.choose()
        else:
            torch.set_num_threads(min(num_threads, torch.get_num_threads()))
        return threads

    def trial_evaluation(self) -> Callable[[], Any]:
        """Return a small piece of an evaluation to time, which has no side effects on the random state."""
        model = self.model.eval()
        x = next(noisy_batches(self.dataset.train_x[:64], self.dataset.levels, 64, seed=0)).to(self.device)

        def work() -> None:
            with torch.no_grad(), torch.random.fork_rng([]):
                model(Batch.unlabelled(x))

        return work

    def arithmetic(self) -> dict[str, Any]:
        """Return everything on which bitwise reproducibility depends, besides the fixed settings of the run."""
        train, kernels = self.settings.train, library() if self.device.type == "cpu" else None
        return {
            **{name: value for name, value in description(self.device).items() if name != "cpus"},
            "torch": torch.__version__,
            "kernels": "off" if kernels is None else kernels.key,
            "bf16": self.autocast,
            "compile": train.compile,
            "reversible": train.reversible,
            "class_chunk": getattr(self.settings.model, "class_chunk", None) or "all",
        }

    def batches(self) -> Batches:
        """Return batches of the training rows on the device, without hidden labels.

        Raises:
            UserError: Labels of these data cannot be propagated, or `data.augment` has no effect.
        """
        settings, rows = self.settings, self.split.train
        data, objective, train = settings.data, settings.objective, settings.train
        over_neighbours = objective.propagations and objective.neighbours != "posterior"
        if over_neighbours and self.dataset.levels is None:
            raise UserError(
                "labels of points cannot be propagated over cosine similarities: set objective.neighbours to "
                "posterior, or objective.propagations to 0"
            )
        unlabelled = set(range(self.dataset.num_classes)) - set(self.visible.unique().tolist())
        if unlabelled and over_neighbours:
            raise UserError(
                f"no row of class {', '.join(map(str, sorted(unlabelled)))} has a label to propagate: set "
                "data.balanced to true, raise data.num_labels, or set objective.propagations to 0"
            )
        views, in_place = objective.consistency_weight > 0, self.model.likelihood_of == "labels"
        with setting_errors(settings.model, self.dataset.name):
            batches = Batches(
                self.dataset.train_x.to(self.device),
                self.visible[rows].to(self.device),
                train.batch_size,
                data.labelled_share,
                settings.seed,
                self.dataset.levels,
                self.augmentation,
                views,
                train.passes,
                in_place,
                Columns.of(self.dataset.train_x[rows].to(self.device)) if self.dataset.levels is None else None,
                rows if len(self.split.validation) else None,
            )
        if self.augmentation and not (views or in_place or objective.classifier_weight or train.eval_views):
            raise UserError(
                "moved images count in cross-entropies alone, and the objective has none: set data.augment to 0, or "
                "objective.classifier_weight or objective.consistency_weight above 0"
            )
        return batches

    def check_views(self) -> None:
        """Refuse `train.eval_views` where no augmentation moves the rows (UserError)."""
        if self.settings.train.eval_views and self.dataset.levels is None:
            raise UserError("points have no views: set train.eval_views to 0")
        if self.settings.train.eval_views and not self.augmentation:
            raise UserError(
                "views are moved versions of each image, and data.augment, which moves them, is 0: raise it, or set "
                "train.eval_views to 0 (metrics average several draws of the noise anyway)"
            )

    def rows_of(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the rows x and the labels y of "validation" or "test"."""
        data, rows = self.dataset, self.split.validation
        return (data.test_x, data.test_y) if split == "test" else (data.train_x[rows], data.train_y[rows])

    def evaluate(self, split: str, model: JointModel | None = None) -> dict[str, float]:
        """Evaluate a model on "validation" or "test", and return its metrics, none where the split has no rows.

        Args:
            split: Split of the rows.
            model: Model under training, evaluated with one draw of the noise and without views. None evaluates the
                model of the experiment with `NOISE_DRAWS` draws and with views.

        Raises:
            UserError: A metric of the experiment's model is NaN. For a model under training, NaN is returned.
        """
        evaluation = self.evaluate_rows(split, model)
        return {} if evaluation is None else evaluation.metrics

    def evaluate_rows(self, split: str, model: JointModel | None = None) -> Evaluation | None:
        """Return the metrics of :meth:`evaluate` with the posteriors behind them, or None where there are no rows.

        Raises:
            UserError: As :meth:`evaluate`.
        """
        train = self.settings.train
        x, y = self.rows_of(split)
        if not len(x):
            return None
        evaluation = evaluate_rows(
            self.model if model is None else model,
            x.to(self.device),
            y.to(self.device),
            self.dataset.levels,
            train.eval_batch_size,
            draws=NOISE_DRAWS if model is None else 1,
            views=train.eval_views if model is None else 0,
            augment=self.augmentation,
        )
        if model is None:
            with not_finite_errors(OTHER_WEIGHTS):
                check_metrics(evaluation.metrics, split)
        return evaluation

    def has_same_split(self, directory: Path) -> bool:
        """Return whether the label split in `directory` equals the label split of the experiment."""
        return bool(Run(directory).read_json("split.json") == self.split.to_json())

    def check_split(self, directory: Path) -> None:
        """Refuse a `directory` with another label split, because of validation leakage (UserError)."""
        if not self.has_same_split(directory):
            raise UserError(
                f"{directory} was trained with another label split than these settings draw, so that validation would "
                "use rows whose labels were trained on. Keep data.* as in the run, or start a new run"
            )

    def check_inputs(self, weights: Weights) -> None:
        """Refuse weights of other classes or of another backbone than the data have (UserError).

        The numbers of classes and of inputs may be the same.
        """
        if not (weights.directory / INPUTS).is_file():
            return
        before, now = read_inputs(weights), self.dataset.inputs()
        if self.dataset.class_names and before.class_names != now.class_names:
            raise UserError(
                f"{weights.path} knows the classes {', '.join(before.class_names[:10])}, and the data have "
                f"{', '.join(now.class_names[:10])}: set data.classes to those of the weights, in their order, or take "
                "other weights"
            )
        if before.backbone != now.backbone:
            raise UserError(
                f"{weights.path} takes {_text(before.backbone)}, and the data are {_text(now.backbone)}: keep "
                "data.features and data.size as they were"
            )

    def note_other_split(self, weights: Weights) -> None:
        """Print a note where the weights were trained on other data, or on rows of the validation split."""
        if not all((weights.directory / name).is_file() for name in ("config.yaml", "split.json")):
            return
        before, now = weights.settings().data.name, self.settings.data.name
        if before != now:
            print(f"note: {weights.path} was trained on {before}, not on {now}")
        elif len(self.split.validation) and not self.has_same_split(weights.directory):
            print(
                f"note: {weights.path} saw another label split, which may hold validation rows of this one: "
                "validation metrics may be too good"
            )


def prepare(settings: Settings, run_directory: Path | None = None, dataset: Dataset | None = None) -> Experiment:
    """Load the data, draw the label split, seed torch and build the model.

    Args:
        settings: All settings, which are not changed. The experiment holds a copy in which `data.num_labels` is
            resolved.
        run_directory: Directory of an existing run, which may hold the M1 of an M1+M2.
        dataset: Data of these settings, where they are already loaded.

    Raises:
        UserError: The data or an M1 are missing, or the settings fit no model.
    """
    settings = deepcopy(settings)
    device = _device(settings.device)
    dataset = dataset or load_data(settings.data)
    data, classes = settings.data, dataset.num_classes
    resolve(data, dataset)
    with section_errors("data"):
        split = draw_split(
            dataset.train_y,
            classes,
            None if data.num_labels == "all" else data.num_labels,
            data.num_validation,
            data.data_seed,
            data.balanced,
        )
    visible, shape = split.visible(dataset.train_y), tuple(dataset.train_x.shape[1:])
    torch.manual_seed(settings.seed + (_ADAPT_SEED_OFFSET if settings.train.adapt else 0))
    recipe, m1 = settings.model, None
    if isinstance(recipe, M1M2Recipe):
        if recipe.m1 is None:
            raise UserError("model.m1 must be a trained M1: train one (--config mnist_m1.yaml), then set it to its run")
        m1 = find_m1(str(recipe.m1), settings, run_directory)
    with setting_errors(recipe, dataset.name):
        prior = make_prior(recipe.prior, classes, visible)
        if m1 is not None and isinstance(recipe, M1M2Recipe):
            recipe = replace(recipe, m1=build_m1(m1, shape, classes, dataset.levels))
        with one_thread():  # the last bits of initial weights depend on the number of threads
            model: JointModel = build(recipe, shape, classes, prior, dataset.levels)
    files = {} if m1 is None else {"config.yaml": m1.config, "model.safetensors": m1.path}
    experiment = Experiment(settings, dataset, split, visible, model.to(device), device, files)
    if m1 is not None and run_directory is None:
        print(f"M1: {m1.path}")
        experiment.note_other_split(m1)
    return experiment


def load_trained(ref: str, logs: Path, overrides: Sequence[str] = (), dataset: Dataset | None = None) -> Experiment:
    """Load an experiment with trained weights, from the weights and the settings beside them.

    Args:
        ref: Reference to weights, as in :func:`scnf.weights.find_weights`.
        logs: Directory of all runs.
        overrides: Settings to change, `--name value`.
        dataset: Data, as in :func:`prepare`.

    Raises:
        UserError: There are no such weights, or an override changes the function that they compute.
    """
    weights = find_weights(ref, logs, DEFAULT_RECIPE)
    settings = _settings_of(weights, ref, overrides)
    experiment = prepare(settings, weights.directory, dataset)
    if (weights.directory / "split.json").is_file():
        experiment.check_split(weights.directory)
    experiment.check_inputs(weights)
    _load_weights(experiment.model, weights)
    return experiment


def load_model(ref: str, logs: Path, overrides: Sequence[str] = ()) -> tuple[JointModel, Inputs]:
    """Load a model with trained weights, and the inputs that it takes, without the data of its training.

    Args:
        ref: Reference to weights, as in :func:`scnf.weights.find_weights`.
        logs: Directory of all runs.
        overrides: Settings to change, `--name value`.

    Raises:
        UserError: There are no such weights, or they are damaged.
    """
    weights = find_weights(ref, logs, DEFAULT_RECIPE)
    if not (weights.directory / INPUTS).is_file():  # an earlier version wrote the run, and the data know the inputs
        experiment = load_trained(ref, logs, overrides)
        return experiment.model, experiment.dataset.inputs()
    settings, inputs = _settings_of(weights, ref, overrides), read_inputs(weights)
    recipe, classes = settings.model, inputs.num_classes
    with setting_errors(recipe, settings.data.name):
        if isinstance(recipe, M1M2Recipe) and recipe.m1 is not None:
            m1 = find_m1(str(recipe.m1), settings, weights.directory)
            recipe = replace(recipe, m1=build_m1(m1, inputs.shape, classes, inputs.levels))
        model = empty_model(recipe, inputs)
    _load_weights(model, weights)
    return model.to(_device(settings.device)), inputs


def _text(backbone: Backbone | None) -> str:
    if backbone is None:
        return "no embeddings of a network"
    size = "x".join(map(str, backbone.shape[1:]))
    return f"embeddings of images of {size} by {backbone.network} ({backbone.weights}, {backbone.sha256[:12]})"


def read_inputs(weights: Weights) -> Inputs:
    """Read the inputs and classes of weights from the file beside them.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return Inputs.from_json(Run(weights.directory).read_json(INPUTS))
    except InvalidArgument as error:
        raise UserError(f"{weights.directory / INPUTS} is damaged: {error}. Restore the file") from error


def empty_model(recipe: Recipe, inputs: Inputs) -> JointModel:
    """Build a model whose weights, including the probabilities of its class prior, are still to be loaded."""
    prior = ClassPrior(inputs.num_classes, learned=recipe.prior == "learned")
    with RANDOM, torch.random.fork_rng([]):
        model: JointModel = build(recipe, inputs.shape, inputs.num_classes, prior, inputs.levels)
    return model


def _settings_of(weights: Weights, ref: str, overrides: Sequence[str]) -> Settings:
    """Return the settings of trained weights, with overrides that do not change the function that they compute."""
    trained = weights.settings()
    settings = weights.settings(overrides) if overrides else trained
    if settings.pretrained != trained.pretrained:
        raise UserError(
            f"this command reads the weights of {ref}: name other weights in place of {ref}, and leave --pretrained out"
        )
    check_model(trained, settings, weights.directory)
    return settings


def _load_weights(model: JointModel, weights: Weights) -> None:
    """Load the weights of a run, of shipped weights or of a file into the model (UserError)."""
    about = load_file(model, weights.path)
    run = Run(weights.directory)
    if weights.path == run.checkpoint("best") and (run.path / "env.json").is_file() and about.get("run") != run.key:
        raise UserError(f"{weights.path} belongs to another run than {weights.directory}: restore the run's own file")
    if weights.unfinished:
        print(f"note: {weights.directory} is not finished: these are its best weights so far", file=sys.stderr)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda and this machine offers none to torch: use --device cpu or --device auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
