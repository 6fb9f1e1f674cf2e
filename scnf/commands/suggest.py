"""Run `scnf suggest`, which chooses the images to label next, or lists labels that the model doubts."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scnf.commands import options
from scnf.errors import InvalidArgument, UserError
from scnf.files import name_in
from scnf.words import counted, skipped_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from scnf.trained import TrainedModel

_COLUMNS = 10  # of a picture
_LABELS = Path("labels.csv")
_WIDTH = 60  # characters of a file name in a table


def suggest(words: Sequence[str]) -> int:
    """Choose the unlabelled images to label next, or with --check the labels to look at again."""
    parser = options.weights_parser("suggest", "Choose the images that are most useful to label next.")
    parser.add_argument("path", type=options.path, metavar="IMAGES", help="folder, CSV list or .npz file")
    parser.add_argument("--num", type=options.whole(1, 10_000), help="number of images (20, or 60 with --check)")
    parser.add_argument("--by", choices=["entropy", "margin", "diverse"], default="diverse", help="criterion (diverse)")
    parser.add_argument("--check", action="store_true", help="list labelled images whose label the model doubts")
    parser.add_argument("--labels", type=options.path, help="CSV file to fill in (labels.csv)")
    parser.add_argument("--out", type=options.picture, help="picture (suggestions.png, or doubts.png with --check)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="device of the model (auto)")
    arguments = parser.parse_args(words)
    picture = arguments.out or Path("doubts.png" if arguments.check else "suggestions.png")

    from scnf.trained import load

    model = load(arguments.weights, arguments.logs, arguments.device)
    images = _images(model, arguments.path, arguments.labels)
    if arguments.check:
        return _check(model, images, arguments.num or 60, picture)
    _refuse_inside(arguments.labels or _LABELS, arguments.path)
    names = _suggest(model, images, arguments.num or 20, arguments.by, picture)
    return _write_labels(images, names, arguments)


@dataclass
class _Images:
    """Images of a folder, a list or an array file, with what is known of their labels.

    Attributes:
        root: The folder, list or file.
        names: Name of each image [N], relative to the folder, or the number of its row.
        labels: Name of the class of each image [N]; None where it has no label.
        in_test: Whether each image is in the test split [N].
        read: Function that returns the row of an image for the model, before its backbone.
        skipped: Files that cannot be decoded, with the reason.
    """

    root: Path
    names: list[str]
    labels: list[str | None]
    in_test: list[bool]
    read: Callable[[int], "Tensor"]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def path(self, name: str) -> Path:
        """Return the absolute path of an image by its name."""
        from scnf.data.labelling import folder_of

        return folder_of(self.root) / name


def _images(model: "TrainedModel", root: Path, table: Path | None) -> _Images:
    """List the images of a folder, list or array file, with its labels and those of a table, by default labels.csv."""
    from scnf.data.labelling import folder_of, with_labels
    from scnf.data.listing import list_images

    try:
        if root.suffix.lower() == ".npz":
            return _rows_of_arrays(model, root)
        listed = list_images(root, one_class=True)
    except InvalidArgument as error:
        raise UserError(f"{root} {error.problem}") from error
    if model.inputs.image_shape is None:
        raise UserError(f"the model takes vectors of {model.inputs.shape[0]} numbers, not images: give an .npz file")
    if (table or _LABELS).exists():
        try:
            listed = with_labels(listed, root, table or _LABELS, others=table is None)
        except InvalidArgument as error:
            raise UserError(f"--labels {error.problem}") from error
    folder, files = folder_of(root), listed.files
    names = [name_in(folder, file) for file in files]
    skipped = [(name_in(folder, place), reason) for place, reason in listed.unreadable]
    return _Images(root, names, listed.labels, listed.in_test, lambda row: model.inputs.read(files[row]), skipped)


def _rows_of_arrays(model: "TrainedModel", path: Path) -> _Images:
    from scnf.data.arrays import has_labels, load_arrays, load_rows

    if has_labels(path):
        arrays = load_arrays(path, one_class=True)
        x = arrays.x
        labels = [None if label < 0 else arrays.class_names[label] for label in arrays.y.tolist()]
    else:
        x = load_rows(path)
        labels = [None] * len(x)
    names = [str(row) for row in range(len(x))]
    return _Images(path, names, labels, [False] * len(x), lambda row: model.inputs.read_array(x[row : row + 1]))


def _answers(
    model: "TrainedModel", images: _Images, rows: Sequence[int]
) -> tuple[list[int], "np.ndarray", "np.ndarray"]:
    """Return those of the rows that can be decoded [N], their p(y | x) [N, K] and their features [N, D]."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from scnf.data.decode import DamagedImage

    decoded: list[int] = []
    posteriors, features = [], []
    with tqdm(
        total=len(rows), unit=model.inputs.noun, desc="suggest", disable=None, leave=False, dynamic_ncols=True
    ) as bar:
        for start in range(0, len(rows), model.batch_size):
            batch = []
            for row in rows[start : start + model.batch_size]:
                try:
                    batch.append(images.read(row))
                    decoded.append(row)
                except DamagedImage as error:
                    images.skipped.append((images.names[row], str(error)))
                except InvalidArgument as error:
                    raise UserError(f"{images.root} {error.problem}") from error
                bar.update()
            if batch:
                x = options.embedded(model.inputs, torch.cat(batch))
                posteriors.append(model.answers(x)[0])
                features.append(model.representation(x))
    if images.skipped:
        text = f"skipped {counted(len(images.skipped), 'file')} ({skipped_text(images.skipped)})"
        print(f"note: {text}", file=sys.stderr)
    if not decoded:
        raise UserError(f"{images.root} holds no image that can be decoded")
    return decoded, np.concatenate(posteriors), np.concatenate(features)


