"""From a file to the array that the model takes: what each format and mode must give, worked out here in numpy.

Where JPEGs are compared, both sides come from the decoder at hand. Decoders differ from each other, with their SIMD, by
a grey level in single pixels: the means over a film that are allowed here are several times what that can make.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pictures import encode
from places import SHARED
from pneumo_edge import preprocess
from pneumo_edge.dicom.tags import MAX_PIXELS
from pneumo_edge.errors import ImageError
from pneumo_edge.preprocess import read_film

Array = npt.NDArray[Any]

SIDE = 96
"""Pictures of this size are not resampled for S = SIDE: the array must be the grey picture itself."""

ORIGINALS = SHARED / "data" / "originals"


def fields() -> tuple[Array, Array, Array]:
    """Three smooth pictures, (SIDE, SIDE), 0 to 255: as colours they make every hue."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    waves = (x, y, (1 - x + y) / 2)
    first, second, third = (np.rint(250 * w + 5 * np.sin(6 * y) * x).clip(0, 255).astype(np.uint8) for w in waves)
    return first, second, third


def luma(red: Array, green: Array, blue: Array) -> Array:
    """Grey as BT.601 and JPEG have it."""
    return 0.299 * red + 0.587 * green + 0.114 * blue


def own_range(values: Array) -> Array:
    wide = values.astype(np.float64)
    return np.asarray(255 * (wide - wide.min()) / (wide.max() - wide.min()))


def stack(*planes: Array) -> Array:
    return np.stack(planes, axis=-1)


R, G, B = fields()
ALPHA = G[::-1].copy()
DEEP = (R.astype(np.uint32) * 100 + G.astype(np.uint32) * 37 + 1000).astype(np.uint16)
PALETTE = np.array([(i, 255 - i, (7 * i) % 256) for i in range(256)], np.uint8)


def planes(mode: str, *values: Array) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(plane) for plane in values])


def palette_picture(indices: Array = R) -> Image.Image:
    picture = Image.fromarray(indices)
    picture.putpalette(PALETTE.tobytes())
    return picture


def palette_grey() -> Array:
    return luma(*PALETTE[R].astype(float).transpose(2, 0, 1))


def cmyk_grey() -> Array:
    key = 1 - ALPHA / 255
    return luma(*((255.0 - ink) * key for ink in (R, G, B)))


def grey_with_alpha() -> Array:
    return R * (ALPHA / 255.0)


rgb = stack(R, G, B)
rgba = stack(R, G, B, ALPHA)

