"""Files that somebody made to break things, or that a bad disk did: a film or one sentence, never anything else."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from PIL.GifImagePlugin import GifImageFile

from pictures import encode
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.errors import ImageError
from pneumo_edge.preprocess import read_film

Infer = Callable[..., "subprocess.CompletedProcess[Any]"]


def small_films() -> dict[str, bytes]:
    """One small good file of each kind that takes its own way through Pillow."""
    y, x = np.mgrid[0:28, 0:36]
    grey = Image.fromarray(((x * 5 + y * 3) % 256).astype(np.uint8))
    colour = Image.merge("RGB", (grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grey))
    deep = Image.fromarray((x * 1000 + y * 77).astype(np.uint16))
    negative = Image.fromarray(255 - np.asarray(grey))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description that lies outside of its tag"
    deflated_pages = {"compression": "tiff_adobe_deflate", "save_all": True, "append_images": [negative]}
    return {
        "png": encode(grey, "PNG", exif=exif),
        "png-palette": encode(grey.convert("P"), "PNG", transparency=7),
        "png-16": encode(deep, "PNG"),
        "png-animated": encode(grey, "PNG", save_all=True, append_images=[negative]),
        "jpeg": encode(grey, "JPEG", exif=exif),
        "jpeg-progressive": encode(colour, "JPEG", progressive=True),
        "jpeg-cmyk": encode(colour.convert("CMYK"), "JPEG"),
        "webp": encode(colour, "WEBP", exif=exif),
        "webp-animated": encode(colour, "WEBP", save_all=True, append_images=[grey.convert("RGB")], lossless=True),
        "tiff": encode(grey, "TIFF", tiffinfo={270: "a description", 274: 6}),
        "tiff-lzw": encode(deep, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": encode(colour, "TIFF", compression="jpeg"),
        "tiff-deflate-pages": encode(grey, "TIFF", **deflated_pages),
        "tiff-float": encode(Image.fromarray((x / 7 - y).astype(np.float32)), "TIFF"),
        "bmp": encode(colour, "BMP"),
        "bmp-palette": encode(grey, "BMP"),
        "gif": encode(grey, "GIF"),
        "gif-animated": encode(grey, "GIF", save_all=True, append_images=[negative], loop=0),
    }


FILMS = small_films()


def judge(data: bytes) -> None:
    """Reads a film that may be anything; fails on whatever is neither a film nor one sentence."""
    try:
        film = read_film(data, 32, "the film")
    except ImageError as error:
        sentence = str(error)
        assert sentence.startswith("the film ")
        assert "\n" not in sentence
    else:
        assert film.pixels.shape == (32, 32, 1)
        assert film.pixels.dtype == np.uint8
        assert film.width > 0
        assert film.height > 0


EXTREMES = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xff\xff"]
"""Lengths, offsets and counts that a header can claim."""


def mutated(data: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """Truncates, flips, overwrites, cuts out, doubles or mixes in: one to four times."""
    garbled = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(garbled) - 1, 0)))
        length = draw(st.integers(1, 64))
        match draw(st.integers(0, 5)):
            case 0:
                del garbled[at:]
            case 1:
                garbled[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 2:
                garbled[at : at + 4] = draw(st.sampled_from(EXTREMES))
            case 3:
                del garbled[at : at + length]
            case 4:
                garbled[at:at] = garbled[at : at + length]
            case 5:
                garbled[at : at + length] = draw(st.binary(max_size=64))
    return bytes(garbled)


@pytest.mark.parametrize("kind", FILMS)
@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_garbled_file_is_a_film_or_one_sentence(kind: str, data: st.DataObject) -> None:
    judge(mutated(FILMS[kind], data.draw))


@pytest.mark.parametrize("kind", FILMS)
def test_a_file_cut_anywhere_never_becomes_half_a_film(kind: str) -> None:
    data = FILMS[kind]
    whole = read_film(data, 32).pixels
    for cut in range(0, len(data), max(1, len(data) // 150)):
        try:
            film = read_film(data[:cut], 32, "the film")
        except ImageError:
            continue
        # What is missing may be a later page or a checksum, never pixels of the first.
        assert (film.pixels == whole).all(), f"cut to {cut} of {len(data)} bytes"


SIGNATURES = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"RIFF\x10\0\0\0WEBP",
    b"BM",
    b"GIF89a",
    b"%!PS-Adobe-3.0 EPSF",
]
SIGNATURES += [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(signature=st.sampled_from(SIGNATURES), rest=st.binary(max_size=400))
def test_garbage_behind_any_signature_is_refused(signature: bytes, rest: bytes) -> None:
    with pytest.raises(ImageError) as refused:
        read_film(signature + rest, 32, "the film")
    sentence = str(refused.value)
    assert sentence.startswith(
        ("the film is damaged and cannot be read (", "the film is not an image that can be read here: use PNG, JPEG")
    ) or (signature + rest == b"" and sentence.startswith("the film is empty: "))
    # What bears the signature of a kind that is read is a bad file of that kind, whatever stands behind it.
    if signature not in (b"", b"%!PS-Adobe-3.0 EPSF"):
        assert sentence.startswith("the film is damaged")
    assert "\n" not in sentence


# ------------------------------------------------------------------------------------- headers that claim too much


def chunk(name: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))


def png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    header = pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + pack("<IHHI", 154, 0, 0, 54) + header + bytes(100)


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, width * height % 2**32)]
    entries = b"".join(pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + pack("<H", len(tags)) + entries + bytes(4)


def gif(width: int, height: int) -> bytes:
    screen = b"GIF89a" + pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"," + pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(FILMS["jpeg"])
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    frame = b"VP8X" + pack("<II", 10, 0) + pack("<I", width - 1)[:3] + pack("<I", height - 1)[:3]
    picture = encode(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    return b"RIFF" + pack("<I", 4 + len(frame) + len(picture)) + b"WEBP" + frame + picture


CLAIMS: dict[str, bytes] = {
    f"{make.__name__}-{side}": make(side, side)
    for make, sides in (
        # 12,000 x 12,000 is what Pillow would let through with a warning.
        (png, (60_000, 12_000, 2**31 - 1)),
        (bmp, (60_000, 12_000)),
        (tiff, (60_000, 12_000, 2**31 - 1)),
        (gif, (60_000, 12_000)),
        (jpeg, (60_000, 12_000)),
        (webp, (60_000, 12_000, 16_000)),
    )
    for side in sides
}

READ_ALL = """
import json, re, resource, sys
from pathlib import Path
from pneumo_edge.errors import ImageError
from pneumo_edge.preprocess import read_film
read_film(sys.argv[1], 224)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
def peak():  # not ru_maxrss, which starts at the size of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
for path in sys.argv[2:]:
    before = peak()
    try:
        said = f"a film of mean {read_film(path, 224).pixels.mean():.0f}"
    except ImageError as error:
        said = str(error)
    taken = peak() - before
    print(json.dumps([Path(path).name, said, taken / 1024]))
