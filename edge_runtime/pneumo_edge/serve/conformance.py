"""The DICOM conformance statement (PS3.2), written from the code that does what it states.

python -m pneumo_edge.serve.conformance > docs/dicom-conformance.md
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pneumo_edge import Classifier, __version__
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.dicom.decode import TRANSFER_SYNTAXES
from pneumo_edge.serve import peers
from pneumo_edge.serve.answers import (
    FORMS,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    OUR_CODES,
    REPORTS,
    Answer,
)
from pneumo_edge.serve.film import IDENTITY, KINDS, OF_THE_PIXELS, WHOSE
from pneumo_edge.serve.inbox import STATUS, Limits
from pneumo_edge.serve.node import MAX_PDU, PLAIN
from pneumo_edge.serve.stow import REFUSED_FOR_GOOD

_VERIFICATION = "1.2.840.10008.1.1"


def statement() -> str:
    """Returns the statement, in Markdown."""
    limits = Limits()
    text = f"""# DICOM conformance statement: pneumo-serve {__version__}

Written by `python -m pneumo_edge.serve.conformance` from the code itself; a test compares the two. The order follows
PS3.2. {NOT_A_DIAGNOSIS}

## Overview

`pneumo-serve` receives projection X-rays of the chest, has a neural network judge them, and sends a picture and a
structured report to one or more destinations. It queries nothing, retrieves nothing, prints nothing, and writes no
media.

{
        _table(
            ("service", "role", "over"),
            (
                ("Verification", "SCP and SCU", "DICOM"),
                ("Storage of films", "SCP", "DICOM"),
                ("Storage of answers", "SCU", "DICOM"),
                ("Store transaction (STOW-RS) of films", "origin server", "DICOMweb"),
                ("Store transaction (STOW-RS) of answers", "user agent", "DICOMweb"),
            ),
        )
    }

## Implementation

{
        _table(
            ("", "value"),
            (
                ("implementation class UID", f"`{IMPLEMENTATION_CLASS_UID}`"),
                ("implementation version name", f"`{IMPLEMENTATION_VERSION_NAME}`"),
                ("application context", "`1.2.840.10008.3.1.1.1`"),
                ("AE title", "`PNEUMO`, or what `--ae-title` says; the same for both roles"),
                ("port", "what `--dicom-port` says; none without it"),
                ("largest PDU that it takes", f"{MAX_PDU:,} bytes"),
                (
                    "associations at one time, as acceptor",
                    f"{limits.associations}, of them {limits.share} from one address",
                ),
                ("associations at one time, as requestor", "1 for each destination"),
                ("asynchronous operations", "none"),
                ("extended negotiation", "none"),
            ),
        )
    }

## Acceptor of associations

An association is rejected where the called AE title is not its own (permanent, user, 7), where the calling AE title is
not in `--allow` (permanent, user, 3), and where there are too many (transient, provider, 2).

### Presentation contexts

Verification is taken in {_list(map(_name, PLAIN))}. Each of these SOP classes is taken
in each of these transfer syntaxes; of several in one context, the first that the other side names:

{_table(("SOP class", "UID"), ((_name(kind), f"`{kind}`") for kind in KINDS))}

{_table(("transfer syntax", "UID"), ((_name(syntax), f"`{syntax}`") for syntax in TRANSFER_SYNTAXES))}

### C-STORE

Level 2 (full): a film is kept as it came until it is deleted, after `--keep-days` at the earliest if it waits for
nothing. Success means that film and journal are on the disk, synced.

{
        _table(
            ("status", "meaning"),
            (
                (
                    "0000",
                    "stored; also: the same film as before, or an answer of pneumo that came back and was dropped",
                ),
                *((f"{STATUS[kind]:04X}", _REFUSALS[kind.value]) for kind in STATUS),
            ),
        )
    }

A film must have {_list(IDENTITY)}. A film that comes again under its SOP Instance UID takes the place of the one before
and is answered anew, where it differs in anything that its answer depends on.

## Requestor of associations

It calls when there is something to send, and once at its start: then it sends C-ECHO if that is taken.

### Presentation contexts

{
        _table(
            ("SOP class", "UID", "transfer syntaxes"),
            (
                (_name(kind), f"`{kind}`", _list(map(_name, peers.SYNTAXES)))
                for kind in (_VERIFICATION, *(form for forms in FORMS.values() for form in forms))
            ),
        )
    }

