import os
from pathlib import Path

import pytest

from scnf.errors import UserError
from scnf.files import atomic_write, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_makes_the_directory_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    write_text(path, "old é")
    write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert names(path.parent) == ["note.txt"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_block_that_fails_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    if expected is UserError:
        assert "cannot write" in str(caught.value) and "No space left on device" in str(caught.value)
    assert path.read_text() == "old" and names(tmp_path) == ["note.txt"]


def test_the_old_content_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / "note.txt"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["file/note.txt", "directory"])
def test_impossible_places(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file, not a directory")
    (tmp_path / "directory" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / place, "text")
    assert names(tmp_path) == ["directory", "file"] and (tmp_path / "file").read_text() == "a file, not a directory"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_read_only_places() -> None:
    with pytest.raises(UserError, match="cannot write /proc/self/note"):
        write_text(Path("/proc/self/note.txt"), "text")
