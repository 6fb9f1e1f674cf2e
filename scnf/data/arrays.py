"""Load images or vectors with their labels from the arrays of an .npz file, without unpickling."""

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.checks import LARGEST
from scnf.data.class_names import check_class_names, natural_key
from scnf.errors import InvalidArgument
from scnf.files import require_file
from scnf.words import counted

T = TypeVar("T")
_Array = np.ndarray[Any, np.dtype[Any]]

_KEYS = {
    "x": ("x", "train_x", "x_train", "images", "train_images"),
    "y": ("y", "train_y", "y_train", "labels", "train_labels"),
    "test_x": ("test_x", "x_test", "test_images"),
    "test_y": ("test_y", "y_test", "test_labels"),
    "class_names": ("class_names",),
}
"""Keys of an .npz file that mean the same array."""

_UNREADABLE = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
    *(SyntaxError, tokenize.TokenError),  # of a damaged header, which NumPy parses
)


@dataclass(frozen=True)
class Arrays:
    """Images or vectors of an .npz file with their labels.

    Attributes:
        x: Images, uint8 [N, C, H, W], or vectors, float32 [N, D].
        y: Labels, int64 [N]: indices of `class_names`, or UNLABELLED (-1).
        class_names: Names of the classes [K]; empty where no row has a label.
        test_x: Test images or vectors, like `x`; None where the file has no test split.
        test_y: Labels of `test_x`, like `y`; None where the file has no test split.
    """

    x: Tensor
    y: Tensor
    class_names: tuple[str, ...]
    test_x: Tensor | None
    test_y: Tensor | None


def load_arrays(path: Path, one_class: bool = False) -> Arrays:
    """Load the arrays x, y and perhaps test_x, test_y and class_names of an .npz file.

    The names train_x, x_train, images and train_images mean x; y, test_x and test_y have such names, too. Further
    arrays do not count. All rows may be unlabelled, in the test split too.

    - x holds images, uint8 [N, C, H, W], [N, H, W, C] (C is 1 or 3) or [N, H, W], or vectors of numbers [N, D].
    - y [N] holds integers, -1 where a row is unlabelled, or texts, "" where a row is unlabelled.
    - class_names [K] holds texts. Integers in y are its indices, and texts in y are its entries. Without it, each
      value in y or test_y is a class, in natural order: the integers 3 and 7 become the classes "3" and "7".

    Args:
        path: Path of the file.
        one_class: Whether all labels may be of one class, which is enough to score a model.

    Raises:
        InvalidArgument: the file is no such file; the argument is "root".

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "data.npz"
        >>> np.savez(path, x=np.zeros((3, 8, 8, 1), np.uint8), y=["cat", "", "dog"])
        >>> arrays = load_arrays(path)
        >>> arrays.x.shape, arrays.y, arrays.class_names
        (torch.Size([3, 1, 8, 8]), tensor([ 0, -1,  1]), ('cat', 'dog'))
    """
    arrays = _read(path)
    if ("test_x" in arrays) != ("test_y" in arrays):
        present, absent = ("test_x", "test_y") if "test_x" in arrays else ("test_y", "test_x")
        raise InvalidArgument("root", f"has {present} without {absent} in {path}: store both or none")
    splits = ("", "test_") if "test_x" in arrays else ("",)
    x = {split: _convert(f"{split}x", arrays[f"{split}x"]) for split in splits}
    for split in splits:
        _check_length(f"{split}y", arrays[f"{split}y"], f"{split}x", len(x[split]))
    kinds = [f"{x[split].dtype} {list(x[split].shape[1:])}" for split in splits]
    if kinds[0] != kinds[-1]:
        raise InvalidArgument("root", f"needs rows of one type and shape in x and test_x, not {' and '.join(kinds)}")
    names = _class_names(arrays["class_names"]) if "class_names" in arrays else None
    texts = {split: _texts(f"{split}y", arrays[f"{split}y"], names) for split in splits}
    if names is None:
        labels = {text for values, _ in texts.values() for text in values if text}
        names = tuple(sorted(labels, key=natural_key))
        if len(names) == 1 and not one_class:
            raise InvalidArgument(
                "root",
                f"needs two classes or more and has one, {names[0]!r}: store labels of others in y, or class_names",
            )
        check_class_names(names, one_class)
    y = {split: _indices(f"{split}y", *texts[split], names) for split in splits}
    return Arrays(x[""], y[""], names, x.get("test_"), y.get("test_"))


