"""Run `scnf sample`, which draws a picture of samples of one class or of all classes."""

from collections.abc import Sequence
from pathlib import Path

from scnf.commands import options
from scnf.errors import InvalidArgument, UserError


def sample(words: Sequence[str]) -> int:
    """Draw samples from trained weights, and write them to a PNG file."""
    parser = options.weights_parser("sample", "Draw samples from a run, or from a directory or file of weights.")
    parser.add_argument("--label", help="class to draw, by name or number; by default all classes with one row each")
    parser.add_argument("--num", type=options.whole(1, 10_000), help="samples of a class (64 of one, or 10 of each)")
    parser.add_argument("--out", type=options.picture, default=Path("samples.png"), help="PNG file (samples.png)")
    parser.add_argument("--sample-seed", type=options.whole(0, 2**63 - 1), default=0, help="seed of the samples (0)")
    arguments, overrides = parser.parse_known_args(words)

    import torch

    from scnf.analysis.samples import sample_picture
    from scnf.experiment import load_model

    model, inputs = load_model(arguments.weights, arguments.logs, overrides)
    if model.likelihood_of == "labels":
        raise UserError("a plain classifier cannot draw images: it models p(y | x) alone")
    try:
        labels = list(range(inputs.num_classes)) if arguments.label is None else [inputs.label_of(arguments.label)]
    except InvalidArgument as error:
        raise UserError(f"--label {error.problem}") from error
    number = arguments.num or (10 if len(labels) > 1 else 64)
    torch.manual_seed(arguments.sample_seed)
    sample_picture(model, arguments.out, labels, number, inputs)
    print(arguments.out)
    return 0
