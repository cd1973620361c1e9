"""What `--data` names: folders in the layout of the Kaggle set, and manifests; from them the list of films."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pneumo_edge.bundle import LABELS
from pneumo_edge.errors import DataError
from pneumo_edge.preprocess import SUFFIXES
from pneumo_train.films import FilmFile
from pneumo_train.manifest import find_manifest, read_manifest

FOLDERS = ("train", "val", "test")

KAGGLE_PATIENT = r"(person\d+)_|((?:NORMAL2-)?IM-\d+)|(?:BACTERIA|VIRUS|NORMAL)-(\d+)-"
"""`person12_bacteria_34.jpeg` is a film of person12, `IM-0115-0001.jpeg` one of the study IM-0115, and
`BACTERIA-1234567-0002.jpeg`, as the Mendeley release of the same set calls it, one of patient 1234567."""

_FEW_MATCH = 0.5
"""Where the patient rule fits a smaller share of the names than this, it was not made for them."""


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
            described |= dict.fromkeys({f.site for f in found}, _stated_source(root)) if _stated_source(root) else {}
        for site in sorted({film.site for film in found}):
            if site in given:
                raise DataError(
                    f"{given[site]} and {path} both hold films of a site named {site!r}: "
                    "name one of them with --data SITE=PATH"
                )
            given[site] = str(path)
        roots.append(root)
        films += [replace(film, source=number) for film in found]
        remarks += said
    terms: dict[str, str] = {}
    for site in given:
        stated = dict.fromkeys(film.licence for film in films if film.site == site and film.licence)
        if stated:
            terms[site] = "; ".join(stated)
    for option, texts, into in (("--source", sources, described), ("--licence", licences, terms)):
        for site, text in (texts or {}).items():
            if site not in given:
                raise DataError(f"{option} names the site {site!r}, and no film is of it: there are {', '.join(given)}")
            into[site] = text
    for label, name in enumerate(LABELS):
        if not any(f.label == label and (f.folder == "test") == (needed == "test") for f in films):
            where = " and ".join(str(root) for root in roots)
            raise DataError(f"{where} holds no {name} film in {needed}/: films of both classes are needed")
    # A site that nobody described is known by its name alone.
    described = {site: described.get(site, site) for site in given}
    return Gathered(tuple(roots), tuple(films), described, terms, tuple(remarks))


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
        f"{data} holds no {folder}/ folder and no films.csv: give the folder with {folder}/NORMAL and "
        f"{folder}/PNEUMONIA in it, or a manifest"
    )


def list_films(root: Path, folder: str, classes: Mapping[str, int], rule: re.Pattern[str], site: str) -> list[FilmFile]:
    """Lists the films of one folder of a data set in a fixed order; what archives leave behind is passed over.

    Raises:
        DataError: A name that no CSV file can hold.
    """
    films: list[FilmFile] = []
    for name, label in sorted(classes.items(), key=lambda item: (item[1], item[0])):
        for path in sorted((root / folder / name).rglob("*")):
            parts = path.relative_to(root).parts
            if _left_behind(parts) or path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            if not _writable("/".join(parts)):
                raise DataError(f"{str(path)!a} has a line break or bytes that are no UTF-8 in its name: rename it")
            films.append(FilmFile("/".join(parts), label, _patient(path, rule), folder, site))
    return films


def _films_of_folder(
    root: Path, classes: Mapping[str, int], rule: re.Pattern[str], site: str
) -> tuple[list[FilmFile], list[str]]:
    films = [film for folder in FOLDERS for film in list_films(root, folder, classes, rule, site)]
    unmatched = sum(rule.search(Path(film.path).name) is None for film in films)
    remarks = _unused(root, classes, films)
    if unmatched > (1 - _FEW_MATCH) * len(films):
        remarks.append(
            f"{root}: the patient rule fits {len(films) - unmatched} of {len(films)} file names, so each of the other "
            f"{unmatched} films counts as a patient of its own: if patients have several films, name them with "
            "--patient-regex"
        )
    return films, remarks


def _unused(root: Path, classes: Mapping[str, int], films: Sequence[FilmFile]) -> list[str]:
    """Returns a sentence for each kind of file that looks like a film and stands where nothing is read."""
    used = {film.path for film in films}
    counts: Counter[str] = Counter()
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if _left_behind(parts) or "/".join(parts) in used:
            continue
        if path.is_symlink() and path.is_dir():
            if any(film.startswith("/".join(parts) + "/") for film in used):
                continue
            counts[f"{'/'.join(parts)} is a link to a folder, and links are not followed: give the folder itself"] += 1
        elif path.is_file():
            counts[_why_unused(parts, path, classes)] += 1
    counts.pop("", None)
    return [f"{root}: not used: {count} x {why}" for why, count in sorted(counts.items())]


def _why_unused(parts: tuple[str, ...], path: Path, classes: Mapping[str, int]) -> str:
    """Returns why a file is not used; empty where it is no picture."""
    picture = path.suffix.lower() in SUFFIXES or (not path.suffix and _is_dicom(path))
    if not picture:
        return ""
    if len(parts) < 3 or parts[0] not in FOLDERS:
        known = ", ".join(f"{folder}/" for folder in FOLDERS)
        hint = ": rename validation/ to val/" if parts[0] == "validation" else ""
        return f"films in {parts[0]}/, which is none of {known}{hint}" if len(parts) > 1 else "films beside the folders"
    if parts[1] not in classes:
        return (
            f"films in {parts[0]}/{parts[1]}/, which is no class: take them with --label {parts[1]}=PNEUMONIA or NORMAL"
        )
    return f"DICOM files without a suffix in {parts[0]}/{parts[1]}/: name them *.dcm"


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


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
        raise DataError(f"the patient rule {patient_rule!r} is no regular expression ({error})") from None


def _patient(path: Path, rule: re.Pattern[str]) -> str:
    match = rule.search(path.name)
    if match is None:
        return path.stem
    # A rule that can match nothing would make one patient of all whom it does not fit.
    return next((group for group in match.groups() if group), match.group()) or path.stem


def _left_behind(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _writable(name: str) -> bool:
    # Python puts bytes of a file name that are no UTF-8 into lone surrogates.
    return not any(c in "\r\n" or "\ud800" <= c <= "\udfff" for c in name)
