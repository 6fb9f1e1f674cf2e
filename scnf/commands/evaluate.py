"""Run `scnf evaluate`, which prints the metrics of a run or of weights on validation and test."""

from collections.abc import Sequence

from scnf.commands import options


def evaluate(words: Sequence[str]) -> int:
    """Print the metrics of trained weights."""
    parser = options.weights_parser("evaluate", "Print the metrics of a run, or of a directory or file of weights.")
    parser.add_argument(
        "--split", choices=["validation", "test", "both"], default="both", help="split to evaluate on (both)"
    )
    arguments, overrides = parser.parse_known_args(words)

    from scnf.experiment import load_trained
    from scnf.training.metrics import metrics_text

    experiment = load_trained(arguments.weights, arguments.logs, overrides)
    experiment.check_views()
    experiment.set_threads(experiment.trial_evaluation, options.print_line)
    for split in ["validation", "test"] if arguments.split == "both" else [arguments.split]:
        print(f"{split:<10}  {metrics_text(experiment.evaluate(split))}")
    return 0
