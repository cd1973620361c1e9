"""The answer to a DICOM film as a PACS takes it: a Secondary Capture to look at and a structured report to read.

Both stand in the study of the film, say whose film it is in the film's own words, and bear the note. Their UIDs follow
from what they say: work that is done twice gives the same two objects, never four, and another answer has other UIDs.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
import pydicom
from highdicom import sr
from highdicom.sc import SCImage
from pydicom.charset import python_encoding
from pydicom.config import RAISE
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import validate_value

from pneumo_edge import __version__
from pneumo_edge.classifier import Failure, Prediction
from pneumo_edge.overlay import mark, region_words, with_captions
from pneumo_edge.serve.film import IDENTITY, MANUFACTURER, OF_THE_PIXELS, WHOSE, time_zone
from pneumo_edge.serve.rules import REASONS, says_chest
from pneumo_edge.words import Words

if TYPE_CHECKING:
    from PIL import Image

    from pneumo_edge.classifier import Classifier
    from pneumo_edge.region import Polygon

REPORTS = (Comprehensive3DSRStorage, EnhancedSRStorage, ComprehensiveSRStorage, BasicTextSRStorage)
"""What a report can be sent as, the best first: the first is that of the IHE profile AI Results."""

FORMS = {"sc": (SecondaryCaptureImageStorage,), "sr": REPORTS}
"""SOP classes of each part of an answer, the best first."""

_NAMESPACE = uuid.UUID("5ce7d6a2-6f1e-4d6a-9f0b-0c6f1b0f8f43")

IMPLEMENTATION_CLASS_UID = UID(f"2.25.{uuid.uuid5(_NAMESPACE, 'implementation class').int}")
"""PS3.7 D.3.3.2: names the program in every association and file."""
IMPLEMENTATION_VERSION_NAME = f"PNEUMO_{__version__}"[:16]

_SCHEME = "99PNEUMO"
_FINDING = codes.DCM.Finding
_VERDICTS = {
    "NORMAL": codes.SCT.Normal,
    "PNEUMONIA": sr.CodedConcept("233604007", "SCT", "Pneumonia"),
    None: sr.CodedConcept("no-verdict", _SCHEME, "No verdict"),
}
_REASON = sr.CodedConcept("reason", _SCHEME, "Reason for no verdict")
_PROBABILITY = sr.CodedConcept("probability", _SCHEME, "Probability of pneumonia")
_THRESHOLD = sr.CodedConcept("threshold", _SCHEME, "Threshold: pneumonia from this probability on")
_PREVALENCE = sr.CodedConcept("prevalence", _SCHEME, "Prevalence of pneumonia for which the probability holds")
_PROCEDURE = sr.CodedConcept("363680008", "SCT", "Radiographic imaging procedure")

_LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French", "pt": "Portuguese"}
"""RFC 5646 code -> meaning."""

OUR_CODES = (
    *((each.value, each.meaning) for each in (_VERDICTS[None], _REASON, _PROBABILITY, _THRESHOLD, _PREVALENCE)),
    *REASONS.items(),
)
"""Of the coding scheme 99PNEUMO: code and meaning."""


class Answer:
    """What is said of one film, ready to be written as DICOM."""

    def __init__(
        self,
        header: Dataset,
        answer: Prediction | Failure,
        classifier: Classifier,
        device_uid: str,
        *,
        screen: Image.Image | None = None,
        reason: str | None = None,
        words: Words | None = None,
    ) -> None:
        """Takes together what the two objects need.

        Args:
            header: What `film.read_header` gave.
            answer: Where it has no verdict, the answer says so and why, and gives no probability either.
            classifier: That has judged the film.
            device_uid: Of this device.
            screen: What `pneumo_edge.overlay.screen_film` gave.
            reason: Of `REASONS`, where there is no verdict.
            words: The language of its sentences; English by default. Codes keep their meanings in English.
        """
        self._words = words or Words()
        self._header, self._answer, self._classifier, self._device = header, answer, classifier, device_uid
        self._screen = screen
        self._reason = reason or ("unreadable" if isinstance(answer, Failure) else "unlike-training")
        whose, self.left_out = _mended(header, WHOSE)
        pixels, _ = _mended(header, OF_THE_PIXELS)
        self._whose = whose
        # Type 3, and no type that may be empty: what says nothing is not there.
        self._of_the_pixels = [each for each in pixels if each.value not in (None, "") or each.keyword == _ORIENTATION]
        self._says = self._fingerprint()

    def capture(self) -> bytes:
        """Makes the Secondary Capture: the film with what is marked in it, verdict and note in the picture itself.

        Where the verdict is withheld, the film has neither colours nor a probability beside it, but the reasons.

        Returns:
            A DICOM file, 8-bit RGB, explicit little endian.

        Raises:
            ValueError: There is no picture of the film, or no prediction.
        """
        prediction, screen = self._answer, self._screen
        if screen is None or isinstance(prediction, Failure):
            raise ValueError("a film that could not be read has no picture")
        picture = screen if prediction.label is None else mark(screen, prediction)
        capture = SCImage.from_ref_dataset(
            _evidence(self._header),
            pixel_array=np.asarray(with_captions(picture, prediction, words=self._words)),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            # That of the film, if it states one, comes below.
            patient_orientation=("L", "F"),
            series_number=9901,
            series_description=self._written(self._words("series.picture")),
            **self._made_by("capture"),
        )
        capture.PatientOrientation = []
        capture.ConversionType = "WSD"
        capture.DerivationDescription = self._written(self._words("series.derived"))
        capture.ImageComments = self._written(self._words("note"))
        source = Dataset()
        source.ReferencedSOPClassUID = self._header.SOPClassUID
        source.ReferencedSOPInstanceUID = self._header.SOPInstanceUID
        source.PurposeOfReferenceCodeSequence = [
            sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
        ]
        capture.SourceImageSequence = [source]
        for element in self._of_the_pixels:
            capture[element.tag] = element
        if "Laterality" not in capture and not says_chest(self._header):
            # Type 2C, of paired parts of the body: unknown where the film may be of one.
            capture.Laterality = ""
        return self._file(capture)

    def report(self) -> bytes:
        """Makes the structured report (Comprehensive 3D SR, TID 1500); `as_form` makes others of it.

        Returns:
            A DICOM file, explicit little endian.
        """
        header, answer, classifier = self._header, self._answer, self._classifier
        label = answer.label if isinstance(answer, Prediction) else None
        numbers, evaluations = [], [sr.QualitativeEvaluation(_FINDING, _VERDICTS[label])]
        if isinstance(answer, Prediction) and label is not None:
            named = (
                (_PROBABILITY, answer.probability),
                (_THRESHOLD, answer.threshold),
                (_PREVALENCE, classifier.prevalence),
            )
            numbers = [
                sr.Measurement(name=name, value=round(value, 6), unit=codes.UCUM.NoUnits) for name, value in named
            ]
        else:
            why = sr.CodedConcept(self._reason, _SCHEME, REASONS[self._reason])
            evaluations.append(sr.QualitativeEvaluation(_REASON, why))
        description = classifier.bundle.description
        model = _plain(description.name)
        algorithm = sr.AlgorithmIdentification(
            name=model,
            version=f"pneumo {__version__}",
            parameters=[
                f"file {classifier.file}, SHA-256 {description.files[classifier.file].sha256}",
                f"operating point {_plain(classifier.operating_point)}",
            ],
        )
        group = sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(self._uid("verdict"), "verdict"),
            algorithm_id=algorithm,
            measurements=numbers,
            qualitative_evaluations=evaluations,
            source_images=[sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)],
        )
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=self._device, name="pneumo", manufacturer_name=MANUFACTURER, model_name=model
        )
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(
                observer_device_context=sr.ObserverContext(codes.DCM.Device, device)
            ),
            procedure_reported=_PROCEDURE,
            imaging_measurements=[group, *self._regions(algorithm)],
            language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
                sr.CodedConcept(self._words.language, "RFC5646", _LANGUAGES[self._words.language])
            ),
        )
        # In front of the container with the numbers: this is what most viewers show first.
        root = content[0].ContentSequence
        for name, text in _sentences(answer, classifier, self._words):
            written = sr.TextContentItem(name, self._written(text), sr.RelationshipTypeValues.CONTAINS)
            root.insert(len(root) - 1, written)
        report = sr.Comprehensive3DSR(
            evidence=[_evidence(header)],
            content=content,
            series_number=9902,
            series_description=self._written(self._words("series.report")),
            is_complete=True,
            coding_schemes=[
                highdicom.coding_schemes.CodingSchemeIdentificationItem(_SCHEME, name="Codes of the software pneumo")
            ],
            **self._made_by("report"),
        )
        return self._file(report)

    def _regions(self, algorithm: Any) -> list[Any]:
        """Returns each part of the region that stands out, as a closed line in the film's own pixels (TID 1410).

        A hole in a region has no form there: the line around the whole is what is sent.
        """
        answer = self._answer
        if isinstance(answer, Failure) or answer.label is None or answer.region is None:
            return []
        outer = [each for each in answer.region.polygons if not _is_hole(each, answer.region.polygons)]
        source = sr.SourceImageForRegion(self._header.SOPClassUID, self._header.SOPInstanceUID)
        return [
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(self._uid(f"region {number}"), f"region {number}"),
                referenced_region=sr.ImageRegion(
                    graphic_type=sr.GraphicTypeValues.POLYLINE,
                    graphic_data=np.array([*polygon, polygon[0]], np.float32).round(1),
                    source_image=source,
                ),
                finding_type=_VERDICTS["PNEUMONIA"],
                algorithm_id=algorithm,
            )
            for number, polygon in enumerate(outer, start=1)
        ]

    def _made_by(self, kind: str) -> dict[str, Any]:
        return {
            "series_instance_uid": self._uid(f"{kind} series"),
            "sop_instance_uid": self._uid(kind),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": _plain(self._classifier.bundle.description.name)[:64],
            "software_versions": f"pneumo {__version__}",
            "transfer_syntax_uid": ExplicitVRLittleEndian,
        }

    def _uid(self, kind: str) -> str:
        """Returns the same UID for the same answer to the same film, by the same device with the same model."""
        return _as_uid("\0".join((kind, self._header.SOPInstanceUID, self._says)))

    def _fingerprint(self) -> str:
        """Returns a digest of all that the answer says, and of nothing that differs when it is worked out again."""
        classifier = self._classifier
        record = {k: v for k, v in self._answer.record().items() if k not in ("path", "milliseconds")}
        sha256 = classifier.bundle.description.files[classifier.file].sha256
        study = [self._header[keyword].value for keyword in IDENTITY]
        judged_by = (self._device, sha256, classifier.operating_point, repr(classifier.prevalence), __version__)
        whose = [(element.keyword, str(element.value)) for element in self._whose]
        said = json.dumps([study, judged_by, whose, record, self._reason, self._words.language], default=str)
        found = hashlib.sha256(said.encode("utf-8", "backslashreplace"))
        if self._screen is not None:
            found.update(self._screen.tobytes())
        if isinstance(self._answer, Prediction):
            found.update(self._answer.heatmap.tobytes())
        return found.hexdigest()

    def _written(self, text: str) -> str:
        """Returns a text as it can be written in the character set of the object, without accents where need be."""
        stated = [each.value for each in self._whose if each.keyword == "SpecificCharacterSet" and each.value]
        # A film that names none has nothing but ASCII, and the object is then of our own character set (`_file`).
        encodings = _encodings(stated[0]) if stated else ["latin_1"]
        if all(any(_can_write(letter, each) for each in encodings) for letter in text):
            return text
        return _plain("".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each)))

    def _file(self, made: Dataset) -> bytes:
        """Lays what stands in the film over what was made, and returns the bytes of a DICOM file."""
        # The dates and times of one object are of one zone: that of the film, where it says which one that is.
        now = datetime.now().astimezone(time_zone(self._header))
        for element in made.iterall():
            if element.VR in _MOMENTS and element.value and element.keyword not in WHOSE:
                element.value = now.strftime(_MOMENTS[element.VR])
        made.SpecificCharacterSet = "ISO_IR 100"
        for element in self._whose:
            made[element.tag] = element
        if not made.SpecificCharacterSet:
            made.SpecificCharacterSet = "ISO_IR 100"
        return _bytes(made)


def _is_hole(polygon: Polygon, polygons: Sequence[Polygon]) -> bool:
    """Tells whether an outline lies within an odd number of others: they do not cross, so that one point decides."""
    x, y = polygon[0]
    within = 0
    for other in polygons:
        if other is not polygon:
            crossings = sum(
                (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1)
                for (x1, y1), (x2, y2) in zip(other, (*other[1:], other[0]), strict=True)
            )
            within += crossings % 2
    return within % 2 == 1


def as_form(report: bytes, kind: str) -> Dataset:
    """Returns a report that `Answer.report` made as an object of another SOP class of `REPORTS`.

    It holds nothing that an Enhanced or a Comprehensive SR may not hold: its regions lie in the plane of the film, and
    no item refers to another (PS3.3 A.35.2.3). A Basic Text SR knows no numbers and no references into a measurement:
    what they say becomes text.
    """
    made = pydicom.dcmread(io.BytesIO(report))
    if made.SOPClassUID == kind:
        return made
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID(kind)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(
        _as_uid("\0".join((kind, made.SOPInstanceUID)))
    )
    if kind == BasicTextSRStorage:
        made.ContentSequence = [*_as_texts(made.ContentSequence)]
        made.pop("ContentTemplateSequence", None)
    return made


def _as_texts(items: Any) -> Iterator[Dataset]:
    """Yields what a report says, line by line, without the identifiers that only programs read."""
    for item in items:
        name, value = item.ConceptNameCodeSequence[0] if "ConceptNameCodeSequence" in item else None, None
        if item.ValueType == "TEXT":
            value = item.TextValue
        elif item.ValueType == "CODE":
            value = str(item.ConceptCodeSequence[0].CodeMeaning)
        elif item.ValueType == "NUM":
            value = str(item.MeasuredValueSequence[0].NumericValue)
        if name is not None and value is not None and item.RelationshipType != "HAS CONCEPT MOD":
            text = Dataset()
            text.RelationshipType, text.ValueType = "CONTAINS", "TEXT"
            text.ConceptNameCodeSequence, text.TextValue = [name], value
            yield text
        if item.RelationshipType != "HAS OBS CONTEXT":
            yield from _as_texts(item.get("ContentSequence", ()))


def _sentences(answer: Prediction | Failure, classifier: Classifier, words: Words) -> list[tuple[Any, str]]:
    """Returns the text of a report, each part with its name."""
    remarks: tuple[str, ...]
    if isinstance(answer, Failure):
        said, remarks = words("report.failed"), (answer.error,)
    elif answer.label is None:
        said, remarks = words("report.withheld"), answer.warnings
    else:
        said = words(
            "report.says",
            verdict=words(answer.label).upper(),
            share=words.percent(answer.probability),
            prevalence=words.percent(classifier.prevalence),
            threshold=words.percent(answer.threshold),
            point=words.point(answer.operating_point),
        )
        remarks = region_words(answer) + answer.warnings
    comments = ((codes.DCM.Comment, words.sentence(remark)) for remark in remarks)
    return [(codes.DCM.Summary, f"{said} {words('note')}"), *comments]


def _evidence(header: Dataset) -> Dataset:
    """Returns the film as highdicom wants it: all that it copies is there, and nothing that it might object to.

    What the film says of patient and study is laid over the result afterwards (`Answer._file`), with all that highdicom
    would not have, such as names in the bytes of the film.
    """
    film = Dataset()
    for keyword in IDENTITY:
        setattr(film, keyword, header[keyword].value)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(film, keyword, None)
    film.StudyDate = film.StudyTime = film.ReferringPhysicianName = None
    return film


_ORIENTATION = "PatientOrientation"

_MOMENTS = {"DA": "%Y%m%d", "TM": "%H%M%S.%f", "DT": "%Y%m%d%H%M%S.%f"}

_CHOICES = {
    "PatientSex": ("M", "F", "O"),
    "BurnedInAnnotation": ("YES", "NO"),
    "LossyImageCompression": ("00", "01"),
    "Laterality": ("R", "L"),
}


def _mended(header: Dataset, keywords: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    """Returns the elements of a film that an answer takes over, and the keywords of those that it cannot.

    A value that keeps to the rules of its type (PS3.5 6.2) is taken over as it is. One that does not would make an
    invalid object of ours: control characters are dropped from texts, and where it is not enough, the value is left
    empty. It is never cut: what is left of a number could be the number of somebody else.
    """
    found, left_out = [], []
    encodings: list[str] | None = None
    for keyword in keywords:
        if keyword not in header:
            continue
        try:
            element = header[keyword]
            if keyword == "SpecificCharacterSet":
                encodings = _encodings(element.value)
                value = element.value
            else:
                value = _valid(element, encodings)
            if keyword == "TimezoneOffsetFromUTC" and element.value and time_zone(header) is None:
                raise ValueError("no offset")
        except Exception:
            left_out.append(keyword)
            value = None
            if keyword in ("SpecificCharacterSet", "TimezoneOffsetFromUTC"):
                # These two may not be there and empty.
                continue
            element = pydicom.DataElement(keyword, pydicom.datadict.dictionary_VR(keyword), None)
        if value is not element.value:
            element = pydicom.DataElement(element.tag, element.VR, value)
        found.append(element)
    return found, left_out


def _encodings(character_sets: Any) -> list[str]:
    """Returns Python's names of the character sets of a film.

    Raises:
        KeyError: One of them is none of DICOM's.
    """
    named = [character_sets] if isinstance(character_sets, str) else list(character_sets or ())
    return [python_encoding[name] if name else "ascii" for name in named or [""]]


def _valid(element: Any, encodings: list[str] | None) -> Any:
    """Returns the value of an element, mended if need be.

    Raises:
        Exception: Of nearly any kind: it cannot be mended.
    """
    value, vr = element.value, element.VR
    if value is None or value == "":
        return value
    if element.keyword == _ORIENTATION:
        if len(value) != 2 or not all(re.fullmatch("[APRLHF]{1,3}", each) for each in value):
            raise ValueError("no orientation")
        return value
    if element.keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        for each in [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value:
            validate_value(vr, str(each), RAISE)
        return value
    text = str(value)
    if not isinstance(value, (str, pydicom.valuerep.PersonName, pydicom.valuerep.DA, pydicom.valuerep.TM)):
        raise TypeError("several values where there is one")
    if element.keyword in _CHOICES and text not in _CHOICES[element.keyword]:
        raise ValueError("none of those that there are")
    if vr in ("LO", "SH", "PN"):
        clean = "".join(character for character in text if character.isprintable()).strip(" ")
        if "\ufffd" in clean or "\\" in clean:
            raise ValueError("not readable")
        if not all(any(_can_write(character, each) for each in encodings or ["ascii"]) for character in clean):
            raise ValueError("not in the character set of the film")
        for part in clean.split("=") if vr == "PN" else (clean,):
            validate_value(vr, part, RAISE)
        return value if clean == text.strip(" ") else clean
    validate_value(vr, text, RAISE)
    return value


def _can_write(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _as_uid(text: str) -> str:
    """Returns a UID made from a UUID made from a text (PS3.5 B.2, RFC 9562 version 5)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, text).int}"


def _plain(text: str) -> str:
    """Returns a text that can be written in the character set of every film."""
    return text.encode("ascii", "replace").decode()


def _bytes(made: Dataset) -> bytes:
    made.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    made.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()
