"""`scnf compare`: exact and variational models side by side, on the same images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scnf.commands import options
from scnf.errors import UserError
from scnf.files import expand
from scnf.runs import Run
from scnf.settings import Settings
from scnf.settings.schema import DEFAULT_RECIPE
from scnf.shipped import SHIPPED
from scnf.weights import find_weights

if TYPE_CHECKING:
    from scnf.experiment import Experiment


def compare(words: Sequence[str]) -> int:
    """Print a table of models on one split, and write it with a picture."""
    chosen, overrides = _parser().parse_known_args(words)
    refs = list(dict.fromkeys([*chosen.runs, *([SHIPPED] if chosen.pretrained else [])]))
    split = "test" if chosen.same_test_set else chosen.split
    trained, names = _settings_of(refs, chosen.logs, overrides)

    from scnf.analysis import compare as comparison
    from scnf.experiment import load_trained
    from scnf.training.metrics import NOISE_DRAWS

    experiments: dict[str, Experiment] = {}
    for ref, settings in trained.items():
        elbo = ["--model.importance_samples", "1"] if hasattr(settings.model.recipe, "importance_samples") else []
        loaded = experiments[refs[0]].dataset if experiments else None
        experiments[ref] = load_trained(ref, chosen.logs, [*overrides, *elbo], loaded)
        experiments[ref].settle_threads(experiments[ref].evaluation, options.say)
    first = experiments[refs[0]]
    others = [names[ref] for ref, each in experiments.items() if each.split.sha256 != first.split.sha256]
    if others and not chosen.same_test_set:
        raise UserError(
            f"the label split of {', '.join(others)} is not that of {names[refs[0]]}: one validates on what "
            "another was trained on. Train them with the same data.* settings, or compare on test: --same-test-set"
        )

    x, y = (rows[: chosen.limit or None] for rows in first.rows_of(split))
    batch_size = min(settings.train.eval_batch_size for settings in trained.values())  # one, and so the same noise
    table: list[dict[str, Any]] = []
    for ref, each in experiments.items():
        here = x.to(each.device), y.to(each.device)
        figures = comparison.measure(each.model, *here, first.dataset.levels, chosen.k, batch_size, title=names[ref])
        table.append({"run": names[ref], "recipe": trained[ref].model.recipe.name, **figures})
    caption = (
        f"{len(x):,} {split} images of {first.dataset.name}. log p(x) is exact, or where the likelihood is a bound the "
        f"ELBO, in nats, the mean over {NOISE_DRAWS} draws of the noise; IWAE is the bound from {chosen.k} importance "
        "samples, the gap how much it gains on one draw. Bits/dim over draws are of the mean of p(x) over them; "
        "accuracy, ECE and Brier of the mean of p(y | x)."
    )
    out = chosen.out or chosen.logs / "comparison"
    print(comparison.write(table, out, caption))
    print(f"comparison.csv, .md and .png are in {out}")
    return 0


def _settings_of(
    refs: Sequence[str], logs: Path, overrides: Sequence[str]
) -> tuple[dict[str, Settings], dict[str, str]]:
    """The settings of each of the weights, and what it is called in the table; UserError for different data."""
    trained, names = dict[str, Settings](), dict[str, str]()
    for ref in refs:
        weights = find_weights(ref, logs, DEFAULT_RECIPE)
        trained[ref], run = weights.settings(overrides), Run(weights.directory)
        names[ref] = f"{run.id:06d} {run.name}" if run.id and not Path(ref).is_file() else ref
    if len({settings.data.name for settings in trained.values()}) > 1:
        listed = ", ".join(f"{names[ref]} on {settings.data.name}" for ref, settings in trained.items())
        raise UserError(f"these models were trained on different data ({listed}): compare models of one data set")
    return trained, names


def _parser() -> options.Parser:
    parser = options.Parser(
        prog="scnf compare",
        description="A table and a picture of models on one split: likelihood and its bounds, accuracy, speed.",
        epilog=options.EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=expand, metavar="RUN|PATH", help="as of `scnf evaluate`: id, directory, file, last"
    )
    whole = options.whole
    parser.add_argument("--k", type=whole(1, 10_000), default=50, help="importance samples of the tighter bound (50)")
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="(validation)")
    parser.add_argument(
        "--limit", type=whole(0, 10**9), default=1000, help="the first so many images; 0 for all (1000)"
    )
    parser.add_argument("--same-test-set", action="store_true", help="the test split, of runs with other label splits")
    parser.add_argument("--pretrained", action="store_true", help="the shipped weights as well")
    parser.add_argument("--out", type=options.path, help="directory of the table and the picture (LOGS/comparison)")
    options.add_logs(parser)
    return parser
