"""Add the labels of a table to the labels of a folder of images."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scnf.data.class_names import check_class_names
from scnf.data.listing import ImageFiles
from scnf.data.tables import read_table
from scnf.errors import InvalidArgument
from scnf.files import name_in

_SHOWN = 3  # examples in a message


def folder_of(root: Path) -> Path:
    """Return the folder to which names of files are relative, for a folder, a CSV list or one file."""
    root = Path(os.path.abspath(root))
    return root if root.is_dir() else root.parent


def with_labels(images: ImageFiles, root: Path, table: Path, others: bool = False) -> ImageFiles:
    r"""Add the labels of a table to images, see :func:`table_labels`.

    Args:
        images: Images of the folder or CSV list.
        root: The folder or CSV list.
        table: CSV file with the columns file and label.
        others: Whether the table may name files of other folders, which do not count, and whether all labels may be of
            one class.

    Returns:
        The images with all labels. A label may name a class that no other image has.

    Raises:
        InvalidArgument: The table cannot be read, names a file that is not in the folder, or gives an image another
            label than the folder gives it; the argument is "labels".

    Example:
        >>> import tempfile
        >>> from scnf.data.listing import list_images
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat/1.png", "dog/2.jpg", "unlabelled/3.png"):
        ...     (root / name).parent.mkdir()
        ...     (root / name).touch()
        >>> _ = (root / "more.csv").write_text("file,label\nunlabelled/3.png,dog\n")
        >>> with_labels(list_images(root), root, root / "more.csv").labels
        ['cat', 'dog', 'dog']
    """
    rows = {file: row for row, file in enumerate(images.files)}
    labels = list(images.labels)
    for file, label in table_labels(images.files, root, table, others).items():
        row = rows[file]
        if labels[row] not in (None, label):
            raise InvalidArgument(
                "labels",
                f"has the label {label!r} for {name_in(folder_of(root), file)} in {table}, and {folder_of(root)} has "
                f"{labels[row]!r}: move the image to the class that is right, or remove the line",
            )
        labels[row] = label
    merged = replace(images, labels=labels, convention=f"{images.convention} and {table}")
    try:
        check_class_names(merged.class_names(), others)
    except InvalidArgument as error:
        raise InvalidArgument("labels", f"in {table}, together with the folder, {error.problem}") from error
    return merged


def table_labels(files: Sequence[Path], root: Path, table: Path, others: bool = False) -> dict[Path, str]:
    """Return the label of each image to which a table gives one.

    Names of files are relative to the folder of the images or to the folder of the table, or absolute. Lines without a
    label do not count.

    Args:
        files: Absolute paths of the images.
        root: The folder or CSV list of the images.
        table: CSV file with the columns file and label.
        others: Whether the table may name other files, which do not count.

    Raises:
        InvalidArgument: The table cannot be read, names a file that is no image of these, or names an image twice with
            different labels; the argument is "labels".
    """
    known, labels, absent = set(files), dict[Path, str](), list[str]()
    for line, name, label, split in read_table(table, "labels").rows:
        if split:
            raise InvalidArgument(
                "labels",
                f"puts {name} in the split {split!r} in line {line} of {table}, and adds labels of training images "
                "alone: leave the column split empty",
            )
        if not label.strip():
            continue
        paths = _places(name, root, table) & known
        if len(paths) > 1:
            raise InvalidArgument(
                "labels", f"names {name} in line {line} of {table}, which is two images: write its path in full"
            )
        if not paths:
            absent.append(name)
            continue
        file = paths.pop()
        if labels.setdefault(file, label) != label:
            raise InvalidArgument(
                "labels", f"gives {name} the labels {labels[file]!r} and {label!r} in {table}: keep one of them"
            )
    if absent and not others:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise InvalidArgument(
            "labels",
            f"names files in {table} that are no images of {root}: {', '.join(absent[:_SHOWN])}{more}. Names are "
            "relative to that folder or to the table's own, or absolute",
        )
    return labels


def listed_files(root: Path, table: Path) -> set[Path]:
    """Return all paths that the lines of a table may mean, with or without a label.

    Raises:
        InvalidArgument: The table cannot be read; the argument is "labels".
    """
    return set[Path]().union(*(_places(name, root, table) for _, name, _, _ in read_table(table, "labels").rows))


def _places(name: str, root: Path, table: Path) -> set[Path]:
    """Return the paths that a name may mean, which are relative to the folder of the images or of the table."""
    return {Path(os.path.normpath(folder / name)) for folder in (folder_of(root), folder_of(table))}
