"""The folder of a training run: its settings, and what stands in it.

config.json       every setting, the seed, versions, where the data lay and their hash
split.csv         path, label, patient, split, site, ... of every film
remarks.json      what was found and not used, what each site weighs, and each doubt
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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumo_edge.atomic import write_json, write_text
from pneumo_edge.bundle import from_json
from pneumo_edge.calibrate.platt import Labels
from pneumo_edge.errors import DataError, RunError
from pneumo_edge.preprocess import Pixels
from pneumo_train.films import FilmFile, PreparedFilms, index_hash, labels_of, prepare
from pneumo_train.sources import root_of
from pneumo_train.split import read_split

if TYPE_CHECKING:
    import keras

FORMAT_VERSION = 2

PREDICTIONS = ("split", "site", "path", "label", "logit", "probability")
"""Columns of `predictions.csv`."""

METRICS = (
    "films",
    "sites",
    "calibration",
    "operating_points",
    "validation",
    "validation_perturbed",
    "left_out",
    "test",
)
"""Keys of `metrics.json`."""


@dataclass(frozen=True)
class Config:
    """`config.json`: enough to make the run again."""

    format_version: int
    data: tuple[str, ...]
    """Folders and manifests as they were given, SITE= in front where a site was named; absolute."""
    sources: dict[str, str]
    """Site -> origin of its films in words, as the data or the user say; never guessed."""
    licences: dict[str, str]
    """Site -> terms of use of its films, as the data or the user say."""
    ages: dict[str, tuple[float, float]]
    """Site -> ages of the youngest and oldest patient in years, where the user stated them."""
    labels: dict[str, str]
    """Other names of classes: name -> NORMAL or PNEUMONIA."""
    left_out: str | None
    """Site that was left out of training; its films were measured at the end."""
    data_hash: str
    """SHA-256 over sites, paths, labels and contents."""
    patient_rule: str
    backbone: str
    head: str
    size: int
    weights: str
    """"imagenet", "none" or a file, as it was given."""
    started_from: str
    """Sentence on what was loaded into the backbone."""
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    balance: str
    """One of `pneumo_train.train.BALANCES`."""
    teachers: tuple[str, ...]
    """Runs whose models gave the targets, as they were given."""
    precision: str
    """Precision of training, as Keras calls it: "float32" or "mixed_bfloat16". The kept model is float32."""
    limit: int | None
    versions: dict[str, str]
    trained: str
    """Day, ISO 8601."""

    @property
    def data_name(self) -> str:
        """Name of the data in reports."""
        return "; ".join(dict.fromkeys(self.sources.values()))


def write_config(run: Path, config: Config) -> None:
    """Writes `config.json`."""
    write_json(run / "config.json", asdict(config))


def write_remarks(run: Path, remarks: Sequence[str], roots: Sequence[Path]) -> None:
    """Writes `remarks.json`: the sentences, without the folders in which the films lie, which are private."""
    kept = list(remarks)
    for root in roots:
        kept = [remark.replace(str(root), root.resolve().name) for remark in kept]
    write_json(run / "remarks.json", kept)


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
        """Path of each film, relative to its data set."""
        return [film.path for film in self.files]

    @property
    def patients(self) -> list[str]:
        """Patient of each film. A name that was read off a file is one patient within its site alone."""
        return [f"{'' if film.patient_known else film.site}:{film.patient}" for film in self.files]

    @property
    def sites(self) -> list[str]:
        """Site of each film."""
        return [film.site for film in self.files]


@dataclass(frozen=True)
class RunFilms:
    """All films of a run's data sets, and the use of each."""

    roots: tuple[Path, ...]
    """Folder of each data set, by `FilmFile.source`."""
    files: list[FilmFile]
    split: list[str]
    prepared: PreparedFilms

    def path_of(self, film: FilmFile) -> Path:
        """Returns the path of a film."""
        return self.roots[film.source] / film.path

    def positions(self, part: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Returns the positions in `files` of the films of a split."""
        return np.flatnonzero(np.array(self.split) == part)

    def part(self, part: str) -> Films:
        """Returns the films of a split, such as `pneumo_train.split.VALIDATION`."""
        chosen = self.positions(part)
        files = tuple(self.files[i] for i in chosen)
        return Films(files, self.prepared.pixels[chosen], labels_of(files))


class Run:
    """The folder of a run, opened: each of its files is read when it is first asked for, and once.

    Attributes:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path, data: Sequence[str] = ()) -> None:
        """Opens a run; reads nothing yet.

        Args:
            folder: Folder that `pneumo-train` wrote.
            data: Places of its data sets, in the order in which they were given; by default where they were at
                training.
        """
        self.folder = folder
        self._data = tuple(data)

    @cached_property
    def config(self) -> Config:
        """Settings of the run, from `config.json`.

        Raises:
            RunError: The folder is no run, is damaged, or was made by another version.
        """
        parsed = self._read_json("config.json")
        version = parsed.get("format_version")
        if version != FORMAT_VERSION:
            raise RunError(
                f"{self.folder} was made by another version of pneumo "
                f"(format {version!r}, this one has {FORMAT_VERSION}): train it again"
            )
        try:
            config: Config = from_json(Config, parsed)
        except ValueError as error:
            raise RunError(f"{self.folder / 'config.json'} is damaged ({error}): train it again") from None
        return config

    @property
    def is_finished(self) -> bool:
        """Whether the run has been trained and judged."""
        return (self.folder / "metrics.json").is_file()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Measures of the run, from `metrics.json`.

        Raises:
            RunError: The run has not been finished, or the file is damaged.
        """
        parsed = self._read_json("metrics.json")
        if set(parsed) != set(METRICS):
            raise RunError(f"{self.folder / 'metrics.json'} is damaged: train it again")
        return parsed

    @cached_property
    def predictions(self) -> list[dict[str, str]]:
        """Rows of `predictions.csv`.

        Raises:
            RunError: The file is missing or no text.
        """
        return read_rows(self.folder / "predictions.csv")

    def write_measures(self, predictions: Sequence[Mapping[str, Any]], metrics: dict[str, Any]) -> None:
        """Writes `predictions.csv` and `metrics.json`."""
        write_rows(self.folder / "predictions.csv", PREDICTIONS, predictions)
        write_json(self.folder / "metrics.json", metrics)
        # As they are read from the files, where a number has been rounded.
        for name in ("predictions", "metrics"):
            vars(self).pop(name, None)

    @property
    def remarks(self) -> list[str]:
        """Sentences of `remarks.json`; none where an earlier version wrote no such file.

        Raises:
            RunError: The file is damaged.
        """
        path = self.folder / "remarks.json"
        try:
            remarks = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError, OSError):
            remarks = None
        if not isinstance(remarks, list) or not all(isinstance(remark, str) for remark in remarks):
            raise RunError(f"{path} is damaged: train it again, or delete it")
        return remarks

    @cached_property
    def split(self) -> tuple[list[FilmFile], list[str]]:
        """All films, and what each is used for, as `split.csv` says.

        Raises:
            RunError: The file is missing or damaged.
        """
        return read_split(self.folder / "split.csv")

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """Folder of each data set, by `FilmFile.source`.

        Raises:
            RunError: A data set is not there.
        """
        places = self._data or self.config.data
        if len(places) != len(self.config.data):
            raise RunError(
                f"{self.folder} was trained on {len(self.config.data)} data sets, not {len(places)}: "
                "give each with --data"
            )
        try:
            return tuple(root_of(place) for place in places)
        except DataError:
            where = ", ".join(places)
            raise RunError(f"the films of {self.folder} are not in {where}: say where they are with --data") from None

    @cached_property
    def films(self) -> RunFilms:
        """All films, decoded at the run's size.

        Raises:
            RunError: Films are gone, or are not those that the run has seen.
        """
        files, split = self.split
        roots = self.roots
        missing = next((roots[f.source] / f.path for f in files if not (roots[f.source] / f.path).is_file()), None)
        if missing is not None:
            raise RunError(f"{missing}, a film of {self.folder}, is missing: say where the films are with --data")
        prepared = prepare(roots, files, self.config.size)
        if index_hash(files, prepared.sha256) != self.config.data_hash:
            where = ", ".join(str(root) for root in roots)
            raise RunError(
                f"the films in {where} are not those that {self.folder} has seen: give the right ones with --data"
            )
        return RunFilms(roots, files, split, prepared)

    @property
    def model_path(self) -> Path:
        """Path of the best model.

        Raises:
            RunError: There is none yet.
        """
        path = self.folder / "model.keras"
        if not path.is_file():
            raise RunError(f"{self.folder} holds no model.keras: finish it with pneumo-train --resume {self.folder}")
        return path

    @cached_property
    def model(self) -> keras.Model:
        """The best model, not compiled.

        Raises:
            RunError: There is none yet, or its file cannot be read.
        """
        return load_model(self.model_path)

    @cached_property
    def explained_model(self) -> keras.Model:
        """The best model with its heatmap, from `pneumo_train.explain`.

        Raises:
            RunError: There is none yet, or its file cannot be read.
        """
        from pneumo_train.explain import explained

        return explained(self.model)

    def _read_json(self, name: str) -> dict[str, Any]:
        if not self.folder.is_dir():
            raise RunError(f"{self.folder} is no folder: give the run that pneumo-train wrote")
        path = self.folder / name
        try:
            parsed = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            unfinished = (self.folder / "config.json").exists()
            remedy = f"finish it with pneumo-train --resume {self.folder}" if unfinished else "is it a run?"
            raise RunError(f"{self.folder} holds no {name}: {remedy}") from None
        except (ValueError, RecursionError, OSError):
            raise RunError(f"{path} is damaged: train it again") from None
        if not isinstance(parsed, dict):
            raise RunError(f"{path} is damaged: train it again")
        return parsed


def load_model(path: Path, *, compiled: bool = False) -> keras.Model:
    """Reads a .keras file.

    Raises:
        RunError: The file cannot be read.
    """
    import keras

    try:
        return keras.saving.load_model(path, compile=compiled)
    except Exception as error:
        raise RunError(f"{path} cannot be loaded ({type(error).__name__}): train the run again") from error


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
