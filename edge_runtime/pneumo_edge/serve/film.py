"""What a DICOM film says of itself, as far as an answer needs it: what it is, whose it is, and from when."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from pneumo_edge.dicom.tags import read_tags

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MANUFACTURER = "pneumo"
"""Of every object that we make (0008,0070)."""

KINDS = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
)
"""SOP classes that projection films come as: Computed Radiography, Digital X-Ray for presentation and for processing,
Secondary Capture and its two greyscale multi-frame forms. Film digitizers and converters use the last three; a film
has one frame even there."""

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""What a film must have for an answer to be able to refer to it."""

WHOSE = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Of the modules Patient and General Study: what an answer takes over."""

OF_THE_PIXELS = (
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "BodyPartExamined",
    "PatientOrientation",
    "Laterality",
)
"""What is true of a picture that was made from the film if it is true of the film."""

OF_THE_RULES = ("Modality", "PatientAge")

_THAT_COUNT = (
    ("patient", ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")),
    ("accession number", ("AccessionNumber",)),
    ("study", ("StudyInstanceUID",)),
)


def read_header(film: bytes) -> Dataset:
    """Reads all of a DICOM film that its answers and the rules need, and no pixels.

    Raises:
        Exception: Of nearly any kind, where the file is damaged.
    """
    keywords = (*IDENTITY, *WHOSE, *OF_THE_PIXELS, *OF_THE_RULES, "Manufacturer", "SoftwareVersions")
    return read_tags(film, keywords, "the film")


def is_ours(header: Dataset) -> bool:
    """Tells whether an object is an answer of a pneumo, which somebody has sent on to us."""
    versions = header.get("SoftwareVersions") or ""
    first = versions if isinstance(versions, str) else str(versions[0])
    return str(header.get("Manufacturer")) == MANUFACTURER and first.startswith(f"{MANUFACTURER} ")


def differences(old: bytes, new: bytes) -> tuple[str, ...]:
    """Returns what two films that bear the same SOP Instance UID differ in: "patient", "accession number", "study",
    "pixels", "details".

    Compared is all that an answer depends on, and not the files: the same film comes in another one where it was
    compressed on its way, or came over DICOM once and over DICOMweb then. Empty: they get the same answer.

    Raises:
        Exception: Of nearly any kind, where one of them is damaged.
    """
    before, after = _stated(old), _stated(new)
    found = [name for name, keywords in _THAT_COUNT if any(before[each] != after[each] for each in keywords)]
    (seen, told), (seen_now, told_now) = _read(old), _read(new)
    if seen != seen_now:
        found.append("pixels")
    if not found and (before, told) != (after, told_now):
        found.append("details")
    return tuple(found)


def _stated(film: bytes) -> dict[str, str]:
    """Returns all that answers and rules read of a film, but its pixels."""
    header = read_header(film)
    return {keyword: str(header.get(keyword) or "") for keyword in (*IDENTITY, *WHOSE, *OF_THE_PIXELS, *OF_THE_RULES)}


def _read(film: bytes) -> tuple[bytes, tuple[object, ...]]:
    """Returns the grey levels, and what else the classifier is told of the film; the stored bytes and nothing where
    they cannot be decoded."""
    from pneumo_edge.dicom import read_dicom
    from pneumo_edge.errors import PneumoError

    try:
        read = read_dicom(film, "the film")
        return read.grey.tobytes(), (read.grey.shape, read.warnings, read.doubts, read.age_years, read.view)
    except PneumoError:
        stored = read_tags(film, ("PixelData",), "the film").get("PixelData")
        return stored if isinstance(stored, bytes) else b"", ()


def age_in_years(header: Dataset) -> float | None:
    """Returns the patient's age when the film was taken; None where the film does not state it."""
    stated = re.fullmatch(r"(\d{1,3}) ?([DWMY]?)", str(header.get("PatientAge") or "").strip().upper())
    if stated:
        return int(stated[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[stated[2] or "Y"]
    try:
        born, taken = (
            datetime.strptime(str(header.get(keyword) or ""), "%Y%m%d") for keyword in ("PatientBirthDate", "StudyDate")
        )
    except ValueError:
        return None
    years = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
    return float(years) if years >= 0 else None


def time_zone(header: Dataset) -> timezone | None:
    """Returns the zone that the film's dates and times are in; None where it does not say so, or not properly."""
    stated = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(header.get("TimezoneOffsetFromUTC") or "").strip())
    if stated is None:
        return None
    offset = timedelta(hours=int(stated[2]), minutes=int(stated[3])) * (-1 if stated[1] == "-" else 1)
    # PS3.3 C.12.1.1.8.
    return timezone(offset) if timedelta(hours=-12) <= offset <= timedelta(hours=14) else None