def _suggest(model: "TrainedModel", images: _Images, num: int, by: str, picture: Path) -> list[str]:
    """Print and draw the images to label next, and return their names."""
    import numpy as np

    from scnf.analysis.suggest import entropies, margins, nearest
    from scnf.analysis.suggest import suggest as choose

    noun = model.inputs.noun
    candidates = [row for row, label in enumerate(images.labels) if label is None and not images.in_test[row]]
    nameless = [row for row in candidates if not _is_utf8(images.names[row])]  # which labels.csv cannot name
    images.skipped += [(images.names[row], "its name is not UTF-8") for row in nameless]
    candidates = sorted(set(candidates) - set(nameless))
    if not candidates:
        raise UserError(f"all {noun}s of {images.root} have a label: there is nothing to suggest")
    rows, posteriors, features = _answers(model, images, candidates)
    chosen = choose(posteriors, features, num, by)  # type: ignore[arg-type]
    counts = np.bincount(nearest(features, chosen), minlength=len(chosen))
    entropy, margin = entropies(posteriors[chosen]), margins(posteriors[chosen])
    labels, confidence = posteriors[chosen].argmax(axis=1), posteriors[chosen].max(axis=1)
    guesses = [model.class_names[label] for label in labels]
    names = [images.names[rows[row]] for row in chosen]
    print(f"{len(chosen)} of {counted(len(rows), f'{noun} without a label', f'{noun}s without a label')}, by {by}:")
    _print_table(
        [_heading(model), "entropy", "margin", "nearest", "guess", "confidence"],
        [
            [name, f"{h:.2f}", f"{m:.2f}", f"{count:,}", guess, f"{p:.2f}"]
            for name, h, m, count, guess, p in zip(names, entropy, margin, counts, guesses, confidence, strict=True)
        ],
    )
    print("entropy is in nats, and margin is p of the guess less p of the second class")
    print(f"nearest is the number of {noun}s to which this one is the nearest of those listed")
    captions = [f"{guess} {p:.2f}" for guess, p in zip(guesses, confidence, strict=True)]
    _draw(model, images, [rows[row] for row in chosen], captions, picture)
    return names


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _check(model: "TrainedModel", images: _Images, num: int, picture: Path) -> int:
    """Print and draw the labelled images whose label the model doubts most."""
    import numpy as np

    from scnf.analysis.suggest import doubted

    noun = model.inputs.noun
    labelled = [row for row, label in enumerate(images.labels) if label is not None and not images.in_test[row]]
    known = [row for row in labelled if images.labels[row] in model.class_names]
    if len(known) < len(labelled):
        unknown = counted(len(labelled) - len(known), "label is no class", "labels are no classes")
        print(f"note: {unknown} of the model", file=sys.stderr)
    if not known:
        raise UserError(f"{images.root} holds no {noun} with a label that the model knows: there is nothing to check")
    rows, posteriors, features = _answers(model, images, known)
    labels = np.array([model.class_names.index(str(images.labels[row])) for row in rows])
    chosen, shares = doubted(posteriors, features, labels, num)
    print(f"{len(chosen)} of {counted(len(rows), 'label')}, the most doubtful first:")
    guesses = [model.class_names[label] for label in posteriors[chosen].argmax(axis=1)]
    texts = [model.class_names[label] for label in labels[chosen]]
    _print_table(
        [_heading(model), "label", "p(label)", "neighbours", "guess"],
        [
            [images.names[rows[row]], text, f"{posteriors[row, labels[row]]:.3f}", f"{share:.0%}", guess]
            for row, text, share, guess in zip(chosen, texts, shares, guesses, strict=True)
        ],
    )
    print(f"p(label) is p(label | x); neighbours is the share of the nearest labelled {noun}s that have this label")
    captions = [f"{text}: {guess}?" if guess != text else text for text, guess in zip(texts, guesses, strict=True)]
    _draw(model, images, [rows[row] for row in chosen], captions, picture)
    return 0


