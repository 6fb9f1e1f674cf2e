"""Typed settings: defaults, then the YAML file, then what is typed.

A name that nothing goes by is an error with a suggestion; it is never dropped. On the command line a leaf that is
unique may stand alone (`--epochs 3` for `--train.epochs 3`), and a flag needs no value (`--compile`).
"""

import dataclasses
import difflib
import math
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml

from scnf import files, shipped, strict_yaml
from scnf.errors import UserError
from scnf.shipped import SHIPPED


@dataclass
class DataSettings:
    """What to learn from.

    Attributes:
        name: mnist, fashion, svhn, cifar10, digits, moons or circles.
        root: directory of the data files; what is absent is downloaded into it, unless it holds other things.
        num_labels: how many training rows keep their label, over all classes.
        labels_per_class: the same per class; takes the place of num_labels where given.
        balanced: the same number of labels for each class.
        data_seed: decides which rows keep their label and which validate, apart from the seed of training.
        num_validation: training rows set apart for validation; the test split is looked at once, at the end of a run.
        labelled_share: share of labelled rows in a batch.
        augment: strength of the random affine maps of images in cross-entropies: of labelled rows, which count in the
            likelihood as they are, and of views for consistency; 0 for none.
    """

    name: str = "mnist"
    root: str = "data"
    num_labels: int = 100
    labels_per_class: int | None = None
    balanced: bool = True
    data_seed: int = 0
    num_validation: int = 5000
    labelled_share: float = 0.25
    augment: float = 0.0

    def resolve_labels(self, num_classes: int) -> None:
        """Turn `labels_per_class`, where given, into the `num_labels` that it comes to."""
        if self.labels_per_class is not None:
            self.num_labels, self.labels_per_class = self.labels_per_class * num_classes, None


