"""Find image files and their labels in a folder or a CSV list.

A folder gives its labels in one of these ways, which are tried in this order:

1. `labels.csv` in the folder has the columns file and label, and may have a column split (train or test). Paths are
   relative to the folder. Images without a line or with an empty label are unlabelled. Sub-folders are mere places,
   but where one has the name of a class in labels.csv, each of its images needs a line with that label or an empty one.
2. Class folders hold the images of the class of their name, also in sub-folders. Loose images are unlabelled. Number
   prefixes of images in class folders do not count; loose images must not have any.
3. Number prefixes of file names are labels: `3_a.png` and `03_b.png` are of class 3. Other images are unlabelled.

In 2 and 3, images in `unlabelled/` or `unlabeled/` are unlabelled. The folders `train/` and `test/` may each hold any
of the above, without a column split, and `unlabelled/` may stand beside them. A folder `train/` beside other folders
but without `test/` is a class folder.

A CSV list is like `labels.csv`, but only the files in the list count. A CSV file is UTF-8 with or without a byte-order
mark, with commas, semicolons or tabs. A space after a delimiter does not count.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scnf.data.class_names import check_class_names, comparable, natural_key
from scnf.data.tables import read_table
from scnf.errors import InvalidArgument
from scnf.files import name_in

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "bmp", "webp", "tif", "tiff", "gif")
"""Suffixes of image files, in lower case."""

_SUFFIXES = ", ".join(IMAGE_SUFFIXES)
_IMAGE = re.compile(rf".+\.({'|'.join(IMAGE_SUFFIXES)})", re.IGNORECASE | re.DOTALL)
_PREFIX = re.compile(r"([0-9]+)_.+", re.DOTALL)
_UNLABELLED = {"unlabelled", "unlabeled"}
_TRAIN, _TEST, _VALIDATION = {"train", "training"}, {"test", "testing"}, {"val", "valid", "validation"}
_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
_VALIDATION_IS_DRAWN = "scnf draws validation rows from the training rows"
_SHOWN = 3  # examples in a message
_UNREADABLE = "cannot be read"

_Skipped = list[tuple[Path, str]]


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels, in natural order of their paths.

    Attributes:
        files: Absolute paths of the images [N].
        labels: Name of the class of each image [N]; None where the image is unlabelled.
        in_test: Whether each image is in the test split [N].
        skipped: Files and folders that do not count, each with the reason.
        convention: Place where the labels stand, for people, such as "class folders" or "labels.csv".
    """

    files: list[Path]
    labels: list[str | None]
    in_test: list[bool]
    skipped: list[tuple[Path, str]]
    convention: str

    @property
    def unreadable(self) -> list[tuple[Path, str]]:
        """The folders that cannot be read, each with the reason."""
        return _unreadable(self.skipped)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of all classes in natural order: "2" comes before "10"."""
        return tuple(sorted({label for label in self.labels if label is not None}, key=natural_key))


class _Entry(NamedTuple):
    label: str | None
    in_test: bool
    line: int = 0


_Entries = dict[Path, _Entry]


def list_images(root: Path, one_class: bool = False) -> ImageFiles:
    """List the image files in a folder or a CSV list with their labels; the module describes the layouts.

    No image is opened. Symbolic links are followed. All images may be unlabelled, in the test split too.

    Args:
        root: Folder of images, or a .csv file that lists them.
        one_class: Whether all labels may be of one class, which is enough to score a model.

    Raises:
        InvalidArgument: there are no images, or labels are missing, ambiguous or contradict each other.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat/1.png", "dog/2.jpg", "unlabelled/3.png"):
        ...     (root / name).parent.mkdir()
        ...     (root / name).touch()
        >>> images = list_images(root)
        >>> images.labels, images.class_names(), images.convention
        (['cat', 'dog', None], ('cat', 'dog'), 'class folders')
    """
    root = Path(os.path.abspath(root))
    skipped: _Skipped = []
    entries, convention = _read_root(root, skipped)
    files = sorted(entries, key=_path_key)
    labels, in_test = [entries[file].label for file in files], [entries[file].in_test for file in files]
    skipped = [item for item in sorted(skipped, key=lambda item: _path_key(item[0])) if item[0] not in entries]
    images = ImageFiles(files, labels, in_test, skipped, convention)
    names = images.class_names()
    if len(names) == 1 and not one_class and convention.startswith("class folders"):
        raise InvalidArgument(
            "root",
            f"needs two classes or more and has one, {names[0]!r}. If it is the folder of all images, give "
            f"{root / names[0]}",
        )
    check_class_names(names, one_class)
    return images


def image_files(root: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """List the image files in a folder or a CSV list without their labels, or the one image file itself.

    Returns:
        The files, and the folders that cannot be read, each with the reason.

    Raises:
        InvalidArgument: there are no images.
    """
    root, skipped = Path(os.path.abspath(root)), list[tuple[Path, str]]()
    if root.is_file() and _IMAGE.fullmatch(root.name):
        return [root], []
    files = _images_below(root, skipped)[0] if root.is_dir() else _read_root(root, skipped)[0]
    return sorted(files, key=_path_key), _unreadable(skipped)


def _unreadable(skipped: _Skipped) -> _Skipped:
    return [item for item in skipped if item[1].startswith(_UNREADABLE)]


def _read_root(root: Path, skipped: _Skipped) -> tuple[_Entries, str]:
    """Read a folder or a CSV list; return the entries and the convention."""
    try:
        os.stat(root)
    except FileNotFoundError:
        raise InvalidArgument("root", f"does not exist: {root}. Check the path") from None
    except OSError as error:
        raise InvalidArgument("root", f"cannot be read: {error.strerror}: {root}") from error
    if root.is_dir():
        return _read_splits(root, skipped)
    if root.suffix.lower() in _ARCHIVES:
        raise InvalidArgument("root", f"is an archive, {root}: unzip it first and give the folder")
    if root.suffix.lower() != ".csv":
        raise InvalidArgument("root", f"must be a folder of images or a .csv file that lists them, not {root}")
    entries = _read_table(root)
    if not entries:
        raise InvalidArgument("root", f"lists no images: {root} has a header and no lines")
    return entries, "a CSV list"


def _read_splits(root: Path, skipped: _Skipped) -> tuple[_Entries, str]:
    """Read the train/ and test/ folders of a folder, or the folder itself where it has none."""
    images, folders = _images_below(root, skipped)
    tops = {path: path.relative_to(root).parts[0] for path in images}
    splits = _split_folders(sorted({top for path, top in tops.items() if path.parent != root}, key=natural_key))
    if not splits:
        return _read_folder(root, images, folders, skipped)
    if _table_in(root, skipped):
        raise InvalidArgument(
            "root",
            f"holds labels.csv beside {_listed(splits, '/')}: put a labels.csv into each of these folders, or give a "
            ".csv list with a column split",
        )
    rest = [path for path in images if tops[path] not in splits]
    stray = [path for path in rest if path.parent == root or tops[path].casefold() not in _UNLABELLED]
    if stray:
        raise InvalidArgument(
            "root",
            f"holds images beside {_listed(splits, '/')}, such as {name_in(root, stray[0])}: move them into one of "
            "these folders or into unlabelled/",
        )
    entries = {path: _Entry(None, False) for path in rest}
    conventions = []
    for name, in_test in splits.items():
        part = [path for path in images if tops[path] == name]
        read, convention = _read_folder(root / name, part, folders, skipped, in_test)
        entries.update(read)
        conventions.append(f"{name}/ with {convention}")
    return entries, ", ".join(conventions)


def _split_folders(names: list[str]) -> dict[str, bool]:
    """Return which folders with images are splits, and whether each is the test split."""
    splits = {name: False for name in names if name.casefold() in _TRAIN}
    splits |= {name: True for name in names if name.casefold() in _TEST}
    others = [name for name in names if name not in splits and name.casefold() not in _UNLABELLED]
    validation = [name for name in others if name.casefold() in _VALIDATION]
    if splits and validation:
        raise InvalidArgument(
            "root",
            f"holds {validation[0]}/ beside {_listed(splits, '/')}: {_VALIDATION_IS_DRAWN}. Move its images into "
            "train/, or rename it to test/ where there is no test split",
        )
    if splits and all(splits.values()):
        raise InvalidArgument("root", f"holds {_listed(splits, '/')} without train/: move training images into train/")
    return {} if others and not any(splits.values()) else splits


def _images_below(root: Path, skipped: _Skipped) -> tuple[list[Path], list[Path]]:
    """Return all images below a folder and all folders, and add all else to `skipped`."""
    images, folders = [], []
    stack: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while stack:
        folder, above = stack.pop()
        try:
            status = os.stat(folder)
            with os.scandir(folder) as content:
                children = list(content)
        except OSError as error:
            skipped.append((folder, f"{_UNREADABLE}: {error.strerror}"))
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            skipped.append((folder, "a link to a folder above it"))
            continue
        folders.append(folder)
        for child in children:
            path = folder / child.name
            kind = _kind(child)
            if kind == "folder":
                stack.append((path, above | {identity}))
            elif kind == "image":
                images.append(path)
            else:
                skipped.append((path, kind))
    if not images:
        raise InvalidArgument("root", _no_images(root, skipped))
    return sorted(images, key=str), folders


def _kind(child: "os.DirEntry[str]") -> str:
    """Return "folder", "image" or the reason why a directory entry does not count."""
    if child.name.startswith(".") or child.name.casefold() in _SYSTEM:
        return "hidden or a file of the system"
    try:
        if child.is_dir():
            return "folder"
        if not _IMAGE.fullmatch(child.name):
            return "no image"
        return "image" if child.is_file() else "a broken link or no regular file"
    except OSError as error:  # for example, a link to itself
        return f"cannot be read: {error.strerror}"


def _read_folder(
    folder: Path, images: list[Path], folders: list[Path], skipped: _Skipped, in_test: bool | None = None
) -> tuple[_Entries, str]:
    """Read labels by the first way of the module's list that fits; `in_test` is None where the folder is no split."""
    tops = {path: path.relative_to(folder).parts[0] for path in images if path.parent != folder}
    table = _table_in(folder, skipped)
    if table:
        skipped[:] = [item for item in skipped if item[0] != table]
        return _join_table(table, images, tops, in_test), "labels.csv"
    used = set(tops.values())
    for path in folders:
        if path.parent == folder and path.name not in used:
            skipped.append((path, "a folder without images, which is no class"))
    folder_labels = {path: top for path, top in tops.items() if top.casefold() not in _UNLABELLED}
    numbers = {path: match[1].lstrip("0") or "0" for path in images if (match := _PREFIX.fullmatch(path.name))}
    loose = {path: number for path, number in numbers.items() if path not in tops}
    labels, convention = loose, "file names" if loose else "no labels"
    if folder_labels:
        _check_class_folders(sorted(set(folder_labels.values()), key=natural_key), loose)
        labels, convention = folder_labels, "class folders"
        if not numbers.keys().isdisjoint(folder_labels):
            convention += " (number prefixes of file names do not count)"
    return {path: _Entry(labels.get(path), bool(in_test)) for path in images}, convention


