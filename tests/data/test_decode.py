"""Image files of every mode become uint8 arrays of one shape, and damaged files say what is wrong with them."""

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from scnf.data.decode import MAX_PIXELS, DamagedImage, Header, Preprocessing, decode, image_header
from scnf.errors import InvalidArgument


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Return colours that change slowly, uint8 [height, width, 3]."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(5 * x + 2 * y), np.cos(4 * y - x), np.sin(6 * x * y + 1)]
    return np.stack([127.5 + 120 * wave for wave in waves], 2).round().astype(np.uint8)


def chw(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


# Modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "tga", "webp"])
def test_rgb_file_of_the_size_is_unchanged(suffix: str, tmp_path: Path) -> None:
    pixels = noise(10, 12, 3)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    result = decode(path, (10, 12))
    assert result.dtype == np.uint8 and result.flags.c_contiguous and result.flags.writeable
    assert np.array_equal(result, chw(pixels))
    assert image_header(path) == Header("RGB", (10, 12), True)


def test_jpeg_of_the_size_has_the_pixels_of_its_decoder(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(smooth(32, 32)).save(path, quality=90)
    with Image.open(path) as image:
        assert np.array_equal(decode(path, (32, 32)), chw(np.asarray(image)))


def test_greyscale_file_keeps_its_values_in_one_and_three_channels(tmp_path: Path) -> None:
    pixels = noise(9, 8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    assert np.array_equal(decode(tmp_path / "grey.png", (9, 8), channels=1), pixels[None])
    assert np.array_equal(decode(tmp_path / "grey.png", (9, 8), channels=3), np.stack([pixels] * 3))
    assert image_header(tmp_path / "grey.png") == Header("greyscale", (9, 8), False)


def test_colours_become_grey_by_their_luma(tmp_path: Path) -> None:
    pixels = noise(8, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(tmp_path / "colour.png", (8, 8), channels=1)[0] - luma).max() <= 0.51


def test_black_and_white_file_becomes_0_and_255(tmp_path: Path) -> None:
    pixels = noise(8, 9) > 127
    Image.fromarray(pixels).save(tmp_path / "bits.png")
    assert np.array_equal(decode(tmp_path / "bits.png", (8, 9), channels=1)[0], pixels * 255)
    assert image_header(tmp_path / "bits.png") == Header("black-and-white", (8, 9), False)


def test_palette_file_has_the_colours_of_its_palette(tmp_path: Path) -> None:
    palette = noise(256, 3, seed=1)
    indices = noise(8, 8)
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / "palette.png")
    assert np.array_equal(decode(tmp_path / "palette.png", (8, 8)), chw(palette[indices]))
    assert image_header(tmp_path / "palette.png") == Header("palette", (8, 8), True)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_palette_of_greys_has_no_colour(suffix: str, tmp_path: Path) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([value for grey in (9, 200, 77) for value in (grey,) * 3])
    image.save(tmp_path / f"greys.{suffix}")
    assert not image_header(tmp_path / f"greys.{suffix}").has_colour
    assert (decode(tmp_path / f"greys.{suffix}", (8, 8), channels=1) == 9).all()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (250, 20, 40)).convert(mode)
    image.save(tmp_path / "image.tif")
    assert np.abs(decode(tmp_path / "image.tif", (8, 8))[:, 0, 0].astype(int) - (250, 20, 40)).max() <= 2
    assert image_header(tmp_path / "image.tif") == Header(mode, (8, 8), True)


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = decode(tmp_path / "red.jpg", (16, 16))[:, 5, 5]
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_linearly(suffix: str, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    assert np.array_equal(decode(path, (8, 8), channels=1)[0], (values / 257).round())
    assert np.array_equal(decode(path, (8, 8), channels=3)[2], (values / 257).round())
    assert image_header(path).has_colour is False
    assert image_header(path).mode in ("16-bit greyscale", "32-bit greyscale")


@pytest.mark.parametrize("scale", [257, 255.0 / 65535, 1e9, -1])
def test_wide_values_in_16_bits_are_scaled_and_others_are_refused(scale: float, tmp_path: Path) -> None:
    values = (noise(8, 8).astype(np.int64) * scale).round().clip(-(2**31), 2**31 - 1).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "wide.tif")
    if values.min() >= 0 and values.max() <= 65535:
        assert np.array_equal(decode(tmp_path / "wide.tif", (8, 8), channels=1)[0], (values / 257).round())
    else:
        with pytest.raises(DamagedImage, match=r"^its 32-bit pixels lie in .* instead of 0..65535$"):
            decode(tmp_path / "wide.tif", (8, 8), channels=1)


def test_floats_in_the_unit_interval_are_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert np.array_equal(decode(tmp_path / "float.tif", (8, 8), channels=1)[0], (values * 255).round())


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.5, 255])
def test_other_floats_are_refused(value: float, tmp_path: Path) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[3, 3] = value
    Image.fromarray(values).save(tmp_path / "float.tif")
    with pytest.raises(DamagedImage, match=r"^its floating-point pixels lie in .* instead of \[0, 1\]$"):
        decode(tmp_path / "float.tif", (8, 8))


