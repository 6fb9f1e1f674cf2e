"""Arrays of .npz files: every layout of images, vectors and labels, and the messages of those that are refused."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scnf.data.arrays import Arrays, load_arrays
from scnf.errors import InvalidArgument

PIXELS = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)  # [N, H, W, C]
POINTS = np.array([[0.5, 1.0], [2.0, -3.0], [4.0, 5.0]])
Y = np.array([3, -1, 7])


def load(path: Path, **arrays: Any) -> Arrays:
    np.savez(path / "data.npz", **arrays)
    return load_arrays(path / "data.npz")


# Good ------------------------------------------------------------------------------------------------------------

LAST = PIXELS.transpose(0, 3, 1, 2)
LAYOUTS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "[N, H, W, 3]": (PIXELS, LAST),
    "[N, 3, H, W]": (LAST, LAST),
    "[N, H, W, 1]": (PIXELS[..., :1], LAST[:, :1]),
    "[N, 1, H, W]": (LAST[:, :1], LAST[:, :1]),
    "[N, H, W]": (PIXELS[..., 0], LAST[:, :1]),
    "vectors": (POINTS, POINTS.astype(np.float32)),
    "vectors of big-endian floats": (POINTS.astype(">f4"), POINTS.astype(np.float32)),
    "vectors of integers": (np.array([[0, 255]] * 3, np.uint8), np.array([[0, 255]] * 3, np.float32)),
}


@pytest.mark.parametrize(("x", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layout_of_x_is_understood(x: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    arrays = load(tmp_path, x=x, y=Y)
    assert torch.equal(arrays.x, torch.tensor(expected)) and arrays.x.dtype == torch.tensor(expected).dtype
    assert arrays.x.is_contiguous()
    assert arrays.test_x is None and arrays.test_y is None


LABELS: dict[str, tuple[Any, Any, list[int], list[str]]] = {
    "integers": ([10, -1, 2], None, [1, -1, 0], ["2", "10"]),
    "unsigned integers": (np.array([0, 1, 2], np.uint8), None, [0, 1, 2], ["0", "1", "2"]),
    "texts": (["cat 10", "", "cat 2"], None, [1, -1, 0], ["cat 2", "cat 10"]),
    "texts with names": (["b", "", "a"], ["b", "a", "c"], [0, -1, 1], ["b", "a", "c"]),
    "integers with names": ([0, -1, 2], ["b", "a", "c"], [0, -1, 2], ["b", "a", "c"]),
    "big-endian integers": (np.array([5, -1, 6], ">i8"), None, [0, -1, 1], ["5", "6"]),
    "none": ([-1, -1, -1], None, [-1, -1, -1], []),
}


@pytest.mark.parametrize(("y", "names", "expected", "classes"), LABELS.values(), ids=LABELS)
def test_labels_become_indices_of_classes(
    y: Any, names: Any, expected: list[int], classes: list[str], tmp_path: Path
) -> None:
    arrays = load(tmp_path, x=POINTS, y=y, **({} if names is None else {"class_names": names}))
    assert (arrays.y.tolist(), arrays.y.dtype, arrays.class_names) == (expected, torch.int64, tuple(classes))


@pytest.mark.parametrize(
    "keys",
    [
        ("x", "y", "test_x", "test_y"),
        ("train_x", "train_y", "test_x", "test_y"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("images", "labels", "test_images", "test_labels"),
    ],
)
def test_test_split_shares_the_classes(keys: tuple[str, ...], tmp_path: Path) -> None:
    content = zip(keys, (PIXELS, Y, PIXELS[:2], np.array([7, 5])), strict=True)
    arrays = load(tmp_path, **dict(content), other=np.zeros(1))
    assert arrays.class_names == ("3", "5", "7")
    assert arrays.y.tolist() == [0, -1, 2]
    assert arrays.test_y is not None and arrays.test_y.tolist() == [2, 1]
    assert arrays.test_x is not None and torch.equal(arrays.test_x, arrays.x[:2])


# Bad -------------------------------------------------------------------------------------------------------------

TOO_LARGE = np.array([[1e300, 0.0], [0.0, 0.0], [0.0, 0.0]])
NAN = np.array([[0.0, 0.0], [0.0, np.nan], [np.inf, 0.0]])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no y": ({"x": POINTS, "z": Y}, "has no y in PATH, which holds x, z: store x and y"),
    "no arrays": ({}, "has no x in PATH, which holds no arrays"),
    "synonyms": ({"x": POINTS, "images": POINTS, "y": Y}, "has x and images in PATH, of the same meaning: store one"),
    "length": ({"x": POINTS, "y": Y[:2]}, "needs labels y [N] for the 3 rows of x, not of shape [2]"),
    "length of test_y": (
        {"x": POINTS, "y": Y, "test_x": POINTS, "test_y": Y[:1]},
        "needs labels test_y [N] for the 3 rows of test_x, not of shape [1]",
    ),
    "column": ({"x": POINTS, "y": Y[:, None]}, "not of shape [3, 1]: store y[:, 0]"),
    "one-hot": ({"x": POINTS, "y": np.eye(3)}, "not of shape [3, 3]: store y.argmax(1) of one-hot labels"),
    "test_x alone": ({"x": POINTS, "y": Y, "test_x": POINTS}, "has test_x without test_y in PATH: store both or none"),
    "test_y alone": ({"x": POINTS, "y": Y, "test_y": Y}, "has test_y without test_x in PATH: store both or none"),
    "shapes": (
        {"x": PIXELS, "y": Y, "test_x": PIXELS[:, :2], "test_y": Y},
        "of one type and shape in x and test_x, not torch.uint8 [3, 4, 5] and torch.uint8 [3, 2, 5]",
    ),
    "types": (
        {"x": PIXELS, "y": Y, "test_x": POINTS, "test_y": Y},
        "of one type and shape in x and test_x, not torch.uint8 [3, 4, 5] and torch.float32 [2]",
    ),
    "float images": (
        {"x": PIXELS / 255, "y": Y},
        "holds images of float64 in x: store grey levels, with (x * 255).round().astype(np.uint8) for pixels in [0, 1]",
    ),
    "integer images": ({"x": PIXELS.astype(int), "y": Y}, "needs images of uint8 in x, not int64: store grey levels 0"),
    "channels": ({"x": np.zeros((3, 4, 5, 4), np.uint8), "y": Y}, "needs images of 1 or 3 channels in x, not of shape"),
    "dimensions": ({"x": Y, "y": Y}, "needs images [N, C, H, W] or vectors [N, D] in x, not shape [3]"),
    "empty": ({"x": PIXELS[:0], "y": Y[:0]}, "holds an empty array x of shape [0, 4, 5, 3]"),
    "no columns": ({"x": POINTS[:, :0], "y": Y}, "holds an empty array x of shape [3, 0]"),
    "NaN": ({"x": NAN, "y": Y}, "holds NaN, infinite or too large numbers in 2 rows of x, first in row 1: remove"),
    "beyond float32": ({"x": TOO_LARGE, "y": Y}, "too large numbers in 1 row of x, first in row 0"),
    "complex": ({"x": POINTS + 1j, "y": Y}, "needs vectors of numbers in x, not complex128"),
    "float labels": (
        {"x": POINTS, "y": Y / 1},
        "needs integers or texts in y, not float64: store y.astype(int) or y.astype(str)",
    ),
    "bytes": ({"x": POINTS, "y": np.array([b"a", b"b", b"c"])}, "needs integers or texts in y, not |S1"),
    "negative": ({"x": POINTS, "y": Y - 1}, "needs labels of 0 or more in y, or -1 where unlabelled, not -2"),
    "index": (
        {"x": POINTS, "y": Y, "class_names": ["a", "b"]},
        "has the label 7 in y and 2 class_names: labels are their indices",
    ),
    "unknown name": (
        {"x": POINTS, "y": ["a", "d", ""], "class_names": ["a", "b"]},
        "has the label 'd' in y, which is not in class_names",
    ),
    "name twice": ({"x": POINTS, "y": Y, "class_names": ["a", "a"]}, "has a name twice in class_names"),
    "names of another type": (
        {"x": POINTS, "y": Y, "class_names": [1, 2]},
        "needs texts in class_names [K], not int64",
    ),
    "one class": ({"x": POINTS, "y": ["a", "", ""]}, "needs two classes or more and has one, 'a'"),
    "similar names": ({"x": POINTS, "y": ["a", "A", ""]}, "has classes 'A' and 'a', which are easily confused"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_arrays_are_refused_with_what_to_do(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    message = message.replace("PATH", str(tmp_path / "data.npz"))
    with pytest.raises(InvalidArgument, match="^root .*" + re.escape(message)) as error:
        load(tmp_path, **arrays)
    assert error.value.argument == "root"


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["x", "y"])
def test_objects_are_not_unpickled(key: str, tmp_path: Path) -> None:
    arrays = {"x": POINTS, "y": Y} | {key: np.array([Malicious(tmp_path / "executed")] * 3, dtype=object)}
    with pytest.raises(
        InvalidArgument, match=r"^root holds Python objects in .*data.npz, which scnf does not unpickle"
    ):
        load(tmp_path, **arrays)
    assert not (tmp_path / "executed").exists()


def test_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(InvalidArgument, match=r"^root does not exist: .*data.npz"):
        load_arrays(path)
    for content in (b"", b"text", b"\x80\x04]\x94.", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=r"^root cannot be read as an .npz file: .*data.npz: ") as caught:
            load_arrays(path)
        assert "pickle" not in str(caught.value)
    np.save(tmp_path / "x.npy", POINTS)
    with pytest.raises(InvalidArgument, match=r"^root holds one array in .*x.npy: store x and y with np.savez"):
        load_arrays(tmp_path / "x.npy")
    with pytest.raises(InvalidArgument, match=r"^root cannot be read as an .npz file: .*it is a directory"):
        load_arrays(tmp_path)


def test_damaged_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, x=np.arange(2000.0).reshape(1000, 2), y=np.arange(1000))
        content = path.read_bytes()
        for damaged in (content[:-100], content[:400] + bytes(200) + content[600:]):
            path.write_bytes(damaged)
            with pytest.raises(InvalidArgument, match=r"^root cannot be read as an .npz file: .*data.npz: "):
                load_arrays(path)


def test_archive_of_other_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x", b"text")
    with pytest.raises(InvalidArgument, match=r"^root holds a file x in .*data.npz, which is no array"):
        load_arrays(tmp_path / "data.npz")


def test_array_beyond_memory_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**8)})
    with pytest.raises(InvalidArgument, match=r"^root does not fit into memory: .*data.npz"):
        load_arrays(tmp_path / "data.npz")
