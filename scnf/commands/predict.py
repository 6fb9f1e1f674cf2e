"""Run `scnf predict`, which classifies images of any folder, list or array file with trained weights."""

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scnf.commands import class_mix, options
from scnf.errors import InvalidArgument, UserError
from scnf.files import atomic_write, name_in
from scnf.words import counted, skipped_text

if TYPE_CHECKING:
    import numpy as np

    from scnf.data.decode import Header
    from scnf.trained import TrainedModel


def predict(words: Sequence[str]) -> int:
    """Write the class, its posterior probability and the density of each image to a file."""
    parser = options.weights_parser("predict", "Classify images with a run, or with a directory or file of weights.")
    parser.add_argument(
        "paths", type=options.path, nargs="+", metavar="IMAGES", help="folders, images, CSV lists, or one .npz file"
    )
    parser.add_argument("--out", type=options.path, default=Path("predictions.csv"), help=".csv or .jsonl file")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="device of the model (auto)")
    parser.add_argument("--calibration", type=options.path, metavar="PATH", help="calibration.json or its directory")
    class_mix.add_options(parser)
    arguments = parser.parse_args(words)
    if arguments.out.exists() and any(path.exists() and arguments.out.samefile(path) for path in arguments.paths):
        raise UserError(f"predictions would replace the list of images {arguments.out}: name another file with --out")
    if arguments.out.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"predictions are written as .csv or .jsonl: name the file {arguments.out.with_suffix('.csv')}")

    from scnf.data.decode import conversions
    from scnf.trained import load

    model = load(arguments.weights, arguments.logs, arguments.device, arguments.calibration)
    skipped: list[tuple[str, str]] = []
    headers: Counter[Header] = Counter()
    counts = dict.fromkeys(model.class_names, 0)
    predictions = class_mix.reweighted(model, _predictions(model, arguments.paths, skipped, headers), arguments)
    sets_hold = arguments.prior is None
    if model.calibration is not None and not sets_hold:
        print("note: prediction sets hold for the mix of classes of training, and are left out", file=sys.stderr)
    with atomic_write(arguments.out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True, errors="backslashreplace")
        table = _Table(text, model, arguments.out.suffix.lower() == ".jsonl", sets_hold)
        for prediction in predictions:
            counts[table.write(*prediction)] += 1
        text.detach()
        if not sum(counts.values()):
            raise UserError(
                f"{' '.join(map(str, arguments.paths))} holds no image that can be decoded: {skipped_text(skipped)}"
            )
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    print(f"{counted(sum(counts.values()), model.inputs.noun)}: {listed}")
    shape = model.inputs.image_shape
    if shape and headers and (converted := conversions(headers, shape[1:], shape[0])):
        print(f"note: {converted}", file=sys.stderr)
    if skipped:
        print(f"note: skipped {counted(len(skipped), 'file')} ({skipped_text(skipped)})", file=sys.stderr)
    print(arguments.out)
    return 0


class _Table:
    """A file of predictions with one line per image."""

    def __init__(self, file: Any, model: "TrainedModel", as_json: bool, sets_hold: bool) -> None:
        self._file, self._model, self._names, self._as_json = file, model, model.class_names, as_json
        self._has_sets = sets_hold and model.calibration is not None
        if not as_json:
            self._writer = csv.writer(file, lineterminator="\n")
            columns = ["file", "class", "confidence", *(f"p({name})" for name in self._names), "log_prob"]
            columns += ["unusual"] if model.usual is not None else []
            self._writer.writerow([*columns, *(["set"] if self._has_sets else [])])

    def write(self, name: str, posterior: "np.ndarray", densities: class_mix.Densities) -> str:
        """Write the line of an image, and return the name of its class."""
        label = self._names[int(posterior.argmax())]
        probabilities = [round(float(each), 6) for each in posterior]
        log_prob, unusual = densities
        density = None if log_prob != log_prob else round(float(log_prob), 3)
        score = None if unusual is None else round(unusual, 4)
        sets = self._model.named_sets(posterior[None]) if self._has_sets else []
        if self._as_json:
            line = {"file": name, "class": label, "confidence": max(probabilities)}
            line |= {"p": dict(zip(self._names, probabilities, strict=True)), "log_prob": density}
            line |= ({} if score is None else {"unusual": score}) | ({"set": list(sets[0])} if sets else {})
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        else:
            row = [name, label, max(probabilities), *probabilities, "" if density is None else density]
            row += [] if score is None else [score]
            self._writer.writerow([*row, *(json.dumps(names, ensure_ascii=False) for names in sets)])
        return label


