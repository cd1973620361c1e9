"""How fast pneumo-train fine-tunes, against the usual way in Keras: same films, network, batch and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pneumo_bench.machine import KERAS_PACKAGES, PACKAGES, Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_bench.process import ask
from pneumo_bench.spread import ratios, spread
from pneumo_bench.training_worker import OURS, USUAL
from pneumo_edge.bundle import LABELS
from pneumo_edge.command_line import progress
from pneumo_edge.errors import DataError, MissingExtraError, PneumoError
from pneumo_train.backbones import check_architecture, find_backbone
from pneumo_train.films import FilmFile
from pneumo_train.sources import gather

READABLE = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png"})
"""Suffixes that `image_dataset_from_directory` reads."""


def time_both(
    data: Path,
    *,
    backbone: str,
    size: int | None,
    epochs: int,
    batch_size: int,
    films: int,
    rounds: int,
) -> dict[str, Any]:
    """Fine-tunes in both ways, in turns, and returns the content of `training.json`.

    Args:
        data: Folder in the layout of the Kaggle set; only training films are read.
        backbone: A key of `pneumo_train.backbones.BACKBONES`.
        size: S, side of the input in pixels; None is the backbone's default.
        epochs: Passes over the films.
        batch_size: Films in one step.
        films: Approximate number of training films, spread over both classes; 0 for all.
        rounds: Turns of each way.

    Raises:
        DataError, MissingExtraError, UsageError: One sentence each.
        PneumoError: A training failed.
    """
    side = find_backbone(backbone).default_size if size is None else size
    check_architecture(backbone, "gap", side)
    if find_spec("tensorflow") is None:
        raise MissingExtraError("tensorflow", "train", "pneumo-bench training")
    gathered = gather([str(data)])
    [root] = gathered.roots
    chosen = _spread([film for film in gathered.films if film.folder == "train"], films)
    job = {"backbone": backbone, "size": side, "batch_size": batch_size}
    ways = (OURS, USUAL)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    watch = Watch()
    with _linked(root, chosen) as folder, progress("training", rounds * len(ways)) as advance:
        for turn in range(rounds):
            for place, way in enumerate(ways if turn % 2 == 0 else ways[::-1]):
                # A cache of its own, or the films that another training has prepared would cost nothing.
                with TemporaryDirectory(prefix="pneumo-bench-") as cache:
                    given = ask(
                        "pneumo_bench.training_worker",
                        job | {"way": way, "data": str(folder), "epochs": epochs},
                        {"XDG_CACHE_HOME": cache},
                    )
                if "error" in given:
                    raise PneumoError(f"{way} could not be timed: {given['error']}")
                if given["films"] != len(chosen):
                    raise PneumoError(f"{way} has read {given['films']} films of {len(chosen)}: nothing to compare")
                seconds[way].append(given["seconds"])
                advance(turn * len(ways) + place + 1)
    results = []
    for way, taken in seconds.items():
        results.append(
            {
                "way": way,
                "epochs": epochs,
                "seconds": spread(taken),
                "films_per_second": spread([len(chosen) * epochs / each for each in taken]),
                # The films and epochs are the same, so the ratio of the speeds is that of the times, upside down.
                "ratio": ratios(seconds[USUAL], taken),
            }
        )
    return header("training", describe_machine(PACKAGES + KERAS_PACKAGES), watch.finish()) | {
        "settings": job | {"data": root.resolve().name, "films": len(chosen), "rounds": rounds},
        "baseline": USUAL,
        "results": results,
    }


def _spread(films: Sequence[FilmFile], count: int) -> list[FilmFile]:
    """Returns about `count` films that both ways can read, of both classes in proportion; all of them for 0.

    Raises:
        DataError: One class has none.
    """
    readable = [film for film in films if Path(film.path).suffix.lower() in READABLE]
    step = max(1.0, len(readable) / count) if count else 1.0
    chosen = [readable[int(i * step)] for i in range(int(len(readable) / step))]
    if {film.label for film in chosen} != set(range(len(LABELS))):
        raise DataError(
            f"no {' and '.join(LABELS)} films to train with that Keras can read: it takes {', '.join(sorted(READABLE))}"
        )
    return chosen


@contextmanager
def _linked(root: Path, films: Sequence[FilmFile]) -> Iterator[Path]:
    """Yields a folder in the layout of a data set with links to some films, so that both ways find the same ones."""
    with TemporaryDirectory(prefix="pneumo-bench-") as scratch:
        for i, film in enumerate(films):
            source = (root / film.path).resolve()
            link = Path(scratch) / "train" / LABELS[film.label] / f"{i:05}{source.suffix.lower()}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
        yield Path(scratch)


def training_table(record: Mapping[str, Any]) -> Table:
    """Returns the table of a record of `time_both`."""
    rows: list[tuple[str, ...]] = []
    for result in record["results"]:
        speed, taken, ratio = result["films_per_second"], result["seconds"], result["ratio"]
        rows.append(
            (
                result["way"],
                str(result["epochs"]),
                f"{speed['median']:.1f} ({speed['low']:.1f}–{speed['high']:.1f})",
                f"{taken['median']:.1f}",
                f"{ratio['median']:.2f}",
            )
        )
    settings = record["settings"]
    notes = (
        *machine_notes(record["machine"], record["load"]),
        f"{settings['backbone']} at {settings['size']} x {settings['size']}, random weights, batches of "
        f"{settings['batch_size']}; {settings['films']} training films of {settings['data']}; "
        f"rounds: {settings['rounds']}, medians, in brackets the lowest and highest",
        "counted: everything from the files on disk to the end of the last epoch (decoding, augmentation, steps, "
        "tracing; for pneumo-train also its checkpoints); films/s is films x epochs in that time; not counted: imports "
        "and the building of the network",
        "usual way: image_dataset_from_directory, films cached in memory after the first epoch, Keras augmentation "
        "layers in parallel, prefetch; gamma, noise, blur, resampling, JPEG, boxes and letters are pneumo-train's "
        "alone, which favours the usual way",
        f"ratio: films/s against the {record['baseline']} in the same round; more is faster",
    )
    return Table("Training", ("way", "epochs", "films/s", "seconds", "ratio"), rows, notes)
