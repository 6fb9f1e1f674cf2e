"""Decode image files of any common format, mode and size to uint8 arrays of one shape."""

import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from scnf.errors import InvalidArgument
from scnf.files import require_file
from scnf.words import counted

MIN_SIDE = 8
"""Smallest height and width of an image in pixels."""
MAX_PIXELS = 100_000_000
"""Number of pixels above which an image is refused by its header, before its pixels take memory."""

_FORMATS = (  # without formats such as EPS, which start other programs; the five frequent ones load no further plug-in
    *("JPEG", "PNG", "GIF", "BMP", "PPM"),
    *("TIFF", "WEBP", "AVIF", "JPEG2000", "MPO", "DIB", "ICO", "QOI", "TGA", "PCX", "SGI", "DDS", "PSD"),
)
_NAMES = {
    **{"1": "black-and-white", "L": "greyscale", "LA": "greyscale with alpha", "P": "palette"},
    **{"I": "32-bit greyscale", "F": "floating-point greyscale"},
}
_GREY = {"1", "L", "LA", "La", "I", "F"}
_TRIPLES = {"RGB", "RGBA", "RGBX", "BGR", "BGRA", "BGRX"}
"""Layouts of palettes whose first three bytes of an entry are its colour."""
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that brings an image of this EXIF orientation upright."""

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image


class DamagedImage(Exception):
    """An image file that cannot be decoded.

    The message is one line without the path. It completes a sentence that begins with the path, such as "a.png: it is a
    directory".
    """


class Header(NamedTuple):
    """Properties of an image that its header tells.

    Attributes:
        mode: Description of the pixels, such as "RGB" or "16-bit greyscale".
        size: Height and width in pixels of the upright image.
        has_colour: Whether the image can hold colours; False for shades of grey.
    """

    mode: str
    size: tuple[int, int]
    has_colour: bool


def conversions(headers: Mapping[Header, int], size: Sequence[int], channels: int) -> str:
    """Return in words what is done to images that a model does not take as they are; "" where nothing is.

    Args:
        headers: Number of images by header.
        size: Height and width that the model takes.
        channels: Number of channels that the model takes.

    Example:
        >>> conversions({Header("RGB", (20, 30), True): 2, Header("greyscale", (8, 8), False): 1}, (8, 8), 3)
        '2 images are resized to 8x8 (height x width), and cropped to the centre; 1 image becomes RGB (greyscale 1)'
    """
    resized = sum(count for header, count in headers.items() if tuple(header.size) != tuple(size))
    mode = "RGB" if channels == 3 else "greyscale"
    converted: Counter[str] = Counter()
    for header, count in headers.items():
        if header.mode != mode:
            converted[header.mode] += count
    parts = []
    if resized:
        verb = counted(resized, "image is", "images are")
        parts.append(f"{verb} resized to {size[0]}x{size[1]} (height x width), and cropped to the centre")
    if converted:
        modes = ", ".join(f"{other} {count:,}" for other, count in converted.most_common())
        parts.append(f"{counted(converted.total(), 'image becomes', 'images become')} {mode} ({modes})")
    return "; ".join(parts)


@dataclass(frozen=True)
class Preprocessing:
    """How images are brought to one shape.

    Attributes:
        size: Height and width in pixels, 8 or more; None for the most common size of the files, see
            :func:`scnf.data.cache.resolve`.
        channels: Number of channels, 1 (greyscale) or 3 (RGB); None for 3 if any file has colour, else 1.
        background: Colour under transparent pixels, by its HTML name or as #rrggbb.

    Raises:
        InvalidArgument: a value is not one of these.

    Example:
        >>> Preprocessing(size=(32, 32), background="#ff8000").channels is None
        True
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    background: str = "white"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.size is not None:
            _check_size(self.size)
        if self.channels is not None:
            _check_channels(self.channels)
        _colour(self.background)


