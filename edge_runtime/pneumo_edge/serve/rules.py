"""What this clinic wants no verdict on, whatever the model says: by age, and by the part of the body."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from pneumo_edge.dicom.remarks import MODALITIES, is_chest
from pneumo_edge.dicom.tags import is_dicom
from pneumo_edge.errors import UsageError
from pneumo_edge.serve.film import age_in_years, read_header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from pneumo_edge.classifier import Prediction

REASONS = {
    "too-young": "Patient younger than the device answers for",
    "too-old": "Patient older than the device answers for",
    "not-chest": "Not a film of the chest",
    "unlike-training": "Unlike the films that the model was made for",
    "unreadable": "Film cannot be judged",
}
"""Why there is no verdict: code -> meaning, as both stand in the structured report."""


class OtherParts(StrEnum):
    """What becomes of a film that says it is of another part of the body than the chest."""

    judge = "judge"
    """It is judged like any other; a warning says which part it is of."""
    reason = "reason"
    """It gets no verdict, and a report that says why."""
    ignore = "ignore"
    """It gets no verdict, and nothing is sent."""


@dataclass(frozen=True)
class Ruling:
    """Why a film gets no verdict."""

    code: str
    """Of `REASONS`."""
    sentence: str
    silent: bool = False
    """Nothing is sent of it."""


@dataclass(frozen=True)
class Rules:
    """The rules of one device; by default there are none."""

    min_age: float | None = None
    """Years. Younger patients get no verdict; one whose age the film does not state is judged."""
    max_age: float | None = None
    """Years. A patient of 90 is not older than 90 until the day of being 91."""
    other_parts: OtherParts = OtherParts.judge

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            UsageError: No age can lie between the two.
        """
        if self.min_age is not None and self.max_age is not None and self.min_age > self.max_age:
            raise UsageError(
                f"no patient is at least {self.min_age:g} and at most {self.max_age:g}: turn the ages round"
            )

    def apply(self, header: Dataset) -> Ruling | None:
        """Returns what a film is withheld for, by what it says of itself; None where nothing is against it."""
        if self.other_parts is not OtherParts.judge and not _is_chest(header):
            sentence = "the film says that it is not of the chest, and this device answers for chests only"
            return Ruling("not-chest", sentence, silent=self.other_parts is OtherParts.ignore)
        age = age_in_years(header)
        if age is not None and self.min_age is not None and age < self.min_age:
            return Ruling("too-young", f"this device gives no verdict on patients younger than {self.min_age:g} years")
        if age is not None and self.max_age is not None and age >= self.max_age + 1:
            return Ruling("too-old", f"this device gives no verdict on patients older than {self.max_age:g} years")
        return None


def header_of(film: bytes) -> Dataset | None:
    """Returns what a DICOM film says of itself; None for other films, and where that cannot be read."""
    if not is_dicom(film[:512]):
        return None
    try:
        return read_header(film)
    except Exception:
        # Of nearly any kind, where the file is damaged: the classifier says so.
        return None


def withhold(prediction: Prediction, ruling: Ruling | None) -> Prediction:
    """Takes the verdict out of a prediction, and says why first."""
    if ruling is None:
        return prediction
    return replace(prediction, label=None, warnings=(ruling.sentence, *prediction.warnings))


def _is_chest(header: Dataset) -> bool:
    """What does not say what it is of counts as a chest."""
    modality = str(header.get("Modality") or "").strip().upper()
    return (not modality or modality in MODALITIES) and says_chest(header) is not False


def says_chest(header: Dataset) -> bool | None:
    """Tells whether a film says that it is of the chest; None where it does not say what it is of."""
    part = str(header.get("BodyPartExamined") or "").strip().upper()
    return is_chest(part) if part else None
