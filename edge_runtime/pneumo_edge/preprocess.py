"""From an image file to the one array that the model takes. Training, export and inference all call this.

The model's input is a grey film squashed to a square, 0 = black as an X-ray is viewed (air dark, bone light).
Normalisation is inside the graph: a runtime cannot normalise wrongly what it does not normalise.
"""

from __future__ import annotations

import importlib
import io
import logging
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from pneumo_edge.dicom import read_deep_dicom, read_dicom
from pneumo_edge.dicom.tags import MAX_PIXELS, is_dicom
from pneumo_edge.errors import ImageError, one_line
from pneumo_edge.levels import DeepFilm

if TYPE_CHECKING:
    from pneumo_edge.deep import Deep

_T = TypeVar("_T")

Source: TypeAlias = str | Path | bytes
Pixels: TypeAlias = npt.NDArray[np.uint8]

VERSION = 2
"""Changes whenever the same file would give another array: caches of prepared films carry it.

1: the range of a deep film goes up to its lightest pixel. 2: it leaves out a few outlying pixels; 8-bit films are as in
1."""

MAX_BYTES = 512 * 1024 * 1024
"""Largest size of a file: `MAX_PIXELS` in 16-bit RGB take 384 MB. What goes on after that (/dev/zero) is no picture."""

MAX_SCANNED_PIXELS = 20_000_000_000
"""Most pixels in all scans of a progressive JPEG, which take about 5 seconds. libjpeg goes over the whole picture for
each scan, and a scan can be 11 bytes long: a file of one megabyte could take half an hour. A film of 20 million pixels
in 10 scans is a hundredth of the limit."""

_TIFF = b"II[*+]\0|MM\0[*+]|MM[*]\0|II\0[*]"
_JPEG = b"\xff\xd8\xff"

_PLUGINS = (
    (b"\x89PNG\r\n\x1a\n", "PngImagePlugin", "PngImageFile"),
    (_JPEG, "JpegImagePlugin", "jpeg_factory"),
    (b"RIFF.{4}WEBP", "WebPImagePlugin", "WebPImageFile"),
    (_TIFF, "TiffImagePlugin", "TiffImageFile"),
    (b"BM", "BmpImagePlugin", "BmpImageFile"),
    (b"GIF8[79]a", "GifImagePlugin", "GifImageFile"),
)
"""First bytes of a file -> module and class of Pillow that reads it. `Image.open` imports five modules before it looks
at the file, and all forty for WebP and TIFF: up to 0.1 s for the first film. It would also try EPS (a program for
Ghostscript) and dozens of formats that no X-ray comes in."""

_JPEGS = ("JPEG", "MPO")

_SEVERAL = "the file holds several pictures; only the first was read"

_TURNED_BY = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
"""Entries of `Image.info` that can hold an orientation; in a TIFF it is a tag. To ask a picture without them would
import Pillow's TIFF reader, which takes a hundredth of a second."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> operation that turns the picture upright; from 5 on, width and height change places."""

_PILLOW_REMARKS = ("ignore", None, Warning, re.compile("PIL"), 0)
"""What `warnings.filterwarnings("ignore", module="PIL")` puts into `warnings.filters`."""

# Pillow logs what it then raises as well. Without a handler the log would be printed.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Film:
    """A picture as the model sees it, and what was noticed while it was read."""

    pixels: Pixels
    """uint8, shape (S, S, 1), 0 = black."""
    width: int
    """Width of the upright picture in the file, in pixels."""
    height: int
    """Height of the upright picture in the file, in pixels."""
    chroma: float
    """Mean distance of the colours from grey, 0 to 255; 0 for a grey picture."""
    warnings: tuple[str, ...]
    """One English sentence for each thing that was odd and does not matter to the verdict."""
    doubts: tuple[str, ...] = ()
    """Reasons for which the verdict is withheld, one English sentence each."""
    age_years: float | None = None
    """Age of the patient when the film was taken; None if the file does not say it."""
    view: str = ""
    """AP, PA, LATERAL, DECUBITUS or OBLIQUE; "" if the file does not say it."""


