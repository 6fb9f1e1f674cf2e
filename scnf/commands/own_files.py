"""Find the settings of a training for files of one's own."""

import os
from collections.abc import Sequence
from pathlib import Path

from scnf import streams
from scnf.commands import options
from scnf.data.sources import Dataset
from scnf.errors import UserError
from scnf.fitting.automatic import choose
from scnf.settings import Settings, load_settings
from scnf.settings_data import load_data


def kind_of(path: Path) -> str:
    """Return the name of the dataset for files of one's own, "folder" or "npz".

    Raises:
        UserError: There is no such path.
    """
    if not path.exists():
        raise UserError(
            f"there is no folder or file {path}: `scnf train FOLDER` trains on your own images, and "
            "`scnf train --config NAME` on the data of a configuration"
        )
    return "npz" if path.suffix.lower() == ".npz" else "folder"


def own_data(files: str) -> list[str]:
    """Return the settings that name files of one's own."""
    path = options.path(files)
    return ["--data.name", kind_of(path), "--data.root", os.path.abspath(path)]


def settings_of(files: str, overrides: Sequence[str]) -> tuple[Settings, Dataset]:
    """Choose the settings for files of one's own, which overrides may change, and load the data."""
    own = own_data(files)
    streams.make_output_optional()
    dataset = load_data(load_settings(None, [*own, *overrides]).data)
    chosen = choose(dataset)
    words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    settings = load_settings(None, [*own, *words, *overrides])
    print("chosen for these data: " + ", ".join(f"{name} {value}" for name, value in chosen.items()), flush=True)
    return settings, dataset