"""
"""Reads files in a process that may have one gigabyte; NumPy's threads keep to themselves what they would reserve."""


def read_all(files: list[Path]) -> list[tuple[str, str, float]]:
    """Returns name, answer, megabytes by which the peak grew, of all files but the first.

    How long that takes is the machine's affair; what would never end runs into the limit of the process.
    """
    line = [sys.executable, "-W", "error", "-c", READ_ALL, *map(str, files)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False, env=environment)
    # libtiff prints what it thinks; that it stays off the terminal is another test.
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr[-2000:]
    answers = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert [name for name, *_ in answers] == [file.name for file in files[1:]]
    return answers


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_headers_that_claim_gigapixels_are_refused_before_the_memory_is_taken(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("good.png", *CLAIMS)]
    for file, data in zip(files, (FILMS["png"], *CLAIMS.values()), strict=True):
        file.write_bytes(data)
    answers = read_all(files)
    for name, said, megabytes in answers:
        assert "pixels" in said or "damaged" in said or "not an image" in said, (name, said)
        assert megabytes < 20, (name, said)
    said_of = {name: said for name, said, *_ in answers}
    for kind in ("png", "bmp", "tiff", "gif", "jpeg"):
        for side in (60_000, 12_000):
            assert f"claims {side} x {side} pixels, more than any X-ray detector has" in said_of[f"{kind}-{side}"]


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_of_hundreds_of_garbled_files_none_takes_much_memory(tmp_path: Path) -> None:
    dice = np.random.default_rng(2)
    good = tmp_path / "good.png"
    good.write_bytes(FILMS["png"])
    files = [good]
    for i in range(400):
        kind = sorted(FILMS)[i % len(FILMS)]
        data = bytearray(FILMS[kind])
        for _ in range(dice.integers(1, 4)):
            # The headers are at the front.
            at = int(dice.integers(min(len(data), 120)))
            data[at : at + 2] = dice.bytes(2)
        files.append(tmp_path / f"{i:03}-{kind}")
        files[-1].write_bytes(data)
    for name, said, megabytes in read_all(files):
        # The largest picture that is read has 64 million pixels of 4 bytes, twice while it is converted.
        assert megabytes < 600, (name, said)