def read_film(source: Source, size: int, name: str | None = None) -> Film:
    """Reads a picture and scales it to `size` x `size`, whatever its aspect ratio (bicubic, antialiased).

    May be called from several threads. The answer does not depend on the warning filters in force.

    Args:
        source: A path, or the bytes of a file.
        size: S, the side of the square in pixels.
        name: Name of the picture in errors; its path by default.

    Raises:
        ImageError: The file is missing, no picture, damaged, or larger than `MAX_PIXELS` or `MAX_BYTES`.
        MissingExtraError: It is a DICOM file and the extra `dicom` is not installed.
    """
    data, name = _bytes_of(source, name)
    if is_dicom(data[:512]):
        dicom = read_dicom(data, name)
        height, width = dicom.grey.shape
        pixels = _squash(Image.fromarray(dicom.grey), size)
        return Film(
            pixels, width, height, 0.0, dicom.warnings, dicom.doubts, age_years=dicom.age_years, view=dicom.view
        )
    return _decode(
        data, name, lambda deep: _deep_film(deep, size, name), lambda picture: _film(picture, data, size, name)
    )


def read_deep_film(source: Source, name: str | None = None) -> DeepFilm:
    """Reads a picture for people to look at: upright, in its own size and with all its grey levels.

    Args:
        source: A path, or the bytes of a file.
        name: Name of the picture in errors; its path by default.

    Raises:
        ImageError, MissingExtraError: As `read_film` does.
    """
    data, name = _bytes_of(source, name)
    if is_dicom(data[:512]):
        return read_deep_dicom(data, name)
    return _decode(
        data,
        name,
        lambda deep: _levels(deep, deep.orientation, name),
        lambda picture: _levels_of_picture(picture, data, name),
    )


def _bytes_of(source: Source, name: str | None) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        data, name = source, name or "the image"
    else:
        name = name or str(source)
        data = read_bytes(source, name)
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} is larger than {MAX_BYTES >> 20} MB, which no film is: give the film itself")
    return data, name


def is_film(head: bytes) -> bool:
    """Tells from the first bytes of a file (132 or more) whether it is of a kind that `read_film` reads."""
    return is_dicom(head) or any(re.match(signature, head, re.DOTALL) for signature, *_ in _PLUGINS)


def read_stream(stream: BinaryIO) -> bytes:
    """Reads to the end, but at most one byte more than `MAX_BYTES`."""
    # Piece by piece: `read(MAX_BYTES)` would allocate that much memory first.
    data = io.BytesIO()
    while data.tell() <= MAX_BYTES and (part := stream.read(1 << 20)):
        data.write(part)
    return data.getvalue()


