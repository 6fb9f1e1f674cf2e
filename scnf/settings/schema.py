"""The settings as dataclasses. The string under each field is the documentation that `--help` prints."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from scnf.arguments import PATH, Argument, Choice, Condition, Range, arguments_of
from scnf.objectives import Objective
from scnf.propagation.strategy import Neighbours
from scnf.recipes import RECIPES, Recipe, recipe_of

Share = Annotated[float, Range(0, 1)]
Side = Annotated[int, Range(8, 4096)]
OWN = ("folder", "npz")
"""Names of datasets of one's own files."""
_FOLDER = Condition("name", ("folder",))
Count = Annotated[int, Range(0, 10**9)]
Rows = Annotated[int, Range(1, 100_000)]
Times = Annotated[int, Range(0, 1_000)]
DEFAULT_RECIPE = "scnf-hybrid"
RECIPE = Argument("recipe", Annotated[str, Choice(RECIPES)], DEFAULT_RECIPE)
"""The setting `model.recipe`, which names the class of `Settings.model`."""


@dataclass
class DataSettings:
    """The dataset, the label split and the batches."""

    name: str = "mnist"
    """Name of the dataset, which is mnist, fashion, svhn, cifar10, digits, moons, circles or a registered name. For
    images of your own, folder reads a folder or a CSV list of files, and npz reads the arrays of a file."""
    root: Annotated[str, PATH] = "data"
    """Directory of the data files. Missing files are downloaded into it, unless it holds unrelated files. For images of
    your own, the folder or file itself."""
    size: Annotated[Side | tuple[Side, ...] | None, _FOLDER] = None
    """Size to which images of your own are brought, one number or height and width. By default the most common size,
    reduced to at most 64 pixels on a side, or 224 with features."""
    channels: Annotated[Annotated[int, Range(1, 3)] | None, _FOLDER] = None
    """Number of channels of images of your own, 1 (greyscale) or 3 (RGB). By default 3 where an image has colour."""
    background: Annotated[str, _FOLDER] = "white"
    """Colour under transparent pixels of images of your own, by its name or as #rrggbb."""
    strict: Annotated[bool, _FOLDER] = False
    """Whether an image of your own that cannot be decoded is an error. Otherwise it is named and skipped."""
    classes: Annotated[tuple[str, ...] | None, Condition("name", OWN)] = None
    """Names of the classes of your own images, in the order of their labels. By default all classes, sorted."""
    labels: Annotated[str | None, PATH, _FOLDER] = None
    """CSV file with the columns file and label, which adds labels to those of the folder. Files are relative to the
    folder or to the CSV file. `scnf train FOLDER --labels FILE` sets it, too."""
    features: Annotated[str | None, PATH] = None
    """Embeddings that stand for the images, so that the flow models these, in nats. Either the name of a classification
    network of torchvision, such as resnet18, whose trained weights are downloaded once, or an .npy file [N, D] of
    embeddings by any network, with a row for each training image and then for each test image, in the order of the
    paths of their files. A run records the path of the file and, after `#sha256=`, its checksum."""
    num_labels: Count | Literal["all"] = 100
    """Number of training rows that keep their label, over all classes; all for each label that is no validation row."""
    labels_per_class: Count | None = None
    """Number of training rows of each class that keep their label. It overrides num_labels."""
    balanced: bool = True
    """Whether each class has the same number of labels."""
    data_seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed that selects the rows that keep their label and the validation rows. The seed of training is separate."""
    num_validation: int = 5000
    """Number of labelled rows held out for validation; 0 for none, with train.select last. The test split is evaluated
    once, at the end of a run."""
    labelled_share: Share = 0.25
    """Share of labelled rows in a batch."""
    augment: Annotated[float, Range(0, 3)] = 0.0
    """Strength of the random maps that move images in the cross-entropies; 0 for none. The maps move labelled rows,
    which count unmoved in the likelihood, and the views of the consistency term. Points are moved by Gaussian noise,
    whose standard deviation is this multiple of the standard deviation of each column."""
    augmentation: Literal["affine", "photo"] = "affine"
    """Kind of the maps that move images. affine turns, stretches, shears and shifts them, as suits digits. photo flips
    them left to right as well, changes their colours and covers a part of them, as suits photos."""

    def resolve_labels(self, num_classes: int) -> None:
        """Replace `labels_per_class`, where it is set, by the equivalent `num_labels`."""
        if self.labels_per_class is not None:
            self.num_labels, self.labels_per_class = self.labels_per_class * num_classes, None


@dataclass(frozen=True)
class ObjectiveSettings(Objective):
    """The semi-supervised loss and the propagation of labels to unlabelled rows."""

    propagations: Times = 0
    """Number of label propagations over nearest neighbours in a training, at even intervals; 0 for none. Propagated
    labels are the targets of views. Without views (consistency_weight 0), they count like the labels of the dataset.
    From the second propagation on, the model's representations of the rows define the neighbours. With gradients, these
    count beside them."""
    neighbours: Neighbours = "pixels"
    """Features that define the neighbours in the first propagation. pixels compares pixels, and gradients compares
    histograms of oriented gradients. distortion searches for small pieces of one image in another, moved a little.
    self-training compares features of small networks that train themselves. With train.adapt, the latents always define
    the neighbours. posterior, in all propagations, takes no neighbours, but the rows of which the model itself is
    surest, in the mix of classes of the labels."""
    self_training_networks: Annotated[int, Range(1, 1_000)] = 3
    """Number of networks that self-training neighbours take, trained one after the other."""


@dataclass
class TrainSettings:
    """The optimisation, the evaluation and the selection of weights."""

    epochs: Annotated[int, Range(0, 10**6)] = 20
    """Number of epochs, each of `passes` over the training rows; 0 only evaluates."""
    passes: Annotated[int, Range(1, 1_000)] = 1
    """Number of passes over the training rows in an epoch. Each epoch ends with an evaluation on the validation split
    and a checkpoint. Raise the number where these take long compared to a pass."""
    max_steps: Count | None = None
    """Number of optimiser steps after which training stops, whatever the number of epochs."""
    batch_size: Rows = 128
    """Number of rows in a batch, labelled and unlabelled."""
    lr: Annotated[float, Range(0, 1e30, above=True)] = 1e-3
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw", "adamax"] = "adam"
    """Name of the optimiser."""
    weight_decay: Annotated[float, Range(0, 1e30)] = 0.0
    """Weight decay of the optimiser."""
    schedule: Literal["none", "linear", "hat", "cosine"] = "cosine"
    """Schedule of the learning rate. none keeps it constant, and linear lowers it to 0. hat and cosine raise it first,
    then lower it to 0 linearly or along a cosine."""
    warmup: Annotated[float, Range(0, 1, below=True)] = 0.05
    """Share of all steps in which the hat and cosine schedules raise the learning rate."""
    grad_clip: Annotated[float, Range(0, 1e30)] = 0.0
    """Maximum norm of the gradient; 0 for no limit."""
    ema: Annotated[float, Range(0, 1, below=True)] = 0.99
    """Decay of the exponential moving average of the weights, which is evaluated and saved; 0 for none."""
    autocast: bool = True
    """Whether networks train in bf16, where the device has instructions for it (a GPU, or a CPU with AVX512-BF16 or
    AMX). Densities and evaluation stay in float32. On a CPU, so do the flow networks that have a kernel (see
    scnf.native), because the kernel is faster."""
    compile: bool = False
    """Whether to compile the model with torch.compile, as CUDA graphs on a GPU."""
    adapt: bool = False
    """Whether to train only the class-conditional part of a flow, from new initial weights. It trains on latents of the
    shared flow of `pretrained`, which are computed once."""
    reversible: bool = False
    """Whether flows keep no activations between layers, and invert the layers in the backward pass instead. Memory for
    activations then does not grow with depth, and training takes 1.3 to 1.5 times as long."""
    select: Literal["accuracy", "bits_per_dim", "last"] = "accuracy"
    """Criterion on the validation split that selects the weights to save. accuracy and bits_per_dim (nll for points)
    select the best epoch, and last selects the latest."""
    baseline: bool = False
    """Whether to train a residual network on the labelled rows first, as a baseline for images. The summary names its
    accuracy on validation and test rows. Without such rows, a threefold cross-validation over the labelled rows takes
    their place, where each class has two of them."""
    eval_batch_size: Rows = 500
    """Number of rows in a batch of the evaluation."""
    eval_views: Times = 0
    """Number of versions of each image, moved by data.augment, over which the final metrics also average p(y | x)."""


@dataclass
class RunSettings:
    """The directory and the name of a run."""

    root: Annotated[str, PATH] = "logs"
    """Directory of all run directories."""
    name: str | None = None
    """Name of the run, by default the names of dataset and recipe."""


@dataclass
class Settings:
    """All settings of a training."""

    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Seed of initial weights, batches and noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto takes CUDA where it is available."""
    threads: Annotated[int, Range(1, 1024)] | Literal["auto"] = "auto"
    """Number of CPU threads. auto times a step with all threads and with fewer, and takes the fastest number."""
    pretrained: Annotated[str | None, PATH] = None
    """Weights to start from, given as a directory, a run, a .safetensors file or the name of shipped weights, such as
    scnf-digits. "shipped" stands for the shipped weights of the recipe. A run records the path of the file and, after
    `#sha256=`, its checksum."""
    data: DataSettings = field(default_factory=DataSettings)
    model: Recipe = field(default_factory=lambda: recipe_of(DEFAULT_RECIPE)())
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    runs: RunSettings = field(default_factory=RunSettings)


SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "model": Recipe,
    "objective": ObjectiveSettings,
    "train": TrainSettings,
    "runs": RunSettings,
}
"""The dataclass of each section of the settings. For `model`, the recipe is a class under it."""


NEVER_SHORT = {"data.channels", "data.labels"}
"""Settings whose last part means a setting of another section on the command line."""


def leaves(recipe: type[Recipe]) -> dict[str, Argument]:
    """Return every setting by its full name, including the arguments of `recipe`."""
    arguments = {name: argument for name, argument in arguments_of(Settings).items() if name not in SECTIONS}
    for section, kind in SECTIONS.items():
        fields = {RECIPE.name: RECIPE, **arguments_of(recipe)} if section == "model" else arguments_of(kind)
        arguments |= {f"{section}.{name}": argument for name, argument in fields.items()}
    return arguments


def values_of(settings: Settings) -> dict[str, Any]:
    """Return the value of every setting by its full name, without those that have no effect beside the others."""
    recipe = settings.model
    values = {name: getattr(settings, name) for name in arguments_of(Settings) if name not in SECTIONS}
    values |= {"model.recipe": recipe.name}
    values |= {f"model.{name}": value for name, value in recipe.arguments().items()}
    for section, kind in SECTIONS.items():
        if section != "model":
            arguments = arguments_of(kind)
            own = {name: getattr(getattr(settings, section), name) for name in arguments}
            values |= {f"{section}.{name}": own[name] for name, each in arguments.items() if each.has_effect(own)}
    return {name: values[name] for name in leaves(type(recipe)) if name in values}


MAY_CHANGE = {
    *("device", "threads", "data.root", "runs.root", "runs.name"),  # hardware and paths
    *("train.epochs", "train.max_steps"),  # length of the training
    *("train.lr", "train.schedule", "train.warmup", "train.weight_decay", "train.grad_clip"),  # size of each step
    *("train.autocast", "train.compile", "train.reversible", "model.class_chunk"),  # rounding alone
    *("train.baseline", "train.eval_batch_size", "train.eval_views"),  # reported metrics
    # A resume compares the label split itself, which these settings draw.
    *("data.strict", "data.labels"),
    *("data.num_labels", "data.labels_per_class", "data.balanced", "data.data_seed", "data.num_validation"),
}
"""The settings that a resume may change.

All other settings are fixed for the whole run. Progress is counted in steps of the same batches. The weights belong to
the same model, and best scores belong to the same metric.
"""
