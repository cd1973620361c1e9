"""What the OpenAPI description says of answers and errors. Nothing is checked with it at run time; tests do that."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.serve.journal import State

_KEY = "^[0-9a-f]{32}$"
Key = Annotated[str, Path(pattern=_KEY, description="Of the film.")]


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
    novelty: float = Field(description="Distance from the films that the model has learned from.", ge=0, examples=[31])
    in_distribution: bool = Field(description="false where the picture is unlike what the model was made for.")
    warnings: list[str] = Field(examples=[["the picture is almost blank"]])
    model: str = Field(examples=["efficientnet_lite0-gap-160"])
    file: str = Field(examples=["model.int8.onnx"])
    region: Outline | None = Field(description="null where the model has no local map.")
    milliseconds: Milliseconds


class Unreadable(BaseModel):
    """A picture that could not be judged, and why."""

    path: str = Field(examples=["film.png"])
    error: str = Field(examples=["film.png is empty: copy it again from where it came"])


class Problem(BaseModel):
    """What was wrong, in a sentence."""

    error: str


class FilmEntry(BaseModel):
    """A film that was kept: where it stands."""

    key: str = Field(pattern=_KEY)
    source: Literal["dicom", "page"] = Field(description="How it came.")
    received: datetime
    state: State = Field(description="answered: judged. sent: its answer is in the PACS. failed: `error` says why.")
    label: Literal["NORMAL", "PNEUMONIA"] | None = Field(description="null too where the verdict is withheld.")
    probability: float | None = Field(ge=0, le=1)
    in_distribution: bool | None
    error: str | None = Field(description="Why it failed, or why the last sending did not succeed.")


class FilmAnswer(FilmEntry):
    """A film that was kept, and what the model says of it."""

    record: Record | None = Field(description="null before the film is judged, and where it could not be.")


class Films(BaseModel):
    """Films that were kept, newest first."""

    films: list[FilmEntry]


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
    operating_point: str = Field(description="The one in force.")
    operating_points: dict[str, Point]
    version: str = Field(description="Of pneumo.")
    max_bytes: int = Field(description="A larger film is refused.")
    note: str = Field(examples=[NOT_A_DIAGNOSIS])


class Health(BaseModel):
    """The service answers, and its journal can be read."""

    status: Literal["ok"]


_WORDS = {
    400: "The body broke off, or is no proper form with a part `file`.",
    401: "The token is missing or wrong.",
    403: "The request comes from the page of another site.",
    404: "There is no such film, or no such picture of it yet.",
    408: "The body did not arrive in time.",
    413: "The film is larger than this device takes.",
    421: "The request was meant for another host.",
    422: "The picture cannot be read, or a parameter is out of range.",
    429: "The device is busy. `Retry-After` says when to come again.",
    503: "The journal cannot be read.",
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
