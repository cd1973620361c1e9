"""Measures the HTTP interface of pneumo-serve: the time that it adds to a film, and many clients at once."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from pneumo_bench.inputs import PHANTOMS, sample_films
from pneumo_bench.machine import PACKAGES, Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_bench.serve import Service
from pneumo_edge.classifier import Classifier
from pneumo_edge.command_line import progress
from pneumo_edge.errors import PneumoError

_PACKAGES = (*PACKAGES, "fastapi", "starlette", "uvicorn", "h11", "python-multipart")

_WARM_UP = 20
"""Requests of each kind before anything is measured."""

_PATIENCE = 120.0
"""Seconds for one answer, on a machine of any speed."""

_BOUNDARY = "pneumo-bench"


class _Client:
    """A client that keeps its connection open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)

    def post(self, body: bytes, content_type: str) -> tuple[int, float]:
        """Returns the status and, with 429, the seconds to wait before the next request."""
        self._connection.request("POST", "/v1/predict", body, {"Content-Type": content_type})
        answer = self._connection.getresponse()
        answer.read()
        return answer.status, float(answer.getheader("Retry-After", 0))

    def close(self) -> None:
        self._connection.close()


def _form(film: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="film"\r\n\r\n'
    return head.encode() + film + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _overhead(port: int, classifier: Classifier, film: bytes, queries: int) -> dict[str, Any]:
    """Times `Classifier.predict` here, and a request for the same film with bare bytes and as a form, in turns."""
    client = _Client(port)

    def ask(body: bytes, content_type: str) -> None:
        status, _ = client.post(body, content_type)
        if status != 200:
            raise PneumoError(f"pneumo-serve answers {status} to a phantom")

    form, form_type = _form(film), f"multipart/form-data; boundary={_BOUNDARY}"
    ways: dict[str, Callable[[], object]] = {
        "predict": lambda: classifier.predict(film),
        "bytes": lambda: ask(film, "image/jpeg"),
        "form": lambda: ask(form, form_type),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    draw = random.Random(0)  # noqa: S311
    with progress("asking", queries) as show:
        for query in range(-_WARM_UP, queries):
            # The first one after the other process has worked finds colder caches, so the order is drawn.
            for way, call in draw.sample(list(ways.items()), len(ways)):
                start = time.perf_counter()
                call()
                if query >= 0:
                    seconds[way].append(time.perf_counter() - start)
            show(max(0, query + 1))
    client.close()
    return {
        way: {
            "median_ms": 1e3 * median(times),
            "overhead_ms": 1e3 * median(t - own for t, own in zip(times, seconds["predict"], strict=True)),
        }
        for way, times in seconds.items()
    }


def _crowd(port: int, process: int, film: bytes, clients: int, requests: int) -> dict[str, Any]:
    """Lets many clients send films at once. A client that gets 429 waits as long as it is told."""
    memory = import_module("psutil").Process(process).memory_info
    statuses: Counter[str] = Counter()
    lock, left = threading.Lock(), iter(range(requests))
    sizes = [memory().rss]
    start = time.perf_counter()

    def ask_on() -> None:
        client = _Client(port)
        while True:
            with lock:
                if next(left, None) is None:
                    break
            while True:
                try:
                    status, seconds = client.post(film, "image/jpeg")
                    outcome = str(status)
                except (OSError, http.client.HTTPException) as error:
                    outcome, seconds = type(error).__name__, 0.0
                    client.close()
                with lock:
                    statuses[outcome] += 1
                    sizes.append(memory().rss)
                if outcome != "429":
                    break
                time.sleep(seconds)
        client.close()

    crowd = [threading.Thread(target=ask_on) for _ in range(clients)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    used = [rss / 2**20 for rss in sizes]
    middle = len(used) // 2
    return {
        "clients": clients,
        "films": requests,
        "statuses": dict(sorted(statuses.items())),
        "seconds": round(time.perf_counter() - start, 1),
        "rss_mb": {
            "before": round(used[0], 1),
            "peak_first_half": round(max(used[:middle]), 1),
            "peak_second_half": round(max(used[middle:]), 1),
            "after": round(memory().rss / 2**20, 1),
        },
    }


def measure_http(*, bundle: Path | None, queries: int, clients: int, requests: int) -> dict[str, Any]:
    """Starts pneumo-serve, measures it, and returns the content of `http.json`.

    Args:
        bundle: The model; the one that comes with pneumo by default.
        queries: Times that one film is measured.
        clients: Clients that send at the same time.
        requests: Films that all clients together send.

    Raises:
        MissingExtraError: pneumo-serve or psutil is not installed.
        PneumoError: It does not start, or refuses a phantom.
    """
    watch = Watch()
    options = [] if bundle is None else ["--model", str(bundle)]
    with (
        TemporaryDirectory(prefix="pneumo-bench-") as scratch,
        sample_films(None, 1) as (films, _),
        Classifier.load(bundle) as classifier,
        Service(Path(scratch) / "spool", *options, dicom=False) as service,
    ):
        port = int(service.address.rpartition(":")[2])
        film = films[0].read_bytes()
        overhead = _overhead(port, classifier, film, queries)
        crowd = _crowd(port, service.pid, film, clients, requests)
    settings = {"films": PHANTOMS, "bytes": len(film), "queries": queries, "threads": classifier.threads}
    return header("http", describe_machine(_PACKAGES), watch.finish()) | {
        "settings": settings,
        "overhead": overhead,
        "crowd": crowd,
    }


def http_tables(record: dict[str, Any]) -> list[Table]:
    """Returns the tables of a record of `measure_http`."""
    settings, crowd = record["settings"], record["crowd"]
    ways = {"predict": "Classifier.predict", "bytes": "POST, bare bytes", "form": "POST, form"}
    memory = crowd["rss_mb"]
    return [
        Table(
            title="POST /v1/predict and Classifier.predict",
            columns=("way", "median", "more than predict"),
            rows=[
                (
                    name,
                    f"{record['overhead'][way]['median_ms']:.2f} ms",
                    f"{record['overhead'][way]['overhead_ms']:.2f} ms",
                )
                for way, name in ways.items()
            ],
            notes=(
                f"one of the {settings['films']}, {settings['bytes'] / 1e3:.0f} kB, {settings['queries']} turns, in"
                " any order, over one connection; the difference is the median of those within a turn",
                *machine_notes(record["machine"], record["load"]),
            ),
        ),
        Table(
            title=f"{crowd['clients']} clients at once",
            columns=("films", "time", "answers", "memory before", "1st half, at most", "2nd half, at most", "after"),
            rows=[
                (
                    str(crowd["films"]),
                    f"{crowd['seconds']:.0f} s",
                    ", ".join(f"{count} x {status}" for status, count in crowd["statuses"].items()),
                    *(f"{memory[name]:.0f} MB" for name in ("before", "peak_first_half", "peak_second_half", "after")),
                )
            ],
            notes=("a client that gets 429 comes again after the time in Retry-After; memory is the service's RSS",),
        ),
    ]