def _predictions(
    model: "TrainedModel", paths: Sequence[Path], skipped: list[tuple[str, str]], headers: "Counter[Header]"
) -> Iterator[class_mix.Prediction]:
    """Yield name, p(y | x) [K] and densities of each image, in batches, and count their headers."""
    from tqdm import tqdm

    names, batches = _batches(model, paths, skipped, headers)
    bar = tqdm(total=names, unit=model.inputs.noun, desc="predict", disable=None, leave=False, dynamic_ncols=True)
    with bar:
        for batch_names, rows in batches:
            posterior, log_prob = model.answers(rows)
            bar.update(len(batch_names))
            unusual = [None] * len(rows)
            if model.usual is not None:
                unusual = model.usual.scores(model.unusual_statistics(rows, log_prob)).tolist()
            yield from zip(batch_names, posterior, map(class_mix.Densities, log_prob.tolist(), unusual), strict=True)


def _batches(
    model: "TrainedModel", paths: Sequence[Path], skipped: list[tuple[str, str]], headers: "Counter[Header]"
) -> tuple[int, Iterator[Any]]:
    """Return the number of images, and an iterator over (names, rows) of batches."""
    from scnf.data.labelling import folder_of
    from scnf.data.listing import image_files

    if any(path.suffix.lower() == ".npz" for path in paths):
        if len(paths) > 1:
            raise UserError("an .npz file stands alone: predict other files by another command")
        return _of_array(model, paths[0], headers)
    files: dict[Path, None] = {}
    folder = Path(os.path.commonpath([folder_of(path) for path in paths]))
    for path in paths:
        try:
            below, unreadable = image_files(path)
        except InvalidArgument as error:
            raise UserError(f"{path} {error.problem}") from error
        files |= dict.fromkeys(below)
        skipped += [(name_in(folder, place), reason) for place, reason in unreadable]
    if model.inputs.image_shape is None:
        raise UserError(f"the model takes vectors of {model.inputs.shape[0]} numbers, not images: give an .npz file")
    return len(files), _decoded(model, folder, list(files), skipped, headers)


def _of_array(model: "TrainedModel", path: Path, headers: "Counter[Header]") -> tuple[int, Iterator[Any]]:
    """Return the number of rows of an array file, and an iterator over (names, rows) of batches."""
    from scnf.data.arrays import load_rows
    from scnf.data.decode import Header

    try:
        x = load_rows(path)
    except InvalidArgument as error:
        raise UserError(f"{path} {error.problem}") from error
    if x.dim() == 4:
        mode = {1: "greyscale", 3: "RGB"}.get(x.shape[1], "RGBA")
        headers[Header(mode, (x.shape[2], x.shape[3]), x.shape[1] > 1)] += len(x)
    starts = range(0, len(x), model.batch_size)
    parts = ((start, x[start : start + model.batch_size]) for start in starts)
    return len(x), (([str(start + i) for i in range(len(part))], _rows(model, path, part)) for start, part in parts)


def _rows(model: "TrainedModel", path: Path, x: Any) -> Any:
    """Return rows of an array file as the model takes them (UserError)."""
    from scnf.data.decode import DamagedImage

    try:
        rows = model.inputs.read_array(x)
    except InvalidArgument as error:
        raise UserError(f"{path} {error.problem}") from error
    except DamagedImage as error:
        raise UserError(f"{path} holds an image that the model does not take: {error}") from error
    return options.embedded(model.inputs, rows)


def _decoded(
    model: "TrainedModel",
    folder: Path,
    files: Sequence[Path],
    skipped: list[tuple[str, str]],
    headers: "Counter[Header]",
) -> Iterator[tuple[list[str], Any]]:
    """Yield names, relative to a folder, and rows of the files that can be decoded."""
    import torch

    from scnf.data.decode import DamagedImage, image_header

    for start in range(0, len(files), model.batch_size):
        names, rows = [], []
        for file in files[start : start + model.batch_size]:
            try:
                header = image_header(file)
                rows.append(model.inputs.read(file))
                headers[header] += 1
                names.append(name_in(folder, file))
            except DamagedImage as error:
                skipped.append((name_in(folder, file), str(error)))
        if rows:
            yield names, options.embedded(model.inputs, torch.cat(rows))
