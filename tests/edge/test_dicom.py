"""DICOM in: the right picture or one sentence, whatever the file holds."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels.processing import apply_modality_lut, apply_windowing  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_films import compressed, dataset, encode  # noqa: E402
from places import SHARED  # noqa: E402
from pneumo_edge import Classifier  # noqa: E402
from pneumo_edge.bundle import Ages, Provenance, Site  # noqa: E402
from pneumo_edge.dicom import DicomFilm, read_dicom  # noqa: E402
from pneumo_edge.dicom.tags import is_dicom  # noqa: E402
from pneumo_edge.errors import ImageError, MissingExtraError  # noqa: E402
from pneumo_edge.preprocess import read_film  # noqa: E402

REAL = SHARED / "data" / "dicom"

HEIGHT, WIDTH = 24, 32

needs_gdcm = pytest.mark.skipif(importlib.util.find_spec("gdcm") is None, reason="python-gdcm is not installed")
needs_openjpeg = pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")

Pixels = npt.NDArray[Any]


def ramp(bits: int = 12, signed: bool = False) -> Pixels:
    """A picture that uses the whole range: dark at the left, light at the right, a little brighter downwards."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    unit = (x / (WIDTH - 1) * 0.8) + (y / (HEIGHT - 1) * 0.2)
    values = np.rint(unit * (2**bits - 1)).astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    return np.asarray(values, dtype=f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def no_package(name: str) -> None:
    """Stands in for `importlib.util.find_spec` where nothing is installed."""


def unit_levels(values: Pixels) -> npt.NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return np.rint(255 * (values.astype(np.float64) - low) / (high - low)).astype(np.uint8)


def read(data: bytes) -> DicomFilm:
    film = read_dicom(data, "film.dcm")
    assert film.grey.dtype == np.uint8
    return film


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_dicom(data, "film.dcm")
    message = str(caught.value)
    assert message.startswith("film.dcm ")
    assert "\n" not in message
    assert "SECRET" not in message
    return message


def survives(data: bytes) -> None:
    """The file gives a film or one sentence, and nothing else."""
    try:
        film = read_dicom(data, "film.dcm")
    except ImageError as error:
        assert "SECRET" not in str(error)
    else:
        assert film.grey.dtype == np.uint8
        assert film.grey.ndim == 2


def peak(read: Callable[[], object]) -> int:
    """Returns how many bytes of Python and NumPy were held at once while something was done."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def gdcm_encoded(tmp_path: Path, ds: Dataset, syntax: UID) -> bytes:
    gdcm = importlib.import_module("gdcm")
    plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
    plain.write_bytes(encode(ds))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(packed))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return packed.read_bytes()


def for_gdcm() -> bytes:
    """A film that GDCM alone decodes."""
    return compressed(dataset(SMALL, bits=12), JPEG_OF_12_BITS, JPEGExtended12Bit)


def jpeg_2000(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
    return buffer.getvalue()


def jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def lut_item(first: int, bits: int, entries: Pixels, packed: bool = False) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new(0x00283006, "OW", entries.astype("u1" if packed else "<u2").tobytes())
    return item


# --- is it DICOM? ---


def test_recognises_dicom_with_and_without_preamble() -> None:
    data = encode(dataset(ramp()))
    assert is_dicom(data[:132])
    assert is_dicom(data[132:644])  # explicit, group 0002
    assert is_dicom(pack("<HHL", 8, 0, 4) + pack("<L", 100) + bytes(200))  # implicit, group 0008
    assert is_dicom(pack("<HH2sH", 8, 5, b"CS", 10) + b"ISO_IR 100" + bytes(200))


def test_other_files_are_no_dicom() -> None:
    pixels = np.zeros((200, 200), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        assert not is_dicom(buffer.getvalue()[:512]), kind
    assert not is_dicom(b"")
    assert not is_dicom(bytes(512))
    assert not is_dicom(b"\x08\x00\x05\x00" + b"\xff" * 400)
    assert not is_dicom(b"A line of text. " * 30)


# --- stored values to grey levels ---


def test_full_range_without_window() -> None:
    pixels = ramp() // 2 + 300
    assert np.array_equal(read(encode(dataset(pixels, bits=12))).grey, unit_levels(pixels))


def test_monochrome1_is_the_negative_of_monochrome2() -> None:
    two = read(encode(dataset(ramp(), bits=12))).grey
    one = read(encode(dataset(ramp(), bits=12, PhotometricInterpretation="MONOCHROME1"))).grey
    assert np.abs(255 - one.astype(int) - two).max() <= 1  # 0.5 rounds to even
    assert one[0, 0] == 255


def test_inverse_presentation_inverts_once() -> None:
    """The digital X-ray module writes MONOCHROME1 and INVERSE together for one inversion."""
    plain = read(encode(dataset(ramp(), bits=12, PhotometricInterpretation="MONOCHROME1"))).grey
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": "INVERSE"}
        assert np.array_equal(read(encode(dataset(ramp(), bits=12, **tags))).grey, plain)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (12, False), (12, True), (16, False), (16, True)])
def test_every_plain_encoding_gives_the_same_picture(syntax: str, bits: int, signed: bool) -> None:
    pixels = ramp(bits, signed)
    data = encode(dataset(pixels, syntax, bits))
    assert np.array_equal(read(data).grey, unit_levels(pixels))


def test_signed_values_with_rubbish_in_the_unused_bits() -> None:
    pixels = ramp(12, signed=True)
    dirty = (pixels.view(np.uint16) & 0x0FFF) | 0x7000
    ds = dataset(pixels, bits=12, PixelData=dirty.tobytes())
    assert np.array_equal(read(encode(ds)).grey, unit_levels(pixels))


def test_values_at_the_top_of_their_bits() -> None:
    pixels = ramp(12)
    ds = dataset(pixels, bits=12, HighBit=15, PixelData=((pixels << 4) | 0x000F).tobytes())
    assert np.array_equal(read(encode(ds)).grey, unit_levels(pixels))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2.5, -1000), (0.01, 3)])
def test_window_agrees_with_pydicom(function: str | None, slope: float, intercept: float) -> None:
    centre, width = 1500 * slope + intercept, 1200 * slope
    tags: dict[str, Any] = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    tags |= {"WindowCenter": [centre, 7], "WindowWidth": [width, 9]}
    if function:
        tags["VOILUTFunction"] = function
    ds = dataset(ramp(), bits=12, **tags)
    wanted = apply_windowing(apply_modality_lut(ramp(), ds), ds)
    low, high = intercept, 4095 * slope + intercept
    grey = read(encode(ds)).grey
    assert np.abs(grey - 255 * (wanted - low) / (high - low)).max() <= 0.5 + 1e-6
    assert len(np.unique(grey)) > 50


@pytest.mark.parametrize("width", [0, -5, 0.3])
def test_a_window_of_no_width_is_ignored(width: float) -> None:
    ds = dataset(ramp(), bits=12, WindowCenter=50, WindowWidth=width)
    assert np.array_equal(read(encode(ds)).grey, unit_levels(ramp()))


def test_a_window_of_width_one_is_a_step() -> None:
    grey = read(encode(dataset(ramp(), bits=12, WindowCenter=2000, WindowWidth=1))).grey
    assert np.array_equal(grey, np.where(ramp() > 1999.5, 255, 0))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("bits", "packed"), [(16, False), (12, False), (11, False), (8, False), (8, True)])
def test_voi_table(syntax: str, bits: int, packed: bool) -> None:
    top = 2**bits - 1
    entries = np.rint(top * np.linspace(0, 1, 1000) ** 2)
    ds = dataset(ramp(), syntax, bits=12, WindowCenter=5, WindowWidth=2)
    ds.VOILUTSequence = [lut_item(1500, bits, entries, packed)]
    wanted = 255 * entries[np.clip(ramp().astype(int) - 1500, 0, 999)] / top
    assert np.abs(read(encode(ds)).grey - wanted).max() <= 0.5 + 1e-6


def test_voi_table_behind_a_rescale_to_negative_values() -> None:
    entries = np.arange(4096)
    ds = dataset(ramp(), bits=12, RescaleSlope=1, RescaleIntercept=-1024)
    ds.VOILUTSequence = [lut_item(-1024, 12, entries)]
    assert np.array_equal(read(encode(ds)).grey, np.rint(255 / 4095 * ramp()))


def test_modality_table_goes_before_slope_and_window() -> None:
    entries = 4095 - np.arange(4096)
    ds = dataset(ramp(), bits=12, RescaleSlope=3, RescaleIntercept=9, WindowCenter=2048, WindowWidth=4096)
    ds.ModalityLUTSequence = [lut_item(0, 12, entries)]
    assert np.array_equal(read(encode(ds)).grey, np.rint(255 / 4095 * (4095 - ramp())))


def test_padding_is_black_and_does_not_count() -> None:
    body = ramp(10) + 1000
    pixels = body.copy()
    pixels[:5] = 4000
    pixels[5:7] = 4002
    tags = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4002, "PhotometricInterpretation": "MONOCHROME1"}
    grey = read(encode(dataset(pixels, bits=12, **tags))).grey
    assert not grey[:7].any()
    assert np.abs(255 - unit_levels(body[7:]).astype(int) - grey[7:]).max() <= 1


def test_a_blank_film_does_not_divide_by_zero() -> None:
    assert not read(encode(dataset(np.full((8, 8), 77, dtype=np.uint16)))).grey.any()


@pytest.mark.parametrize("value", ["1e300", "-1e300", "1e-300"])
def test_absurd_slopes_and_windows(value: str) -> None:
    survives(encode(dataset(ramp(), bits=12, RescaleSlope=value, RescaleIntercept=value)))
    survives(encode(dataset(ramp(), bits=12, WindowCenter=value, WindowWidth="1e300")))


# --- how the file is written ---


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_without_preamble_and_meta(syntax: str) -> None:
    ds = dataset(ramp(), syntax, bits=12)
    buffer = io.BytesIO()
    ds.file_meta = FileMetaDataset()
    ds.save_as(buffer, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    data = buffer.getvalue()
    assert b"DICM" not in data[:140]
    assert is_dicom(data[:512])
    assert np.array_equal(read(data).grey, unit_levels(ramp()))


def test_old_files_that_leave_things_out() -> None:
    pixels = ramp(16)
    ds = dataset(pixels, SamplesPerPixel=None, BitsStored=None, HighBit=None, PixelRepresentation=None)
    assert np.array_equal(read(encode(ds)).grey, unit_levels(pixels))


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, False)])
def test_rle(bits: int, signed: bool) -> None:
    ds = dataset(ramp(bits, signed), bits=bits)
    ds.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(read(encode(ds)).grey, unit_levels(ramp(bits, signed)))


@needs_gdcm
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (10, False), (12, True), (16, False)])
def test_lossless_syntaxes(tmp_path: Path, syntax: UID, bits: int, signed: bool) -> None:
    pixels = ramp(bits, signed)
    data = gdcm_encoded(tmp_path, dataset(pixels, bits=bits), syntax)
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read(data).grey, unit_levels(pixels))


@pytest.mark.parametrize("allocated", [8, 16])
def test_jpeg_baseline(allocated: int) -> None:
    ds = dataset(ramp(8), BitsAllocated=allocated, WindowCenter=128, WindowWidth=256)
    film = read(compressed(ds, jpeg(ramp(8)), JPEGBaseline8Bit))
    assert np.abs(film.grey.astype(int) - ramp(8)).max() <= 2


@needs_openjpeg
def test_jpeg_2000_bare_and_in_its_container() -> None:
    pixels = ramp(16)
    bare = jpeg_2000(pixels)
    container = io.BytesIO()
    Image.fromarray(pixels).save(container, "JPEG2000", irreversible=False)
    for frame in (bare, container.getvalue()):
        film = read(compressed(dataset(pixels), frame, JPEG2000Lossless))
        assert np.array_equal(film.grey, unit_levels(pixels))


SMALL = np.add(*np.mgrid[0:12, 0:16]).astype(np.uint16) * 150
"""What the two frames below show: no package of the project can write them."""

JPEG_OF_12_BITS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsK"
    "DAkKCgr/wQALDAAMABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAADQoM/8QAIhAAAAMHBQAAAAAAAAAAAAAAAAwoBAoLKThEVUZiY2Rz/9oACAEB"
    "AAA/AMDOVUSqlThLhxWlPPYEsAqolVKnCXDitKeewSIlVGHcOsScEI4q7ZePrBLAKqMO4dYk4IRxV2y8fWH/2Q=="
)
HIGH_THROUGHPUT_JPEG_2000 = base64.b64decode(
    "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIIAAf+TwAAmx/UFB3QAAMAAE0AAEwC0+gMHdAAI+gMHdADAABPAABMAWGH1"
    "AoJ0ANPpACI0AMAAFVAABViiRIn6oIIyAnYAoooqqqjAQgG+tgDAACtgABaYKioqKioq54p6cYJ3ACpVVFRUVFRU/voMYHv2MYHsugD/2Q=="
)


@needs_gdcm
def test_jpeg_extended_with_12_bits(capfd: pytest.CaptureFixture[str]) -> None:
    film = read(compressed(dataset(SMALL, bits=12), JPEG_OF_12_BITS, JPEGExtended12Bit))
    assert np.abs(film.grey.astype(int) - unit_levels(SMALL)).max() <= 1
    assert capfd.readouterr() == ("", "")


@needs_gdcm
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_same_codestreams_outside_of_dicom(tmp_path: Path, syntax: UID, bits: int) -> None:
    pixels = np.pad(ramp(bits), ((0, WIDTH - HEIGHT), (0, 0)))
    ds = pydicom.dcmread(io.BytesIO(gdcm_encoded(tmp_path, dataset(pixels, bits=bits), syntax)))
    film = read_film(pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1), WIDTH)
    assert np.array_equal(film.pixels[:, :, 0], pixels if bits == 8 else unit_levels(pixels))


@needs_gdcm
def test_a_jpeg_of_12_bits_outside_of_dicom() -> None:
    film = read_film(JPEG_OF_12_BITS, 64)
    assert (film.width, film.height) == SMALL.shape[::-1]
    whole = Image.fromarray(unit_levels(SMALL)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(film.pixels[:, :, 0].astype(int) - np.asarray(whole)).max() <= 2


def test_a_jpeg_of_12_bits_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", no_package)
    with pytest.raises(ImageError, match=r"JPEG of 12 bits\) that needs the package python-gdcm: pip install 'pneumo"):
        read_film(JPEG_OF_12_BITS, 32, "the film")


@needs_openjpeg
def test_high_throughput_jpeg_2000() -> None:
    film = read(compressed(dataset(SMALL), HIGH_THROUGHPUT_JPEG_2000, HTJ2KLossless))
    assert np.array_equal(film.grey, unit_levels(SMALL))


# --- refused with a sentence ---


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "IO", "PX", "RF", "XA", "OT", "SR"])
def test_other_modalities_are_refused_by_name(modality: str) -> None:
    assert f"modality {modality} (" in refusal(encode(dataset(ramp(), Modality=modality)))


@pytest.mark.parametrize("modality", ["CR", "DX", "RG"])
def test_projection_radiographs_are_read(modality: str) -> None:
    assert read(encode(dataset(ramp(), Modality=modality))).warnings == ()


def test_nothing_to_see() -> None:
    assert "without pixel data" in refusal(encode(dataset(ramp(), PixelData=None)))


def test_several_frames_are_refused() -> None:
    ds = dataset(ramp(), NumberOfFrames=2, PixelData=ramp().tobytes() * 2)
    assert "2 frames" in refusal(encode(ds))


def test_colour_is_refused() -> None:
    rgb = dataset(ramp(8), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    rgb.PixelData = ramp(8).tobytes() * 3
    assert "colour" in refusal(encode(rgb))
    assert "colour" in refusal(encode(dataset(ramp(8), PhotometricInterpretation="PALETTE COLOR")))


@pytest.mark.parametrize("tag", ["PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"])
def test_missing_tags_are_named(tag: str) -> None:
    assert tag in refusal(encode(dataset(ramp(), **{tag: None})))


def test_gigapixels_are_refused_before_any_of_them_is_made() -> None:
    assert "60000 x 60000 pixels" in refusal(encode(dataset(ramp(), Rows=60000, Columns=60000)))


@pytest.mark.parametrize("tags", [{"Rows": 25}, {"Columns": 8000}, {"Rows": 0}, {"BitsAllocated": 32}])
def test_a_header_that_claims_other_pixels_than_there_are(tags: dict[str, Any]) -> None:
    assert "damaged" in refusal(encode(dataset(ramp(), **tags)))


@pytest.mark.parametrize("tags", [{"BitsStored": 17}, {"BitsAllocated": 12}, {"BitsStored": 0}])
def test_odd_numbers_of_bits(tags: dict[str, Any]) -> None:
    refusal(encode(dataset(ramp(), **tags)))


def test_a_codestream_that_claims_gigapixels() -> None:
    frame = bytearray(jpeg(ramp(8)))
    at = frame.index(b"\xff\xc0")
    frame[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert "damaged" in refusal(compressed(dataset(ramp(8)), bytes(frame), JPEGBaseline8Bit))
    if features.check("jpg_2000"):
        frame = bytearray(jpeg_2000(ramp(8)))
        frame[8:16] = b"\x00\x01\x00\x00" * 2
        assert "damaged" in refusal(compressed(dataset(ramp(8)), bytes(frame), JPEG2000Lossless))


def test_syntaxes_without_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    known = compressed(dataset(ramp(8)), b"\0" * 16, MPEG2MPML)
    unknown = known.replace(MPEG2MPML.encode(), b"1.2.3." + b"4" * (len(MPEG2MPML) - 6))
    assert "MPEG2" in refusal(known)
    assert "unknown syntax" in refusal(unknown)
    monkeypatch.setattr(importlib.util, "find_spec", no_package)
    assert "JPEG of 12 bits) that needs the package python-gdcm: pip install 'pneumo[dicom]'" in refusal(for_gdcm())


def test_deflated_files_that_unpack_to_more_than_a_film_are_refused_before_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pneumo_edge.dicom.tags._MAX_INFLATED", 1_000_000)
    ds = dataset(np.zeros((4000, 4000), dtype=np.uint16))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert "unpacks to more than any film has" in refusal(encode(ds))


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=re.escape("film.dcm is a DICOM file")) as caught:
        read_dicom(encode(dataset(ramp())), "film.dcm")
    assert "pip install 'pneumo[dicom]'" in str(caught.value)


# --- what the model has not seen ---


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("045Y", 45),
        ("81", 81),
        ("000Y", 0),
        ("018M", 1.5),
        ("003W", 3 / 52.18),
        ("010D", 10 / 365.25),
        ("093Y", 93),
        ("", None),
        ("rubbish", None),
    ],
)
def test_age(age: str, years: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom objects to writing "rubbish"
        data = encode(dataset(ramp(), PatientAge=age))
    found = read(data)
    assert (found.age_years, found.warnings) == (years, ())


@pytest.mark.parametrize(
    ("born", "taken", "years"),
    [
        ("20000615", "20240614", 23),
        ("20000615", "20240615", 24),
        ("20240101", "20240301", 0),
        ("20250101", "20240301", None),
        ("", "20240301", None),
    ],
)
def test_age_from_dates(born: str, taken: str, years: int | None) -> None:
    found = read(encode(dataset(ramp(), PatientAge=None, PatientBirthDate=born, StudyDate=taken)))
    assert (found.age_years, found.warnings) == (years, ())


def test_ages_and_views_are_warned_of_by_the_sites_of_the_bundle(write_bundle: Callable[..., Path]) -> None:
    film = encode(dataset(ramp(), PatientAge="050Y", ViewPosition="AP"))
    lateral = encode(dataset(ramp(), PatientAge="003Y", ViewPosition="LL"))
    clinic = Site("clinic", "", "", {"train/NORMAL": 9}, 9, Ages(1, 3, 5, 9), {"AP": 9}, {})
    with Classifier.load(write_bundle(provenance=Provenance("none", {}, "none", "2025-01-01", {}, (clinic,)))) as known:
        assert (
            known.predict(film).warnings[-1] == "the patient is 50 years old; the model has seen 1 to 5 years (clinic)"
        )
        assert known.predict(lateral).warnings[-1] == "a lateral view; the model has seen AP views only"


def test_a_bundle_without_sites_knows_no_ages(bundle: Path) -> None:
    film = encode(dataset(ramp(), PatientAge="050Y", ViewPosition="LL"))
    with Classifier.load(bundle) as plain:
        said = plain.predict(film).warnings
    assert said[-1] == "a lateral view; the model has seen frontal films only"
    assert not any("old" in each for each in said)


def test_views_and_body_parts_and_modality() -> None:
    def warned(**tags: Any) -> tuple[str, ...]:
        return read(encode(dataset(ramp(), **tags))).warnings

    def view(text: str | None) -> str:
        return read(encode(dataset(ramp(), ViewPosition=text))).view

    # What is unusual of a view is for the bundle to say.
    assert warned(ViewPosition="LL") == warned(ViewPosition="AP") == ()
    assert view("LATERAL") == view("RL") == view("LL") == "LATERAL"
    assert (view("RAO"), view("AP"), view("PA"), view("SECRET"), view(None)) == ("OBLIQUE", "AP", "PA", "", "")
    assert warned(BodyPartExamined="KNEE") == ("the body part is KNEE; the model has seen chest films only",)
    assert warned(BodyPartExamined="THORAX") == warned(BodyPartExamined=None) == ()
    assert warned(Modality=None) == ("the file does not name its modality; the model has seen X-rays only",)
    assert len(warned(Modality=None, BodyPartExamined="KNEE", PatientAge="050Y")) == 2


def test_a_body_part_that_is_no_code_is_not_quoted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = encode(dataset(ramp(), BodyPartExamined="SECRET\x1b[31m^"))
    assert read(data).warnings == ("the body part is another one than the chest; the model has seen chest films only",)


# --- hostile and odd bytes ---


def test_cut_off_anywhere() -> None:
    data = encode(dataset(ramp(), bits=12, WindowCenter=2000, WindowWidth=4000))
    for length in range(0, len(data), 50):
        refusal(data[:length])


def hostile_files(tmp_path: Path) -> list[bytes]:
    window = dataset(ramp(), bits=12, WindowCenter=2000, WindowWidth=4000)
    table = dataset(ramp(), ImplicitVRLittleEndian, bits=12, RescaleSlope=1, RescaleIntercept=0)
    table.VOILUTSequence = [lut_item(0, 12, np.arange(256))]
    files = [encode(window), encode(table), compressed(dataset(ramp(8)), jpeg(ramp(8)), JPEGBaseline8Bit)]
    if features.check("jpg_2000"):
        files.append(compressed(dataset(ramp(16)), jpeg_2000(ramp(16)), JPEG2000Lossless))
    return files


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return hostile_files(tmp_path_factory.mktemp("dicom"))


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    kinds = st.sampled_from(["set", "insert", "cut", "drop"])
    return draw(st.lists(st.tuples(kinds, st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6))


def damaged(data: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    broken = bytearray(data)
    for kind, where, what in steps:
        at = int(where * len(broken))
        if kind == "set":
            broken[at : at + len(what)] = what
        elif kind == "insert":
            broken[at:at] = what
        elif kind == "cut":
            del broken[at:]
        else:
            del broken[at : at + len(what)]
    return bytes(broken)


@settings(max_examples=400, deadline=None)
@given(which=st.integers(0, 3), steps=damages())
def test_damaged_files_give_a_film_or_a_sentence(
    originals: list[bytes], which: int, steps: list[tuple[str, float, bytes]]
) -> None:
    survives(damaged(originals[which % len(originals)], steps))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_bytes_that_were_never_a_film(data: bytes) -> None:
    refusal(data)
    refusal(b"\0" * 128 + b"DICM" + data)


@needs_gdcm
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, RLELossless])
def test_damaged_frames_for_gdcm(tmp_path: Path, syntax: UID, capfd: pytest.CaptureFixture[str]) -> None:
    """Few, since each starts a process; what GDCM prints must not come through."""
    data = gdcm_encoded(tmp_path, dataset(ramp(), bits=12), syntax)
    start, random = data.rindex(b"\xfe\xff\x00\xe0") + 8, np.random.default_rng(0)
    for n in range(12):
        broken = bytearray(data)
        stop = start + 60 if n % 2 else len(data)
        for at in random.integers(start, stop, size=1 + n % 3):
            broken[at] = random.integers(256)
        survives(bytes(broken))
    assert capfd.readouterr() == ("", "")


@needs_gdcm
def test_a_frame_that_makes_gdcm_abort_costs_one_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = gdcm_encoded(tmp_path, dataset(ramp(), bits=12), JPEGLosslessSV1)
    frame = pydicom.encaps.get_frame(pydicom.dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1)
    # A JFIF segment of version 250: GDCM 3.2 does not know the state that libjpeg comes back with, and calls abort().
    jfif = b"\xff\xe0\x00\x10JFIF\x00\xfa\x01\x00\x00\x01\x00\x01\x00\x00"
    for segment in (b"", jfif.replace(b"\xfa", b"\x01")):
        film = read(compressed(dataset(ramp(), bits=12), frame[:2] + segment + frame[2:], JPEGLosslessSV1))
        assert np.array_equal(film.grey, unit_levels(ramp()))
    survives(compressed(dataset(ramp(), bits=12), frame[:2] + jfif + frame[2:], JPEGLosslessSV1))
    assert capfd.readouterr() == ("", "")


def test_a_decoder_that_does_not_come_back_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper = tmp_path / "gdcm.py"
    woke = tmp_path / "woke"
    sleeper.write_text(f"import time\ntime.sleep(600)\nopen({str(woke)!r}, 'w').close()\n")
    monkeypatch.setattr("pneumo_edge.dicom.decode._PATIENCE", 0.5)
    spec = importlib.util.spec_from_file_location("gdcm", sleeper)
    monkeypatch.setattr(importlib.util, "find_spec", {"gdcm": spec}.get)
    assert "damaged" in refusal(for_gdcm())
    assert not woke.exists()


def test_zeros_that_pose_as_sequence_items() -> None:
    """pydicom alone makes an object of each eight of them, 80 times as large as the file in all."""
    ds = dataset(ramp())
    head = encode(ds)[: encode(ds).index(pack("<HH2sH", 8, 0x16, b"UI", 26))]
    bomb = head + pack("<HH2sHL", 8, 0x1110, b"SQ", 0, 0xFFFFFFFF) + bytes(1_000_000)
    assert peak(lambda: refusal(bomb)) < 40 * len(bomb)


def test_run_lengths_are_unpacked_no_further_than_the_film_goes() -> None:
    frame = pack("<16L", 1, 64, *[0] * 14) + b"\x81\x07" * 2_000_000
    films = []
    # All of them are 256 million bytes.
    used = peak(lambda: films.append(read(compressed(dataset(ramp(8)), frame, RLELossless))))
    assert used < 10 * len(frame)
    assert films[0].grey.shape == ramp().shape
    assert np.unique(films[0].grey).size == 1


def test_pydicoms_remarks_neither_show_nor_break(capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings are errors in these tests; here from several threads, in files that pydicom remarks on."""
    ds = dataset(ramp(), bits=12, NumberOfFrames=0, PixelData=ramp().tobytes() + bytes(100))
    odd = encode(ds).replace(b"003Y", b"3  y").replace(b"CHEST ", b"chest ")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        pydicom.pixels.pixel_array(io.BytesIO(odd))
    assert shown  # pydicom does remark on it
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                assert np.array_equal(read_dicom(odd, "film.dcm").grey, unit_levels(ramp()))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert capfd.readouterr() == ("", "")


# --- odd but good: what stands in the file is read by rule, not by how it was parsed ---


@pytest.fixture(scope="session")
def dcm2pnm() -> Callable[..., Pixels]:
    """Converts a file with DCMTK's `dcm2pnm` and the options given: (H, W) grey levels."""
    if shutil.which("dcm2pnm") is None:
        why = "needs dcm2pnm: apt install dcmtk"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)

    def convert(data: bytes, *options: str) -> Pixels:
        with tempfile.TemporaryDirectory() as folder:
            film, picture = Path(folder, "film.dcm"), Path(folder, "film.pgm")
            film.write_bytes(data)
            done = subprocess.run(
                ["dcm2pnm", "--quiet", *options, film, picture], check=False, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            with Image.open(picture) as image:
                return np.asarray(image)

    return convert


def agree(grey: Pixels, other: Pixels) -> None:
    """One level of rounding: DCMTK cuts off where this rounds. (It also rounds what the modality step gives.)"""
    assert grey.shape == other.shape
    assert np.abs(grey.astype(int) - other).max() <= 1


def in_a_word(values: Pixels, bits: int, below: int, rubbish: int) -> npt.NDArray[np.uint16]:
    """Values of so many bits in words of 16, so many bits from the bottom; the rest of the word is filled."""
    mask = ((1 << bits) - 1) << below
    return ((values.astype(np.int64) << below) & mask | (rubbish & ~mask & 0xFFFF)).astype(np.uint16)


def lut(descriptor: list[int], entries: bytes, as_signed: bool = False) -> Dataset:
    """A table whose descriptor is written as US or SS, whatever stands in it."""
    item = Dataset()
    item.add_new(
        0x00283002, "SS" if as_signed else "US", [(v ^ 0x8000) - 0x8000 if as_signed else v for v in descriptor]
    )
    item.add_new(0x00283006, "OW", entries)
    return item


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bits_signs_slopes_and_windows_agree_with_dcmtk(
    dcm2pnm: Callable[..., Pixels], data: st.DataObject
) -> None:
    bits, signed = data.draw(st.integers(8, 16)), data.draw(st.booleans())
    below, rubbish = data.draw(st.integers(0, 16 - bits)), data.draw(st.integers(0, 0xFFFF))
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]))
    pixels = ramp(bits, signed)
    if bits == 8:
        pixels = pixels.astype(f"{pixels.dtype.kind}2")
    slope, intercept = data.draw(st.sampled_from([1.0, 2.0, 7.0, -1.0])), data.draw(st.integers(-3000, 3000))
    low, high = sorted(slope * float(v) + intercept for v in (pixels.min(), pixels.max()))
    width = data.draw(st.floats(0.05, 1.5)) * (high - low)
    window = {"WindowCenter": f"{data.draw(st.floats(low, high)):.2f}", "WindowWidth": f"{max(width, 2):.2f}"}
    ds = dataset(
        pixels, syntax, bits, HighBit=below + bits - 1, RescaleSlope=slope, RescaleIntercept=intercept, **window
    )
    stored = in_a_word(pixels, bits, below, rubbish)
    ds.PixelData = (stored.byteswap() if syntax == ExplicitVRBigEndian else stored).tobytes()
    if data.draw(st.booleans()):
        ds.VOILUTFunction = data.draw(st.sampled_from(["LINEAR", "SIGMOID"]))
    ds.PhotometricInterpretation = data.draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"]))
    film = encode(ds)
    agree(read(film).grey, dcm2pnm(film, "+Wi", "1"))
    assert read(film).warnings == ()


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_look_up_table_agrees_with_dcmtk(dcm2pnm: Callable[..., Pixels], data: st.DataObject) -> None:
    """First values written as US or SS, descriptors that disagree with the data: one film, whatever was parsed."""
    bits, signed = data.draw(st.integers(8, 16)), data.draw(st.booleans())
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]))
    pixels = ramp(bits, signed)
    if bits == 8:
        pixels = pixels.astype(f"{pixels.dtype.kind}2")
    ds = dataset(pixels, syntax, bits)
    low = int(pixels.min())
    modality = data.draw(st.booleans())
    if not modality and data.draw(st.booleans()):
        ds.RescaleSlope, ds.RescaleIntercept = 1, data.draw(st.sampled_from([-1024, -5, 0, 1 << (bits - 1)]))
        low += int(ds.RescaleIntercept)
    first = low + data.draw(st.integers(0, 1 << (bits - 1)))
    # What goes in can be negative, or cannot: then values of up to 65,535 have to be told from negative ones.
    first = min(max(first, -32768), 32767 if low < 0 else 65535)
    count = data.draw(st.integers(32, 1 << bits if bits < 13 else 5000))
    deep = data.draw(st.integers(9, 15))
    entries = np.rint((2**deep - 1) * np.linspace(0, 1, count) ** data.draw(st.sampled_from([0.5, 1, 2])))
    if data.draw(st.booleans()):
        entries = entries[::-1]
    said = data.draw(st.sampled_from([count, 0, count + 1, count + 9, max(count - 1, 1)]))
    packed = modality and data.draw(st.booleans())
    if packed:
        deep, said, entries = 8, count, np.rint(entries / (2**deep - 1) * 255)
    raw = entries.astype("u1" if packed else "<u2").tobytes()
    raw += bytes(len(raw) % 2)
    if syntax == ExplicitVRBigEndian:
        raw = np.frombuffer(raw, "<u2").astype(">u2").tobytes()
    table = lut([said % 65536, first % 65536, deep], raw, as_signed=data.draw(st.booleans()))
    setattr(ds, "ModalityLUTSequence" if modality else "VOILUTSequence", [table])
    if modality:
        ds.WindowCenter, ds.WindowWidth = 2 ** (deep - 1), 2**deep
    film = encode(ds)
    assert read(film).warnings == ()
    agree(read(film).grey, dcm2pnm(film, *(("+Wi", "1") if modality else ("+Wl", "1"))))


