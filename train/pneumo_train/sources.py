"""Lists the films of what `--data` names: folders in the layout of the Kaggle set, and manifests."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pneumo_edge.bundle import LABELS
from pneumo_edge.errors import DataError
from pneumo_edge.film_files import SUFFIXES, is_film_file, is_left_behind
from pneumo_train.films import FilmFile
from pneumo_train.manifest import BOXES, find_manifest, read_manifest, with_boxes

FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
"""Folder of a data set -> `FilmFile.folder`."""

KAGGLE_PATIENT = r"(person\d+)_|((?:NORMAL2-)?IM-\d+)|(?:BACTERIA|VIRUS|NORMAL)-(\d+)-"
"""`person12_bacteria_34.jpeg` is a film of person12, `IM-0115-0001.jpeg` one of the study IM-0115, and
`BACTERIA-1234567-0002.jpeg`, as the Mendeley release of the same set calls it, one of patient 1234567."""

_FEW_MATCH = 0.5
"""If the patient rule fits a smaller share of the names than this, it was not made for them."""


@dataclass(frozen=True)
class Gathered:
    """All films that were named, and what was found and is not used."""

    roots: tuple[Path, ...]
    """Folder that the paths of each data set are relative to."""
    films: tuple[FilmFile, ...]
    sources: dict[str, str]
    """Site -> where its films come from, in words; its name where nobody described it."""
    licences: dict[str, str]
    """Site -> terms of its films, as the manifest or the user states them."""
    remarks: tuple[str, ...]
    """One sentence for each kind of file that was found and is not used, and for each doubt."""


def gather(
    data: Sequence[str],
    *,
    patient_rule: str = KAGGLE_PATIENT,
    labels: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    licences: Mapping[str, str] | None = None,
    needed: str = "train",
) -> Gathered:
    """Lists the films of all data sets in a fixed order.

    Args:
        data: Each a folder or a manifest, or SITE=PATH to name the site; a manifest may have sites of its own.
        patient_rule: Regular expression searched for in the file names of folders; its first group that matched is
            the patient. A name that does not match is a patient of its own.
        labels: Other name of a class folder or label -> NORMAL or PNEUMONIA.
        sources, licences: Site -> where its films come from, in words, and their terms.
        needed: "train" or "test": the part that must have films of both classes.

    Raises:
        DataError: No films, a class without any, two data sets with one site, a site that is described but not there.
    """
    rule = _compiled(patient_rule)
    classes = _classes(labels or {})
    roots: list[Path] = []
    films: list[FilmFile] = []
    described: dict[str, str] = {}
    remarks: list[str] = []
    given: dict[str, str] = {}
    for number, text in enumerate(data):
        name, path = _named(text)
        manifest = find_manifest(path)
        if manifest is not None:
            found, said = read_manifest(manifest, classes, site=name)
            root = manifest.parent
        else:
            root = find_root(path, needed)
            found, said = _films_of_folder(root, classes, rule, name or root.resolve().name)
        stated = _stated_source(root)
        for site in dict.fromkeys(film.site for film in found):
            if site in given:
                raise DataError(
                    f"{given[site]} and {path} both hold films of a site named {site!r}: if they are of two sites, "
                    "name one with --data SITE=PATH, or in its column site; if of one, put them into one manifest"
                )
            given[site] = str(path)
            if stated:
                described[site] = stated
        roots.append(root)
        films += [replace(film, source=number) for film in found]
        remarks += said
    remarks += _doubts_about_names(films, data)
    terms = _stated_terms(films)
    for option, texts, into in (("--source", sources, described), ("--licence", licences, terms)):
        for site, text in (texts or {}).items():
            if site not in given:
                raise DataError(f"{option} names the site {site!r}, and no film is of it: there are {', '.join(given)}")
            into[site] = text
    present = {film.label for film in films if (film.folder == "test") == (needed == "test")}
    missing = next((name for label, name in enumerate(LABELS) if label not in present), None)
    if missing:
        where = " and ".join(str(root) for root in roots)
        unused = "".join(f"; {remark}" for remark in remarks)
        raise DataError(f"{where} holds no {missing} film in {needed}/: films of both classes are needed{unused}")
    # A site that nobody described is known by its name alone.
    described = {site: described.get(site, site) for site in given}
    return Gathered(tuple(roots), tuple(films), described, terms, tuple(remarks))


def _stated_terms(films: Sequence[FilmFile]) -> dict[str, str]:
    """Returns site -> terms of its films, where a manifest states some."""
    stated: dict[str, dict[str, None]] = {}
    for film in films:
        if film.licence:
            stated.setdefault(film.site, {})[film.licence] = None
    return {site: "; ".join(found) for site, found in stated.items()}


def _doubts_about_names(films: Sequence[FilmFile], data: Sequence[str]) -> list[str]:
    """Returns a sentence where two data sets have patients of one name."""
    at: dict[str, set[int]] = defaultdict(set)
    for film in films:
        if film.patient_known:
            at[film.patient].add(film.source)
    return [
        f"{count} patients stand by name in {' and in '.join(data[source] for source in sources)}, and count as the "
        "same ones: if they are not, give them other names"
        for sources, count in sorted(Counter(tuple(sorted(found)) for found in at.values() if len(found) > 1).items())
    ]


def root_of(text: str) -> Path:
    """Returns the folder that the paths of a data set are relative to; `text` as for `gather`.

    Raises:
        DataError: There is no such data set.
    """
    path = _named(text)[1]
    manifest = find_manifest(path)
    return find_root(path) if manifest is None else manifest.parent


def absolute(text: str) -> str:
    """Returns the same data set by its absolute path."""
    name, path = _named(text)
    return f"{name}={path.resolve()}" if name else str(path.resolve())


def find_root(data: Path, folder: str = "train") -> Path:
    """Returns the folder that holds `train/`, `val/` or `test/`; the download nests it in `chest_xray/`, often twice.

    Args:
        data: Folder to look in.
        folder: Folder that the error says is missing.

    Raises:
        DataError: There is no such folder.
    """
    if not data.is_dir():
        raise DataError(f"{data} is no folder: give the one that holds train/ and test/, or a manifest")
    root = data
    for _ in range(3):
        if any((root / name).is_dir() for name in FOLDERS):
            return root
        root /= "chest_xray"
    raise DataError(
        f"{data} holds no {folder}/ folder and no films.csv: give the folder with {folder}/NORMAL and "
        f"{folder}/PNEUMONIA in it, or a manifest"
    )


def _films_of_folder(
    root: Path, classes: Mapping[str, int], rule: re.Pattern[str], site: str
) -> tuple[list[FilmFile], list[str]]:
    """Lists the films of a data set in a fixed order, and says in a sentence for each kind what is not used.

    Raises:
        DataError: A name that no CSV file can hold; boxes that fit nothing.
    """
    films: list[FilmFile] = []
    unused: Counter[str] = Counter()
    for parts in _walk(root, classes, unused):
        path = root.joinpath(*parts)
        if _left_behind(parts) or not is_film_file(path):
            continue
        why = _why_unused(parts, path, classes)
        if why:
            unused[why] += 1
            continue
        if not _writable("/".join(parts)):
            raise DataError(f"{str(path)!a} has a line break or bytes that are no UTF-8 in its name: rename it")
        films.append(FilmFile("/".join(parts), classes[parts[1]], _patient(path, rule), FOLDERS[parts[0]], site))
    order = list(FOLDERS)
    films.sort(key=lambda f: (order.index(f.path.split("/")[0]), f.label, f.path.split("/")))
    remarks = [f"{root}: not used: {count} {why}" for why, count in sorted(unused.items())]
    remarks += _doubts_about_patients(root, films, rule)
    if (root / BOXES).is_file():
        films, said = with_boxes(films, root / BOXES, {})
        remarks += said
    return films, remarks


def _walk(root: Path, classes: Mapping[str, int], unused: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Yields the files of a data set by their path from its folder on; counts what it does not look into.

    Links to folders may lead in circles: those alone are followed that stand where a part or a class is expected.
    """

    def skip(error: OSError) -> None:
        place = os.fsdecode(error.filename)
        unused[f"folder that cannot be searched, {plain(place)}: {error.strerror}"] += 1

    for parent, folders, files in os.walk(root, onerror=skip, followlinks=True):
        above = Path(parent).relative_to(root).parts
        entered = []
        for name in folders:
            parts = (*above, name)
            expected = parts[0] in FOLDERS and (len(parts) == 1 or (len(parts) == 2 and name in classes))
            if _left_behind(parts):
                continue
            if expected or not Path(parent, name).is_symlink():
                entered.append(name)
            else:
                what = plain("/".join(parts))
                unused[f"link to a folder, {what}: links are not followed: put the folder in its place"] += 1
        folders[:] = entered
        yield from ((*above, name) for name in files)


