"""Image files and labels in folders and CSV lists, as people have them and as they get them wrong."""

import os
import re
from pathlib import Path

import pytest

from scnf.data.listing import ImageFiles, list_images
from scnf.errors import InvalidArgument

Files = dict[str, str | bytes] | list[str]


def write(root: Path, files: Files) -> Path:
    """Write files below a folder; a name that ends in / is a folder, and a list has files without content."""
    for name in files:
        (root / name if name.endswith("/") else (root / name).parent).mkdir(parents=True, exist_ok=True)
        content = files[name] if isinstance(files, dict) else ""
        if not name.endswith("/"):
            (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def rows(images: ImageFiles, root: Path) -> list[str]:
    """The images as "path label", with "test" behind those of the test split."""
    marks = [" test" if in_test else "" for in_test in images.in_test]
    parts = zip(images.files, images.labels, marks, strict=True)
    return [f"{file.relative_to(root).as_posix()} {label}{mark}" for file, label, mark in parts]


# Good ------------------------------------------------------------------------------------------------------------

LIST = "file,label\n"
IMAGES = dict.fromkeys(["a.png", "b.png", "c.png"], "")
GOOD: dict[str, tuple[Files, str, list[str], str]] = {
    "class folders": (
        ["10/a.png", "2/b.PNG", "2/deep/er/c.jpeg"],
        "class folders",
        ["2/b.PNG 2", "2/deep/er/c.jpeg 2", "10/a.png 10"],
        "2 10",
    ),
    "class folders beside unlabelled images": (
        ["cat/1.png", "dog/1.png", "unlabelled/3_x.png", "Unlabeled/deep/2.png", "loose.gif"],
        "class folders",
        ["Unlabeled/deep/2.png None", "cat/1.png cat", "dog/1.png dog", "loose.gif None", "unlabelled/3_x.png None"],
        "cat dog",
    ),
    "class folders with number prefixes": (
        ["cat/1_a.png", "dog/2_a.png"],
        "class folders (number prefixes of file names do not count)",
        ["cat/1_a.png cat", "dog/2_a.png dog"],
        "cat dog",
    ),
    "labels in file names": (
        ["10_a.png", "2_b.tiff", "002_c.webp", "x_1.bmp", "5.png", "unlabelled/3_d.png", "0_e.tif"],
        "file names",
        [
            *["0_e.tif 0", "2_b.tiff 2", "002_c.webp 2", "5.png None", "10_a.png 10", "unlabelled/3_d.png None"],
            "x_1.bmp None",
        ],
        "0 2 10",
    ),
    "no labels": (["b.png", "unlabelled/a.jpg"], "no labels", ["b.png None", "unlabelled/a.jpg None"], ""),
    "labels.csv": (
        {"labels.csv": LIST + "a.png,cat\nsub/b.png,dog\nc.png,\n", "sub/b.png": "", "d.gif": ""}
        | {"a.png": "", "c.png": ""},
        "labels.csv",
        ["a.png cat", "c.png None", "d.gif None", "sub/b.png dog"],
        "cat dog",
    ),
    "labels.csv beside class folders that agree": (
        {"labels.csv": LIST + "cat/a.png,cat\ncat/b.png,\nmore/c.png,dog\n", "cat/a.png": "", "cat/b.png": ""}
        | {"more/c.png": "", "more/d.png": ""},
        "labels.csv",
        ["cat/a.png cat", "cat/b.png None", "more/c.png dog", "more/d.png None"],
        "cat dog",
    ),
    "labels.csv with splits": (
        {"LABELS.csv": "label;extra;split;file\nx;1;train;a.png\ny;2; Test ;b.png\ny;3;;c.png\n", **IMAGES},
        "labels.csv",
        ["a.png x", "b.png y test", "c.png y"],
        "x y",
    ),
    "train and test of class folders": (
        ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "train/unlabelled/2.png", "unlabelled/3.png"],
        "train/ with class folders, test/ with class folders",
        [
            *["test/cat/1.png cat test", "train/cat/1.png cat", "train/dog/1.png dog", "train/unlabelled/2.png None"],
            "unlabelled/3.png None",
        ],
        "cat dog",
    ),
    "train and test of other layouts": (
        {"Training/1_a.png": "", "Training/2_a.png": "", "testing/labels.csv": LIST + "a.png,1\n", "testing/a.png": ""},
        "Training/ with file names, testing/ with labels.csv",
        ["Training/1_a.png 1", "Training/2_a.png 2", "testing/a.png 1 test"],
        "1 2",
    ),
    "train alone": (["train/1_a.png", "train/2_a.png", "val/"], "train/ with file names",
                    ["train/1_a.png 1", "train/2_a.png 2"], "1 2"),
    "a class called train": (["train/a.png", "plane/a.png"], "class folders",
                             ["plane/a.png plane", "train/a.png train"], "plane train"),
    "names of any text": (
        ["a,b/1.png", "猫 \"x\"/1.png", "#1%/1.png"],
        "class folders",
        ["#1%/1.png #1%", "a,b/1.png a,b", "猫 \"x\"/1.png 猫 \"x\""],
        "#1% a,b 猫 \"x\"",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "convention", "expected", "classes"), GOOD.values(), ids=GOOD)
