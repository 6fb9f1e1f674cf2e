"""From settings to what a command works with: data, label split, model, device, trained weights."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scnf.arguments import HOW, arguments_of
from scnf.batch import Batch
from scnf.data.batches import Batches
from scnf.data.labels import Split, draw_split
from scnf.data.sources import Dataset, load
from scnf.distributions import make_prior
from scnf.errors import InvalidArgument, UserError
from scnf.machine import description, has_bfloat16
from scnf.models.base import JointModel
from scnf.models.vae import VAE
from scnf.native import library
from scnf.recipes import ClassConditionalPart, M1M2Recipe, Recipe, build
from scnf.runs import Run
from scnf.settings import Settings
from scnf.settings.schema import DEFAULT_RECIPE
from scnf.shipped import SHIPPED
from scnf.threads import Threads, one_thread
from scnf.training.checkpoint import load_file
from scnf.training.metrics import NOISE_DRAWS, check_figures, evaluate, noisy_batches
from scnf.weights import Weights, find_weights

M1_COPY = "m1"
"""Directory in a run of M1+M2 with what is needed to build its M1 again."""
_ADAPTED = 1_000_003
"""What is added to the seed where a flow is adapted: it may have had the same, and drawn the same class means."""


@dataclass(frozen=True)
class Experiment:
    """Data, label split and model of some settings; :func:`prepare` makes it.

    Attributes:
        settings: all of them.
        dataset: images or points, with all labels.
        split: which rows keep their label, and which validate.
        visible: [N], the labels of the training rows, UNLABELLED where hidden.
        model: on the device.
        device: where the model computes.
        m1_files: of M1+M2, the files of the trained M1 by name.
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
        """Of one input, (C, H, W) or (D,)."""
        return tuple(self.dataset.train_x.shape[1:])

    @property
    def autocast(self) -> bool:
        """Whether networks train in bf16."""
        return self.settings.train.autocast and has_bfloat16(self.device)

    def settle_threads(
        self, begin: Callable[[], Callable[[], Any]], say: Callable[[str], None], kept: int | None = None
    ) -> Threads | None:
        """Set the number of threads: what `threads` says, else what a run had before, else by a trial.

        Args:
            begin: gives a piece of the work to time.
            say: takes a line for people.
            kept: the number of a run that is resumed, so that its bits stay the same.

        Returns:
            what may change the number later, None where it is not to change.
        """
        if self.settings.threads != "auto":
            torch.set_num_threads(self.settings.threads)
        if self.settings.threads != "auto" or self.device.type != "cpu":
            return None
        threads = Threads(begin, say, again=not self.settings.train.compile)
        if kept is None:
            threads.choose()
        else:
            torch.set_num_threads(min(kept, torch.get_num_threads()))
        return threads

    def evaluation(self) -> Callable[[], Any]:
        """A small piece of an evaluation, which leaves nothing behind."""
        model = self.model.eval()
        x = next(noisy_batches(self.dataset.train_x[:64], self.dataset.levels, 64, seed=0)).to(self.device)

        def work() -> None:
            with torch.no_grad(), torch.random.fork_rng([]):
                model(Batch.unlabelled(x))

        return work

    def arithmetic(self) -> dict[str, Any]:
        """What the last bits of a training hang on, beside the settings that stay for the whole of a run."""
        train, kernels = self.settings.train, library() if self.device.type == "cpu" else None
        return {
            **{name: value for name, value in description(self.device).items() if name != "cpus"},
            "torch": torch.__version__,
            "kernels": "off" if kernels is None else kernels.key,
            "bf16": self.autocast,
            "compile": train.compile,
            "reversible": train.reversible,
            "class_chunk": getattr(self.settings.model.recipe, "class_chunk", None) or "all",
        }

    def batches(self) -> Batches:
        """The training rows, on the device, with hidden labels gone; UserError where there are none to propagate."""
        settings, rows = self.settings, self.split.train
        data, objective, train = settings.data, settings.objective, settings.train
        if objective.propagations and self.dataset.levels is None:
            raise UserError("labels walk over cosines, which say little about points: set objective.propagations to 0")
        unseen = set(range(self.dataset.num_classes)) - set(self.visible.unique().tolist())
        if unseen and objective.propagations:
            raise UserError(
                f"no row of class {', '.join(map(str, sorted(unseen)))} has a label, and so none would be propagated: "
                "set data.balanced to true, raise data.num_labels, or set objective.propagations to 0"
            )
        views, in_place = objective.consistency_weight > 0, self.model.likelihood_of == "labels"
        batches = Batches(
            self.dataset.train_x[rows].to(self.device),
            self.visible[rows].to(self.device),
            train.batch_size,
            data.labelled_share,
            settings.seed,
            self.dataset.levels,
            data.augment,
            views,
            train.passes,
            in_place,
        )
        if data.augment and not (views or in_place or objective.classifier_weight or train.eval_views):
            raise UserError(
                "moved images count in cross-entropies alone, and there are none: set data.augment to 0, or "
                "objective.classifier_weight or objective.consistency_weight above 0"
            )
        return batches

    def check_views(self) -> None:
        """UserError where `train.eval_views` asks for versions of rows that nothing moves."""
        if self.settings.train.eval_views and self.dataset.levels is None:
            raise UserError("points have no views: set train.eval_views to 0")
        if self.settings.train.eval_views and not self.settings.data.augment:
            raise UserError(
                "views are moved versions of each image, and data.augment, which moves them, is 0: raise it, or set "
                "train.eval_views to 0 (figures are of several draws of the noise anyway)"
            )

    def rows_of(self, split: str) -> tuple[Tensor, Tensor]:
        """Rows x and their labels y of "validation" or "test"."""
        data, rows = self.dataset, self.split.validation
        return (data.test_x, data.test_y) if split == "test" else (data.train_x[rows], data.train_y[rows])

    def figures(self, split: str, model: JointModel | None = None) -> dict[str, float]:
        """Figures on "validation" or "test" of the experiment's model; of another from one draw, without views.

        Those of the experiment's model are reported: UserError where one is NaN. A training goes on from such a figure.
        """
        train = self.settings.train
        x, y = self.rows_of(split)
        figures = evaluate(
            self.model if model is None else model,
            x.to(self.device),
            y.to(self.device),
            self.dataset.levels,
            train.eval_batch_size,
            draws=NOISE_DRAWS if model is None else 1,
            views=train.eval_views if model is None else 0,
            augment=self.settings.data.augment,
        )
        if model is None:
            check_figures(figures, split)
        return figures

    def same_split(self, directory: Path) -> bool:
        """Whether the label split that `directory` holds is that of the experiment."""
        return bool(Run(directory).read_json("split.json") == self.split.to_json())

    def check_split(self, directory: Path) -> None:
        """UserError where `directory` holds another label split than that of the experiment."""
        if not self.same_split(directory):
            raise UserError(
                f"{directory} was trained with another label split than these settings draw, and so validation would "
                "meet rows whose labels it has learned. Leave data.* as the run has it, or start a new run"
            )

    def note_other_split(self, weights: Weights) -> None:
        """Print a line where the weights were trained on other data, or have seen rows that validate here."""
        if not all((weights.directory / name).is_file() for name in ("config.yaml", "split.json")):
            return
        seen, wanted = weights.settings().data.name, self.settings.data.name
        if seen != wanted:
            print(f"note: {weights.path} was trained on {seen}, not on {wanted}")
        elif not self.same_split(weights.directory):
            print(
                f"note: {weights.path} saw another label split, and with it rows that validate here: validation may "
                "flatter"
            )


