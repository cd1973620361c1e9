"""Pictures of more than 8 bits a sample: every bit counts, and one dead pixel does not."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pictures import encode
from places import SHARED
from pneumo_edge.errors import ImageError
from pneumo_edge.levels import film_range
from pneumo_edge.preprocess import Film, read_film

Array = npt.NDArray[Any]

SIDE = 96
"""Pictures of this size are not resampled for S = SIDE: the array must be the grey picture itself."""

y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
UNIT = (0.6 * x + 0.3 * y + 0.05 * np.sin(9 * x) * np.cos(7 * y) + 0.05).clip(0, 1)
"""0 to 1, smooth, no gaps."""

TWELVE = np.rint(100 + 3800 * UNIT).astype(np.uint16)
"""12 bits."""


def grey_of(data: bytes) -> Array:
    film = read_film(data, SIDE, "the film")
    assert (film.width, film.height) == (SIDE, SIDE)
    assert film.warnings == ()
    return film.pixels[:, :, 0]


def levels(values: Array, low: float | None = None, high: float | None = None) -> Array:
    """What a picture without window must give: its range on 0 to 255."""
    wide = values.astype(np.float64)
    low = wide.min() if low is None else low
    high = wide.max() if high is None else high
    return np.asarray(np.rint(((wide - low) * (255.0 / (high - low))).clip(0, 255)).astype(np.uint8))


def same(grey: Array, wanted: Array, colours: int) -> bool:
    """Bit by bit; Pillow's way from three equal colours to grey rounds once more."""
    return bool(np.abs(grey.astype(int) - wanted).max() <= (1 if colours > 2 else 0))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def filtered(samples: Array, kind: int) -> bytes:
    """Rows of big endian 16-bit samples behind one of PNG's filters, or each row behind another one (-1)."""
    rows = np.ascontiguousarray(samples.astype(">u2")).view(np.uint8).reshape(len(samples), -1).astype(np.int64)
    pixel = 2 * samples.shape[2]
    left = np.pad(rows, ((0, 0), (pixel, 0)))[:, : rows.shape[1]]
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    corner = np.pad(above, ((0, 0), (pixel, 0)))[:, : rows.shape[1]]
    guess = left + above - corner
    away = np.stack([np.abs(guess - p) for p in (left, above, corner)])
    paeth = np.take_along_axis(np.stack([left, above, corner]), away.argmin(axis=0)[np.newaxis], 0)[0]
    minus = [np.zeros_like(rows), left, above, (left + above) // 2, paeth]
    kinds = [kind if kind >= 0 else n % 5 for n in range(len(rows))]
    return b"".join(
        bytes([k]) + ((rows[n] - minus[k][n]) % 256).astype(np.uint8).tobytes() for n, k in enumerate(kinds)
    )


def png(samples: Array, filter_: int = 0, *, interlaced: bool = False, more: bytes = b"") -> bytes:
    """A PNG of 16 bits a sample: grey, with opacity, in colour, with both."""
    height, width, channels = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [samples[top::down, left::right] for left, top, right, down in passes] if interlaced else [samples]
    packed = zlib.compress(b"".join(filtered(part, filter_) for part in parts))
    header = struct.pack(">LLBBBBB", width, height, 16, kind, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def packed_bits(values: Array, bits: int) -> bytes:
    """Rows of so many bits a sample, the first in the highest bits; each row begins with a byte."""
    loose = (values.reshape(len(values), -1, 1).astype(np.uint32) >> np.arange(bits)[::-1]) & 1
    return np.packbits(loose.astype(np.uint8).reshape(len(values), -1), axis=1).tobytes()


Order = Literal["<", ">"]
ORDERS: tuple[Order, Order] = ("<", ">")


def tiff(
    samples: Array,
    order: Order = "<",
    *,
    bits: int | None = None,
    photometric: int = 1,
    deflate: bool = False,
    predictor: int = 1,
    tile: int = 0,
    rows: int = 0,
    planar: bool = False,
    extra: int | None = None,
    big: bool = False,
    orientation: int = 1,
    compression: int | None = None,
    frames: list[bytes] | None = None,
) -> bytes:
    """A TIFF as the standard has it, of any number type and layout. `frames` replaces its strips or tiles."""
    height, width, channels = samples.shape
    depth = bits or 8 * samples.dtype.itemsize
    planes = [samples[:, :, c : c + 1] for c in range(channels)] if planar else [samples]
    across, down = (tile, tile) if tile else (width, rows or height)
    parts = []
    for plane in planes:
        for top, left in itertools.product(range(0, height, down), range(0, width, across)):
            part = plane[top : top + down, left : left + across]
            if tile:
                part = np.pad(part, ((0, down - part.shape[0]), (0, across - part.shape[1]), (0, 0)), mode="edge")
            if bits and bits % 8:
                raw = packed_bits(part, bits)
            elif predictor == 3:
                high_first = np.ascontiguousarray(part.astype(part.dtype.newbyteorder(">"))).view(np.uint8)
                by_byte = high_first.reshape(len(part), -1, part.dtype.itemsize).transpose(0, 2, 1)
                stride = by_byte.reshape(len(part), -1, part.shape[2])
                raw = np.diff(stride, axis=1, prepend=np.zeros_like(stride[:, :1])).tobytes()
            else:
                if predictor == 2:
                    whole = part.view(f"u{part.dtype.itemsize}")
                    part = np.diff(whole, axis=1, prepend=np.zeros_like(whole[:, :1]))
                raw = part.astype(part.dtype.newbyteorder(order)).tobytes()
            parts.append(zlib.compress(raw) if deflate else raw)
    parts = frames or parts
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[samples.dtype.kind]
    tags = {256: [width], 257: [height], 258: [depth] * channels, 259: [compression or (8 if deflate else 1)]}
    tags |= {262: [photometric], 274: [orientation], 277: [channels], 284: [2 if planar else 1], 317: [predictor]}
    tags |= {339: [kind] * channels} | ({338: [extra]} if extra is not None else {})
    tags |= {322: [tile], 323: [tile]} if tile else {278: [down]}
    word, entry, place = ("Q", "HHQ", 20) if big else ("L", "HHL", 12)
    at = 16 if big else 8
    places = []
    for frame in parts:
        places.append(at)
        at += len(frame) + len(frame) % 2
    tags |= {324 if tile else 273: places, 325 if tile else 279: [len(frame) for frame in parts]}
    body = b"".join(frame + bytes(len(frame) % 2) for frame in parts)
    head = struct.pack(order + "2sHHHQ", b"", 43, 8, 0, at) if big else struct.pack(order + "2sHL", b"", 42, at)
    head = (b"II" if order == "<" else b"MM") + head[2:]
    behind = at + struct.calcsize(order + ("Q" if big else "H")) + place * len(tags) + struct.calcsize(order + word)
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{word}", *numbers)
        if len(numbers) > 1:
            value, values = struct.pack(order + word, behind + len(values)), values + packed
        else:
            value = packed
        entries += struct.pack(order + entry, tag, 16 if big else 4, len(numbers)) + value
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return head + body + count + entries + struct.pack(order + word, 0) + values


# --- PNG ---


@pytest.mark.parametrize("filter_", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_all_of_12(channels: int, filter_: int, interlaced: bool) -> None:
    colours = [TWELVE] * (3 if channels > 2 else 1)
    opacity = [np.full_like(TWELVE, 65535)] if channels in (2, 4) else []
    data = png(np.dstack(colours + opacity), filter_, interlaced=interlaced)
    grey = grey_of(data)
    assert same(grey, levels(TWELVE), channels)
    assert len(np.unique(grey)) > 200


@pytest.mark.parametrize("channels", [2, 4])
def test_png_of_16_bits_shows_black_through(channels: int) -> None:
    opacity = np.full_like(TWELVE, 65535)
    opacity[:, :10] = 0
    opacity[:, 10:20] = 32768
    samples = np.dstack([*[TWELVE] * (channels - 1), opacity])
    samples[:, :10, :-1] = 65535  # what hides there says nothing of the range
    grey = grey_of(png(samples))
    wanted = levels(TWELVE, float(TWELVE[:, 10:].min()), float(TWELVE.max()))
    assert not grey[:, :10].any()
    assert same(grey[:, 20:], wanted[:, 20:], channels)
    assert np.abs(grey[:, 10:20] - wanted[:, 10:20] / 2.0).max() <= 1.5


@pytest.mark.parametrize("opacity", [1, 4095, 65535])
def test_opacity_that_is_the_same_everywhere_hides_nothing(opacity: int) -> None:
    assert np.array_equal(grey_of(png(np.dstack([TWELVE, np.full_like(TWELVE, opacity)]))), levels(TWELVE))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_of_16_bits_with_a_value_that_stands_for_nothing(channels: int) -> None:
    samples = np.dstack([TWELVE] * channels)
    samples[:30, :30] = 60000
    hidden = chunk(b"tRNS", struct.pack(f">{channels}H", *[60000] * channels))
    grey = grey_of(png(samples, more=hidden))
    rest = np.ones((SIDE, SIDE), bool)
    rest[:30, :30] = False
    assert not grey[:30, :30].any()
    assert same(grey[rest], levels(TWELVE[rest]), channels)


def test_deep_colour_has_chroma_and_deep_grey_in_colours_has_none() -> None:
    assert read_film(png(np.dstack([TWELVE] * 3)), SIDE).chroma == 0.0
    assert read_film(png(np.dstack([TWELVE, TWELVE[::-1], TWELVE.T])), SIDE).chroma > 20


def test_deep_png_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(np.rot90(TWELVE)), "PNG", exif=exif)
    assert np.array_equal(grey_of(data), levels(TWELVE))


# --- TIFF ---

NUMBERS: dict[str, Array] = {
    "uint16": TWELVE,
    "int16": TWELVE.astype(np.int16) - 2000,
    "uint32": TWELVE.astype(np.uint32) * 1_000_000,
    "int32": TWELVE.astype(np.int32) * 900_000 - 2_000_000_000,
    "uint64": TWELVE.astype(np.uint64) << np.uint64(40),
    "int8": (TWELVE // 16).astype(np.int64).astype(np.int8) ^ np.int8(-128),
    "float16": TWELVE.astype(np.float16) / 100,
    "float32": TWELVE.astype(np.float32) / 777 - 3,
    "float64": TWELVE.astype(np.float64) * 1e100,
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_of_every_number_type(number: str, order: Order, white_is_zero: bool) -> None:
    """PhotometricInterpretation 0: the smallest value is white (TIFF 6.0, 8)."""
    values = NUMBERS[number]
    grey = grey_of(tiff(values[:, :, np.newaxis], order, photometric=0 if white_is_zero else 1))
    wanted = levels(values)
    assert np.array_equal(grey, 255 - wanted if white_is_zero else wanted)


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_of_packed_bits(bits: int, order: Order, white_is_zero: bool) -> None:
    values = np.rint(UNIT[:, :91] * (2**bits - 1)).astype(np.uint16)
    data = tiff(values[:, :, np.newaxis], order, bits=bits, photometric=0 if white_is_zero else 1, rows=10)
    film = read_film(data, SIDE)
    whole = read_film(tiff(values[:, :, np.newaxis], photometric=0 if white_is_zero else 1), SIDE)
    assert np.array_equal(film.pixels, whole.pixels)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_tiff_of_every_layout(data: st.DataObject) -> None:
    """Strips, tiles, planes, predictors, BigTIFF, opacity: the same film."""
    number = data.draw(st.sampled_from(sorted(NUMBERS)))
    values = NUMBERS[number]
    channels = data.draw(st.sampled_from([1, 2, 3, 4]))
    deflate = data.draw(st.booleans())
    predictors = [1, *([2] if values.dtype.kind != "f" else [3] if values.dtype.itemsize > 2 else [])]
    tile = data.draw(st.sampled_from([0, 0, 16, 64, 112]))
    samples = np.dstack([values] * (3 if channels > 2 else 1))
    extra = None
    if channels in (2, 4):
        opaque = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        extra = data.draw(st.sampled_from([0, 1, 2]))
        samples = np.dstack([samples, np.full_like(values, opaque)])
    file = tiff(
        samples,
        data.draw(st.sampled_from(ORDERS)),
        photometric=2 if channels > 2 else 1,
        deflate=deflate,
        predictor=data.draw(st.sampled_from(predictors)) if deflate else 1,
        tile=tile,
        rows=data.draw(st.sampled_from([0, 1, 7, 96, 200])),
        planar=data.draw(st.booleans()),
        extra=extra,
        big=data.draw(st.booleans()),
    )
    assert same(grey_of(file), levels(values), channels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "lzma", "zstd", "packbits", "raw"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_tiff_that_libtiff_wrote(compression: str, predictor: int) -> None:
    if compression in ("packbits", "raw") and predictor == 2:
        pytest.skip("there is no predictor without LZW or Deflate")
    for values in (TWELVE, TWELVE.astype(np.int32) * 9000 - 500, TWELVE.astype(np.float32) / 777 - 3):
        if predictor == 2 and values.dtype.kind == "f":
            continue
        info = {317: predictor} if predictor > 1 else {}
        data = encode(Image.fromarray(values), "TIFF", compression=compression, tiffinfo=info)
        assert np.array_equal(grey_of(data), levels(values))


def test_a_tiff_whose_opacity_hides_a_part() -> None:
    opacity = np.full_like(TWELVE, 65535)
    opacity[:, :10] = 0
    samples = np.dstack([TWELVE, opacity])
    samples[:, :10, 0] = 65535
    grey = grey_of(tiff(samples, extra=2))
    assert not grey[:, :10].any()
    assert np.array_equal(grey[:, 10:], levels(TWELVE[:, 10:]))


def test_a_deep_tiff_is_turned_upright_once() -> None:
    stored = np.ascontiguousarray(np.rot90(TWELVE[:60]))[:, :, np.newaxis]
    film = read_film(tiff(stored, orientation=6), SIDE)
    assert (film.width, film.height) == (SIDE, 60)
    assert np.array_equal(film.pixels, read_film(tiff(TWELVE[:60, :, np.newaxis]), SIDE).pixels)
    for orientation in (0, 9, 70000):
        assert np.array_equal(grey_of(tiff(TWELVE[:, :, np.newaxis], orientation=orientation)), levels(TWELVE))


def test_of_several_deep_pages_the_first_is_read_and_said_so() -> None:
    pages = [Image.fromarray(TWELVE[::-1].copy())]
    film = read_film(encode(Image.fromarray(TWELVE), "TIFF", save_all=True, append_images=pages), SIDE)
    assert film.warnings == ("the file holds several pictures; only the first was read",)
    assert np.array_equal(film.pixels[:, :, 0], levels(TWELVE))


def jpeg_2000(values: Array) -> bytes:
    return encode(Image.fromarray(values), "JPEG2000", no_jp2=True, irreversible=False)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")
@pytest.mark.parametrize("tile", [0, 32, 64])
@pytest.mark.parametrize("compression", [34712, 33003])
def test_jpeg_2000_in_tiff(tile: int, compression: int) -> None:
    for values, wanted in ((TWELVE, levels(TWELVE)), ((TWELVE // 16).astype(np.uint8), TWELVE // 16)):
        side = tile or SIDE
        padded = np.pad(values, ((0, -SIDE % side), (0, -SIDE % side)))
        frames = [
            jpeg_2000(padded[top : top + side, left : left + side].copy())
            for top, left in itertools.product(range(0, SIDE, side), repeat=2)
        ]
        file = tiff(values[:, :, np.newaxis], tile=tile, compression=compression, frames=frames)
        assert np.array_equal(grey_of(file), wanted)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiff(TWELVE.astype(np.complex64)[:, :, np.newaxis]), "64-bit complex numbers"),
        (lambda: tiff(TWELVE.astype(np.uint32)[:, :, np.newaxis], bits=24), "24-bit whole numbers"),
        (lambda: tiff(TWELVE[:, :, np.newaxis], compression=34887), "16-bit whole numbers, LERC"),
        (lambda: tiff(TWELVE[:, :, np.newaxis], compression=7), "16-bit whole numbers, JPEG"),
        (
            lambda: tiff((TWELVE // 16).astype(np.uint8)[:, :, np.newaxis], compression=50002),
            "8-bit whole numbers, JPEG XL",
        ),
        (lambda: tiff(TWELVE[:, :, np.newaxis], photometric=3), "16-bit whole numbers"),
        (lambda: tiff(np.dstack([TWELVE] * 3), photometric=2, compression=34712), "16-bit whole numbers, JPEG 2000"),
    ],
)
def test_kinds_of_tiff_that_are_not_read_are_named(make: Any, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_film(make(), 32, "the film")
    said = f"the film is a TIFF of a rare kind ({words}), which is not read here: "
    assert str(caught.value) == said + "save it as PNG, or as TIFF of 16-bit whole numbers without compression"


@pytest.mark.parametrize("file", [tiff(TWELVE[:, :, np.newaxis]), tiff(np.dstack([TWELVE] * 3), photometric=2)])
def test_a_deep_tiff_without_its_tags_is_damaged(file: bytes) -> None:
    for length in (len(file) // 2, len(file) - 250):
        with pytest.raises(ImageError, match="is damaged and cannot be read"):
            read_film(file[:length], 32)


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("missing", [1, 2, 3, 50, 1000])
def test_a_deep_tiff_that_lacks_its_last_bytes_is_never_half_a_film(compression: str, missing: int) -> None:
    """Pillow writes the tags in front of plain pixels; libtiff writes them behind, and may not need the last bytes."""
    for values in (TWELVE, TWELVE.astype(np.int32), TWELVE.astype(np.float32)):
        file = encode(Image.fromarray(values), "TIFF", compression=compression)
        try:
            film = read_film(file[:-missing], SIDE)
        except ImageError as error:
            assert "is damaged and cannot be read" in str(error)
        else:
            assert compression != "raw"
            assert np.array_equal(film.pixels, read_film(file, SIDE).pixels)


def test_tiles_that_claim_gigabytes_are_refused() -> None:
    file = bytearray(tiff(TWELVE[:, :, np.newaxis], tile=16))
    for tag in (322, 323):
        at = file.index(struct.pack("<HHL", tag, 4, 1))
        file[at + 8 : at + 12] = struct.pack("<L", 1 << 30)
    with pytest.raises(ImageError, match="is damaged and cannot be read"):
        read_film(bytes(file), 32)


def test_a_bmp_that_holds_a_jpeg_is_named() -> None:
    file = bytearray(encode(Image.fromarray((TWELVE // 16).astype(np.uint8)), "BMP"))
    file[30:34] = struct.pack("<L", 4)
    with pytest.raises(ImageError, match=r"^the film is a BMP of a rare kind, which is not read here: save it as PNG$"):
        read_film(bytes(file), 32, "the film")


def test_an_eight_bit_tiff_that_pillow_does_not_know_is_named() -> None:
    file = tiff(np.dstack([(TWELVE // 16).astype(np.uint8)] * 2), photometric=0, extra=2)
    with pytest.raises(
        ImageError, match=r"^the film is a TIFF of a rare kind, which is not read here: save it as PNG$"
    ):
        read_film(file, 32, "the film")


def test_a_codec_that_is_missing_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encode(Image.fromarray((TWELVE // 16).astype(np.uint8)), "TIFF", compression="tiff_lzw")
    monkeypatch.delattr("PIL.Image.core.libtiff_decoder")
    with pytest.raises(
        ImageError, match=r"cannot be read by the Pillow installed here \(decoder libtiff not available\)"
    ):
        read_film(file, 32)


# --- JPEG that Pillow does not know ---


def test_kinds_of_jpeg_that_are_not_read_are_named() -> None:
    data = encode(Image.fromarray((TWELVE // 16).astype(np.uint8)), "JPEG")
    for marker, kind in ((b"\xff\xc5", "hierarchical"), (b"\xff\xcb", "arithmetic lossless")):
        with pytest.raises(ImageError, match=rf"^the film is a JPEG of a rare kind \({kind}, 8 bits\), which"):
            read_film(data.replace(b"\xff\xc0", marker, 1), 32, "the film")


# --- the range of the film ---


def film_of(values: Array) -> Film:
    return read_film(encode(Image.fromarray(values), "PNG"), SIDE)


@pytest.mark.parametrize("hot", [0, 5100, 16383, 65535])
@pytest.mark.parametrize("how", ["pixel", "pixels", "column", "letter"])
def test_dead_pixels_and_letters_do_not_darken_a_film(hot: int, how: str) -> None:
    base = TWELVE + np.uint16(1500) if hot == 0 else TWELVE
    values = base.copy()
    everywhere: dict[str, tuple[Any, Any]] = {
        "pixel": np.s_[40, 40],
        "pixels": np.s_[::31, ::37],
        "column": np.s_[:, 17],
        "letter": np.s_[5:18, 70:82],
    }
    where = everywhere[how]
    values[where] = hot
    alive = np.ones((SIDE, SIDE), bool)
    alive[where] = False
    grey, whole = film_of(values).pixels[:, :, 0], film_of(base).pixels[:, :, 0]
    # The dead pixel may have been the lightest one.
    assert np.abs(grey[alive].astype(int) - whole[alive]).max() <= 2
    assert (grey[~alive] == (0 if hot == 0 else 255)).all()


def test_letters_with_soft_edges_do_not_darken_a_film() -> None:
    values = TWELVE.astype(np.float64)
    soft = np.linspace(1, 0.05, 12)
    values[10:22, 60:72] = np.maximum(values[10:22, 60:72], 65535 * soft)
    film = film_of(values.astype(np.uint16)).pixels[:, :, 0]
    assert film[40:].mean() > 0.4 * levels(TWELVE)[40:].mean()


def test_a_blank_film_stays_blank_whatever_single_pixel_is_dead() -> None:
    values = np.full((SIDE, SIDE), 2000, np.uint16)
    values[3, 3] = 65535
    assert np.count_nonzero(film_of(values).pixels) == 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_range_is_that_of_all_values_but_few_that_are_far_away(data: st.DataObject) -> None:
    """Against the rule as it is written, value by value."""
    dice = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.integers(1, 400))
    kind = data.draw(st.sampled_from([np.uint8, np.uint16, np.int32, np.float32]))
    values = (dice.normal(100, data.draw(st.sampled_from([0.1, 5, 30])), size)).clip(0, 250).astype(kind)
    for _ in range(data.draw(st.integers(0, 6))):
        values[dice.integers(size)] = dice.integers(0, 256)
    if kind == np.int32:
        # Some below zero, or too far apart to be counted.
        values = (values - 120) * data.draw(st.sampled_from([1, 1000]))
    ordered = np.sort(values.astype(float))
    tail = int(0.02 * size)
    rest = ordered[tail : size - tail]
    span = rest[-1] - rest[0]
    low, high = rest[0], rest[-1]
    if span == 0:
        low, high = ordered[0], ordered[-1]
    else:
        for value in ordered[size - tail :]:
            if value - high > span / 4 or value - rest[-1] > span:
                break
            high = value
        for value in ordered[:tail][::-1]:
            if low - value > span / 4 or rest[0] - value > span:
                break
            low = value
    assert film_range(values.reshape(-1, 1)) == (low, high)


ORIGINALS = SHARED / "data" / "originals"


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="the original films are not here (../shared/data/originals)")
def test_real_films_have_nothing_far_away() -> None:
    """Letters, edges of plates and collimators, the brightest bone: all of it is film."""
    for path in sorted(ORIGINALS.rglob("*.jpeg")):
        with Image.open(path) as picture:
            values = np.asarray(picture.convert("L"))
        assert film_range(values) == (values.min(), values.max()), path.name