def read_bytes(path: str | Path, name: str) -> bytes:
    """Reads a file to its end, but at most one byte more than `MAX_BYTES`.

    Args:
        path: Path of the file.
        name: Name of the file in errors.

    Raises:
        ImageError: The file is missing, a folder, or cannot be opened.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path of every text would be a twentieth of a small film's time
            return read_stream(file)
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist: check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image: give the files in it") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be opened: {getattr(error, 'strerror', None) or error}") from error


def _squash(
    grey: Image.Image, size: int, box: tuple[float, float, float, float] | None = None, orientation: int = 1
) -> Pixels:
    """Returns uint8 (size, size, 1) from the part `box` (left, top, right, bottom) of a picture in mode L."""
    squashed = grey.resize((size, size), Image.Resampling.BICUBIC, box)
    if orientation in _UPRIGHT:
        squashed = squashed.transpose(_UPRIGHT[orientation])
    return np.asarray(squashed)[:, :, np.newaxis]


def _decode(
    data: bytes, name: str, of_deep: Callable[[Deep], _T], of_picture: Callable[[ImageFile.ImageFile], _T]
) -> _T:
    """Opens a picture and returns what `of_deep` or `of_picture` makes of it. Each fault becomes an `ImageError`."""
    if not data:
        raise ImageError(f"{name} is empty: copy it again from where it came")
    # Pillow warns of odd tags; what matters to the reader stands in `Film.warnings`. Under `-W error` such a warning
    # would make an error of a good film. `warnings.catch_warnings` would swap the filters of all threads and, where two
    # overlap, put the wrong ones back. So one filter that names Pillow alone stays in the process, in front of all
    # others but those of its kind (`dicom.tags` has one too), and is left alone while it is there.
    if _PILLOW_REMARKS not in takewhile(lambda known: known[0] == "ignore", warnings.filters):
        warnings.filterwarnings("ignore", module="PIL")
    try:
        if (deep := _deep(data, name)) is not None:
            return of_deep(deep)
        with _open(data, name) as picture:
            width, height = picture.size
            _check_size(width, height, name)
            if picture.format in _JPEGS and width * height * data.count(b"\xff\xda") > MAX_SCANNED_PIXELS:
                raise ImageError(f"{name} is a JPEG with too many scans: save it again as a baseline JPEG")
            return of_picture(picture)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name} needs more memory than there is here: scale it down") from None
    except Exception as error:
        # On hostile bytes Pillow's plugins raise nearly anything (struct.error, zlib.error, SyntaxError ...).
        raise _explained(error, data, name) from error


def _film(picture: ImageFile.ImageFile, data: bytes, size: int, name: str) -> Film:
    width, height = picture.size
    remarks = (_SEVERAL,) if _has_more(picture) else ()
    box = _decode_smaller(picture, size) if picture.format in _JPEGS else None
    picture.load()
    deep = _deep_png(picture, data)
    grey, chroma = _to_grey(picture if deep is None else _to_eight_bits(deep, name))
    # Only now: Pillow turns a TIFF itself while it loads it, and then removes the tag.
    orientation = _orientation(picture)
    if orientation >= 5:
        width, height = height, width
    return Film(_squash(grey, size, box, orientation), width, height, chroma, remarks)


def _levels_of_picture(picture: ImageFile.ImageFile, data: bytes, name: str) -> DeepFilm:
    picture.load()
    deep = _deep_png(picture, data)
    return _levels(picture if deep is None else deep, _orientation(picture), name)


def _levels(picture: Image.Image | Deep, orientation: int, name: str) -> DeepFilm:
    """Returns all grey levels of a picture, upright."""
    if isinstance(picture, Image.Image):
        found = DeepFilm(np.asarray(_to_grey(picture)[0]), 255, 0.0, 255.0)
    else:
        from pneumo_edge.deep import own_levels

        own = own_levels(picture, name)
        # A picture in colour or with opacity has the levels that the model sees.
        found = own or DeepFilm(np.asarray(_to_grey(_to_eight_bits(picture, name))[0]), 255, 0.0, 255.0)
    # The turns of `_UPRIGHT`, which Pillow cannot do with 16 bits.
    values = found.values.T if 5 <= orientation <= 8 else found.values
    values = values[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
    return replace(found, values=values)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} claims {width} x {height} pixels, more than any X-ray detector has: "
            f"scale it down to {MAX_PIXELS // 1_000_000} million"
        )


def _explained(error: Exception, data: bytes, name: str) -> ImageError:
    """Returns an error that says what is wrong: the installation, a format that is not read, or the bytes."""
    said = one_line(error)
    # A Pillow that was built without a library still has the plugin for it, and fails in it in one of these ways.
    if isinstance(error, (ImportError, NameError)) or "not available" in said or "not installed" in said:
        return ImageError(
            f"{name} cannot be read by the Pillow installed here ({said}): pip install --force-reinstall pillow"
        )
    if "unknown pixel mode" in said or said.startswith("Unsupported BMP"):
        kind = "TIFF" if data[:2] != b"BM" else "BMP"
        return ImageError(f"{name} is a {kind} of a rare kind, which is not read here: save it as PNG")
    return ImageError(f"{name} is damaged and cannot be read ({said}): copy it again from where it came")


def _deep(data: bytes, name: str) -> Deep | None:
    """Decodes a TIFF or JPEG that Pillow would misread or not read; None for all others."""
    if re.match(_TIFF, data):
        from pneumo_edge.deep import deep_tiff, tiff_size

        _check_size(*tiff_size(data), name)
        return deep_tiff(data, name)
    if data[:3] == _JPEG and (header := _rare_jpeg(data)):
        _check_size(*header, name)
        from pneumo_edge.deep import Deep
        from pneumo_edge.dicom.decode import decode_jpeg

        return Deep(decode_jpeg(data, name)[:, :, np.newaxis], 1)
    return None


def _rare_jpeg(data: bytes) -> tuple[int, int] | None:
    """Returns width and height of a JPEG of a kind that Pillow does not know, None for any other."""
    from pneumo_edge.dicom.decode import jpeg_header

    try:
        kind, precision, rows, columns, _ = jpeg_header(data)
    except (ValueError, struct.error):
        return None
    plain = precision == 8 and kind in ("baseline", "extended", "progressive", "arithmetic")
    return None if plain else (columns, rows)


def _deep_film(deep: Deep, size: int, name: str) -> Film:
    height, width = deep.samples.shape[:2]
    grey, chroma = _to_grey(_to_eight_bits(deep, name))
    orientation = deep.orientation if deep.orientation in _UPRIGHT else 1
    if orientation >= 5:
        width, height = height, width
    remarks = (_SEVERAL,) if deep.pages else ()
    return Film(_squash(grey, size, None, orientation), width, height, chroma, remarks)


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Reads the header of a picture; its pixels are not decoded yet."""
    for signature, plugin, opener in _PLUGINS:
        if re.match(signature, data, re.DOTALL):
            picture: ImageFile.ImageFile = getattr(importlib.import_module(f"PIL.{plugin}"), opener)(io.BytesIO(data))
            return picture
    raise ImageError(f"{name} is not an image that can be read here: use PNG, JPEG, WebP, TIFF, BMP or DICOM")


