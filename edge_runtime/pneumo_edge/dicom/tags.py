"""Reads the elements of a DICOM file, so that no odd one spoils the others.

Values come from the bytes in the file wherever that is possible. pydicom converts them by the type that the file states
or, with implicit VR, by a guess; and it raises an exception where a number is none.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from math import isfinite
from struct import unpack_from
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.errors import ImageError, MissingExtraError, one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_PIXELS = 64_000_000
"""Most pixels of any film, DICOM or not. The largest detectors in use give about 20 million. A header that claims more
than this is refused unread."""

TAGS = (
    "SOPClassUID",
    "StudyDate",
    "Modality",
    "PresentationIntentType",
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
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
)
"""All elements that are read: no name and no number of a patient ever becomes an object of the process."""

_MAX_READS = 50_000
"""Most reads of a file. A film has a few thousand elements of one or two reads each. pydicom makes an object of every
sequence item, and a megabyte of zeros can pass for 130,000 items: this limit bounds the time and the memory."""

_MAX_SEQUENCE = 1 << 20
"""Bytes of a look-up table sequence: several tables of 65,536 entries."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1\0\0\0"

_MAX_INFLATED = 2 * MAX_PIXELS + (1 << 24)
"""Bytes of a deflated data set: the largest film in 16 bits and its tags."""


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


def read_tags(data: bytes, keywords: Sequence[str], name: str) -> Dataset:
    """Reads some elements of a DICOM file, with or without preamble and file meta information.

    Args:
        data: The whole file.
        keywords: DICOM's names of the elements. Without "PixelData" among them, nothing from there on is read.
        name: Name of the file in errors.

    Returns:
        The elements as they stand in the file: their values are parsed when they are asked for.

    Raises:
        MissingExtraError: pydicom is not installed.
        ImageError: pydicom is installed and cannot be imported, or the file unpacks to more than any film has.
        Exception: Nearly any, where the file is damaged.
    """
    # In front of all other filters, and added only if it is not there yet: a list that is left alone is never found
    # half shuffled by another thread.
    if not warnings.filters or warnings.filters[0][3] != re.compile("pydicom"):
        warnings.filterwarnings("ignore", module="pydicom")
    try:
        import pydicom
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "pydicom":
            raise MissingExtraError("pydicom", "dicom", f"{name} is a DICOM file: reading it") from error
        # pydicom imports decoders, and one of them asks for a module `dl`: any folder of that name will do.
        raise ImageError(
            f"{name} is a DICOM file, and the package pydicom cannot be imported here ({one_line(error)}): look "
            "beside the script for a file or folder with the name of a module, or install pneumo[dicom] again"
        ) from error
    pixels = "PixelData" in keywords
    file = _Bounded(_inflated(data, name))
    return pydicom.dcmread(file, force=True, specific_tags=list(keywords), stop_before_pixels=not pixels)


def _inflated(data: bytes, name: str) -> bytes:
    """Undoes the deflated transfer syntax (PS3.5 A.5), which packs all that follows the file meta information.

    Only the file meta information tells which syntax a file has (PS3.10 7.1): the same digits may stand anywhere else.
    """
    at, deflated = 132 if data[128:132] == b"DICM" else 0, None
    while data[at : at + 2] == b"\x02\x00" and len(data) >= at + 12:
        # Always explicit little endian, whatever the rest is (PS3.10 7.1).
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        head, length = (12, *unpack_from("<L", data, at + 8)) if long else (8, *unpack_from("<H", data, at + 6))
        value = data[at + head : at + head + length]
        if data[at + 2 : at + 4] == b"\x10\x00" and value.rstrip(b"\0 ") == _DEFLATED:
            deflated = at + head
        at += head + length
    if deflated is None:
        return data
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    rest = unpacker.decompress(data[at:], _MAX_INFLATED)
    if unpacker.unconsumed_tail:
        raise ImageError(f"{name} is deflated and unpacks to more than any film has: export it without compression")
    return b"".join((data[:deflated], _EXPLICIT, data[deflated + len(_EXPLICIT) : at], rest))


def texts(ds: Dataset, keyword: str) -> list[str]:
    """Returns the values of a text element (CS, DS, IS, AS, DA, UI), in capitals, with empty ones; [] without it."""
    value = getattr(ds.get_item(keyword), "value", None)
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    elif value is None or isinstance(value, str) or not hasattr(value, "__iter__"):
        value = [] if value is None else [value]
    return [str(each).strip(" \0").upper() for each in value]


def text(ds: Dataset, keyword: str) -> str:
    """Returns the first value of a text element, in capitals; "" for one that is missing or empty."""
    return next(iter(texts(ds, keyword)), "")


def numbers(ds: Dataset, keyword: str) -> list[float | None]:
    """Returns the values of a decimal or integer string, None for each that is no finite number (PS3.5 6.2)."""
    return [_number(each) for each in texts(ds, keyword)]


def _number(text: str) -> float | None:
    # Python would take "1_000", "nan" and "infinity" too.
    number = float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)?", text) else None
    return number if number is not None and isfinite(number) else None


def words(ds: Dataset, keyword: str) -> npt.NDArray[np.uint16]:
    """Returns the values of an element of 16-bit words as unsigned ones, whatever type the file or pydicom gives it.

    "US or SS" elements take their sign from other elements (PS3.3 C.7.6.3.1, C.11.1.1.1, C.11.2.1.1; PS3.5 A.1): the
    caller knows these. Bytes that are no whole word are completed with zero.
    """
    value = getattr(ds.get_item(keyword), "value", None)
    if isinstance(value, bytes):
        little = getattr(ds.get_item(keyword), "is_little_endian", ds.original_encoding[1])
        return np.frombuffer(value + bytes(len(value) % 2), "<u2" if little is not False else ">u2").astype(np.uint16)
    if value is None or isinstance(value, str):
        return np.zeros(0, np.uint16)
    return np.array([int(each) & 0xFFFF for each in np.atleast_1d(value)], np.uint16)


def integer(ds: Dataset, keyword: str, default: int | None = None) -> int:
    """Returns the first value of an element that the film needs.

    Raises:
        Exception: It is missing or empty and has no `default`, or is no number.
    """
    value: Any = ds.get(keyword)
    if hasattr(value, "__getitem__") and not isinstance(value, (str, bytes)):
        value = value[0] if len(value) else None
    if (value is None or value in ("", b"")) and default is not None:
        return default
    return int(value)


def items(ds: Dataset, keyword: str) -> Iterator[Dataset]:
    """Yields the items of a sequence.

    Raises:
        Exception: Nearly any, where the sequence is damaged.
    """
    if keyword not in ds:
        return
    if getattr(ds.get_item(keyword), "length", 0) > _MAX_SEQUENCE:
        raise ValueError("a look-up table larger than any")
    yield from ds.get(keyword) or ()
