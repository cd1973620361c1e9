"""The folder of a training run: its settings, and what stands in it.

config.json       every setting, the seed, versions, where the data lay and their hash
split.csv         path, label, patient, split of every film
model.keras       the best model
history.csv       one row an epoch
predictions.csv   split, path, label, logit, probability
metrics.json      calibration, operating points, measures
report.html, *.png
checkpoint/       what `--resume` goes on from
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_edge.atomic import write_json, write_text
from pneumo_edge.bundle import from_json
from pneumo_edge.errors import DataError, RunError
from pneumo_edge.preprocess import Pixels
from pneumo_train.calibrate import Labels
from pneumo_train.films import FilmFile, PreparedFilms, find_root, index_hash, labels_of, prepare
from pneumo_train.split import read_split

FORMAT_VERSION = 1

METRICS = ("films", "calibration", "operating_points", "validation", "validation_perturbed", "test")
"""What `metrics.json` holds."""


@dataclass(frozen=True)
class Config:
    """`config.json`: enough to make the run again."""

    format_version: int
    data: str
    """Folder that holds `train/`, absolute."""
    data_name: str
    """What reports call the data."""
    data_hash: str
    """SHA-256 over paths, labels and contents."""
    patient_rule: str
    backbone: str
    head: str
    size: int
    weights: str
    """As given: "imagenet", "none" or a file."""
    started_from: str
    """What that loaded into the backbone: a sentence."""
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    balance: str
    """One of `pneumo_train.train.BALANCES`."""
    teachers: tuple[str, ...]
    """Runs whose models it learned from, as they were given."""
    precision: str
    """Of training, as Keras calls it: "float32" or "mixed_bfloat16". What is kept is float32."""
    limit: int | None
    versions: dict[str, str]
    trained: str
    """Day, ISO 8601."""


def write_config(run: Path, config: Config) -> None:
    """Writes `config.json`."""
    write_json(run / "config.json", asdict(config))


def read_config(run: Path) -> Config:
    """Reads `config.json`, strictly.

    Raises:
        RunError: The folder is no run, is damaged, or was made by another version.
    """
    parsed = _read_json(run, "config.json")
    version = parsed.get("format_version")
    if version != FORMAT_VERSION:
        raise RunError(
            f"{run} was made by another version of pneumo (format {version!r}, this one has {FORMAT_VERSION}): "
            "train it again"
        )
    try:
        config: Config = from_json(Config, parsed)
    except ValueError as error:
        raise RunError(f"{run / 'config.json'} is damaged ({error}): train it again") from None
    return config


def read_metrics(run: Path) -> dict[str, Any]:
    """Reads `metrics.json`.

    Raises:
        RunError: The run has not been finished, or the file is damaged.
    """
    parsed = _read_json(run, "metrics.json")
    if set(parsed) != set(METRICS):
        raise RunError(f"{run / 'metrics.json'} is damaged: train it again")
    return parsed


def model_path(run: Path) -> Path:
    """Returns the path of the best model.

    Raises:
        RunError: The run has none yet.
    """
    path = run / "model.keras"
    if not path.is_file():
        raise RunError(f"{run} holds no model.keras: finish it with pneumo-train --resume {run}")
    return path


@dataclass(frozen=True)
class Films:
    """The films of one split."""

    files: tuple[FilmFile, ...]
    pixels: Pixels
    """uint8 (N, S, S)."""
    labels: Labels
    """int64 (N,), 0 NORMAL, 1 PNEUMONIA."""

    @property
    def paths(self) -> list[str]:
        """Relative to the data set."""
        return [film.path for film in self.files]

    @property
    def patients(self) -> list[str]:
        """Whose film each is."""
        return [film.patient for film in self.files]


@dataclass(frozen=True)
class RunFilms:
    """All films of a run's data set and what each was used for."""

    root: Path
    files: list[FilmFile]
    split: list[str]
    prepared: PreparedFilms

    def positions(self, part: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns where the films of a split stand in `files`."""
        return np.flatnonzero(np.array(self.split) == part)

    def part(self, part: str) -> Films:
        """Returns the films of a split, such as `pneumo_train.split.VALIDATION`."""
        chosen = self.positions(part)
        files = tuple(self.files[i] for i in chosen)
        return Films(files, self.prepared.pixels[chosen], labels_of(files))


def load_films(run: Path, config: Config, data: Path | None = None) -> RunFilms:
    """Reads the split of a run and its films, decoded at the run's size.

    Args:
        run: The run's folder.
        config: What `read_config` gave for it.
        data: Where the films are now; where they were at training by default.

    Raises:
        RunError: The films are gone, or are not the ones that the run has seen.
    """
    files, split = read_split(run / "split.csv")
    try:
        root = find_root(data or Path(config.data))
    except DataError:
        raise RunError(f"the films of {run} are not in {data or config.data}: say where they are with --data") from None
    missing = next((f.path for f in files if not (root / f.path).is_file()), None)
    if missing is not None:
        raise RunError(f"{root / missing}, a film of {run}, is missing: say where the films are with --data")
    prepared = prepare(root, files, config.size)
    if index_hash(files, prepared.sha256) != config.data_hash:
        raise RunError(f"the films in {root} are not those that {run} has seen: give the right ones with --data")
    return RunFilms(root, files, split, prepared)


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file of a run.

    Raises:
        RunError: It is missing or no text.
    """
    try:
        with path.open(encoding="utf-8", newline="") as text:
            return list(csv.DictReader(text))
    except (OSError, ValueError, csv.Error):
        raise RunError(f"{path} is missing or damaged: train again") from None


def _read_json(run: Path, name: str) -> dict[str, Any]:
    if not run.is_dir():
        raise RunError(f"{run} is no folder: give the run that pneumo-train wrote")
    path = run / name
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        unfinished = f"finish it with pneumo-train --resume {run}" if (run / "config.json").exists() else "is it a run?"
        raise RunError(f"{run} holds no {name}: {unfinished}") from None
    except (ValueError, RecursionError, OSError):
        raise RunError(f"{path} is damaged: train it again") from None
    if not isinstance(parsed, dict):
        raise RunError(f"{path} is damaged: train it again")
    return parsed