def _check_class_folders(classes: list[str], loose: Collection[Path]) -> None:
    """Refuse number prefixes beside class folders."""
    if loose:
        names = sorted((path.name for path in loose), key=natural_key)
        raise InvalidArgument(
            "root",
            f"holds class folders ({_listed(classes, '/')}) beside loose images with a number prefix "
            f"({_listed(names)}): move these images into class folders, or into unlabelled/ where they are unlabelled",
        )


def _join_table(table: Path, images: list[Path], tops: dict[Path, str], in_test: bool | None) -> _Entries:
    """Return the entries of a labels.csv and of the other images in its folder, unlabelled."""
    lines = _read_table(table)
    if in_test is not None:
        lines = {path: entry._replace(in_test=in_test) for path, entry in lines.items()}
    classes = {comparable(entry.label) for entry in lines.values() if entry.label is not None}
    for path, top in tops.items():
        label = lines[path].label if path in lines else ""
        if comparable(top) in classes and label is not None and comparable(label) != comparable(top):
            problem = f"the label {label!r}" if label else "no line"
            raise InvalidArgument(
                "root",
                f"has two labels for {name_in(table.parent, path)}: it lies in {top}/ and has {problem} in {table}. "
                "Give it the label of its folder or an empty label in labels.csv, or move it",
            )
    return {**{path: _Entry(None, bool(in_test)) for path in images}, **lines}


