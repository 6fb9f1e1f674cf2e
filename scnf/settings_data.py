"""Load the dataset that settings name."""

import os
from pathlib import Path

from scnf.data.backbone import LARGEST_INPUT
from scnf.data.cache import MAX_SIDE
from scnf.data.decode import Preprocessing
from scnf.data.download import MissingData
from scnf.data.folder import Reading
from scnf.data.sources import DATASETS, Dataset, load, with_embeddings
from scnf.errors import InvalidArgument, UserError
from scnf.files import CHECKSUM_MARK, sha256_of
from scnf.settings import DataSettings
from scnf.settings.schema import OWN

_READING = ("size", "channels", "background", "strict", "classes", "labels", "embeddings")
"""Arguments of the functions that read data, which are settings."""


def load_data(data: DataSettings) -> Dataset:
    """Load the data of the settings, with advice on options where they are not available (UserError)."""
    try:
        if data.name in OWN:
            size = _both_sides(data.size)
            preprocessing = Preprocessing(size, data.channels, data.background)
            labels = None if data.labels is None else Path(data.labels)
            side = MAX_SIDE if data.features is None else LARGEST_INPUT
            dataset = load(data.name, data.root, Reading(preprocessing, data.strict, data.classes, labels, side))
        else:
            dataset = load(data.name, data.root)
        return dataset if data.features is None else with_embeddings(dataset, data.features)
    except InvalidArgument as error:
        if error.argument not in ("name", "root", *_READING):  # a bug, for example in a dataset of the user's own
            raise
        advice = ""
        if error.argument == "name" and data.name not in DATASETS:
            advice = " (one of your own needs --import FILE)"
        elif isinstance(error, MissingData):
            advice = (
                ". The data of --config digits.yaml need no files. `scnf train FOLDER` trains on images of your own"
            )
        setting = "features" if error.argument == "embeddings" else error.argument
        raise UserError(f"data.{setting} {error.problem}{advice}") from error


def resolve(data: DataSettings, dataset: Dataset) -> None:
    """Write out what the data decide, which is the number of labels, and the shape, classes and files of own images."""
    data.resolve_labels(dataset.num_classes)
    if data.name in OWN:
        data.classes = dataset.class_names
    if data.name == "folder" and (shape := dataset.inputs().image_shape) is not None:
        data.channels, data.size = shape[0], shape[1:]
    if data.labels is not None:
        data.labels = os.path.abspath(data.labels)
    if data.features is not None and dataset.backbone is None:
        path = os.path.abspath(data.features.partition(CHECKSUM_MARK)[0])
        data.features = f"{path}{CHECKSUM_MARK}{sha256_of(Path(path))}"


def _both_sides(size: int | tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return height and width, which one number may stand for."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else size
    if len(sides) != 2:
        raise InvalidArgument("size", f"must be one number, or height and width, not {list(sides)}")
    return sides[0], sides[1]