def prepare(settings: Settings, near: Path | None = None, dataset: Dataset | None = None) -> Experiment:
    """Load the data, draw the label split, seed torch and build the model.

    Args:
        settings: all of them, which stay as they are. Of the experiment's own, `data.num_labels` is resolved.
        near: the run directory, where it may hold the M1 of an M1+M2.
        dataset: the data of these settings, where they are loaded already.

    Raises:
        UserError: the data or an M1 are not there, or the settings fit no model.
    """
    settings = deepcopy(settings)
    device = _device(settings.device)
    dataset = dataset or load(settings.data.name, settings.data.root)
    data, classes = settings.data, dataset.num_classes
    data.resolve_labels(classes)
    split = draw_split(dataset.train_y, classes, data.num_labels, data.num_validation, data.data_seed, data.balanced)
    visible, shape = split.visible(dataset.train_y), tuple(dataset.train_x.shape[1:])
    torch.manual_seed(settings.seed + (_ADAPTED if settings.train.adapt else 0))
    recipe, m1 = settings.model.recipe, None
    if isinstance(recipe, M1M2Recipe) and recipe.m1 is not None:
        m1 = _find_m1(str(recipe.m1), settings, near)
    with in_settings(recipe, dataset.name):
        prior = make_prior(settings.model.prior, classes, visible)
        if m1 is not None and isinstance(recipe, M1M2Recipe):
            recipe = replace(recipe, m1=_build_m1(m1, shape, classes, dataset.levels))
        with one_thread():  # bits of initial weights hang on how many there are
            model: JointModel = build(recipe, shape, classes, prior, dataset.levels)
    files = {} if m1 is None else {"config.yaml": m1.config, "model.safetensors": m1.path}
    experiment = Experiment(settings, dataset, split, visible, model.to(device), device, files)
    if m1 is not None and near is None:
        print(f"M1: {m1.path}")
        experiment.note_other_split(m1)
    return experiment