def image_header(path: Source) -> Header:
    """Read the header of an image file without decoding its pixels.

    Args:
        path: Path of the file; bytes of a file or an open Pillow image serve as well.

    Raises:
        DamagedImage: the file cannot be read, is no image, or has less than 8 pixels on a side or more than 100
            megapixels.

    Example:
        >>> image_header(Image.new("L", (20, 10)))
        Header(mode='greyscale', size=(10, 20), has_colour=False)
    """
    with _opened(path) as image:
        mode = "16-bit greyscale" if image.mode.startswith("I;16") else _NAMES.get(image.mode, image.mode)
        width, height = image.size
        if image.format != "TIFF" and _orientation(image) >= 5:  # Pillow gives the upright size of a TIFF
            width, height = height, width
        return Header(mode, (height, width), _has_colour(image))


def decode(source: Source, size: tuple[int, int], channels: int = 3, background: str = "white") -> np.ndarray:
    """Decode an image to an array of the given shape.

    The orientation of its EXIF data is applied, and of an animation the first frame is taken. Transparent pixels show
    the background. Colours become grey by the weights of ITU-R BT.601. 16-bit and 32-bit greyscale in 0..65535 is
    divided by 257 and rounded, and floating-point greyscale in [0, 1] is multiplied by 255; other ranges are refused.
    Pillow itself reduces 16-bit colours to their upper 8 bits.

    Pixels of an image that has this size are unchanged. Another image is resized with antialiasing (bicubic) until its
    shorter side fits, and the longer side is cropped to its centre. The decoder of a JPEG that is at least four times
    as large reduces it first, to twice the final size or more. Several threads may decode at the same time.

    Args:
        source: Path or bytes of a file, or a Pillow image, which is left as it is.
        size: Height H and width W of the array.
        channels: Number of channels C, 1 (greyscale) or 3 (RGB).
        background: Colour under transparent pixels, by its HTML name or as #rrggbb.

    Returns:
        Pixels, uint8 [C, H, W].

    Raises:
        InvalidArgument: size, channels or background is not valid.
        DamagedImage: the file cannot be read, is truncated or corrupted, or has less than 8 pixels on a side or more
            than 100 megapixels.

    Example:
        >>> half = Image.new("RGBA", (8, 8), (0, 0, 0, 51))  # black, of which 20 % covers the background
        >>> decode(half, (8, 8), background="red")[:, 0, 0]
        array([204,   0,   0], dtype=uint8)
    """
    _check_size(size)
    _check_channels(channels)
    colour = _colour(background)
    with _opened(source) as image:
        area = _reduce(image, max(size)) if image is not source else None
        image.load()  # turns a TIFF upright
        flat = _flattened(image, "L" if channels == 1 else "RGB", colour)
        orientation = _orientation(image)
        fitted = _fitted(flat, area or flat.size, size if orientation < 5 else size[::-1])
        if orientation in _TRANSPOSITIONS:  # last, when the image is small
            fitted = fitted.transpose(_TRANSPOSITIONS[orientation])
        pixels = np.asarray(fitted)
        return np.array(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), order="C")


# Arguments -------------------------------------------------------------------------------------------------------


def _check_size(size: tuple[int, int]) -> None:
    valid = isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not valid or min(size) < MIN_SIDE or math.prod(size) > MAX_PIXELS:
        raise InvalidArgument("size", f"must be (height, width), two whole numbers of {MIN_SIDE} or more, not {size!r}")


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise InvalidArgument("channels", f"must be 1 (greyscale) or 3 (RGB), not {channels!r}")


@cache
def _colour(background: str) -> tuple[int, ...]:
    """Return red, green and blue of an opaque colour."""
    try:
        colour: tuple[int, ...] = ImageColor.getrgb(background)
    except (ValueError, AttributeError, TypeError):
        colour = ()
    if len(colour) != 3:
        raise InvalidArgument(
            "background", f"must be the name of a colour, such as white, or #rrggbb, not {background!r}"
        )
    return colour


