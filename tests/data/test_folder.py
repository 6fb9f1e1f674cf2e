"""Images of one's own as a dataset, from real files."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scnf import UNLABELLED
from scnf.data.decode import Preprocessing
from scnf.data.folder import Reading, load_folder, load_labelled, load_npz
from scnf.data.inputs import Inputs
from scnf.data.memory import dataset_of
from scnf.data.sources import check_dataset, load
from scnf.errors import InvalidArgument


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders with red and green photos, unlabelled ones, and a test split."""
    colours = {"cat": (200, 0, 0), "dog": (0, 200, 0), "unlabelled": (0, 0, 200)}
    for split, number in (("train", 4), ("test", 2)):
        for name, colour in colours.items():
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (10, 8), tuple(value + index for value in colour)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_folder_holds_labels_of_its_class_folders_and_hidden_ones(photos: Path) -> None:
    dataset = load_folder(photos)
    check_dataset(dataset)
    assert dataset.class_names == ("cat", "dog") and dataset.name == "photos" and dataset.levels == 256
    assert dataset.train_x.shape == (12, 3, 8, 10) and dataset.test_x.shape == (4, 3, 8, 10)
    assert dataset.train_y.tolist() == [0] * 4 + [1] * 4 + [UNLABELLED] * 4 and dataset.test_y.tolist() == [0, 0, 1, 1]
    assert dataset.train_x[:, :, 0, 0].argmax(dim=1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(load("folder", photos).train_x, dataset.train_x)


def test_folder_reports_what_it_understood(photos: Path) -> None:
    (photos / "train" / "cat" / "broken.png").write_bytes((photos / "train" / "cat" / "0.png").read_bytes()[:-30])
    (photos / "train" / "note.txt").write_text("hello")
    Image.new("L", (20, 20)).save(photos / "train" / "dog" / "grey.png")
    report = "\n".join(load_folder(photos).report)
    for line in (
        f"20 images in {photos}, labels from train/ with class folders, test/ with class folders",
        "19 RGB images of 8x10, 1 greyscale of 20x20 (height x width)",
        "2 test images without a label do not count",
        "the model takes RGB images of 8x10 (height x width); 1 image is resized, and cropped to the centre",
        "9 labels (cat 4, dog 5), 4 images without a label, 4 test images",
    ):
        assert line in report, report
    assert re.search(r"skipped 2 files \(.*broken.png: it is truncated", report)


def test_folder_of_one_thing_of_each_kind_is_reported_in_the_singular(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        if path.stem != "0":
            path.unlink()
    (photos / "train" / "note.txt").write_text("hello")
    Image.new("RGB", (20, 20)).save(photos / "train" / "unlabelled" / "0.png")
    report = "\n".join(load_folder(photos).report)
    for line in (
        "1 test image without a label does not count",
        "skipped 1 file (train/note.txt: no image)",
        "; 1 image is resized, and cropped to the centre",
        "2 labels (cat 1, dog 1), 1 image without a label, 2 test images",
    ):
        assert line in report, report


def test_npz_of_vectors_is_reported_without_images(tmp_path: Path) -> None:
    x = np.zeros((3, 2))
    np.savez(tmp_path / "v.npz", x=x, y=["a", "b", ""], test_x=x[:1], test_y=["a"])
    assert load_npz(tmp_path / "v.npz").report[:2] == (
        f"4 vectors of 2 numbers in {tmp_path / 'v.npz'}",
        "2 labels (a 1, b 1), 1 vector without a label, 1 test vector",
    )


def test_folder_refuses_damaged_files_where_reading_is_strict(photos: Path) -> None:
    (photos / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(InvalidArgument, match=r"strict .*broken\.png"):
        load_folder(photos, Reading(strict=True))


@pytest.mark.parametrize(
    ("y", "message"),
    [([-1, -1], 'holds no labels: store integers or texts in y, -1 or ""'), ([3, 3], "store labels of others in y")],
)
def test_npz_without_labels_of_two_classes_asks_for_an_array(y: list[int], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.zeros((2, 2)), y=y)
    with pytest.raises(InvalidArgument) as refused:
        load_npz(tmp_path / "v.npz")
    assert message in str(refused.value) and "folder" not in str(refused.value)


def test_folder_takes_size_channels_and_classes_as_given(photos: Path) -> None:
    dataset = load_folder(photos, Reading(Preprocessing((16, 16), 1), classes=("dog", "cow", "cat")))
    assert dataset.train_x.shape[1:] == (1, 16, 16)
    assert dataset.class_names == ("dog", "cow", "cat") and dataset.test_y.tolist() == [2, 2, 0, 0]


def _empty(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "reading", "message"),
    [
        (lambda folder: None, Reading(classes=("cat", "cow")), "classes must hold every class of .*, such as 'dog'"),
        (lambda folder: None, Reading(classes=("cat", "cat")), "classes must name two classes or more, each once"),
        (_empty, Reading(), "root holds no image that can be decoded"),
    ],
    ids=["other classes", "one class twice", "empty files"],
)
def test_folder_refuses_what_is_no_dataset(
    photos: Path, change: Callable[[Path], None], reading: Reading, message: str
) -> None:
    change(photos)
    with pytest.raises(InvalidArgument, match=message):
        load_folder(photos, reading)


def test_folder_without_labels_says_where_labels_go(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InvalidArgument, match="root holds no labels: put the images of each class into a folder"):
        load_folder(tmp_path)


def test_npz_holds_images_with_hidden_labels_and_a_test_split(tmp_path: Path) -> None:
    images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8)
    np.savez(tmp_path / "a.npz", x=images, y=["b", "", "a", "", "", "b"], test_x=images[:2], test_y=["a", ""])
    dataset = load_npz(tmp_path / "a.npz")
    check_dataset(dataset)
    assert dataset.class_names == ("a", "b") and dataset.train_y.tolist() == [1, -1, 0, -1, -1, 1]
    assert torch.equal(dataset.train_x[:, 0], torch.from_numpy(images)) and dataset.test_y.tolist() == [0]
    reordered = load_npz(tmp_path / "a.npz", Reading(classes=("b", "a")))
    assert reordered.train_y.tolist() == [0, -1, 1, -1, -1, 0]


def test_npz_holds_vectors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=[0, 1, -1])
    dataset = load("npz", tmp_path / "a.npz")
    assert dataset.levels is None and dataset.train_x.dtype == torch.float32 and not len(dataset.test_x)


def test_classes_that_differ_in_accents_alone_are_noted(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "cat").rename(photos / "train" / "schon")
    (photos / "train" / "dog").rename(photos / "train" / "sch\u00f6n")
    (photos / "test").rename(tmp_path / "elsewhere")
    np.savez(tmp_path / "v.npz", x=np.zeros((2, 2)), y=["schon", "scho\u0308n"])
    for dataset in (load_folder(photos), load_npz(tmp_path / "v.npz"), dataset_of(np.zeros((2, 2)), ["a", "\u00e1"])):
        assert any(line.startswith("note: classes ") and "accents alone" in line for line in dataset.report)
    np.savez(tmp_path / "same.npz", x=np.zeros((2, 2)), y=["sch\u00f6n", "scho\u0308n"])
    with pytest.raises(InvalidArgument, match="easily confused"):
        load_npz(tmp_path / "same.npz")


def test_labelled_files_in_another_encoding_of_a_class_are_told_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.zeros((2, 2)), y=["cafe\u0301", ""])
    with pytest.raises(InvalidArgument, match=r"differs from the model's 'caf\u00e9' in case, spaces or the encoding"):
        load_labelled(tmp_path / "v.npz", Inputs((2,), None, ("caf\u00e9", "tea")))
