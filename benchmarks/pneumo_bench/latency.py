"""Times one film with every file of every bundle, and with other engines on the same weights.

Each engine runs in a process of its own. They take turns over several rounds, so that what slows the machine for a
while slows all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pneumo_bench.inputs import sample_films
from pneumo_bench.machine import KERAS_PACKAGES, PACKAGES, Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes, threads_text
from pneumo_bench.process import ask
from pneumo_bench.spread import percentile, ratio_text, ratios, spread
from pneumo_edge.bundle import Bundle
from pneumo_edge.command_line import progress
from pneumo_edge.errors import MissingExtraError, UsageError
from pneumo_train.run import Run

FOLDER_FILMS = 48

PEERS = {".onnx": ("onnxruntime", "openvino"), ".tflite": ("litert",)}
"""Suffix of a file -> engines that run it with their default settings, but for the number of threads."""

KERAS_PEERS = ("keras", "tf.function")

_PACKAGE = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "litert": ("ai_edge_litert", "ai-edge-litert"),
    "openvino": ("openvino", "openvino"),
}
"""Engine -> its module, and the package that brings it."""

PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}


@dataclass(frozen=True)
class Contestant:
    """One model in one engine."""

    name: str
    """BUNDLE/FILE in our own runtime, ENGINE:BUNDLE/FILE in another, ENGINE:RUN for Keras."""
    engine: str
    """A key of `pneumo_bench.worker.ENGINES`."""
    runs_on: str
    """Package that computes: a key of the machine's versions."""
    folder: Path
    file: str
    precision: str
    size: int
    """S, pixels."""
    bytes: int
    sha256: str | None
    """SHA-256 of the file; None for a Keras model."""


def enter(bundles: Mapping[str, Bundle], runs: Sequence[Path]) -> tuple[list[Contestant], list[dict[str, str]]]:
    """Returns the contestants that can be timed here, and those that cannot, with the reason.

    Raises:
        MissingExtraError: Runs are given and TensorFlow is not installed.
        RunError: A folder is no finished run.
    """
    contestants: list[Contestant] = []
    missing: list[dict[str, str]] = []
    for bundle_name, bundle in bundles.items():
        for file, stated in bundle.description.files.items():
            peers = PEERS[Path(file).suffix]
            for engine in ("pneumo", *peers):
                runs_on = peers[0] if engine == "pneumo" else engine
                prefix = "" if engine == "pneumo" else f"{engine}:"
                name = f"{prefix}{bundle_name}/{file}"
                module, package = _PACKAGE[runs_on]
                if find_spec(module) is None:
                    reason = f"{package} is not installed: pip install 'pneumo[bench]'"
                    missing.append({"name": name, "reason": reason})
                    continue
                size = bundle.description.input.size
                contestants.append(
                    Contestant(
                        name, engine, package, bundle.folder, file, stated.precision, size, stated.bytes, stated.sha256
                    )
                )
        # Peers are timed on the plain float files too.
        for suffix, peers in PEERS.items():
            if (plain := f"model{suffix}") not in bundle.description.files:
                reason = f"the bundle has no {plain}: export the run with that format"
                missing += [{"name": f"{peer}:{bundle_name}/{plain}", "reason": reason} for peer in peers]
    if runs and find_spec("tensorflow") is None:
        raise MissingExtraError("tensorflow", "train", "--run")
    taken = Counter(run.resolve().name for run in runs)
    for run in runs:
        opened = Run(run)
        path, name = opened.model_path, run.resolve().name
        for engine in KERAS_PEERS:
            called = f"{engine}:{name if taken[name] == 1 else run}"
            size = opened.config.size
            contestants.append(
                Contestant(called, engine, "keras", run, path.name, "fp32", size, path.stat().st_size, None)
            )
    return contestants, missing


def time_all(
    bundles: Mapping[str, Bundle],
    runs: Sequence[Path],
    *,
    threads: Sequence[int],
    queries: int,
    rounds: int,
    baseline: str | None,
    films: Path | None,
) -> dict[str, Any]:
    """Times every contestant with every number of threads, and returns the content of `latency.json`.

    Args:
        bundles: Name -> bundle, from `open_bundles`.
        runs: Runs whose Keras model is timed too.
        threads: Numbers of threads for one film.
        queries: Films for each contestant in each round.
        rounds: Turns of each contestant.
        baseline: Name of the contestant by which the others are divided; the first by default.
        films: Folder of films; phantoms by default.

    Raises:
        UsageError: No contestant has the name of the baseline.
        DataError, MissingExtraError, RunError: One sentence each.
    """
    contestants, missing = enter(bundles, runs)
    if baseline is not None and baseline not in {c.name for c in contestants}:
        known = ", ".join(c.name for c in contestants)
        raise UsageError(f"there is nothing called {baseline} to be the baseline: choose one of {known}")
    watch = Watch()
    entries = [(contestant, count) for contestant in contestants for count in threads]
    answers: dict[tuple[Contestant, int], list[dict[str, Any]]] = {entry: [] for entry in entries}
    failed: list[dict[str, Any]] = []
    with sample_films(films, FOLDER_FILMS) as (paths, films_name), progress("timing", rounds * len(entries)) as advance:
        for turn in range(rounds):
            # Back and forth: the first of one round is the last of the next.
            order = list(answers) if turn % 2 == 0 else list(reversed(answers))
            for place, (contestant, count) in enumerate(order):
                answer = _ask_worker(contestant, count, queries, [str(path) for path in paths])
                if "error" in answer:
                    # It takes no further turn.
                    failed.append({"name": contestant.name, "threads": count, "reason": answer["error"]})
                    del answers[contestant, count]
                else:
                    answers[contestant, count].append(answer)
                advance(turn * len(entries) + place + 1)
        films_count = len(paths)
    base = baseline or (contestants[0].name if contestants else None)
    p50 = {
        (contestant.name, count): [_percentiles(answer)["p50_ms"] for answer in given]
        for (contestant, count), given in answers.items()
    }
    results = []
    for (contestant, count), given in answers.items():
        compared = p50.get((base or "", count))
        result = _result(contestant, count, given)
        result["p50_ratio"] = ratios(p50[contestant.name, count], compared) if compared else None
        result["best_peer"] = _against_best_peer(contestant, count, p50, list(answers))
        results.append(result)
    machine = describe_machine(PACKAGES + (KERAS_PACKAGES if runs else ()))
    return header("latency", machine, watch.finish()) | {
        "settings": {"queries": queries, "rounds": rounds, "films": films_name, "folder_films": films_count},
        "baseline": base,
        "results": results,
        "missing": missing,
        "failed": failed,
    }


