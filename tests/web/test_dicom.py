"""DICOM in the browser against `pneumo_edge.dicom`: the same film, the same remarks, or the same sentence."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from chromium import need_chromium
from places import SHARED
from pneumo_edge.errors import ImageError
from pneumo_edge.preprocess import read_deep_film, read_film

need_chromium("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from dicom_films import compressed, dataset, encode  # noqa: E402

Read = Callable[..., dict[str, Any]]
Pixels = npt.NDArray[Any]

SIZE = 160
WINDOW: dict[str, Any] = {"WindowCenter": "2000", "WindowWidth": "900"}


def film(bits: int = 12, signed: bool = False) -> Pixels:
    y, x = np.mgrid[:190, :230]
    unit = (0.5 + 0.4 * np.sin(x / 17) * np.cos(y / 29) + np.random.default_rng(4).normal(0, 0.02, x.shape)).clip(0, 1)
    values = np.rint(unit * (2**bits - 1)).astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    return np.asarray(values, dtype=f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def table(first: int, bits: int, entries: Pixels) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return item


def run_lengths(pixels: Pixels) -> bytes:
    ds = dataset(pixels, bits=12)
    ds.compress(RLELossless)
    return encode(ds)


def jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def films() -> dict[str, bytes]:
    curve = np.rint(4095 * (np.arange(4096) / 4095) ** 2).astype(np.uint16)
    hot = film()
    hot[3, 4] = 4095
    hot[hot < 4000] //= 3
    return {
        "explicit": encode(dataset(film(), bits=12)),
        "implicit": encode(dataset(film(), ImplicitVRLittleEndian, bits=12)),
        "big endian": encode(dataset(film(), ExplicitVRBigEndian, bits=12)),
        "8 bits": encode(dataset(film(8))),
        "signed": encode(dataset(film(12, signed=True), bits=12)),
        "one hot pixel": encode(dataset(hot, bits=12)),
        "MONOCHROME1": encode(dataset(film(), bits=12, PhotometricInterpretation="MONOCHROME1")),
        "inverse": encode(dataset(film(), bits=12, PresentationLUTShape="INVERSE")),
        "window": encode(dataset(film(), bits=12, WindowCenter=["", "2000"], WindowWidth=["0", "1500"])),
        "sigmoid": encode(dataset(film(), bits=12, **WINDOW, VOILUTFunction="SIGMOID")),
        "exact": encode(
            dataset(film(), bits=12, WindowCenter="2000", WindowWidth="900", VOILUTFunction="LINEAR_EXACT")
        ),
        "rescale": encode(
            dataset(
                film(), bits=12, RescaleSlope="2", RescaleIntercept="-1024", WindowCenter="2000", WindowWidth="3000"
            )
        ),
        "no rescale": encode(dataset(film(), bits=12, RescaleSlope="0", RescaleIntercept="5")),
        "VOI table": encode(dataset(film(), bits=12, VOILUTSequence=[table(0, 12, curve)])),
        "modality table": encode(
            dataset(film(), bits=12, ModalityLUTSequence=[table(0, 12, curve)], WindowCenter="2000", WindowWidth="3000")
        ),
        "bad table": encode(dataset(film(), bits=12, VOILUTSequence=[Dataset()])),
        "padding": encode(dataset(film(), bits=12, PixelPaddingValue=0, PixelPaddingRangeLimit=300)),
        "an adult": encode(dataset(film(), bits=12, PatientAge="095Y", ViewPosition="LL", BodyPartExamined="KNEE")),
        "days": encode(dataset(film(), bits=12, PatientAge=None, PatientBirthDate="19300204", StudyDate="20200203")),
        "no modality": encode(dataset(film(), bits=12, Modality="")),
        "raw": encode(dataset(film(), bits=12, SOPClassUID=DigitalXRayImageStorageForProcessing, Modality="DX")),
        "RLE": run_lengths(film()),
        "JPEG": compressed(dataset(film(8)), jpeg(film(8)), JPEGBaseline8Bit),
    }


FILMS = films()


def compare(data: bytes, read: Read, nearest: int = 0) -> None:
    """Holds one file against Python: equal to the last grey level, or the same sentence."""
    found = read(data, whole=True)
    try:
        want = read_film(data, SIZE, "film")
    except ImageError as error:
        assert found == {"refused": str(error), "whole": True}
        return
    assert "refused" not in found, found
    away = np.abs(found["pixels"].astype(int) - want.pixels)
    assert away.max() <= nearest
    assert (away > 0).mean() <= 0.001
    assert (found["width"], found["height"]) == (want.width, want.height)
    assert tuple(found["warnings"]) == want.warnings
    assert tuple(found["doubts"]) == want.doubts
    assert (found["age"], found["view"]) == (want.age_years, want.view)
    deep = read_deep_film(data, "film")
    kept = found["film"]
    assert np.abs(kept["values"].astype(int) - deep.values).max() <= 1
    assert kept["levels"] == deep.levels
    assert kept["low"] == pytest.approx(deep.low)
    assert kept["high"] == pytest.approx(deep.high)


@pytest.mark.parametrize("kind", FILMS)
def test_a_film_is_read_as_python_reads_it(kind: str, read: Read) -> None:
    compare(FILMS[kind], read)


@pytest.mark.skipif(importlib.util.find_spec("gdcm") is None, reason="python-gdcm is not installed")
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_lossless(bits: int, syntax: UID, read: Read, tmp_path: Path) -> None:
    gdcm = importlib.import_module("gdcm")
    plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
    plain.write_bytes(encode(dataset(film(bits), bits=bits)))
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
    compare(packed.read_bytes(), read)


def test_without_preamble(read: Read) -> None:
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds = dataset(film(), syntax, bits=12)
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=False, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
        data = buffer.getvalue()
        start = data.index(b"\x08\x00\x16\x00")
        compare(data[start:], read)


def test_what_is_no_film_gets_the_same_sentence(read: Read) -> None:
    whole = FILMS["explicit"]
    for data in (
        encode(dataset(film(), bits=12, Modality="CT")),
        encode(dataset(film(), bits=12, NumberOfFrames="3")),
        encode(dataset(film(), bits=12, PhotometricInterpretation="RGB", SamplesPerPixel=3)),
        encode(dataset(film(), bits=12, Rows=60000, Columns=60000)),
        encode(dataset(film(), bits=12, PixelData=None)),
        encode(dataset(film(), bits=12, PhotometricInterpretation=None)),
        whole[: len(whole) // 2],
    ):
        compare(data, read)


def test_what_is_not_read_here_is_said(read: Read) -> None:
    pixels = film(8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", no_jp2=True)
    data = compressed(dataset(pixels), buffer.getvalue(), JPEG2000Lossless)
    sentence = "film is compressed as JPEG 2000 Lossless, which is not read here: export it without compression"
    assert read(data) == {"refused": sentence, "whole": True}


def test_garbled_files_never_end_the_page(read: Read) -> None:
    random = np.random.default_rng(6)
    sources = [FILMS[kind] for kind in ("explicit", "implicit", "VOI table", "RLE", "JPEG")]
    for n in range(100):
        data = bytearray(sources[n % len(sources)])
        for at in random.integers(0, min(len(data), 1200), 1 + n % 5):
            data[at] = random.integers(0, 256)
        found = read(bytes(data), name="x.dcm")
        if "refused" in found:
            assert found["whole"]
            assert found["refused"].startswith("x.dcm ")
            assert "SECRET" not in found["refused"]


def test_odd_and_real_files(read: Read) -> None:
    paths = sorted([*(SHARED / "cases").glob("*.dcm"), *(SHARED / "data" / "dicom").glob("*.dcm")])
    if not paths:
        pytest.skip("there are no DICOM files in ../shared")
    for path in paths:
        found = read(path.read_bytes())
        if "which is not read here" in found.get("refused", "") and ("jpegls" in path.name or "J2K" in path.name):
            continue
        print(path.name)
        compare(path.read_bytes(), read)
