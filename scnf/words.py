"""Words of messages that depend on a number or on the kind of the data."""

from collections.abc import Sequence

_SHOWN = 10  # files that a message names


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with the words for what it counts.

    Args:
        number: The number.
        one: Words for one thing.
        many: Words for any other number of things; by default `one` with an s.

    Example:
        >>> counted(1, "image"), counted(2000, "image"), counted(0, "image of one class", "images of one class")
        ('1 image', '2,000 images', '0 images of one class')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def noun_of(levels: int | None) -> str:
    """Return the word for one row of data, "image" or "vector"; `levels` is None for vectors."""
    return "vector" if levels is None else "image"


def skipped_text(skipped: Sequence[tuple[object, str]]) -> str:
    """Return the names of the first files that were skipped, each with the reason, and how many more there are.

    Example:
        >>> skipped_text([("a.png", "it is truncated"), ("b.png", "it is empty")])
        'a.png: it is truncated; b.png: it is empty'
    """
    more = [f"and {len(skipped) - _SHOWN:,} more"] if len(skipped) > _SHOWN else []
    return "; ".join([f"{name}: {reason}" for name, reason in skipped[:_SHOWN]] + more)
