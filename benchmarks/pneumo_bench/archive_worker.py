"""Does one measurement of pneumo-archive in a process of its own: a bare loop, a run with workers, or a listing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pneumo_bench.machine import peak_rss
from pneumo_bench.process import answer
from pneumo_edge.classifier import Classifier, Failure

BARE, ARCHIVE, LISTING = "bare", "archive", "listing"


def measure(kind: str, source: str, model: str, output: str = "", workers: int = 1, batch: int = 1) -> dict[str, Any]:
    """Does one measurement.

    Args:
        kind: `BARE`: `Classifier.predict_batch` on one core, nothing written. `ARCHIVE`: pneumo-archive on a cluster
            of this machine. `LISTING`: its driver alone, with the cluster started: the films become a plan, twice.
        source: Folder of films.
        model: Bundle.
        output: Folder that is not there yet, for `ARCHIVE` and `LISTING`.
        workers: Processes, for `ARCHIVE`.
        batch: Films in one part.

    Returns:
        `films`, `seconds`, `peak_rss` of this process in bytes, and what belongs to the kind alone.
    """
    if kind == BARE:
        found = _bare(source, model)
    elif kind == ARCHIVE:
        found = _archive(source, model, output, workers, batch)
    else:
        found = _listing(source, output, batch)
    return found | {"peak_rss": peak_rss()}


def _bare(source: str, model: str) -> dict[str, Any]:
    paths = sorted(str(path) for path in Path(source).rglob("*.jpeg"))
    with Classifier.load(model, threads=1) as classifier:
        classifier.predict(paths[0])
        start = time.perf_counter()
        answers = sum(not isinstance(each, Failure) for each in classifier.predict_batch(paths, side_by_side=1))
        return {"films": answers, "seconds": time.perf_counter() - start}


def _archive(source: str, model: str, output: str, workers: int, batch: int) -> dict[str, Any]:
    from pneumo_edge.archive.drive import judge_archive

    _, outcome = judge_archive(source, output, workers=workers, model=Path(model), batch=batch)
    parts = [part.stat().st_size for part in Path(output, "films").iterdir()]
    return {
        "films": outcome.judged - outcome.counts.verdicts["failed"],
        "seconds": outcome.seconds,
        "parts": len(parts),
        "rows_bytes": sum(parts),
        "driver_seconds": outcome.driver_seconds,
    }


def _listing(source: str, output: str, batch: int) -> dict[str, Any]:
    from pneumo_edge.archive.drive import connect
    from pneumo_edge.archive.listing import open_source
    from pneumo_edge.archive.places import Store
    from pneumo_edge.archive.plan import Plan

    def listing() -> tuple[float, list[tuple[int, int]]]:
        start, listed, peaks = time.perf_counter(), 0, []
        for films in Plan(Store(output), batch).extend(open_source(source).batches):
            listed += films
            peaks.append((listed, peak_rss()))
        return time.perf_counter() - start, peaks

    with connect(None, 1):
        before = peak_rss()
        (seconds, peaks), (again, _) = listing(), listing()
    # Only the second half: at the beginning memory grows by the code that is loaded.
    films, last = peaks[-1]
    middle, first = next(peak for peak in peaks if peak[0] >= films / 2)
    return {
        "films": Plan(Store(output), batch).films,
        "seconds": seconds,
        "seconds_again": again,
        "peak_rss_before": before,
        "bytes_for_a_film": (last - first) / max(1, films - middle),
    }


if __name__ == "__main__":
    answer(measure)
