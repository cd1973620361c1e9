"""What the page's own module makes of a file, in Chromium, against what `pneumo_edge.preprocess` makes of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from chromium import need_chromium
from places import SHARED
from pneumo_edge import levels
from pneumo_edge.plausibility import objections
from pneumo_edge.preprocess import read_deep_film, read_film

need_chromium()

Read = Callable[..., dict[str, Any]]

SIZE = 160
ORIENTATIONS = range(1, 9)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def film_like(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth and sharp parts, and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = 120 + 90 * np.sin(x / 37) * np.cos(y / 23) + 30 * (x // 11 % 2) + random.normal(0, 12, (height, width))
    return np.asarray(smooth.clip(0, 255), dtype=np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png(samples: npt.NDArray[Any], kind: int, depth: int, *chunks: bytes, passes: bool = False) -> bytes:
    """Writes (H, W, C) as PNG: Pillow writes neither 16 bits in colour nor interlaced ones."""
    height, width, _ = samples.shape
    lines = []
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    for left, top, across, down in steps if passes else [(0, 0, 1, 1)]:
        part = samples[top::down, left::across]
        for row in part if part.size else ():
            if depth < 8:
                bits = np.unpackbits(row.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
                packed = np.packbits(bits.ravel()).tobytes()
            else:
                packed = row.astype(">u2" if depth == 16 else "u1").tobytes()
            lines.append(b"\0" + packed)
    head = struct.pack(">LLBBBBB", width, height, depth, kind, 0, 0, int(passes))
    body = chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(b"".join(lines)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def deep(height: int = 210, width: int = 333, channels: int = 1, seed: int = 3) -> npt.NDArray[np.uint16]:
    planes = [film_like(height, width, seed + n).astype(np.uint16) * 13 + 500 * (n + 1) for n in range(channels)]
    return np.dstack(planes)


def pngs() -> dict[str, bytes]:
    grey = film_like(411, 523)
    colour = np.dstack([film_like(200, 310, n) for n in range(3)])
    opacity = np.dstack([colour, film_like(200, 310, 9)])
    one_pixel = deep()
    one_pixel[5, 7] = 65535
    shades = np.random.default_rng(1).integers(0, 16, (150, 170, 1))
    return {
        "grey": saved(Image.fromarray(grey)),
        "small": saved(Image.fromarray(film_like(97, 120))),
        "wide": saved(Image.fromarray(film_like(100, 900))),
        "tall": saved(Image.fromarray(film_like(300, 200))),
        "1 bit": saved(Image.fromarray(grey).convert("1")),
        "2 bits": png(shades % 4, 0, 2),
        "4 bits": png(shades, 0, 4),
        "4 bits, interlaced": png(shades, 0, 4, passes=True),
        "grey, interlaced": png(grey[:, :, None], 0, 8, passes=True),
        "palette": saved(Image.fromarray(colour).quantize(64)),
        "palette with nothing": saved(Image.fromarray(colour).quantize(64), transparency=bytes(range(0, 256, 4))),
        "grey with nothing": png(grey[:, :, None], 0, 8, chunk(b"tRNS", b"\0\x78")),
        "grey and opacity": saved(Image.fromarray(np.dstack([grey, grey[::-1]]), "LA")),
        "grey as colour": saved(Image.fromarray(grey).convert("RGB")),
        "colour": saved(Image.fromarray(colour)),
        "colour with nothing": png(colour, 2, 8, chunk(b"tRNS", struct.pack(">HHH", *map(int, colour[3, 3])))),
        "colour and opacity": saved(Image.fromarray(opacity, "RGBA")),
        "16 bits": png(deep(), 0, 16),
        "16 bits, one dead pixel": png(one_pixel, 0, 16),
        "16 bits of one value": png(np.full((120, 130, 1), 700, np.uint16), 0, 16),
        "16 bits, interlaced": png(deep(), 0, 16, passes=True),
        "16 bits in colour": png(deep(channels=3), 2, 16),
        "16 bits and opacity": png(deep(channels=2) * 16, 4, 16),
        "16 bits and the same opacity": png(np.dstack([deep(), np.full((210, 333), 4095)]), 4, 16),
        "16 bits in colour and opacity": png(deep(channels=4) * 16, 6, 16),
        "16 bits with nothing": png(deep(), 0, 16, chunk(b"tRNS", struct.pack(">H", int(deep()[0, 0, 0])))),
    }


PNGS = pngs()


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize("kind", PNGS)
def test_a_png_is_read_to_the_last_bit(kind: str, read: Read) -> None:
    data = PNGS[kind]
    want, found = read_film(data, SIZE), read(data, whole=True)
    assert "refused" not in found, found
    np.testing.assert_array_equal(found["pixels"], want.pixels)
    assert (found["width"], found["height"]) == (want.width, want.height)
    assert found["chroma"] == pytest.approx(want.chroma, abs=2e-3)
    assert tuple(found["warnings"]) == want.warnings
    assert tuple(found["objections"]) == objections(want)
    deep_film, film = read_deep_film(data), found["film"]
    np.testing.assert_array_equal(film["values"], deep_film.values)
    assert (film["levels"], film["low"], film["high"]) == (deep_film.levels, deep_film.low, deep_film.high)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_says_how_a_picture_lies(orientation: int, read: Read) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(film_like(300, 200))
    for kind, nearest in (("PNG", 0), ("JPEG", 1)):
        data = saved(picture, kind, exif=exif)
        want, found = read_film(data, SIZE), read(data)
        assert np.abs(found["pixels"].astype(int) - want.pixels).max() <= nearest
        assert (found["width"], found["height"]) == (want.width, want.height)
        values, kept = read(data, whole=True)["film"]["values"].astype(int), read_deep_film(data).values
        assert values.shape == kept.shape
        assert np.abs(values - kept).max() <= nearest


@pytest.mark.parametrize(
    ("mode", "options", "shape"),
    [
        ("L", {}, (300, 260)),
        ("L", {"progressive": True}, (700, 645)),
        ("L", {}, (1301, 1603)),
        ("RGB", {}, (300, 260)),
        ("RGB", {"quality": 95, "subsampling": 0}, (700, 645)),
        ("RGB", {"progressive": True}, (1301, 1603)),
        ("L", {}, (2600, 2701)),
    ],
)
def test_a_jpeg_is_nearly_the_same(mode: str, options: dict[str, Any], shape: tuple[int, int], read: Read) -> None:
    """libjpeg scales while it decodes, a browser does not: what it leaves out is what the page works out."""
    grey = Image.fromarray(film_like(*shape))
    picture = grey if mode == "L" else Image.merge("RGB", [grey, grey.point(lambda v: v * 0.9), grey])
    data = saved(picture, "JPEG", **options)
    want, found = read_film(data, SIZE), read(data)
    away = np.abs(found["pixels"].astype(int) - want.pixels)
    assert away.max() <= 2
    assert away.mean() <= 0.25
    assert (found["width"], found["height"]) == (want.width, want.height)
    assert found["chroma"] == pytest.approx(want.chroma, abs=0.1)


def test_a_colour_profile_changes_nothing(read: Read) -> None:
    from PIL import ImageCms

    picture = Image.fromarray(film_like(400, 300)).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("PNG", "JPEG"):
        plain, tagged = saved(picture, kind), saved(picture, kind, icc_profile=profile)
        np.testing.assert_array_equal(read(plain)["pixels"], read(tagged)["pixels"])


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("BMP", {})])
def test_what_the_browser_decodes(kind: str, options: dict[str, Any], read: Read) -> None:
    data = saved(Image.fromarray(film_like(300, 270)), kind, **options)
    np.testing.assert_array_equal(read(data)["pixels"], read_film(data, SIZE).pixels)


def test_several_pictures_in_one_file(read: Read) -> None:
    pictures = [Image.fromarray(film_like(200, 200, n)) for n in range(2)]
    for kind in ("PNG", "WEBP"):
        data = saved(pictures[0], kind, save_all=True, append_images=pictures[1:])
        assert read(data)["warnings"] == list(read_film(data, SIZE).warnings) != []


def test_the_range_of_a_film(read: Read) -> None:
    """Values that few pixels have, near and far: the same decisions as numpy's."""
    random = np.random.default_rng(5)
    for seed in range(12):
        values = random.normal(2000, 150 * (1 + seed), (120, 120)).clip(0, 60000).astype(np.uint16)
        values.flat[: 10 + 40 * seed] = random.integers(0, 65536, 10 + 40 * seed)
        low, high = levels.film_range(values)
        film = read(png(values[:, :, None], 0, 16))["film"]
        assert (film["low"], film["high"]) == (low - values.min(), high - values.min())


