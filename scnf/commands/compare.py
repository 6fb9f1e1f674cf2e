"""Run `scnf compare`, which compares exact and variational models on the same images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scnf.commands import options
from scnf.errors import UserError
from scnf.files import expand
from scnf.runs import Run
from scnf.settings import OTHER_WEIGHTS, Settings, not_finite_errors
from scnf.settings.schema import DEFAULT_RECIPE
from scnf.shipped import SHIPPED
from scnf.weights import find_weights
from scnf.words import counted, noun_of

if TYPE_CHECKING:
    from scnf.experiment import Experiment


def compare(words: Sequence[str]) -> int:
    """Print a table of models on one split, and write the table and a picture."""
    arguments, overrides = _parser().parse_known_args(words)
    refs = list(dict.fromkeys([*arguments.runs, *([SHIPPED] if arguments.pretrained else [])]))
    split = "test" if arguments.same_test_set else arguments.split
    trained, names = _settings_of(refs, arguments.logs, overrides)

    from scnf.analysis import compare as comparison
    from scnf.experiment import load_trained
    from scnf.training.metrics import NOISE_DRAWS

    experiments: dict[str, Experiment] = {}
    for ref, settings in trained.items():
        elbo = ["--model.importance_samples", "1"] if hasattr(settings.model, "importance_samples") else []
        dataset = experiments[refs[0]].dataset if experiments else None
        experiments[ref] = load_trained(ref, arguments.logs, [*overrides, *elbo], dataset)
        experiments[ref].set_threads(experiments[ref].trial_evaluation, options.print_line)
    first = experiments[refs[0]]
    others = [names[ref] for ref, other in experiments.items() if other.split.sha256 != first.split.sha256]
    if others and not arguments.same_test_set:
        raise UserError(
            f"the label split of {', '.join(others)} is not that of {names[refs[0]]}: the validation rows of one were "
            "trained on by another. Train them with the same data.* settings, or compare on test with --same-test-set"
        )

    x, y = (rows[: arguments.limit or None] for rows in first.rows_of(split))
    if not len(x):
        raise UserError(f"{first.dataset.name} has no {split} rows: {_advice(first, arguments)}")
    # batches of one size give all models the same noise
    batch_size = min(settings.train.eval_batch_size for settings in trained.values())
    table: list[dict[str, Any]] = []
    for ref, experiment in experiments.items():
        rows = x.to(experiment.device), y.to(experiment.device)
        with not_finite_errors(OTHER_WEIGHTS):
            metrics = comparison.measure(
                experiment.model, *rows, first.dataset.levels, arguments.k, batch_size, title=names[ref]
            )
        table.append({"run": names[ref], "recipe": trained[ref].model.name, **metrics})
    number = counted(len(x), f"{split} {noun_of(first.dataset.levels)}")
    caption = (
        f"{number} of {first.dataset.name}. log p(x) in nats is the mean over {NOISE_DRAWS} draws of the "
        "noise. It is exact, or the ELBO where the likelihood is a bound. IWAE is the bound from "
        f"{arguments.k} importance samples, and the gap is its gain over one draw. Bits/dim over draws use the mean of "
        "p(x) over the draws. Accuracy, ECE and Brier score use the mean of p(y | x)."
    )
    out = arguments.out or arguments.logs / "comparison"
    print(comparison.write(table, out, caption))
    print(f"comparison.csv, .md and .png are in {out}")
    return 0


def _advice(first: "Experiment", arguments: Any) -> str:
    """Return what to do where the split has no rows."""
    other = "test" if arguments.split == "validation" else "validation"
    if len(first.rows_of(other)[0]) and not arguments.same_test_set:
        return f"compare on its {other} rows, with --split {other}"
    return "train with --num_validation N, or on data with a test split"


def _settings_of(
    refs: Sequence[str], logs: Path, overrides: Sequence[str]
) -> tuple[dict[str, Settings], dict[str, str]]:
    """Return the settings of all weights and their names in the table, and refuse different data (UserError)."""
    trained, names = dict[str, Settings](), dict[str, str]()
    for ref in refs:
        weights = find_weights(ref, logs, DEFAULT_RECIPE)
        trained[ref], run = weights.settings(overrides), Run(weights.directory)
        names[ref] = f"{run.id:06d} {run.name}" if run.id and not Path(ref).is_file() else ref
    if len({settings.data.name for settings in trained.values()}) > 1:
        listed = ", ".join(f"{names[ref]} on {settings.data.name}" for ref, settings in trained.items())
        raise UserError(f"these models were trained on different data ({listed}): compare models of one dataset")
    return trained, names


def _parser() -> options.Parser:
    parser = options.Parser(
        prog="scnf compare",
        description="Compare models on one split by likelihood and its bounds, accuracy and speed.",
        epilog=options.EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=expand, metavar="RUN|PATH", help="runs (id, directory, last), or files of weights"
    )
    whole = options.whole
    parser.add_argument("--k", type=whole(1, 10_000), default=50, help="importance samples of the IWAE bound (50)")
    parser.add_argument(
        "--split", choices=["validation", "test"], default="validation", help="split to compare on (validation)"
    )
    parser.add_argument(
        "--limit", type=whole(0, 10**9), default=1000, help="number of images, from the first; 0 for all (1000)"
    )
    parser.add_argument(
        "--same-test-set", action="store_true", help="compare on the test split, even if label splits differ"
    )
    parser.add_argument("--pretrained", action="store_true", help="also compare the shipped weights")
    parser.add_argument("--out", type=options.path, help="directory for the table and the picture (LOGS/comparison)")
    options.add_logs(parser)
    return parser
