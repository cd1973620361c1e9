"""The films of training: what is known of each, and its pixels, decoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pneumo_edge.atomic import replacing_folder
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import tracked
from pneumo_edge.errors import ImageError
from pneumo_edge.plausibility import objections
from pneumo_edge.preprocess import VERSION, Pixels, read_film
from pneumo_train.surroundings import cache_folder

CACHE_VERSION = 2
"""Changes whenever a cache holds something else of the same films. 2: remarks too."""


class Box(NamedTuple):
    """Rectangle in which a radiologist saw an opacity: shares of width and height, origin at the top left."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class FilmFile:
    """One film of a data set."""

    path: str
    """Relative to its data set, with forward slashes."""
    label: int
    """0 NORMAL, 1 PNEUMONIA."""
    patient: str
    folder: str
    """"train", "val" or "test": where the data set has it, not what it is used for."""
    site: str = ""
    """Place where it was taken: as a manifest says, or the name of its data set."""
    source: int = 0
    """Position of its data set among those of the run."""
    patient_known: bool = False
    """The patient was stated, not read off the file's name: the same name is the same patient everywhere."""
    age: float | None = None
    """Years; None where not stated."""
    sex: str = ""
    view: str = ""
    licence: str = ""
    other: tuple[tuple[str, str], ...] = ()
    """Further columns of the manifest: name, value."""
    boxes: tuple[Box, ...] = ()
    """Around opacities; empty where none is known."""

    @property
    def key(self) -> tuple[int, str]:
        """Key by which the film differs from all others of the run."""
        return self.source, self.path


@dataclass(frozen=True)
class PreparedFilms:
    """Films as the model sees them, decoded once."""

    pixels: Pixels
    """uint8, (N, S, S), a read-only memory map; zeros where a film could not be read."""
    sha256: tuple[str, ...]
    """Hash of each file; empty where it could not be read."""
    errors: dict[int, str]
    """Position -> why that film could not be read."""
    remarks: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Position -> what was noticed while that film was read, and why it may be no film to judge: one sentence each."""


def prepare(roots: Sequence[Path], films: Sequence[FilmFile], size: int) -> PreparedFilms:
    """Decodes and squashes every film to `size` x `size`, in parallel, once; later calls read the cache.

    The cache is valid while paths, sizes and modification times of the files and the version of the preprocessing
    are the same. The arrays are those of `pneumo_edge.preprocess.read_film`, bit for bit.

    Args:
        roots: Folder of each data set, by `FilmFile.source`.
        films: Films to decode.
        size: Side of the result in pixels.
    """
    folder = cache_folder() / f"films-{size}-{_fingerprint(roots, films, size)[:20]}"
    if not (folder / "films.json").is_file():
        with replacing_folder(folder) as temporary:
            _decode_all(roots, films, size, temporary)
    stated = json.loads((folder / "films.json").read_text(encoding="utf-8"))
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    errors = {int(i): error for i, error in stated["errors"].items()}
    remarks = {int(i): tuple(sentences) for i, sentences in stated["remarks"].items()}
    return PreparedFilms(pixels, tuple(stated["sha256"]), errors, remarks)


def _decode_all(roots: Sequence[Path], films: Sequence[FilmFile], size: int, folder: Path) -> None:
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (len(films), size, size))
    hashes: list[str] = [""] * len(films)
    errors: dict[int, str] = {}
    remarks: dict[int, tuple[str, ...]] = {}

    def decode(i: int) -> None:
        path = roots[films[i].source] / films[i].path
        try:
            data = path.read_bytes()
            film = read_film(data, size, str(path))
            pixels[i] = film.pixels[:, :, 0]
            hashes[i] = hashlib.sha256(data).hexdigest()
            if said := objections(film) + film.warnings:
                remarks[i] = said
        except (ImageError, OSError) as error:
            errors[i] = str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in tracked(pool.map(decode, range(len(films))), f"preparing films at {size} x {size}", len(films)):
            pass
    pixels.flush()
    stated = {"sha256": hashes, "errors": errors, "remarks": remarks}
    (folder / "films.json").write_text(json.dumps(stated), encoding="utf-8")


def _fingerprint(roots: Sequence[Path], films: Sequence[FilmFile], size: int) -> str:
    digest = hashlib.sha256(f"{VERSION}.{CACHE_VERSION} {size} {[str(root.resolve()) for root in roots]}".encode())
    for film in films:
        state = (roots[film.source] / film.path).stat()
        line = f"{film.source} {film.path} {state.st_size} {state.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def index_hash(films: Sequence[FilmFile], sha256: Sequence[str]) -> str:
    """Returns one SHA-256 over sites, paths, labels and contents: two runs with the same one saw the same data."""
    digest = hashlib.sha256()
    for film, content in zip(films, sha256, strict=True):
        digest.update(f"{film.site} {film.path} {film.label} {content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def labels_of(films: Sequence[FilmFile]) -> npt.NDArray[np.int64]:
    """Returns (N,) int64: 0 NORMAL, 1 PNEUMONIA."""
    return np.array([film.label for film in films], dtype=np.int64)
