"""The page and the HTTP interface: FastAPI around one `Classifier`, the journal and the spool.

`POST /v1/predict` answers at once and keeps nothing. `POST /v1/films` keeps a film until it is judged, and then for the
list of the page; judging it is the work of another part.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import prometheus_client
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import StreamingResponse

from pneumo_edge import __version__
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.errors import ImageError, MissingExtraError
from pneumo_edge.overlay import legend_layer
from pneumo_edge.preprocess import is_film, read_deep_film
from pneumo_edge.serve import stow
from pneumo_edge.serve.film import IDENTITY, KINDS
from pneumo_edge.serve.gate import Gate, as_json
from pneumo_edge.serve.inbox import STATUS, Refusal, RefusedError
from pneumo_edge.serve.intake import Intake, busy
from pneumo_edge.serve.journal import Delivery, Selection, State
from pneumo_edge.serve.rules import Rules, header_of, withhold
from pneumo_edge.serve.schema import (
    FILM_BODY,
    STOW_ANSWERS,
    STOW_BODY,
    Delivered,
    FilmAnswer,
    FilmEntry,
    Films,
    Health,
    Key,
    Model,
    Order,
    Record,
    Sort,
    Verdict,
    Watching,
    content,
    errors,
)
from pneumo_edge.serve.spool import ANSWER, FILM, HEATMAP, OBJECTS, PICTURE
from pneumo_edge.watch import Outlook
from pneumo_edge.words import CATALOGUE

if TYPE_CHECKING:
    from PIL import Image
    from prometheus_client.metrics_core import Metric

    from pneumo_edge.classifier import Classifier, Prediction
    from pneumo_edge.levels import DeepFilm
    from pneumo_edge.serve.inbox import Inbox, Limits
    from pneumo_edge.serve.journal import Entry, Journal, Sending
    from pneumo_edge.serve.spool import Spool
    from pneumo_edge.watch import Watch

Telling: TypeAlias = "Callable[[Sequence[Entry]], list[dict[str, Any]]]"
"""Returns what is told of films."""

_log = logging.getLogger(__name__)

_REMEMBERED = 10_000
"""Films of which it is kept in memory whose they are."""

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


def make_app(
    classifier: Classifier,
    inbox: Inbox,
    *,
    token: Callable[[], str] | None = None,
    rules: Rules | None = None,
    send: Mapping[str, Collection[str]] | None = None,
    show: Collection[str] = (),
    watch: Watch | None = None,
) -> FastAPI:
    """Makes the application.

    Args:
        classifier: Judges what comes to `/v1/predict`, as many films at once as there are cores.
        inbox: Takes what comes to `/v1/films` and `/dicom-web/studies`, and says what a request may ask for.
        token: Returns what every request must bear, but those for the page's own files, the description and
            `/healthz`. None for an interface that only this machine reaches, which then answers to no other name than
            that of this machine.
        rules: Which films get no verdict.
        send: The objects that each destination gets of a film that came over DICOM.
        show: What is told of whose a DICOM film is: "accession", "patient-id".
        watch: Is told of the answers of `/v1/predict`, and tells whether the films have changed.
    """
    limits, rules, send = inbox.limits, rules or Rules(), send or {}
    pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="predict")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(cancel_futures=True)

    app = FastAPI(
        title="pneumo-serve",
        version=__version__,
        summary="Says of a chest X-ray whether it looks NORMAL or like PNEUMONIA.",
        description=f"**{NOT_A_DIAGNOSIS}**",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # Both load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    registry = _registry(classifier, inbox, watch)
    app.add_middleware(Gate, local=token is None, registry=registry)
    app.add_exception_handler(StarletteHTTPException, _say_why)
    app.add_exception_handler(RequestValidationError, _say_what_is_invalid)

    intake, secret = Intake(limits), token is not None
    guards = [] if token is None else [Security(_bearer(token))]
    app.include_router(_predicting(classifier, rules, pool, intake, secret, watch), dependencies=guards)
    whose = Whose(inbox.spool, show)

    def shown(entries: Sequence[Entry]) -> list[dict[str, Any]]:
        sendings = inbox.journal.sendings(entry.key for entry in entries)
        return [_shown(entry, sendings[entry.key], whose.of(entry)) for entry in entries]

    app.include_router(_films(inbox, intake, whose, shown, secret), dependencies=guards)
    app.include_router(_acting(inbox, send, shown, secret), dependencies=guards)
    app.include_router(_storing(inbox, intake, secret), dependencies=guards)
    app.include_router(_telling(classifier, limits, send, show, registry, secret, watch), dependencies=guards)

    @app.get("/healthz", tags=["operation"], response_model=Health, responses=errors(503, token=False))
    def healthz() -> Response:
        """Tells whether the service works and takes films. Needs no token."""
        try:
            inbox.journal.counts()
            full = inbox.is_full()
        except Exception:
            raise HTTPException(503, "the journal cannot be read: look at the disk") from None
        if full:
            raise HTTPException(503, "the disk is nearly full, no film is taken: make room")
        return as_json({"status": "ok"})

    assets = {file.name: (file.read_bytes(), _TYPES[file.suffix]) for file in (*_PAGE.iterdir(), CATALOGUE)}
    assets[""] = assets.pop("index.html")
    assets["legend.png"] = _png(legend_layer()), "image/png"
    for name, (data, media_type) in assets.items():
        app.add_api_route(f"/{name}", _asset(data, media_type), methods=["GET", "HEAD"], include_in_schema=False)
    return app


def _predicting(
    classifier: Classifier,
    rules: Rules,
    pool: ThreadPoolExecutor,
    intake: Intake,
    secret: bool,
    watch: Watch | None,
) -> APIRouter:
    router = APIRouter(tags=["predict"])

    def judge(film: bytes, name: str) -> Prediction:
        header = header_of(film)
        ruling = None if header is None else rules.apply(header)
        prediction = classifier.predict(film, name)
        if watch is not None and ruling is None:
            said = watch.add(
                hashlib.sha256(film).hexdigest(),
                prediction.logit,
                prediction.novelty,
                prediction.contrast,
                prediction.label,
            )
            if said is not None:
                _log.warning("%s", said)
        return withhold(prediction, ruling)

    @router.post(
        "/v1/predict",
        summary="Judge a film and keep nothing",
        response_model=Record,
        responses=errors(400, 408, 413, 422, 429, token=secret, unreadable=True),
        openapi_extra=FILM_BODY,
    )
    async def predict(request: Request) -> Response:
        """Answers with the record of `pneumo-infer --format json`. A withheld verdict is an answer too."""
        async with intake.film(request) as (film, name):
            try:
                prediction = await asyncio.get_running_loop().run_in_executor(pool, judge, film, name)
            except (ImageError, MissingExtraError) as error:
                return as_json({"path": name, "error": str(error)}, 422)
        return as_json(prediction.record())

    return router


def _films(inbox: Inbox, intake: Intake, whose: Whose, shown: Telling, secret: bool) -> APIRouter:
    router = APIRouter(tags=["films"])
    decoding = threading.Lock()
    journal, spool = inbox.journal, inbox.spool

    @router.post(
        "/v1/films",
        summary="Hand in a film to be judged and listed",
        status_code=202,
        response_model=FilmEntry,
        responses=errors(400, 408, 413, 422, 429, 507, token=secret, unreadable=True),
        openapi_extra=FILM_BODY,
    )
    async def add_film(request: Request) -> Response:
        """Answers once the film is safely on the disk. Its verdict is at `/v1/films/{key}` a moment later."""
        async with intake.film(request) as (film, name):
            if not is_film(film[:512]):
                why = "is no film: use PNG, JPEG or DICOM" if film else "is empty: copy it again from where it came"
                return as_json({"path": name, "error": f"{name} {why}"}, 422)
            return await asyncio.to_thread(keep, film)

    def keep(film: bytes) -> Response:
        try:
            entry = inbox.take(film)
        except RefusedError as refused:
            raise busy() if refused.kind is Refusal.busy else HTTPException(507, refused.why) from None
        [told] = shown([entry])
        return as_json(told, 202, {"Location": f"/v1/films/{entry.key}"})

    @router.get("/v1/films", summary="List the films", response_model=Films, responses=errors(422, token=secret))
    def list_films(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        offset: Annotated[int, Query(ge=0, le=1_000_000_000, description="Films to leave out in front.")] = 0,
        sort: Annotated[Sort, Query(description="By probability: films without a verdict come last.")] = "received",
        order: Annotated[Order, Query(description="desc: newest, or most probable, first.")] = "desc",
        verdict: Annotated[Verdict | None, Query(description="none: answered without a verdict.")] = None,
        state: State | None = None,
        search: Annotated[
            str | None,
            Query(max_length=64, description="How the key begins; with --show also a part of what is shown."),
        ] = None,
        key: Annotated[
            list[str] | None, Query(max_length=100, description="Of films that the search finds in any case.")
        ] = None,
    ) -> Response:
        """Films that came here or over DICOM, with their state."""
        keys = None if search is None else whose.search(search, journal) | set(key or ())
        chosen = Selection(limit, offset, sort == "probability", order == "asc", verdict, state, keys)
        entries, total = journal.select(chosen)
        return as_json({"films": shown(entries), "total": total})

    @router.get(
        "/v1/films/{key}",
        summary="Tell of one film",
        response_model=FilmAnswer,
        responses=errors(404, 422, token=secret),
    )
    def show_film(key: Key) -> Response:
        """Its state and, once it is judged, the record."""
        entry = find(key)
        # A film that was judged and could not be sent has failed, and has a record all the same.
        judged = entry.state is not State.received and entry.in_distribution is not None
        answer = spool.read(key, ANSWER) if judged else None
        [told] = shown([entry])
        return as_json(told | {"record": None if answer is None else json.loads(answer)})

    def find(key: str) -> Entry:
        entry = journal.find(key)
        if entry is None:
            raise _missing()
        return entry

    def picture(name: str) -> Callable[[Key], Response]:
        def send_picture(key: Key) -> Response:
            png = spool.read(find(key).key, name)
            if png is None:
                raise HTTPException(404, "there is no such picture: the film has not been judged, or could not be")
            return Response(png, media_type="image/png")

        return send_picture

    @router.get(
        "/v1/films/{key}/film.pgm",
        summary="Show a film as it is",
        response_class=Response,
        responses=content("image/x-portable-graymap") | errors(404, 422, token=secret),
    )
    def show_film_as_it_is(key: Key) -> Response:
        """In its own size and at its own depth, 8 or 16 bits, dark to light as an X-ray is viewed.

        The comment `# window LOW HIGH` has the values that are black and white for the model.
        """
        entry = find(key)
        film = None if entry.in_distribution is None else spool.read(key, FILM)
        if film is None:
            raise HTTPException(404, "there is no such picture: the film has not been judged, or could not be")
        try:
            # One after the other: the largest film takes half a gigabyte.
            with decoding:
                return _as_pgm(read_deep_film(film, f"film {key[:8]}"))
        except (ImageError, MissingExtraError) as error:
            raise HTTPException(422, str(error)) from None

    for name, summary in ((PICTURE, "Show a film at the size of a screen"), (HEATMAP, "Show the evidence in it")):
        router.add_api_route(
            f"/v1/films/{{key}}/{name}",
            picture(name),
            methods=["GET"],
            summary=summary,
            operation_id=f"show_{Path(name).stem}",
            response_class=Response,
            responses=content("image/png") | errors(404, 422, token=secret),
        )
    return router


def _acting(inbox: Inbox, send: Mapping[str, Collection[str]], told: Telling, secret: bool) -> APIRouter:
    router = APIRouter(tags=["films"])
    journal, spool = inbox.journal, inbox.spool

    @router.delete(
        "/v1/films/{key}",
        summary="Delete a film",
        status_code=204,
        responses=errors(404, 422, token=secret),
    )
    def delete_film(key: Key) -> Response:
        """Deletes film, answer and row, whatever they wait for. What a PACS has of it stays there."""
        if not inbox.delete(key):
            raise _missing()
        return Response(status_code=204)

    @router.post(
        "/v1/films/{key}/rejudge",
        summary="Judge a film again",
        status_code=202,
        response_model=FilmEntry,
        responses=errors(404, 422, token=secret),
    )
    def rejudge_film(key: Key) -> Response:
        """Puts it behind the films that wait. Its answer is sent again; where it is the same, a PACS sees that too."""
        if not journal.again(key):
            raise _missing()
        return tell(key)

    @router.post(
        "/v1/films/{key}/resend",
        summary="Send the answer to a film again",
        status_code=202,
        response_model=FilmEntry,
        responses=errors(404, 409, 422, token=secret),
    )
    def resend_film(key: Key) -> Response:
        """Sends the very objects that were made, to every destination of today."""
        entry = journal.find(key)
        if entry is None:
            raise _missing()
        if entry.state is State.received:
            raise HTTPException(409, "the film has not been judged yet: its answer is sent when it has")
        parts = {part for part, name in OBJECTS.items() if spool.path(key, name).exists()}
        again = [(to, part) for to, wanted in send.items() for part in wanted if part in parts]
        if not again:
            why = "this film has no answer in DICOM: one that came by upload, or that the rules let pass, has none"
            raise HTTPException(409, why if send else "there is nowhere to send it to: start with --send-to")
        journal.resend(key, again)
        return tell(key)

    def tell(key: str) -> Response:
        entry = journal.find(key)
        if entry is None:
            raise _missing()
        return as_json(told([entry])[0], 202)

    return router


def _missing() -> HTTPException:
    return HTTPException(404, "there is no such film: it may have been deleted in the meantime")


def _storing(inbox: Inbox, intake: Intake, secret: bool) -> APIRouter:
    router = APIRouter(tags=["dicomweb"])

    @router.post(
        "/dicom-web/studies",
        summary="Store films (STOW-RS)",
        response_model=dict[str, Any],
        responses=STOW_ANSWERS | errors(400, 408, 413, 429, 507, token=secret),
        openapi_extra=STOW_BODY,
    )
    async def store(request: Request) -> Response:
        """Takes films as C-STORE does: each is on the disk before it is called stored."""
        caller = request.client.host if request.client else "-"
        async with intake.film(request) as (body, _):
            try:
                films = stow.split(body, request.headers.get("content-type", ""))
            except stow.MultipartError as error:
                raise HTTPException(400, f"the request cannot be read: {error}") from None
            del body
            return await asyncio.to_thread(take, films, caller)

    def take(films: list[bytes], caller: str) -> Response:
        stored, failed, refusals = [], [], set()
        for film in films:
            header = header_of(film)
            kind, instance = (str(header.get(name, "")) if header else "" for name in IDENTITY[:2])
            if header is not None and kind not in KINDS:
                failed.append((kind, instance, 0x0122))
                continue
            try:
                inbox.take_instance(film, "dicomweb", caller)
                stored.append((kind, instance))
            except RefusedError as refused:
                refusals.add(refused.kind)
                failed.append((kind, instance, STATUS[refused.kind]))
        status = 200 if not failed else 202 if stored else 409
        if not stored and refusals and refusals <= {Refusal.busy, Refusal.full}:
            if Refusal.full in refusals:
                raise HTTPException(507, "the disk is nearly full: make room")
            raise busy()
        return as_json(stow.response(stored, failed), status, media_type=stow.DICOM_JSON)

    return router


def _telling(
    classifier: Classifier,
    limits: Limits,
    send: Mapping[str, Collection[str]],
    show: Collection[str],
    registry: prometheus_client.CollectorRegistry,
    secret: bool,
    watch: Watch | None,
) -> APIRouter:
    router = APIRouter()
    description = classifier.bundle.description
    file, prevalence = description.files[classifier.file], classifier.prevalence
    model = as_json(
        {
            "name": description.name,
            "backbone": description.backbone,
            "size": description.input.size,
            "file": classifier.file,
            "precision": file.precision,
            "sha256": file.sha256,
            "prevalence": prevalence,
            "site": None if description.site is None else description.site.name,
            "operating_point": classifier.operating_point,
            "operating_points": {
                name: asdict(point)
                | {"threshold": _moved(point.threshold, description.calibration.prevalence, prevalence)}
                for name, point in description.operating_points.items()
            },
            "version": __version__,
            "max_bytes": limits.body,
            "destinations": list(send),
            "show": list(show),
            "note": NOT_A_DIAGNOSIS,
        }
    )

    @router.get("/v1/model", tags=["predict"], response_model=Model, responses=errors(token=secret))
    async def tell_of_model() -> Response:
        """The model that judges here, its operating points, and what they gave on validation films."""
        return model

    @router.get("/v1/watch", tags=["operation"], response_model=Watching, responses=errors(token=secret))
    def tell_of_change() -> Response:
        """Whether the last films are like those of the reference in the bundle. Nothing in it tells of a patient."""
        outlook = None if watch is None else watch.outlook()
        if outlook is None:
            return as_json({"known": False} | dict.fromkeys(Outlook.__dataclass_fields__) | {"alarms": []})
        return as_json({"known": True} | asdict(outlook) | {"alarms": list(outlook.alarms)})

    @router.get(
        "/metrics",
        tags=["operation"],
        response_class=Response,
        responses=content("text/plain") | errors(token=secret),
    )
    def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(prometheus_client.generate_latest(registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return router


def _as_pgm(film: DeepFilm) -> Response:
    """Returns a portable graymap (P5), rows from the top, 16 bits with the high byte first."""
    height, width = film.values.shape
    head = f"P5\n# window {film.low:.6g} {film.high:.6g}\n{width} {height}\n{film.levels}\n".encode()
    kind = film.values.dtype.newbyteorder(">")
    rows = (film.values[top : top + 256].astype(kind).tobytes() for top in range(0, height, 256))
    length = len(head) + film.values.nbytes
    return StreamingResponse(chain([head], rows), 200, {"Content-Length": str(length)}, "image/x-portable-graymap")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _moved(threshold: float, before: float, now: float) -> float:
    """Returns a threshold on the probability at another prevalence: Bayes, as `Classifier` moves the probability."""
    if before == now or threshold in (0, 1):
        return threshold
    odds = threshold / (1 - threshold) * now / (1 - now) / (before / (1 - before))
    return odds / (1 + odds)


def _asset(data: bytes, media_type: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    # A coroutine: a plain function would be sent to a thread.
    async def asset() -> Response:
        return Response(data, media_type=media_type)

    return asset


def _bearer(token: Callable[[], str]) -> Callable[..., Any]:
    scheme = HTTPBearer(auto_error=False, description="The line of the file that --token-file names.")

    async def check(given: HTTPAuthorizationCredentials | None = Security(scheme)) -> None:  # noqa: B008 - FastAPI's way
        if given is None or not hmac.compare_digest(given.credentials.encode(), token().encode()):
            why = "this device asks for a token" if given is None else "this is not the token of this device"
            raise HTTPException(401, why, {"WWW-Authenticate": "Bearer"})

    return check


async def _say_why(_request: Request, error: Exception) -> Response:
    if not isinstance(error, StarletteHTTPException):
        raise error
    words = {404: "there is nothing here", 405: "this cannot be done here"}
    text = error.detail if isinstance(error, HTTPException) else words.get(error.status_code, error.detail)
    return as_json({"error": text}, error.status_code, dict(error.headers or {}))


async def _say_what_is_invalid(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return as_json({"error": "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())}, 422)


def _shown(entry: Entry, sendings: Sequence[Sending], whose: Mapping[str, str | None]) -> dict[str, Any]:
    """What is told of a film: what its row says of it to a person, and what became of its answer."""
    told: dict[str, Any] = {name: value for name, value in asdict(entry).items() if name in FilmEntry.model_fields}
    several = len({sending.destination for sending in sendings}) > 1
    unsent = [
        f"{sending.destination}: {sending.error}" if several else sending.error
        for sending in sendings
        if sending.error and (sending.state is Delivery.refused or not (sending.state is Delivery.sent or entry.error))
    ]
    told["received"] = datetime.fromtimestamp(entry.received, UTC).isoformat(timespec="milliseconds")
    told["error"] = "; ".join(dict.fromkeys(each for each in [entry.error, *unsent] if each)) or None
    told["sendings"] = [
        {name: value for name, value in asdict(sending).items() if name in Delivered.model_fields}
        for sending in sendings
    ]
    return {**told, **whose}


class Whose:
    """Reads in the films themselves whose they are, as far as that is to be shown. It is written down nowhere."""

    _KEYWORDS = {"accession": "AccessionNumber", "patient-id": "PatientID"}  # noqa: RUF012

    def __init__(self, spool: Spool, show: Collection[str]) -> None:
        """Takes what is to be shown: "accession", "patient-id"."""
        self._spool, self._show = spool, tuple(show)
        self._found: dict[tuple[str, int], dict[str, str | None]] = {}

    def of(self, entry: Entry) -> dict[str, str | None]:
        """Returns `accession` and `patient_id` of a film; None where they are not to be shown, or are not there."""
        nothing: dict[str, str | None] = {"accession": None, "patient_id": None}
        if not self._show:
            return nothing
        which = entry.key, entry.revision
        if which not in self._found:
            header = header_of(self._spool.read(entry.key, FILM) or b"")
            told = {
                name.replace("-", "_"): _printable(header.get(self._KEYWORDS[name])) for name in self._show if header
            }
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[which] = nothing | told
        return self._found[which]

    def search(self, text: str, journal: Journal) -> set[str]:
        """Returns the keys of the films whose key begins so, or of which something that is shown has it."""
        wanted = text.strip().casefold()
        keys = journal.keys()
        found = {key for key in keys if key.startswith(wanted)}
        if self._show and wanted:
            everything, _ = journal.select(Selection(limit=-1))
            found |= {
                entry.key
                for entry in everything
                if any(value and wanted in value.casefold() for value in self.of(entry).values())
            }
        return found


def _printable(value: Any) -> str | None:
    text = "".join(character for character in str(value or "") if character.isprintable()).strip()
    return text[:64] or None


class _Stock:
    """Tells Prometheus, when it asks, of films, answers and disk."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def collect(self) -> Iterator[Metric]:
        journal = self._inbox.journal
        films = GaugeMetricFamily("pneumo_films", "Films in the journal.", labels=["state"])
        for state, count in journal.counts().items():
            films.add_metric([state.value], count)
        yield films
        yield GaugeMetricFamily(
            "pneumo_oldest_unanswered_seconds",
            "For how long the film that has waited longest for its judgement has waited.",
            journal.oldest_unanswered(),
        )
        yield GaugeMetricFamily("pneumo_disk_free_bytes", "Room on the disk of the spool.", self._inbox.spool.free())
        objects = GaugeMetricFamily(
            "pneumo_sendings", "Objects of the films in the journal, by where they go.", labels=["destination", "state"]
        )
        for (destination, delivery), count in sorted(journal.deliveries().items()):
            objects.add_metric([destination, delivery.value], count)
        yield objects
        failures = CounterMetricFamily(
            "pneumo_failed_sends", "Tries to send an object that did not succeed.", labels=["destination"]
        )
        for destination, count in sorted(journal.failures.items()):
            failures.add_metric([destination], count)
        yield failures


