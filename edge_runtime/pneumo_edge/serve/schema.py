"""What the OpenAPI description says of answers and errors. Nothing is checked with it at run time; tests do that."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.serve.journal import Delivery, State

_KEY = "^[0-9a-f]{32}$"
Key = Annotated[str, Path(pattern=_KEY, description="Of the film.")]
Sort = Literal["received", "probability"]
Order = Literal["desc", "asc"]
Verdict = Literal["NORMAL", "PNEUMONIA", "none"]


class Milliseconds(BaseModel):
    """How long it took."""

    read: float
    infer: float


class Outline(BaseModel):
    """Where in the film the model sees what it takes for pneumonia."""

    polygons: list[list[tuple[float, float]]] = Field(
        description="Closed lines of x, y in pixels of the film, from its upper left; one inside another is a hole. "
        "Empty where no region stands out, and for films that are not called PNEUMONIA."
    )
    area: float = Field(description="Enclosed share of the film.", ge=0, le=1, examples=[0.064])
    strongest: float = Field(description="The largest local probability.", ge=0, le=1, examples=[0.93])
    width: int = Field(description="Of the film, in pixels.", examples=[2048])
    height: int = Field(examples=[1536])


class Record(BaseModel):
    """What the model says of one film; the record of `pneumo-infer --format json`."""

    path: str = Field(description="Name that was sent with the film, - if there was none.", examples=["film.png"])
    label: Literal["NORMAL", "PNEUMONIA"] | None = Field(description="null where the verdict is withheld.")
    probability: float = Field(description="Of pneumonia, calibrated.", ge=0, le=1, examples=[0.995])
    logit: float = Field(examples=[4.21])
    threshold: float = Field(
        description="On the probability: from here on the label is PNEUMONIA.", ge=0, le=1, examples=[0.771]
    )
    operating_point: str = Field(examples=["balanced"])
    prevalence: float = Field(
        description="Share of films with pneumonia where probability and threshold hold.", gt=0, lt=1, examples=[0.2]
    )
    novelty: float = Field(description="Distance from the films that the model has learned from.", ge=0, examples=[31])
    in_distribution: bool = Field(description="false where the picture is unlike what the model was made for.")
    warnings: list[str] = Field(examples=[["the picture is almost blank"]])
    model: str = Field(examples=["efficientnet_lite0-gap-160"])
    file: str = Field(examples=["model.int8.onnx"])
    contrast: float = Field(description="Standard deviation of the film's grey levels, of 255.", ge=0, examples=[52.1])
    region: Outline | None = Field(description="null where the model has no local map.")
    milliseconds: Milliseconds


class Unreadable(BaseModel):
    """A picture that could not be judged, and why."""

    path: str = Field(examples=["film.png"])
    error: str = Field(examples=["film.png is empty: copy it again from where it came"])


class Problem(BaseModel):
    """What was wrong, in a sentence."""

    error: str


class Delivered(BaseModel):
    """One object of an answer, and where it stands on its way to one destination."""

    destination: str = Field(examples=["PACS@192.0.2.10:104"])
    object: Literal["sc", "sr"] = Field(description="sc: the picture. sr: the report.")
    state: Delivery = Field(description="refused: the destination will not take it, and it is not tried again.")
    attempts: int = Field(ge=0)
    error: str | None = Field(description="Why the last try did not succeed, or a remark on what was stored.")


class FilmEntry(BaseModel):
    """A film that was kept: where it stands."""

    key: str = Field(pattern=_KEY)
    source: Literal["dicom", "dicomweb", "page"] = Field(description="How it came.")
    received: datetime
    state: State = Field(
        description="answered: judged. sent: every destination has its answer. failed: `error` says why."
    )
    label: Literal["NORMAL", "PNEUMONIA"] | None = Field(description="null too where the verdict is withheld.")
    probability: float | None = Field(ge=0, le=1)
    in_distribution: bool | None
    reason: str | None = Field(
        description="Code of what withholds the verdict: unlike-training, or the rule too-young, too-old, not-chest."
    )
    error: str | None = Field(description="Why it failed, or why the last sending did not succeed.")
    sendings: list[Delivered] = Field(description="Empty for films that came by upload.")
    accession: str | None = Field(description="Accession number, with `--show accession` alone.")
    patient_id: str | None = Field(description="Patient ID, with `--show patient-id` alone.")


class FilmAnswer(FilmEntry):
    """A film that was kept, and what the model says of it."""

    record: Record | None = Field(description="null before the film is judged, and where it could not be.")


class Films(BaseModel):
    """Films that were kept, as they were asked for."""

    films: list[FilmEntry]
    total: int = Field(description="How many there are without `limit` and `offset`.")


class Share(BaseModel):
    """A proportion with its 95 % interval."""

    value: float
    low: float
    high: float


class Point(BaseModel):
    """A threshold, and what it gave on the films that the model was validated with."""

    threshold: float
    sensitivity: Share
    specificity: Share


class Model(BaseModel):
    """The model that judges here."""

    name: str
    backbone: str
    size: int = Field(description="Side of the square that a film is scaled to, in pixels.")
    file: str
    precision: str
    sha256: str
    prevalence: float = Field(description="Share of films with pneumonia for which the probability holds.")
    site: str | None = Field(description="The place whose films it was calibrated on; null for none.")
    operating_point: str = Field(description="The one in force.")
    operating_points: dict[str, Point]
    version: str = Field(description="Of pneumo.")
    max_bytes: int = Field(description="A larger film is refused.")
    destinations: list[str] = Field(description="Where answers to DICOM films go.")
    show: list[str] = Field(description="What the list tells of whose a film is: accession, patient-id.")
    note: str = Field(examples=[NOT_A_DIAGNOSIS])


class Shifted(BaseModel):
    """How far something lies from the reference."""

    distance: float = Field(description="0: as the reference. 1: nothing in common.", ge=0, le=1)
    limit: float = Field(description="From here on it is called shifted.", gt=0)
    alarm: bool


class Watching(BaseModel):
    """Whether the last films are like those that the bundle was made or calibrated on."""

    known: bool = Field(description="false: the bundle has no reference, and all below is null.")
    films: int | None = Field(description="Films that are compared.")
    of: int | None = Field(description="At most so many.")
    shifts: dict[Literal["score", "novelty", "contrast"], Shifted] | None = Field(description="{}: too few films yet.")
    withheld: float | None = Field(description="Share without a verdict.", ge=0, le=1)
    pneumonia: float | None = Field(description="Share called PNEUMONIA of those with a verdict.", ge=0, le=1)
    expected: float | None = Field(description="The same in the reference.", ge=0, le=1)
    alarms: list[Literal["score", "novelty", "contrast"]] = Field(description="What has shifted.")


class Health(BaseModel):
    """The service answers, its journal can be read, and it has room for films."""

    status: Literal["ok"]


_WORDS = {
    400: "The body broke off, or is no proper form with a part `file`.",
    401: "The token is missing or wrong.",
    403: "The request comes from the page of another site.",
    404: "There is no such film, or no such picture of it yet.",
    408: "The body did not arrive in time.",
    413: "The film is larger than this device takes.",
    409: "There is nothing to be sent of this film, or not yet.",
    421: "The request was meant for another host.",
    422: "The picture cannot be read, or a parameter is out of range.",
    429: "The device is busy. `Retry-After` says when to come again.",
    503: "The journal cannot be read, or the disk is full.",
    507: "The disk is full.",
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}

Responses = dict[int | str, dict[str, Any]]


def errors(*codes: int, token: bool, unreadable: bool = False) -> Responses:
    """Describes how an operation fails.

    Args:
        codes: HTTP status codes, beside those that every operation may give.
        token: The operation asks for one.
        unreadable: 422 speaks of a picture.
    """
    described: Responses = {}
    for code in sorted({*codes, 403, 421, *([401] if token else [])}):
        model = Unreadable if unreadable and code == 422 else Problem
        described[code] = {"model": model, "description": _WORDS[code]}
        if code == 429:
            described[code]["headers"] = _RETRY
    return described


def content(media_type: str) -> Responses:
    """Describes an answer that is no JSON."""
    text = {"type": "string"} if media_type.startswith("text/") else {"type": "string", "format": "binary"}
    return {200: {"content": {media_type: {"schema": text}}}}


_BYTES = {"schema": {"type": "string", "format": "binary"}}
FILM_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The film: a form with the part `file`, or the bytes as they are.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _BYTES["schema"]}}
            },
            "image/png": _BYTES,
            "image/jpeg": _BYTES,
            "application/dicom": _BYTES,
            "application/octet-stream": _BYTES,
        },
    }
}

STOW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": 'Films in a multipart/related; type="application/dicom" (PS3.18 10.5), or one as it is.',
        "content": {
            "multipart/related": _BYTES,
            "application/dicom": _BYTES,
        },
    }
}

_STOW_JSON: dict[str, Any] = {"application/dicom+json": {"schema": {"type": "object"}}}
STOW_ANSWERS: Responses = {
    200: {"description": "All are stored.", "content": _STOW_JSON},
    202: {"description": "Some are stored.", "content": _STOW_JSON},
    409: {"description": "None is stored: FailedSOPSequence says why.", "content": _STOW_JSON},
}
