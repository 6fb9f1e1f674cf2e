"""Find and build the trained M1 on which an M1+M2 stands."""

from pathlib import Path

from scnf.distributions import ClassPrior
from scnf.errors import UserError
from scnf.models.vae import VAE
from scnf.recipes import build
from scnf.settings import Settings
from scnf.shipped import SHIPPED
from scnf.training.checkpoint import load_file
from scnf.weights import Weights, find_weights

M1_COPY = "m1"
"""Directory in a run of M1+M2 with a copy of the trained M1."""


def find_m1(ref: str, settings: Settings, run_directory: Path | None) -> Weights:
    """Return the trained M1 of a run of M1+M2, which is the copy in the run, or else the weights of `model.m1`."""
    if ref == SHIPPED:
        raise UserError("no M1 ships: train one (--config mnist_m1.yaml), then set model.m1 to its run")
    copy = None if run_directory is None else run_directory / M1_COPY
    ref = str(copy) if copy and copy.is_dir() else ref
    weights = find_weights(ref, Path(settings.runs.root), settings.model.name)
    if not (weights.directory / "config.yaml").is_file():
        raise UserError(f"{weights.directory} holds no config.yaml with the settings of the M1: restore it")
    trained, data = weights.settings(), settings.data.name
    if trained.model.name != "m1":
        raise UserError(
            f"{weights.directory} was trained with the recipe {trained.model.name}, and M1+M2 needs the recipe "
            "m1, which has one Gaussian latent. Set model.m1 to a run of m1"
        )
    if trained.data.name != data:
        raise UserError(
            f"the M1 in {weights.directory} was trained on {trained.data.name}, not on {data}: train one on "
            f"{data}, or set data.name to {trained.data.name}"
        )
    return weights


def build_m1(weights: Weights, shape: tuple[int, ...], classes: int, levels: int | None) -> VAE:
    """Build a trained M1 for inputs of `shape`, and load its weights (UserError)."""
    recipe = weights.settings().model
    m1: VAE = build(recipe, shape, classes, ClassPrior(classes), levels)
    load_file(m1, weights.path)
    return m1
