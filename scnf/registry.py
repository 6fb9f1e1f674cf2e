"""Names that may be added to: a table of parts, and the function that registers one."""

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from scnf.errors import InvalidArgument

_Part = TypeVar("_Part")


def check_free(table: MutableMapping[str, Any], name: str, kind: str) -> None:
    """Refuse what is no name, or one that is taken (InvalidArgument).

    Example:
        >>> check_free({"conv": 1}, "conv", "network")
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: name 'conv' is that of another network: choose one that is free
    """
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_." for c in name) or name[0] == "-":
        raise InvalidArgument("name", f"must be letters, digits, -, _ and . alone; not {name!r}")
    if name in table:
        raise InvalidArgument("name", f"{name!r} is that of another {kind}: choose one that is free")


def registering(table: MutableMapping[str, Any], name: str, kind: str) -> Callable[[_Part], _Part]:
    """A decorator that puts a part into a table.

    Args:
        table: of parts by name.
        name: of the part.
        kind: of the parts, for messages.

    Raises:
        InvalidArgument: the name is taken, or none.
    """
    check_free(table, name, kind)

    def register(part: _Part) -> _Part:
        table[name] = part
        return part

    return register
