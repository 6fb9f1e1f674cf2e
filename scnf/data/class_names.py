"""Sort and check names of classes."""

import re
import unicodedata
from collections.abc import Iterable

from scnf.errors import InvalidArgument


def natural_key(text: str) -> tuple[list[object], str]:
    """Return a sort key that compares digits in a text by their number.

    Example:
        >>> sorted(["b10", "b2", "a"], key=natural_key)
        ['a', 'b2', 'b10']
    """
    pieces = re.split(r"0*([0-9]+)", text)
    return [(len(piece), piece) if index % 2 else piece for index, piece in enumerate(pieces)], text


def check_class_names(names: Iterable[str], one_class: bool = False) -> None:
    """Refuse one class alone, and names that people or file systems confuse; no class at all is allowed.

    Names are confused where they differ only in case, spaces around them or the Unicode form of their characters.

    Args:
        names: Names of the classes.
        one_class: Whether one class alone is allowed, which is enough to score a model.

    Raises:
        InvalidArgument: the names are refused; the argument is "root".

    Example:
        >>> check_class_names(["cat", "dog"])
        >>> check_class_names(["Cat", "cat"])
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: root has classes 'Cat' and 'cat', which are easily confused: give them one name, \
or names that differ in more than case, spaces or the encoding of accents
    """
    by_form: dict[str, str] = {}
    for name in sorted(set(names), key=natural_key):
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InvalidArgument("root", f"has the class {name!a}, whose name is not valid UTF-8: rename it")
        other = by_form.setdefault(comparable(name), name)
        if other != name:
            raise InvalidArgument(
                "root",
                f"has classes {other!r} and {name!r}, which are easily confused: give them one name, or names that "
                "differ in more than case, spaces or the encoding of accents",
            )
    if len(by_form) == 1 and not one_class:
        raise InvalidArgument("root", f"needs two classes or more and has one, {next(iter(by_form.values()))!r}")


def confusable_names(names: Iterable[str]) -> list[str]:
    """Return a note on each pair of names that differ in accents alone, which may be two classes or one.

    Example:
        >>> confusable_names(["caf\u00e9", "cafe", "tea"])
        ["note: classes 'cafe' and 'caf\u00e9' differ in accents alone: if they are one class, give them one name"]
    """
    by_letters: dict[str, str] = {}
    notes = []
    for name in sorted(set(names), key=natural_key):
        letters = "".join(each for each in comparable(name) if not unicodedata.combining(each))
        other = by_letters.setdefault(letters, name)
        if other != name:
            notes.append(
                f"note: classes {other!r} and {name!r} differ in accents alone: if they are one class, give them one "
                "name"
            )
    return notes


def comparable(name: str) -> str:
    """Return a name without its case, the spaces around it and its Unicode form, to compare it with others.

    Example:
        >>> comparable("Caf\u00e9 ") == comparable("cafe\u0301")
        True
    """
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold()).strip()