def _against_best_peer(
    ours: Contestant,
    threads: int,
    p50: Mapping[tuple[str, int], Sequence[float | None]],
    entries: Sequence[tuple[Contestant, int]],
) -> dict[str, Any] | None:
    """Compares a file in our runtime with the fastest other engine on the same weights, precision and threads."""
    found = []
    for peer, count in entries:
        if peer.engine != "pneumo" and (peer.folder, peer.precision, count) == (ours.folder, ours.precision, threads):
            middle = spread(p50[peer.name, count])
            if middle is not None:
                found.append((middle["median"], peer.name))
    if ours.engine != "pneumo" or not found:
        return None
    _, best = min(found)
    return {"name": best, "p50_ratio": ratios(p50[ours.name, threads], p50[best, threads])}


def _ask_worker(contestant: Contestant, threads: int, queries: int, films: list[str]) -> dict[str, Any]:
    job = {
        "engine": contestant.engine,
        "folder": str(contestant.folder),
        "file": contestant.file,
        "size": contestant.size,
        "threads": threads,
        "queries": queries,
        "films": films,
    }
    return ask("pneumo_bench.worker", job)


def _percentiles(answer: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: percentile(answer["latencies_ms"], share) for key, share in PERCENTILES.items()}


def _result(contestant: Contestant, threads: int, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [_percentiles(answer) for answer in answers]
    single = ("load_ms", "first_ms", "films_per_second", "peak_rss")
    return {
        "name": contestant.name,
        "engine": contestant.engine,
        "runs_on": contestant.runs_on,
        "precision": contestant.precision,
        "threads": threads,
        "size": contestant.size,
        "bytes": contestant.bytes,
        "sha256": contestant.sha256,
        "logit": answers[0]["logit"],
        **{key: spread([answer[key] for answer in answers]) for key in single},
        **{key: spread([each[key] for each in found]) for key in PERCENTILES},
    }


def latency_table(record: Mapping[str, Any]) -> Table:
    """Returns the table of a record of `time_all`."""
    settings, versions = record["settings"], record["machine"]["versions"]
    rows = []
    for result in record["results"]:
        runs_on = f"{result['runs_on']} {versions.get(result['runs_on'], '')}".strip()
        rows.append(
            (
                result["name"],
                runs_on,
                result["precision"],
                str(result["threads"]),
                f"{result['bytes'] / 1e6:.2f}",
                *(_number(result[key]) for key in ("load_ms", "first_ms")),
                _with_spread(result["p50_ms"]),
                *(_number(result[key]) for key in ("p90_ms", "p99_ms", "films_per_second")),
                f"{result['peak_rss']['median'] / 2**20:.0f}",
                ratio_text(result["p50_ratio"]),
                ratio_text(result["best_peer"]["p50_ratio"]) if result["best_peer"] else "–",
            )
        )
    notes = [
        *machine_notes(record["machine"], record["load"]),
        f"{settings['rounds']} rounds of {settings['queries']} queries, one film at a time, after a warm-up; "
        f"medians over the rounds, in brackets the lowest and highest; folder run: {settings['folder_films']} films, "
        f"{settings['films']}",
        "a name without a prefix is our runtime: its loading includes a check of the SHA-256; "
        "with a prefix it is that engine as it comes, apart from the number of threads",
        f"ratio: p50 against {record['baseline']} with as many threads; best peer: the same against the "
        "fastest other engine on the same weights and precision; a peak of memory is that of the process "
        "before the folder run",
    ]
    notes += [f"not timed: {gap['name']}: {gap['reason']}" for gap in record["missing"]]
    notes += [f"failed: {gap['name']}, {threads_text(gap['threads'])}: {gap['reason']}" for gap in record["failed"]]
    if not any(result["engine"] in KERAS_PEERS for result in record["results"]):
        notes.append("not timed: Keras predict and tf.function: they need TensorFlow and --run RUN")
    columns = (
        "model", "runs on", "precision", "threads", "MB", "load ms", "first ms", "p50 ms", "p90 ms", "p99 ms",
        "films/s", "peak MiB", "ratio", "best peer",
    )  # fmt: skip
    return Table("Latency of one film", columns, rows, tuple(notes))


def _number(found: Mapping[str, float] | None) -> str:
    return "–" if found is None else f"{found['median']:.2f}"


def _with_spread(found: Mapping[str, float] | None) -> str:
    return "–" if found is None else f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
