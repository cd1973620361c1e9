"""The answer to a DICOM film as a PACS takes it: a Secondary Capture to look at and a structured report to read.

Both stand in the study of the film, say whose film it is in the film's own words, and bear the note. Their UIDs follow
from the film and from what judged it: work that is done twice gives the same two objects, never four.
"""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
from highdicom import sr
from highdicom.sc import SCImage
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from pneumo_edge import __version__
from pneumo_edge.classifier import Failure, Prediction
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.dicom.tags import read_tags
from pneumo_edge.overlay import mark, region_words, with_captions

if TYPE_CHECKING:
    from PIL import Image

    from pneumo_edge.classifier import Classifier

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""What a film must have for an answer to be able to refer to it."""

_WHOSE = (
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
"""Of the modules Patient and General Study: taken over as they are, right or wrong."""

_OF_THE_PIXELS = (
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "PatientOrientation",
    "Laterality",
)
"""What is true of a picture that was made from the film if it is true of the film."""

_NAMESPACE = uuid.UUID("5ce7d6a2-6f1e-4d6a-9f0b-0c6f1b0f8f43")

_SCHEME = "99PNEUMO"
_FINDING = codes.DCM.Finding
_VERDICTS = {
    "NORMAL": codes.SCT.Normal,
    "PNEUMONIA": sr.CodedConcept("233604007", "SCT", "Pneumonia"),
    None: sr.CodedConcept("no-verdict", _SCHEME, "No verdict"),
}
_PROBABILITY = sr.CodedConcept("probability", _SCHEME, "Probability of pneumonia")
_THRESHOLD = sr.CodedConcept("threshold", _SCHEME, "Threshold: pneumonia from this probability on")
_PREVALENCE = sr.CodedConcept("prevalence", _SCHEME, "Prevalence of pneumonia for which the probability holds")
_PROCEDURE = sr.CodedConcept("363680008", "SCT", "Radiographic imaging procedure")


def read_header(film: bytes) -> Dataset:
    """Reads all of a DICOM film that its answers take over, and no pixels.

    Raises:
        Exception: Of nearly any kind, where the file is damaged.
    """
    return read_tags(film, (*IDENTITY, *_WHOSE, *_OF_THE_PIXELS), "the film")


def make_capture(header: Dataset, screen: Image.Image, prediction: Prediction, classifier: Classifier) -> bytes:
    """Makes the Secondary Capture: the film with what is marked in it, verdict and note in the picture itself.

    Where the verdict is withheld, the film has neither marks nor a probability beside it, but the reasons.

    Args:
        header: What `read_header` gave.
        screen: What `pneumo_edge.overlay.screen_film` gave.
        prediction: Of the film.
        classifier: That has made the prediction.

    Returns:
        A DICOM file, 8-bit RGB, explicit little endian.
    """
    picture = screen if prediction.label is None else mark(screen, prediction)
    capture = SCImage.from_ref_dataset(
        _evidence(header),
        pixel_array=np.asarray(with_captions(picture, prediction)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        # That of the film, if it states one, comes below.
        patient_orientation=("L", "F"),
        series_number=9901,
        series_description="pneumo: film with heatmap. Not a diagnosis.",
        **_made_by("capture", header, classifier),
    )
    capture.PatientOrientation, capture.Laterality = [], ""
    capture.ConversionType = "WSD"
    capture.DerivationDescription = "Film with what a neural network takes for evidence of pneumonia, and its verdict"
    capture.ImageComments = NOT_A_DIAGNOSIS
    source = Dataset()
    source.ReferencedSOPClassUID = header.SOPClassUID
    source.ReferencedSOPInstanceUID = header.SOPInstanceUID
    source.PurposeOfReferenceCodeSequence = [
        sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    capture.SourceImageSequence = [source]
    return _file(capture, header, (*_WHOSE, *_OF_THE_PIXELS))


def make_report(header: Dataset, answer: Prediction | Failure, classifier: Classifier) -> bytes:
    """Makes the structured report (Enhanced SR, TID 1500).

    Args:
        header: What `read_header` gave.
        answer: Where it has no verdict, the report says so and why, and gives no probability either.
        classifier: That has judged the film.

    Returns:
        A DICOM file, explicit little endian.
    """
    label = answer.label if isinstance(answer, Prediction) else None
    numbers = []
    if isinstance(answer, Prediction) and label is not None:
        named = (
            (_PROBABILITY, answer.probability),
            (_THRESHOLD, answer.threshold),
            (_PREVALENCE, classifier.prevalence),
        )
        numbers = [sr.Measurement(name=name, value=round(value, 6), unit=codes.UCUM.NoUnits) for name, value in named]
    description = classifier.bundle.description
    model = _plain(description.name)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(_uid("verdict", header, classifier), "verdict"),
        algorithm_id=sr.AlgorithmIdentification(
            name=model,
            version=f"pneumo {__version__}",
            parameters=[
                f"file {classifier.file}, SHA-256 {description.files[classifier.file].sha256}",
                f"operating point {_plain(classifier.operating_point)}",
            ],
        ),
        measurements=numbers,
        qualitative_evaluations=[sr.QualitativeEvaluation(_FINDING, _VERDICTS[label])],
        source_images=[sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)],
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_as_uid(description.files[classifier.file].sha256),
        name="pneumo",
        manufacturer_name="pneumo",
        model_name=model,
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=_PROCEDURE,
        imaging_measurements=[group],
    )
    # In front of the container with the numbers: this is what most viewers show first.
    root = content[0].ContentSequence
    for name, text in _sentences(answer, classifier):
        root.insert(len(root) - 1, sr.TextContentItem(name, _plain(text), sr.RelationshipTypeValues.CONTAINS))
    report = sr.EnhancedSR(
        evidence=[_evidence(header)],
        content=content,
        series_number=9902,
        series_description="pneumo: report. Not a diagnosis.",
        is_complete=True,
        coding_schemes=[
            highdicom.coding_schemes.CodingSchemeIdentificationItem(_SCHEME, name="Codes of the software pneumo")
        ],
        **_made_by("report", header, classifier),
    )
    return _file(report, header, _WHOSE)


def _sentences(answer: Prediction | Failure, classifier: Classifier) -> list[tuple[Any, str]]:
    """Returns the text of a report, each part with its name."""
    remarks: tuple[str, ...]
    if isinstance(answer, Failure):
        said, remarks = "No verdict: the film cannot be judged.", (answer.error,)
    elif answer.label is None:
        said, remarks = "No verdict: this does not look like what the model was made for.", answer.warnings
    else:
        said = (
            f"{answer.label}. Probability of pneumonia {answer.probability:.1%} where {classifier.prevalence:.1%} of "
            f"films show pneumonia; PNEUMONIA from {answer.threshold:.1%} (operating point {answer.operating_point})."
        )
        remarks = region_words(answer) + answer.warnings
    return [(codes.DCM.Summary, f"{said} {NOT_A_DIAGNOSIS}"), *((codes.DCM.Comment, remark) for remark in remarks)]


def _evidence(header: Dataset) -> Dataset:
    """Returns the film as highdicom wants it: all that it copies is there, and nothing that it might object to.

    What the film says of patient and study is laid over the result afterwards (`_file`): highdicom refuses a birth date
    or a sex that is written in another way than the standard has it, and a film may well be written so.
    """
    film = Dataset()
    for keyword in IDENTITY:
        setattr(film, keyword, header[keyword].value)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(film, keyword, None)
    film.StudyDate = film.StudyTime = film.ReferringPhysicianName = None
    return film


def _made_by(kind: str, header: Dataset, classifier: Classifier) -> dict[str, Any]:
    return {
        "series_instance_uid": _uid(f"{kind} series", header, classifier),
        "sop_instance_uid": _uid(kind, header, classifier),
        "instance_number": 1,
        "manufacturer": "pneumo",
        "manufacturer_model_name": _plain(classifier.bundle.description.name)[:64],
        "software_versions": f"pneumo {__version__}",
        "transfer_syntax_uid": ExplicitVRLittleEndian,
    }


def _uid(kind: str, header: Dataset, classifier: Classifier) -> str:
    """Returns the same UID for the same film, judged by the same file, at the same operating point."""
    file = classifier.bundle.description.files[classifier.file]
    judged_by = (file.sha256, classifier.operating_point, repr(classifier.prevalence), __version__)
    return _as_uid("\0".join((kind, header.SOPInstanceUID, *judged_by)))


def _as_uid(text: str) -> str:
    """Returns a UID made from a UUID made from a text (PS3.5 B.2, RFC 9562 version 5)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, text).int}"


def _plain(text: str) -> str:
    """Returns a text that can be written in the character set of every film."""
    return text.encode("ascii", "replace").decode()


def _file(made: Dataset, header: Dataset, keywords: tuple[str, ...]) -> bytes:
    """Lays what stands in the film over what was made, and returns the bytes of a DICOM file."""
    for keyword in keywords:
        if keyword in header:
            made[keyword] = header[keyword]
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()
