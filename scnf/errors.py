"""The exceptions that are meant for people: at the keyboard, and those who call the library."""


class UserError(Exception):
    """Something the user can put right: bad settings, damaged files, a full disk.

    The message says what is wrong and what to do about it. The command line prints it on one line without a
    traceback and exits with code 2; library callers catch it like any exception.
    """


class InvalidArgument(ValueError):
    """An argument of the library has a value that it does not take.

    The library names its own argument. A command turns it into a :class:`UserError` that names the setting.

    Args:
        argument: its name.
        problem: what it must be and what it is, so that the name and this make a sentence.

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
