"""Load the dataset that settings name."""

import os
from pathlib import Path

from scnf.data.decode import Preprocessing
from scnf.data.download import MissingData
from scnf.data.folder import Reading
from scnf.data.sources import DATASETS, Dataset, load
from scnf.errors import InvalidArgument, UserError
from scnf.settings import DataSettings
from scnf.settings.schema import OWN

_READING = ("size", "channels", "background", "strict", "classes", "labels")
"""Settings of images of one's own."""


def load_data(data: DataSettings) -> Dataset:
    """Load the data of the settings, with advice on options where they are not available (UserError)."""
    try:
        if data.name in OWN:
            size = _both_sides(data.size)
            preprocessing = Preprocessing(size, data.channels, data.background)
            labels = None if data.labels is None else Path(data.labels)
            return load(data.name, data.root, Reading(preprocessing, data.strict, data.classes, labels))
        return load(data.name, data.root)
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
        raise UserError(f"data.{error.argument} {error.problem}{advice}") from error


def resolve(data: DataSettings, dataset: Dataset) -> None:
    """Write out what the data decide, which is the number of labels, and the shape, classes and files of own images."""
    data.resolve_labels(dataset.num_classes)
    if data.name in OWN:
        data.classes = dataset.class_names
    if data.name == "folder":
        data.channels, *size = dataset.train_x.shape[1:]
        data.size = tuple(size)
    if data.labels is not None:
        data.labels = os.path.abspath(data.labels)


def _both_sides(size: int | tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return height and width, which one number may stand for."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else size
    if len(sides) != 2:
        raise InvalidArgument("size", f"must be one number, or height and width, not {list(sides)}")
    return sides[0], sides[1]
