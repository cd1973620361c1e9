"""Times the way from a file on disk to a verdict, cold and warm, and where the time goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.requirements import Requirement
from PIL import Image

import pneumo_edge
from pneumo_bench.inputs import PHANTOMS, sample_films
from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.oneshot import REPEATS
from pneumo_bench.output import Table, header, machine_notes
from pneumo_bench.spread import ratio_text, ratios, spread
from pneumo_edge.bundle import Bundle
from pneumo_edge.classifier import ENGINE_ORDER
from pneumo_edge.command_line import progress
from pneumo_edge.errors import PneumoError, UsageError

PARTS = ("python", "import", "load", "decode", "infer", "print")
"""Parts of the time, in their order; `python` is the start and the end of the interpreter."""

MODES = ("cold", "warm")

FILMS = 8
WIDTH = 1500

LARGE = 1_000_000
"""Bytes from which a package of the base install is named in the table."""


@dataclass(frozen=True)
class Way:
    """One way from a film to a verdict."""

    name: str
    """BUNDLE/FILE for pneumo-infer; bare:BUNDLE/FILE for a script of ten lines."""
    kind: str
    """"pneumo" or "bare"."""
    bundle: Path
    file: str


def find_ways(bundles: Mapping[str, Bundle]) -> list[Way]:
    """Lists the ways: pneumo-infer with its best file for each engine, the one it would choose first, and bare scripts
    on the ONNX files."""
    ways = []
    for name, bundle in bundles.items():
        found = [files[0] for engine in ENGINE_ORDER if (files := bundle.files_of_engine(engine))]
        ways += [Way(f"{name}/{file}", "pneumo", bundle.folder, file) for file in found]
        ways += [Way(f"bare:{name}/{file}", "bare", bundle.folder, file) for file in bundle.files_of_engine("onnx")]
    return ways


def time_ways(
    bundles: Mapping[str, Bundle], *, rounds: int, baseline: str | None, films: Path | None
) -> dict[str, Any]:
    """Times every way, cold and warm, and returns the content of `end-to-end.json`.

    Args:
        bundles: Name -> bundle, from `open_bundles`.
        rounds: Turns of each way. One more comes first and does not count, since it fills the caches of the disk.
        baseline: Name of the way by which the others are divided; the first by default.
        films: Folder of films; a phantom of 1,500 pixels by default.

    Raises:
        UsageError: No way has the name of the baseline.
        DataError, BundleError, MissingExtraError: One sentence each.
        PneumoError: A process failed.
    """
    ways = find_ways(bundles)
    base = baseline or ways[0].name
    if base not in {way.name for way in ways}:
        known = ", ".join(way.name for way in ways)
        raise UsageError(f"there is nothing called {base} to be the baseline: choose one of {known}")
    watch = Watch()
    turns = [(way, mode) for way in ways for mode in MODES]
    times: dict[tuple[str, str], list[dict[str, float]]] = {(way.name, mode): [] for way, mode in turns}
    peaks: dict[tuple[str, str], list[int | None]] = {key: [] for key in times}
    with _films(films) as (paths, films_name), progress("timing", (rounds + 1) * len(turns)) as advance:
        for i in range(rounds + 1):
            for place, (way, mode) in enumerate(turns if i % 2 == 0 else turns[::-1]):
                # The same film for all ways of a round.
                parts, peak = _run_once(way, mode, paths[i % len(paths) :] + paths[: i % len(paths)])
                if i > 0:
                    times[way.name, mode].append(parts)
                    peaks[way.name, mode].append(peak)
                advance(i * len(turns) + place + 1)
    totals = {key: [each["total"] for each in found] for key, found in times.items()}
    results = []
    for way, mode in turns:
        found = times[way.name, mode]
        results.append(
            {
                "name": way.name,
                "kind": way.kind,
                "mode": mode,
                "milliseconds": {part: spread([each[part] for each in found]) for part in found[0]},
                "ratio": ratios(totals[way.name, mode], totals[base, mode]),
                "peak_rss": spread(peaks[way.name, mode]),
            }
        )
    return header("end-to-end", describe_machine(), watch.finish()) | {
        "settings": {"rounds": rounds, "warm_repeats": REPEATS, "films": films_name},
        "baseline": base,
        "install": installed_sizes(),
        "results": results,
    }


@contextmanager
def _films(folder: Path | None) -> Iterator[tuple[list[Path], str]]:
    """Yields the films of a folder, or one phantom as large as a film in a hospital."""
    with sample_films(folder, FILMS) as (paths, name):
        if folder is not None:
            yield paths, name
            return
        with TemporaryDirectory(prefix="pneumo-bench-") as scratch, Image.open(paths[0]) as phantom:
            large = Path(scratch) / "film.jpeg"
            height = round(phantom.height * WIDTH / phantom.width)
            phantom.resize((WIDTH, height), Image.Resampling.BICUBIC).save(large, quality=90)
            yield [large], f"one grey JPEG of {WIDTH} x {height} pixels, enlarged from {PHANTOMS}"


def _run_once(way: Way, mode: str, films: Sequence[Path]) -> tuple[dict[str, float], int | None]:
    """Returns the parts and `total` in milliseconds, and the peak memory in bytes where it is known."""
    script = str(Path(__file__).with_name("oneshot.py"))
    # Compiled modules are kept, as in any installation, whatever this environment says.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own script and interpreter
        # -P: the folder of the script is no place to import from.
        [sys.executable, "-P", script, way.kind, mode, str(way.bundle), way.file, *map(str, films)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    total = (time.perf_counter() - start) * 1e3
    said = done.stderr.strip().splitlines() or [""]
    if done.returncode:
        raise PneumoError(f"{way.name} could not be timed: {said[-1][:300] or 'its process failed'}")
    found = json.loads(said[-1])
    parts: dict[str, float] = found["parts"]
    if mode == "warm":
        return parts | {"total": sum(parts.values())}, found["peak_rss"]
    python = total - sum(parts.values())
    if way.kind == "pneumo":
        known = json.loads(done.stdout.splitlines()[-1])["milliseconds"]
        after = parts.pop("answer")
        parts |= {"decode": known["read"], "infer": known["infer"], "print": after - known["read"] - known["infer"]}
    return {"python": python} | parts | {"total": total}, found["peak_rss"]


def installed_sizes() -> dict[str, int]:
    """Returns how many bytes pneumo's base install takes on this disk: each package, largest first, and their `total`.

    The packages are those that pneumo requires without an extra, and those that they require. Compiled modules count
    where pip lists them; the interpreter does not count.
    """
    sizes = {"pneumo": sum(file.stat().st_size for file in Path(pneumo_edge.__file__).parent.rglob("*.*"))}
    waiting = _needed_by("pneumo")
    while waiting:
        name = waiting.pop()
        try:
            files = [Path(str(file.locate())) for file in distribution(name).files or ()]
        except PackageNotFoundError:
            # It belongs to another system or an older Python.
            continue
        if name not in sizes:
            sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
            waiting += _needed_by(name)
    return {"total": sum(sizes.values())} | dict(sorted(sizes.items(), key=lambda pair: -pair[1]))


def _needed_by(package: str) -> list[str]:
    """Returns the normalised names of the packages that a package requires here without any extra."""
    needed = map(Requirement, requires(package) or ())
    here = [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [re.sub(r"[-_.]+", "-", name).lower() for name in here]


def end_to_end_table(record: Mapping[str, Any]) -> Table:
    """Returns the table of a record of `time_ways`."""
    rows = []
    for result in record["results"]:
        times = result["milliseconds"]
        total = times["total"]
        rows.append(
            (
                result["name"],
                result["mode"],
                f"{total['median']:.1f} ({total['low']:.1f}–{total['high']:.1f})",
                *(f"{times[part]['median']:.1f}" if part in times else "–" for part in PARTS),
                ratio_text(result["ratio"]),
                f"{result['peak_rss']['median'] / 2**20:.0f}" if result["peak_rss"] else "–",
            )
        )
    settings = record["settings"]
    notes = (
        *machine_notes(record["machine"], record["load"]),
        f"{settings['rounds']} rounds, medians in milliseconds, in brackets the lowest and highest; on "
        f"{settings['films']}",
        "cold: a fresh process, its files in the memory of the system; python is the start and the end of the "
        f"interpreter; warm: the median of {settings['warm_repeats']} films in a process that has loaded the model",
        "a name without a prefix: pneumo-infer, whose import holds the reading of its options, and whose print holds "
        "all that follows the inference; bare: a script that imports numpy, PIL and onnxruntime, decodes in full, "
        "checks nothing and prints a number",
        f"ratio: total against {record['baseline']} in the same mode; peak MiB: the most memory that the process held",
        "the base install takes "
        + ", ".join(f"{size / 1e6:.1f} MB {name}" for name, size in record["install"].items() if size >= LARGE),
    )
    columns = ("model", "mode", "total ms", *PARTS, "ratio", "peak MiB")
    return Table("From a file on disk to a verdict", columns, rows, notes)