# name -> file, expected grey levels, largest and mean difference allowed. One level of rounding where nothing is lost
# (two or three where alpha, ink or another colour space comes in between); what JPEG and WebP lose at quality 95 on a
# smooth picture otherwise.
EXACT, LOSSY = (1.01, 0.6), (14.0, 1.5)
CASES: dict[str, tuple[Callable[[], bytes], Callable[[], Array], tuple[float, float]]] = {
    "png-1": (lambda: encode(Image.fromarray(R > 127), "PNG"), lambda: (R > 127) * 255.0, EXACT),
    "png-L": (lambda: encode(Image.fromarray(R), "PNG"), lambda: R, (0, 0)),
    "png-LA": (lambda: encode(Image.fromarray(stack(R, ALPHA)), "PNG"), grey_with_alpha, (2.0, 0.7)),
    "png-P": (lambda: encode(palette_picture(), "PNG"), palette_grey, EXACT),
    "png-RGB": (lambda: encode(Image.fromarray(rgb), "PNG"), lambda: luma(R, G, B), EXACT),
    "png-RGBA": (
        lambda: encode(Image.fromarray(rgba), "PNG"),
        lambda: luma(R, G, B) * (ALPHA / 255.0),
        (2.0, 0.7),
    ),
    "png-I;16": (lambda: encode(Image.fromarray(DEEP), "PNG"), lambda: own_range(DEEP), (0.51, 0.3)),
    "png-L-transparent": (
        lambda: encode(Image.fromarray(R), "PNG", transparency=200),
        lambda: np.where(R == 200, 0, R),
        EXACT,
    ),
    "png-RGB-transparent": (
        lambda: encode(Image.fromarray(rgb), "PNG", transparency=tuple(map(int, rgb[5, 9]))),
        lambda: np.where((rgb == rgb[5, 9]).all(axis=-1), 0, luma(R, G, B)),
        EXACT,
    ),
    "png-P-transparent": (
        lambda: encode(palette_picture(), "PNG", transparency=bytes(range(256))),
        lambda: palette_grey() * (R / 255.0),
        (2.0, 0.7),
    ),
    "tiff-1": (lambda: encode(Image.fromarray(R > 127), "TIFF"), lambda: (R > 127) * 255.0, EXACT),
    "tiff-L": (lambda: encode(Image.fromarray(R), "TIFF"), lambda: R, (0, 0)),
    "tiff-L-lzw": (lambda: encode(Image.fromarray(R), "TIFF", compression="tiff_lzw"), lambda: R, (0, 0)),
    "tiff-L-deflate": (lambda: encode(Image.fromarray(R), "TIFF", compression="tiff_adobe_deflate"), lambda: R, (0, 0)),
    "tiff-L-packbits": (lambda: encode(Image.fromarray(R), "TIFF", compression="packbits"), lambda: R, (0, 0)),
    "tiff-L-jpeg": (lambda: encode(Image.fromarray(R), "TIFF", compression="jpeg", quality=95), lambda: R, LOSSY),
    "tiff-LA": (lambda: encode(Image.fromarray(stack(R, ALPHA)), "TIFF"), grey_with_alpha, (2.0, 0.7)),
    "tiff-P": (lambda: encode(palette_picture(), "TIFF"), palette_grey, EXACT),
    "tiff-RGB": (lambda: encode(Image.fromarray(rgb), "TIFF"), lambda: luma(R, G, B), EXACT),
    "tiff-RGBA": (
        lambda: encode(Image.fromarray(rgba), "TIFF"),
        lambda: luma(R, G, B) * (ALPHA / 255.0),
        (2.0, 0.7),
    ),
    "tiff-CMYK": (lambda: encode(planes("CMYK", R, G, B, ALPHA), "TIFF"), cmyk_grey, (2.0, 0.8)),
    "tiff-YCbCr": (
        lambda: encode(Image.fromarray(rgb).convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        lambda: luma(R, G, B),
        (3.0, 1.2),
    ),
    "tiff-I;16": (lambda: encode(Image.fromarray(DEEP), "TIFF"), lambda: own_range(DEEP), (0.51, 0.3)),
    "tiff-I;16-lzw": (
        lambda: encode(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
        lambda: own_range(DEEP),
        (0.51, 0.3),
    ),
    "tiff-I;16B": (lambda: encode(Image.fromarray(DEEP.astype(">u2")), "TIFF"), lambda: own_range(DEEP), (0.51, 0.3)),
    "tiff-I": (
        lambda: encode(Image.fromarray(DEEP.astype(np.int32) * 9000 - 500), "TIFF"),
        lambda: own_range(DEEP),
        (0.51, 0.3),
    ),
    "tiff-F": (
        lambda: encode(Image.fromarray(DEEP.astype(np.float32) / 777 - 3), "TIFF"),
        lambda: own_range(DEEP),
        (0.51, 0.3),
    ),
    "bmp-1": (lambda: encode(Image.fromarray(R > 127), "BMP"), lambda: (R > 127) * 255.0, EXACT),
    "bmp-L": (lambda: encode(Image.fromarray(R), "BMP"), lambda: R, (0, 0)),
    "bmp-P": (lambda: encode(palette_picture(), "BMP"), palette_grey, EXACT),
    "bmp-RGB": (lambda: encode(Image.fromarray(rgb), "BMP"), lambda: luma(R, G, B), EXACT),
    "gif-1": (lambda: encode(Image.fromarray(R > 127), "GIF"), lambda: (R > 127) * 255.0, EXACT),
    "gif-L": (lambda: encode(Image.fromarray(R), "GIF"), lambda: R, EXACT),
    "gif-P": (lambda: encode(palette_picture(), "GIF"), palette_grey, EXACT),
    "gif-P-transparent": (
        lambda: encode(palette_picture(), "GIF", transparency=200),
        lambda: np.where(R == 200, 0, palette_grey()),
        EXACT,
    ),
    "webp-L": (lambda: encode(Image.fromarray(R), "WEBP", lossless=True), lambda: R, EXACT),
    "webp-RGB": (lambda: encode(Image.fromarray(rgb), "WEBP", lossless=True), lambda: luma(R, G, B), EXACT),
    "webp-RGB-lossy": (lambda: encode(Image.fromarray(rgb), "WEBP", quality=95), lambda: luma(R, G, B), LOSSY),
    "webp-RGBA": (
        lambda: encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
        lambda: luma(R, G, B) * (ALPHA / 255.0),
        (2.0, 0.7),
    ),
    "jpeg-L": (lambda: encode(Image.fromarray(R), "JPEG", quality=95), lambda: R, LOSSY),
    "jpeg-RGB": (lambda: encode(Image.fromarray(rgb), "JPEG", quality=95), lambda: luma(R, G, B), LOSSY),
    "jpeg-RGB-progressive": (
        lambda: encode(Image.fromarray(rgb), "JPEG", quality=95, progressive=True),
        lambda: luma(R, G, B),
        LOSSY,
    ),
    # Stored as RGB, not as YCbCr: rare, and libjpeg cannot turn it into YCbCr.
    "jpeg-RGB-stored-as-RGB": (
        lambda: encode(Image.fromarray(rgb), "JPEG", quality=95, keep_rgb=True),
        lambda: luma(R, G, B),
        LOSSY,
    ),
    "jpeg-CMYK": (lambda: encode(planes("CMYK", R, G, B, ALPHA), "JPEG", quality=95), cmyk_grey, LOSSY),
}


@pytest.mark.parametrize("case", CASES)
def test_every_format_and_mode_gives_the_grey_picture(case: str) -> None:
    make, expected, (largest, mean) = CASES[case]
    film = read_film(make(), SIDE)
    assert film.pixels.shape == (SIDE, SIDE, 1)
    assert film.pixels.dtype == np.uint8
    assert film.pixels.flags.c_contiguous
    assert (film.width, film.height) == (SIDE, SIDE)
    assert film.warnings == ()
    away = np.abs(film.pixels[:, :, 0].astype(float) - expected())
    assert away.max() <= largest
    assert away.mean() <= mean


@pytest.mark.parametrize("case", CASES)
def test_only_colour_has_chroma(case: str) -> None:
    film = read_film(CASES[case][0](), SIDE)
    coloured = any(mode in case for mode in ("RGB", "-P", "CMYK", "YCbCr"))
    assert film.chroma > 20 if coloured else film.chroma < 1


def test_alpha_shows_black_whatever_colour_hides_under_it() -> None:
    white_but_transparent = np.full((40, 40, 4), 255, np.uint8)
    white_but_transparent[:, 20:, 3] = 0
    film = read_film(encode(Image.fromarray(white_but_transparent), "PNG"), 40)
    assert (film.pixels[:, :20] == 255).all()
    assert (film.pixels[:, 20:] == 0).all()


# ------------------------------------------------------------------------------------------------- squashing


def cubic_weights(old: int, new: int) -> Array:
    """(new, old): Keys' cubic with a = -0.5, widened by the scale where the picture shrinks (antialiasing)."""
    scale = max(old / new, 1.0)
    centre = (np.arange(new)[:, np.newaxis] + 0.5) * old / new
    t = np.abs((np.arange(old) + 0.5 - centre) / scale)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("height", "width"), [(120, 160), (300, 90), (17, 33), (1, 5), (1, 1)])
def test_squashed_to_a_square_by_an_antialiased_cubic(height: int, width: int) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (height, width)).astype(np.uint8)
    film = read_film(encode(Image.fromarray(grey), "PNG"), 48)
    narrow = np.rint(grey @ cubic_weights(width, 48).T).clip(0, 255)
    expected = np.rint(cubic_weights(height, 48) @ narrow).clip(0, 255)
    assert film.pixels.shape == (48, 48, 1)
    assert film.pixels.flags.c_contiguous
    assert (film.width, film.height) == (width, height)
    assert np.abs(film.pixels[:, :, 0] - expected).max() <= 2
    assert np.abs(film.pixels[:, :, 0] - expected).mean() <= 0.5