@dataclass
class ModelSettings:
    """Which p(x, y); an argument left out takes the default of the recipe.

    Attributes:
        recipe: scnf-fast, scnf-hybrid, scnf-paper, scnf-gmm, scnf-digits or scnf-toy; m1, m2, m1-m2, adgm, ladder-vae,
            ladder-dgm, gumbel-autoencoder; or classifier.
        prior: class prior: uniform, empirical (visible labels), learned, or a list of K probabilities.
        pixels: how they come to the real line: levels (the default: a learned length for each grey level, the darkest a
            Gaussian) or logit (that of scnf-paper). Flows from before this setting need logit.
        alpha: of that logit, 0.05 by default.
        channels: width of the coupling networks.
        steps: flow steps.
        detail_channels: width of the networks for details (scnf-fast and its kin), and near z_f in scnf-hybrid.
        detail_steps: couplings of the details at each level but the last, which has none (scnf-fast and its kin).
        semantic_share: share of the coarse latents that tell the classes, in whole channels and at least two numbers;
            all by default. The others are moved given these (scnf-fast and its kin).
        coarse_channels: width of the network by which details move the coarse image before they are factored out, at
            each level but the last (scnf-fast and its kin); 0, the default, for none.
        semantic_channels: width of the network that sees the whole image (scnf-hybrid).
        semantic_hidden: numbers between its linear layers.
        blocks: residual blocks in a coupling network.
        linear: mixing of channels: full, plu, householder or qr.
        scale: of the couplings: sigmoid (as in the paper) or symmetric.
        conditional: class-conditional part: flow or gaussian.
        conditional_hidden: width of its networks.
        conditional_blocks: residual blocks in each.
        conditional_steps: steps per scale.
        conditional_scales: scales, between which half of the features are factored out.
        embedding: width of the label embedding.
        means: of class-conditional Gaussians: random, simplex or data.
        spread: how far apart those means start.
        learn_means: whether training moves them.
        scales: shared by the classes or their own.
        learn_scales: whether training changes them.
        class_chunk: classes enumerated at once; fewer need less memory, in training for about a third more time. All by
            default.
        likelihood: p(x | latents): bernoulli (binarised pixels), logistic (the grey levels of the data) or gaussian.
        latent: width of the latent variable; a list, bottom first, makes a ladder.
        auxiliary: width of the auxiliary variable (adgm).
        variables: number of one-hot latents (gumbel-autoencoder).
        categories: of each of them.
        hidden: width of encoder, decoder and classifier.
        layers: linear layers of an mlp encoder and classifier.
        encoder: mlp or conv.
        decoder: mlp or conv.
        classifier: of q(y | x): mlp or conv.
        norm: in encoder and classifier: batch, layer or none.
        posterior: of the latents: gaussian, or a flow on one: planar or coupling.
        posterior_steps: of that flow.
        labels: what stands for a hidden label in training: enumerate (every class), gumbel, gumbel-st, logistic-normal,
            logistic-normal-st, log-gamma or score.
        temperature: of drawn labels and one-hot latents, at the first step.
        final_temperature: at the last step; the same by default.
        num_samples: draws of the latents for each row, averaged.
        importance_samples: draws in the importance-weighted bound; 1 is the ELBO.
        m1: run, directory or weights of the trained M1 (m1-m2).
    """

    recipe: str = "scnf-hybrid"
    prior: list[float] | str = "uniform"
    pixels: Literal["levels", "logit"] | None = None
    alpha: float | None = None
    channels: int | None = None
    steps: int | None = None
    detail_channels: int | None = None
    detail_steps: int | None = None
    semantic_share: float | None = None
    coarse_channels: int | None = None
    semantic_channels: int | None = None
    semantic_hidden: int | None = None
    blocks: int | None = None
    linear: Literal["full", "plu", "householder", "qr"] | None = None
    scale: Literal["sigmoid", "symmetric"] | None = None
    conditional: Literal["flow", "gaussian"] | None = None
    conditional_hidden: int | None = None
    conditional_blocks: int | None = None
    conditional_steps: int | None = None
    conditional_scales: int | None = None
    embedding: int | None = None
    means: Literal["random", "simplex", "data"] | None = None
    spread: float | None = None
    learn_means: bool | None = None
    scales: Literal["shared", "own"] | None = None
    learn_scales: bool | None = None
    class_chunk: int | None = None
    likelihood: Literal["bernoulli", "logistic", "gaussian"] | None = None
    latent: int | list[int] | None = None
    auxiliary: int | None = None
    variables: int | None = None
    categories: int | None = None
    hidden: int | None = None
    layers: int | None = None
    encoder: Literal["mlp", "conv"] | None = None
    decoder: Literal["mlp", "conv"] | None = None
    classifier: Literal["mlp", "conv"] | None = None
    norm: Literal["batch", "layer", "none"] | None = None
    posterior: Literal["gaussian", "planar", "coupling"] | None = None
    posterior_steps: int | None = None
    labels: (
        Literal["enumerate", "gumbel", "gumbel-st", "logistic-normal", "logistic-normal-st", "log-gamma", "score"]
        | None
    ) = None
    temperature: float | None = None
    final_temperature: float | None = None
    num_samples: int | None = None
    importance_samples: int | None = None
    m1: str | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of the recipe that are given here; `m1`, which is a file and no argument, is not among them."""
        apart = ("recipe", "prior", "m1")
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in apart and value is not None
        }


@dataclass
class ObjectiveSettings:
    """The semi-supervised loss.

    Attributes:
        labelled_weight: weight of a labelled row, beside 1 for an unlabelled one.
        labelled_decay: share of all steps in which that weight comes to 1, evenly; 0 to keep it.
        classifier_weight: weight of the cross-entropy of p(y | x) on labelled rows: on moved versions of them where
            data.augment is above 0. Rows with a propagated label count as labelled where there are no views.
        temperature: of p(y | x) in cross-entropies and confidences.
        consistency_weight: weight of the cross-entropy between a view of an unlabelled row (moved by data.augment, with
            noise of its own) and its target: the class that the model is sure of for the row, or its propagated label.
        consistency_ramp: share of all steps in which that weight rises from 0.
        confidence: posterior probability above which a class becomes the target of a view.
        propagations: how often in a training, at even distances, labels are propagated over nearest neighbours; 0 for
            never. They are the targets of views, or without views (consistency_weight 0) labels of the unlabelled rows
            like those that were given. After the first time, neighbours are by what the model has made of the rows.
        neighbours: of the first propagation: pixels, gradients (histograms of oriented gradients), distortion (images
            of which small pieces are found in each other, moved a little) or self-training (features of small networks
            that train themselves). With train.adapt, neighbours are always those of latents.
        self_training_networks: number of these networks, trained one after the other.
        kl_weight: of the latents' divergence in a variational bound; above 1 a beta-VAE.
        kl_warmup: share of all steps in which that weight rises from 0.
    """

    labelled_weight: float = 1.0
    labelled_decay: float = 0.0
    classifier_weight: float = 0.0
    temperature: float = 1.0
    consistency_weight: float = 0.0
    consistency_ramp: float = 0.3
    confidence: float = 0.9
    propagations: int = 0
    neighbours: Literal["pixels", "gradients", "distortion", "self-training"] = "pixels"
    self_training_networks: int = 3
    kl_weight: float = 1.0
    kl_warmup: float = 0.0


@dataclass
class TrainSettings:
    """How to train.

    Attributes:
        epochs: of `passes` over the training rows; 0 only evaluates.
        passes: in an epoch, at whose end the model is evaluated on validation and a checkpoint written: more than one
            where that takes long beside the training.
        max_steps: stop after so many optimiser steps, whatever the epochs.
        batch_size: rows of a batch, labelled and unlabelled.
        lr: learning rate at its highest.
        optimizer: adam, adamw or adamax.
        weight_decay: of the optimizer.
        schedule: of the learning rate: none, linear (to 0), hat (up, then linear to 0) or cosine (up, then to 0).
        warmup: share of all steps in which hat and cosine rise.
        grad_clip: largest norm of the gradient; 0 for no limit.
        ema: decay of the averaged weights that are evaluated and saved; 0 for none.
        autocast: bf16 inside the networks in training, where the device has instructions for it: a GPU, or a CPU with
            AVX512-BF16 or AMX. Densities stay float32, and so do evaluation and, on a CPU, those networks of flows that
            have a kernel (see scnf.native), which are sooner done.
        compile: compile the model with torch.compile; on a GPU as CUDA graphs.
        adapt: train the class-conditional part of a flow alone, anew, on latents from the shared flow of `pretrained`
            that are computed once.
        reversible: keep no activations between the layers of flows, compute them again in backward by inverting the
            layers: their memory does not grow with depth, for 1.3 to 1.5 times the time.
        select: what picks the weights to keep, on validation: accuracy, bits_per_dim (nll for points) or last.
        eval_batch_size: rows at once in evaluation.
        eval_views: versions of each image, moved by data.augment, over which the final figures also average p(y | x).
    """

    epochs: int = 20
    passes: int = 1
    max_steps: int | None = None
    batch_size: int = 128
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "adamax"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["none", "linear", "hat", "cosine"] = "cosine"
    warmup: float = 0.05
    grad_clip: float = 0.0
    ema: float = 0.99
    autocast: bool = True
    compile: bool = False
    adapt: bool = False
    reversible: bool = False
    select: Literal["accuracy", "bits_per_dim", "last"] = "accuracy"
    eval_batch_size: int = 500
    eval_views: int = 0


@dataclass
class RunSettings:
    """Where runs are kept.

    Attributes:
        root: directory of all run directories.
        name: of the run; data and recipe by default.
    """

    root: str = "logs"
    name: str | None = None


@dataclass
class Settings:
    """Everything that can be set.

    Attributes:
        seed: of initial weights, batches and noise.
        device: auto takes CUDA where there is one.
        threads: of the CPU. auto times a step with as many as there are and with fewer, and takes what is soonest done.
        pretrained: weights to start from: a directory, a run, or a .safetensors file; "shipped" for those that come
            with the project for this recipe, or their name, such as scnf-digits. A run keeps the file's path and,
            after `#sha256=`, its check sum.
        data: what to learn from.
        model: which p(x, y).
        objective: the loss.
        train: how to train.
        runs: where runs are kept.
    """

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | Literal["auto"] = "auto"
    pretrained: str | None = None
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    runs: RunSettings = field(default_factory=RunSettings)


PATHS = ("pretrained", "data.root", "model.m1", "runs.root")
"""The settings that are paths, or may be."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them unless `above` or `below` is set.

    Example:
        >>> 0.0 in Range(0, 1, above=True), f"it must be {Range(0, 1, above=True)}"
        (False, 'it must be above 0 and not above 1')
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and not (
            (self.above and number == self.low) or (self.below and number == self.high)
        )

    def __str__(self) -> str:
        low, high = (f"{end:g}" if isinstance(end, float) else str(end) for end in (self.low, self.high))
        if not self.above and not self.below:
            return f"between {low} and {high}"
        return f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'not above'} {high}"


