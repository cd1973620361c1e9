"""A DICOM file as the grey film that a radiologist would see, and what its tags say that the model does not cover.

pydicom reads the tags; Pillow decodes JPEG and JPEG 2000; everything else that is compressed goes to GDCM in a process
of its own (`gdcm_process.py` says why). The grey levels follow DICOM PS3.3 C.11 and C.7.6.3.1: stored value ->
modality LUT or rescale -> VOI LUT or window -> inversion. Each step is a function of the stored value alone, so the
whole chain is worked out once for every value there can be (at most 65,536) and then looked up pixel by pixel.
"""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from struct import unpack_from
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pneumo_edge.errors import ImageError, MissingExtraError, PneumoError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_T = TypeVar("_T")

MAX_PIXELS = 64_000_000
"""Of any film, DICOM or not. The largest detectors in use give about 20 million; a header that claims more than this is
refused unread."""

_MODALITIES = ("CR", "DX", "RG")
"""Computed, digital and film radiography. Other projections (MG, IO, PX, RF, XA) are not of the chest, or no stills."""

_MEANING = {
    "CT": "computed tomography",
    "DOC": "a document",
    "ECG": "an electrocardiogram",
    "IO": "X-ray of the teeth",
    "MG": "mammography",
    "MR": "magnetic resonance",
    "NM": "nuclear medicine",
    "OT": "something other than an X-ray",
    "PR": "a presentation state",
    "PT": "positron emission tomography",
    "PX": "panoramic X-ray of the jaw",
    "RF": "fluoroscopy",
    "SR": "a report",
    "US": "ultrasound",
    "XA": "angiography",
    "XC": "a photograph",
}

_TAGS = (
    "StudyDate",
    "Modality",
    "PatientBirthDate",
    "PatientAge",
    "BodyPartExamined",
    "ViewPosition",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "PresentationLUTShape",
    "PixelData",
)
"""All that is read: names and numbers of patients never enter the process's objects."""

_VIEWS = {
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LEFT LATERAL", "RIGHT LATERAL"), "a lateral view"),
    **dict.fromkeys(("LLD", "RLD"), "a view of a patient lying on the side"),
    **dict.fromkeys(("LAO", "RAO", "LPO", "RPO", "LLO", "RLO"), "an oblique view"),
}

_CHEST = ("CHEST", "THORAX", "TORAX", "TORACE", "LUNG", "PULMO", "POUMON")

_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))
"""Baseline, extended (8 and 12 bits), two kinds of lossless, two kinds of JPEG-LS."""
_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
"""The last three are high-throughput JPEG 2000, which OpenJPEG, and so Pillow, decodes too."""

_PLAIN = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2")
"""Explicit and implicit little endian, big endian."""
_LOSSLESS = (_RLE, *(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 90, 201, 202)))

TRANSFER_SYNTAXES = (*_PLAIN, *_LOSSLESS, *sorted((_JPEG | _JPEG_2000).difference(_LOSSLESS)))
"""All that `read_dicom` reads, in the order in which a receiver wants them: plain, packed without loss, with loss."""

_MAX_READS = 50_000
"""A film has a few thousand elements, each one or two reads. pydicom makes an object of every sequence item, and a
megabyte of zeros can pose as 130,000 items: the count of reads bounds both the time and the memory that costs."""

_MAX_SEQUENCE = 1 << 20
"""Bytes of a look-up table sequence: several tables of 65,536 entries."""

_PATIENCE = 10.0
"""Seconds that GDCM has, and one more for every million pixels: a slow board needs less, a garbled stream for ever."""


@dataclass(frozen=True)
class DicomFilm:
    """A film from a DICOM file."""

    grey: npt.NDArray[np.uint8]
    """(H, W), 0 = black as an X-ray is viewed (air dark, bone light)."""
    warnings: tuple[str, ...]
    """What the tags say and the model does not cover; no names, numbers or dates."""


@dataclass(frozen=True)
class DeepFilm:
    """A film with all the grey levels that it has, for a screen on which the window can be moved."""

    values: npt.NDArray[np.unsignedinteger[Any]]
    """(H, W), 0 to `levels`, dark to light as an X-ray is viewed."""
    levels: int
    """The largest value that there can be, 1 to 65,535."""
    low: float
    """Of the window that the model sees: this value and all below are black. May lie below 0."""
    high: float
    """From here on all is white. May lie above `levels`."""


