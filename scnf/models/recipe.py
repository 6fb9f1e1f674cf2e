"""What all recipes share: the arguments of the functions that build them, and settings in place of their defaults."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of `function` that have a default, and that default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def override(arguments: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with `given` in their place.

    Raises:
        ValueError: `given` holds a name that is not among the arguments.
    """
    for name in given:
        if name not in arguments:
            raise ValueError(
                f"it takes no argument {name!r} (drop it, or set it to null); it takes {', '.join(sorted(arguments))}"
            )
    return {**arguments, **given}
