"""Many image files are decoded once, and the cache of their pixels is whole or is not used."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scnf.data import cache
from scnf.data.cache import Census, Decoded, census, decode_all, resolve
from scnf.data.decode import DamagedImage, Header, Preprocessing, decode
from scnf.errors import InvalidArgument

REPOSITORY = Path(__file__).parents[2]
SHAPE = Preprocessing((8, 8), 3)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Thirty intact images of 8x8 and 10x12 pixels."""
    random = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{k}.{('png', 'jpg')[k % 2]}" for k in range(30)]
    paths[0].parent.mkdir()
    for k, path in enumerate(paths):
        Image.fromarray(random.integers(0, 256, (8, 8, 3) if k % 3 else (10, 12, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths of the files that are decoded from now on."""
    paths: list[Path] = []

    def counting(source: Path, **options: Any) -> np.ndarray:
        paths.append(source)
        return decode(source, **options)

    monkeypatch.setattr(cache, "decode", counting)
    return paths


def the_cache(folder: Path) -> Path:
    """Return the one cache file below a folder."""
    (path,) = folder.glob("*/images")
    return path


def check(decoded: Decoded, files: list[Path], shape: Preprocessing = SHAPE) -> None:
    """Assert that the images are those of the files at their rows, and that no other file is missing."""
    assert shape.size is not None and shape.channels is not None
    assert decoded.images.dtype == torch.uint8 and decoded.rows.dtype == torch.int64
    assert decoded.images.shape == (len(decoded.rows), shape.channels, *shape.size)
    for image, row in zip(decoded.images, decoded.rows.tolist(), strict=True):
        assert np.array_equal(image.numpy(), decode(files[row], shape.size, shape.channels, shape.background))
    skipped = [file for file, _ in decoded.skipped]
    assert skipped == [file for row, file in enumerate(files) if row not in decoded.rows.tolist()]


# Decoding once ---------------------------------------------------------------------------------------------------


def test_second_call_reads_the_pixels_without_decoding(
    files: list[Path], decodings: list[Path], tmp_path: Path
) -> None:
    first = decode_all(files, SHAPE, cache=tmp_path / "cache")
    check(first, files)
    assert sorted(decodings) == sorted(files) and first.skipped == []
    second = decode_all(files, SHAPE, cache=tmp_path / "cache")
    assert len(decodings) == 30
    assert torch.equal(first.images, second.images) and torch.equal(first.rows, second.rows)


def test_images_come_from_the_cache_though_the_files_have_other_content(files: list[Path], tmp_path: Path) -> None:
    first = decode_all(files, SHAPE, cache=tmp_path / "cache").images.clone()
    for file in files:
        status = file.stat()
        file.write_bytes(b"x" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = decode_all(files, SHAPE, cache=tmp_path / "cache")
    assert torch.equal(first, second.images) and second.skipped == []


def another_file(files: list[Path]) -> None:
    files.append(files[0])


def another_time(files: list[Path]) -> None:
    os.utime(files[3], ns=(0, 1))


def another_size(files: list[Path]) -> None:
    status = files[4].stat()
    files[4].write_bytes(files[4].read_bytes() + b"\0")
    os.utime(files[4], ns=(0, status.st_mtime_ns))


def another_name(files: list[Path]) -> None:
    files[5] = files[5].rename(files[5].with_stem("renamed"))


def another_order(files: list[Path]) -> None:
    files.reverse()


@pytest.mark.parametrize("change", [another_file, another_time, another_size, another_name, another_order])
def test_changed_files_are_decoded_anew(change: Any, files: list[Path], decodings: list[Path], tmp_path: Path) -> None:
    decode_all(files, SHAPE, cache=tmp_path / "cache")
    change(files)
    decodings.clear()
    check(decode_all(files, SHAPE, cache=tmp_path / "cache"), files)
    assert len(decodings) == len(files)


@pytest.mark.parametrize(
    "shape", [Preprocessing((8, 10), 3), Preprocessing((8, 8), 1), Preprocessing((8, 8), 3, "black")], ids=str
)
def test_other_preprocessing_decodes_anew(
    shape: Preprocessing, files: list[Path], decodings: list[Path], tmp_path: Path
) -> None:
    first = decode_all(files, SHAPE, cache=tmp_path / "cache")
    decodings.clear()
    check(decode_all(files, shape, cache=tmp_path / "cache"), files, shape)
    assert len(decodings) == 30
    assert torch.equal(first.images, decode_all(files, SHAPE, cache=tmp_path / "cache").images) and len(decodings) == 30


@pytest.mark.filterwarnings("error")
def test_writing_to_the_images_leaves_the_cache_as_it_is(files: list[Path], tmp_path: Path) -> None:
    first = decode_all(files, SHAPE, cache=tmp_path / "cache")
    content = the_cache(tmp_path / "cache").read_bytes()
    before = first.images.clone()
    first.images.fill_(7)
    assert the_cache(tmp_path / "cache").read_bytes() == content
    assert torch.equal(decode_all(files, SHAPE, cache=tmp_path / "cache").images, before)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_give_the_bytes_of_one_thread(workers: int, files: list[Path], tmp_path: Path) -> None:
    files = files * 7
    files[20] = tmp_path / "absent.png"
    decoded = decode_all(files, SHAPE, cache=tmp_path / "cache", workers=workers)
    check(decoded, files)
    alone = [decode(file, (8, 8)) for file in files if file.exists()]
    assert the_cache(tmp_path / "cache").read_bytes().startswith(np.stack(alone).tobytes())


def test_default_directory_is_in_the_cache_of_the_user(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    mask = os.umask(0o002)
    try:
        check(decode_all(files, SHAPE), files)
    finally:
        os.umask(mask)
    assert the_cache(tmp_path / "xdg/scnf/images").is_file()
    assert (tmp_path / "xdg/scnf").stat().st_mode & 0o022 == 0  # or the kernels in it would be refused


def test_no_files_give_no_images(tmp_path: Path) -> None:
    for _ in range(2):
        decoded = decode_all([], SHAPE, cache=tmp_path / "cache")
        assert decoded.images.shape == (0, 3, 8, 8) and decoded.rows.shape == (0,) and decoded.skipped == []


def test_memory_does_not_grow_with_the_number_of_files(files: list[Path], tmp_path: Path) -> None:
    ahead: list[int] = []
    started: list[Path] = []

    def large(file: Path) -> np.ndarray:
        started.append(file)
        return np.zeros(1)

    for done, _ in enumerate(cache._outcomes(large, files * 40, 2, "images")):
        ahead.append(len(started) - done)
    assert len(ahead) == 1200 and max(ahead) <= 10 * 2 * cache._BATCH


# Damaged files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(files: list[Path], tmp_path: Path) -> list[Path]:
    """Files of which the second is truncated, the fourth absent, the fifth small and the sixth a directory."""
    files[1].write_bytes(files[1].read_bytes()[:-100])
    files[3].unlink()
    Image.new("RGB", (5, 9)).save(files[4])
    files[5].unlink()
    files[5].mkdir()
    return files


REASONS = ["it is truncated", "it does not exist", "it has 9x5 pixels (height x width), less than 8 on a side"]


def test_damaged_files_are_skipped_with_their_reasons(
    damaged: list[Path], decodings: list[Path], tmp_path: Path
) -> None:
    for count in (30, 4):  # the second time, only the damaged files are tried again
        decodings.clear()
        decoded = decode_all(damaged, SHAPE, cache=tmp_path / "cache")
        check(decoded, damaged)
        assert [damaged.index(file) for file, _ in decoded.skipped] == [1, 3, 4, 5]
        assert [reason for _, reason in decoded.skipped] == [*REASONS, "it is a directory"]
        assert len(decodings) == count


def test_strict_names_the_damaged_files(damaged: list[Path], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgument) as caught:
            decode_all(damaged, SHAPE, strict=True, cache=tmp_path / "cache")
        assert str(caught.value) == (
            f"strict is set, and 4 of 30 images cannot be decoded: {damaged[1]}: {REASONS[0]}; {damaged[3]}: "
            f"{REASONS[1]}; {damaged[4]}: {REASONS[2]}; {damaged[5]}: it is a directory. Repair or remove these files, "
            "or unset strict to skip them"
        )


def test_strict_takes_intact_files(files: list[Path], tmp_path: Path) -> None:
    check(decode_all(files, SHAPE, strict=True, cache=tmp_path / "cache"), files)


def test_file_that_becomes_readable_is_decoded(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(source: Path, **options: Any) -> np.ndarray:
        if source == files[2]:
            raise DamagedImage("it cannot be read (Permission denied)")
        return decode(source, **options)

    monkeypatch.setattr(cache, "decode", refusing)
    assert decode_all(files, SHAPE, cache=tmp_path / "cache").skipped[0][0] == files[2]
    monkeypatch.undo()
    decoded = decode_all(files, SHAPE, cache=tmp_path / "cache")
    check(decoded, files)
    assert decoded.skipped == []


def test_file_that_vanishes_meanwhile_is_named(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanishing(source: Path, **options: Any) -> np.ndarray:
        if source == files[7]:
            source.unlink(missing_ok=True)
        return decode(source, **options)

    monkeypatch.setattr(cache, "decode", vanishing)
    assert decode_all(files, SHAPE, cache=tmp_path / "cache").skipped == [(files[7], "it does not exist")]


def test_all_files_may_be_damaged(tmp_path: Path) -> None:
    for _ in range(2):
        decoded = decode_all([tmp_path / "a.png", tmp_path / "b.png"], SHAPE, cache=tmp_path / "cache")
        assert decoded.images.shape == (0, 3, 8, 8) and len(decoded.skipped) == 2


def test_other_errors_end_the_decoding_and_leave_no_cache(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(source: Path, **options: Any) -> np.ndarray:
        if source == files[20]:
            raise KeyboardInterrupt
        return decode(source, **options)

    monkeypatch.setattr(cache, "decode", failing)
    with pytest.raises(KeyboardInterrupt):
        decode_all(files, SHAPE, cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("shape", [Preprocessing(), Preprocessing((8, 8)), Preprocessing(channels=1)], ids=str)
def test_preprocessing_must_be_resolved(shape: Preprocessing) -> None:
    with pytest.raises(InvalidArgument, match=r"^preprocessing must have a size and channels: resolve\("):
        decode_all([], shape)


# Damaged caches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 100, 192 * 30, 192 * 30 + 20, -16, -8, -1])
def test_truncated_cache_is_rebuilt(length: int, files: list[Path], decodings: list[Path], tmp_path: Path) -> None:
    decode_all(files, SHAPE, cache=tmp_path / "cache")
    path = the_cache(tmp_path / "cache")
    content = path.read_bytes()
    path.write_bytes(content[:length])
    check(decode_all(files, SHAPE, cache=tmp_path / "cache"), files)
    assert len(decodings) == 60 and path.read_bytes() == content


@pytest.mark.parametrize("place", [0, 5000, -30, -60, -100, -16, -12, -1])
def test_cache_with_a_flipped_bit_is_rebuilt(
    place: int, files: list[Path], decodings: list[Path], tmp_path: Path
) -> None:
    decode_all(files, SHAPE, cache=tmp_path / "cache")
    path = the_cache(tmp_path / "cache")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    check(decode_all(files, SHAPE, cache=tmp_path / "cache"), files)
    assert len(decodings) == 60


def test_cache_of_other_images_is_rebuilt(files: list[Path], tmp_path: Path) -> None:
    decode_all(files[:15], SHAPE, cache=tmp_path / "other")
    decode_all(files[15:], SHAPE, cache=tmp_path / "cache")
    shutil.copy(the_cache(tmp_path / "other"), the_cache(tmp_path / "cache"))
    check(decode_all(files[15:], SHAPE, cache=tmp_path / "cache"), files[15:])


DECODE = """
import sys, time
from pathlib import Path
from scnf.data import cache
from scnf.data.decode import Preprocessing, decode

folder, stop = Path(sys.argv[1]), int(sys.argv[2])
files = sorted((folder / "images").iterdir())

def slow(source, **options):
    if source == files[stop]:
        (folder / "started").touch()
        time.sleep(60)
    (folder / "log").open("a").write(source.name + "\\n")
    return decode(source, **options)

cache.decode = slow if stop >= 0 else decode
decoded = cache.decode_all(files, Preprocessing((8, 8), 3), cache=folder / "cache", workers=2)
print(int(decoded.images.long().sum()))
"""


def decoder(folder: Path, stop: int = -1) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", DECODE, str(folder), str(stop)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("stop", [0, 25])
def test_killed_process_leaves_nothing_that_is_read(
    stop: int, files: list[Path], decodings: list[Path], tmp_path: Path
) -> None:
    process = decoder(tmp_path, stop)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "started").exists() and not list((tmp_path / "cache").glob("*/images"))
    files = sorted(files)
    check(decode_all(files, SHAPE, cache=tmp_path / "cache"), files)
    assert sorted(decodings) == files
    assert [path.name for path in (tmp_path / "cache").glob("*/*")] == ["images"]  # and no temporary file


def test_two_processes_at_once_have_the_same_images(files: list[Path], tmp_path: Path) -> None:
    processes = [decoder(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    expected = sum(int(decode(file, (8, 8)).astype(int).sum()) for file in files)
    assert outputs == [(f"{expected}\n", "")] * 2
    assert [path.name for path in (tmp_path / "cache").glob("*/*")] == ["images"]


# Without a cache -------------------------------------------------------------------------------------------------


def check_fallback(damaged: list[Path], folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    decoded = decode_all(damaged, SHAPE, cache=folder)
    check(decoded, damaged)
    assert len(decoded.rows) == 26
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert message.startswith("decoded images stay in memory, and the next start decodes them again: ")
    assert reason in message and "\n" not in message


def test_cache_below_a_file_falls_back_to_memory(
    damaged: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("content")
    check_fallback(damaged, tmp_path / "file" / "cache", caplog, "Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to the superuser")
def test_read_only_cache_falls_back_to_memory(
    damaged: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    check_fallback(damaged, tmp_path / "cache", caplog, "Permission denied")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system in which nobody creates files")
def test_file_system_that_takes_no_files_falls_back_to_memory(
    damaged: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    check_fallback(damaged, Path("/sys/kernel/scnf"), caplog, "/sys/kernel/scnf")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let files of this process have at most `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_falls_back_to_memory_and_leaves_no_file(
    damaged: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with largest_file(3000):
        check_fallback(damaged, tmp_path / "cache", caplog, "File too large")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    check(decode_all(damaged, SHAPE, cache=tmp_path / "cache"), damaged)


def test_intact_cache_in_a_read_only_directory_is_read(
    files: list[Path], decodings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_all(files, SHAPE, cache=tmp_path / "cache")
    the_cache(tmp_path / "cache").chmod(0o444)
    the_cache(tmp_path / "cache").parent.chmod(0o555)
    monkeypatch.setattr(cache, "atomic_write", None)
    monkeypatch.setattr(cache, "exclusive_folder", None)
    try:
        check(decode_all(files, SHAPE, cache=tmp_path / "cache"), files)
    finally:
        the_cache(tmp_path / "cache").parent.chmod(0o755)
    assert len(decodings) == 30


def test_unknown_home_falls_back_to_memory(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    check(decode_all(files, SHAPE), files)
    assert "set HOME or XDG_CACHE_HOME" in caplog.text


# Census and size -------------------------------------------------------------------------------------------------


def test_census_counts_modes_and_sizes(tmp_path: Path) -> None:
    sizes = {"RGB": (32, 32), "L": (32, 32), "RGBA": (300, 200)}
    paths = []
    for mode, count in {"RGB": 20, "L": 8, "RGBA": 2}.items():
        for k in range(count):
            paths.append(tmp_path / f"{mode}{k}.png")
            Image.new(mode, sizes[mode]).save(paths[-1])
    result = census([*paths, tmp_path / "absent.png"])
    assert result.headers == {
        Header("RGB", (32, 32), True): 20,
        Header("greyscale", (32, 32), False): 8,
        Header("RGBA", (200, 300), True): 2,
    }
    assert result.skipped == [(tmp_path / "absent.png", "it does not exist")]
    assert result.text() == ("20 RGB images of 32x32, 8 greyscale of 32x32, 2 RGBA of 200x300 (height x width)")


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({}, "no images"),
        ({Header("RGB", (9, 9), True): 1}, "1 RGB image of 9x9"),
        ({Header("RGB", (9, 9), True): 12345}, "12,345 RGB images of 9x9"),
        ({Header("palette", (9, 9), True): 2, Header("palette", (9, 9), False): 3}, "5 palette images of 9x9"),
        (
            {Header("RGB", (k, k), True): 100 - k for k in range(10, 20)},
            "90 RGB images of 10x10, 89 RGB of 11x11, 88 RGB of 12x12, 87 RGB of 13x13, 86 RGB of 14x14, "
            "85 RGB of 15x15, 330 of 4 other kinds",
        ),
    ],
)
def test_census_text(headers: dict[Header, int], text: str) -> None:
    assert Census(Counter(headers), []).text() == text


@pytest.mark.parametrize(
    ("common", "size"),
    [
        ((28, 28), (28, 28)),
        ((33, 47), (33, 47)),
        ((64, 64), (64, 64)),
        ((96, 96), (64, 64)),
        ((480, 640), (48, 64)),
        ((640, 480), (64, 48)),
        ((65, 64), (64, 64)),
        ((300, 211), (64, 46)),
        ((4000, 40), (64, 8)),
        ((8, 8), (8, 8)),
    ],
)
def test_size_is_the_most_common_one_reduced_to_64(common: tuple[int, int], size: tuple[int, int]) -> None:
    headers = [Header("L", (100, 90), False), *[Header("L", common, False)] * 2]
    for form in (headers, Counter(headers), iter(headers)):
        assert resolve(form, Preprocessing()) == Preprocessing(size, 1)


def test_equally_common_sizes_give_the_larger_one() -> None:
    sizes = [(20, 20), (16, 32), (32, 16), (10, 10)]
    for order in (sizes, sizes[::-1]):
        assert resolve([Header("RGB", size, True) for size in order], Preprocessing()).size == (32, 16)


def test_given_values_stay() -> None:
    given = Preprocessing((200, 100), 1, "black")
    assert resolve([Header("RGB", (32, 32), True)], given) == given


def test_one_colour_image_gives_three_channels() -> None:
    grey, colour = Header("L", (32, 32), False), Header("RGB", (40, 40), True)
    assert resolve({grey: 1000, colour: 1}, Preprocessing()) == Preprocessing((32, 32), 3)
    assert resolve({grey: 1000}, Preprocessing()) == Preprocessing((32, 32), 1)


def test_no_headers_are_an_error() -> None:
    with pytest.raises(InvalidArgument, match=r"^headers must hold one image or more"):
        resolve([], Preprocessing((8, 8), 3))
