"""Run `scnf evaluate`, which scores a run or weights on its validation and test rows, or on labelled files."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scnf.commands import options
from scnf.errors import UserError

if TYPE_CHECKING:
    from scnf.analysis.classes import ClassReport
    from scnf.training.metrics import Evaluation

_PICTURE = "confusion.png"


def evaluate(words: Sequence[str]) -> int:
    """Print the metrics of trained weights, and on demand the scores of each class."""
    parser = options.weights_parser(
        "evaluate",
        "Print the metrics of a run, or of a directory or file of weights, on its own data or on FILES.",
    )
    parser.usage = "scnf evaluate RUN|PATH [FILES] [--split SPLIT] [--classes] [--json] [--out FILE] [--logs LOGS]"
    parser.epilog = (
        "FILES is a folder, a CSV list or an .npz file, whose labels are names of the model's classes. By default, the "
        f"splits of the training are scored. {parser.epilog}"
    )
    parser.add_argument("--split", choices=["validation", "test", "both"], help="split to evaluate on (both)")
    parser.add_argument(
        "--classes", action="store_true", help="print scores of each class, and draw the confusion matrix"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with all numbers")
    parser.add_argument("--out", type=options.picture, help=f"picture of the confusion matrix ({_PICTURE} in the run)")
    arguments, rest = parser.parse_known_args(words)
    files = None
    if rest and not rest[0].startswith("-"):  # an optional positional argument would take the value of a setting
        files, rest = options.path(rest[0]), rest[1:]
    if files is not None and arguments.split is not None:
        raise UserError(f"--split names rows of the training, and {files} is scored as a whole: leave one of them out")

    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        names, evaluations = _evaluations(arguments, files, rest)
        reports = {split: _report(part, names) for split, part in evaluations.items() if part is not None}
        if not arguments.json:
            _print(evaluations, reports if arguments.classes else {})
        if not reports:
            print(
                f"note: these data hold no rows out: `scnf evaluate {arguments.weights} FILES` scores labelled files",
                file=sys.stderr,
            )
        if arguments.classes or arguments.out:
            _draw(reports, arguments)
    if arguments.json:
        splits = {
            split: None if part is None else {**_finite(part[0].metrics), **reports[split].to_json()}
            for split, part in evaluations.items()
        }
        content = {"weights": arguments.weights, "class_names": names, "splits": splits}
        print(json.dumps(content, ensure_ascii=False, allow_nan=False))
    return 0


_Part = tuple["Evaluation", Any]
"""An evaluation and the true labels [N] of its rows."""


def _evaluations(
    arguments: Any, files: Path | None, overrides: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, _Part | None]]:
    """Return the names of the classes, and by split the evaluation, or None where the split has no rows."""
    if files is not None:
        return _of_files(arguments, files, overrides)

    from scnf.experiment import load_trained

    experiment = load_trained(arguments.weights, arguments.logs, overrides)
    experiment.check_views()
    experiment.set_threads(experiment.trial_evaluation, options.print_line)
    parts: dict[str, _Part | None] = {}
    for split in [arguments.split] if arguments.split in ("validation", "test") else ["validation", "test"]:
        evaluation = experiment.evaluate_rows(split)
        parts[split] = None if evaluation is None else (evaluation, experiment.rows_of(split)[1])
    return experiment.dataset.inputs().class_names, parts


def _of_files(arguments: Any, files: Path, overrides: Sequence[str]) -> tuple[tuple[str, ...], dict[str, _Part | None]]:
    """Evaluate on labelled files, without the data of the training."""
    from scnf.experiment import load_model
    from scnf.settings import OTHER_WEIGHTS, not_finite_errors
    from scnf.training.metrics import NOISE_DRAWS, check_metrics, evaluate_rows
    from scnf.weights import find_weights

    model, inputs = load_model(arguments.weights, arguments.logs, overrides)
    rows, y = options.labelled_rows(files, inputs, find_weights(arguments.weights, arguments.logs))
    device = next(model.parameters()).device
    evaluation = evaluate_rows(model, rows.to(device), y.to(device), inputs.levels, draws=NOISE_DRAWS)
    with not_finite_errors(OTHER_WEIGHTS):
        check_metrics(evaluation.metrics, files.name)
    return inputs.class_names, {"files": (evaluation, y)}


def _report(part: _Part, names: tuple[str, ...]) -> "ClassReport":
    from scnf.analysis.classes import score_classes

    evaluation, y = part
    return score_classes(y, evaluation.class_log_probs.argmax(dim=1), names)


def _print(evaluations: Mapping[str, _Part | None], reports: Mapping[str, "ClassReport"]) -> None:
    from scnf.training.metrics import metrics_text

    for split, part in evaluations.items():
        print(f"{split:<10}  {metrics_text({} if part is None else part[0].metrics)}")
        if split in reports:
            print(f"\n{reports[split].text()}\n")


def _draw(reports: dict[str, "ClassReport"], arguments: Any) -> None:
    """Draw the confusion matrices into the run, or beside it where the weights are no run."""
    from scnf.analysis.classes import plot_confusion
    from scnf.settings.schema import DEFAULT_RECIPE
    from scnf.weights import find_weights

    if not reports:
        return
    path = arguments.out
    if path is None:
        directory = find_weights(arguments.weights, arguments.logs, DEFAULT_RECIPE).directory
        path = directory / _PICTURE if (directory / "env.json").is_file() else Path(_PICTURE)
    plot_confusion(reports, path)
    print(path)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics for JSON, which has no infinite numbers."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
