"""Everything that can be set, as dataclasses with the documentation of each setting under it."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from scnf.arguments import PATH, Argument, Range, arguments_of
from scnf.objectives import Objective
from scnf.propagation.strategy import Neighbours
from scnf.recipes import Recipe, recipe_of

Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(0, 10**9)]
Rows = Annotated[int, Range(1, 100_000)]
Times = Annotated[int, Range(0, 1_000)]
DEFAULT_RECIPE = "scnf-hybrid"


@dataclass
class DataSettings:
    """What to learn from."""

    name: str = "mnist"
    """The data set: mnist, fashion, svhn, cifar10, digits, moons, circles, or one that is registered."""
    root: Annotated[str, PATH] = "data"
    """Directory of the data files. What is absent is downloaded into it, unless it holds other things."""
    num_labels: Count = 100
    """How many training rows keep their label, over all classes."""
    labels_per_class: Count | None = None
    """The same per class; takes the place of num_labels where given."""
    balanced: bool = True
    """Whether each class has the same number of labels."""
    data_seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Decides which rows keep their label and which validate, apart from the seed of training."""
    num_validation: int = 5000
    """Training rows set apart for validation. The test split is looked at once, at the end of a run."""
    labelled_share: Share = 0.25
    """Share of labelled rows in a batch."""
    augment: Annotated[float, Range(0, 3)] = 0.0
    """Strength of the random affine maps of images in cross-entropies: of labelled rows, which count in the likelihood
    as they are, and of views for consistency. 0 for none."""

    def resolve_labels(self, num_classes: int) -> None:
        """Turn `labels_per_class`, where given, into the `num_labels` that it comes to."""
        if self.labels_per_class is not None:
            self.num_labels, self.labels_per_class = self.labels_per_class * num_classes, None


@dataclass
class ModelSettings:
    """Which p(x, y): a recipe with all of its arguments, and the class prior."""

    recipe: Recipe = field(default_factory=lambda: recipe_of(DEFAULT_RECIPE)())
    """The architecture. `scnf recipes` lists all, `scnf recipes NAME` prints the arguments of one."""
    prior: tuple[float, ...] | str = "uniform"
    """The class prior: uniform, empirical (visible labels), learned, or a list of K probabilities."""


@dataclass(frozen=True)
class ObjectiveSettings(Objective):
    """The semi-supervised loss, and labels for unlabelled rows."""

    propagations: Times = 0
    """How often in a training, at even distances, labels are propagated over nearest neighbours; 0 for never. They are
    the targets of views, or without views (consistency_weight 0) labels of the unlabelled rows like those that were
    given. After the first time, neighbours are by what the model has made of the rows."""
    neighbours: Neighbours = "pixels"
    """Neighbours of the first propagation are by pixels, by gradients (histograms of oriented gradients), by distortion
    (images of which small pieces are found in each other, moved a little) or by self-training (features of small
    networks that train themselves). With train.adapt, neighbours are always those of latents."""
    self_training_networks: Annotated[int, Range(1, 1_000)] = 3
    """Number of these networks, trained one after the other."""