# --------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_film_gets_a_sentence(read: Read) -> None:
    whole = saved(Image.fromarray(film_like(400, 300)), "JPEG")
    grey = saved(Image.fromarray(film_like(400, 300)))
    cmyk = saved(Image.fromarray(film_like(200, 200)).convert("CMYK"), "JPEG")
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">LLBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    unfolds = png(np.zeros((10, 10, 1)), 0, 8).replace(
        chunk(b"IDAT", zlib.compress(bytes(110))), chunk(b"IDAT", zlib.compress(bytes(50_000_000)))
    )
    said = {
        b"no picture": "film is not an image that this page reads: use PNG, JPEG, WebP, BMP or DICOM",
        b"": "film is empty: copy it again from where it came",
        whole[:3000]: "film is damaged and cannot be read (it ends too early): copy it again from where it came",
        grey[:3000]: "film is damaged and cannot be read (it ends too early): copy it again from where it came",
        cmyk: "film is a CMYK JPEG, which is made for print: save it as PNG",
        bomb: "film claims 60000 x 60000 pixels, more than any X-ray detector has: scale it down to 64 million",
        saved(Image.fromarray(film_like(90, 90)), "TIFF"): "film is a TIFF, which browsers do not read: save it as PNG",
    }
    for data, sentence in said.items():
        assert read(data) == {"refused": sentence, "whole": True}
    # So many pixels and no more, whatever it unfolds to.
    assert read(unfolds)["pixels"].shape == (SIZE, SIZE, 1)


def test_garbled_files_never_end_the_page(read: Read) -> None:
    random = np.random.default_rng(2)
    films = [saved(Image.fromarray(film_like(90, 120)), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    films += [png(deep(60, 50), 0, 16)]
    for n in range(150):
        data = bytearray(films[n % len(films)])
        for at in random.integers(0, len(data), 1 + n % 7):
            data[at] = random.integers(0, 256)
        found = read(bytes(data[: len(data) - n % 3 * 40]), name="x.png")
        if "refused" in found:
            assert found["whole"]
            assert found["refused"].startswith("x.png ")
        else:
            assert found["pixels"].shape == (SIZE, SIZE, 1)


# -------------------------------------------------------------------------------------------------- real films


def test_real_films(read: Read) -> None:
    folder = SHARED / "data" / "originals"
    films = sorted(folder.rglob("*.jpeg"))
    if not films:
        pytest.skip("there are no films in ../shared")
    for path in films[::4]:
        data = path.read_bytes()
        want, found = read_film(data, SIZE), read(data)
        away = np.abs(found["pixels"].astype(int) - want.pixels)
        assert away.max() <= 3, path.name
        assert away.mean() <= 0.25, path.name