# Transparency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("background", "colour"), [("white", (255, 255, 255)), ("#ff8000", (255, 128, 0))])
def test_transparent_pixels_show_the_background(background: str, colour: tuple[int, ...], tmp_path: Path) -> None:
    pixels = noise(8, 12, 4)
    pixels[:, :4, 3], pixels[:, 4:8, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    result = decode(tmp_path / "alpha.png", (8, 12), background=background).transpose(1, 2, 0)
    alpha = pixels[..., 3:] / 255
    blended = alpha * pixels[..., :3] + (1 - alpha) * colour
    assert (result[:, :4] == colour).all()
    assert np.array_equal(result[:, 4:8], pixels[:, 4:8, :3])
    assert np.abs(result - blended).max() <= 1
    assert image_header(tmp_path / "alpha.png") == Header("RGBA", (8, 12), True)


def test_greyscale_with_alpha_shows_the_background(tmp_path: Path) -> None:
    pixels = noise(8, 8, 2)
    pixels[:, :4, 1], pixels[:, 4:, 1] = 0, 255
    Image.fromarray(pixels, "LA").save(tmp_path / "la.png")
    result = decode(tmp_path / "la.png", (8, 8), channels=1, background="black")[0]
    assert (result[:, :4] == 0).all() and np.array_equal(result[:, 4:], pixels[:, 4:, 0])
    assert image_header(tmp_path / "la.png") == Header("greyscale with alpha", (8, 8), False)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1", "I;16"])
def test_transparent_value_shows_the_background(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (8, 8), 0)
    image.paste(1, (0, 0, 4, 8)) if mode == "P" else None
    if mode == "P":
        image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "key.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    result = decode(tmp_path / "key.png", (8, 8), background="lime")
    assert (result[:, :, 4:] == np.array([0, 255, 0])[:, None, None]).all()
    if mode == "P":
        assert (result[:, :, :4] == np.array([200, 100, 50])[:, None, None]).all()


def test_transparency_of_each_palette_entry_is_applied(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.paste(1, (0, 0, 4, 8))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "key.png", transparency=bytes([51, 255]))
    result = decode(tmp_path / "key.png", (8, 8), background="red")
    assert result[:, 0, 7].tolist() == [204, 0, 0] and result[:, 0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX", "HSV", "LAB"])
def test_modes_that_only_memory_holds_are_decoded(mode: str) -> None:
    grey = Image.new("RGBA", (8, 8), (120, 120, 120, 255))
    image = {"La": lambda: grey.convert("LA").convert("La"), "LAB": lambda: grey.convert("RGB").convert("LAB")}.get(
        mode, lambda: grey.convert("RGB" if mode in ("HSV", "RGBX") else "RGBA").convert(mode)
    )()
    assert image.mode == mode
    assert np.abs(decode(image, (8, 8)).astype(int) - 120).max() <= 3


# Orientation and frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(smooth(16, 24))
    lossless = {"png": {}, "jpg": {"quality": 100, "subsampling": 0}, "tif": {}, "webp": {"lossless": True}}[suffix]
    image.save(tmp_path / f"turned.{suffix}", exif=exif, **lossless)
    turns = {  # from the definition: which side of the picture the first row and column are
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    upright = chw(turns[orientation](smooth(16, 24)))
    size = (24, 16) if orientation >= 5 else (16, 24)
    result = decode(tmp_path / f"turned.{suffix}", size).astype(int)
    assert np.abs(result - upright).max() <= (3 if suffix == "jpg" else 0)
    assert image_header(tmp_path / f"turned.{suffix}").size == size


@pytest.mark.parametrize(
    "exif",
    [b"MM\0*\0\0\0\x08\0\x05broken", *(b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0%c\0\0\0\0\0\0" % k for k in (0, 9))],
    ids=["cut", "orientation 0", "orientation 9"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_image_as_it_is(exif: bytes, tmp_path: Path) -> None:
    Image.fromarray(noise(8, 12, 3)).save(tmp_path / "exif.png", exif=b"Exif\0\0" + exif)
    assert np.array_equal(decode(tmp_path / "exif.png", (8, 12)), chw(noise(8, 12, 3)))
    assert image_header(tmp_path / "exif.png").size == (8, 12)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animation_gives_its_first_frame(suffix: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"moving.{suffix}", save_all=True, append_images=[second], **options)
    assert decode(tmp_path / f"moving.{suffix}", (8, 8))[:, 4, 4].tolist() == [255, 0, 0]


# Size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (24, 24)])
def test_other_size_is_resized_and_cropped_to_the_centre(height: int, width: int, tmp_path: Path) -> None:
    image = Image.fromarray(smooth(height, width))
    image.save(tmp_path / "image.png")
    fitted = ImageOps.fit(image, (8, 8), Image.Resampling.BICUBIC)
    assert np.abs(decode(tmp_path / "image.png", (8, 8)).astype(int) - chw(np.asarray(fitted))).max() <= 1


def test_wide_image_keeps_its_centre_alone(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (decode(tmp_path / "wide.png", (8, 8)) == 200).all()


def test_small_image_is_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (8, 10), (1, 2, 3)).save(tmp_path / "small.png")
    assert (decode(tmp_path / "small.png", (32, 16)) == np.array([1, 2, 3])[:, None, None]).all()


def test_reduction_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert np.abs(decode(tmp_path / "stripes.png", (8, 8), channels=1).astype(int) - 127).max() <= 8


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("height", "width"), [(400, 600), (601, 401), (999, 777), (1000, 130)])
def test_large_jpeg_is_as_good_as_one_decoded_in_full(
    height: int, width: int, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(height, width)).save(tmp_path / "large.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "large.jpg") as image:
        full = ImageOps.exif_transpose(image)
    result = decode(tmp_path / "large.jpg", (32, 32)).astype(int)
    assert np.abs(result - decode(full, (32, 32))).max() <= 3
    assert np.abs(result - decode(full, (32, 32))).mean() < 1


@pytest.mark.parametrize("size", [(7, 8), (8, 8, 3), (8.0, 8.0), [8, 8], "88", (10**5, 10**5)])
def test_size_must_be_two_whole_numbers_of_8_or_more(size: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^size must be \(height, width\), two whole numbers of 8 or more"):
        decode(Image.new("L", (8, 8)), size)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"^size must be"):
        Preprocessing(size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [0, 2, 4, "RGB"])
def test_channels_must_be_1_or_3(channels: int) -> None:
    with pytest.raises(InvalidArgument, match=r"^channels must be 1 .* or 3 "):
        Preprocessing(channels=channels)


@pytest.mark.parametrize("background", ["", "transparent white", "#12345", "#11223344", "rgba(1,2,3,4)"])
def test_background_must_be_an_opaque_colour(background: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^background must be the name of a colour, such as white, or #rrggbb"):
        Preprocessing(background=background)


# Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "ppm", "webp", "tga", "jp2"])
def test_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(40, 40, 3)).save(path)
    data = path.read_bytes()
    for length in (len(data) // 2, len(data) * 9 // 10):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedImage) as caught:
            decode(path, (40, 40))
        assert "\n" not in str(caught.value) and str(path) not in str(caught.value)


def test_truncated_file_says_so(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "image.png")
    (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:1000])
    with pytest.raises(DamagedImage, match=r"^it is truncated$"):
        decode(tmp_path / "image.png", (40, 40))
    assert image_header(tmp_path / "image.png").size == (40, 40)  # the header is intact


def test_truncated_png_is_refused_or_whole(tmp_path: Path) -> None:
    pixels = noise(8, 8, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    for length in range(len(data)):
        try:
            assert np.array_equal(decode(data[:length], (8, 8)), chw(pixels))
        except DamagedImage:
            continue


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_random_damage_raises_nothing_else(suffix: str) -> None:
    file = io.BytesIO()
    Image.fromarray(smooth(16, 16)).save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(file.getvalue())
        for place in random.integers(0, min(len(data), 200), 3):
            data[place] = random.integers(256)
        try:
            assert decode(data, (16, 16)).shape == (3, 16, 16)
        except DamagedImage as error:
            assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"plain text", "it is not an image of a known format, or its header is damaged"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n",
            "it is not an image of a known format",
        ),
    ],
    ids=["empty", "text", "eps"],
)
def test_other_content_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(content)
    for function in (image_header, lambda path: decode(path, (8, 8))):
        with pytest.raises(DamagedImage, match=f"^{reason}"):
            function(tmp_path / "image.png")


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("pixels", [MAX_PIXELS + 10_000, 2 * MAX_PIXELS, 1000 * MAX_PIXELS])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_image_is_refused_by_its_header(pixels: int) -> None:
    data = png_header(10_000, pixels // 10_000)
    for function in (image_header, lambda data: decode(data, (8, 8))):
        with pytest.raises(DamagedImage, match=r"^its header says .*more than 100 megapixels$"):
            function(data)


@pytest.mark.filterwarnings("error")
def test_warning_of_a_huge_image_is_a_damage_where_warnings_are_errors() -> None:
    with pytest.raises(DamagedImage, match="more than 100 megapixels"):
        decode(png_header(11_000, 10_000), (8, 8))


@pytest.mark.parametrize("size", [(7, 8), (100, 5), (1, 1)])
def test_small_image_is_refused(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "small.png")
    reason = rf"^it has {size[1]}x{size[0]} pixels \(height x width\), less than 8 on a side$"
    for function in (image_header, lambda path: decode(path, (8, 8))):
        with pytest.raises(DamagedImage, match=reason):
            function(tmp_path / "small.png")


def test_vanished_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedImage, match=r"^it does not exist$"):
        decode(tmp_path / "vanished.png", (8, 8))


def test_files_that_are_not_regular_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, reason in {"pipe": "it is a FIFO", "folder": "it is a directory", "loop": "it cannot be read"}.items():
        for function in (image_header, lambda path: decode(path, (8, 8))):
            with pytest.raises(DamagedImage, match=f"^{reason}"):
                function(tmp_path / f"{name}.png")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    if os.geteuid() == 0:  # the superuser reads all files
        monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    else:
        (tmp_path / "image.png").chmod(0)
    with pytest.raises(DamagedImage, match=r"^it cannot be read \(Permission denied\)$"):
        decode(tmp_path / "image.png", (8, 8))


# Sources and threads ---------------------------------------------------------------------------------------------


def test_bytes_and_images_are_decoded_like_files(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 4)).save(tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    image = Image.fromarray(noise(8, 8, 4))
    for source in (str(tmp_path / "image.png"), data, bytearray(data), memoryview(data), image):
        assert np.array_equal(decode(source, (8, 8)), decode(tmp_path / "image.png", (8, 8)))
    assert image.mode == "RGBA" and np.array_equal(np.asarray(image), noise(8, 8, 4))


def test_open_jpeg_of_the_caller_keeps_its_size(tmp_path: Path) -> None:
    Image.fromarray(smooth(200, 200)).save(tmp_path / "image.jpg")
    with Image.open(tmp_path / "image.jpg") as image:
        decode(image, (8, 8))
        assert image.size == (200, 200) and image.getpixel((0, 0)) is not None


def test_threads_decode_at_the_same_time(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.{suffix}" for k in range(20) for suffix in ("png", "jpg", "gif")]
    for k, file in enumerate(files):
        Image.fromarray(smooth(20 + k, 30)).save(file)
    alone = [decode(file, (16, 16)) for file in files]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda file: decode(file, (16, 16)), files * 3))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 3, together, strict=True))
