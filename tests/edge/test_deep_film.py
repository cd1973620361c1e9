"""The film for people to look at: its own size, all its grey levels, and the window that the model sees."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumo_edge.errors import ImageError
from pneumo_edge.levels import DeepFilm
from pneumo_edge.preprocess import read_deep_film, read_film

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian  # noqa: E402

from pneumo_edge.dicom import read_deep_dicom, read_dicom  # noqa: E402

Pixels = npt.NDArray[Any]


def seen(film: DeepFilm) -> npt.NDArray[np.float64]:
    """A deep film through its window, 0 to 255."""
    shown: npt.NDArray[np.float64] = 255 * ((film.values - film.low) / (film.high - film.low)).clip(0, 1)
    return shown


def dicom(pixels: Pixels, **tags: Any) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID("1.2.3")
    ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "CR", 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


numbers = st.floats(-5000, 5000, allow_nan=False)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["u1", "u2", "i2"]),
    window=st.none() | st.tuples(numbers, st.floats(2, 9000)),
    slope=st.none() | st.tuples(st.floats(0.01, 9), numbers),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    negative=st.booleans(),
    padding=st.booleans(),
)
def test_through_its_window_it_is_what_the_model_sees(
    seed: int,
    kind: str,
    window: tuple[float, float] | None,
    slope: tuple[float, float] | None,
    function: str,
    negative: bool,
    padding: bool,
) -> None:
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, 2, endpoint=True))
    pixels = rng.integers(low, high, (9, 7), endpoint=True).astype(kind)
    tags: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1"} if negative else {}
    if window:
        tags |= {"WindowCenter": f"{window[0]:.6g}", "WindowWidth": f"{window[1]:.6g}", "VOILUTFunction": function}
    if slope:
        tags |= {"RescaleSlope": f"{slope[0]:.6g}", "RescaleIntercept": f"{slope[1]:.6g}"}
    if padding:
        tags["PixelPaddingValue"] = int(pixels[0, 0])
    data = dicom(pixels, **tags)
    deep = read_deep_dicom(data, "film")
    assert deep.values.shape == pixels.shape
    assert 1 <= deep.levels <= 65535
    assert deep.values.max() <= deep.levels
    # Half a level of the film, and half a grey level of the model's.
    near = 0.5 + 0.5 * 255 / (deep.high - deep.low) + 1e-6
    assert np.abs(seen(deep) - read_dicom(data, "film").grey).max() <= near


def test_no_level_is_lost() -> None:
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    deep = read_deep_film(dicom(pixels, WindowCenter="1000", WindowWidth="200", BitsStored=12, HighBit=11))
    assert deep.levels == 4095
    assert np.array_equal(deep.values, pixels)
    assert (deep.low, deep.high) == pytest.approx((900, 1099))


def test_a_window_that_leaves_black_and_white_alone() -> None:
    pixels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    data = dicom(pixels, WindowCenter="1e9", WindowWidth="1", VOILUTFunction="LINEAR_EXACT", RescaleSlope="1e12", RescaleIntercept="0")  # fmt: skip # noqa: E501
    deep = read_deep_film(data)
    assert np.array_equal(seen(deep).round(), read_dicom(data, "film").grey)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_outside_of_dicom(suffix: str, tmp_path: Path) -> None:
    pixels = (1000 + 7 * np.arange(600)).astype(np.uint16).reshape(20, 30)
    Image.fromarray(pixels).save(tmp_path / f"film.{suffix}")
    deep = read_deep_film(tmp_path / f"film.{suffix}")
    assert deep.levels == 7 * 599
    assert np.array_equal(deep.values, pixels - 1000)


def test_floats_get_all_levels_that_there_are(tmp_path: Path) -> None:
    pixels = np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30)
    Image.fromarray(pixels).save(tmp_path / "film.tiff")
    deep = read_deep_film(tmp_path / "film.tiff")
    assert deep.levels == 65535
    assert np.abs(deep.values / 65535 * 2 - 1 - pixels).max() < 1e-4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_it_is_upright(orientation: int, deep: bool, tmp_path: Path) -> None:
    y, x = np.mgrid[0:40, 0:40]
    grey = (2 * x + 4 * y).astype(np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257 if deep else grey)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "film.png", exif=exif)
    # The same size in and out: nothing but the turn is left of `read_film`.
    wanted = read_film(tmp_path / "film.png", 40).pixels[:, :, 0]
    found = seen(read_deep_film(tmp_path / "film.png"))
    assert np.abs(found - wanted).max() <= 1


def test_an_8_bit_film_is_what_it_is(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "film.png")
    deep = read_deep_film((tmp_path / "film.png").read_bytes())
    assert (deep.levels, deep.low, deep.high) == (255, 0, 255)
    assert np.array_equal(deep.values, grey)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n and no more"])
def test_what_is_no_film_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="film is"):
        read_deep_film(data, "film")