def _read_table(table: Path) -> _Entries:
    """Read a CSV file with the columns file, label and perhaps split into entries by absolute path."""
    entries: _Entries = {}
    for line, file, label, split in read_table(table).rows:
        if split not in {"", *_TRAIN, *_TEST}:
            hint = f": {_VALIDATION_IS_DRAWN}" if split in _VALIDATION else ""
            raise InvalidArgument(
                "root", f"has the split {split!r}, not train or test, in line {line} of {table}{hint}"
            )
        entry = _Entry(label if label.strip() else None, split in _TEST, line)
        other = entries.setdefault(Path(os.path.normpath(table.parent / file)), entry)
        if other[:2] != entry[:2]:
            raise InvalidArgument(
                "root",
                f"lists {file} twice and differently, in lines {other.line} and {line} of {table}: keep one of them",
            )
    absent = [name_in(table.parent, path) for path in entries if not os.path.isfile(path)]
    if absent:
        raise InvalidArgument(
            "root",
            f"lists files that do not exist ({len(absent)}): {_listed(absent)}. Paths in {table} are relative to "
            "its folder",
        )
    others = [name_in(table.parent, path) for path in entries if not _IMAGE.fullmatch(path.name)]
    if others:
        raise InvalidArgument("root", f"lists files that are no images ({len(others)}) in {table}: {_listed(others)}")
    return entries


def _path_key(path: Path) -> tuple[list[object], str]:
    return natural_key(path.as_posix())


def _table_in(folder: Path, skipped: _Skipped) -> Path | None:
    tables = [path for path, _ in skipped if path.parent == folder and path.name.casefold() == "labels.csv"]
    return min(tables, default=None)


def _listed(names: Collection[str], end: str = "") -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(f"{name}{end}" for name in list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _no_images(root: Path, skipped: _Skipped) -> str:
    """Return the problem of a folder without images: what it holds instead."""
    skipped.sort(key=lambda item: _path_key(item[0]))
    content = [f"{name_in(root, path)} ({reason})" for path, reason in skipped]
    archives = [path.name for path, _ in skipped if path.suffix.lower() in _ARCHIVES]
    hint = f". Unzip {archives[0]} first" if archives else ""
    return f"holds no images ({_SUFFIXES}): {root} holds {_listed(content) or 'no files'}{hint}"