@dataclass
class TrainSettings:
    """How to train."""

    epochs: Annotated[int, Range(0, 10**6)] = 20
    """Epochs of `passes` over the training rows; 0 only evaluates."""
    passes: Annotated[int, Range(1, 1_000)] = 1
    """Passes in an epoch, at whose end the model is evaluated on validation and a checkpoint written: more than one
    where that takes long beside the training."""
    max_steps: Count | None = None
    """Stop after so many optimiser steps, whatever the epochs."""
    batch_size: Rows = 128
    """Rows of a batch, labelled and unlabelled."""
    lr: Annotated[float, Range(0, 1e30, above=True)] = 1e-3
    """Learning rate at its highest."""
    optimizer: Literal["adam", "adamw", "adamax"] = "adam"
    """The optimiser."""
    weight_decay: Annotated[float, Range(0, 1e30)] = 0.0
    """Weight decay of the optimiser."""
    schedule: Literal["none", "linear", "hat", "cosine"] = "cosine"
    """Schedule of the learning rate: none, linear (to 0), hat (up, then linear to 0) or cosine (up, then to 0)."""
    warmup: Annotated[float, Range(0, 1, below=True)] = 0.05
    """Share of all steps in which hat and cosine rise."""
    grad_clip: Annotated[float, Range(0, 1e30)] = 0.0
    """Largest norm of the gradient; 0 for no limit."""
    ema: Annotated[float, Range(0, 1, below=True)] = 0.99
    """Decay of the averaged weights that are evaluated and saved; 0 for none."""
    autocast: bool = True
    """Compute in bf16 inside the networks in training, where the device has instructions for it: a GPU, or a CPU with
    AVX512-BF16 or AMX. Densities stay float32, and so do evaluation and, on a CPU, those networks of flows that have a
    kernel (see scnf.native), which are sooner done."""
    compile: bool = False
    """Compile the model with torch.compile; on a GPU as CUDA graphs."""
    adapt: bool = False
    """Train the class-conditional part of a flow alone, anew, on latents from the shared flow of `pretrained` that are
    computed once."""
    reversible: bool = False
    """Keep no activations between the layers of flows, compute them again in backward by inverting the layers: their
    memory does not grow with depth, for 1.3 to 1.5 times the time."""
    select: Literal["accuracy", "bits_per_dim", "last"] = "accuracy"
    """What picks the weights to keep, on validation: accuracy, bits_per_dim (nll for points) or last."""
    eval_batch_size: Rows = 500
    """Rows at once in evaluation."""
    eval_views: Times = 0
    """Versions of each image, moved by data.augment, over which the final figures also average p(y | x)."""


@dataclass
class RunSettings:
    """Where runs are kept."""

    root: Annotated[str, PATH] = "logs"
    """Directory of all run directories."""
    name: str | None = None
    """Name of the run; data and recipe by default."""


@dataclass
class Settings:
    """Everything that can be set."""

    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Seed of initial weights, batches and noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device; auto takes CUDA where there is one."""
    threads: Annotated[int, Range(1, 1024)] | Literal["auto"] = "auto"
    """Threads of the CPU. auto times a step with as many as there are and with fewer, and takes what is soonest
    done."""
    pretrained: Annotated[str | None, PATH] = None
    """Weights to start from: a directory, a run, or a .safetensors file; "shipped" for those that come with the project
    for this recipe, or their name, such as scnf-digits. A run keeps the file's path and, after `#sha256=`, its check
    sum."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    runs: RunSettings = field(default_factory=RunSettings)


SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "model": ModelSettings,
    "objective": ObjectiveSettings,
    "train": TrainSettings,
    "runs": RunSettings,
}
"""The sections of the settings by name."""


def leaves(recipe: type[Recipe]) -> dict[str, Argument]:
    """Every setting by its full name, those of `recipe` among them."""
    found = {name: each for name, each in arguments_of(Settings).items() if name not in SECTIONS}
    for section, kind in SECTIONS.items():
        found |= {f"{section}.{name}": each for name, each in arguments_of(kind).items()}
    return found | {f"model.{name}": each for name, each in arguments_of(recipe).items()}


def values_of(settings: Settings) -> dict[str, Any]:
    """The value of every setting by its full name; arguments of the recipe that have no effect are left out."""
    recipe = settings.model.recipe
    found = {"model.recipe": recipe.name, "model.prior": settings.model.prior}
    found |= {f"model.{name}": value for name, value in recipe.arguments().items()}
    for section, kind in SECTIONS.items():
        if section != "model":
            found |= {f"{section}.{name}": getattr(getattr(settings, section), name) for name in arguments_of(kind)}
    top = {name: getattr(settings, name) for name in arguments_of(Settings) if name not in SECTIONS}
    return {name: (top | found)[name] for name in leaves(type(recipe)) if name in top | found}


MAY_CHANGE = {
    *("device", "threads", "data.root", "runs.root", "runs.name"),  # where things are
    *("train.epochs", "train.max_steps"),  # how long
    *("train.lr", "train.schedule", "train.warmup", "train.weight_decay", "train.grad_clip"),  # how far each step goes
    *("train.autocast", "train.compile", "train.reversible", "model.class_chunk"),  # the same numbers, but for rounding
    *("train.eval_batch_size", "train.eval_views"),  # the figures
    # The label split that these draw is compared itself:
    *("data.num_labels", "data.labels_per_class", "data.balanced", "data.data_seed", "data.num_validation"),
}
"""The settings that a resume may change.

Every other setting stays for the whole of a run, because progress is counted in steps of the same
batches, the weights belong to the same model, and best scores are of the same metric.
"""