def test_folder_gives_files_and_labels(
    files: Files, convention: str, expected: list[str], classes: str, tmp_path: Path
) -> None:
    images = list_images(write(tmp_path, files))
    assert rows(images, tmp_path) == expected
    assert images.convention == convention
    assert " ".join(images.class_names()) == classes


TABLES: dict[str, tuple[str | bytes, list[str]]] = {
    "commas": ("file,label\na.png,x\nb.png,y\n", ["a.png x", "b.png y"]),
    "semicolons, a byte-order mark and Windows lines": (
        b"\xef\xbb\xbffile;label\r\na.png;x\r\n\r\nb.png;\r\nc.png;\xc3\xa9\r\n",
        ["a.png x", "b.png None", "c.png é"],
    ),
    "tabs, spaces and upper case": (" File \tLabel\na.png\t x\nb.png\t  \nc.png\ty z",
                                    ["a.png x", "b.png None", "c.png y z"]),
    "quotes": ('"label","file"\n"x, ""1""\n2",a.png\ny\u2028z,"b.png"\n', ['a.png x, "1"\n2', "b.png y\u2028z"]),
    "split": ("file,label,split\nc.png,x,train\nb.png,y,test\na.png,,\n", ["a.png None", "b.png y test", "c.png x"]),
    "short lines": ("file,label,split\na.png\nb.png,x\nc.png,y,test", ["a.png None", "b.png x", "c.png y test"]),
    "a line twice": ("file,label\na.png,x\n./a.png,x\nb.png,y\n", ["a.png x", "b.png y"]),
    "no labels": ("file,label\nc.png,\n", ["c.png None"]),
    "lines of old Macs": ("file,label\ra.png,x\rb.png,y", ["a.png x", "b.png y"]),
}  # fmt: skip


@pytest.mark.parametrize(("table", "expected"), TABLES.values(), ids=TABLES)
def test_csv_list_gives_files_and_labels(table: str | bytes, expected: list[str], tmp_path: Path) -> None:
    images = list_images(write(tmp_path, {"my list.CSV": table, **IMAGES}) / "my list.CSV")
    assert rows(images, tmp_path) == expected
    assert (images.convention, images.skipped) == ("a CSV list", [])


def test_column_split_does_not_count_in_train_and_test(tmp_path: Path) -> None:
    table = "file, label, split\na.png, x, test\n.hidden.png, y, train\n"
    write(tmp_path, {f"{split}/{name}": table for split in ("train", "test") for name in ("labels.csv", "a.png")})
    write(tmp_path, ["train/.hidden.png", "test/.hidden.png"])
    images = list_images(tmp_path)
    assert images.in_test == [True, True, False, False] and sorted(images.class_names()) == ["x", "y"]
    assert images.skipped == []  # a hidden file counts where a table lists it


def test_csv_list_takes_absolute_paths_and_folders_above(tmp_path: Path) -> None:
    write(tmp_path, ["here/a.png", "there/b.png", "here/lists/"])
    table = tmp_path / "here/lists/mine.csv"
    table.write_text(f"file,label\n../a.png,x\n{tmp_path / 'there/b.png'},y\n")
    assert rows(list_images(table), tmp_path) == ["here/a.png x", "there/b.png y"]


def test_paths_are_absolute_where_root_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"labels.csv": LIST + "a.png,x\nb.png,y\n", **IMAGES})
    monkeypatch.chdir(tmp_path)
    assert rows(list_images(Path()), tmp_path) == ["a.png x", "b.png y", "c.png None"]


def test_skipped_files_have_reasons(tmp_path: Path) -> None:
    write(tmp_path, ["1/a.png", "2/a.png", "2/Thumbs.db", ".DS_Store", "1/._a.png", "1/@eaDir/a.png", "3/notes.txt"])
    (tmp_path / "2/broken.png").symlink_to("nothing")
    (tmp_path / "2/loop.png").symlink_to("loop.png")
    images = list_images(tmp_path)
    assert images.class_names() == ("1", "2")
    assert [(path.relative_to(tmp_path).as_posix(), reason) for path, reason in images.skipped] == [
        ("1/._a.png", "hidden or a file of the system"),
        ("1/@eaDir", "hidden or a file of the system"),
        ("2/Thumbs.db", "hidden or a file of the system"),
        ("2/broken.png", "a broken link or no regular file"),
        ("2/loop.png", "cannot be read: Too many levels of symbolic links"),
        ("3", "a folder without images, which is no class"),
        ("3/notes.txt", "no image"),
        (".DS_Store", "hidden or a file of the system"),
    ]


