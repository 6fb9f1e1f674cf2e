"""Define arguments as the fields of a dataclass, whose types say which values they take.

The docstring under a field says what the argument is for. A recipe and a section of the settings are dataclasses of
this kind. Values come from Python, from YAML or from the command line, and one function, :func:`converted`, checks them
all.

Example:
    >>> @dataclass(frozen=True)
    ... class Steps:
    ...     number: Annotated[int, Range(1, 256)] = 8
    ...     def __post_init__(self) -> None:
    ...         check_arguments(self)
    >>> Steps(0)
    Traceback (most recent call last):
    ...
    scnf.errors.InvalidArgument: number must be between 1 and 256, not 0
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from scnf.errors import InvalidArgument


@dataclass(frozen=True)
class Range:
    """A range holds the numbers from `low` to `high`, including both ends.

    `above` excludes `low`, and `below` excludes `high`.

    Example:
        >>> 0.0 in Range(0, 1, above=True), f"it must be {Range(0, 1, above=True)}"
        (False, 'it must be above 0 and not above 1')
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and not (
            (self.above and number == self.low) or (self.below and number == self.high)
        )

    def __str__(self) -> str:
        low, high = (f"{end:g}" if isinstance(end, float) else str(end) for end in (self.low, self.high))
        if not self.above and not self.below:
            return f"between {low} and {high}"
        return f"{'above' if self.above else 'at least'} {low} and {'below' if self.below else 'not above'} {high}"


@dataclass(frozen=True, eq=False)
class Choice:
    """A choice takes the keys of a table.

    The table may grow, so its keys are looked up when they are needed.
    """

    table: Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """A condition gives an argument an effect only where another argument has certain values.

    Attributes:
        argument: Name of the other argument.
        values: Its values with which this argument has an effect, or with `negated` those with which it has none.
        negated: Whether the condition holds for all values but these.
    """

    argument: str
    values: tuple[str, ...]
    negated: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether the argument has an effect where the other argument is `value`."""
        return (value in self.values) != self.negated

    def __str__(self) -> str:
        *others, last = self.values
        names = f"{', '.join(others)}{' or ' if others else ''}{last}"
        return f"{self.argument} other than {names}" if self.negated else f"{self.argument} {names}"


TRAINING = "training"
"""Marks an argument that only says how a model is trained or computed. Weights make the same function for all its
values."""
PATH = "path"
"""Marks text that names a file or directory, and may begin with `~`."""


@dataclass(frozen=True)
class Argument:
    """An argument describes one field of a dataclass.

    Attributes:
        name: Name of the field.
        kind: Type of the field, including its annotations.
        default: Value that the field takes by default; `dataclasses.MISSING` for a field without a default.
        notes: Annotations of the type, each a :class:`Range`, a :class:`Choice`, a :class:`Condition`, `TRAINING` or
            `PATH`.
    """

    name: str
    kind: Any
    default: Any
    notes: tuple[Any, ...] = ()

    @property
    def plain(self) -> Any:
        """Return the type of the field without its annotations."""
        return get_args(self.kind)[0] if get_origin(self.kind) is Annotated else self.kind

    @property
    def condition(self) -> Condition | None:
        """Return the condition under which the argument has an effect, or None where it always has an effect."""
        return next((note for note in self.notes if isinstance(note, Condition)), None)

    def has_effect(self, values: Mapping[str, Any]) -> bool:
        """Return whether the argument has an effect beside the other `values` of its class."""
        return self.condition is None or self.condition.holds(values[self.condition.argument])


def arguments_of(kind: Any) -> dict[str, Argument]:
    """Return the arguments of a dataclass by name.

    The arguments that the class declares itself come first, then those of its base classes. A class that declares a
    field again, to change its default, need not annotate its type again.
    """
    return _arguments_of(kind)


@cache
def _arguments_of(kind: Any) -> dict[str, Argument]:
    declared = {field.name: field for field in fields(kind)}
    order: list[str] = []
    types: dict[str, Any] = {}
    notes: dict[str, list[Any]] = {}
    for each in reversed(kind.__mro__):
        annotated = [name for name in vars(each).get("__annotations__", {}) if name in declared]
        hints = get_type_hints(each, include_extras=True) if annotated else {}
        order = [name for name in annotated if name not in order] + order
        for name in annotated:
            plain, *new = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
            kinds = {type(note) for note in new} - {str}
            inherited = [note for note in notes.get(name, []) if type(note) not in kinds and note not in new]
            types[name], notes[name] = plain, inherited + new
    return {
        name: Argument(
            name,
            Annotated[types[name], *notes[name]] if notes[name] else types[name],
            _default(declared[name]),
            tuple(notes[name]),
        )
        for name in order
    }


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass and its base classes, on one line.

    A class whose source is not available contributes no docstrings.
    """
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, statement in pairwise(body):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                docs[field.target.id] = " ".join(str(statement.value.value).split())
    return docs


