"""Where the configurations and the weights lie that come with scnf.

In the repository they are the folders configs/ and pretrained/ beside the package. A build copies both into the package
(see setup.py). No other module knows where they lie.
"""

from pathlib import Path
from typing import Literal

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