@contextmanager
def in_settings(recipe: Recipe, data: str) -> Iterator[None]:
    """Say in words about settings what a model says about an argument of its recipe, or about the data.

    Args:
        recipe: of the model.
        data: the name of the data.

    Raises:
        UserError: in place of an :class:`~scnf.errors.InvalidArgument` that names one of these. Any other is a
            bug, and stays.
    """
    try:
        yield
    except InvalidArgument as error:
        names = {name: f"model.{name}" for name in arguments_of(type(recipe))}
        names |= {"prior": "model.prior", "probabilities": "model.prior"}
        if error.argument in names:
            raise UserError(f"{names[error.argument]} {error.problem}") from error
        if error.argument in ("shape", "levels", "inputs"):
            raise UserError(f"the recipe {recipe.name} does not take the data {data}: {error}") from error
        raise


def load_trained(ref: str, logs: Path, overrides: Sequence[str] = (), dataset: Dataset | None = None) -> Experiment:
    """The experiment whose trained weights `ref` names, with these weights, by the settings that lie beside them.

    Args:
        ref: as of :func:`scnf.weights.find_weights`.
        logs: the directory of all runs.
        overrides: settings to change, `--name value`.
        dataset: as of :func:`prepare`.

    Raises:
        UserError: there are no such weights, or a setting makes another model of them.
    """
    weights = find_weights(ref, logs, DEFAULT_RECIPE)
    kept = weights.settings()
    settings = weights.settings(overrides) if overrides else kept
    if settings.pretrained != kept.pretrained:
        raise UserError(f"this reads the weights of {ref}: name others in their place, without --pretrained")
    check_model(kept, settings, weights.directory)
    experiment = prepare(settings, weights.directory, dataset)
    if (weights.directory / "split.json").is_file():
        experiment.check_split(weights.directory)
    about = load_file(experiment.model, weights.path)
    run = Run(weights.directory)
    if weights.path == run.checkpoint("best") and (run.path / "env.json").is_file() and about.get("run") != run.key:
        raise UserError(f"{weights.path} belongs to another run than {weights.directory}: restore the run's own file")
    if weights.unfinished:
        print(f"note: {weights.directory} is not finished: these are its best weights so far", file=sys.stderr)
    return experiment


def check_model(trained: Settings, settings: Settings, directory: Path) -> None:
    """Refuse settings with which the weights of `directory` would fit, and make another function than the trained one.

    With `train.adapt`, the class-conditional part may be another.
    """
    recipe = type(settings.model.recipe)
    if type(trained.model.recipe) is not recipe:
        return  # shapes will not fit
    before, now = trained.model.recipe.arguments(), settings.model.recipe.arguments()
    adapted = arguments_of(ClassConditionalPart) if settings.train.adapt else {}
    for name, value in now.items():
        free = HOW in arguments_of(recipe)[name].notes or name in adapted
        if before.get(name, value) != value and not free:
            raise UserError(
                f"model.{name} is {before[name]} in {directory}, not {value}: with it the weights make another model. "
                "Leave it out, or train anew"
            )


def _find_m1(ref: str, settings: Settings, near: Path | None) -> Weights:
    """The trained M1 that `model.m1` names; a run of M1+M2 keeps a copy of it, which goes before."""
    if ref == SHIPPED:
        raise UserError("no M1 ships: train one (--config mnist_m1.yaml), then set model.m1 to its run")
    copy = None if near is None else near / M1_COPY
    ref = str(copy) if copy and copy.is_dir() else ref
    weights = find_weights(ref, Path(settings.runs.root), settings.model.recipe.name)
    if not (weights.directory / "config.yaml").is_file():
        raise UserError(f"{weights.directory} holds no config.yaml, which says what kind of M1 the weights belong to")
    trained, wanted = weights.settings(), settings.data.name
    if trained.model.recipe.name != "m1":
        raise UserError(
            f"{weights.directory} was trained with the recipe {trained.model.recipe.name}: M1+M2 stands on the recipe "
            "m1, which has one Gaussian latent. Set model.m1 to a run of that"
        )
    if trained.data.name != wanted:
        raise UserError(
            f"the M1 in {weights.directory} was trained on {trained.data.name}, not on {wanted}: train one on "
            f"{wanted}, or set data.name to {trained.data.name}"
        )
    return weights


def _build_m1(weights: Weights, shape: tuple[int, ...], classes: int, levels: int | None) -> VAE:
    recipe = weights.settings().model.recipe
    m1: VAE = build(recipe, shape, classes, None, levels)
    load_file(m1, weights.path)
    return m1


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda and this machine offers none to torch: use --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