def _has_more(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:
        # A garbled second page does not spoil the first.
        return False


def _decode_smaller(picture: Image.Image, size: int) -> tuple[float, float, float, float] | None:
    """Lets libjpeg scale by 1/2, 1/4 or 1/8 while it decodes, and returns which part of that is the picture.

    At twice the wanted size the film differs from a full decode by 0.1 (224 pixels) to 0.2 (160) grey levels in the
    mean, and takes two thirds of the time. The part matters: where the width is no multiple of the scale, the last
    column covers less than the others. Without the part, a film of 160 pixels differs by up to 1.2.
    """
    # YCbCr is how a colour JPEG is stored: its Y is the grey film without a conversion. The few files that store RGB
    # itself, told apart as libjpeg does it, cannot be decoded to YCbCr.
    transform = 1 if "jfif" in picture.info else picture.info.get("adobe_transform")
    components = bytes(component[0] for component in getattr(picture, "layer", ()))
    stored_as_rgb = transform == 0 or (transform is None and components == b"RGB")
    if picture.mode not in {"L", "RGB"}:
        return None
    mode = "YCbCr" if picture.mode == "RGB" and not stored_as_rgb else picture.mode
    drafted = picture.draft(mode, (2 * size, 2 * size))
    return drafted[1] if drafted else None


def _to_grey(picture: Image.Image) -> tuple[Image.Image, float]:
    """Returns the picture in mode L and its chroma."""
    if picture.mode.startswith(("I", "F")):
        # Deep samples went another way. Pillow would make those that could not go there white.
        raise ValueError("deep samples that cannot be told")
    if picture.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in picture.info:
        # Transparent parts become black, as the background of a film is.
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
    if picture.mode == "L":
        return picture, 0.0
    if picture.mode == "1":
        return picture.convert("L"), 0.0
    if picture.mode != "YCbCr":
        picture = picture.convert("RGB").convert("YCbCr")
    # Most films that are saved in colour are grey: a check of some thousand pixels saves one of all pixels.
    if picture.resize((64, 64), Image.Resampling.NEAREST).getextrema()[1:] == ((128, 128), (128, 128)):
        return picture.getchannel(0), 0.0
    y, *colours = picture.split()
    away = [np.abs(np.asarray(c.resize((64, 64), Image.Resampling.BOX), dtype=np.float32) - 128) for c in colours]
    return y, float(np.mean(np.maximum(*away)))


def _deep_png(picture: Image.Image, data: bytes) -> Deep | None:
    """Returns all bits of a PNG of 16 bits a sample, None for any other picture."""
    if picture.format != "PNG" or data[24:25] != b"\x10":
        return None
    from pneumo_edge.deep import deep_png

    return deep_png(data, picture)


def _to_eight_bits(deep: Deep, name: str) -> Image.Image:
    from pneumo_edge.deep import to_eight_bits

    return to_eight_bits(deep, name)


def _orientation(picture: ImageFile.ImageFile) -> int:
    if picture.format != "TIFF" and _TURNED_BY.isdisjoint(picture.info):
        return 1
    try:
        stated = int(picture.getexif().get(0x0112, 1))
    except Exception:
        # Garbled EXIF does not spoil the pixels, but says nothing about the orientation.
        return 1
    return stated if stated in _UPRIGHT else 1