class _Bounded(io.BytesIO):
    """Bytes that can be read a limited number of times."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise ValueError("more elements than a film has")
        return super().read(size)


def is_dicom(head: bytes) -> bool:
    """Tells whether a file is DICOM from its first bytes (132 or more).

    True for the mark "DICM" behind a preamble of 128 bytes, and for files without preamble that begin with a little
    endian element of group 0002 or 0008, as old scanners wrote them. No other image format begins so.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132:
        return False
    group, element, vr, short = unpack_from("<HH2sH", head)
    (long,) = unpack_from("<L", head, 4)
    # Explicit elements name their type in two capitals, implicit ones go straight on to a length.
    explicit = re.fullmatch(b"[A-Z]{2}", vr) is not None
    length: int = short if explicit else long
    plausible = length <= 1024 and length % 2 == 0 and (explicit or length > 0)
    return plausible and group in (0x0002, 0x0008) and element <= 0x0070


def read_dicom(data: bytes, name: str) -> DicomFilm:
    """Reads a projection X-ray from the bytes of a DICOM file.

    May be called from several threads. pydicom remarks on each oddity of a file through `warnings`; those are silenced
    by a filter that names pydicom's modules alone and stays in the process. `warnings.catch_warnings` would swap the
    filters of all threads and, where two threads overlap, put the wrong ones back. The logger "pydicom" is left as it
    is: it writes nowhere unless the application asks for it.

    Args:
        data: The whole file, with or without preamble and file meta information.
        name: What errors call the file.

    Raises:
        ImageError: No single grey projection X-ray, larger than `MAX_PIXELS`, damaged, or compressed in a way for
            which no decoder is installed.
        MissingExtraError: pydicom is not installed.
    """
    return _read(data, name, lambda pixels, ds: DicomFilm(_grey(pixels, ds), _doubts(ds)))


def read_deep_dicom(data: bytes, name: str) -> DeepFilm:
    """Reads the same film at its own depth.

    Raises:
        ImageError, MissingExtraError: As `read_dicom` does.
    """
    return _read(data, name, _deep)


def _read(data: bytes, name: str, make: Callable[[npt.NDArray[np.integer[Any]], Dataset], _T]) -> _T:
    if _DEFLATED.encode() in data:
        raise ImageError(f"{name} is deflated as a whole, which is not read here: export it without that compression")
    try:
        ds = read_tags(data, _TAGS, name)
        _refuse(ds, name)
        return make(_pixels(ds, name), ds)
    except PneumoError:
        raise
    except Exception as error:
        # Hostile bytes make pydicom and the decoders raise nearly anything. Their messages may quote the file, and
        # with it the patient, so they stay in the chain that only PNEUMO_DEBUG shows.
        raise ImageError(
            f"{name} is a damaged DICOM file, its tags and its pixels do not fit: copy it again from where it came"
        ) from error


def read_tags(data: bytes, keywords: Sequence[str], name: str) -> Dataset:
    """Reads some elements of a DICOM file, with or without preamble and file meta information.

    Args:
        data: The whole file.
        keywords: DICOM's names of the elements. Without "PixelData" among them, nothing from there on is read.
        name: What errors call the file.

    Returns:
        The elements as they stand in the file: their values are parsed when they are asked for.

    Raises:
        MissingExtraError: pydicom is not installed.
        Exception: Of nearly any kind, where the file is damaged.
    """
    # In front of all other filters, and added only if it is not there yet: a list that is left alone is never found
    # half shuffled by another thread.
    if not warnings.filters or warnings.filters[0][3] != re.compile("pydicom"):
        warnings.filterwarnings("ignore", module="pydicom")
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtraError("pydicom", "dicom", f"{name} is a DICOM file: reading it") from error
    pixels = "PixelData" in keywords
    return pydicom.dcmread(_Bounded(data), force=True, specific_tags=list(keywords), stop_before_pixels=not pixels)


