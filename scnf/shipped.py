"""Locate the configurations and the weights that ship with scnf.

In the repository they are the folders configs/ and pretrained/ beside the package. A build copies both into the package
(see setup.py). No other module knows these locations.
"""

import difflib
from pathlib import Path
from typing import Literal

from scnf.errors import UserError

SHIPPED = "shipped"
"""The name of the shipped weights of a recipe, which `--pretrained` without a value also means."""
Kind = Literal["configs", "pretrained"]

_PACKAGE = Path(__file__).parent


def folder(kind: Kind) -> Path:
    """Return a shipped folder, inside the installed package or else beside the package in the repository.

    Example:
        >>> (folder("configs") / "config.yaml").is_file()
        True
    """
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def search_paths(kind: Kind, name: str) -> list[Path]:
    """Return the paths at which to look for `name`, in the current directory first and then in the shipped folder.

    Args:
        kind: Kind of the folder.
        name: Name of a configuration with its suffix, or name of a directory of weights.
    """
    return [Path(kind) / name, folder(kind) / name]


def find_weights(name: str) -> Path | None:
    """Return the directory of shipped weights, or None where no weights have the name.

    Args:
        name: Bare name of the directory, or `pretrained/NAME`.

    Example:
        >>> find_weights("scnf-digits") == find_weights("pretrained/scnf-digits")
        True
        >>> find_weights("../scnf-digits") is None
        True
    """
    *parents, stem = Path(name).parts or ("",)
    if parents not in ([], ["pretrained"]):
        return None
    return next((path for path in search_paths("pretrained", stem) if (path / "model.safetensors").is_file()), None)


def is_shipped(directory: Path) -> bool:
    """Return whether a directory holds weights that ship with scnf, beside which nothing is written.

    Example:
        >>> is_shipped(folder("pretrained") / "scnf-digits"), is_shipped(Path("logs") / "000001-2026-11-30-digits")
        (True, False)
    """
    return directory.resolve().parent == folder("pretrained").resolve()


def names() -> list[str]:
    """Return the names of all shipped weights."""
    return sorted(path.parent.name for path in folder("pretrained").glob("*/model.safetensors"))


def find_config(name: str) -> Path:
    """Return the path of a configuration.

    A bare name, or `configs/NAME`, may also be a file in `configs/` of the current directory or in the shipped folder.

    Raises:
        UserError: There is no such file.
    """
    path, (*parents, stem) = Path(name), Path(name).parts or ("",)
    is_name = parents in ([], ["configs"]) and not name.startswith(".")
    for candidate in [path, *(search_paths("configs", stem) if is_name else [])]:
        if candidate.is_file() or (candidate == path and candidate.exists() and not candidate.is_dir()):
            return candidate
    if path.is_dir():
        raise UserError(f"{name} is a directory: name a configuration in it, such as {path / 'config.yaml'}")
    known = sorted(path.name for path in folder("configs").glob("*.yaml"))
    close = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}" if known else "give its path"
    raise UserError(
        f"there is no configuration {name!r}{', neither at that path nor in configs/' if is_name else ''}; {hint}"
    )
