"""Find trained weights by a run, a directory, a file or the name of shipped weights."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scnf import shipped
from scnf.errors import UserError
from scnf.files import CHECKSUM_MARK, sha256_of
from scnf.parts import admit
from scnf.runs import Run
from scnf.settings import Settings, load_settings
from scnf.settings.schema import DEFAULT_RECIPE


class Weights(NamedTuple):
    """The location of trained weights.

    Attributes:
        directory: Directory with the settings (config.yaml) and the label split (split.json) of the weights.
        path: Path of the .safetensors file.
    """

    directory: Path
    path: Path

    @property
    def config(self) -> Path:
        """The settings file of the weights; UserError where the directory holds none."""
        path = self.directory / "config.yaml"
        if not path.is_file():
            raise UserError(
                f"{self.directory} holds no config.yaml with the settings of {self.path.name}: give a run or the "
                "weights of one, and what an estimator has saved to SemiSupervisedClassifier.load"
            )
        return path

    def settings(self, overrides: Sequence[str] = ()) -> Settings:
        """Import the parts of the weights, and return their settings with overrides.

        Raises:
            UserError: The directory holds no settings, or parts that the user does not trust, see
                :func:`scnf.parts.admit`.
        """
        admit(self.directory)
        return load_settings(self.config, overrides, from_run=True)

    @property
    def pinned(self) -> str:
        """The path with the checksum, by which :func:`find_weights` finds the same file after `last` has changed."""
        return f"{self.path}{CHECKSUM_MARK}{self.sha256}"

    @property
    def sha256(self) -> str:
        """The SHA-256 checksum of the file of weights."""
        return sha256_of(self.path)

    @property
    def unfinished(self) -> bool:
        """Whether these are the best weights of a training that has not ended."""
        run = Run(self.directory)
        return self.path == run.checkpoint("best") and not run.weights.is_file()


def find_weights(ref: str, logs: Path, recipe: str = DEFAULT_RECIPE) -> Weights:
    """Find trained weights.

    Args:
        ref: A run (id, directory, "last"), a directory, a .safetensors file, the name of shipped weights, or
            "shipped" for the shipped weights of the recipe. The path of a file may end with its checksum, which is then
            verified.
        logs: Directory of all runs.
        recipe: Recipe to which "shipped" refers.

    Raises:
        UserError: There are no such weights, or their checksum is wrong.
    """
    ref, _, sha256 = ref.partition(CHECKSUM_MARK)
    if sha256:
        weights = find_weights(ref, logs, recipe)
        if sha256_of(weights.path) != sha256:
            raise UserError(
                f"{weights.path} is not the file that these settings were run with, by its SHA-256: restore it, or "
                f"accept the new file with --pretrained {ref}"
            )
        return weights
    if ref == shipped.SHIPPED:
        if (directory := shipped.find_weights(recipe)) is None:
            raise UserError(
                f"no weights ship for the recipe {recipe}: give a path with --pretrained PATH, or leave it out"
            )
        return Weights(directory, directory / "model.safetensors")
    path = Path(ref)
    if path.is_file():
        is_checkpoint = path.parent.name == "checkpoints"  # config.yaml of a run lies in the directory above
        return Weights(path.parent.parent if is_checkpoint else path.parent, path)
    if path.suffix == ".safetensors":
        raise UserError(f"there is no file {path}: check the path")
    if not path.exists() and (directory := shipped.find_weights(ref)) is not None:
        return Weights(directory, directory / "model.safetensors")
    is_run = re.fullmatch("last|[0-9]+", ref) is not None  # even where the current directory has a folder of that name
    directory = path if not is_run and path.is_dir() else _find_run(logs, ref)
    for file in (directory / "model.safetensors", Run(directory).checkpoint("best")):
        if file.is_file():
            return Weights(directory, file)
    raise UserError(f"{directory} holds no weights: neither model.safetensors nor checkpoints/best.safetensors")


def _find_run(logs: Path, ref: str) -> Path:
    try:
        return Run.find(logs, ref).path
    except UserError as error:
        if matches := difflib.get_close_matches(Path(ref).name, shipped.names(), n=1):
            raise UserError(f"{error} Weights that ship: did you mean {matches[0]}?") from error
        raise
