"""Asks the files of a bundle about the films of a place: the way that a device goes, through `Classifier`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_edge.bundle import ENGINE_OF_SUFFIX, Bundle
from pneumo_edge.calibrate.decoys import decoys
from pneumo_edge.calibrate.films import LocalFilm
from pneumo_edge.classifier import ENGINE_MODULES, UNUSUAL, Classifier, Failure, choose_file
from pneumo_edge.command_line import progress

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_NO_LIMIT = 1e9
ROOM, TAIL = 1.1, 0.99
"""The limit of novelty lies a tenth above the 99th percentile, as when a model is exported."""


@dataclass(frozen=True)
class FileAnswers:
    """What one file says of the films, (N,) each; NaN where a film cannot be read."""

    logits: Floats
    novelty: Floats
    contrast: Floats
    objections: tuple[tuple[str, ...], ...]
    """What speaks against each picture beside its novelty; () mostly."""
    errors: dict[int, str]
    """Film -> why it cannot be judged."""


def runnable(bundle: Bundle) -> list[str]:
    """Returns the files whose engine is installed here: first the one that `auto` would choose."""
    first = choose_file(bundle, "auto")
    return [first] + [
        name
        for name in bundle.description.files
        if name != first and find_spec(ENGINE_MODULES[ENGINE_OF_SUFFIX[Path(name).suffix]])
    ]


def ask(bundle: Bundle, file: str, films: Sequence[LocalFilm]) -> FileAnswers:
    """Judges all films with one file, whatever their novelty."""
    sources = ((film.path, film.name) for film in films)
    with _open(bundle, file) as classifier, progress(f"judging with {file}", len(films)) as show:
        return _gather(classifier.predict_batch(sources), len(films), show)


def _open(bundle: Bundle, file: str) -> Classifier:
    description = bundle.description
    files = {name: replace(each, novelty_limit=_NO_LIMIT) for name, each in description.files.items()}
    return Classifier(Bundle(bundle.folder, replace(description, files=files)), file, threads=None)


def _gather(answers: Iterable[Any], count: int, show: Any = lambda _: None) -> FileAnswers:
    numbers = np.full((3, count), np.nan)
    objections: list[tuple[str, ...]] = []
    errors: dict[int, str] = {}
    for i, answer in enumerate(answers):
        show(i + 1)
        if isinstance(answer, Failure):
            errors[i] = answer.error
            objections.append(())
            continue
        numbers[:, i] = answer.logit, answer.novelty, answer.contrast
        objections.append(() if answer.in_distribution else answer.warnings[:1])
    logits, novelty, contrasts = numbers
    return FileAnswers(logits, novelty, contrasts, tuple(objections), errors)


def withheld(answers: FileAnswers, limit: float) -> dict[int, str]:
    """Returns the films that get no verdict at a limit of novelty, and why."""
    found = {i: texts[0] for i, texts in enumerate(answers.objections) if texts}
    found |= {int(i): UNUSUAL for i in np.flatnonzero(answers.novelty > limit) if int(i) not in found}
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class NewLimit:
    """A limit of novelty that lets a clinic's own films in."""

    limit: float
    bounded: bool
    """Drawings that are no chest film keep it below what the films ask for."""


def accepting(bundle: Bundle, file: str, answers: FileAnswers) -> NewLimit:
    """Returns the limit for films as these: never lower than before, and below every drawing that was kept out before.

    Args:
        bundle: With the limit from before.
        file: Of the bundle.
        answers: Of the file to the films of the place.
    """
    before = bundle.description.files[file].novelty_limit
    good = np.array([not texts for texts in answers.objections]) & np.isfinite(answers.novelty)
    wanted = max(before, float(np.quantile(answers.novelty[good], TAIL)) * ROOM) if good.any() else before
    with _open(bundle, file) as classifier:
        drawn = _gather(classifier.predict_batch(_drawings()), len(list(decoys())))
    kept_out = drawn.novelty[[not texts for texts in drawn.objections] & (drawn.novelty > before)]
    ceiling = float(kept_out.min()) * (1 - 1e-9) if len(kept_out) else np.inf
    return NewLimit(min(wanted, max(ceiling, before)), wanted > ceiling)


def _drawings() -> Iterator[tuple[bytes, str]]:
    for name, picture in decoys():
        yield picture, name
