"""Where the configurations and the weights lie that come with scnf.

In the repository they are the folders configs/ and pretrained/ beside the package. A build copies both into the package
(see setup.py). No other module knows where they lie.
"""

import difflib
from pathlib import Path
from typing import Literal

from scnf.errors import UserError

SHIPPED = "shipped"
"""The name of the weights that ship for a recipe; a bare `--pretrained` means the same."""
Kind = Literal["configs", "pretrained"]

_PACKAGE = Path(__file__).parent


def folder(kind: Kind) -> Path:
    """The folder that comes with scnf: inside the installed package, else beside the package in the repository.

    Example:
        >>> (folder("configs") / "config.yaml").is_file()
        True
    """
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def places(kind: Kind, name: str) -> list[Path]:
    """Where `name` is looked up: in a folder of that kind in the current directory, then in the one of scnf.

    Args:
        kind: the folder.
        name: of a configuration with its suffix, or of a directory of weights.
    """
    return [Path(kind) / name, folder(kind) / name]


def find_weights(name: str) -> Path | None:
    """The directory of weights that come with scnf, or None.

    Args:
        name: the bare name of the directory, or `pretrained/NAME`.

    Example:
        >>> find_weights("scnf-digits") == find_weights("pretrained/scnf-digits")
        True
        >>> find_weights("../scnf-digits") is None
        True
    """
    *parents, bare = Path(name).parts or ("",)
    if parents not in ([], ["pretrained"]):
        return None
    return next((place for place in places("pretrained", bare) if (place / "model.safetensors").is_file()), None)


def find_config(name: str) -> Path:
    """A configuration as given; a bare name, or `configs/NAME`, is also looked up in `configs/` here and in scnf's.

    Raises:
        UserError: there is no such file.
    """
    given, (*parents, bare) = Path(name), Path(name).parts or ("",)
    by_name = parents in ([], ["configs"]) and not name.startswith(".")
    for place in [given, *(places("configs", bare) if by_name else [])]:
        if place.is_file() or (place == given and place.exists() and not place.is_dir()):
            return place
    if given.is_dir():
        raise UserError(f"{name} is a directory: name a configuration in it, such as {given / 'config.yaml'}")
    known = sorted(path.name for path in folder("configs").glob("*.yaml"))
    close = difflib.get_close_matches(bare, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}" if known else "give its path"
    raise UserError(
        f"there is no configuration {name!r}{', neither as given nor in configs/' if by_name else ''}; {hint}"
    )
