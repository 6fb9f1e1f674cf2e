"""`scnf sample`: a picture of samples, of one class or of all."""

from collections.abc import Sequence
from pathlib import Path

from scnf.commands import options
from scnf.errors import UserError

NOT_WRITTEN = (".jpg", ".jpeg", ".pdf", ".svg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def sample(words: Sequence[str]) -> int:
    """Draw from trained weights into a PNG."""
    parser = options.weights_parser("sample", "Draw from a run, or from a directory or file of weights.")
    parser.add_argument("--label", type=int, help="the class to draw; all classes, a row each, by default")
    parser.add_argument("--num", type=options.whole(1, 10_000), help="samples: 64 of one class, or 10 of each")
    parser.add_argument("--out", type=options.path, default=Path("samples.png"), help="the PNG to write (samples.png)")
    parser.add_argument("--sample-seed", type=options.whole(0, 2**63 - 1), default=0, help="decides the draw (0)")
    chosen, overrides = parser.parse_known_args(words)
    if chosen.out.suffix.lower() in NOT_WRITTEN:
        raise UserError(f"samples are written as PNG: name the file {chosen.out.with_suffix('.png').name}")

    import torch

    from scnf.analysis.samples import sample_picture
    from scnf.experiment import load_trained

    experiment = load_trained(chosen.weights, chosen.logs, overrides)
    experiment.settle_threads(experiment.evaluation, options.say)
    classes = experiment.dataset.num_classes
    if chosen.label is not None and not 0 <= chosen.label < classes:
        raise UserError(f"--label must lie between 0 and {classes - 1}, not at {chosen.label}")
    labels = list(range(classes)) if chosen.label is None else [chosen.label]
    number = chosen.num or (10 if len(labels) > 1 else 64)
    torch.manual_seed(chosen.sample_seed)
    sample_picture(experiment.model, chosen.out, labels, number, experiment.shape, experiment.device)
    print(chosen.out)
    return 0
