"""The inputs of a model: its file, its classes, and images of any kind brought to its shape and grey levels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scnf.data.decode import DamagedImage
from scnf.data.inputs import Inputs, numbered
from scnf.errors import InvalidArgument

GREY = Inputs((1, 8, 8), 256, ("cat", "dog"))
COLOUR = Inputs((3, 8, 10), 256, ("cat", "dog"))
FEW = Inputs((1, 8, 8), 17, numbered(10))
POINTS = Inputs((2,), None, ("a", "b"))

PIXELS = np.arange(240, dtype=np.uint8).reshape(3, 8, 10)


@pytest.mark.parametrize("inputs", [GREY, COLOUR, FEW, POINTS], ids=lambda inputs: str(inputs.shape))
def test_inputs_come_back_from_json(inputs: Inputs) -> None:
    assert Inputs.from_json(inputs.to_json()) == inputs


@pytest.mark.parametrize(
    "change",
    [{"shape": [3, 8]}, {"shape": [0, 8, 8]}, {"levels": 1}, {"class_names": ["cat"]}, {"class_names": [1, 2]}],
)
def test_inputs_refuse_a_damaged_file(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="must hold shape, levels, class_names and background"):
        Inputs.from_json(COLOUR.to_json() | change)
    with pytest.raises(InvalidArgument, match="must hold shape"):
        Inputs.from_json([])


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS[None],
        PIXELS.transpose(1, 2, 0),
        PIXELS.transpose(1, 2, 0)[None],
        torch.from_numpy(PIXELS),
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        torch.from_numpy(PIXELS).int(),
        [PIXELS],
        Image.fromarray(PIXELS.transpose(1, 2, 0)),
        [Image.fromarray(PIXELS.transpose(1, 2, 0))],
    ],
    ids=lambda images: type(images).__name__ + str(getattr(images, "dtype", "")),
)
def test_inputs_bring_every_kind_of_image_to_the_same_grey_levels(images: Any) -> None:
    rows = COLOUR.rows(images)
    assert rows.dtype == torch.uint8
    assert torch.equal(rows, torch.from_numpy(PIXELS)[None])


def test_inputs_read_files_and_grey_stacks(tmp_path: Path) -> None:
    Image.fromarray(PIXELS.transpose(1, 2, 0)).save(tmp_path / "a.png")
    assert torch.equal(COLOUR.rows(tmp_path / "a.png")[0], torch.from_numpy(PIXELS))
    assert torch.equal(COLOUR.rows([str(tmp_path / "a.png")] * 2)[1], torch.from_numpy(PIXELS))
    stack = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)
    assert torch.equal(GREY.rows(stack), torch.from_numpy(stack)[:, None])
    assert torch.equal(GREY.rows(stack[0]), torch.from_numpy(stack)[:1, None])
    assert COLOUR.rows(stack).shape == (5, 3, 8, 10)  # greyscale of another size


def test_inputs_resize_and_convert_images_of_another_shape() -> None:
    assert GREY.rows(Image.new("RGB", (40, 30), (255, 0, 0))).unique().tolist() == [76]  # 0.299 * 255
    assert COLOUR.rows(np.full((16, 20, 3), 7, dtype=np.uint8)).unique().tolist() == [7]


def test_inputs_of_few_grey_levels_take_their_own_levels_and_floats() -> None:
    levels = torch.arange(64).view(1, 1, 8, 8) % 17
    assert torch.equal(FEW.rows(levels.to(torch.uint8)), levels.to(torch.uint8))
    assert FEW.rows(torch.full((8, 8), 1.0)).unique().tolist() == [16]
    assert FEW.rows(Image.new("L", (8, 8), 255)).unique().tolist() == [16]


@pytest.mark.parametrize(
    ("inputs", "images", "message"),
    [
        (GREY, np.full((8, 8), 1.5), "must be floats in [0, 1], and these run from 1.5 to 1.5"),
        (GREY, np.full((8, 8), np.nan), "must be floats in [0, 1]"),
        (GREY, np.full((8, 8), 300), "must be whole grey levels from 0 to 255, and these run from 300 to 300"),
        (FEW, np.full((8, 8), 200, dtype=np.uint8), "must be whole grey levels from 0 to 16"),
        (FEW, np.full((9, 9), 2, dtype=np.uint8), "must be of shape [1, 8, 8], not [1, 9, 9]"),
        (GREY, np.zeros((8, 8), dtype=bool), "must hold whole grey levels or floats in [0, 1], not torch.bool"),
        (GREY, np.zeros((0, 8, 8)), "must hold at least one image"),
        (GREY, np.zeros((2, 2, 2, 2, 2)), "must be of shape [N, C, H, W] or [N, H, W, C]"),
        (POINTS, np.zeros((3, 4)), "must be points [N, 2], not of shape [3, 4]"),
        (POINTS, np.full((3, 2), np.inf), "must be finite"),
        (POINTS, Image.new("L", (8, 8)), "must be points of 2 numbers, for the model knows no images"),
    ],
)
def test_inputs_refuse_what_the_model_does_not_take(inputs: Inputs, images: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"images {re.escape(message)}"):
        inputs.rows(images)


def test_inputs_know_a_class_by_name_or_label() -> None:
    assert (GREY.label_of("dog"), GREY.label_of(1), GREY.label_of("1"), FEW.label_of("7")) == (1, 1, 1, 7)
    for name in ("cow", 2, -1, True, 1.0):
        with pytest.raises(InvalidArgument, match="label must be one of the classes cat, dog"):
            GREY.label_of(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "images",
    [
        PIXELS.astype(">u2"),
        PIXELS.astype(np.uint64),
        PIXELS.astype(np.longdouble) / 255,
        np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1],
        torch.from_numpy(PIXELS.astype(np.uint16)),
        np.array([PIXELS, None], dtype=object)[:1],
    ],
)
def test_inputs_take_numbers_in_any_layout(images: Any) -> None:
    assert torch.equal(COLOUR.rows(images), torch.from_numpy(PIXELS)[None])


def test_inputs_take_paths_beside_arrays_and_name_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS.transpose(1, 2, 0)).save(path)
    for images in ([path, PIXELS], [PIXELS, str(path)], np.array([str(path), str(path)])):
        assert torch.equal(COLOUR.rows(images), torch.from_numpy(np.stack([PIXELS, PIXELS])))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DamagedImage) as caught:
        COLOUR.rows([path])
    assert caught.value.__notes__ == [f"image: {path}"]


@pytest.mark.parametrize("images", [None, b"abc", iter([PIXELS]), [None], np.zeros(3, complex), {"x": 1}])
def test_inputs_refuse_what_is_no_image(images: Any) -> None:
    for inputs in (COLOUR, POINTS):
        with pytest.raises(InvalidArgument, match="images must"):
            inputs.rows(images)


def test_inputs_refuse_the_rows_of_an_array_file_of_another_kind() -> None:
    with pytest.raises(InvalidArgument, match="must hold images, as the model takes, not vectors of 3 numbers"):
        COLOUR.read_array(torch.rand(5, 3))
    with pytest.raises(InvalidArgument, match="must hold vectors of 2 numbers, as the model takes, not images"):
        POINTS.read_array(torch.rand(5, 1, 8, 8))
