"""Labels of a table beside those of a folder: whose names are found, and which contradictions are refused."""

import os
from pathlib import Path

import pytest
from PIL import Image

from scnf import UNLABELLED
from scnf.data.folder import Reading, load_folder
from scnf.data.labelling import listed_files, table_labels, with_labels
from scnf.data.listing import list_images
from scnf.errors import InvalidArgument


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with an image each, and three images without a label."""
    for name in ("cat/1.png", "dog/2.png", "unlabelled/3.png", "unlabelled/4.png", "5.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path / "photos"


def table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["file,label", *lines, ""]))
    return path


def labels_by_name(root: Path, path: Path) -> dict[str, str | None]:
    images = with_labels(list_images(root), root, path)
    return {str(file.relative_to(root)): label for file, label in zip(images.files, images.labels, strict=True)}


def test_table_adds_labels_of_names_relative_to_the_folder_to_itself_or_absolute(root: Path, tmp_path: Path) -> None:
    path = table(
        tmp_path / "notes" / "labels.csv",
        "unlabelled/3.png,dog",
        f"{root / 'unlabelled' / '4.png'},cat",
        f"{os.path.relpath(root / '5.png', tmp_path / 'notes')},dog",
        "cat/1.png,cat",
        "dog/2.png,",
        "gone.png,",
    )
    assert labels_by_name(root, path) == {
        "cat/1.png": "cat",
        "dog/2.png": "dog",
        "unlabelled/3.png": "dog",
        "unlabelled/4.png": "cat",
        "5.png": "dog",
    }
    assert root / "dog" / "2.png" in listed_files(root, path)


def test_table_in_the_folder_itself_gives_its_labels_again(root: Path) -> None:
    path = table(root / "unlabelled" / "labels.csv", "3.png,fox", "4.png,owl")
    folder = root / "unlabelled"
    assert labels_by_name(folder, path) == {"3.png": "fox", "4.png": "owl"}


def test_table_labels_an_image_list_by_the_names_of_the_list(root: Path) -> None:
    images = table(root / "list.csv", "cat/1.png,cat", "dog/2.png,dog", "5.png,")
    path = table(root.parent / "labels.csv", "5.png,dog")
    assert table_labels(list_images(images).files, images, path) == {root / "5.png": "dog"}


def test_dataset_of_a_folder_holds_the_labels_of_the_table_and_reports_new_classes(root: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "labels.csv", "unlabelled/3.png,dog", "5.png,fox")
    dataset = load_folder(root, Reading(labels=path))
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.train_y.tolist() == [2, 0, 1, 1, UNLABELLED]
    report = "\n".join(dataset.report)
    assert f"labels from class folders and {path}" in report and f"note: {path} adds the classes 'fox'" in report
    with pytest.raises(InvalidArgument, match=r"classes must hold every class of .*, such as 'fox'"):
        load_folder(root, Reading(labels=path, classes=("cat", "dog")))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat/1.png,dog"], r"has the label 'dog' for cat/1\.png in .*, and .* has 'cat': move the image"),
        (["6.png,dog", "7.png,cat"], r"names files in .* that are no images of .*: 6\.png, 7\.png\. Names are"),
        (["../labels.csv,dog"], "that are no images of"),
        (["5.png,dog", "5.png,cat"], r"gives 5\.png the labels 'dog' and 'cat'"),
        (["5.png,Cat"], "together with the folder, has classes 'Cat' and 'cat', which are easily confused"),
        (["5.png,dog,x"], "has a bad line 2"),
    ],
)
def test_table_that_contradicts_the_folder_is_refused(
    root: Path, tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        load_folder(root, Reading(labels=table(tmp_path / "labels.csv", *lines)))
    assert caught.value.argument == "labels"


def test_table_that_is_absent_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="labels cannot be read: No such file or directory"):
        load_folder(root, Reading(labels=tmp_path / "none.csv"))


def test_name_of_two_images_is_refused_until_it_is_a_full_path(root: Path) -> None:
    path = table(root / "unlabelled" / "more.csv", "3.png,dog")
    Image.new("RGB", (8, 8)).save(root / "3.png")
    with pytest.raises(InvalidArgument, match=r"names 3\.png in line 2 of .*, which is two images"):
        with_labels(list_images(root), root, path)
    table(path, f"{root / '3.png'},dog")
    assert labels_by_name(root, path)["3.png"] == "dog"


def test_table_with_a_split_is_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label,split\n5.png,dog,\n3.png,dog,Test\n")
    with pytest.raises(InvalidArgument, match=r"puts 3\.png in the split 'test' in line 3 of .*: leave the column"):
        load_folder(root, Reading(labels=path))
