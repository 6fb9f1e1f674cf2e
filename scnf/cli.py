"""From words to a command, and from what comes out of it to an exit code."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import cast

from scnf import __version__, interrupt, parts, streams
from scnf.commands import COMMANDS, Command
from scnf.errors import UserError
from scnf.failures import explain

USAGE = """usage: scnf COMMAND ...

  train      train a model: scnf train --config config.yaml [--section.key value ...]
             [--pretrained [PATH]] [--resume RUN]
  evaluate   figures of a run or of weights: scnf evaluate RUN|PATH
  sample     draw images of a class: scnf sample RUN|PATH --label 3 --num 64 --out grid.png
  runs       a table of all runs: scnf runs [--sort accuracy] [--where recipe=scnf-fast]; scnf runs show ID
  compare    models side by side on one split: scnf compare RUN RUN ... [--k 50] [--split test]
  recipes    all recipes, or the arguments of one: scnf recipes [NAME]

RUN is an id, a directory or `last`. PATH is also a .safetensors file, the name of weights that ship, such as
scnf-digits, or `shipped` for the main job's weights.
Each command takes --import FILE, a Python file that registers parts of your own, and --trust-parts, which lets it run
the parts that a run holds. scnf COMMAND --help tells more. scnf --version prints the version."""


@streams.guarded()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the console script `scnf`.

    Args:
        argv: the words after the program's name; those of this process by default.

    Returns:
        the exit code, which is 0 on success and 1 for a bug. It is 2 for something that the user can put right,
        such as standard output that is full or closed. It is 128 + the signal after one of `scnf.interrupt.WATCHED`,
        and after SIGPIPE, when whoever reads the output has gone. A training that has begun goes on without its output.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("scnf").setLevel(logging.INFO)
    try:
        with interrupt.watch():
            try:
                for word in words:
                    _check_bytes(word)
                if not words or words[0] in ("-h", "--help"):
                    print(USAGE)
                    return 0 if words else 2
                if words[0] == "--version":
                    print(f"scnf {__version__}")
                    return 0
                rest = parts.take(words[1:])
                return _command(words[0])(rest)
            finally:  # also where a parser has exited after its help
                sys.stdout.flush()
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        what, how = " ".join(["scnf", *words[:1]]), "; ".join(getattr(error, "__notes__", ["type the same again"]))
        streams.complain(f"{what} was interrupted by {signal.Signals(number).name}: {how}")
        return 128 + number
    except Exception as error:
        told = explain(error)
        theirs = isinstance(told, UserError)
        streams.complain(f"error: {told}", keep="" if theirs else "\n")  # a bug's traceback may have found no file
        return 2 if theirs else 1


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}: choose one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if isinstance(command, str):
        module, _, function = command.partition(":")
        command = cast(Command, getattr(import_module(module), function))
    return command


def _check_bytes(word: str) -> None:
    """UserError where a word, which may name a file, is no text: YAML, TensorBoard and others could not write it."""
    try:
        text = os.fsencode(word) == word.encode()
    except UnicodeError:
        text = False
    if not text:
        raise UserError(f"{word!r} is no UTF-8 text here: rename what it names, or set LC_ALL=C.UTF-8")


if __name__ == "__main__":
    sys.exit(main())