def load_rows(path: Path) -> Tensor:
    """Load the array x of an .npz file without labels, as :func:`load_arrays` does.

    Raises:
        InvalidArgument: the file is no such file; the argument is "root".
    """
    return _convert("x", _read(path, ("x",))["x"])


def has_labels(path: Path) -> bool:
    """Return whether an .npz file has labels y beside its array x.

    Raises:
        InvalidArgument: the file is no such file; the argument is "root".
    """
    return "y" in _read(path, ("x",))


def load_vectors(path: Path) -> Tensor:
    """Load the vectors of an .npy file, float32 [N, D].

    Raises:
        InvalidArgument: the file is no such file; the argument is "root".

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "vectors.npy"
        >>> np.save(path, np.zeros((3, 2)))
        >>> load_vectors(path).shape
        torch.Size([3, 2])
    """
    array = _open(path, lambda file: file)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size:
        raise InvalidArgument("root", f"needs one array [N, D] of vectors in {path}: store it with np.save(path, x)")
    return _vectors("the array", array)


def _read(path: Path, required: tuple[str, ...] = ("x", "y")) -> dict[str, _Array]:
    """Read the arrays of a file by the keys of `_KEYS`, among which the required ones must be."""
    arrays = _open(path, lambda file: _choose(file, path, required) if isinstance(file, np.lib.npyio.NpzFile) else None)
    if arrays is None:
        raise InvalidArgument("root", f"holds one array in {path}: store x and y with np.savez(path, x=x, y=y)")
    return arrays


def _open(path: Path, use: Callable[[Any], T]) -> T:
    """Return what a function makes of the arrays of an .npz file or of the array of an .npy file."""
    try:
        require_file(path)
        with path.open("rb") as stream:
            return use(np.load(stream, allow_pickle=False))
    except InvalidArgument:  # it is a ValueError, too
        raise
    except FileNotFoundError as error:
        raise InvalidArgument("root", f"does not exist: {path}. Check the path") from error
    except MemoryError as error:
        raise InvalidArgument("root", f"does not fit into memory: {path}") from error
    except _UNREADABLE as error:
        if "Object arrays" in str(error):
            raise InvalidArgument(
                "root",
                f"holds Python objects in {path}, which scnf does not unpickle: store numbers as one array, and texts "
                "with .astype(str)",
            ) from error
        kind = ".npy" if path.suffix.lower() == ".npy" else ".npz"
        reason = "it is no such file" if "pickle" in str(error) else error  # NumPy would advise to unpickle it
        raise InvalidArgument("root", f"cannot be read as an {kind} file: {path}: {reason}") from error


def _choose(file: Mapping[str, _Array], path: Path, required: tuple[str, ...]) -> dict[str, _Array]:
    """Read those arrays of an open .npz file that `_KEYS` names."""
    arrays: dict[str, _Array] = {}
    keys = list(file)
    for name, synonyms in _KEYS.items():
        present = [key for key in synonyms if key in keys]
        if len(present) > 1:
            raise InvalidArgument("root", f"has {' and '.join(present)} in {path}, of the same meaning: store one")
        if present:
            arrays[name] = file[present[0]]
            if not isinstance(arrays[name], np.ndarray):  # the archive holds another file of that name
                raise InvalidArgument("root", f"holds a file {name} in {path}, which is no array: store it by np.savez")
        elif name in required:
            content = ", ".join(keys[:20]) or "no arrays"
            raise InvalidArgument(
                "root", f"has no {name} in {path}, which holds {content}: store {' and '.join(required)}"
            )
    return arrays