def check_arguments(instance: Any) -> None:
    """Check the fields of a dataclass and convert them to their types; call it in `__post_init__`.

    Raises:
        InvalidArgument: a value that the type of its field does not take.
    """
    for name, argument in arguments_of(type(instance)).items():
        object.__setattr__(instance, name, converted(argument.kind, getattr(instance, name), name))


def converted(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as one of the type `kind`, which may be annotated with a :class:`Range` or a :class:`Choice`.

    A whole number stands for a float, text for the number that it writes, and a list for a tuple. Nothing else is
    converted.

    Args:
        kind: Type of the result, which is bool, int, float, str, a tuple or a class, or a Literal or a union of these.
        value: Value to convert, of any type.
        name: Name of the argument, for the message.

    Raises:
        InvalidArgument: The value is of another type, or out of its range.

    Example:
        >>> converted(int | tuple[int, ...], [64, "32"], "latent")
        (64, 32)
    """
    try:
        return _converted(kind, value, name)
    except _OtherKind:
        raise InvalidArgument(name, f"must be {in_words(kind)}; not {value!r}") from None


def check_kind(name: str, kind: Any, inside: bool = False) -> None:
    """Refuse a type that no setting can have (InvalidArgument).

    A setting is a bool, an int, a float, a str, a tuple[T, ...] or a Literal of texts, or one of several of these.

    Args:
        name: Name of the argument, for the message.
        kind: The type.
        inside: Whether it is one of several types of the argument. Then it may be a class, of objects in Python.

    Example:
        >>> check_kind("width", list[int])
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: width must be of a type that a setting can have, not list[int]; see check_kind
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        check_kind(name, parts[0], inside)
    elif origin in (Union, UnionType):
        for part in parts:
            check_kind(name, part, inside=True)
    elif origin is tuple and len(parts) == 2 and parts[1] is Ellipsis:
        check_kind(name, parts[0])
    elif not (
        kind in (bool, int, float, str)
        or (origin is Literal and all(isinstance(part, str) for part in parts))
        or (inside and isinstance(kind, type) and origin is None)
    ):
        raise InvalidArgument(name, f"must be of a type that a setting can have, not {kind}; see check_kind")


class _OtherKind(Exception):
    """A value is not of the required type."""


def _converted(kind: Any, value: Any, name: str) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        value = value.item()
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = _converted(parts[0], value, name)
        for note in parts[1:]:
            if isinstance(note, Range) and _is_number(value) and value not in note:
                raise InvalidArgument(name, f"must be {note}, not {value}")
            if isinstance(note, Choice) and value not in note.table:
                raise _OtherKind
        return value
    if origin in (Union, UnionType):
        for part in parts:
            try:
                return _converted(part, value, name)
            except _OtherKind:
                continue
        raise _OtherKind
    if origin is Literal:
        return _checked(value, isinstance(value, str) and value in parts)
    if origin is tuple:
        _checked(value, isinstance(value, list | tuple) and len(value) > 0)
        return tuple(_converted(parts[0], each, name) for each in value)
    return _PLAIN.get(kind, lambda value: _checked(value, isinstance(value, kind)))(value)


def _checked(value: Any, fits: bool) -> Any:
    if not fits:
        raise _OtherKind
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _bool(value: Any) -> bool:
    words = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    return bool(_checked(value, isinstance(value, bool)))


def _int(value: Any) -> int:
    if isinstance(value, str):
        return int(_checked(value, re.fullmatch(r"[-+]?[0-9]{1,30}", value.strip()) is not None))
    return int(_checked(value, isinstance(value, Integral) and not isinstance(value, bool)))


def _float(value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(_checked(value, "_" not in value))
        except ValueError:
            raise _OtherKind from None
    return float(_checked(value, _is_number(value)))


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: lambda value: _checked(value, isinstance(value, str)),
    Any: lambda value: value,
}


_LISTS = {int: "[64, 32]", str: "[cat, dog]"}
"""Example of a list for each type of its entries."""


def in_words(kind: Any, ranges: bool = False) -> str:
    """Describe a type in words, and with `ranges` also the ranges of its numbers.

    Example:
        >>> in_words(Annotated[int, Range(1, 256)] | tuple[int, ...], ranges=True)
        'a whole number between 1 and 256 or a list such as [64, 32]'
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        notes: dict[type, Any] = {type(note): note for note in parts[1:]}
        if Choice in notes:
            return f"one of {', '.join(notes[Choice].table)}"
        return in_words(parts[0], ranges) + (f" {notes[Range]}" if ranges and Range in notes else "")
    if origin is tuple:
        plain = get_args(parts[0])[0] if get_origin(parts[0]) is Annotated else parts[0]
        return f"a list such as {_LISTS.get(plain, '[0.25, 0.75]')}"
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 1 else str(parts[0])
    if origin in (Union, UnionType):
        # the description leaves out None and Python objects
        options = (part for part in parts if part in _PLAIN or get_args(part))
        return " or ".join(in_words(part, ranges) for part in options)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words[kind] if kind in words else str(kind.__name__)


def takes_none(kind: Any) -> bool:
    """Return whether a type includes None."""
    return kind is NoneType or any(takes_none(part) for part in get_args(kind) if part is NoneType or get_args(part))
