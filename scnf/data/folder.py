"""Load images of one's own from a folder, a CSV list or an .npz file as a dataset."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.arrays import load_arrays
from scnf.data.cache import MAX_SIDE, Decoded, census, decode_all, resolve
from scnf.data.class_names import comparable, confusable_names
from scnf.data.decode import DamagedImage, Header, Preprocessing, conversions
from scnf.data.inputs import Inputs
from scnf.data.labelling import folder_of, with_labels
from scnf.data.listing import ImageFiles, list_images
from scnf.data.sources import Dataset
from scnf.errors import InvalidArgument
from scnf.files import name_in
from scnf.words import counted, skipped_text

_SHOWN = 3  # examples in the report


@dataclass(frozen=True)
class Reading:
    """How a folder is read.

    Attributes:
        preprocessing: Shape of the images.
        strict: Whether a file that cannot be decoded is an error. Otherwise it is skipped.
        classes: Names of the classes in the order of their labels; None for those of the folder in natural order.
        labels: CSV file with further labels of the images, see :func:`scnf.data.labelling.with_labels`.
        max_side: Largest height and width to which images are brought where the preprocessing has no size.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    strict: bool = False
    classes: tuple[str, ...] | None = None
    labels: Path | None = None
    max_side: int = MAX_SIDE


def load_folder(root: Path, reading: Reading | None = None) -> Dataset:
    """Load the images of a folder or CSV list, whose layouts :mod:`scnf.data.listing` describes.

    Images are decoded once and kept in a cache, see :func:`scnf.data.cache.decode_all`. Images in the test split
    without a label do not count.

    Raises:
        InvalidArgument: The folder holds no images, no labels, or labels that contradict each other or a table of
            labels.
    """
    reading = reading or Reading()
    listed = in_folder = list_images(root, one_class=reading.labels is not None)
    if reading.labels is not None:
        listed = with_labels(in_folder, root, reading.labels)
    advice = "put the images of each class into a folder of its name, or list files and labels in labels.csv"
    names = _class_names(listed.class_names(), reading.classes, root, advice)
    if reading.strict and listed.unreadable:
        raise InvalidArgument("strict", f"is set, and {_skipped_text(listed.unreadable, root)}")
    headers = census(listed.files)
    preprocessing = resolve(headers.headers, reading.preprocessing, reading.max_side) if headers.headers else None
    if preprocessing is None or preprocessing.size is None or preprocessing.channels is None:
        raise InvalidArgument("root", _none_decoded(root, headers.skipped))
    parts = {in_test: _rows(listed, in_test) for in_test in (False, True)}
    if not parts[False]:
        raise InvalidArgument("root", f"holds test images alone, and none to train on: {root}")
    decoded, labels = {}, {}
    for in_test, rows in parts.items():
        if not rows:
            continue
        decoded[in_test] = decode_all([listed.files[row] for row in rows], preprocessing, strict=reading.strict)
        indices = [UNLABELLED if (label := listed.labels[row]) is None else names.index(label) for row in rows]
        labels[in_test] = torch.tensor(indices)[decoded[in_test].rows]
    if not len(decoded[False].images):
        raise InvalidArgument("root", _none_decoded(root, decoded[False].skipped))
    x, y = decoded[False].images, labels[False]
    test_x, test_y = (decoded[True].images, labels[True]) if True in decoded else (x[:0], y[:0])
    dataset = Dataset(root.resolve().stem, x, y, test_x, test_y, len(names), 256, names, preprocessing.background)
    report = [
        f"{counted(len(listed.files), 'image')} in {root}, labels from {listed.convention}",
        headers.text(),
        *_skipped_lines(listed, decoded.values(), root),
        _shape_line(headers.headers, preprocessing),
        *_new_classes(in_folder.class_names(), names, reading.labels),
        *_label_lines(dataset),
    ]
    return replace(dataset, report=tuple(report))


def load_npz(path: Path, reading: Reading | None = None) -> Dataset:
    """Load the images or vectors of an .npz file, whose arrays :mod:`scnf.data.arrays` describes.

    Raises:
        InvalidArgument: The file holds no such arrays, or no labels.
    """
    reading = reading or Reading()
    arrays = load_arrays(path)
    if arrays.x.dim() == 4 and reading.preprocessing.size not in (None, tuple(arrays.x.shape[2:])):
        raise InvalidArgument(
            "size", f"must be left out for an .npz file, whose images have {list(arrays.x.shape[2:])}"
        )
    advice = 'store integers or texts in y, -1 or "" where a row is unlabelled'
    names = _class_names(arrays.class_names, reading.classes, path, advice)
    order = torch.tensor([names.index(name) for name in arrays.class_names] + [UNLABELLED])  # -1 is the last entry
    x, y = arrays.x, order[arrays.y]
    if arrays.test_x is None or arrays.test_y is None:
        test_x, test_y = x[:0], y[:0]
    else:
        known = arrays.test_y != UNLABELLED
        test_x, test_y = arrays.test_x[known], order[arrays.test_y[known]]
    levels = 256 if x.dim() == 4 else None
    dataset = Dataset(path.stem, x, y, test_x, test_y, len(names), levels, names)
    number = dataset.inputs().counted(len(x) + len(test_x))
    return replace(dataset, report=(f"{number} in {path}", *_label_lines(dataset)))