def _heading(model: "TrainedModel") -> str:
    """Return the heading of the names, which are files of images, or numbers of rows."""
    return "row" if model.inputs.image_shape is None else "file"


def _draw(model: "TrainedModel", images: _Images, rows: Sequence[int], captions: Sequence[str], picture: Path) -> None:
    """Write the first images with captions as a picture; vectors have none."""
    import torch

    from scnf.analysis import plots
    from scnf.data.decode import DamagedImage

    pixels, texts = [], []
    for row, caption in zip(rows[: plots.CAPTIONED], captions, strict=False):
        with suppress(DamagedImage):  # it has vanished
            pixels.append(images.read(row))
            texts.append(caption)
    if not pixels or pixels[0].dim() == 2:
        return
    shades = torch.cat(pixels).float() / ((model.inputs.levels or 256) - 1)
    plots.captioned_grid(shades, texts, picture, _COLUMNS)
    print(picture)


def _write_labels(images: _Images, names: Sequence[str], arguments: Any) -> int:
    """Add the suggested files to a table with an empty label, and say how training goes on."""
    from scnf.data.labelling import listed_files
    from scnf.data.tables import add_files

    is_array = images.root.suffix.lower() == ".npz"
    if is_array and arguments.labels is None:
        print(f"give these rows their class in y of {images.root}, and train on it again")
        return 0
    table = arguments.labels or _LABELS
    whole = images.root if is_array else _training_folder(images.root, images.labels, arguments)
    if whole != images.root:  # names that do not depend on the folder
        names = [str(images.path(name)) for name in names]
    try:
        present = listed_files(images.root, table) if table.exists() else set()
        added = add_files(table, [name for name in names if images.path(name) not in present])
    except InvalidArgument as error:
        raise UserError(f"--labels {error.problem}") from error
    filled = "" if added == len(names) else f", {counted(len(names) - added, 'was there', 'were there')}"
    print(f"{table}: {counted(added, 'line')} added{filled}. Fill in the column label, then go on with")
    if is_array:
        print(f"  their class in y of {images.root}")
        return 0
    folder = "FOLDER" if whole is None else str(whole)
    words = ["scnf", "train", folder, "--labels", str(table), "--pretrained", arguments.weights]
    if arguments.logs != Path("logs"):
        words += ["--runs.root", str(arguments.logs)]
    print(f"  {shlex.join(words)}")
    if whole is None:
        print("where FOLDER holds these images and those with a label")
    return 0


def _training_folder(root: Path, labels: Sequence[str | None], arguments: Any) -> Path | None:
    """Return the folder or list on which a training goes on, which may be larger than that of the images.

    It is the folder of the run, where that holds the images. Images of another place are trained on where some have a
    label. None stands for a folder that nobody has named.
    """
    from scnf.data.labelling import folder_of
    from scnf.weights import find_weights

    data = find_weights(arguments.weights, arguments.logs).settings().data
    whole, is_own_list = Path(data.root), root.is_file() and any(labels)
    if data.name == "folder" and os.path.abspath(root) == data.root:
        return root
    if data.name == "folder" and whole.is_dir() and folder_of(root).is_relative_to(whole) and not is_own_list:
        return Path(os.path.relpath(whole))
    return root if any(labels) else None


def _refuse_inside(table: Path, root: Path) -> None:
    """Refuse a new labels.csv inside of the folder of images, where it would replace the labels of its folders."""
    place = Path(os.path.abspath(table))
    is_new = place.name.casefold() == "labels.csv" and not place.exists()
    if is_new and root.is_dir() and place.is_relative_to(os.path.abspath(root)):
        raise UserError(
            f"a new {table} would take the place of the labels of the folder {root}: name a file outside of it with "
            "--labels"
        )


def _print_table(header: list[str], lines: list[list[str]]) -> None:
    """Print lines in columns, numbers to the right."""
    from scnf.streams import printable

    cells = [header, *([printable(cell) for cell in line] for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    numbers = [all(line[column][:1].isdigit() for line in lines) and column > 0 for column in range(len(header))]
    for line in cells:
        pairs = zip(line, widths, numbers, strict=True)
        print("  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in pairs).rstrip())
