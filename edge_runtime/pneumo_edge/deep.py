"""PNG and TIFF of more than 8 bits a sample, which Pillow cuts to 8 bits, wraps round or does not know.

No format says which part of its range such a film uses: `levels.film_range` finds it, and 8 bits are made of that.
Pillow still does all decoding. This module only makes it hand over the bytes as they are.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_edge.errors import ImageError
from pneumo_edge.levels import DeepFilm, film_range, look_up

if TYPE_CHECKING:
    from collections.abc import Iterator

Samples = npt.NDArray[Any]

_MAX_BYTES = 1 << 30
"""Largest size of one plane: twice the largest film in 8 bytes a pixel. Tiles may claim more than their picture has."""

_MOST_LEVELS = 65535

_ROWS = 256
"""Rows that are converted at a time: wide numbers for a whole picture would take gigabytes."""


@dataclass(frozen=True)
class Deep:
    """A picture of deep samples."""

    samples: Samples
    """(H, W, C): grey, or red, green and blue; then opacity, if `opacity` is set; then channels without a meaning."""
    colours: int
    """Number of colour channels, 1 or 3."""
    opacity: float | None = None
    """Value for opaque. None if there is no opacity, or if the colours are multiplied with it already."""
    white_is_zero: bool = False
    orientation: int = 1
    pages: bool = False
    """Whether the file holds more than one picture."""


def to_eight_bits(deep: Deep, name: str) -> Image.Image:
    """Returns a picture in mode L or RGB whose range is that of the film. Transparent parts are black.

    Raises:
        ImageError: It has pixels that are not numbers.
    """
    colours = deep.samples[:, :, : deep.colours]
    if colours.dtype.kind == "f" and not all(np.isfinite(part).all() for part in _parts(colours)):
        raise ImageError(f"{name} has pixels that are not numbers: export it again as 8 or 16 bits")
    opacity = deep.samples[:, :, deep.colours] if deep.opacity else None
    if opacity is not None and opacity.min() == opacity.max():
        # It is the same everywhere, so it hides nothing. It need not be the largest value: some writers use 12 of 16
        # bits.
        opacity = None
    seen = colours if opacity is None or not opacity.any() else colours[opacity > 0]
    # Eight bits keep their values, whatever they were packed in.
    low, high = (0.0, 255.0) if colours.dtype == np.uint8 else film_range(seen)
    scale = 255.0 / (high - low) if high > low else 1.0

    def levels_of(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        levels: npt.NDArray[np.float64] = np.rint((values.astype(np.float64) - low) * scale).clip(0, 255)
        return 255 - levels if deep.white_is_zero else levels

    if opacity is None and colours.dtype.kind in "iu" and colours.dtype.itemsize <= 2:
        # Each of the 65,536 values once.
        every = np.arange(np.iinfo(colours.dtype).min, np.iinfo(colours.dtype).max + 1)
        eight = look_up(levels_of(every).astype(np.uint8), colours, int(every[0]))
    else:
        eight = np.empty(colours.shape, np.uint8)
        for at in range(0, len(colours), _ROWS):
            levels = levels_of(colours[at : at + _ROWS])
            if opacity is not None and deep.opacity:
                levels = np.rint(levels * (opacity[at : at + _ROWS, :, np.newaxis] / deep.opacity).clip(0, 1))
            eight[at : at + _ROWS] = levels
    return Image.fromarray(eight if deep.colours == 3 else eight[:, :, 0])


def own_levels(deep: Deep, name: str) -> DeepFilm | None:
    """Returns all grey levels of a picture; None for one in colour or with transparent parts.

    Raises:
        ImageError: It has pixels that are not numbers.
    """
    values = deep.samples[:, :, 0]
    if deep.colours != 1 or (deep.opacity and np.ptp(deep.samples[:, :, 1])):
        return None
    if values.dtype.kind == "f" and not all(np.isfinite(part).all() for part in _parts(values)):
        raise ImageError(f"{name} has pixels that are not numbers: export it again as 8 or 16 bits")
    low, high = (0.0, 255.0) if values.dtype == np.uint8 else film_range(values)
    darkest, span = float(values.min()), float(values.max()) - float(values.min())
    # Whole numbers that fit each keep their own level.
    fits = values.dtype.kind != "f" and span <= _MOST_LEVELS
    levels = max(int(span), 1) if fits else _MOST_LEVELS
    scale = 1.0 if fits else levels / (span or 1.0)
    found = np.empty(values.shape, np.uint8 if levels < 256 else np.uint16)
    for at in range(0, len(values), _ROWS):
        found[at : at + _ROWS] = np.rint((values[at : at + _ROWS].astype(np.float64) - darkest) * scale)
    low, high = (low - darkest) * scale, (high - darkest) * scale
    if deep.white_is_zero:
        found, low, high = levels - found, levels - high, levels - low
    return DeepFilm(found, levels, low, max(high, low + 1))


def _parts(values: Samples) -> Iterator[Samples]:
    return (values[at : at + _ROWS] for at in range(0, len(values), _ROWS))


# --- PNG ---


def deep_png(data: bytes, picture: Image.Image) -> Deep | None:
    """Returns all bits of a PNG of 16 bits a sample, None for any other PNG.

    Args:
        data: The whole file.
        picture: What Pillow makes of it, loaded: in colour and with opacity it keeps the upper 8 bits alone.

    Raises:
        Exception: Nearly any, where the file is damaged.
    """
    kind = data[25]
    if data[12:16] != b"IHDR" or data[24] != 16 or kind not in (0, 2, 4, 6):
        return None
    if kind == 4:
        # Grey and opacity of 2 bytes each are packed as four colours of 1 byte are, for the filters work on the bytes
        # of whole pixels (PNG 9.2): only the header tells them apart.
        header = data[12:24] + b"\x08\x06" + data[26:29]
        with _png(data[:12] + header + struct.pack(">L", zlib.crc32(header)) + data[33:]) as wider:
            return Deep(np.array(wider).view(">u2"), 1, _OPAQUE)
    if kind == 0:
        samples = np.array(picture).astype(np.uint16)[:, :, np.newaxis]
    else:
        # Pillow knows the same bytes in both orders: read in the wrong one, the lower halves come out.
        with _png(data, swapped=True) as lower:
            samples = np.array(picture).astype(np.uint16) << 8 | np.array(lower)
    hidden = picture.info.get("transparency")
    if kind in (0, 2) and isinstance(hidden, (int, tuple)):
        # One value stands for transparent.
        there = (samples != np.array(hidden).astype(np.uint16)).any(axis=2, keepdims=True)
        return Deep(np.concatenate([samples, there * np.uint16(_OPAQUE)], axis=2), 1 if kind == 0 else 3, _OPAQUE)
    return Deep(samples, 1 if kind == 0 else 3, _OPAQUE if kind == 6 else None)


_OPAQUE = 65535.0


def _png(data: bytes, *, swapped: bool = False) -> Image.Image:
    from PIL.PngImagePlugin import PngImageFile

    picture = PngImageFile(io.BytesIO(data))
    if swapped:
        picture.tile = [tile._replace(args=str(tile.args).replace(";16B", ";16L")) for tile in picture.tile]
    picture.load()
    return picture


# --- TIFF ---


class _Tag(IntEnum):
    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIPS = 273
    ORIENTATION = 274
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    PLANES = 284
    PREDICTOR = 317
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILES = 324
    TILE_BYTES = 325
    EXTRA = 338
    FORMAT = 339


_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
"""Type of a tag -> bytes of one number: BYTE, SHORT, LONG, LONG8. All tags that are read here have one of them."""

_UNPACKED = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})
"""Compressions of bytes: none, LZW, Deflate, PackBits, LZMA, Zstandard."""
_MAX_SAMPLES = 8
"""Most samples of a pixel: more than any film has. Each may have to be decoded by itself."""

_JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
_JPEG = {6: "old JPEG", 7: "JPEG", 50001: "WebP"}
_UNKNOWN = {34887: "LERC", 34892: "lossy JPEG", 50002: "JPEG XL", 52546: "JPEG XL"}
"""Compressions that Pillow does not read for deep samples (`_JPEG`), or never (`_UNKNOWN`)."""

_NUMBERS = {
    1: "whole numbers",
    2: "signed numbers",
    3: "fractions",
    4: "numbers",
    5: "complex numbers",
    6: "complex numbers",
}


def deep_tiff(data: bytes, name: str) -> Deep | None:
    """Decodes a TIFF of deep or signed samples by the rules of TIFF 6.0; None for one that Pillow reads as it is.

    Samples are described to Pillow as bytes of a wider picture: libtiff then undoes any compression, and leaves order
    and sign of the bytes to us.

    Args:
        data: The whole file, of a size that was checked with `tiff_size`.
        name: Name of the file in errors.

    Raises:
        ImageError: It is of a kind that is not read here; the error names the kind.
        Exception: Nearly any, where the file is damaged.
    """
    try:
        tags, after = _directory(data)
    except (struct.error, IndexError):
        return None
    one = {tag: values[0] for tag, values in tags.items()}
    bits, kind, samples = one.get(_Tag.BITS, 1), one.get(_Tag.FORMAT, 1), one.get(_Tag.SAMPLES, 1)
    compression, photometric = one.get(_Tag.COMPRESSION, 1), one.get(_Tag.PHOTOMETRIC, 1)
    deep = 8 < bits <= 64 or (bits == 8 and kind == 2)
    if not (deep or compression in _JPEG_2000 or compression in _UNKNOWN) or (photometric == 5 and bits == 16):
        return None
    alike = len({*tags.get(_Tag.BITS, ())}) == len({*tags.get(_Tag.FORMAT, (1,))}) == 1
    whole = bits in (8, 16, 32, 64) and (kind in (1, 2, 4) or (kind == 3 and bits > 8))
    known = (whole or (kind in (1, 4) and 8 < bits < 16 and one.get(_Tag.PREDICTOR, 1) == 1)) and photometric in (
        0,
        1,
        2,
    )
    colours = 3 if photometric == 2 else 1
    if compression in _JPEG_2000:
        known = samples == 1 and bits <= 16
    elif compression not in _UNPACKED:
        if compression not in _JPEG and compression not in _UNKNOWN:
            return None
        known = False
    if not known or not alike or not colours <= samples <= _MAX_SAMPLES:
        packed = {**_JPEG, **_UNKNOWN, **dict.fromkeys(_JPEG_2000, "JPEG 2000")}.get(compression)
        what = f"{bits}-bit {_NUMBERS.get(kind, 'numbers')}" + (f", {packed}" if packed else "")
        raise ImageError(
            f"{name} is a TIFF of a rare kind ({what}), which is not read here: "
            "save it as PNG, or as TIFF of 16-bit whole numbers without compression"
        )
    values = _codestreams(data, tags, one, name) if compression in _JPEG_2000 else _samples(data, tags, one)
    extra = tags.get(_Tag.EXTRA, [2] if samples == 4 and colours == 3 else [])
    opaque = {"f": 1.0}.get(values.dtype.kind, float((1 << (bits - (kind == 2))) - 1))
    straight = samples > colours and bool(extra) and extra[0] == 2
    return Deep(
        values, colours, opaque if straight else None, photometric == 0, one.get(_Tag.ORIENTATION, 1), after != 0
    )


def tiff_size(data: bytes) -> tuple[int, int]:
    """Returns the width and height that a TIFF claims; (0, 0) if it states none."""
    try:
        tags, _ = _directory(data)
        return tags[_Tag.WIDTH][0], tags[_Tag.HEIGHT][0]
    except (struct.error, IndexError, KeyError):
        return 0, 0


def _directory(data: bytes) -> tuple[dict[int, list[int]], int]:
    """Returns the whole numbers among the first picture's tags, and where the next picture's tags are (TIFF 6.0, 2)."""
    order = _order(data)
    # BigTIFF has 43 where TIFF has 42, and 8 bytes for each number and place.
    big = b"+" in data[2:4]
    place, entry, inside = ("Q", "HHQ8s", 8) if big else ("L", "HHL4s", 4)
    (at,) = struct.unpack_from(order + place, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    size = struct.calcsize(order + entry)
    if count > 4096:
        raise IndexError("more tags than there are")
    found: dict[int, list[int]] = {}
    for n in range(count):
        tag, kind, length, value = struct.unpack_from(order + entry, data, at + n * size)
        if kind not in _SIZES or tag in found or not 0 < length <= len(data):
            continue
        if length * _SIZES[kind] > inside:
            (where,) = struct.unpack(order + place, value)
            value = data[where : where + length * _SIZES[kind]]
        numbers = np.frombuffer(value, f"{order}u{_SIZES[kind]}", min(length, len(value) // _SIZES[kind]))
        found[tag] = numbers.tolist() or [0]
    after = data[at + count * size :][: struct.calcsize(order + place)]
    return found, int.from_bytes(after, "big" if order == ">" else "little")


def _order(data: bytes) -> str:
    return ">" if data[:2] == b"MM" else "<"


def _samples(data: bytes, tags: dict[int, list[int]], one: dict[int, int]) -> Samples:
    """Returns the samples (H, W, C) of any compression that gives back bytes."""
    bits, samples = one.get(_Tag.BITS, 1), one.get(_Tag.SAMPLES, 1)
    if one.get(_Tag.PLANES, 1) == 2 and samples > 1:
        # One channel after the other, each with its own strips or tiles.
        return np.concatenate([_plane(data, tags, one, bits, 1, n, samples) for n in range(samples)], axis=2)
    return _plane(data, tags, one, bits, samples, 0, 1)


def _plane(
    data: bytes, tags: dict[int, list[int]], one: dict[int, int], bits: int, samples: int, plane: int, planes: int
) -> Samples:
    """Returns (H, W, samples) of one of so many planes."""
    width, height, order = one[_Tag.WIDTH], one[_Tag.HEIGHT], _order(data)
    step = one.get(_Tag.TILE_WIDTH, width)
    # Whole tiles: a predictor works on all of a tile's row, also on what lies outside of the picture.
    steps = -(-width // step)
    row = -(-step * bits * samples // 8)
    places, lengths = (_Tag.TILES, _Tag.TILE_BYTES) if _Tag.TILE_WIDTH in one else (_Tag.STRIPS, _Tag.STRIP_BYTES)
    each = len(tags[places]) // planes
    mine = slice(plane * each, (plane + 1) * each)
    described: dict[int, list[int]] = {
        _Tag.WIDTH: [steps * row],
        _Tag.HEIGHT: [height],
        _Tag.BITS: [8],
        _Tag.COMPRESSION: [one.get(_Tag.COMPRESSION, 1)],
        _Tag.PHOTOMETRIC: [1],
        _Tag.FILL_ORDER: [one.get(_Tag.FILL_ORDER, 1)],
        _Tag.SAMPLES: [1],
        places: tags[places][mine],
        **({lengths: tags[lengths][mine]} if lengths in tags else {}),
        **({_Tag.TILE_WIDTH: [row], _Tag.TILE_HEIGHT: [one[_Tag.TILE_HEIGHT]]} if _Tag.TILE_WIDTH in one else {}),
        **({_Tag.ROWS_PER_STRIP: [min(one[_Tag.ROWS_PER_STRIP], height)]} if _Tag.ROWS_PER_STRIP in one else {}),
    }
    if steps * row * height > _MAX_BYTES:
        raise ValueError("more than the largest film takes")
    _check_there(data, described, places, lengths)
    packed = _bytes(data, described).reshape(height * steps, row)
    predictor = one.get(_Tag.PREDICTOR, 1) if one.get(_Tag.COMPRESSION, 1) not in (1, 32773) else 1
    if bits % 8:
        wide = np.empty((len(packed), step * samples), np.uint16)
        worth = np.left_shift(1, np.arange(bits)[::-1]).astype(np.uint16)
        for at in range(0, len(packed), _ROWS):
            loose = np.unpackbits(packed[at : at + _ROWS], axis=1)[:, : step * samples * bits]
            wide[at : at + _ROWS] = loose.reshape(-1, step * samples, bits) @ worth
        values: Samples = wide
    elif predictor == 3:
        # Differences of bytes; a row has the first byte of all numbers, then the second of all (Adobe's TIFF note 3).
        summed = np.cumsum(packed.reshape(len(packed), -1, samples), axis=1, dtype=np.uint8)
        split = summed.reshape(len(packed), bits // 8, step * samples)
        values = np.ascontiguousarray(split.transpose(0, 2, 1)).view(f">f{bits // 8}")
    else:
        kind = {2: "i", 3: "f"}.get(one.get(_Tag.FORMAT, 1), "u")
        values = packed.view(f"{order}{'u' if predictor == 2 else kind}{bits // 8}")
        if predictor == 2:
            # Differences between neighbours (TIFF 6.0, 14).
            native = values.astype(values.dtype.newbyteorder("=")).reshape(len(packed), step, samples)
            values = np.cumsum(native, axis=1, dtype=native.dtype).view(f"{kind}{bits // 8}")
    return values.reshape(height, steps * step, samples)[:, :width]


def _check_there(data: bytes, tags: dict[int, list[int]], places: int, lengths: int) -> None:
    """Checks that no strip or tile goes beyond the end of the file, where `_bytes` puts the new tags.

    Raises:
        ValueError: One does.
    """
    (height,) = tags[_Tag.HEIGHT]
    (row,), (rows,) = (
        (tags[_Tag.TILE_WIDTH], tags[_Tag.TILE_HEIGHT])
        if _Tag.TILE_WIDTH in tags
        else (tags[_Tag.WIDTH], tags.get(_Tag.ROWS_PER_STRIP, [height]))
    )
    for n, place in enumerate(tags[places]):
        if tags[_Tag.COMPRESSION] == [1]:
            # All that is read, whatever length is stated.
            left = rows if _Tag.TILE_WIDTH in tags else min(rows, height - n * rows)
            length = row * max(left, 0)
        else:
            length = tags[lengths][n]
        if place + length > len(data):
            raise ValueError("strips that go on behind the end of the file")


def _bytes(data: bytes, tags: dict[int, list[int]]) -> npt.NDArray[np.uint8]:
    """Lets Pillow unpack the file as if it had these tags."""
    from PIL.TiffImagePlugin import TiffImageFile

    order = _order(data)
    at = 8 + len(data) + len(data) % 2
    entries, values = b"", b""
    behind = at + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        packed = np.array(numbers, np.uint64).astype(f"{order}u4").tobytes()
        if len(numbers) > 1:
            value = struct.pack(order + "L", behind + len(values))
            values += packed
        else:
            value = packed
        entries += struct.pack(order + "HHL", tag, 4, len(numbers)) + value
    head = b"MM\0*" if order == ">" else b"II*\0"
    described = b"".join(
        (
            head,
            struct.pack(order + "L", at),
            data[8:],
            bytes(at - len(data)),
            struct.pack(order + "H", len(tags)),
            entries,
            bytes(4),
            values,
        )
    )
    with TiffImageFile(io.BytesIO(described)) as picture:
        return np.array(picture)


def _codestreams(data: bytes, tags: dict[int, list[int]], one: dict[int, int], name: str) -> Samples:
    """Returns the samples (H, W, 1) of strips or tiles that are a grey JPEG 2000 each."""
    from pneumo_edge.dicom.decode import decode_jpeg_2000, jpeg_2000_header

    width, height = one[_Tag.WIDTH], one[_Tag.HEIGHT]
    step, rows = (
        (one[_Tag.TILE_WIDTH], one[_Tag.TILE_HEIGHT])
        if _Tag.TILE_WIDTH in one
        else (width, one.get(_Tag.ROWS_PER_STRIP, height))
    )
    places, lengths = (_Tag.TILES, _Tag.TILE_BYTES) if _Tag.TILE_WIDTH in one else (_Tag.STRIPS, _Tag.STRIP_BYTES)
    whole: Samples | None = None
    for n, (place, length) in enumerate(zip(tags[places], tags[lengths], strict=True)):
        frame = data[place : place + length]
        top, left = n // -(-width // step) * rows, n % -(-width // step) * step
        tall, wide, components, _, _ = jpeg_2000_header(frame)
        if tall > rows or wide > step or components != 1 or top >= height:
            raise ValueError("a codestream of another size than the tags say")
        part = decode_jpeg_2000(frame, name)
        if whole is None:
            whole = np.zeros((height, width, 1), part.dtype)
        into = whole[top : top + tall, left : left + wide, 0]
        into[...] = part[: into.shape[0], : into.shape[1]]
    if whole is None:
        raise ValueError("no pixels")
    return whole