def test_links_are_followed_but_not_in_cycles(tmp_path: Path) -> None:
    write(tmp_path, ["root/1/a.png", "elsewhere/b.png"])
    (tmp_path / "root/1/linked.png").symlink_to("a.png")
    (tmp_path / "root/2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/1/self").symlink_to(".")
    images = list_images(tmp_path / "root")
    assert rows(images, tmp_path / "root") == ["1/a.png 1", "1/linked.png 1", "2/b.png 2"]
    assert [reason for _, reason in images.skipped] == ["a link to a folder above it"] * 2


def test_folder_that_vanishes_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["1/a.png", "2/a.png", "3/a.png"])
    scandir = os.scandir

    def vanishing(folder: Path) -> "os._ScandirContextManager[str]":  # type: ignore[name-defined]
        if Path(folder).name == "3":
            raise FileNotFoundError(2, "No such file or directory")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", vanishing)
    images = list_images(tmp_path)
    assert rows(images, tmp_path) == ["1/a.png 1", "2/a.png 2"]
    assert images.skipped == [(tmp_path / "3", "cannot be read: No such file or directory")]


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{label}/{k}.png" for label in (1, 2, 10) for k in (1, 9, 10, 100)]
    write(tmp_path, names)
    expected = rows(list_images(tmp_path), tmp_path)
    assert [row.split()[0] for row in expected] == names
    scandir = os.scandir

    class Reversed:
        def __init__(self, folder: Path) -> None:
            self.children = sorted(scandir(folder), key=lambda child: child.name, reverse=True)

        def __enter__(self) -> list["os.DirEntry[str]"]:
            return self.children

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert rows(list_images(tmp_path), tmp_path) == expected


