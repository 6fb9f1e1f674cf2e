"""Tables of files and labels: what is read, and what stays as it is when files are added."""

from pathlib import Path

import pytest

from scnf.data.tables import add_files, read_table
from scnf.errors import InvalidArgument


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def test_files_are_added_below_the_lines_that_are_there(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfLabel;split;File\r\ncat;train;a.png\r\n;;b.png")
    assert add_files(path, ["b.png", "c;d.png", "e.png", "e.png"]) == 2
    expected = b'\xef\xbb\xbfLabel;split;File\r\ncat;train;a.png\r\n;;b.png\r\n;;"c;d.png"\r\n;;e.png\r\n'
    assert path.read_bytes() == expected
    assert [row[1:3] for row in read_table(path).rows] == [
        ("a.png", "cat"),
        ("b.png", ""),
        ("c;d.png", ""),
        ("e.png", ""),
    ]


def test_files_that_are_listed_leave_the_table_untouched(path: Path) -> None:
    path.write_bytes(b"file,label\na.png,cat")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert add_files(path, ["a.png"]) == 0
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_files_with_any_names_are_read_back(path: Path) -> None:
    names = ["a,b.png", 'say "x".png', "naïve 猫.png", "two\nlines.png"]
    assert add_files(path, names) == len(names)
    assert [file for _, file, _, _ in read_table(path).rows] == names


@pytest.mark.parametrize("content", [b"name,kind\n", b"", b"file,label\na,b,c\n", b"file,label\n\xff,\n"])
def test_file_that_is_no_table_is_refused_and_stays(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"^path ") as caught:
        add_files(path, ["a.png"])
    assert caught.value.argument == "path" and path.read_bytes() == content