def _refuse(ds: Dataset, name: str) -> None:
    """Raises `ImageError` for what is no single grey projection X-ray, before any pixel is decoded."""
    modality = _text(ds, "Modality")
    if modality and modality not in _MODALITIES:
        code = modality if re.fullmatch("[A-Z0-9]{2,16}", modality) else "(unreadable)"
        meaning = f" ({_MEANING[code]})" if code in _MEANING else ""
        raise ImageError(
            f"{name} has the DICOM modality {code}{meaning}: give an X-ray of the chest, of modality CR, DX or RG"
        )
    if "PixelData" not in ds:
        raise ImageError(
            f"{name} is a DICOM file without pixel data: "
            "give the file that holds the film, or copy it again if it was cut off"
        )
    frames = _integer(ds, "NumberOfFrames", 1)
    if frames > 1:
        raise ImageError(f"{name} has {frames} frames, a film has one: export the frame in question")
    photometric = _text(ds, "PhotometricInterpretation")
    if _integer(ds, "SamplesPerPixel", 1) != 1 or (photometric and not photometric.startswith("MONOCHROME")):
        raise ImageError(f"{name} is a DICOM picture in colour, an X-ray is grey: give the film itself")
    missing = [tag for tag in ("PhotometricInterpretation", "Rows", "Columns", "BitsAllocated") if ds.get(tag) is None]
    if missing:
        raise ImageError(f"{name} is a damaged DICOM file, it lacks {', '.join(missing)}: copy it again")
    rows, columns = _integer(ds, "Rows"), _integer(ds, "Columns")
    if min(rows, columns) < 1:
        raise ValueError("no pixels")
    if rows * columns > MAX_PIXELS:
        raise ImageError(
            f"{name} claims {columns} x {rows} pixels, more than any X-ray detector has: "
            f"scale it down to {MAX_PIXELS // 1_000_000} million"
        )
    if _integer(ds, "BitsStored", 1) > 16:
        raise ImageError(f"{name} has more than 16 bits a pixel, an X-ray detector has fewer: export it again")


def _pixels(ds: Dataset, name: str) -> npt.NDArray[np.integer[Any]]:
    """Returns the stored values (H, W), unused bits cleared or filled with the sign."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    # What old files leave out.
    ds.SamplesPerPixel = ds.NumberOfFrames = 1
    ds.PixelRepresentation = _integer(ds, "PixelRepresentation", 0)
    ds.BitsStored = _integer(ds, "BitsStored", _integer(ds, "BitsAllocated"))
    if ds.BitsStored < 1:
        raise ValueError("no bits")
    encapsulated = getattr(ds.get_item("PixelData"), "length", 0) == 0xFFFFFFFF
    syntax = ds.file_meta.get("TransferSyntaxUID")
    if not syntax:
        if encapsulated:
            raise ImageError(f"{name} does not say how it is compressed: export it again, with file meta information")
        implicit, little = ds.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        syntax = ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    if syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        # Values may be kept at the top of their bits, above what once was an overlay: read both, drop what is below.
        below: int = max(_integer(ds, "HighBit", ds.BitsStored - 1) + 1 - ds.BitsStored, 0)
        ds.BitsStored += below
        values: npt.NDArray[np.integer[Any]] = pixel_array(ds, index=0)
        return values >> below
    if syntax not in _JPEG | _JPEG_2000 | {_RLE}:
        kind = UID(syntax).name if UID(syntax).keyword else "an unknown syntax"
        raise ImageError(f"{name} is compressed as {kind}, which is not read here: export it without compression")
    if not encapsulated:
        raise ValueError("compressed pixel data come in fragments")

    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    if syntax in _JPEG_2000:
        # Some writers leave the JP2 container around the codestream.
        frame = frame[max(frame.find(b"\xff\x4f\xff\x51"), 0) :]
        right, bottom, left, top = unpack_from(">4L", frame, 8)
        _match(ds, bottom - top, right - left, *unpack_from(">H", frame, 40))
        return _with_pillow(ds, frame, "1.2.840.10008.1.2.4.91", name)
    if syntax == _RLE:
        return _with_gdcm(ds, frame, syntax, name)
    precision, rows, columns, samples, lossy = _jpeg_header(frame)
    _match(ds, rows, columns, samples)
    # The codestream knows how many bits it holds; what the tags say need not agree.
    ds.BitsAllocated = 8 if precision <= 8 else 16
    ds.BitsStored = min(ds.BitsStored, precision)
    if lossy and precision == 8:
        return _with_pillow(ds, frame, "1.2.840.10008.1.2.4.50", name)
    return _with_gdcm(ds, frame, syntax, name)


def _match(ds: Dataset, rows: int, columns: int, samples: int) -> None:
    """Holds the decoders to the size that was checked: a codestream may claim another one, and gigapixels."""
    if (rows, columns, samples) != (ds.Rows, ds.Columns, 1):
        raise ValueError("the codestream has another size than the tags say")


def _jpeg_header(frame: bytes) -> tuple[int, int, int, int, bool]:
    """Returns bits, rows, columns, components and "a DCT process" of a JPEG or JPEG-LS codestream (ITU-T T.81 B.2)."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    at, header = 2, None
    while True:
        marker, length = unpack_from(">HH", frame, at)
        if marker == 0xFFFF:
            at += 1
        elif marker == 0xFFDA and header is not None:
            return header
        elif marker <= 0xFF00 or length < 2:
            raise ValueError("a segment does not begin with a marker")
        else:
            if marker in (0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFF7):
                if header is not None:
                    raise ValueError("two pictures in one frame")
                precision, rows, columns, samples = unpack_from(">BHHB", frame, at + 4)
                header = precision, rows, columns, samples, marker < 0xFFC3
            at += 2 + length


