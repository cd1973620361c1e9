"""From the pixel data of a DICOM file to the stored values, however they are compressed.

Pillow decodes 8-bit JPEG, JPEG 2000 and run lengths. JPEG Lossless, JPEG-LS and JPEG of 12 bits go to GDCM in a process
of its own; `gdcm_process.py` says why. A codestream states its kind, size and depth. Where the tags differ, it is right
(PS3.5 8.2), but its size must be the one that was checked.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from struct import unpack_from
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_edge.dicom.gdcm_process import NO_GDCM
from pneumo_edge.dicom.tags import integer
from pneumo_edge.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Values = npt.NDArray[np.integer[Any]]

_PLAIN = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2")
"""Explicit and implicit little endian, big endian."""
_RLE = "1.2.840.10008.1.2.5"
_JPEG_EXTENDED, _JPEG_LOSSLESS, _JPEG_LS = (f"1.2.840.10008.1.2.4.{n}" for n in (51, 57, 81))
_LOSSLESS = (_RLE, *(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 90, 201, 202)))
_LOSSY = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (203, 50, 51, 81, 91))

TRANSFER_SYNTAXES = (*_PLAIN, *_LOSSLESS, *_LOSSY)
"""All that `read_dicom` reads, in the order in which a receiver prefers them: plain, packed without loss, with loss.
201 to 203 are high-throughput JPEG 2000, which OpenJPEG, and so Pillow, decodes too."""

_SOF = {
    0xFFC0: "baseline",
    0xFFC1: "extended",
    0xFFC2: "progressive",
    0xFFC3: "lossless",
    0xFFC5: "hierarchical",
    0xFFC6: "hierarchical",
    0xFFC7: "hierarchical",
    0xFFC9: "arithmetic",
    0xFFCA: "arithmetic",
    0xFFCB: "arithmetic lossless",
    0xFFCD: "hierarchical",
    0xFFCE: "hierarchical",
    0xFFCF: "hierarchical",
    0xFFF7: "LS",
}
"""Marker of a JPEG header -> the kind of JPEG (ITU-T T.81 table B.1, T.87 C.1.1)."""

_UNDEFINED = 0xFFFFFFFF

_CALLED = {_JPEG_EXTENDED: "JPEG of 12 bits", _JPEG_LOSSLESS: "JPEG Lossless", _JPEG_LS: "JPEG-LS"}

_PATIENCE = 10.0
"""Seconds that GDCM may take, plus one for every million pixels. A slow board takes less; a garbled stream never
ends."""


def stored_values(ds: Dataset, name: str) -> tuple[Values, int]:
    """Decodes the one frame of a film.

    Returns:
        The stored values (H, W), unused bits cleared or filled with the sign (PS3.5 8.1.1), and how many bits they
        have.

    Raises:
        ImageError: Compressed in a way that is not read here, or for which no decoder is installed.
        Exception: Nearly any, where the file is damaged.
    """
    pixels: Any = ds.get_item("PixelData")
    data = pixels.value or b""
    # Compressed pixel data have an undefined length, plain ones never (PS3.5 A.4): true even where the transfer syntax
    # is missing or was left as it once was.
    if pixels.length == _UNDEFINED:
        syntax = ds.file_meta.get("TransferSyntaxUID") or ""
        values, holds, signed = _decompress(ds, _frame(data), syntax, name)
    else:
        values, holds, signed = _plain(ds, data, pixels.VR == "OW", name)
    return _of_their_bits(values, holds, ds, signed)


def _of_their_bits(values: Values, holds: int, ds: Dataset, signed: bool | None) -> tuple[Values, int]:
    """Takes the stored bits out of each word, in every transfer syntax alike (PS3.5 8.1.1, PS3.3 C.7.6.3.1).

    Args:
        values: Words as they were decoded.
        holds: How many of their bits mean something: all of a word, or the precision of a codestream. A codestream
            that has only the stored bits has them at the bottom, wherever HighBit says they once were.
        ds: With BitsStored, HighBit and PixelRepresentation.
        signed: What the codestream says of the sign, where it says anything.
    """
    stored = integer(ds, "BitsStored", integer(ds, "BitsAllocated"))
    if stored < 1:
        raise ValueError("no bits")
    high = integer(ds, "HighBit", stored - 1)
    below = high + 1 - stored if stored <= high < holds else 0
    bits = min(stored, holds - below)
    if signed is None:
        signed = integer(ds, "PixelRepresentation", 0) == 1
    width = 8 * values.dtype.itemsize
    words = values.astype(f"{'i' if signed else 'u'}{values.dtype.itemsize}")
    return (words << (width - below - bits)) >> (width - bits), bits


def _plain(ds: Dataset, data: bytes, in_words: bool, name: str) -> tuple[Values, int, None]:
    rows, columns, allocated = ds.Rows, ds.Columns, integer(ds, "BitsAllocated")
    if allocated not in (8, 16, 32):
        raise ImageError(
            f"{name} has {allocated} bits allocated for a pixel, which is not read here: "
            "export it with 16 bits allocated"
        )
    little = ds.original_encoding[1] is not False
    if allocated == 8 and not little and in_words:
        # Bytes lie in words, whose bytes are swapped (PS3.5 A.3).
        data = np.frombuffer(data, ">u2", len(data) // 2).astype("<u2").tobytes()
    # More bytes than the film has are padding, or once were other frames.
    words = np.frombuffer(data, f"{'<' if little else '>'}u{allocated // 8}", rows * columns)
    return words.astype(words.dtype.newbyteorder("=")).reshape(rows, columns), allocated, None


def _frame(data: bytes) -> bytes:
    """Returns the one frame of encapsulated pixel data (PS3.5 A.4).

    The first item is the table of where frames begin; one frame needs none, so what it says does not matter. All other
    items are pieces of the frame.
    """
    at, pieces = 0, []
    while at + 8 <= len(data) and (head := unpack_from("<HHL", data, at))[:2] != (0xFFFE, 0xE0DD):
        if head[:2] != (0xFFFE, 0xE000) or at + 8 + head[2] > len(data):
            raise ValueError("compressed pixel data are a sequence of items")
        pieces.append(data[at + 8 : at + 8 + head[2]])
        at += 8 + head[2]
    # A single item cannot be the table: some writers leave that out.
    return b"".join(pieces[1:] if len(pieces) > 1 else pieces)


def _decompress(ds: Dataset, frame: bytes, syntax: str, name: str) -> tuple[Values, int, bool | None]:
    """Returns words, how many of their bits mean something, and the sign where the codestream states it."""
    # Some writers leave the JP2 container around the codestream.
    if frame[4:8] == b"jP  " and b"\xff\x4f\xff\x51" in frame:
        frame = frame[frame.index(b"\xff\x4f\xff\x51") :]
    if frame[:4] == b"\xff\x4f\xff\x51":
        return _jpeg_2000(ds, frame, name)
    if frame[:2] == b"\xff\xd8":
        kind, precision, rows, columns, samples = jpeg_header(frame)
        _match(ds, rows, columns, samples)
        if precision == 8 and kind in ("baseline", "extended", "progressive"):
            return _jpeg(frame), 8, None
        return decode_jpeg(frame, name), precision, None
    if syntax == _RLE:
        return _run_lengths(ds, frame), integer(ds, "BitsAllocated"), None
    if syntax in ("", *_PLAIN):
        raise ImageError(f"{name} does not say how it is compressed: export it again, with file meta information")
    if syntax in TRANSFER_SYNTAXES:
        raise ValueError("no codestream of that kind")
    from pydicom.uid import UID

    kind = UID(syntax).name if UID(syntax).keyword else "an unknown syntax"
    raise ImageError(f"{name} is compressed as {kind}, which is not read here: export it without compression")


def _match(ds: Dataset, rows: int, columns: int, samples: int) -> None:
    """Holds the decoders to the size that was checked: a codestream may claim another one, and gigapixels."""
    if (rows, columns, samples) != (ds.Rows, ds.Columns, 1):
        raise ValueError("the codestream has another size than the tags say")


def jpeg_header(frame: bytes) -> tuple[str, int, int, int, int]:
    """Returns kind (of `_SOF`), bits, rows, columns and components of a JPEG or JPEG-LS codestream (ITU-T T.81 B.2).

    Raises:
        ValueError, struct.error: It is none, or damaged.
    """
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
            if marker in _SOF:
                if header is not None:
                    raise ValueError("two pictures in one frame")
                header = (_SOF[marker], *unpack_from(">BHHB", frame, at + 4))
            at += 2 + length


def _run_lengths(ds: Dataset, frame: bytes) -> Values:
    """Decodes RLE: a segment for each byte of a word, the highest first, in PackBits as TIFF has it (PS3.5 G)."""
    size, allocated = ds.Rows * ds.Columns, integer(ds, "BitsAllocated")
    count, *places = unpack_from("<16L", frame)
    if allocated not in (8, 16, 32) or count != allocated // 8:
        raise ValueError("run lengths of another depth than the tags say")
    words = np.zeros(size, f"u{count}")
    for begin, end in zip(places[:count], [*places[1:count], len(frame)], strict=True):
        # One row as long as the film: Pillow stops where it is full, and raises where it does not get so far.
        words <<= 8 * (count > 1)
        words |= np.asarray(Image.frombytes("L", (size, 1), frame[begin:end], "packbits", "L"))[0]
    return words.reshape(ds.Rows, ds.Columns)


def _jpeg(frame: bytes) -> Values:
    from PIL.JpegImagePlugin import JpegImageFile

    with JpegImageFile(io.BytesIO(frame)) as picture:
        return np.array(picture)


def decode_jpeg(frame: bytes, name: str) -> Values:
    """Decodes a grey JPEG of one of the kinds that Pillow does not know: 12 bits, lossless, JPEG-LS.

    Returns:
        (H, W), uint8 or uint16, as many bits as the codestream says.

    Raises:
        ImageError: A kind that is not read here, or GDCM is not there.
        Exception: Nearly any, where it is damaged.
    """
    kind, precision, rows, columns, samples = jpeg_header(frame)
    syntax = {"extended": _JPEG_EXTENDED, "lossless": _JPEG_LOSSLESS, "LS": _JPEG_LS}.get(kind)
    if syntax is None or samples != 1 or not 2 <= precision <= 16 or (kind == "extended" and precision != 12):
        grey = "" if samples == 1 else ", in colour"
        raise ImageError(
            f"{name} is a JPEG of a rare kind ({kind}, {precision} bits{grey}), which is not read here: "
            "save it as PNG, or export it without compression"
        )
    return _with_gdcm(frame, syntax, rows, columns, precision, name)


def _jpeg_2000(ds: Dataset, frame: bytes, name: str) -> tuple[Values, int, bool]:
    """Decodes with Pillow, which moves values to the top of 8 or 16 bits and away from negative ones (ITU-T T.800)."""
    rows, columns, samples, precision, signed = jpeg_2000_header(frame)
    _match(ds, rows, columns, samples)
    if precision > 16:
        raise ImageError(f"{name} has {precision} bits a pixel, an X-ray detector has fewer: export it again")
    values = decode_jpeg_2000(frame, name).astype(np.int32) >> ((8 if precision <= 8 else 16) - precision)
    if signed:
        values -= 1 << (precision - 1)
    unsigned = values.astype(np.uint32).astype(np.uint16)
    # The numbers that were compressed are those that come out. Without a sign of its own, they may still be the bits of
    # signed values.
    return unsigned, precision, signed or integer(ds, "PixelRepresentation", 0) == 1


def jpeg_2000_header(frame: bytes) -> tuple[int, int, int, int, bool]:
    """Returns rows, columns, components, bits and "has a sign" of a JPEG 2000 codestream (ITU-T T.800 A.5.1).

    Raises:
        ValueError, struct.error: It is none, or damaged.
    """
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no JPEG 2000")
    right, bottom, left, top = unpack_from(">4L", frame, 8)
    samples, depth = unpack_from(">HB", frame, 40)
    return bottom - top, right - left, samples, (depth & 0x7F) + 1, depth >> 7 == 1


def decode_jpeg_2000(frame: bytes, name: str) -> Values:
    """Decodes a JPEG 2000 codestream; grey values stand at the top of their 8 or 16 bits.

    Raises:
        ImageError: This Pillow cannot.
        Exception: Nearly any, where it is damaged.
    """
    from PIL import features
    from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

    if not features.check_codec("jpg_2000"):
        raise ImageError(
            f"{name} is compressed as JPEG 2000, which the Pillow installed here cannot decode: use another"
        )
    with Jpeg2KImageFile(io.BytesIO(frame)) as picture:
        return np.array(picture)


def _with_gdcm(frame: bytes, syntax: str, rows: int, columns: int, bits: int, name: str) -> Values:
    """Decodes in a process of its own; whatever becomes of that process, this one lives on.

    Returns:
        (rows, columns), uint8 for up to 8 `bits`, else uint16.
    """
    import subprocess
    from importlib import util

    found = util.find_spec("gdcm")
    what = f"{name} is compressed in a way ({_CALLED[syntax]}) that needs the package python-gdcm"
    if found is None or found.origin is None:
        raise ImageError(f"{what}: pip install 'pneumo[dicom]'")
    allocated = 8 if bits <= 8 else 16
    script = str(Path(__file__).with_name("gdcm_process.py"))
    folder = str(Path(found.origin).parent)
    try:
        done = subprocess.run(  # noqa: S603 - our own script and interpreter; the frame is data on stdin
            [sys.executable, "-I", "-S", script, folder, syntax, *map(str, (columns, rows, allocated, bits))],
            input=frame,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE + rows * columns / 1e6,
            check=False,
        )
    except OSError as error:
        raise ImageError(
            f"{what}, whose process cannot be started here ({error.strerror}): allow more processes"
        ) from error
    if done.returncode == NO_GDCM:
        raise ImageError(f"{what}, which cannot be imported from {folder}: install it again")
    done.check_returncode()
    return np.frombuffer(done.stdout, f"<u{allocated // 8}").reshape(rows, columns)
