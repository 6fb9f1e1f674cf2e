"""Run `scnf train`, which trains a model in a run directory and evaluates it once on test."""

from collections.abc import Sequence
from contextlib import ExitStack

from scnf import parts, streams
from scnf.commands import options, own_files
from scnf.errors import UserError
from scnf.fitting.assembly import Training, resume, start
from scnf.fitting.course import complete
from scnf.runs import Run
from scnf.settings import load_settings, runs_root
from scnf.shipped import find_config


def train(words: Sequence[str]) -> int:
    """Train a model in a locked run directory, and evaluate it once on test."""
    files = words[0] if words and not words[0].startswith("-") else None
    arguments, overrides = options.extract(words[1:] if files else words, "--config", "--resume")
    if files and arguments["--resume"]:
        raise UserError(f"--resume continues with the data of its run: leave {files} out")
    if arguments["--resume"] and arguments["--config"]:
        raise UserError("--resume continues with the settings of its run: leave --config out")
    with ExitStack() as locks:
        if not arguments["--resume"]:
            if files and not arguments["--config"]:
                return _run(start(*own_files.settings_of(files, overrides), locks))
            if files:
                overrides = [*own_files.own_data(files), *own_files.with_full_names(overrides)]
            path = find_config(arguments["--config"] or "config.yaml")
            if path.with_name("split.json").is_file():  # the configuration of a run
                parts.admit(path.parent, adopt=True)
            settings = load_settings(path, overrides)
            streams.make_output_optional()
            return _run(start(settings, None, locks))
        run = Run.find(runs_root(overrides), arguments["--resume"])
        locks.enter_context(run.locked())
        return _run(resume(run, overrides))


def _run(training: Training) -> int:
    """Train to the end or to a signal, and return the exit code."""
    progress = complete(training)
    if progress is None or progress.stopped_by is None:
        return 0
    print(f"interrupted after step {progress.total_step}; resume with: scnf train --resume {training.run.path}")
    return 128 + progress.stopped_by