def _with_pillow(ds: Dataset, frame: bytes, syntax: str, name: str) -> npt.NDArray[np.integer[Any]]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    if "pillow" not in get_decoder(syntax).available_plugins:
        raise ImageError(f"{name} is compressed as {UID(syntax).name}, which this build of Pillow cannot decode")
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = encapsulate([frame])
    return pixel_array(ds, index=0, decoding_plugin="pillow")


def _with_gdcm(ds: Dataset, frame: bytes, syntax: str, name: str) -> npt.NDArray[np.integer[Any]]:
    """Decodes in a process of its own; whatever becomes of that process, this one lives on."""
    from pydicom.uid import UID

    found = importlib.util.find_spec("gdcm")
    if found is None or found.origin is None:
        raise ImageError(
            f"{name} is compressed as {UID(syntax).name}, "
            "which needs the package python-gdcm: pip install 'pneumo[dicom]'"
        )
    rows, columns, allocated, stored = ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise ValueError("no number of bits that a film has")
    script = str(Path(__file__).with_name("gdcm_process.py"))
    folder = str(Path(found.origin).parent)
    decoded = subprocess.run(  # noqa: S603 - our own script and interpreter; the frame is data on stdin
        [sys.executable, "-I", "-S", script, folder, syntax, *map(str, (columns, rows, allocated, stored))],
        input=frame,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_PATIENCE + rows * columns / 1e6,
        check=True,
    ).stdout
    kind = "i" if ds.PixelRepresentation == 1 else "u"
    values: npt.NDArray[np.integer[Any]] = np.frombuffer(decoded, f"<{kind}{allocated // 8}").reshape(rows, columns)
    unused = values.dtype.type(allocated - stored)
    return (values << unused) >> unused


def _grey(pixels: npt.NDArray[np.integer[Any]], ds: Dataset) -> npt.NDArray[np.uint8]:
    """Turns stored values (H, W) into grey levels 0 to 255, as the tags of `ds` ask for."""
    lowest, light = _light(pixels, ds)
    return _looked_up(pixels, lowest, np.rint(255.0 * light.clip(0.0, 1.0)).astype(np.uint8))


def _deep(pixels: npt.NDArray[np.integer[Any]], ds: Dataset) -> DeepFilm:
    """Turns stored values (H, W) into as many grey levels as there are stored values, the window kept apart."""
    lowest, light = _light(pixels, ds)
    darkest, lightest = float(light.min()), float(light.max())
    if not lightest - darkest < 1e6:
        # A window so narrow, or a slope so steep, that nothing but black and white is left.
        light = light.clip(0.0, 1.0)
        darkest, lightest = 0.0, 1.0
    levels = max(len(light) - 1, 1)
    scale = levels / (lightest - darkest or 1.0)
    kind = np.uint8 if levels < 256 else np.uint16
    values = _looked_up(pixels, lowest, np.rint(scale * (light - darkest)).astype(kind))
    return DeepFilm(values, levels, -scale * darkest, scale * (1.0 - darkest))