@dataclass(frozen=True)
class Labelled:
    """Labelled rows from anywhere, as a trained model takes them.

    Attributes:
        x: Rows as :meth:`scnf.data.inputs.Inputs.read` returns them.
        y: Labels [N] of the model.
        report: Lines for people on rows that do not count.
        in_test: Whether these are the rows of a test split.
    """

    x: Tensor
    y: Tensor
    report: tuple[str, ...]
    in_test: bool


def load_labelled(path: Path, inputs: Inputs) -> Labelled:
    """Load the labelled rows of a folder, CSV list or .npz file for a trained model.

    Where the files have a test split, its rows alone count, since a model may have been trained on the others.

    Args:
        path: Files as in :func:`load_folder` or :func:`load_npz`.
        inputs: Inputs and classes of the model.

    Raises:
        InvalidArgument: There are no labelled rows, or they have another class or shape than the model.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "points.npz"
        >>> np.savez(path, x=np.zeros((3, 2)), y=["dog", "", "cat"])
        >>> labelled = load_labelled(path, Inputs((2,), None, ("cat", "dog")))
        >>> labelled.y, labelled.report
        (tensor([1, 0]), ('1 row without a label does not count',))
    """
    return (_labelled_arrays if path.suffix.lower() == ".npz" else _labelled_images)(path, inputs)


def _labelled_arrays(path: Path, inputs: Inputs) -> Labelled:
    arrays = load_arrays(path, one_class=True)
    _check_classes(arrays.class_names, inputs)
    has_test = arrays.test_x is not None and arrays.test_y is not None and bool((arrays.test_y != UNLABELLED).any())
    x, y = (arrays.test_x, arrays.test_y) if has_test else (arrays.x, arrays.y)
    assert x is not None and y is not None
    known = y != UNLABELLED
    if not bool(known.any()):
        raise InvalidArgument("path", f"holds no {inputs.noun} with a label: give rows their class in y")
    order = torch.tensor([inputs.class_names.index(name) for name in arrays.class_names])
    report = _uncounted(int((~known).sum()), len(arrays.x) if has_test else 0)
    try:
        return Labelled(inputs.read_array(x[known]), order[y[known]], tuple(report), has_test)
    except DamagedImage as error:
        raise InvalidArgument("path", f"holds {inputs.noun}s that the model does not take: {error}") from error


def _labelled_images(path: Path, inputs: Inputs) -> Labelled:
    """Decode the labelled images of a folder or CSV list, and no others."""
    if inputs.image_shape is None:
        raise InvalidArgument("path", f"must be an .npz file of vectors with {inputs.shape[0]} numbers")
    images = list_images(path, one_class=True)
    _check_classes(images.class_names(), inputs)
    has_test = any(test and label is not None for test, label in zip(images.in_test, images.labels, strict=True))
    split = [row for row, test in enumerate(images.in_test) if test or not has_test]
    labels = {row: label for row in split if (label := images.labels[row]) is not None}
    if not labels:
        raise InvalidArgument("path", "holds no image with a label: put each into a folder of its class")
    channels, *size = inputs.image_shape
    preprocessing = Preprocessing((size[0], size[1]), channels, inputs.background)
    decoded = decode_all([images.files[row] for row in labels], preprocessing)
    if not len(decoded.images):
        raise InvalidArgument("path", _none_decoded(path, decoded.skipped))
    y = torch.tensor([inputs.class_names.index(label) for label in labels.values()], dtype=torch.int64)[decoded.rows]
    report = _uncounted(len(split) - len(labels), len(images.files) - len(split))
    if skipped := images.unreadable + decoded.skipped:
        report.append(_skipped_text(skipped, path))
    if converted := conversions(census([images.files[row] for row in labels]).headers, size, channels):
        report.append(converted)
    return Labelled(inputs.from_256_levels(decoded.images), y, tuple(report), has_test)


def _check_classes(present: Iterable[str], inputs: Inputs) -> None:
    """Refuse classes that the model does not know (InvalidArgument)."""
    if other := [name for name in present if name not in inputs.class_names]:
        names = ", ".join(inputs.class_names[:10]) + (", ..." if inputs.num_classes > 10 else "")
        if same := [name for name in inputs.class_names if comparable(name) == comparable(other[0])]:
            raise InvalidArgument(
                "path",
                f"has the class {other[0]!r}, which differs from the model's {same[0]!r} in case, spaces or the "
                "encoding of accents alone: give it that name",
            )
        listed = ", ".join(map(repr, other[:_SHOWN])) + (", ..." if len(other) > _SHOWN else "")
        classes = "class" if len(other) == 1 else "classes"
        raise InvalidArgument("path", f"has the {classes} {listed}, and the model knows {names} alone")


