"""Refuses DICOM files that are no film, and notes what the model does not cover, by their tags alone."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

from pneumo_edge.dicom.tags import MAX_PIXELS, integer, numbers, text
from pneumo_edge.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MODALITIES = ("CR", "DX", "RG")
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

_CHEST = ("CHEST", "THORAX", "TORAX", "TORACE", "LUNG", "PULMO", "POUMON")
"""Words of which one stands in BodyPartExamined where a film is of the chest."""

_FOR_PROCESSING = tuple(f"1.2.840.10008.5.1.4.1.1.1.{n}.1" for n in (1, 2, 3))
"""Classes of raw detector values: digital X-ray, mammography, teeth (PS3.4 B.5)."""


def refuse(ds: Dataset, name: str) -> None:
    """Raises `ImageError` for what is no single grey projection X-ray, before any pixel is decoded."""
    modality = text(ds, "Modality")
    if modality and modality not in MODALITIES:
        code = modality if re.fullmatch("[A-Z0-9]{2,16}", modality) else "(unreadable)"
        meaning = f" ({_MEANING[code]})" if code in _MEANING else ""
        raise ImageError(
            f"{name} has the DICOM modality {code}{meaning}: give an X-ray of the chest, of modality CR, DX or RG"
        )
    if "PixelData" not in ds and ("FloatPixelData" in ds or "DoubleFloatPixelData" in ds):
        raise ImageError(f"{name} has pixels that are fractions, which are not read here: export it with 16 bits")
    if "PixelData" not in ds:
        raise ImageError(
            f"{name} is a DICOM file without pixel data: "
            "give the file that holds the film, or copy it again if it was cut off"
        )
    frames = next(iter(numbers(ds, "NumberOfFrames")), None) or 1
    if frames > 1:
        raise ImageError(f"{name} has {frames:.0f} frames, a film has one: export the frame that you want")
    photometric = text(ds, "PhotometricInterpretation")
    if integer(ds, "SamplesPerPixel", 1) != 1 or (photometric and not photometric.startswith("MONOCHROME")):
        raise ImageError(f"{name} is a DICOM picture in colour, an X-ray is grey: give the film itself")
    missing = [tag for tag in ("PhotometricInterpretation", "Rows", "Columns", "BitsAllocated") if ds.get(tag) is None]
    if missing:
        raise ImageError(f"{name} is a damaged DICOM file, it lacks {', '.join(missing)}: copy it again")
    rows, columns = integer(ds, "Rows"), integer(ds, "Columns")
    if min(rows, columns) < 1:
        raise ValueError("no pixels")
    if rows * columns > MAX_PIXELS:
        raise ImageError(
            f"{name} claims {columns} x {rows} pixels, more than any X-ray detector has: "
            f"scale it down to {MAX_PIXELS // 1_000_000} million"
        )
    if integer(ds, "BitsStored", 1) > 16:
        raise ImageError(f"{name} has more than 16 bits a pixel, an X-ray detector has fewer: export it again")


def remarks_on(ds: Dataset) -> tuple[str, ...]:
    """Returns a sentence for each thing in the tags that no model of pneumo has seen."""
    found = []
    if text(ds, "NumberOfFrames") and numbers(ds, "NumberOfFrames")[0] is None:
        found.append("the file's number of frames is not a number; it was read as a single film")
    if not text(ds, "Modality"):
        found.append("the file does not name its modality; the model has seen X-rays only")
    part = text(ds, "BodyPartExamined")
    if part and not is_chest(part):
        named = part if re.fullmatch("[A-Z0-9_ ]{1,16}", part) else "another one than the chest"
        found.append(f"the body part is {named}; the model has seen chest films only")
    return tuple(found)


def is_chest(part: str) -> bool:
    """Tells whether a part of the body, BodyPartExamined in capitals, is the chest."""
    return any(word in part for word in _CHEST)


def for_processing(ds: Dataset) -> bool:
    """Tells whether the file holds raw values of the detector, not a picture for people (PS3.3 C.8.11.1.1.1)."""
    intent = text(ds, "PresentationIntentType")
    if intent:
        return intent == "FOR PROCESSING"
    return (text(ds, "SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID")) in _FOR_PROCESSING


def age_in_years(ds: Dataset) -> float | None:
    """Returns the patient's age when the film was taken, None if it is not stated.

    It is in whole years where the file states years, or where it follows from the dates of birth and study.
    """
    stated = re.fullmatch(r"(\d{1,3}) ?([DWMY]?)", text(ds, "PatientAge"))
    if stated:
        return int(stated[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[stated[2] or "Y"]
    try:
        born, taken = (datetime.strptime(text(ds, tag), "%Y%m%d") for tag in ("PatientBirthDate", "StudyDate"))
    except ValueError:
        return None
    years = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
    return float(years) if years >= 0 else None