def _looked_up(pixels: npt.NDArray[np.integer[Any]], lowest: int, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns `table[pixels - lowest]`."""
    found = np.empty(pixels.shape, dtype=table.dtype)
    for row, values in enumerate(pixels):
        # Row by row: numpy makes 8-byte indices of what it looks up, half a gigabyte for the largest films.
        found[row] = table[values.astype(np.int64) - lowest]
    return found


def _light(pixels: npt.NDArray[np.integer[Any]], ds: Dataset) -> tuple[int, npt.NDArray[np.float64]]:
    """Returns the lowest stored value and, from it to the highest, how light each is as the tags of `ds` ask for.

    0 is black and 1 is white; what lies outside of a window is below or above.
    """
    padding = _padding(ds)
    body = pixels
    if padding is not None:
        body = pixels[(pixels < padding[0]) | (pixels > padding[1])]
        if body.size == 0:
            body = pixels
    lowest, highest = int(pixels.min()), int(pixels.max())
    stored = np.arange(lowest, highest + 1)
    with np.errstate(all="ignore"):  # slopes and windows of any size
        shown = _modality(stored.astype(np.float64), ds)
        light = _voi(shown, ds)
        if light is None:
            seen = shown[int(body.min()) - lowest : int(body.max()) - lowest + 1]
            light = (shown - seen.min()) / (np.ptp(seen) or 1.0)
        light = np.nan_to_num(light)
    # In the digital X-ray module INVERSE goes with MONOCHROME1 and means the same inversion, not a second one
    # (PS3.3 C.8.11.3).
    if _text(ds, "PhotometricInterpretation") == "MONOCHROME1" or _text(ds, "PresentationLUTShape") == "INVERSE":
        light = 1.0 - light
    if padding is not None:
        # Outside of the film is dark, whichever way round the film is stored.
        light[(stored >= padding[0]) & (stored <= padding[1])] = 0.0
    return lowest, light


def _padding(ds: Dataset) -> tuple[int, int] | None:
    """Returns the lowest and highest stored value that stands for "no film here", if the file has one."""
    if ds.get("PixelPaddingValue") is None:
        return None
    value = _integer(ds, "PixelPaddingValue")
    limit = _integer(ds, "PixelPaddingRangeLimit", value)
    return min(value, limit), max(value, limit)


def _modality(values: npt.NDArray[np.float64], ds: Dataset) -> npt.NDArray[np.float64]:
    """Applies the modality LUT or, without one, slope and intercept (PS3.3 C.11.1)."""
    table = _table(ds, "ModalityLUTSequence")
    if table is not None:
        return _look_up(values, *table)
    slope, intercept = _number(ds, "RescaleSlope"), _number(ds, "RescaleIntercept")
    return values if slope is None or intercept is None else slope * values + intercept


def _voi(values: npt.NDArray[np.float64], ds: Dataset) -> npt.NDArray[np.float64] | None:
    """Returns 0 (black) to 1 (white) by the VOI LUT or the first window (PS3.3 C.11.2), None if there is neither."""
    table = _table(ds, "VOILUTSequence")
    if table is not None:
        entries, first = table
        # The number of bits that the descriptor states is often that of the container; the entries tell the real one.
        return _look_up(values, entries, first) / ((1 << int(entries.max()).bit_length()) - 1 or 1)
    centre, width = _number(ds, "WindowCenter"), _number(ds, "WindowWidth")
    function = _text(ds, "VOILUTFunction")
    exact = function == "LINEAR_EXACT"
    if centre is None or width is None or width <= 0 or (width < 1 and not exact and function != "SIGMOID"):
        return None
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(-4.0 * (values - centre) / width))
    if not exact:
        centre, width = centre - 0.5, width - 1
    return (values - centre) / width + 0.5 if width else (values > centre).astype(np.float64)


def _look_up(
    values: npt.NDArray[np.float64], entries: npt.NDArray[np.integer[Any]], first: int
) -> npt.NDArray[np.float64]:
    """Values below `first` get the first entry, values behind the last entry get the last."""
    return entries[np.rint(values - first).clip(0, len(entries) - 1).astype(np.int64)].astype(np.float64)


def _table(ds: Dataset, keyword: str) -> tuple[npt.NDArray[np.integer[Any]], int] | None:
    """Returns entries and first mapped value of the first table of a LUT sequence (PS3.3 C.11.1.1).

    Read here and not by `pydicom.pixels.apply_voi_lut`: that takes the index modulo 256 where the entries have 8 bits,
    and cannot read entries of 9, 11 or more bits in a modality LUT.
    """
    if keyword in ds and getattr(ds.get_item(keyword), "length", 0) > _MAX_SEQUENCE:
        raise ValueError("a look-up table larger than any")
    sequence = ds.get(keyword)
    if not sequence or sequence[0].get("LUTDescriptor") is None or sequence[0].get("LUTData") is None:
        return None
    count, first, _ = (int(value) for value in sequence[0].LUTDescriptor)
    count = count % 65536 or 65536
    data = sequence[0].LUTData
    order = "<" if ds.original_encoding[1] else ">"
    if not isinstance(data, bytes):
        data, order = np.array(data, ndmin=1).astype("<u2").tobytes(), "<"
    # Entries of 8 bits may stand one in a word or two in a word.
    wide = len(data) >= 2 * count
    return np.frombuffer(data, f"{order}u2" if wide else "u1", count), first


def _doubts(ds: Dataset) -> tuple[str, ...]:
    """Returns a sentence for each thing that the tags say and the model has not seen."""
    found = []
    if not _text(ds, "Modality"):
        found.append("the file does not name its modality; the model has seen X-rays only")
    age = _age(ds)
    if age is not None:
        found.append(f"the patient is {age} old; the model has seen children of 1 to 5 years only")
    view = _VIEWS.get(_text(ds, "ViewPosition"))
    if view:
        found.append(f"{view}; the model has seen frontal films only")
    part = _text(ds, "BodyPartExamined")
    if part and not any(word in part for word in _CHEST):
        named = part if re.fullmatch("[A-Z0-9_ ]{1,16}", part) else "another one than the chest"
        found.append(f"the body part is {named}; the model has seen chest films only")
    return tuple(found)


def _age(ds: Dataset) -> str | None:
    """Returns the patient's age in words if it lies outside 1 to 5 years, None if it lies inside or is not stated."""
    stated = re.fullmatch(r"(\d{1,3}) ?([DWMY]?)", _text(ds, "PatientAge"))
    if stated:
        number, unit = int(stated[1]), stated[2] or "Y"
    else:
        try:
            born, taken = (datetime.strptime(_text(ds, tag), "%Y%m%d") for tag in ("PatientBirthDate", "StudyDate"))
        except ValueError:
            return None
        number = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
        unit = "Y"
    years = number / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[unit]
    if number < 0 or 1 <= years < 6:
        return None
    if years >= 90:
        return "over 89 years"  # an exact one could identify the person
    if unit == "Y" and number == 0:
        return "less than 1 year"
    word = {"D": "day", "W": "week", "M": "month", "Y": "year"}[unit]
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _first(ds: Dataset, keyword: str) -> Any:
    """Returns the first value of an element, None for one that is missing or empty."""
    value = ds.get(keyword)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__getitem__"):
        return None if value in ("", b"") else value
    return value[0] if len(value) else None


def _text(ds: Dataset, keyword: str) -> str:
    value = _first(ds, keyword)
    return "" if value is None else str(value).strip().upper()


def _integer(ds: Dataset, keyword: str, default: int | None = None) -> int:
    value = _first(ds, keyword)
    if value is None and default is not None:
        return default
    return int(value)


def _number(ds: Dataset, keyword: str) -> float | None:
    value = _first(ds, keyword)
    number = None if value is None else float(value)
    return number if number is not None and np.isfinite(number) else None
