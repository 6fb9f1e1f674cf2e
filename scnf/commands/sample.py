"""Run `scnf sample`, which draws a picture of samples of one class or of all classes."""

from collections.abc import Sequence
from pathlib import Path

from scnf.commands import options
from scnf.errors import UserError

NOT_WRITTEN = (".jpg", ".jpeg", ".pdf", ".svg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes of file formats other than PNG, which the command refuses."""


def sample(words: Sequence[str]) -> int:
    """Draw samples from trained weights, and write them to a PNG file."""
    parser = options.weights_parser("sample", "Draw samples from a run, or from a directory or file of weights.")
    parser.add_argument("--label", type=int, help="class to draw, by default all classes with one row each")
    parser.add_argument("--num", type=options.whole(1, 10_000), help="samples of a class (64 of one, or 10 of each)")
    parser.add_argument("--out", type=options.path, default=Path("samples.png"), help="PNG file (samples.png)")
    parser.add_argument("--sample-seed", type=options.whole(0, 2**63 - 1), default=0, help="seed of the samples (0)")
    arguments, overrides = parser.parse_known_args(words)
    if arguments.out.suffix.lower() in NOT_WRITTEN:
        raise UserError(f"samples are written as PNG: name the file {arguments.out.with_suffix('.png').name}")

    import torch

    from scnf.analysis.samples import sample_picture
    from scnf.experiment import load_trained

    experiment = load_trained(arguments.weights, arguments.logs, overrides)
    if experiment.model.likelihood_of == "labels":
        raise UserError("a plain classifier cannot draw images: it models p(y | x) alone")
    experiment.set_threads(experiment.trial_evaluation, options.print_line)
    classes = experiment.dataset.num_classes
    if arguments.label is not None and not 0 <= arguments.label < classes:
        raise UserError(f"--label must be between 0 and {classes - 1}, not {arguments.label}")
    labels = list(range(classes)) if arguments.label is None else [arguments.label]
    number = arguments.num or (10 if len(labels) > 1 else 64)
    torch.manual_seed(arguments.sample_seed)
    sample_picture(experiment.model, arguments.out, labels, number, experiment.shape, experiment.device)
    print(arguments.out)
    return 0