_SHARE, _POSITIVE, _WEIGHT = Range(0, 1), Range(0, 1e6, above=True), Range(0, 1e9)
_WIDTH, _DEPTH, _TIMES, _ROWS, _DRAWS = 16_384, 256, 1_000, 100_000, 10_000

RANGES: dict[str, Range] = {
    "seed": Range(0, 2**31 - 1),
    "threads": Range(1, 1024),
    "data.num_labels": Range(0, 10**9),
    "data.labels_per_class": Range(0, 10**9),
    "data.data_seed": Range(0, 2**63 - 1),
    "data.labelled_share": _SHARE,
    "data.augment": Range(0, 3),
    **dict.fromkeys(
        [
            *["model.channels", "model.detail_channels", "model.semantic_channels", "model.semantic_hidden"],
            *["model.conditional_hidden", "model.embedding", "model.latent", "model.auxiliary", "model.variables"],
            *["model.hidden", "model.class_chunk"],
        ],
        Range(1, _WIDTH),
    ),
    "model.coarse_channels": Range(0, _WIDTH),
    "model.categories": Range(2, _WIDTH),
    **dict.fromkeys(
        ["model.steps", "model.conditional_steps", "model.conditional_scales", "model.layers", "model.posterior_steps"],
        Range(1, _DEPTH),
    ),
    **dict.fromkeys(["model.detail_steps", "model.blocks", "model.conditional_blocks"], Range(0, _DEPTH)),
    **dict.fromkeys(["model.num_samples", "model.importance_samples"], Range(1, _DRAWS)),
    **dict.fromkeys(["model.temperature", "model.final_temperature"], _POSITIVE),
    "model.semantic_share": Range(0, 1, above=True),
    "model.spread": Range(0, 1e6),
    "objective.labelled_weight": _WEIGHT,
    "objective.labelled_decay": _SHARE,
    "objective.classifier_weight": _WEIGHT,
    "objective.temperature": _POSITIVE,
    "objective.consistency_weight": _WEIGHT,
    "objective.consistency_ramp": _SHARE,
    "objective.confidence": _SHARE,
    "objective.propagations": Range(0, _TIMES),
    "objective.self_training_networks": Range(1, _TIMES),
    "objective.kl_weight": _WEIGHT,
    "objective.kl_warmup": _SHARE,
    "train.epochs": Range(0, 10**6),
    "train.passes": Range(1, _TIMES),
    "train.max_steps": Range(0, 10**9),
    "train.batch_size": Range(1, _ROWS),
    "train.eval_batch_size": Range(1, _ROWS),
    "train.eval_views": Range(0, _TIMES),
    "train.lr": Range(0, 1e30, above=True),
    "train.weight_decay": Range(0, 1e30),
    "train.warmup": Range(0, 1, below=True),
    "train.grad_clip": Range(0, 1e30),
    "train.ema": Range(0, 1, below=True),
}
"""What each number may be; what a model needs beside that, its recipe says. Memory may end sooner."""

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