def test_path_text_and_bytes_give_the_same_array(tmp_path: Path, pixels: Array) -> None:
    path = tmp_path / "film.jpg"
    path.write_bytes(encode(Image.fromarray(pixels), "JPEG", quality=80))
    films = [read_film(source, 64) for source in (path, str(path), path.read_bytes())]
    for film in films:
        assert film.pixels.tobytes() == films[0].pixels.tobytes()
        assert (film.width, film.height, film.chroma, film.warnings) == (160, 120, 0.0, ())


def full_decode(data: bytes, size: int) -> Array:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("L").resize((size, size), Image.Resampling.BICUBIC), float)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_large_jpeg_decoded_smaller_differs_by_half_a_level_at_most(mode: str, orientation: int) -> None:
    # The width is no multiple of the scale, 1/4: the last column of the smaller picture covers a part of a pixel only.
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:1381, 0:1801]
    film = 110 + 70 * np.sin(x / 110) * np.cos(y / 70) + 20 * np.sin(x / 15 + y / 23) + random.normal(0, 4, x.shape)
    picture = Image.fromarray(film.clip(0, 255).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, "JPEG", quality=90, exif=exif)
    for size in (160, 224):
        read = read_film(data, size)
        whole = full_decode(data, size) if orientation == 1 else np.rot90(full_decode(data, size), -1)
        assert (read.width, read.height) == ((1801, 1381) if orientation == 1 else (1381, 1801))
        assert np.abs(read.pixels[:, :, 0] - whole).mean() <= 0.3


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="the original films are not here")
def test_real_films_decoded_smaller_differ_by_half_a_level_at_most() -> None:
    for path in sorted(ORIGINALS.rglob("*.jpeg"))[::4]:
        data = path.read_bytes()
        for size in (160, 224):
            assert np.abs(read_film(data, size).pixels[:, :, 0] - full_decode(data, size)).mean() <= 0.5, path.name


