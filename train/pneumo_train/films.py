"""The films of a data set: where they are, whose they are, and the uint8 arrays that training reads.

The layout is that of the Kaggle set `chest-xray-pneumonia`: `train/ val/ test/`, each with `NORMAL/ PNEUMONIA/`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumo_edge.atomic import replacing_folder
from pneumo_edge.bundle import LABELS
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import tracked
from pneumo_edge.errors import DataError, ImageError
from pneumo_edge.preprocess import SUFFIXES, VERSION, Pixels, read_film
from pneumo_train.surroundings import cache_folder

FOLDERS = ("train", "val", "test")

KAGGLE_PATIENT = r"(person\d+)_|((?:NORMAL2-)?IM-\d+)"
"""`person12_bacteria_34.jpeg` is a film of person12, `IM-0115-0001.jpeg` one of the study IM-0115."""


@dataclass(frozen=True)
class FilmFile:
    """One film of a data set."""

    path: str
    """Relative to the data set, with forward slashes."""
    label: int
    """0 NORMAL, 1 PNEUMONIA."""
    patient: str
    folder: str
    """"train", "val" or "test": where the data set has it, not what it is used for."""


def find_root(data: Path, folder: str = "train") -> Path:
    """Returns the folder that holds `train/`, or another; the download nests it in `chest_xray/`, sometimes twice.

    Raises:
        DataError: There is no such folder.
    """
    if not data.is_dir():
        raise DataError(f"{data} is no folder: give the one that holds train/ and test/")
    root = data
    for _ in range(3):
        if (root / folder).is_dir():
            return root
        root /= "chest_xray"
    raise DataError(
        f"{data} holds no {folder}/ folder: give the folder with {folder}/NORMAL and {folder}/PNEUMONIA in it"
    )


def index_films(data: Path, patient_rule: str = KAGGLE_PATIENT) -> tuple[Path, list[FilmFile]]:
    """Lists the films of a data set in a fixed order.

    What archives leave behind (`__MACOSX`, `._*`, `.DS_Store`) is passed over.

    Args:
        data: The folder, or one above it in the nesting of the Kaggle download.
        patient_rule: Regular expression searched for in the file name; its first group that matched is the patient.
            A name that does not match is a patient of its own.

    Returns:
        The folder that holds `train/`, and the films.

    Raises:
        DataError: No films, films of one class only, or a name that no CSV file can hold.
    """
    root = find_root(data)
    try:
        rule = re.compile(patient_rule)
    except re.error as error:
        raise DataError(f"the patient rule {patient_rule!r} is no regular expression ({error})") from None
    films = [film for folder in FOLDERS for film in list_films(root, folder, rule)]
    for label, name in enumerate(LABELS):
        if not any(f.label == label and f.folder == "train" for f in films):
            raise DataError(
                f"{root / 'train' / name} holds no films: training needs both classes, {' and '.join(LABELS)}"
            )
    return root, films


def list_films(root: Path, folder: str, patient_rule: re.Pattern[str]) -> list[FilmFile]:
    """Lists the films of one folder of a data set in a fixed order; what `index_films` says of names holds here.

    Raises:
        DataError: A name that no CSV file can hold.
    """
    films: list[FilmFile] = []
    for label, name in enumerate(LABELS):
        for path in sorted((root / folder / name).rglob("*")):
            parts = path.relative_to(root).parts
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
            if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            if not _writable("/".join(parts)):
                raise DataError(f"{str(path)!a} has a line break or bytes that are no UTF-8 in its name: rename it")
            films.append(FilmFile("/".join(parts), label, _patient(path, patient_rule), folder))
    return films


def _patient(path: Path, rule: re.Pattern[str]) -> str:
    match = rule.search(path.name)
    if match is None:
        return path.stem
    # A rule that can match nothing would make one patient of all whom it does not fit.
    return next((group for group in match.groups() if group), match.group()) or path.stem


def _writable(name: str) -> bool:
    # Python puts bytes of a file name that are no UTF-8 into lone surrogates.
    return not any(c in "\r\n" or "\ud800" <= c <= "\udfff" for c in name)


@dataclass(frozen=True)
class PreparedFilms:
    """Films as the model sees them, decoded once."""

    pixels: Pixels
    """uint8, (N, S, S), a read-only memory map; zeros where a film could not be read."""
    sha256: tuple[str, ...]
    """Of each file; empty where it could not be read."""
    errors: dict[int, str]
    """Position -> why that film could not be read."""


def prepare(root: Path, films: Sequence[FilmFile], size: int) -> PreparedFilms:
    """Decodes and squashes every film to `size` x `size`, in parallel, once; later calls read the cache.

    The cache is valid while paths, sizes and modification times of the files and the version of the preprocessing
    are the same. The arrays are those of `pneumo_edge.preprocess.read_film`, bit for bit.
    """
    folder = cache_folder() / f"films-{size}-{_fingerprint(root, films, size)[:20]}"
    if not (folder / "films.json").is_file():
        with replacing_folder(folder) as temporary:
            _decode_all(root, films, size, temporary)
    stated = json.loads((folder / "films.json").read_text(encoding="utf-8"))
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return PreparedFilms(pixels, tuple(stated["sha256"]), {int(k): v for k, v in stated["errors"].items()})


def _decode_all(root: Path, films: Sequence[FilmFile], size: int, folder: Path) -> None:
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (len(films), size, size))
    hashes, errors = [""] * len(films), {}

    def decode(i: int) -> None:
        path = root / films[i].path
        try:
            data = path.read_bytes()
            pixels[i] = read_film(data, size, str(path)).pixels[:, :, 0]
            hashes[i] = hashlib.sha256(data).hexdigest()
        except (ImageError, OSError) as error:
            errors[i] = str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in tracked(pool.map(decode, range(len(films))), f"preparing films at {size} x {size}", len(films)):
            pass
    pixels.flush()
    (folder / "films.json").write_text(json.dumps({"sha256": hashes, "errors": errors}), encoding="utf-8")


def _fingerprint(root: Path, films: Sequence[FilmFile], size: int) -> str:
    digest = hashlib.sha256(f"{VERSION} {size} {root.resolve()}".encode())
    for film in films:
        state = (root / film.path).stat()
        digest.update(f"{film.path} {state.st_size} {state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def index_hash(films: Sequence[FilmFile], sha256: Sequence[str]) -> str:
    """Returns one SHA-256 over paths, labels and contents: two runs with the same one saw the same data."""
    digest = hashlib.sha256()
    for film, content in zip(films, sha256, strict=True):
        digest.update(f"{film.path} {film.label} {content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def labels_of(films: Sequence[FilmFile]) -> npt.NDArray[np.int64]:
    """Returns (N,) int64: 0 NORMAL, 1 PNEUMONIA."""
    return np.array([film.label for film in films], dtype=np.int64)
