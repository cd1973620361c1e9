"""The page and the HTTP interface: FastAPI around one `Classifier`, the journal and the spool.

`POST /v1/predict` answers at once and keeps nothing. `POST /v1/films` keeps a film until it is judged, and then for the
list of the page; judging it is the work of another part.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import prometheus_client
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.core import GaugeMetricFamily
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import StreamingResponse

from pneumo_edge import __version__
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.errors import ImageError, MissingExtraError
from pneumo_edge.overlay import legend_layer
from pneumo_edge.preprocess import is_film, read_deep_film
from pneumo_edge.serve.gate import Gate, as_json
from pneumo_edge.serve.intake import Intake, Limits, busy
from pneumo_edge.serve.journal import Entry, Journal, State
from pneumo_edge.serve.schema import (
    FILM_BODY,
    FilmAnswer,
    FilmEntry,
    Films,
    Health,
    Key,
    Model,
    Record,
    content,
    errors,
)
from pneumo_edge.serve.spool import ANSWER, FILM, HEATMAP, PICTURE, Spool, new_key
from pneumo_edge.words import CATALOGUE

if TYPE_CHECKING:
    from PIL import Image
    from prometheus_client.metrics_core import Metric

    from pneumo_edge.classifier import Classifier
    from pneumo_edge.dicom import DeepFilm

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


def make_app(
    classifier: Classifier, journal: Journal, spool: Spool, *, token: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """Makes the application.

    Args:
        classifier: Judges what comes to `/v1/predict`, as many films at once as there are cores.
        journal: Lists the films that came to `/v1/films`, and those that came over DICOM.
        spool: Holds them.
        token: What every request must bear, but those for the page's own files, the description and `/healthz`. None
            for an interface that only this machine reaches, which then answers to no other name than that of this
            machine.
        limits: What requests may ask for.
    """
    limits = limits or Limits()
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
    registry = _registry(classifier, journal)
    app.add_middleware(Gate, local=token is None, registry=registry)
    app.add_exception_handler(StarletteHTTPException, _say_why)
    app.add_exception_handler(RequestValidationError, _say_what_is_invalid)

    intake, secret = Intake(limits), token is not None
    guards = [] if token is None else [Security(_bearer(token))]
    app.include_router(_predicting(classifier, pool, intake, secret), dependencies=guards)
    app.include_router(_films(journal, spool, intake, limits.queue, secret), dependencies=guards)
    app.include_router(_telling(classifier, limits, registry, secret), dependencies=guards)

    @app.get("/healthz", tags=["operation"], response_model=Health, responses=errors(503, token=False))
    def healthz() -> Response:
        """Tells whether the service works. Needs no token."""
        try:
            journal.counts()
        except Exception:
            raise HTTPException(503, "the journal cannot be read: look at the disk") from None
        return as_json({"status": "ok"})

    assets = {file.name: (file.read_bytes(), _TYPES[file.suffix]) for file in (*_PAGE.iterdir(), CATALOGUE)}
    assets[""] = assets.pop("index.html")
    assets["legend.png"] = _png(legend_layer()), "image/png"
    for name, (data, media_type) in assets.items():
        app.add_api_route(f"/{name}", _asset(data, media_type), methods=["GET", "HEAD"], include_in_schema=False)
    return app


def _predicting(classifier: Classifier, pool: ThreadPoolExecutor, intake: Intake, secret: bool) -> APIRouter:
    router = APIRouter(tags=["predict"])

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
                prediction = await asyncio.get_running_loop().run_in_executor(pool, classifier.predict, film, name)
            except (ImageError, MissingExtraError) as error:
                return as_json({"path": name, "error": str(error)}, 422)
        return as_json(prediction.record())

    return router


def _films(journal: Journal, spool: Spool, intake: Intake, queue: int, secret: bool) -> APIRouter:
    router = APIRouter(tags=["films"])
    decoding = threading.Lock()

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
        if journal.counts()[State.received] >= queue:
            raise busy()
        key = new_key()
        try:
            spool.add(key, film)
        except OSError as error:
            raise HTTPException(507, f"the film cannot be kept ({error.strerror}): make room on the disk") from None
        entry, _new = journal.add(key, "page")
        return as_json(_shown(entry), 202, {"Location": f"/v1/films/{key}"})

    @router.get(
        "/v1/films", summary="List the films, newest first", response_model=Films, responses=errors(422, token=secret)
    )
    def list_films(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Response:
        """Films that came here or over DICOM, with their state."""
        return as_json({"films": [_shown(entry) for entry in journal.recent(limit)]})

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
        return as_json(_shown(entry) | {"record": None if answer is None else json.loads(answer)})

    def find(key: str) -> Entry:
        entry = journal.find(key)
        if entry is None:
            raise HTTPException(404, "there is no such film: it may have been deleted in the meantime")
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


def _telling(
    classifier: Classifier, limits: Limits, registry: prometheus_client.CollectorRegistry, secret: bool
) -> APIRouter:
    router = APIRouter()
    description = classifier.bundle.description
    file = description.files[classifier.file]
    model = as_json(
        {
            "name": description.name,
            "backbone": description.backbone,
            "size": description.input.size,
            "file": classifier.file,
            "precision": file.precision,
            "sha256": file.sha256,
            "prevalence": description.calibration.prevalence,
            "operating_point": classifier.operating_point,
            "operating_points": {name: asdict(point) for name, point in description.operating_points.items()},
            "version": __version__,
            "max_bytes": limits.body,
            "note": NOT_A_DIAGNOSIS,
        }
    )

    @router.get("/v1/model", tags=["predict"], response_model=Model, responses=errors(token=secret))
    async def tell_of_model() -> Response:
        """The model that judges here, its operating points, and what they gave on validation films."""
        return model

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


def _asset(data: bytes, media_type: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    # A coroutine: a plain function would be sent to a thread.
    async def asset() -> Response:
        return Response(data, media_type=media_type)

    return asset


def _bearer(token: str) -> Callable[..., Any]:
    wanted = token.encode()
    scheme = HTTPBearer(auto_error=False, description="The line of the file that --token-file names.")

    async def check(given: HTTPAuthorizationCredentials | None = Security(scheme)) -> None:  # noqa: B008 - FastAPI's way
        if given is None or not hmac.compare_digest(given.credentials.encode(), wanted):
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


def _shown(entry: Entry) -> dict[str, Any]:
    """What is told of a film: all of its row but its number and how often it was tried."""
    told = {name: value for name, value in asdict(entry).items() if name in FilmEntry.model_fields}
    return told | {"received": datetime.fromtimestamp(entry.received, UTC).isoformat(timespec="milliseconds")}


class _FilmCounts:
    """Counts the films in the journal when Prometheus asks."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("pneumo_films", "Films in the journal.", labels=["state"])
        for state, count in self._journal.counts().items():
            family.add_metric([state.value], count)
        yield family


def _registry(classifier: Classifier, journal: Journal) -> prometheus_client.CollectorRegistry:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    registry.register(_FilmCounts(journal))
    info = prometheus_client.Info("pneumo_model", "The model that judges here.", registry=registry)
    info.info({"name": classifier.bundle.description.name, "file": classifier.file, "version": __version__})
    return registry
