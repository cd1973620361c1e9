"""Measures pneumo-archive: how well it uses two cores, what it costs, and how long millions of films would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pneumo_bench.archive_worker import ARCHIVE, BARE, LISTING
from pneumo_bench.end_to_end import WIDTH
from pneumo_bench.inputs import PHANTOMS
from pneumo_bench.machine import PACKAGES, Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_bench.process import ask
from pneumo_bench.spread import ratios, spread
from pneumo_edge.bundle import DEFAULT_BUNDLE
from pneumo_edge.command_line import progress
from pneumo_edge.errors import MissingExtraError, PneumoError, UsageError

DASK_PACKAGES = ("dask", "distributed", "pyarrow", "fsspec")

DRAWN = 200
"""Phantoms from which the films are made."""
IN_FOLDER = 1000
LARGE = 100
"""Films of `WIDTH` pixels, which is the size of films in a hospital."""

ONE, TWO = "one worker", "two workers"
WAYS = {"bare loop": (BARE, 1), ONE: (ARCHIVE, 1), TWO: (ARCHIVE, 2)}
BASELINE = "bare loop"

MILLIONS = (1, 10, 100)
CORES = 100


def time_archive(*, model: Path | None, films: int, paths: int, batch: int, rounds: int) -> dict[str, Any]:
    """Judges films in a bare loop and with one and two workers, in turns; returns the content of `archive.json`.

    Args:
        model: Bundle; the one that comes with pneumo by default.
        films: Number of films that each way judges. They are made anew.
        paths: Number of paths that are listed. The files are empty.
        batch: Films in one part.
        rounds: Turns of each way. Each round has its own share of the films.

    Raises:
        MissingExtraError: pneumo-archive or the drawing of phantoms is not installed.
        UsageError: A round has fewer than two parts for each of two workers.
        PneumoError: A process failed.
    """
    if find_spec("distributed") is None:
        raise MissingExtraError("distributed", "archive", "pneumo-bench archive")
    each = films // rounds
    if each < 4 * batch:
        raise UsageError(f"{each} films in parts of {batch} leave two workers nothing to share: give more films")
    job = {"model": str(model or DEFAULT_BUNDLE), "batch": batch}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    answers: dict[str, dict[str, Any]] = {}
    watch = Watch()
    with (
        TemporaryDirectory(prefix="pneumo-bench-") as scratch,
        progress("measuring", rounds * len(WAYS) + 2) as advance,
    ):
        folder = Path(scratch)
        sizes = [make_films(folder / "films" / str(turn), each, seed=turn) for turn in range(rounds)]
        for turn in range(rounds):
            for place, way in enumerate(WAYS if turn % 2 == 0 else [*WAYS][::-1]):
                kind, workers = WAYS[way]
                output = str(folder / f"{turn}-{place}")
                source = str(folder / "films" / str(turn))
                answers[way] = _ask(way, job, kind=kind, source=source, output=output, workers=workers)
                if answers[way]["films"] != each:
                    raise PneumoError(f"{way} has judged {answers[way]['films']} films of {each}: nothing to compare")
                seconds[way].append(answers[way]["seconds"])
                advance(turn * len(WAYS) + place + 1)
        # Parts of one film each: the driver has nothing to wait for.
        some = {
            "source": str(folder / "films" / "0" / "0000"),
            "batch": 1,
            "workers": 2,
            "output": str(folder / "parts"),
        }
        small = _ask("small parts", job | some, kind=ARCHIVE)
        large_size = _make_large(folder / "films", folder / "large")
        large = _ask("large films", job, kind=BARE, source=str(folder / "large"))
        with _many_paths(folder / "paths", paths):
            listing = _ask("listing", job, kind=LISTING, source=str(folder / "paths"), output=str(folder / "listing"))
        if listing["films"] != paths:
            raise PneumoError(f"the listing holds {listing['films']} films of {paths}")
    speeds = {way: [each / second for second in taken] for way, taken in seconds.items()}
    results = [
        {
            "name": way,
            "films_per_second": spread(speeds[way]),
            "ratio": ratios(speeds[way], speeds[BASELINE]),
            "ratio_to_one_worker": ratios(speeds[way], speeds[ONE]),
            "peak_rss": answers[way]["peak_rss"],
        }
        for way in WAYS
    ]
    found = {
        "overhead": spread([1 - other / own for own, other in zip(speeds[BASELINE], speeds[ONE], strict=True)]),
        "listing": listing | {"paths_per_second": paths / listing["seconds"]},
        "large_films_per_second": large["films"] / large["seconds"],
        "driver_ms_for_a_part": 1e3 * small["driver_seconds"] / small["parts"],
        "row_bytes": answers[ONE]["rows_bytes"] / each,
    }
    size = float(np.mean(sizes))
    kinds = {
        "phantom": (_median(results, ONE), size),
        # As much slower in pneumo-archive as phantoms are.
        f"{WIDTH} pixels": (found["large_films_per_second"] * _ratio(results), large_size),
    }
    return header("archive", describe_machine(PACKAGES + DASK_PACKAGES), watch.finish()) | {
        "settings": {
            "films": films, "paths": paths, "batch": batch, "rounds": rounds, "film_bytes": size, "from": PHANTOMS,
            "large_film_bytes": large_size,
        },
        "baseline": BASELINE,
        "results": results,
        **found,
        "extrapolation": [
            _extrapolate(kind, speed, film_bytes, millions * 1_000_000, batch, found)
            for kind, (speed, film_bytes) in kinds.items()
            for millions in MILLIONS
        ],
    }  # fmt: skip


def _ask(what: str, job: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    answer = ask("pneumo_bench.archive_worker", {**job, **more})
    if "error" in answer:
        raise PneumoError(f"{what} could not be measured: {answer['error']}")
    return answer


def _median(results: list[dict[str, Any]], name: str) -> float:
    [found] = [result for result in results if result["name"] == name]
    median: float = found["films_per_second"]["median"]
    return median


def _ratio(results: list[dict[str, Any]]) -> float:
    return _median(results, ONE) / _median(results, BASELINE)


def _extrapolate(
    kind: str, speed: float, film_bytes: float, films: int, batch: int, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Estimates what this number of films would take on `CORES` cores that are as fast as the one measured.

    The listing comes first. Then the cores judge, while the driver hands out parts; the slower of the two decides.
    """
    listing = films / found["listing"]["paths_per_second"] / 3600
    judging = films / speed / CORES / 3600
    driver = films / batch * found["driver_ms_for_a_part"] / 1e3 / 3600
    hours = {"the cores": judging, "the driver": driver, "the listing": listing}
    return {
        "kind": kind,
        "films": films,
        "hours": listing + max(judging, driver),
        "core_hours": films / speed / 3600,
        "listing_hours": listing,
        "judging_hours": judging,
        "driver_hours": driver,
        "read_bytes_per_second": CORES * speed * film_bytes,
        "rows_bytes": films * found["row_bytes"],
        "parts": -(-films // batch),
        "driver_bytes": found["listing"]["peak_rss"]
        + found["listing"]["bytes_for_a_film"] * max(0, films - found["listing"]["films"]),
        "bottleneck": max(hours, key=lambda name: hours[name]),
    }


# ------------------------------------------------------------------------------------------------------------ the films


def make_films(folder: Path, count: int, seed: int = 0) -> float:
    """Writes films, each a phantom with another crop, exposure, quality and side; returns their mean size in bytes.

    Args:
        folder: Folder for the subfolders of `IN_FOLDER` films.
        count: Number of films.
        seed: Seed of the phantoms and of what is changed.
    """
    from pneumo_train.phantom import draw_phantoms

    rng, total = np.random.default_rng(seed), 0
    with TemporaryDirectory(prefix="pneumo-bench-") as scratch, progress("making films", count) as advance:
        drawn = sorted(draw_phantoms(Path(scratch) / "phantoms", films=DRAWN, seed=seed).rglob("*.jpeg"))
        for i in range(count):
            with Image.open(drawn[i % len(drawn)]) as film:
                left, top = (int(side * rng.uniform(0, 0.08)) for side in film.size)
                made: Image.Image = film.crop((left, top, film.width - left, film.height - top))
            made = ImageOps.mirror(made) if rng.random() < 0.5 else made
            made = ImageEnhance.Brightness(made).enhance(rng.uniform(0.85, 1.15))
            path = folder / f"{i // IN_FOLDER:04}" / f"{i:07}.jpeg"
            path.parent.mkdir(parents=True, exist_ok=True)
            made.save(path, quality=int(rng.integers(80, 96)))
            total += path.stat().st_size
            advance(i + 1)
    return total / count


def _make_large(source: Path, folder: Path) -> float:
    """Enlarges some films to the size of films in a hospital; returns their mean size in bytes."""
    folder.mkdir()
    sizes = []
    for path in sorted(source.rglob("*.jpeg"))[:LARGE]:
        with Image.open(path) as film:
            height = round(film.height * WIDTH / film.width)
            film.resize((WIDTH, height), Image.Resampling.BICUBIC).save(folder / path.name, quality=90)
        sizes.append((folder / path.name).stat().st_size)
    return float(np.mean(sizes))


@contextmanager
def _many_paths(folder: Path, count: int) -> Iterator[None]:
    """Makes empty files, since a listing opens none."""
    for i in range(count):
        path = folder / f"{i // IN_FOLDER:06}" / f"film-{i:09}.png"
        if i % IN_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    yield


# ------------------------------------------------------------------------------------------------------------ the table


def archive_tables(record: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of a record of `time_archive`."""
    settings, listing = record["settings"], record["listing"]
    rows: list[tuple[str, ...]] = []
    for result in record["results"]:
        speed = result["films_per_second"]
        rows.append(
            (
                result["name"],
                f"{speed['median']:.1f} ({speed['low']:.1f}–{speed['high']:.1f})",
                f"{result['ratio']['median']:.3f}",
                f"{result['ratio_to_one_worker']['median']:.3f}",
                f"{result['peak_rss'] / 2**20:.0f}",
            )
        )
    overhead = record["overhead"]
    notes = (
        *machine_notes(record["machine"], record["load"]),
        f"{settings['films']:,} films, mutations of {settings['from']}, {settings['film_bytes'] / 1e3:.0f} kB in the "
        f"mean, shared out among {settings['rounds']} rounds; parts of {settings['batch']}; medians of the rounds, in "
        "brackets the lowest and highest",
        "bare loop: Classifier.predict_batch on one core, answers thrown away; workers: from the first part to the "
        "last, rows written and synced; not counted: starting the cluster, loading the bundle, the listing",
        f"overhead of one worker against the bare loop: {100 * overhead['median']:.1f} % of its films/s "
        f"({100 * overhead['low']:.1f}–{100 * overhead['high']:.1f})",
        "peak MiB: of the process that loops, and of the driver",
        f"a listing of {listing['films']:,} paths in folders of {IN_FOLDER}: {listing['seconds']:.1f} s, "
        f"{listing['seconds_again']:.1f} s in a second run; the driver peaks at {listing['peak_rss'] / 1e6:.0f} MB, "
        f"{listing['peak_rss_before'] / 1e6:.0f} MB of it before the listing",
        f"the driver, with scheduler and dashboard, works {record['driver_ms_for_a_part']:.1f} ms for a part, measured "
        "with parts of one film",
    )
    on_paper: list[tuple[str, ...]] = [
        (
            f"{each['films'] / 1e6:.0f} million, {each['kind']}",
            f"{each['hours']:.2f}",
            f"{each['core_hours']:,.0f}",
            f"{each['judging_hours']:.2f}",
            f"{each['listing_hours']:.2f}",
            f"{each['driver_hours']:.2f}",
            f"{each['read_bytes_per_second'] / 1e6:,.0f}",
            f"{each['rows_bytes'] / 1e9:.2f}",
            f"{each['driver_bytes'] / 1e9:.2f}",
            each["bottleneck"],
        )
        for each in record["extrapolation"]
    ]
    on_paper_notes = (
        f"not measured: worked out from the figures above for {CORES} cores as fast as the one that was measured; "
        "hours = listing, and after it judging or the driver, whichever takes longer",
        "the listing is that of a disk here: an object store that gives 1,000 names in 100 ms takes "
        "0.03 hours for a million; a manifest takes less than a disk",
        "read MB/s: what file server or object store must deliver to keep the cores busy; one that delivers less is "
        "the bottleneck",
        f"{WIDTH} pixels: {LARGE} films enlarged to that width in the bare loop, "
        f"{record['large_films_per_second']:.1f} films/s",
    )
    return [
        Table("pneumo-archive", ("way", "films/s", "to bare loop", "to one worker", "peak MiB"), rows, notes),
        Table(
            f"On {CORES} cores, on paper",
            ("films", "hours", "core-hours", "judging h", "listing h", "driver h", "read MB/s", "rows GB", "driver GB",
             "bottleneck"),
            on_paper,
            on_paper_notes,
        ),
    ]  # fmt: skip