def test_zeros_behind_the_stated_entries_only_fill_up() -> None:
    entries = np.arange(1000)
    ds = dataset(ramp(), bits=12)
    ds.VOILUTSequence = [lut([1000, 0, 10], np.append(entries, np.zeros(200)).astype("<u2").tobytes())]
    assert np.array_equal(read(encode(ds)).grey, np.rint(255 / 1023 * ramp().clip(0, 999)))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", ["US", "SS"])
@pytest.mark.parametrize("signed", [False, True])
def test_padding_has_the_sign_of_the_pixels_whatever_it_was_written_as(syntax: str, kind: str, signed: bool) -> None:
    body = (ramp(12).astype(int) - (2048 if signed else 0) + (0 if signed else 1000)).astype("i2" if signed else "u2")
    pixels = body.copy()
    word = 0x8000
    pixels[:6] = -32768 if signed else 32768
    ds = dataset(pixels, syntax, bits=16)
    ds.add_new("PixelPaddingValue", kind, word - 65536 if kind == "SS" else word)
    grey = read(encode(ds)).grey
    assert not grey[:6].any()
    assert np.array_equal(grey[6:], unit_levels(body[6:]))


@needs_gdcm
@pytest.mark.parametrize("tool", [["dcmcrle"], ["dcmcjpls"], ["dcmcjpeg", "+e1"], ["dcmcjpeg", "+el"]])
@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (12, True), (15, True), (16, False)]
)
def test_values_at_the_top_of_their_bits_in_every_compressed_syntax(
    dcm2pnm: Callable[..., Pixels], tmp_path: Path, tool: list[str], bits: int, signed: bool
) -> None:
    """Packed by DCMTK, which takes whole words, with what is above and below the stored bits."""
    pixels = ramp(bits, signed)
    for below in sorted({0, (16 - bits) // 2, 16 - bits}):
        ds = dataset(pixels.astype(f"{pixels.dtype.kind}2"), bits=bits, HighBit=below + bits - 1)
        ds.PixelData = in_a_word(pixels, bits, below, 0).tobytes()
        plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
        plain.write_bytes(encode(ds))
        subprocess.run([*tool, plain, packed], check=True, capture_output=True)
        assert packed.read_bytes() != plain.read_bytes()
        assert np.array_equal(read(packed.read_bytes()).grey, read(plain.read_bytes()).grey)
        assert np.array_equal(read(plain.read_bytes()).grey, unit_levels(pixels))


@needs_gdcm
def test_a_codestream_of_the_stored_bits_alone_has_them_at_the_bottom() -> None:
    """HighBit then tells of the words that once were, before they were packed."""
    film = read(compressed(dataset(SMALL, bits=12, HighBit=15), JPEG_OF_12_BITS, JPEGExtended12Bit))
    assert np.abs(film.grey.astype(int) - unit_levels(SMALL)).max() <= 1


@pytest.mark.parametrize(
    ("tags", "remark"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 7}, "the file's rescale slope is 0; both were ignored"),
        ({"RescaleSlope": "one", "RescaleIntercept": 7}, "slope or intercept is missing or not a number"),
        ({"RescaleSlope": "1,5", "RescaleIntercept": 7}, "slope or intercept is missing or not a number"),
        ({"RescaleSlope": 2}, "slope or intercept is missing or not a number"),
        ({"WindowCenter": "2048,5", "WindowWidth": "4096,0"}, "the file's window cannot be used and was ignored"),
        ({"WindowCenter": "wide", "WindowWidth": "4096"}, "the file's window cannot be used and was ignored"),
        ({"WindowCenter": "2048"}, "the file's window cannot be used and was ignored"),
        ({"WindowCenter": "2048", "WindowWidth": "0"}, "the file's window cannot be used and was ignored"),
        ({"WindowCenter": "nan", "WindowWidth": "1e999"}, "the file's window cannot be used and was ignored"),
        ({"NumberOfFrames": "one"}, "number of frames is not a number"),
        ({"VOILUTSequence": [Dataset()]}, "the file's VOI look-up table cannot be used and was ignored"),
        ({"ModalityLUTSequence": [lut([4096, 0, 12], b"")]}, "modality look-up table cannot be used and was ignored"),
        ({"VOILUTSequence": [lut([4096, 0], bytes(8192))]}, "the file's VOI look-up table cannot be used"),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_optional_element_that_cannot_be_used_is_ignored_and_said_so(
    syntax: str, tags: dict[str, Any], remark: str
) -> None:
    film = read(encode_odd(dataset(ramp(), syntax, bits=12), tags))
    assert np.array_equal(film.grey, unit_levels(ramp()))
    assert len(film.warnings) == 1
    assert remark in film.warnings[0]


def encode_odd(ds: Dataset, tags: dict[str, Any]) -> bytes:
    """Writes texts where numbers belong, which pydicom refuses to: a number as long stands in for each at first."""
    texts = {}
    for n, (keyword, value) in enumerate(tags.items(), 1):
        if isinstance(value, str):
            even = value + " " * (len(value) % 2)
            texts[str(n).encode() * len(even)] = even.encode()
            setattr(ds, keyword, str(n) * len(even))
        else:
            setattr(ds, keyword, value)
    data = encode(ds)
    for number, text in texts.items():
        assert data.count(number) == 1
        data = data.replace(number, text)
    return data


@pytest.mark.parametrize("windows", [("\\2048", "\\4096"), ("x\\2048", "9\\4096"), ("7\\2048", "0\\4096")])
def test_the_first_window_that_can_be_used_is(windows: tuple[str, str]) -> None:
    whole = read(encode(dataset(ramp(), bits=12, WindowCenter=2048, WindowWidth=4096)))
    film = read(encode_odd(dataset(ramp(), bits=12), {"WindowCenter": windows[0], "WindowWidth": windows[1]}))
    assert np.array_equal(film.grey, whole.grey)
    assert film.warnings == ("the file's first window cannot be used; the next one was",)


def test_a_table_that_cannot_be_used_leaves_the_window() -> None:
    whole = read(encode(dataset(ramp(), bits=12, WindowCenter=1000, WindowWidth=500)))
    ds = dataset(ramp(), bits=12, WindowCenter=1000, WindowWidth=500)
    ds.VOILUTSequence = [lut([0, 0, 12], b"")]
    assert np.array_equal(read(encode(ds)).grey, whole.grey)


# --- the range of the film ---


@pytest.mark.parametrize("hot", [5100, 16383, 65535])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_few_dead_pixels_do_not_darken_the_film(hot: int, photometric: str) -> None:
    pixels = ramp().astype(np.uint16)
    pixels[3, 4], pixels[20, 20:26] = hot, hot
    film = read(encode(dataset(pixels, bits=16, PhotometricInterpretation=photometric))).grey
    alive = pixels < 5000
    without = read(encode(dataset(ramp(), bits=12, PhotometricInterpretation=photometric))).grey
    assert np.array_equal(film[alive], without[alive])
    assert (film[~alive] == (255 if photometric == "MONOCHROME2" else 0)).all()


def test_eight_bits_keep_their_whole_range() -> None:
    pixels = ramp(8) // 4
    pixels[3, 4] = 255
    assert np.array_equal(read(encode(dataset(pixels))).grey, unit_levels(pixels))


# --- raw detector values ---


@pytest.mark.parametrize(
    "tags",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.1.1.1")},
    ],
)
def test_raw_detector_values_bear_a_word(tags: dict[str, Any]) -> None:
    bare = read(encode(dataset(ramp(), bits=12, **tags)))
    assert "raw detector values (FOR PROCESSING)" in bare.doubts[0]
    shown = read(encode(dataset(ramp(), bits=12, WindowCenter=2048, WindowWidth=4096, **tags)))
    assert shown.doubts == ()
    assert "raw detector values (FOR PROCESSING)" in shown.warnings[0]


def test_raw_values_that_nothing_tells_how_to_show_get_a_verdict_by_force_alone(bundle: Path) -> None:
    raw = encode(dataset(ramp(), bits=12, PresentationIntentType="FOR PROCESSING"))
    for force in (False, True):
        with Classifier.load(bundle, force_verdict=force) as classifier:
            prediction = classifier.predict(raw)
        assert (prediction.label is not None) == force
        assert "FOR PROCESSING" in prediction.warnings[0]
    # As large as a film, so that nothing else withholds the verdict.
    large = np.kron(ramp(), np.ones((5, 5), np.uint16))
    shown = encode(
        dataset(large, bits=12, PresentationIntentType="FOR PROCESSING", WindowCenter=2048, WindowWidth=4096)
    )
    with Classifier.load(bundle) as classifier:
        prediction = classifier.predict(shown)
    assert prediction.label is not None
    assert any("FOR PROCESSING" in warning for warning in prediction.warnings)


def test_films_for_viewing_bear_none() -> None:
    for tags in ({}, {"PresentationIntentType": "FOR PRESENTATION"}):
        film = read(encode(dataset(ramp(), bits=12, **tags)))
        assert film.doubts == film.warnings == ()


# --- how one frame is packed ---


@needs_gdcm
@pytest.mark.parametrize("table", [b"", pack("<L", 99), pack("<LL", 0, 40), b"\xff" * 12, b"\1\2\3", None])
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_single_frame_needs_no_offset_table(tmp_path: Path, table: bytes | None, pieces: int) -> None:
    """Wrong, one entry per fragment, of odd length; or no table at all, where there is one fragment."""
    if table is None and pieces > 1:
        pytest.skip("without a table, the first of several fragments could not be told from one")
    ds = pydicom.dcmread(io.BytesIO(gdcm_encoded(tmp_path, dataset(ramp(), bits=12), JPEGLosslessSV1)))
    frame = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    size = -(-len(frame) // pieces)
    parts = [frame[at : at + size] for at in range(0, len(frame), size)]
    items = parts if table is None else [table, *parts]
    ds.PixelData = b"".join(b"\xfe\xff\x00\xe0" + pack("<L", len(item)) + item for item in items)
    ds["PixelData"].is_undefined_length = True
    assert np.array_equal(read(encode(ds)).grey, unit_levels(ramp()))


@needs_gdcm
def test_the_codestream_tells_how_it_is_packed_where_the_tags_err(tmp_path: Path) -> None:
    data = gdcm_encoded(tmp_path, dataset(ramp(), bits=12), JPEGLosslessSV1)
    right = JPEGLosslessSV1.encode()
    for wrong in (JPEGLSLossless, JPEG2000Lossless, JPEGExtended12Bit, ExplicitVRLittleEndian):
        assert data.count(right) == 1
        changed = data.replace(right, wrong.encode().ljust(len(right), b"\0"))
        assert np.array_equal(read(changed).grey, unit_levels(ramp()))


def test_plain_pixels_that_are_called_compressed_are_read() -> None:
    data = encode(dataset(ramp(), bits=12)).replace(
        pack("<HH2sH", 2, 0x10, b"UI", 20) + ExplicitVRLittleEndian.encode() + b"\0",
        pack("<HH2sH", 2, 0x10, b"UI", 20) + RLELossless.encode() + b"\0",
    )
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == RLELossless
    assert np.array_equal(read(data).grey, unit_levels(ramp()))


def test_deflated_files_are_read() -> None:
    ds = dataset(ramp(), bits=12)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert np.array_equal(read(encode(ds)).grey, unit_levels(ramp()))


def test_only_the_file_meta_tells_that_a_file_is_deflated() -> None:
    """The same digits as the syntax that another picture was sent in, or in a text."""
    ds = dataset(ramp(), bits=12, PatientComments=str(DeflatedExplicitVRLittleEndian))
    ds.AvailableTransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert np.array_equal(read(encode(ds)).grey, unit_levels(ramp()))


# --- what is not the file's fault, or is no damage ---


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"BitsAllocated": 1, "BitsStored": 1}, "1 bits allocated for a pixel, which is not read here"),
        ({"BitsAllocated": 64, "BitsStored": 16}, "64 bits allocated for a pixel, which is not read here"),
        ({"BitsAllocated": 12, "BitsStored": 12}, "12 bits allocated for a pixel, which is not read here"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "more than 16 bits a pixel"),
    ],
)
def test_kinds_that_are_not_read_are_named(tags: dict[str, Any], words: str) -> None:
    assert words in refusal(encode(dataset(ramp(), **tags)))


