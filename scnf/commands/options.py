"""Parse the options that commands share. :mod:`scnf.settings` parses the settings."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from scnf.arguments import Range
from scnf.errors import InvalidArgument, UserError
from scnf.files import expand
from scnf.streams import print_line as print_line

if TYPE_CHECKING:
    from torch import Tensor

    from scnf.data.inputs import Inputs
    from scnf.weights import Weights


def extract(words: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Separate the options of the command itself, `--name value` or `--name=value`, from the settings."""
    options: dict[str, str] = dict.fromkeys(names, "")
    rest: list[str] = []
    pending = iter(words)
    for word in pending:
        name, equals, value = word.partition("=")
        if name not in names:
            rest.append(word)
            continue
        options[name] = value if equals else next(pending, "")
        if not options[name] or options[name].startswith("--"):
            raise UserError(f"{name} needs a value")
        options[name] = expand(options[name])
    return options, rest


def embedded(inputs: "Inputs", rows: "Tensor") -> "Tensor":
    """Return rows that a model takes, where :meth:`scnf.data.inputs.Inputs.read` returned them (UserError)."""
    try:
        return inputs.embedded(rows)
    except InvalidArgument as error:
        raise UserError(str(error)) from error


def labelled_rows(path: Path, inputs: "Inputs", weights: "Weights", option: str = "") -> "tuple[Tensor, Tensor]":
    """Load the rows and labels [N] of labelled files for a trained model, and print what does not count (UserError).

    Args:
        path: Folder, CSV list or .npz file.
        inputs: Inputs and classes of the model.
        weights: Weights of the model, whose training may have read these files.
        option: Words before the path in a message.
    """
    from scnf.data.folder import load_labelled

    try:
        labelled = load_labelled(path, inputs)
    except InvalidArgument as error:
        raise UserError(f"{option}{path} {error.problem}") from error
    for line in labelled.report:
        print(f"note: {line}", file=sys.stderr)
    data = weights.settings().data
    if (
        not labelled.in_test
        and data.name in ("folder", "npz")
        and os.path.realpath(data.root) == os.path.realpath(path)
    ):
        print(f"note: the model has learned the labels of {path}: it is worse on new {inputs.noun}s", file=sys.stderr)
    return embedded(inputs, labelled.x), labelled.y


EPILOG = "Settings such as --data.root may follow. `scnf --help` explains --import FILE and --trust-parts."


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a UserError for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError with the message."""
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help tells more")


def weights_parser(command: str, description: str) -> Parser:
    """Return the parser of a command on one run, or on one directory or file of weights."""
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
    """Add the option that names the directory of all runs."""
    parser.add_argument("--logs", "--runs.root", type=path, default=Path("logs"), help="directory of all runs (logs)")


def path(text: str) -> Path:
    """Convert the text of an option to a path."""
    return Path(expand(text))


def picture(text: str) -> Path:
    """Convert the text of an option to the path of a picture, which is written as PNG."""
    result = path(text)
    if result.suffix.lower() not in ("", ".png"):
        name = result.with_suffix(".png").name
        raise argparse.ArgumentTypeError(f"pictures are written as PNG: name the file {name}")
    return result


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a function that converts the text of an option to a whole number in a range."""

    def whole(text: str) -> int:
        allowed = Range(low, high)
        if not re.fullmatch(r"[-+]?[0-9]{1,30}", text) or int(text) not in allowed:
            raise argparse.ArgumentTypeError(f"it must be a whole number {allowed}, not {text!r}")
        return int(text)

    return whole