# Bad -------------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Files, str]] = {
    "empty": ([], "holds no images (png, jpg, jpeg, bmp, webp, tif, tiff, gif): ROOT holds no files"),
    "other files": (
        ["b.npy", "a.txt", ".x", "d/e.txt", "f.md"],
        "ROOT holds .x (hidden or a file of the system), a.txt (no image), b.npy (no image) and 2 more",
    ),
    "a zip inside": (["data.zip"], "ROOT holds data.zip (no image). Unzip data.zip first"),
    "one class folder": (
        ["images/1_a.png", "images/2_a.png"],
        "needs two classes or more and has one, 'images'. If it is the folder of all images, give ROOT/images",
    ),
    "one number": (["1_a.png", "01_b.png", "c.png"], "needs two classes or more and has one, '1'"),
    "one class in train and test": (["train/x/a.png", "test/x/a.png"], "needs two classes or more and has one, 'x'"),
    "case": (["Cat/a.png", "cat/a.png"], "has classes 'Cat' and 'cat', which are easily confused: give them one name"),
    "case across splits": (["train/A/1.png", "train/b/1.png", "test/a/1.png"], "has classes 'A' and 'a'"),
    "Unicode form": (["caf\u00e9/a.png", "cafe\u0301/a.png"], "has classes 'cafe\u0301' and 'caf\u00e9'"),
    "spaces": (["cat/a.png", "cat /a.png"], "has classes 'cat' and 'cat '"),
    "number prefixes beside class folders": (
        ["cat/a.png", "dog/a.png", "3_b.png", "12_a.png"],
        "holds class folders (cat/, dog/) beside loose images with a number prefix (3_b.png, 12_a.png): move these "
        "images into class folders, or into unlabelled/ where they are unlabelled",
    ),
    "val": (
        ["train/1_a.png", "train/2_a.png", "val/1_b.png"],
        "holds val/ beside train/: scnf draws validation rows from the training rows. Move its images into train/",
    ),
    "test alone": (["cat/a.png", "dog/a.png", "test/a.png"], "holds test/ without train/: move training images into"),
    "folders beside train and test": (
        ["train/1_a.png", "test/2_a.png", "more/b.png"],
        "holds images beside train/, test/, such as more/b.png: move them into one of these folders or",
    ),
    "images beside train": (["train/1_a.png", "train/2_a.png", "b.png"], "holds images beside train/, such as b.png"),
    "labels.csv beside train": (
        {"train/a.png": "", "labels.csv": LIST + "train/a.png,x\n"},
        "holds labels.csv beside train/: put a labels.csv into each of these folders, or give a .csv list",
    ),
    "labels.csv against a class folder": (
        {"cat/a.png": "", "cat/b.png": "", "labels.csv": LIST + "cat/a.png,cat\ncat/b.png,dog\n"},
        "has two labels for cat/b.png: it lies in cat/ and has the label 'dog' in ROOT/labels.csv. Give it",
    ),
    "labels.csv without the images of a class folder": (
        {"cat/a.png": "", "b.png": "", "c.png": "", "labels.csv": LIST + "b.png,cat\nc.png,dog\n"},
        "has two labels for cat/a.png: it lies in cat/ and has no line in ROOT/labels.csv",
    ),
    "labels.csv without header": (
        {"a.png": "", "labels.csv": "a.png,x\n"},
        "needs the header file,label or file,label,split in the first line of ROOT/labels.csv, not 'a.png,x'",
    ),
}


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD)
def test_folder_is_refused_with_what_to_do(files: Files, message: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    with pytest.raises(InvalidArgument, match="^root .*" + re.escape(message.replace("ROOT", str(tmp_path)))) as error:
        list_images(tmp_path)
    assert error.value.argument == "root"


BAD_TABLES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "needs the header file,label or file,label,split in the first line of TABLE, not ''"),
    "other delimiter": ("file|label\na.png|x", "in the first line of TABLE, not 'file|label'"),
    "column twice": ("file,label,label\na.png,x,y", "not 'file,label,label'"),
    "header alone": ("file,label\n", "lists no images: TABLE has a header and no lines"),
    "absent files": (
        "file,label\na.png,x\n5.png,x\n10.png,y\n3.png,y\nz/1.png,y\n",
        "lists files that do not exist (4): 5.png, 10.png, 3.png and 1 more. Paths in TABLE are relative to its folder",
    ),
    "a folder": ("file,label\n.,x\n", "lists files that do not exist (1): ."),
    "no images": ("file,label\nlist.csv,x\n", "lists files that are no images (1) in TABLE: list.csv"),
    "no file": ("file,label\na.png,x\n,y\n", "has a bad line 3 in TABLE: it names no file"),
    "two labels": ("file,label\na.png,x\nb.png,y\n./a.png,y\n",
                   "lists ./a.png twice and differently, in lines 2 and 4 of TABLE: keep one of them"),
    "two splits": ("file,label,split\na.png,x,train\na.png,x,test\n", "lists a.png twice and differently, in lines 2"),
    "a label and none": ("file,label\na.png,x\na.png,\n", "lists a.png twice and differently"),
    "encoding": ("file,label\na.png,x\nb.png,é\n".encode("latin-1"), "is not UTF-8 in line 3 of TABLE: save the"),
    "UTF-16": ("file,label\na.png,x\n".encode("utf-16"), "is not UTF-8 in line 1 of TABLE"),
    "too many fields": ("file,label\na.png,x,y\n", "has a bad line 2 in TABLE: it has 3 fields, and the header has 2"),
    "open quotes": ('file,label\na.png,"x\n', "has a bad line 2 in TABLE: unexpected end of data"),
    "text after quotes": ('file,label\na.png,"x" y\n', "has a bad line 2 in TABLE: ',' expected after '\"'"),
    "validation": ("file,label,split\na.png,x,val\n", "in line 2 of TABLE: scnf draws validation rows"),
    "split": ("file,label,split\na.png,x,dev\n", "has the split 'dev', not train or test, in line 2 of TABLE"),
    "one class": ("file,label\na.png,x\nb.png,\n", "needs two classes or more and has one, 'x'"),
    "spaces": ("file,label\na.png,x\nb.png,x \n", "has classes 'x' and 'x '"),
    "null byte": ("file,label\na\0.png,x\n", "lists files that do not exist (1): a\0.png"),
}  # fmt: skip


@pytest.mark.parametrize(("table", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_csv_list_is_refused_with_what_to_do(table: str | bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"list.csv": table, **IMAGES}) / "list.csv"
    with pytest.raises(InvalidArgument, match="^root .*" + re.escape(message.replace("TABLE", str(path)))):
        list_images(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "does not exist: ROOT/absent. Check the path"),
        ("absent.csv", "does not exist: ROOT/absent.csv"),
        ("images.ZIP", "is an archive, ROOT/images.ZIP: unzip it first and give the folder"),
        ("a.png", "must be a folder of images or a .csv file that lists them, not ROOT/a.png"),
        ("a.png/b", "cannot be read: Not a directory: ROOT/a.png/b"),
        ("pipe.csv", "cannot be read: it is a FIFO: ROOT/pipe.csv"),
    ],
)
def test_root_of_another_kind_is_refused(name: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, ["a.png", "images.ZIP"])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InvalidArgument, match=re.escape("root " + message.replace("ROOT", str(tmp_path)))):
        list_images(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_class_name_without_utf8_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["cat/a.png"])
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    (Path(os.fsdecode(folder)) / "a.png").touch()
    with pytest.raises(InvalidArgument, match=r"^root has the class 'caf\\udce9', whose name is not valid UTF-8"):
        list_images(tmp_path)
