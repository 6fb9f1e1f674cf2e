"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right: bad settings, damaged files, a full disk.

    The message says what is wrong and what to do about it. The command line prints it on one line without a
    traceback and exits with code 2; library callers catch it like any exception.
    """