A report goes as the first of {_list(_name(kind) for kind in REPORTS)} that the other side takes.

### C-STORE

{
        _table(
            ("status", "what it does"),
            (
                (", ".join(f"{code:04X}" for code in peers.STORED), "the object is stored"),
                ("A9xx, Cxxx, 0122", "the object is refused; it is not sent again unless asked to"),
                ("any other, or no answer", "the object is sent again, after 1, 2, 4 ... 300 seconds, without end"),
            ),
        )
    }

## DICOMweb

`POST /dicom-web/studies` takes `multipart/related; type="application/dicom"`, or one file as `application/dicom`, of
the SOP classes above, up to {limits.body >> 20} MB. It answers with `application/dicom+json`: ReferencedSOPSequence,
FailedSOPSequence with FailureReason 0122 or a status of C-STORE above.

{
        _table(
            ("HTTP status", "meaning"),
            (
                ("200, 202, 409", "all, some, none of the films are stored"),
                ("400", "the body is no such thing"),
                ("401", "the token is missing or wrong"),
                ("413, 429, 507", "too large; too many at once; the disk is full"),
            ),
        )
    }

As a user agent it posts one object at a time to `URL/studies`. 200 or 202 without a FailedSOPSequence means stored. It
is refused for good by HTTP status {_list(map(str, sorted(REFUSED_FOR_GOOD)))} and by a FailureReason other than A7xx;
anything else is tried again.

## Security

TLS 1.2 or later with `--tls-certificate` (acceptor), `tls:` in front of a destination (requestor) or `https:`
(DICOMweb). With `--tls-authority` callers must show a certificate of that authority. The certificate of a destination
is checked, with its name. No user identity negotiation.

## Objects

Both are of the study of the film. Patient and study are taken over from the film: a value that breaks the rules of its
type is left out, never altered but for control characters. Dates and times are in the time zone that the film states,
or the local one where it states none. UIDs are made from name-based UUIDs (`2.25.`) of what the object says.

{_objects()}

### Codes of the scheme 99PNEUMO

{_table(("code", "meaning"), ((f"`{code}`", meaning) for code, meaning in OUR_CODES))}

## Character sets

The specific character set of an object is that of the film, and ISO_IR 100 where the film names none. Its own words are
written without accents where that has not all of their letters.
"""
    parts = text.rstrip("\n").split("\n\n")
    return "\n\n".join(part if part.startswith(("|", "#")) else textwrap.fill(part, 120) for part in parts) + "\n"


_REFUSALS = {
    "busy": "out of resources: too many films wait",
    "full": "out of resources: the disk is nearly full, or cannot be written",
    "incomplete": "data set does not match: a UID is missing, or is not the one that was announced",
    "foreign": "data set does not match: another patient's film bears the same SOP Instance UID",
    "damaged": "cannot understand: the data set cannot be parsed",
}


def _objects() -> str:
    """Tells what stands in the two objects, by making them."""
    header = Dataset()
    for keyword in IDENTITY:
        setattr(header, keyword, "1.2.3")
    header.SOPClassUID = KINDS[1]
    grey = io.BytesIO()
    Image.radial_gradient("L").resize((400, 320)).save(grey, format="PNG")
    with Classifier.load(force_verdict=True) as classifier:
        prediction = classifier.predict(grey.getvalue(), "film")
        made = Answer(header, prediction, classifier, "1.2.3", screen=Image.fromarray(np.zeros((8, 8), np.uint8)))
        objects = pydicom.dcmread(io.BytesIO(made.capture())), pydicom.dcmread(io.BytesIO(made.report()))
    parts = []
    for title, of_the_film, ds in zip(
        (
            f"{_name(objects[0].SOPClassUID)}: the picture, 8-bit RGB, with verdict and note in the pixels",
            f"{_name(objects[1].SOPClassUID)}: the report, TID 1500",
        ),
        ((*WHOSE, *OF_THE_PIXELS), WHOSE),
        objects,
        strict=True,
    ):
        own = [element for element in ds if element.keyword not in of_the_film]
        rows = ((str(element.tag), element.name, element.VR) for element in own)
        parts += [
            f"### {title}",
            f"Taken over from the film, where it has them: {_list(of_the_film)}.",
            _table(("tag", "of its own", "VR"), rows),
        ]
    return "\n\n".join(parts)


def _name(uid: str) -> str:
    return str(UID(uid).name)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(statement(), end="")