OTHER_NAMES = {
    "supervised": "data.num_labels",
    "sup_weight": "objective.labelled_weight",
    "cl_weight": "objective.classifier_weight",
    "sup_sample_weight": "data.labelled_share (a weight w is a share of w / (1 + w))",
    "train_bs": "train.batch_size",
    "learning_rate": "train.lr",
    "dataset": "data.name",
    "ssl_seed": "data.data_seed",
    "distortion": "objective.neighbours (distortion)",
    "self_training": "objective.neighbours (self-training), with objective.self_training_networks,",
}
"""Names that people know from other projects or earlier versions, and the setting to use here."""
FORMAT = 2
"""Of the settings that a run keeps; a file without `format` may use the names of format 1."""


def _leaves() -> dict[str, Any]:
    """Every setting by its full name, with its type."""
    leaves: dict[str, Any] = {}
    for top in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(top.type):
            leaves |= {f"{top.name}.{leaf.name}": leaf.type for leaf in dataclasses.fields(top.type)}
        else:
            leaves[top.name] = top.type
    return leaves


def lasting(settings: Settings) -> dict[str, Any]:
    """The settings that stay for the whole of a run, by full name: all but `MAY_CHANGE`."""
    values = dataclasses.asdict(settings)
    names = [name for name in _leaves() if name not in MAY_CHANGE]
    return {
        name: values[name] if name in values else values[name.partition(".")[0]][name.partition(".")[2]]
        for name in names
    }