@pytest.mark.parametrize("kind", ["progressive", "thumbnail"])
def test_a_jpeg_of_endless_scans_is_refused_and_many_scans_of_a_small_one_are_read(kind: str) -> None:
    side = 8000 if kind == "progressive" else 64
    data = encode(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last : last + 2 + int.from_bytes(data[last + 2 : last + 4], "big")] + b"\0"
    endless = data[:last] + scan * 5000 + b"\xff\xd9"
    if kind == "progressive":
        with pytest.raises(ImageError, match=r"^the film is a JPEG with too many scans: save it again as"):
            read_film(endless, 32, "the film")
    else:
        assert read_film(endless, 32).pixels.mean() == pytest.approx(90, abs=1)


def test_an_endless_animation_is_read_no_further_than_its_second_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    one = encode(Image.new("L", (200, 200), 120), "GIF", loop=0)
    frame = one[one.index(b",") : -1]
    endless = one[: one.index(b",")] + (b"!\xf9\x04\0\0\0\0\0" + frame) * 20_000 + b";"
    sought: list[int] = []
    seek = GifImageFile._seek

    def noted(self: GifImageFile, frame: int, *rest: bool) -> None:
        sought.append(frame)
        seek(self, frame, *rest)

    monkeypatch.setattr(GifImageFile, "_seek", noted)
    film = read_film(endless, 32)
    assert max(sought) == 1
    assert film.warnings == ("the file holds several pictures; only the first was read",)
    assert film.pixels.mean() == pytest.approx(120, abs=1)


def test_a_tiff_whose_pages_lead_in_a_circle_is_read_once() -> None:
    data = bytearray(FILMS["tiff"])
    at = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[at : at + 2], "little")
    behind = at + 2 + 12 * entries
    data[behind : behind + 4] = data[4:8]
    assert (read_film(bytes(data), 32).pixels == read_film(FILMS["tiff"], 32).pixels).all()


def test_text_that_unpacks_to_gigabytes_is_not_unpacked() -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 1))
    header = FILMS["png"][:33]
    with pytest.raises(ImageError, match="is damaged and cannot be read"):
        read_film(header + bomb + FILMS["png"][33:], 32)


# ------------------------------------------------------------------------------------------------ by the thousand