def test_pixels_that_are_fractions_are_named() -> None:
    ds = dataset(ramp(), PixelData=None)
    ds.FloatPixelData = ramp().astype("f4").tobytes()
    assert "pixels that are fractions" in refusal(encode(ds))


def test_kinds_of_jpeg_that_are_not_read_are_named() -> None:
    frame = jpeg(ramp(8))
    for marker, kind in ((b"\xff\xc9", "arithmetic"), (b"\xff\xc5", "hierarchical")):
        said = refusal(compressed(dataset(ramp(8)), frame.replace(b"\xff\xc0", marker), JPEGBaseline8Bit))
        assert f"a JPEG of a rare kind ({kind}, 8 bits)" in said


def test_a_folder_that_shadows_a_module_is_named(tmp_path: Path) -> None:
    """GDCM asks for an old module `dl`, and pydicom imports GDCM."""
    (tmp_path / "dl").mkdir()
    (tmp_path / "film.dcm").write_bytes(encode(dataset(ramp(), bits=12)))
    script = tmp_path / "script.py"
    script.write_text(
        "from pneumo_edge.errors import ImageError\n"
        "from pneumo_edge.preprocess import read_film\n"
        "try:\n    print(read_film('film.dcm', 32).pixels.shape)\n"
        "except ImageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    if importlib.util.find_spec("gdcm") is None:
        assert done.stdout == "(32, 32, 1)\n"
    else:
        assert re.match(
            r"film.dcm is a DICOM file, and the package pydicom cannot be imported here \(.*dl.*\): ", done.stdout
        )
        assert "look beside the script for a file or folder" in done.stdout


@pytest.mark.parametrize("broken", ["raise ImportError('libfoo.so.1: cannot open shared object file')", "x = 1"])
def test_a_decoder_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    module = tmp_path / "gdcm.py"
    module.write_text(broken)
    spec = importlib.util.spec_from_file_location("gdcm", module)
    monkeypatch.setattr(importlib.util, "find_spec", {"gdcm": spec}.get)
    assert f"python-gdcm, which cannot be imported from {tmp_path}" in refusal(for_gdcm())


@needs_gdcm
def test_a_process_that_cannot_be_started_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert "whose process cannot be started here (Resource temporarily unavailable)" in refusal(for_gdcm())


# --- real films ---


@pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not here (../shared/data/dicom)")
@pytest.mark.parametrize(
    "name", ["CR-MONO1-10-chest.dcm", "RG1_J2KI.dcm", "nih_google_no_finding.dcm", "rsna_16d7f894.dcm"]
)
def test_real_chest_films_have_dark_lungs_and_a_light_spine(name: str) -> None:
    data = (REAL / name).read_bytes()
    assert is_dicom(data[:512])
    grey = read(data).grey
    height, width = grey.shape

    def part(top: float, bottom: float, left: float, right: float) -> float:
        region = grey[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
        return float(np.median(region))

    spine = part(0.35, 0.6, 0.44, 0.54)
    assert part(0.25, 0.5, 0.2, 0.35) < spine - 20
    assert part(0.25, 0.5, 0.62, 0.77) < spine - 20
    assert grey.std() > 30


@needs_gdcm
@pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not here (../shared/data/dicom)")
def test_real_files_of_other_body_parts() -> None:
    tibia = read((REAL / "not_chest_tibia_RG3_J2KI.dcm").read_bytes())
    assert any("EXTREMITY" in warning for warning in tibia.warnings)
    assert np.median(tibia.grey[:, :100]) > 250  # shutters left and right are white in this one
    teeth = read((REAL / "not_chest_teeth_CR-ModalitySequenceLUT.dcm").read_bytes()).grey
    assert np.median(teeth[:400]) == 0
    assert teeth.max() == 255