def check_lasting(before: Mapping[str, Any], settings: Settings, run: Path) -> None:
    """Refuse settings that :func:`lasting` gives otherwise than a run has them.

    Args:
        before: what :func:`lasting` gave when the run was made.
        settings: those that it is to go on with.
        run: its directory, to say what to type.

    Raises:
        UserError: names the settings, the run's values and the new ones.
    """
    now, kept = lasting(settings), dict(before)
    _rename(kept, "objective.", run)
    before = {**lasting(Settings()), **kept}  # a version may have fewer settings than the next
    changed = [name for name, value in now.items() if value != before[name]]
    if not changed:
        return

    def text(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()

    said = "; ".join(f"{name} is {text(before[name])} in it, not {text(now[name])}" for name in changed)
    new = {"pretrained": str(run)} | {name: text(now[name]) for name in changed}
    words = shlex.join(["--config", str(run / "config.yaml"), *(w for name in new for w in (f"--{name}", new[name]))])
    raise UserError(f"a resume keeps the settings of its run: {said}. Leave that out, or start a new run: {words}")


def _kind(kind: Any) -> str:
    """A type of a setting, in words."""
    if get_origin(kind) is list:
        return "a list such as [64, 32]"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_args(kind):
        return " or ".join(_kind(part) for part in get_args(kind) if part is not NoneType)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _wrong(message: str) -> UserError:
    """The parser's complaint about a value, in words; as it is where it is about something else."""
    key, value = re.search(r'key "([\w.]+)"', message), re.search(r"(?:Got|Given) value: (.*)", message)
    if key is None or value is None or key[1] not in _leaves():
        return UserError(f"wrong setting: {' '.join(message.split())}")
    return UserError(f"wrong setting: {key[1]} must be {_kind(_leaves()[key[1]])}; not {value[1]!r}")


def _unknown(name: str, where: str) -> UserError:
    leaves = list(_leaves())
    short = name.rpartition(".")[2]
    if short in OTHER_NAMES:
        return UserError(f"{where}: {name!r} is called {OTHER_NAMES[short]} here")
    exact = [leaf for leaf in leaves if leaf.rpartition(".")[2] == short]
    close = difflib.get_close_matches(name, leaves, n=2, cutoff=0.7)
    close += [leaf for leaf in leaves if difflib.get_close_matches(short, [leaf.rpartition(".")[2]], cutoff=0.7)]
    suggestions = list(dict.fromkeys(exact or close))[:3]
    hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else "--help lists all settings"
    return UserError(f"{where}: there is no setting {name!r}; {hint}")


def _expand(argv: Sequence[str]) -> list[str]:
    """Full names for what is typed: unique leaves completed, bare flags given a value; unknown names refused."""
    leaves = _leaves()
    expanded: list[str] = []
    for index, token in enumerate(argv):
        if not re.match(r"--?[A-Za-z]", token):
            if not expanded or "=" in expanded[-1]:
                hint = f"; a configuration as --config {token}" if token.endswith((".yaml", ".yml")) else ""
                raise UserError(f"{token!r} stands alone: settings are given as --name value{hint}")
            expanded[-1] += f"={token}"  # one word, or a negative number would pass for an option
            continue
        name, equals, value = token.lstrip("-").partition("=")
        if name in ("help", "h"):
            expanded.append("--help")
            continue
        name = name.replace("-", "_")
        if name == "print_config":
            expanded.append("--" + name + equals + value)
            continue
        if name not in leaves:
            found = [leaf for leaf in leaves if leaf.rpartition(".")[2] == name]
            if len(found) != 1 or name in OTHER_NAMES:
                raise _unknown(name, "command line")
            name = found[0]
        follows = index + 1 < len(argv) and not re.match(r"--?[A-Za-z]", argv[index + 1])
        expanded.append(f"--{name}{equals}{value}")
        if not equals and not follows:
            if leaves[name] is bool or leaves[name] == (bool | None):
                expanded[-1] += "=true"
            elif name == "pretrained":
                expanded[-1] += f"={SHIPPED}"
            else:
                raise UserError(f"command line: --{name} needs a value")
    return expanded


def find_config(name: str) -> Path:
    """A configuration as given, then in `configs/` here, then among those that come with scnf."""
    places = [Path(name), *shipped.places("configs", name)]
    for place in places:
        if place.is_file():
            return place
    if places[0].is_dir():
        raise UserError(f"{name} is a directory: name a configuration in it, such as {places[0] / 'config.yaml'}")
    known = sorted(path.name for path in places[-1].parent.glob("*.yaml"))
    close = difflib.get_close_matches(Path(name).name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}" if known else "give its path"
    raise UserError(f"there is no configuration {name!r}, neither as given nor in configs/; {hint}")


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a configuration, whose names are checked."""
    try:
        tree = strict_yaml.read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if tree is None:
        raise UserError(f"the configuration {path} holds no settings: write some into it, or take config.yaml")
    if not isinstance(tree, dict):
        raise UserError(f"the configuration {path} must hold `name: value` lines, not a {type(tree).__name__}")
    number = tree.pop("format", 1)
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise UserError(
            f"{path}: format must be 1 or {FORMAT}, not {number!r}; a newer version of scnf may have written the file"
        )
    if number == 1:
        _rename(tree, "objective.", path)
        _rename(tree.get("objective"), "", path)
    _check_names(tree, path)
    return tree


def _rename(values: Any, prefix: str, path: Path) -> None:
    """Turn settings of format 1 into those of today, in place; what is no mapping, or has no such value, stays.

    Args:
        values: settings by name.
        prefix: what comes before the names of those of the objective.
        path: where the settings are from.

    Raises:
        UserError: they name the first neighbours twice.
    """
    if not isinstance(values, dict):
        return
    distortion, networks, neighbours = (prefix + name for name in ("distortion", "self_training", "neighbours"))
    asked: dict[str, Any] = {}
    if isinstance(values.get(distortion), bool) and values.pop(distortion):
        asked["distortion"] = {}
    if isinstance(values.get(networks), int) and (number := values.pop(networks)):
        asked["self-training"] = {prefix + "self_training_networks": number}
    if len(asked) + (neighbours in values) > 1:
        raise UserError(f"{path} names the first neighbours twice: keep objective.neighbours, or one of the old names")
    for name, more in asked.items():
        values |= {neighbours: name, **more}


def _check_names(tree: dict[Any, Any], path: Path) -> None:
    leaves = _leaves()
    sections = {leaf.partition(".")[0] for leaf in leaves if "." in leaf}
    for key, value in tree.items():
        if key in sections and isinstance(value, dict):
            for leaf in value:
                name = f"{key}.{leaf}"
                if name not in leaves:
                    raise _unknown(name, str(path))
                if name in tree:
                    raise UserError(f"{path}: {name} stands twice, as {name!r} and as {leaf!r} under {key!r}")
        elif key in sections:
            raise UserError(f"{path}: {key} is a section; its settings go on indented lines under `{key}:`")
        elif key not in leaves:
            raise _unknown(str(key), str(path))


def _parser() -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(
        prog="train_flow_ssl.py",
        usage="%(prog)s [--config config.yaml] [--section.setting VALUE ...] [--pretrained [PATH]] [--resume RUN]",
        description="Train a semi-supervised model. Also called as `scnf train`.",
        epilog="Besides: --resume RUN continues a run, with its settings. A setting whose last part is unique may be "
        "given by that part alone: --epochs 3.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file, looked up as given, then in configs/")
    parser.add_class_arguments(Settings)
    parser._option_string_actions["--print_config"].metavar = "FLAGS"  # the library's own holds a control character
    return parser


def load(config: Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file and what is typed; what is typed wins.

    Args:
        config: the YAML file, None for the defaults.
        overrides: command-line words, `--name value`.

    Raises:
        UserError: an unknown name, a wrong type, a value out of range.
        SystemExit: after `--help` or `--print_config`.

    Example:
        >>> load(None, ["--epochs", "3", "--data.name", "digits"]).train.epochs
        3
    """
    words = _expand(overrides)
    kinds, tree = _leaves(), {} if config is None else _read(config)
    given = {name: text for name, text in _given_as_text(tree, words).items() if name in kinds}
    if tree:
        words = [f"--config={yaml.dump(tree, Dumper=_Dumper)}", *words]  # as content: the file is read once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = _parser()
        try:
            settings: Settings = _instantiate(parser.parse_args(words))
        except Exception as error:
            if isinstance(error, UserError):
                raise
            raise _wrong(str(error)) from error
    for name, text in given.items():
        types = {kinds[name], *get_args(kinds[name])}
        if types == {kinds[name], str, NoneType}:
            setattr(*_place(settings, name), text)  # the parser reads `~` and `#1` as YAML, in which they are nothing
        elif types & {int, float} and ":" in text:  # and 1:30 as 90, in minutes and seconds
            raise UserError(f"{name} is {_kind(kinds[name])}, not {text}")
    _check_nulls(settings)
    _check_texts(settings)
    _check_values(settings)
    return settings


def _given_as_text(tree: Mapping[str, Any], words: Sequence[str]) -> dict[str, str]:
    """What a file or `--name=text` gives as text, by full name; `null` on the command line is none."""
    given = dict(tree)
    for section, values in tree.items():
        given |= {f"{section}.{leaf}": value for leaf, value in values.items()} if isinstance(values, dict) else {}
    for word in words:
        name, _, text = word.removeprefix("--").partition("=")
        given[name] = None if text == "null" else text
    return {name: text for name, text in given.items() if isinstance(text, str)}


def _instantiate(namespace: Any) -> Settings:
    tree = namespace.as_dict()
    sections = {top.name: top.type for top in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for name, kind in sections.items():
        value = tree.get(name)
        values[name] = kind(**(value or {})) if dataclasses.is_dataclass(kind) and isinstance(kind, type) else value
    return Settings(**values)


def _place(settings: Settings, name: str) -> tuple[Any, str]:
    """The section that holds the setting `name`, and its name there."""
    section, _, leaf = name.rpartition(".")
    return (getattr(settings, section) if section else settings), leaf


def _check_nulls(settings: Settings) -> None:
    """Refuse `null` in YAML where a setting has no such value."""
    for name, kind in _leaves().items():
        if getattr(*_place(settings, name)) is None and NoneType not in get_args(kind):
            raise UserError(f"{name} needs a value, and null is none")


def _check_texts(settings: Settings) -> None:
    """Refuse empty text, and expand `~` in paths."""
    for name in _leaves():
        section, leaf = _place(settings, name)
        value = getattr(section, leaf)
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{name} holds a character NUL, which no name has")
        if value == "":
            raise UserError(f"{name} is empty: leave it out, or see whether a variable of the shell is not set")
        if name in PATHS and value is not None:
            try:
                setattr(section, leaf, files.expand(value))
            except UserError as error:
                raise UserError(f"{name}: {error}") from error


def _check_values(settings: Settings) -> None:
    data, objective, train, model = settings.data, settings.objective, settings.train, settings.model
    for name, allowed in RANGES.items():
        value = getattr(*_place(settings, name))
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and number not in allowed:
                raise UserError(f"{name} must be {allowed}, not {number}")
    if model.latent == []:
        raise UserError("model.latent must be a whole number or a list of such, bottom first, not []")
    if (model.importance_samples or 1) > 1 and (objective.kl_weight != 1 or objective.kl_warmup):
        raise UserError(
            "the importance-weighted bound has no KL to weigh: set objective.kl_weight to 1 and objective.kl_warmup to "
            "0, or model.importance_samples to 1"
        )
    if objective.propagations and not data.num_labels:
        raise UserError("there are no labels to propagate: set data.num_labels above 0, or objective.propagations to 0")
    if objective.propagations and data.labelled_share == 1:
        raise UserError(
            "batches have no unlabelled rows for propagated labels: set data.labelled_share below 1, or "
            "objective.propagations to 0"
        )
    if objective.consistency_weight and data.labelled_share == 1:
        raise UserError(
            "batches have no unlabelled rows to take views of: set data.labelled_share below 1, or "
            "objective.consistency_weight to 0"
        )
    if train.adapt and not settings.pretrained:
        raise UserError("train.adapt takes the shared flow of trained weights: say which with --pretrained [PATH]")


class _Dumper(yaml.SafeDumper):
    """Quotes what the parser of settings would take for a number, and YAML's own rules would not: 1e3."""


_Dumper.add_implicit_resolver(*strict_yaml.SCIENTIFIC)


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that :func:`load` reads back."""
    tree = dataclasses.asdict(settings)
    for name, value in tree.items():
        if isinstance(value, dict):
            tree[name] = {key: leaf for key, leaf in value.items() if leaf is not None}
    tree = {"format": FORMAT, **{name: value for name, value in tree.items() if value is not None}}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