def _uncounted(unlabelled: int, in_train: int) -> list[str]:
    """Return lines on rows that do not count."""
    without = counted(unlabelled, "row without a label does not count", "rows without a label do not count")
    train = counted(in_train, "training row does not", "training rows do not")
    lines = [without] if unlabelled else []
    return [*lines, f"the test split counts, and {train}"] if in_train else lines


def _class_names(present: tuple[str, ...], classes: tuple[str, ...] | None, root: Path, advice: str) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels, with advice where none has a label.

    Raises:
        InvalidArgument: There are no labels, or `classes` are none or not all.
    """
    if classes is None:
        if not present:
            raise InvalidArgument("root", f"holds no labels: {advice}, in {root}")
        return present
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InvalidArgument("classes", f"must name two classes or more, each once, not {', '.join(classes)}")
    if other := [name for name in present if name not in classes]:
        raise InvalidArgument(
            "classes", f"must hold every class of {root}, such as {', '.join(map(repr, other[:_SHOWN]))}"
        )
    return classes


def _new_classes(in_folder: tuple[str, ...], names: tuple[str, ...], table: Path | None) -> list[str]:
    """Return a line on the classes that a table of labels adds to the classes of the folder."""
    new = [name for name in names if name not in in_folder] if in_folder and table is not None else []
    return [f"note: {table} adds the classes {', '.join(map(repr, new[:_SHOWN]))}"] if new else []


def _rows(listed: ImageFiles, in_test: bool) -> list[int]:
    """Return the rows of a split; test rows without a label do not count."""
    return [
        row
        for row, (label, test) in enumerate(zip(listed.labels, listed.in_test, strict=True))
        if test == in_test and (label is not None or not test)
    ]


def _skipped_lines(listed: ImageFiles, decoded: Iterable[Decoded], root: Path) -> list[str]:
    skipped = [*listed.skipped]
    for part in decoded:
        skipped += part.skipped
    unscored = sum(test and label is None for label, test in zip(listed.labels, listed.in_test, strict=True))
    of_test = "test image without a label does not count", "test images without a label do not count"
    lines = [counted(unscored, *of_test)] if unscored else []
    return [*lines, _skipped_text(skipped, root)] if skipped else lines


def _none_decoded(root: Path, skipped: Sequence[tuple[Path, str]]) -> str:
    return f"holds no image that can be decoded: {_skipped_text(skipped, root)}, in {root}"


def _skipped_text(skipped: Sequence[tuple[Path, str]], root: Path) -> str:
    folder = folder_of(root)
    names = [(name_in(folder, path), reason) for path, reason in skipped]
    return f"skipped {counted(len(skipped), 'file')} ({skipped_text(names)})"


def _shape_line(headers: Mapping[Header, int], preprocessing: Preprocessing) -> str:
    assert preprocessing.size is not None
    height, width = preprocessing.size
    other = sum(count for header, count in headers.items() if header.size != preprocessing.size)
    verb = counted(other, "image is", "images are")
    resized = f"; {verb} resized, and cropped to the centre" if other else ""
    kind = "greyscale" if preprocessing.channels == 1 else "RGB"
    return f"the model takes {kind} images of {height}x{width} (height x width){resized}"


def _label_lines(dataset: Dataset) -> list[str]:
    """Return lines on the labels of the training rows and the size of the test split."""
    counts = torch.bincount(dataset.train_y[dataset.train_y != UNLABELLED], minlength=dataset.num_classes).tolist()
    names = dataset.class_names
    listed = ", ".join(f"{name} {count:,}" for name, count in zip(names[:10], counts[:10], strict=True))
    more = f", and {counted(len(names) - 10, 'more class', 'more classes')}" if len(names) > 10 else ""
    noun, unlabelled = dataset.inputs().noun, int((dataset.train_y == UNLABELLED).sum())
    without = counted(unlabelled, f"{noun} without a label", f"{noun}s without a label")
    test = counted(len(dataset.test_x), f"test {noun}") if len(dataset.test_x) else f"no test {noun}s"
    lines = [f"{counted(sum(counts), 'label')} ({listed}{more}), {without}, {test}"]
    if few := [name for name, count in zip(names, counts, strict=True) if count < 2]:
        lines.append(f"note: {', '.join(few[:10])} {'has' if len(few) == 1 else 'have'} fewer than two labels")
    return [*lines, *confusable_names(names)]
