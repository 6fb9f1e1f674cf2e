"""Register parts by name in tables that can be extended."""

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from scnf.errors import InvalidArgument

_Part = TypeVar("_Part")


def check_free(table: MutableMapping[str, Any], name: str, kind: str) -> None:
    """Refuse a name that is invalid or already taken (InvalidArgument).

    Example:
        >>> check_free({"conv": 1}, "conv", "network")
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: name 'conv' already names another network: choose a free name
    """
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_." for c in name) or name[0] == "-":
        raise InvalidArgument("name", f"must be letters, digits, -, _ and . alone; not {name!r}")
    if name in table:
        raise InvalidArgument("name", f"{name!r} already names another {kind}: choose a free name")


def registering(table: MutableMapping[str, Any], name: str, kind: str) -> Callable[[_Part], _Part]:
    """Return a decorator that puts a part into a table.

    Args:
        table: Table of parts by name.
        name: Name of the new part.
        kind: Kind of the parts, for messages.

    Raises:
        InvalidArgument: The name is invalid or already taken.
    """
    check_free(table, name, kind)

    def register(part: _Part) -> _Part:
        table[name] = part
        return part

    return register
