"""Describe the inputs and classes of a model, and bring images of any kind to its shape and grey levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scnf.checks import LARGEST
from scnf.data.backbone import Backbone
from scnf.data.decode import DamagedImage, decode
from scnf.errors import InvalidArgument
from scnf.words import counted

_CHANNELS = (1, 3, 4)
_FILES = (str, Path, Image.Image)


@dataclass(frozen=True)
class Inputs:
    """The inputs and classes of a model, which are everything that its weights need besides their recipe.

    Attributes:
        shape: Shape of one input, (C, H, W) of an image or (D,) of a point.
        levels: Number of grey levels; None for points.
        class_names: Names of the classes in the order of their labels.
        background: Colour under transparent pixels.
        backbone: Network that turns images into these points; None where there is none.

    Example:
        >>> inputs = Inputs((1, 8, 8), 256, ("cat", "dog"))
        >>> Inputs.from_json(inputs.to_json()) == inputs
        True
    """

    shape: tuple[int, ...]
    levels: int | None
    class_names: tuple[str, ...]
    background: str = "white"
    backbone: Backbone | None = None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The shape (C, H, W) of images that the model takes, perhaps by its backbone, or None for points alone."""
        shape = self.shape if self.backbone is None else self.backbone.shape
        return (shape[0], shape[1], shape[2]) if len(shape) == 3 else None

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.class_names)

    @property
    def noun(self) -> str:
        """The word for one input, "image" or "vector"."""
        return "vector" if self.image_shape is None else "image"

    def counted(self, rows: int) -> str:
        """Return a number of inputs in words, with their shape.

        Example:
            >>> Inputs((3,), None, ("cat", "dog")).counted(2), Inputs((1, 8, 8), 256, ("cat", "dog")).counted(1)
            ('2 vectors of 3 numbers', '1 image of [1, 8, 8]')
        """
        size = counted(self.shape[0], "number") if self.levels is None else list(self.shape)
        return counted(rows, f"{self.noun} of {size}", f"{self.noun}s of {size}")

    def to_json(self) -> dict[str, Any]:
        """Return the inputs as they are written to `inputs.json`."""
        values: dict[str, Any] = {"shape": list(self.shape), "levels": self.levels}
        values |= {"class_names": list(self.class_names), "background": self.background}
        return values if self.backbone is None else values | {"backbone": self.backbone.to_json()}

    @classmethod
    def from_json(cls, values: Any) -> "Inputs":
        """Return the inputs that :meth:`to_json` wrote.

        Raises:
            InvalidArgument: The values are not the contents of such a file.
        """
        try:
            shape, levels, names = tuple(values["shape"]), values["levels"], tuple(values["class_names"])
            background, backbone = values["background"], values.get("backbone")
        except (TypeError, KeyError):
            shape, levels, names, background, backbone = (), None, (), "", None
        sizes = len(shape) in (1, 3) and all(type(size) is int and size > 0 for size in shape)
        texts = len(names) > 1 and all(isinstance(name, str) for name in (*names, background))
        if not sizes or not texts or not (levels is None or (type(levels) is int and levels > 1)):
            raise InvalidArgument("values", f"must hold shape, levels, class_names and background, not {values!r:.80}")
        return cls(shape, levels, names, background, None if backbone is None else Backbone.from_json(backbone))

    def label_of(self, name: str | int) -> int:
        """Return the label of a class, which may be given by its name or by its label.

        Raises:
            InvalidArgument: There is no such class.
        """
        if isinstance(name, str) and name in self.class_names:
            return self.class_names.index(name)
        if not isinstance(name, bool) and str(name).isdecimal() and int(name) < self.num_classes:
            return int(name)
        classes = ", ".join(self.class_names[:20]) + (", ..." if self.num_classes > 20 else "")
        raise InvalidArgument("label", f"must be one of the classes {classes}, not {name!r}")

    def rows(self, images: Any) -> Tensor:
        """Convert images or points of any kind to rows that the model takes after dequantisation.

        Args:
            images: One image or several, as paths, Pillow images, NumPy arrays or tensors. Arrays have the shape
                [N, C, H, W], [N, H, W, C] or [N, H, W], or that of one image. Arrays of whole numbers hold grey levels
                0..levels-1, and arrays of floats hold pixels in [0, 1]. Images of another size are resized and cropped
                to the centre, see :func:`scnf.data.decode.decode`. A model of points takes floats [N, D], and with a
                backbone images as well.

        Returns:
            Grey levels [N, C, H, W], uint8 for up to 256 levels, or points, float32 [N, D].

        Raises:
            InvalidArgument: The model does not take these images.
            DamagedImage: A file cannot be decoded.

        Example:
            >>> inputs = Inputs((1, 8, 8), 256, ("cat", "dog"))
            >>> inputs.rows(Image.new("RGB", (20, 10), "white")).shape, inputs.rows(np.zeros((5, 8, 8))).dtype
            (torch.Size([1, 1, 8, 8]), torch.uint8)
        """
        return self.embedded(self.read(images))

    def read(self, images: Any) -> Tensor:
        """Return rows as :meth:`rows` does, but before a backbone, which :meth:`embedded` applies.

        Raises:
            InvalidArgument, DamagedImage: As :meth:`rows`.
        """
        if isinstance(images, np.ndarray) and images.ndim and images.dtype.kind in "UO":  # of paths or arrays
            images = images.tolist()
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        if isinstance(images, Sequence) and images and all(isinstance(each, _FILES) for each in images):
            return self._decoded(images)
        if isinstance(images, Sequence) and any(isinstance(each, _FILES) or hasattr(each, "shape") for each in images):
            return torch.cat([self.read(each) for each in images])
        array = numbers(images, "images")
        if self.backbone is not None and array.dim() > 2:
            return Inputs(self.backbone.shape, 256, self.class_names, self.background).read(array)
        return self._points(array) if self.levels is None else self._grey_levels(array)

    def read_array(self, x: Tensor) -> Tensor:
        """Return the rows of an array file, vectors [N, D] or images [N, C, H, W], as :meth:`read` does.

        Raises:
            InvalidArgument: The model does not take these rows.

        Example:
            >>> Inputs((1, 8, 8), 256, ("cat", "dog")).read_array(torch.zeros(5, 3))
            Traceback (most recent call last):
            scnf.errors.InvalidArgument: x must hold images, as the model takes, not vectors of 3 numbers
        """
        if x.dim() == 2 and self.levels is not None:  # which `read` would take for one image
            raise InvalidArgument("x", f"must hold images, as the model takes, not vectors of {x.shape[1]} numbers")
        if x.dim() != 2 and self.image_shape is None:
            raise InvalidArgument("x", f"must hold vectors of {self.shape[0]} numbers, as the model takes, not images")
        return self.read(x)

    def embedded(self, rows: Tensor) -> Tensor:
        """Return the embeddings of images that :meth:`read` returned, or other rows unchanged."""
        return rows if self.backbone is None or rows.dim() == 2 else self.backbone.embed(rows)

    def _decoded(self, images: Sequence[Any]) -> Tensor:
        if self.image_shape is None:
            raise InvalidArgument("images", f"must be points of {self.shape[0]} numbers, for the model knows no images")
        channels, height, width = self.image_shape
        pixels = []
        for image in images:
            try:
                pixels.append(decode(image, (height, width), channels, self.background))
            except DamagedImage as error:
                error.add_note(f"image: {image}")
                raise
        return self.from_256_levels(torch.from_numpy(np.stack(pixels)))

    def from_256_levels(self, pixels: Tensor) -> Tensor:
        """Return pixels 0..255 [N, C, H, W] in the grey levels of a model of images or of a backbone."""
        if self.levels is None or self.levels == 256:
            return pixels
        return self._stored(pixels.int() * self.levels // 256)

    def _stored(self, levels: Tensor) -> Tensor:
        return levels.to(torch.uint8 if self.levels is not None and self.levels <= 256 else torch.int32)

    def _points(self, array: Tensor) -> Tensor:
        points = array[None] if array.dim() == 1 else array
        if points.dim() != 2 or points.shape[1:] != self.shape or points.dtype == torch.bool or not len(points):
            kinds = f"points [N, {self.shape[0]}]" + ("" if self.backbone is None else " or images [N, C, H, W]")
            raise InvalidArgument("images", f"must be {kinds}, not of shape {list(array.shape)}")
        if not bool((points.abs() <= LARGEST).all()):  # NaN is not
            raise InvalidArgument("images", f"must be finite and up to {LARGEST:g}, and some of these points are not")
        return points.float()

    def _grey_levels(self, array: Tensor) -> Tensor:
        assert self.levels is not None
        images = self._channels_first(array)
        if not images.numel():
            raise InvalidArgument("images", f"must hold at least one image, not {list(array.shape)}")
        if images.dtype == torch.bool:
            raise InvalidArgument("images", f"must hold whole grey levels or floats in [0, 1], not {images.dtype}")
        low, high = float(images.amin()), float(images.amax())
        limit = 1 if images.is_floating_point() else self.levels - 1
        if not 0 <= low <= high <= limit:  # NaN fails the comparison, too
            kind = "floats in [0, 1]" if images.is_floating_point() else f"whole grey levels from 0 to {limit}"
            raise InvalidArgument("images", f"must be {kind}, and these run from {low:g} to {high:g}")
        if images.is_floating_point():
            images = (images.double() * self.levels).floor().clamp_(max=self.levels - 1)
        if images.shape[1:] == self.shape:
            return self._stored(images)
        if self.levels != 256:
            raise InvalidArgument("images", f"must be of shape {list(self.shape)}, not {list(images.shape[1:])}")
        arrays = images.to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return self._decoded([Image.fromarray(each[:, :, 0] if each.shape[2] == 1 else each) for each in arrays])

    def _channels_first(self, array: Tensor) -> Tensor:
        """Return images [N, C, H, W]."""
        if tuple(array.shape) == self.shape:
            return array[None]
        if array.dim() == 2:
            return array[None, None]
        if array.dim() == 3:
            is_image = array.shape[-1] in _CHANNELS[1:] or (array.shape[0] == 3 and self.shape[0] == 3)
            array = array[None] if is_image else array[:, None]
        if array.dim() == 4 and array.shape[1] not in _CHANNELS and array.shape[-1] in _CHANNELS:
            array = array.permute(0, 3, 1, 2)
        if array.dim() != 4 or array.shape[1] not in _CHANNELS:
            raise InvalidArgument("images", f"must be of shape [N, C, H, W] or [N, H, W, C], not {list(array.shape)}")
        return array


def numbers(values: Any, argument: str) -> Tensor:
    """Return an array, or nested lists of numbers, as a tensor on the CPU, with int64 for all large whole numbers.

    Raises:
        InvalidArgument: The values are no real numbers.

    Example:
        >>> numbers(np.array([[1, 2]], dtype=">u2")[:, ::-1], "x")
        tensor([[2, 1]])
    """
    if isinstance(values, Tensor):
        array = values.detach().cpu()
        if array.is_complex():
            raise InvalidArgument(argument, f"must hold real numbers, not {array.dtype}")
        return array.long() if array.dtype in (torch.uint16, torch.uint32, torch.uint64) else array
    try:
        plain = np.asarray(values)
    except ValueError as error:
        raise InvalidArgument(argument, "must be arrays of one shape") from error
    if plain.dtype.kind not in "buif":
        raise InvalidArgument(argument, f"must be arrays of real numbers, files or Pillow images, not {values!r:.60}")
    kind = plain.dtype.newbyteorder("=")
    if kind.kind == "u" and kind.itemsize > 1:
        kind = np.dtype(np.int64)
    elif kind.itemsize > 8:
        kind = np.dtype(np.float64)
    return torch.from_numpy(np.require(plain, kind, ["C", "W"]))


def numbered(num_classes: int) -> tuple[str, ...]:
    """Return the names of classes that have only numbers, "0" to "K-1"."""
    return tuple(map(str, range(num_classes)))