# Files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """Yield the image whose header has been read, and turn each error of the block into a DamagedImage."""
    try:
        if isinstance(source, Image.Image):
            _check_header(source)
            yield source
            return
        if not isinstance(source, bytes | bytearray | memoryview):
            require_file(Path(source))
        # An open file keeps Pillow from mapping it to memory, where a file that shrinks would kill the process.
        with io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else open(source, "rb") as file:
            if not file.read(1):
                raise DamagedImage("it is empty")
            with Image.open(file, formats=_formats()) as image:
                _check_header(image)
                yield image
    except DamagedImage:
        raise
    except Exception as error:  # damaged files make the decoders raise errors of every type
        raise DamagedImage(_reason(error)) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats of images that this version of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DamagedImage(
            f"its header says {height:,}x{width:,} pixels (height x width), more than {MAX_PIXELS // 10**6} megapixels"
        )
    if min(width, height) < MIN_SIDE:
        raise DamagedImage(f"it has {height}x{width} pixels (height x width), less than {MIN_SIDE} on a side")


def _reason(error: Exception) -> str:
    """Return what is wrong with a file, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"its header says more than {MAX_PIXELS // 10**6} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format, or its header is damaged"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.strerror.startswith("it is") else f"it cannot be read ({error.strerror})"
    if "truncated" in text.lower():
        return "it is truncated"
    return f"it is damaged ({text or type(error).__name__})"


# Pixels ----------------------------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 for an upright image and where the EXIF data are damaged."""
    try:
        # The method of the base class, since that of PNG would decode the pixels.
        orientation = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _has_colour(image: Image.Image) -> bool:
    if image.mode != "P" or image.palette is None:
        return image.mode not in _GREY and not image.mode.startswith("I;16")
    layout, entries = image.palette.getdata()
    if layout not in _TRIPLES:
        return True
    colours = np.frombuffer(bytes(entries), np.uint8)
    step = len(layout)
    colours = colours[: len(colours) // step * step].reshape(-1, step)
    return bool((colours[:, :1] != colours[:, 1:3]).any())


def _reduce(image: Image.Image, side: int) -> tuple[float, float] | None:
    """Let the decoder of a large JPEG reduce it, so that its shorter side keeps twice the final side or more.

    Returns:
        Width and height of the picture in reduced pixels, of which the last ones are filled in part; None where the
        image is not reduced.
    """
    shorter = min(image.size)
    if shorter < 4 * side:
        return None
    width, height = (math.ceil(length * 2 * side / shorter) for length in image.size)
    drafted = image.draft(None, (width, height))
    return drafted and drafted[1][2:]


def _flattened(image: Image.Image, mode: str, background: tuple[int, ...]) -> Image.Image:
    """Return the image in mode L or RGB, with transparent pixels over the background."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("La", "RGBa"):  # colours that are multiplied by alpha
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, background)
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of mode I;16, I or F in mode L, or in mode LA where one of its values is transparent."""
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN fails the comparison, too
            raise DamagedImage(f"its floating-point pixels lie in [{low:g}, {high:g}] instead of [0, 1]")
        return Image.fromarray((pixels * 255).round().astype(np.uint8))
    if low < 0 or high > 65535:
        raise DamagedImage(f"its 32-bit pixels lie in {low:.0f}..{high:.0f} instead of 0..65535")
    grey = Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    return grey


def _fitted(image: Image.Image, area: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """Resize the image until its shorter side fits, and crop the longer side to its centre, in one operation.

    Args:
        image: Image whose upper left part is the picture.
        area: Width and height of the picture.
        size: Height and width of the result.
    """
    height, width = size
    if image.size == area == (width, height):
        return image
    scale = min(area[0] / width, area[1] / height)
    left, top = (area[0] - scale * width) / 2, (area[1] - scale * height) / 2
    box = (left, top, min(left + scale * width, area[0]), min(top + scale * height, area[1]))
    return image.resize((width, height), Image.Resampling.BICUBIC, box)