class _Seen:
    """Tells Prometheus, when it asks, how the last films compare with the reference of the bundle."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        outlook = self._watch.outlook()
        if outlook is None:
            return
        yield GaugeMetricFamily("pneumo_watched_films", "Films that are compared with the reference.", outlook.films)
        for name, words in (
            ("distance", "Distance of the last films from the reference, 0 to 1."),
            ("limit", "Distance from which on they are called shifted."),
            ("alarm", "1 where they are shifted."),
        ):
            family = GaugeMetricFamily(f"pneumo_shift_{name}", words, labels=["of"])
            for of, shift in outlook.shifts.items():
                family.add_metric([of], float(getattr(shift, name)))
            yield family
        for name, words, share in (
            ("pneumo_withheld_share", "Share of the last films without a verdict.", outlook.withheld),
            ("pneumo_pneumonia_share", "Share called PNEUMONIA of those with a verdict.", outlook.pneumonia),
            ("pneumo_pneumonia_share_expected", "The same in the reference of the bundle.", outlook.expected),
        ):
            if share is not None:
                yield GaugeMetricFamily(name, words, share)


def _registry(classifier: Classifier, inbox: Inbox, watch: Watch | None) -> prometheus_client.CollectorRegistry:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    registry.register(_Stock(inbox))
    if watch is not None:
        registry.register(_Seen(watch))
    info = prometheus_client.Info("pneumo_model", "The model that judges here.", registry=registry)
    info.info({"name": classifier.bundle.description.name, "file": classifier.file, "version": __version__})
    return registry