def plain(text: str) -> str:
    """Returns a name as any terminal can show it."""
    return text if _writable(text) else ascii(text)[1:-1]


def _why_unused(parts: tuple[str, ...], path: Path, classes: Mapping[str, int]) -> str:
    """Returns why a film is not used, in words that follow a number; empty where it is used."""
    if len(parts) == 1:
        return "films beside the folders train/, val/ and test/"
    if parts[0] not in FOLDERS:
        return f"films in {plain(parts[0])}/, which is none of train/, val/ and test/"
    if len(parts) == 2:
        return f"films in {parts[0]}/ itself, which belong into {' or '.join(f'{name}/' for name in LABELS)}"
    if parts[1] not in classes:
        name = plain(parts[1])
        return f"films in {parts[0]}/{name}/, which is no class: take them with --label {name}=PNEUMONIA or NORMAL"
    return "" if path.is_file() else f"links in {parts[0]}/{parts[1]}/ that lead to no film: fetch what they link to"


def _doubts_about_patients(root: Path, films: Sequence[FilmFile], rule: re.Pattern[str]) -> list[str]:
    """Returns a sentence where the patient rule fits few of the names: it was not made for them."""
    fits = sum(_matched(film.path.rsplit("/", 1)[-1], rule) is not None for film in films)
    if fits >= _FEW_MATCH * len(films):
        return []
    return [
        f"{root}: the patient rule fits {fits} of {len(films)} file names: each of the other {len(films) - fits} films "
        "counts as a patient of its own, and a patient with several may stand in training and validation: say with "
        "--patient-regex how the names tell the patient"
    ]