def test_many_threads_get_the_same_array(pixels: Array) -> None:
    files = [encode(Image.fromarray(pixels), kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")]
    alone = [read_film(data, 64).pixels.tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: read_film(files[i % 6], 64).pixels.tobytes(), range(120)))
    assert together == alone * 20


# ---------------------------------------------------------------------------------------------- orientation, pages

# What stands in the file if the film was held in each of the eight ways; index = EXIF orientation.
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.T,
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).T,
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=["png", "jpeg", "webp", "tiff", "tiff-lzw"],
)
def test_exif_orientation_brings_the_film_upright_once(
    kind: str, options: dict[str, Any], orientation: int, pixels: Array
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels)))
    film = read_film(encode(stored, kind, exif=exif, **options), 64)
    upright = read_film(encode(Image.fromarray(pixels), "PNG"), 64)
    assert np.abs(film.pixels.astype(int) - upright.pixels).max() <= 4
    assert (film.width, film.height) == (160, 120)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int, pixels: Array) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    film = read_film(encode(Image.fromarray(pixels), "PNG", exif=exif), 64)
    assert (film.pixels == read_film(encode(Image.fromarray(pixels), "PNG"), 64).pixels).all()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_of_several_pages_the_first_is_read_and_said_so(kind: str, pixels: Array) -> None:
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    options = {"lossless": True} if kind == "WEBP" else {}
    film = read_film(encode(first, kind, save_all=True, append_images=[second], **options), 64)
    alone = read_film(encode(first, kind, **options), 64)
    assert film.warnings == ("the file holds several pictures; only the first was read",)
    assert alone.warnings == ()
    assert np.abs(film.pixels.astype(int) - alone.pixels).max() <= 1


def test_a_garbled_second_page_does_not_spoil_the_first(pixels: Array) -> None:
    first = encode(Image.fromarray(pixels), "GIF")
    garbled = first[:-1] + b"!\xf9\x04\x00\x0a\x00\x00\x00,\xff\xff\xff\xff\xff\xff\xff\xff\xff" + b"\xff" * 40
    assert (read_film(garbled, 64).pixels == read_film(first, 64).pixels).all()


# --------------------------------------------------------------------------------------------------- pixel ranges


def test_sixteen_bits_fill_the_range_whatever_part_they_use() -> None:
    low = np.tile(np.linspace(1000, 1255, SIDE).astype(np.uint16), (SIDE, 1))
    film = read_film(encode(Image.fromarray(low), "PNG"), SIDE)
    assert film.pixels.min() == 0
    assert film.pixels.max() == 255
    assert np.abs(film.pixels[0, :, 0] - own_range(low)[0]).max() <= 0.51


def test_sixteen_bits_of_one_value_are_black() -> None:
    film = read_film(encode(Image.fromarray(np.full((40, 50), 4095, np.uint16)), "TIFF"), 32)
    assert (film.pixels == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_numbers_are_refused(value: float) -> None:
    levels = np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)
    levels[7, 9] = value
    with pytest.raises(ImageError, match=r"the image has pixels that are not numbers: export it again"):
        read_film(encode(Image.fromarray(levels), "TIFF"), 32)


