"""Define the exceptions for users of the command line and for callers of the library.

Library code raises :class:`InvalidArgument`, which names an argument of the function or class that raises it. Only
commands know settings and options: they turn the exception into a :class:`UserError` that names the setting, and exit
with code 2. The modules behind commands that read and write files, runs, weights, checkpoints and settings raise
UserError themselves. Any other exception is a bug, and keeps its traceback.
"""


class UserError(Exception):
    """An error that the user can fix, such as bad settings, damaged files or a full disk.

    The message says what is wrong and what to do about it. The command line prints it on one line without a
    traceback and exits with code 2. Library callers catch it like any exception.
    """


class FileError(UserError):
    """A file that cannot be written or locked."""


class NotFinite(ArithmeticError):
    """A loss, gradient or metric that is not finite.

    The message says where it arose. A command adds the settings that may help.
    """


class InvalidArgument(ValueError):
    """An invalid value of an argument of the library.

    The message names the argument. A command turns the exception into a :class:`UserError` that names the setting.

    Args:
        argument: Name of the argument.
        problem: Requirement and actual value. It completes a sentence that begins with the name.

    Example:
        >>> raise InvalidArgument("blocks", "must be 0 or more, not -1")
        Traceback (most recent call last):
        ...
        scnf.errors.InvalidArgument: blocks must be 0 or more, not -1
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument, self.problem = argument, problem

    def __str__(self) -> str:
        return f"{self.argument} {self.problem}"
