"""Run a command from command-line words, and turn its errors into messages and exit codes."""

import difflib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

from scnf import __version__, interrupt, parts, streams
from scnf.commands import COMMANDS, Command
from scnf.errors import UserError
from scnf.failures import explain

USAGE = """usage: scnf COMMAND ...

  train      train a model: scnf train --config config.yaml [--section.key value ...]
             [--pretrained [PATH]] [--resume RUN]; on images of your own: scnf train FOLDER
  evaluate   print the metrics of a run or of weights: scnf evaluate RUN|PATH [FILES] [--classes] [--json]
  predict    classify images: scnf predict RUN|PATH IMAGES --out predictions.csv
  suggest    choose the images to label next: scnf suggest RUN|PATH IMAGES --num 20; doubted labels: --check
  export     write a program that runs without scnf: scnf export RUN|PATH --out model.pt2
  calibrate  fit probabilities and sets of classes to labelled images: scnf calibrate RUN|PATH [--alpha 0.1]
  sample     draw images of a class: scnf sample RUN|PATH --label 3 --num 64 --out grid.png
  runs       list all runs: scnf runs [--sort accuracy] [--where recipe=scnf-fast]; scnf runs show ID
  compare    compare models on one split: scnf compare RUN RUN ... [--k 50] [--split test]
  recipes    list all recipes, or the arguments of one: scnf recipes [NAME]

RUN is an id, a directory or `last`. PATH is a directory or a .safetensors file of weights, the name of shipped weights,
such as scnf-digits, or `shipped` for the weights of the default recipe.
Every command accepts --import FILE, which runs a Python file that registers your own parts. --trust-parts lets a
command run the parts of a run that somebody else made.
scnf COMMAND --help prints the options of a command, and scnf --version prints the version."""


@streams.guarded()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the console script `scnf`.

    Args:
        argv: Words after the program's name, by default the words of this process.

    Returns:
        The exit code, which is 0 on success and 1 for a bug. It is 2 for an error that the user can fix, such as a
        standard output that is full or closed. It is 128 + the signal number after a signal of
        `scnf.interrupt.WATCHED`, and after SIGPIPE, when the reader of the output has gone. A training that has begun
        continues without its output.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("scnf").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, and of a size that scnf checks itself
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
                rest = parts.apply_options(words[1:])
                return _exit_code(words[0], _command(words[0])(rest))
            finally:  # a parser exits after its help
                sys.stdout.flush()
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        command = " ".join(["scnf", *words[:1]])
        advice = "; ".join(getattr(error, "__notes__", ["run the same command again"]))
        streams.print_error(f"{command} was interrupted by {signal.Signals(number).name}: {advice}")
        return 128 + number
    except Exception as error:
        report = explain(error)
        is_user_error = isinstance(report, UserError)
        # the report of a bug holds its traceback where no file could be written
        streams.print_error(f"error: {report}", keep="" if is_user_error else "\n")
        return 2 if is_user_error else 1


def _command(name: str) -> Command:
    if name not in COMMANDS:
        matches = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {matches[0]}?" if matches else "one of your own needs --import FILE"
        raise UserError(f"there is no command {name!r}: choose one of {', '.join(COMMANDS)}; {hint}")
    command = COMMANDS[name]
    if isinstance(command, str):
        module, _, function = command.partition(":")
        command = cast(Command, getattr(import_module(module), function))
    return command


def _exit_code(name: str, result: Any) -> int:
    """Return what a command returned, which must be an exit code; a command that returns nothing has succeeded."""
    if result is None:
        return 0
    if type(result) is not int or not 0 <= result <= 255:
        raise UserError(f"the command {name} returned {result!r}, which is no exit code: return 0 for success")
    return result


def _check_bytes(word: str) -> None:
    """Refuse a word that is not UTF-8 text (UserError), because YAML and TensorBoard could not write it."""
    try:
        is_text = os.fsencode(word) == word.encode()
    except UnicodeError:
        is_text = False
    if not is_text:
        raise UserError(f"{word!r} is no UTF-8 text here: rename the file that it names, or set LC_ALL=C.UTF-8")


if __name__ == "__main__":
    sys.exit(main())
