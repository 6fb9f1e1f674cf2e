"""What the parsers of the commands share; settings themselves are :mod:`scnf.settings`'s."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from scnf.arguments import Range
from scnf.errors import UserError
from scnf.files import expand


def take(words: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Split options of the command itself, `--name value` or `--name=value`, from the settings."""
    own: dict[str, str] = dict.fromkeys(names, "")
    rest: list[str] = []
    pending = iter(words)
    for word in pending:
        name, equals, value = word.partition("=")
        if name not in names:
            rest.append(word)
            continue
        own[name] = value if equals else next(pending, "")
        if not own[name] or own[name].startswith("--"):
            raise UserError(f"{name} needs a value")
        own[name] = expand(own[name])
    return own, rest


EPILOG = "Settings such as --data.root may follow; --import FILE and --trust-parts, see `scnf --help`."


class Parser(argparse.ArgumentParser):
    """Of a command with few options; what it cannot take is a UserError, as anywhere."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError with the message."""
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help tells more")


def weights_parser(command: str, description: str) -> Parser:
    """The parser of a command on one run or one directory or file of weights; settings may follow its own options."""
    parser = Parser(
        prog=f"scnf {command}",
        description=description,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "weights", type=expand, metavar="RUN|PATH", help="a run (id, directory, last), a directory or .safetensors file"
    )
    add_logs(parser)
    return parser


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the directory of the runs."""
    parser.add_argument("--logs", "--runs.root", type=path, default=Path("logs"), help="directory of the runs (logs)")


def path(text: str) -> Path:
    """The type of an option that is a path."""
    return Path(expand(text))


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that is a whole number in a range."""

    def whole(text: str) -> int:
        allowed = Range(low, high)
        if not re.fullmatch(r"[-+]?[0-9]{1,30}", text) or int(text) not in allowed:
            raise argparse.ArgumentTypeError(f"it must be a whole number {allowed}, not {text!r}")
        return int(text)

    return whole


def say(line: str) -> None:
    """Print a line for people, above a progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()
