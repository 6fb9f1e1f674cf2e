"""Run `scnf export`, which writes a program from images to probabilities that runs without this package."""

from collections.abc import Sequence
from pathlib import Path

from scnf.commands import options
from scnf.errors import InvalidArgument, UserError


def export(words: Sequence[str]) -> int:
    """Write trained weights as a program of torch.export, or as an ONNX model."""
    parser = options.weights_parser(
        "export", "Write a run, or a directory or file of weights, as a program that runs without scnf."
    )
    parser.add_argument("--out", type=options.path, default=Path("model.pt2"), help=".pt2 or .onnx file (model.pt2)")
    arguments = parser.parse_args(words)
    suffix = arguments.out.suffix.lower()
    if suffix not in (".pt2", ".onnx"):
        raise UserError(f"programs are written as .pt2 or .onnx: name the file {arguments.out.with_suffix('.pt2')}")

    from scnf.export import has_onnx, metadata, save_onnx, save_program
    from scnf.trained import load

    if suffix == ".onnx" and not has_onnx():
        raise UserError("an .onnx file needs further packages: pip install 'scnf[onnx]', or write a .pt2 file")
    model = load(arguments.weights, arguments.logs, "cpu")
    try:
        (save_onnx if suffix == ".onnx" else save_program)(model, arguments.out)
    except InvalidArgument as error:
        raise UserError(f"{arguments.weights} cannot be exported: the {error}. Train another recipe") from error
    about = metadata(model)
    print(f"input   {about['input']}\noutput  {about['output']}\n{arguments.out}")
    return 0
