"""The commands, each a module with a function that takes command-line words and returns an exit code."""

from collections.abc import Callable, Sequence

from scnf.registry import registering

Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Command | str] = {
    "train": "scnf.commands.train:train",
    "evaluate": "scnf.commands.evaluate:evaluate",
    "predict": "scnf.commands.predict:predict",
    "sample": "scnf.commands.sample:sample",
    "calibrate": "scnf.commands.calibrate:calibrate",
    "runs": "scnf.commands.runs:list_runs",
    "compare": "scnf.commands.compare:compare",
    "recipes": "scnf.commands.recipes:recipes",
}
"""Each command by its name, as a function or as the path of a function, which is imported at the call."""


def register_command(name: str) -> Callable[[Command], Command]:
    """Register a command under a name, as a decorator of a function (words) -> exit code.

    `scnf NAME --import FILE ...` calls the function with the other words.

    Raises:
        InvalidArgument: The name is taken.

    Example:
        >>> @register_command("hello")
        ... def hello(words):
        ...     print("hello", *words)
        ...     return 0
        >>> del COMMANDS["hello"]
    """
    return registering(COMMANDS, name, "command")