def _convert(name: str, x: _Array) -> Tensor:
    """Return images as uint8 [N, C, H, W] or vectors as float32 [N, D]."""
    shape = list(x.shape)
    if x.ndim not in (2, 3, 4):
        raise InvalidArgument("root", f"needs images [N, C, H, W] or vectors [N, D] in {name}, not shape {shape}")
    if not x.size:
        raise InvalidArgument("root", f"holds an empty array {name} of shape {shape}")
    if x.ndim == 2:
        return _vectors(name, x)
    if x.dtype.kind == "f":
        raise InvalidArgument(
            "root",
            f"holds images of {x.dtype} in {name}: store grey levels, with ({name} * 255).round().astype(np.uint8) "
            "for pixels in [0, 1]",
        )
    if x.dtype != np.uint8:
        raise InvalidArgument("root", f"needs images of uint8 in {name}, not {x.dtype}: store grey levels 0 to 255")
    if x.ndim == 3:
        x = x[:, None]
    elif shape[1] not in (1, 3):
        if shape[3] not in (1, 3):
            raise InvalidArgument("root", f"needs images of 1 or 3 channels in {name}, not of shape {shape}")
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x))


def _vectors(name: str, x: _Array) -> Tensor:
    if x.dtype.kind not in "iuf":
        raise InvalidArgument("root", f"needs vectors of numbers in {name}, not {x.dtype}")
    with np.errstate(over="ignore"):  # numbers beyond float32 are refused below
        x = x.astype(np.float32)
    fits = (np.abs(x) <= LARGEST).all(axis=1)  # NaN does not
    if not fits.all():
        rows = np.flatnonzero(~fits)
        raise InvalidArgument(
            "root",
            f"holds NaN, infinite or too large numbers in {counted(len(rows), 'row')} of {name}, first in row "
            f"{rows[0]}: remove these rows, or store finite numbers up to {LARGEST:g}",
        )
    return torch.from_numpy(x)


def _check_length(name: str, y: _Array, x_name: str, rows: int) -> None:
    """Refuse labels that are not of shape [N], where N is the number of rows."""
    if y.shape != (rows,):
        hint = ""
        if y.ndim == 2:
            hint = f": store {name}[:, 0]" if y.shape[1] == 1 else f": store {name}.argmax(1) of one-hot labels"
        raise InvalidArgument(
            "root",
            f"needs labels {name} [N] for the {counted(rows, 'row')} of {x_name}, not of shape {list(y.shape)}{hint}",
        )


def _class_names(names: _Array) -> tuple[str, ...]:
    """Return the names of the classes [K] as a tuple."""
    if names.ndim != 1 or names.dtype.kind != "U" or "" in names:
        raise InvalidArgument("root", f"needs texts in class_names [K], not {names.dtype} of shape {list(names.shape)}")
    if len(set(names.tolist())) < len(names):
        raise InvalidArgument("root", "has a name twice in class_names")
    check_class_names(names.tolist())
    return tuple(names.tolist())


def _texts(name: str, y: _Array, names: tuple[str, ...] | None) -> tuple[list[str], _Array]:
    """Return the distinct labels as texts, "" for unlabelled rows, and the index [N] of each row's label."""
    if y.dtype.kind not in "iuU":
        raise InvalidArgument(
            "root", f"needs integers or texts in {name}, not {y.dtype}: store {name}.astype(int) or {name}.astype(str)"
        )
    values, inverse = np.unique(y, return_inverse=True)
    if y.dtype.kind == "U":
        return values.tolist(), inverse
    numbers: list[int] = values.tolist()
    if numbers[0] < UNLABELLED:
        raise InvalidArgument("root", f"needs labels of 0 or more in {name}, or -1 where unlabelled, not {numbers[0]}")
    if names is not None and numbers[-1] >= len(names):
        raise InvalidArgument(
            "root", f"has the label {numbers[-1]} in {name} and {len(names)} class_names: labels are their indices"
        )
    return ["" if k == UNLABELLED else str(k) if names is None else names[k] for k in numbers], inverse


def _indices(name: str, texts: list[str], inverse: _Array, names: tuple[str, ...]) -> Tensor:
    """Return labels as indices of the names of the classes, int64 [N]."""
    index = {"": UNLABELLED} | {text: k for k, text in enumerate(names)}
    unknown = [text for text in texts if text not in index]
    if unknown:
        raise InvalidArgument("root", f"has the label {unknown[0]!r} in {name}, which is not in class_names")
    return torch.from_numpy(np.array([index[text] for text in texts], dtype=np.int64)[inverse])