def test_among_a_thousand_good_files_fifty_bad_ones_cost_fifty_answers(infer: Infer, tmp_path: Path) -> None:
    row = np.linspace(40, 200, 110).astype(np.uint8)
    good = [encode(Image.fromarray(np.tile(row[i:], (100, 1))), "PNG") for i in range(9)]
    kinds = sorted(FILMS)
    bad = {int(i) for i in np.random.default_rng(0).choice(1050, 50, replace=False)}
    for i in range(1050):
        data = good[i % 9]
        if i in bad:
            garbled = FILMS[kinds[i % len(kinds)]]
            cut, swapped = garbled[: len(garbled) // 3], b"\0\x01" + garbled[2:]
            data = (cut, swapped, bytes(500), b"text called .png", b"")[i % 5]
        (tmp_path / f"{i:04}.png").write_bytes(data)
    done = infer(tmp_path, "--format", "json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["path"] for answer in answers] == [str(tmp_path / f"{i:04}.png") for i in range(1050)]
    assert {i for i, answer in enumerate(answers) if "error" in answer} == bad
    assert done.stderr.splitlines() == [NOT_A_DIAGNOSIS, "50 of 1050 images could not be judged"]
    assert done.returncode == 1


def test_what_libraries_print_about_garbled_files_stays_off_the_terminal(infer: Infer, tmp_path: Path) -> None:
    dice = np.random.default_rng(1)
    for i in range(300):
        kind = sorted(FILMS)[i % len(FILMS)]
        data = bytearray(FILMS[kind])
        for _ in range(dice.integers(1, 7)):
            data[dice.integers(len(data))] ^= 1 << int(dice.integers(8))
        if i % 3 == 0:
            del data[dice.integers(len(data)) :]
        (tmp_path / f"{i:03}-{kind}.tif").write_bytes(data)
    # Not as errors here: what Pillow warns of must not be shown either.
    done = infer(tmp_path, env={"PYTHONWARNINGS": "always"})
    assert len(done.stdout.splitlines()) == 300
    assert done.stderr.splitlines()[0] == NOT_A_DIAGNOSIS
    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.splitlines()[1].endswith(" of 300 images could not be judged")
    assert done.returncode == 1


# ------------------------------------------------------------------------------------------------ of all formats

FUZZ = int(os.environ.get("PNEUMO_FUZZ", "400"))
"""Mutated files of the test below; 10,000 take some minutes."""

JPEG_LS = base64.b64decode(
    "/9j/9wALEAAMABABAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAKf9/1/7+/3/H9/1/P8P3/b9f0/PACgFAIAwBgGAYDAYDAYDAwMDACAIGBf1"
    "/X5AsHBwcHBw4cOAIAhw4cOGPn6/EJixYsWLAEAixYsWLFixR6+30hsePAIBHjx48ePPPPPOA4+XwgBAKaaaaaaaaaaZ550AgE888888888sssss"
    "BID3ROWWWWWWWWWWtYDE6gADXu9kVnnnnnnve8Bgb3vUAAadTomZ573veAwN73ve9wABhzTec5zAgP/Z"
)
JPEG_LOSSLESS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAMABABAREA/8QAFwABAQEBAAAAAAAAAAAAAAAACQgAEP/aAAgBAQABAADqAQBAEAQBAEAQBAEAQBAE"
    "AQBAMgCAUAgCAIAgCAIAgCAIAgCAIBkAQBAEAQCgEAQBAEAQBAEAQBAMgCAIAgCAIAgCAUAgCAIAgCAIBkAQBAEAQBAEAQBAEAQCgEAQBAMgCAIA"
    "gCAIAgCAIAgCAIAgCAUBkAQBAEAQBAEAQBAEAQBAEAQBAMgCAIAgCAIAgCAIAgCAIAgCAIBQCAUAgCAIAgCAIAgCAIAgCAIAgGQBAEAQCgEAQBAE"
    "AQBAEAQBAEAyAIAgCAIAgCAUAgCAIAgCAIAgGQBAEAQBAEAQBAEAoBAEAQBAEA///9k="
)
"""A frame of 12 x 16 pixels of 12 bits each."""


def more_films() -> dict[str, bytes]:
    """Deep pictures, rare JPEGs, and DICOM in every way in which it is packed."""
    y, x = np.mgrid[0:12, 0:16]
    deep = (x * 250 + y * 17).astype(np.uint16)
    wide = np.zeros((12, 16, 4), np.uint8)
    wide[:, :, 1], wide[:, :, 0], wide[:, :, 2:] = deep & 255, deep >> 8, 255
    grey_and_opacity = bytearray(encode(Image.fromarray(wide), "PNG"))
    grey_and_opacity[24:26] = b"\x10\x04"
    grey_and_opacity[29:33] = pack(">I", zlib.crc32(grey_and_opacity[12:29]))
    films = {
        "png-la16": bytes(grey_and_opacity),
        "tiff-int32-deflate": encode(Image.fromarray(deep.astype(np.int32)), "TIFF", compression="tiff_adobe_deflate"),
        "tiff-packbits": encode(Image.fromarray(deep), "TIFF", compression="packbits"),
        "jpeg-ls": JPEG_LS,
        "jpeg-lossless": JPEG_LOSSLESS,
    }
    if find_spec("pydicom") is None:
        return films
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    def dicom(syntax: str, frame: bytes | None = None, table: bool = False) -> bytes:
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid.UID("1.2.3")
        ds.PatientName, ds.PatientID = "SECRET^NAME", "SECRET-ID"
        ds.Modality, ds.PatientAge, ds.BodyPartExamined, ds.ViewPosition = "DX", "003Y", "CHEST", "PA"
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME1", 12, 16
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelPaddingValue, ds.RescaleSlope, ds.RescaleIntercept = 4000, 1, -1024
        if table:
            item = Dataset()
            item.add_new(0x00283002, "SS", [64, -1024, 12])
            item.add_new(0x00283006, "OW", np.arange(0, 4096, 64).astype(np.uint16).tobytes())
            ds.VOILUTSequence = [item]
        else:
            ds.WindowCenter, ds.WindowWidth = [1000, 7], [2000, 9]
        pixels = deep.byteswap() if syntax == uid.ExplicitVRBigEndian else deep
        ds.PixelData = pixels.tobytes() if frame is None else encapsulate([frame])
        ds["PixelData"].VR = "OW" if frame is None else "OB"
        file = io.BytesIO()
        ds.save_as(file, enforce_file_format=True)
        return file.getvalue()

    # Single bytes, as PackBits writes them: twice as long as the film.
    halves = [
        b"".join(b"\0" + half.tobytes() for half in (deep >> shift & 255).astype(np.uint8).flat) for shift in (8, 0)
    ]
    packed = pack("<16L", 2, 64, 64 + len(halves[0]), *[0] * 13) + b"".join(halves)
    films |= {
        "dcm": dicom(uid.ExplicitVRLittleEndian),
        "dcm-implicit": dicom(uid.ImplicitVRLittleEndian, table=True),
        "dcm-big-endian": dicom(uid.ExplicitVRBigEndian, table=True),
        "dcm-deflated": dicom(uid.DeflatedExplicitVRLittleEndian),
        "dcm-rle": dicom(uid.RLELossless, packed),
        "dcm-jpeg-ls": dicom(uid.JPEGLSLossless, JPEG_LS),
        "dcm-jpeg-lossless": dicom(uid.JPEGLosslessSV1, JPEG_LOSSLESS),
    }
    if features.check("jpg_2000"):
        films["dcm-jpeg-2000"] = dicom(
            uid.JPEG2000Lossless, encode(Image.fromarray(deep), "JPEG2000", no_jp2=True, irreversible=False)
        )
    return films


ALL_FILMS = FILMS | more_films()


def test_the_films_that_are_going_to_be_garbled_are_good() -> None:
    for kind, data in ALL_FILMS.items():
        if find_spec("gdcm") or not any(word in kind for word in ("jpeg-ls", "lossless")):
            assert read_film(data, 32, kind).pixels.std() > 10, kind


def garbled(dice: np.random.Generator) -> tuple[str, bytes]:
    """Returns a kind and a file of it that was cut, flipped, overwritten, thinned, doubled or mixed with another."""
    kinds = sorted(ALL_FILMS)
    kind = kinds[dice.integers(len(kinds))]
    data = bytearray(ALL_FILMS[kind])
    for _ in range(dice.integers(1, 5)):
        # The headers are at the front, and more depends on them.
        reach = len(data) if dice.random() < 0.5 else min(len(data), 400)
        at, length = int(dice.integers(max(reach, 1))), int(dice.integers(1, 65))
        match int(dice.integers(8)):
            case 0:
                del data[at + 1 :]
            case 1 | 2:
                data[at : at + 1] = dice.bytes(1)
            case 3:
                data[at : at + 4] = EXTREMES[dice.integers(len(EXTREMES))]
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                data[at : at + length] = dice.bytes(length)
            case 7:
                other = ALL_FILMS[kinds[dice.integers(len(kinds))]]
                data[at:] = other[at:]
    return kind, bytes(data)


HOW_LARGE = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=file)
sys.exit(status)
"""
"""Runs a command, and writes its peak memory in kB. A small process between: that of a child starts at the size of its
parent, and this one, with all tests in it, may be larger than any limit."""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_mutated_films_of_all_formats_give_a_line_each(
    infer_command: Callable[..., list[str | Path]], tmp_path: Path
) -> None:
    """`PNEUMO_FUZZ=10000 pytest tests/edge/test_hostile.py -k mutated` for more of them."""
    dice = np.random.default_rng(28)
    films = tmp_path / "films"
    films.mkdir()
    for i in range(FUZZ):
        kind, data = garbled(dice)
        suffix = {"dcm": "dcm", "tiff": "tif", "jpeg": "jpg"}.get(kind.split("-")[0], kind.split("-")[0])
        (films / f"{i:05}-{kind}.{suffix}").write_bytes(data)
    answers, said = tmp_path / "answers", tmp_path / "said"
    with answers.open("wb") as out, said.open("wb") as err:
        command = [sys.executable, "-c", HOW_LARGE, tmp_path / "peak", *infer_command(films, "--format", "json")]
        process = subprocess.run(command, stdout=out, stderr=err, check=False)
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [record["path"] for record in records] == sorted(map(str, films.iterdir()))
    failed = [record for record in records if "error" in record]
    assert 0 < len(failed) < FUZZ
    for record in failed:
        assert record["error"].startswith(record["path"]), record
        assert "\n" not in record["error"], record
    assert "SECRET" not in answers.read_text()
    assert said.read_text().splitlines() == [
        NOT_A_DIAGNOSIS,
        f"{len(failed)} of {FUZZ} images could not be judged",
    ]
    assert process.returncode == 1
    # Two films of 64 million pixels side by side, twice 4 bytes each while they are converted.
    assert int((tmp_path / "peak").read_text()) / 1024 < 1500