def _named(text: str) -> tuple[str, Path]:
    """Splits SITE=PATH; a path that exists as it is may hold an equals sign."""
    name, equals, rest = text.partition("=")
    if equals and not Path(text).exists() and not set(name) & {"/", "\\"}:
        return name.strip(), Path(rest)
    return "", Path(text)


def _classes(labels: Mapping[str, str]) -> dict[str, int]:
    classes = {name: label for label, name in enumerate(LABELS)}
    for other, name in labels.items():
        if name not in LABELS:
            raise DataError(f"--label {other}={name}: a film is {' or '.join(LABELS)}")
        classes[other] = LABELS.index(name)
    return classes


def _stated_source(root: Path) -> str:
    """Returns where the films of a folder come from, if it says so itself: phantoms do."""
    for folder in (root, root.parent):
        path = folder / "PHANTOM.json"
        if path.is_file():
            try:
                stated = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return ""
            return str(stated.get("source", "")) if isinstance(stated, dict) else ""
    return ""


def _compiled(patient_rule: str) -> re.Pattern[str]:
    try:
        return re.compile(patient_rule)
    except re.error as error:
        raise DataError(
            f"--patient-regex {patient_rule!r} is no regular expression ({error}): mend it, or leave it out"
        ) from None


def _patient(path: Path, rule: re.Pattern[str]) -> str:
    # What is no suffix may tell films apart: "1.2.840.1" and "1.2.840.2".
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return _matched(path.name, rule) or stem


def _matched(name: str, rule: re.Pattern[str]) -> str | None:
    match = rule.search(name)
    # A rule that can match nothing would make one patient of all whom it does not fit.
    return match and (next((group for group in match.groups() if group), match.group()) or None)


def _left_behind(parts: Sequence[str]) -> bool:
    return any(is_left_behind(part) for part in parts)


def _writable(name: str) -> bool:
    # Python puts bytes of a file name that are no UTF-8 into lone surrogates.
    return not any(c in "\r\n" or "\ud800" <= c <= "\udfff" for c in name)
