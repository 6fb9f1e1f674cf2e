"""Register parts by name in tables that can be extended."""

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple, TypeVar

from scnf.errors import InvalidArgument

_Part = TypeVar("_Part")


class Registration(NamedTuple):
    """A part that somebody put into a table from outside of the package.

    Attributes:
        table: Table of parts by name.
        name: Name of the part.
        part: The part itself.
    """

    table: MutableMapping[str, Any]
    name: str
    part: Any


REGISTRATIONS: list[Registration] = []
"""All registrations from outside of the package in this process, in their order."""


def put(table: MutableMapping[str, Any], name: str, part: Any, kind: str) -> None:
    """Put a part into a table by its name.

    A later part from outside replaces an earlier one, as a cell of a notebook that runs again does. The parts of the
    package stay.

    Args:
        table: Table of parts by name.
        name: Name of the part.
        part: The part itself.
        kind: Kind of the parts, for messages.

    Raises:
        InvalidArgument: The name is invalid, or belongs to a part of the package.

    Example:
        >>> put({"conv": 1}, "conv", 2, "network")
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: name 'conv' already names a network of scnf: choose another name
    """
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_." for c in name) or name[0] == "-":
        raise InvalidArgument("name", f"must be letters, digits, -, _ and . alone; not {name!r}")
    if name in table and not any(each.table is table and each.name == name for each in REGISTRATIONS):
        raise InvalidArgument("name", f"{name!r} already names a {kind} of scnf: choose another name")
    table[name] = part
    if not str(getattr(part, "__module__", "")).startswith("scnf."):
        REGISTRATIONS.append(Registration(table, name, part))


def registering(table: MutableMapping[str, Any], name: str, kind: str) -> Callable[[_Part], _Part]:
    """Return a decorator that puts a part into a table, see :func:`put`."""

    def register(part: _Part) -> _Part:
        put(table, name, part, kind)
        return part

    return register