def test_extreme_floats_neither_overflow_nor_warn() -> None:
    levels = np.tile(np.linspace(-3e38, 3e38, SIDE).astype(np.float32), (SIDE, 1))
    film = read_film(encode(Image.fromarray(levels), "TIFF"), SIDE)
    assert np.abs(film.pixels[0, :, 0] - own_range(levels)[0]).max() <= 0.51
    tiny = np.tile(np.linspace(0, 1e-44, SIDE).astype(np.float32), (SIDE, 1))
    assert read_film(encode(Image.fromarray(tiny), "TIFF"), SIDE).pixels.max() == 255


# ----------------------------------------------------------------------------------------------- what is refused


def test_what_cannot_be_read_is_one_sentence_with_name_and_remedy(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("this is no picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    sentences: dict[str | Path, str] = {
        tmp_path / "none.png": "none.png does not exist: check the path",
        tmp_path: "is a folder, not an image: give the files in it",
        text: "text.png is not an image that can be read here: use PNG, JPEG, WebP, TIFF, BMP or DICOM",
        empty: "empty.png is empty: copy it again from where it came",
        loop: "loop.png cannot be opened: Too many levels of symbolic links",
        "nul\0byte.png": "cannot be opened: embedded null byte",
    }
    for source, sentence in sentences.items():
        with pytest.raises(ImageError) as caught:
            read_film(source, 32)
        assert str(caught.value).endswith(sentence)


def test_bytes_bear_the_name_they_are_given() -> None:
    with pytest.raises(ImageError, match=r"^the third film is empty"):
        read_film(b"", 32, "the third film")


def test_a_file_larger_than_any_film_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "MAX_BYTES", 1000)
    path = tmp_path / "large.png"
    path.write_bytes(encode(Image.fromarray(R), "BMP"))
    for source in (path, path.read_bytes(), Path("/dev/zero")):
        if source != Path("/dev/zero") or source.exists():
            with pytest.raises(ImageError, match=r"is larger than 0 MB, which no film is"):
                read_film(source, 32)


def test_formats_beyond_the_list_are_not_tried() -> None:
    # Pillow would hand EPS to Ghostscript; PPM stands for the dozens that no film comes in.
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"
    for data in (eps, encode(Image.fromarray(R), "PPM")):
        with pytest.raises(ImageError, match="is not an image that can be read here"):
            read_film(data, 32)


def test_just_more_pixels_than_allowed_are_refused_and_just_fewer_are_read() -> None:
    width = 16000
    exactly = Image.new("1", (width, MAX_PIXELS // width))
    assert read_film(encode(exactly, "PNG"), 32).pixels.shape == (32, 32, 1)
    with pytest.raises(ImageError, match="claims 16000 x 4001 pixels, more than any X-ray detector has"):
        read_film(encode(Image.new("1", (width, MAX_PIXELS // width + 1)), "PNG"), 32)


# --------------------------------------------------------------------------------------------- Pillow's remarks


def with_odd_exif(pixels: Array) -> bytes:
    """A good film whose EXIF block is cut off: Pillow warns of it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "a description that is long enough to lie outside of its tag"
    return encode(Image.fromarray(pixels), "JPEG", quality=95, exif=exif.tobytes()[:-40])


def test_a_remark_of_pillow_does_not_turn_a_good_film_into_an_error(pixels: Array) -> None:
    data = with_odd_exif(pixels)
    with pytest.warns(UserWarning, match="Tag data larger than file|Truncated File Read"):
        Image.open(io.BytesIO(data)).close()
    expected = read_film(encode(Image.fromarray(pixels), "JPEG", quality=95), 64)
    for _ in range(2):
        # Warnings are errors in these tests anyway; a filter that is set after the first film must not win either.
        warnings.filterwarnings("error", category=UserWarning)
        assert (read_film(data, 64).pixels == expected.pixels).all()


def test_remarks_of_others_are_left_alone(pixels: Array) -> None:
    read_film(encode(Image.fromarray(pixels), "PNG"), 32)
    with pytest.warns(UserWarning, match="somebody else's"):
        warnings.warn("somebody else's", stacklevel=1)


def test_reading_in_many_threads_leaves_the_warning_filters_as_they_are(pixels: Array) -> None:
    data = with_odd_exif(pixels)
    read_film(data, 32)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_film(data, 32), range(64)))
    assert list(warnings.filters) == before
