"""Decodes one compressed frame with GDCM: run as a script by `decode.py`, one process for one frame.

    python -I -S gdcm_process.py FOLDER TRANSFER_SYNTAX COLUMNS ROWS BITS_ALLOCATED BITS < frame > pixels

GDCM is the one decoder of JPEG Lossless, JPEG-LS and 12-bit JPEG whose licence goes with ours, and about one garbled
stream in a hundred makes it abort, crash or run for ever. In a process of its own that costs one file, not the run, and
what it prints goes nowhere. Starting it takes about 0.1 s.
"""

from __future__ import annotations

import importlib
import sys

NO_GDCM = 3
"""Exit code where GDCM itself cannot be imported: no fault of the frame."""


def main() -> None:
    """Reads the frame from stdin; writes one sample a pixel, little endian, 1 or 2 bytes each, to stdout."""
    try:
        import resource
    except ImportError:
        pass  # Windows, which writes no core files either
    else:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder, syntax = sys.argv[1:3]
    columns, rows, allocated, bits = map(int, sys.argv[3:])
    # Where GDCM is installed; behind the standard library, which a neighbour of GDCM must not shadow.
    sys.path.append(folder)
    try:
        gdcm = importlib.import_module("gdcm")
        fragment = gdcm.Fragment()
    except Exception:
        sys.exit(NO_GDCM)

    fragment.SetByteStringValue(sys.stdin.buffer.read())
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())

    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    image.SetPhotometricInterpretation(grey)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, bits, bits - 1, 0))
    # The bytes come as text with the undecodable ones escaped.
    sys.stdout.buffer.write(image.GetBuffer().encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main()
