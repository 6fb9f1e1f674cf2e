"""Trained weights by what a person would call them: a run, a directory, a file, or weights that come with scnf."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scnf import shipped
from scnf.errors import UserError
from scnf.parts import admit
from scnf.runs import Run
from scnf.settings import Settings, load_settings

_PINNED = "#sha256="
"""Between the path of weights and their check sum, in the settings of a run that started from them."""


class Weights(NamedTuple):
    """Where trained weights lie.

    Attributes:
        directory: holds what is known about them: config.yaml, and split.json.
        path: the .safetensors file.
    """

    directory: Path
    path: Path

    @property
    def config(self) -> Path:
        """The file of the settings that the weights belong to; UserError where the directory holds none."""
        path = self.directory / "config.yaml"
        if not path.is_file():
            raise UserError(f"{self.directory} holds no config.yaml, which says what the weights belong to")
        return path

    def settings(self, overrides: Sequence[str] = ()) -> Settings:
        """The settings that the weights belong to, with what is typed; parts that they need are imported first.

        Raises:
            UserError: the directory holds no settings, or parts that nobody has trusted, see :func:`scnf.parts.admit`.
        """
        admit(self.directory)
        return load_settings(self.config, overrides, kept=True)

    @property
    def pinned(self) -> str:
        """The path and the check sum, which :func:`find_weights` takes later, whatever `last` is by then."""
        return f"{self.path}{_PINNED}{_sha256(self.path)}"

    @property
    def unfinished(self) -> bool:
        """Whether they are the best of a training that has not ended."""
        run = Run(self.directory)
        return self.path == run.checkpoint("best") and not run.weights.is_file()


def find_weights(ref: str, logs: Path, recipe: str) -> Weights:
    """Find weights.

    Args:
        ref: a run (id, directory, "last"), a directory or a .safetensors file, the name of weights that come with
            scnf, or "shipped" for those of the recipe. A file's path may come with its check sum, which the file must
            then have.
        logs: the directory of all runs.
        recipe: of "shipped".

    Raises:
        UserError: there are no such weights.
    """
    ref, _, sha256 = ref.partition(_PINNED)
    if sha256:
        found = find_weights(ref, logs, recipe)
        if _sha256(found.path) != sha256:
            raise UserError(
                f"{found.path} is not the file that these settings were run with, by its SHA-256: restore it, or take "
                f"it as it is with --pretrained {ref}"
            )
        return found
    if ref == shipped.SHIPPED:
        if (place := shipped.find_weights(recipe)) is None:
            raise UserError(
                f"no weights ship for the recipe {recipe}: give a path, --pretrained PATH, or train without"
            )
        return Weights(place, place / "model.safetensors")
    path = Path(ref)
    if path.is_file():
        inside = path.parent.name == "checkpoints"  # of a run, whose config.yaml lies one up
        return Weights(path.parent.parent if inside else path.parent, path)
    if path.suffix == ".safetensors":
        raise UserError(f"there is no file {path}")
    if not path.exists() and (place := shipped.find_weights(ref)) is not None:
        return Weights(place, place / "model.safetensors")
    named = re.fullmatch("last|[0-9]+", ref) is None  # these are runs, whatever lies here
    directory = path if named and path.is_dir() else Run.find(logs, ref).path
    for weights in (directory / "model.safetensors", Run(directory).checkpoint("best")):
        if weights.is_file():
            return Weights(directory, weights)
    raise UserError(f"{directory} holds no weights: neither model.safetensors nor checkpoints/best.safetensors")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
