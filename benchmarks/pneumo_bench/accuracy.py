"""How often each file of each bundle is right. Each film is decoded once for each size, then all files judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_bench.inputs import films_below
from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes, percent_text, share_text
from pneumo_bench.robustness import DISTURBANCES, disturb
from pneumo_edge.backends import Outputs, open_backend
from pneumo_edge.bundle import ENGINE_OF_SUFFIX, LABELS, Bundle
from pneumo_edge.calibrate.measure import weighted_auc
from pneumo_edge.calibrate.platt import Labels, probabilities
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import tracked
from pneumo_edge.errors import BundleError, DataError, ImageError, MissingExtraError
from pneumo_edge.plausibility import objections
from pneumo_edge.preprocess import Pixels, read_film
from pneumo_export.gate import mcnemar, run_backend
from pneumo_train.films import FilmFile, labels_of
from pneumo_train.pointing import SIZES, TOUCHED, measure_pointing
from pneumo_train.run import Films, Run
from pneumo_train.sites import measure_mean_of_sites, measure_sites, site_weights
from pneumo_train.sources import gather
from pneumo_train.split import TEST, VALIDATION

Flags = npt.NDArray[np.bool_]

MEAN = "mean over sites"


@dataclass(frozen=True)
class Split:
    """Films to be judged, not read yet."""

    name: str
    """"test" or "validation"."""
    roots: tuple[Path, ...]
    """Folders of the data sets; `FilmFile.source` is an index in it."""
    files: tuple[FilmFile, ...]


@dataclass(frozen=True)
class Decoded:
    """The films that could be read."""

    files: tuple[FilmFile, ...]
    labels: Labels
    pixels: dict[int, Pixels]
    """S -> uint8 (N, S, S)."""
    doubtful: dict[int, Flags]
    """S -> (N,): whether the runtime would withhold the verdict, whatever the model says."""
    errors: tuple[str, ...]
    """One sentence for each film that could not be read."""

    def at(self, size: int) -> Films:
        """Returns the films at one size."""
        return Films(self.files, self.pixels[size], self.labels)


def test_split(data: Sequence[str]) -> Split:
    """Returns the films of the test splits of data sets as `pneumo-train --data` takes them.

    Raises:
        DataError: There is no test split, or no films of both classes in it.
    """
    gathered = gather(data, needed=TEST)
    return Split(TEST, gathered.roots, tuple(film for film in gathered.films if film.folder == TEST))


def validation_split(run: Path, data: Sequence[str]) -> Split:
    """Returns the films that a run has held back for validation.

    Args:
        run: Folder of the run, as pneumo-train writes it.
        data: Places of its data sets now, in their order; those at the time of training by default.

    Raises:
        RunError: The folder is no run, or its films are gone.
    """
    opened = Run(run, data)
    held = tuple(film for film, part in zip(*opened.split, strict=True) if part == VALIDATION)
    return Split(VALIDATION, opened.roots, held)


def decode(split: Split, sizes: Sequence[int]) -> Decoded:
    """Reads every film once for each size, in parallel.

    Raises:
        DataError: None could be read.
    """

    def read(film: FilmFile) -> list[tuple[Pixels, bool]] | str:
        path = split.roots[film.source] / film.path
        try:
            data = path.read_bytes()
            found = [read_film(data, size, str(path)) for size in sizes]
        except (ImageError, OSError) as error:
            return str(error)
        return [(film.pixels[:, :, 0], bool(objections(film))) for film in found]

    with ThreadPoolExecutor(usable_cores()) as pool:
        answers = list(tracked(pool.map(read, split.files), "reading films", len(split.files)))
    whole = [(film, answer) for film, answer in zip(split.files, answers, strict=True) if not isinstance(answer, str)]
    files = tuple(film for film, _ in whole)
    if not files:
        where = ", ".join(str(root) for root in split.roots)
        raise DataError(f"none of the {len(split.files)} films in {where} can be read, such as {answers[0]}")
    return Decoded(
        files,
        labels_of(files),
        {size: np.stack([answer[i][0] for _, answer in whole]) for i, size in enumerate(sizes)},
        {size: np.array([answer[i][1] for _, answer in whole]) for i, size in enumerate(sizes)},
        tuple(answer for answer in answers if isinstance(answer, str)),
    )


def other_pictures(folder: Path) -> Split:
    """Returns the pictures of a folder that are no frontal chest films. The name of their subfolder is their kind.

    Raises:
        DataError: There are none.
    """
    found = films_below(folder)
    if not found:
        raise DataError(f"{folder} holds no pictures: give a folder of what is no frontal chest film to --not-chest")
    paths = [path.relative_to(folder) for path in found]
    kinds = [path.parts[0] if len(path.parts) > 1 else folder.resolve().name for path in paths]
    files = tuple(FilmFile(path.as_posix(), 0, path.name, "", kind) for path, kind in zip(paths, kinds, strict=True))
    return Split("other", (folder,), files)


def judge_all(bundles: Mapping[str, Bundle], split: Split, others: Split | None = None) -> dict[str, Any]:
    """Measures every file of every bundle and returns what `accuracy-SPLIT.json` holds.

    On validation films each file is also measured under every disturbance of `pneumo_bench.robustness`.

    Args:
        bundles: Name -> bundle.
        split: The films.
        others: Pictures that are no frontal chest films, from `other_pictures`.

    Raises:
        DataError: The films that could be read are not of both classes.
    """
    watch = Watch()
    sizes = sorted({bundle.description.input.size for bundle in bundles.values()})
    films = decode(split, sizes)
    if len(set(films.labels.tolist())) < len(LABELS):
        where = ", ".join(str(root) for root in split.roots)
        raise DataError(f"{where} has no {split.name} films of both classes, {' and '.join(LABELS)}")
    pictures = None if others is None else decode(others, sizes)
    results: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    first: Flags | None = None
    for bundle_name, bundle in bundles.items():
        for file in bundle.description.files:
            name = f"{bundle_name}/{file}"
            try:
                result, right = _judge(name, bundle, file, films, pictures, split.name == VALIDATION)
            except (BundleError, MissingExtraError) as error:
                missing.append({"name": name, "reason": str(error)})
                continue
            first = right if first is None else first
            lost, won = int(np.sum(first & ~right)), int(np.sum(right & ~first))
            result["flips"] = {"lost": lost, "won": won, "mcnemar_p": mcnemar(lost, won)}
            results.append(result)
    return header("accuracy", describe_machine(), watch.finish()) | {
        "settings": {
            "split": split.name,
            "films": len(films.files),
            "sites": list(dict.fromkeys(film.site for film in films.files)),
            "patients": len(set(films.at(sizes[0]).patients)),
            "unreadable": [*films.errors, *(pictures.errors if pictures else ())],
        },
        "results": results,
        "missing": missing,
    }


def _judge(
    name: str, bundle: Bundle, file: str, films: Decoded, pictures: Decoded | None, disturbed: bool
) -> tuple[dict[str, Any], Flags]:
    """Returns the results of one file, and (N,): whether each verdict is right."""
    description = bundle.description
    size, stated = description.input.size, description.files[file]
    backend = open_backend(ENGINE_OF_SUFFIX[Path(file).suffix], bundle.read_file(file), size, usable_cores(), name)
    point = description.default_operating_point
    threshold = description.operating_points[point].threshold
    judged = films.at(size)

    def run(pixels: Pixels, what: str) -> tuple[Outputs, npt.NDArray[np.float64], Flags]:
        outputs = run_backend(backend, pixels, what)
        if not np.isfinite(outputs.logit).all():
            raise BundleError(f"{name} answers what is no number: export it again")
        # Written so that NaN counts as novel.
        return (
            outputs,
            probabilities(outputs.logit, description.calibration),
            ~(outputs.novelty <= stated.novelty_limit),
        )

    outputs, p, far = run(judged.pixels, name)
    withheld = far | films.doubtful[size]
    clean = measure_sites(judged, outputs.logit, description.calibration, {point: threshold})
    places = np.array(judged.sites)
    boxes = [film.boxes for film in films.files]
    result = {
        "name": name,
        "precision": stated.precision,
        "size": size,
        "bytes": stated.bytes,
        "sha256": stated.sha256,
        "operating_point": point,
        "measures": clean,
        "withheld": float(np.mean(withheld)),
        "withheld_by_site": {site: float(np.mean(withheld[places == site])) for site in dict.fromkeys(judged.sites)},
        "pointing": measure_pointing(
            outputs.heatmap,
            boxes,
            judged.labels,
            p >= threshold,
            judged.patients,
            judged.sites,
            stated.region_threshold,
        ),
    }
    if pictures is not None:
        other, _, far = run(pictures.pixels[size], f"{name}, other pictures")
        result["not_chest"] = _other_pictures(pictures, far | pictures.doubtful[size], far, other, judged, outputs)
    if disturbed:
        # Each site weighs the same, in the losses too.
        before = measure_mean_of_sites(judged, p, {point: threshold})
        robustness = []
        for disturbance in DISTURBANCES:
            for strength in disturbance.strengths:
                pixels = disturb(judged.pixels, judged.paths, disturbance, strength)
                _, moved, far = run(pixels, f"{name}, {disturbance.name} {strength:g}")
                now = measure_mean_of_sites(judged, moved, {point: threshold})
                accuracy = _at(now, point)["accuracy"]
                robustness.append(
                    {
                        "disturbance": disturbance.name,
                        "unit": disturbance.unit,
                        "strength": strength,
                        "auc": now["auc"],
                        "auc_drop": before["auc"]["value"] - now["auc"]["value"],
                        "accuracy": accuracy,
                        "accuracy_drop": _at(before, point)["accuracy"]["value"] - accuracy["value"],
                        "novel": float(np.mean(far)),
                    }
                )
        result["robustness"] = robustness
    return result, (p >= threshold) == (films.labels == 1)


def _other_pictures(
    pictures: Decoded, withheld: Flags, novel: Flags, other: Outputs, films: Films, outputs: Outputs
) -> dict[str, Any]:
    """Returns how well pictures that are no frontal chest films can be told from films. Each site weighs the same.

    Returns:
        n; withheld: share that gets no verdict; novel: share beyond the limit of novelty alone; novelty_auc: chance
        that such a picture is more novel than a film; kinds: the same by folder.
    """
    kinds = np.array([file.site for file in pictures.files])
    weights = site_weights(films.sites)

    def told(chosen: Flags) -> dict[str, Any]:
        # NaN counts as most novel.
        strange = np.nan_to_num(np.concatenate([other.novelty[chosen], outputs.novelty]), nan=np.inf)
        is_other = np.repeat([1, 0], [int(chosen.sum()), len(weights)])
        area = weighted_auc(is_other, strange, np.concatenate([np.ones(int(chosen.sum())), weights])[np.newaxis])
        return {
            "n": int(chosen.sum()),
            "withheld": float(np.mean(withheld[chosen])),
            "novel": float(np.mean(novel[chosen])),
            "novelty_auc": float(area[0]),
        }

    return told(np.ones(len(kinds), bool)) | {"kinds": {str(kind): told(kinds == kind) for kind in np.unique(kinds)}}


def _at(measures: Mapping[str, Any], point: str) -> dict[str, Any]:
    found: dict[str, Any] = measures["operating_points"][point]
    return found


def accuracy_tables(record: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of a record of `judge_all`.

    There is one for all files; where they apply, one by site, one of heatmaps and one of other pictures; and for
    validation films one more for each file.
    """
    settings = record["settings"]
    several = len(settings["sites"]) > 1
    rows = []
    for result in record["results"]:
        measures, flips = result["measures"], result["flips"]
        fair = measures["mean"] if several and measures["mean"] else measures
        at = _at(fair, result["operating_point"])
        rows.append(
            (
                result["name"],
                f"{result['bytes'] / 1e6:.2f}",
                *(percent_text(at[key]) for key in ("accuracy", "sensitivity", "specificity")),
                *(share_text(fair[key]) for key in ("auc", "ece")),
                f"{result['withheld']:.1%}",
                f"{flips['lost']}/{flips['won']}",
                f"{flips['mcnemar_p']:.2g}",
            )
        )
    mean = f" in the {MEAN}, each of the same weight;" if several else ";"
    notes = [
        f"{settings['films']} {settings['split']} films of {settings['patients']} patients{mean} in brackets the 95 % "
        "interval, bootstrapped by patient; every film gets a verdict here, at the default operating point",
        "withheld: films on which pneumo-infer would give no verdict; lost/won: right verdicts against the first "
        "model, p by McNemar's exact test",
        machine_notes(record["machine"], record["load"])[0],
    ]
    notes += [f"not judged: {gap['name']}: {gap['reason']}" for gap in record["missing"]]
    notes += [f"not read: {error}" for error in settings["unreadable"]]
    columns = (
        "model", "MB", "accuracy", "sensitivity", "specificity", "AUC", "ECE", "withheld", "lost/won", "p",
    )  # fmt: skip
    tables = [Table(f"Accuracy on {settings['split']} films", columns, rows, tuple(notes))]
    if several:
        tables.append(_site_table(record))
    tables += [table for table in (_pointing_table(record), _normals_table(record), _other_table(record)) if table.rows]
    return tables + [_robustness_table(result) for result in record["results"] if "robustness" in result]


def _site_table(record: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for result in record["results"]:
        point, measures = result["operating_point"], result["measures"]
        for site, m in measures["sites"].items():
            own = m["own"] and _at(m["own"], "balanced")
            rows.append(
                (
                    result["name"],
                    site,
                    str(m["n"]),
                    *(percent_text(_at(m, point)[key]) for key in ("accuracy", "sensitivity", "specificity")),
                    *(share_text(m[key]) for key in ("auc", "ece")),
                    f"{result['withheld_by_site'][site]:.1%}",
                    f"{own['sensitivity']['value']:.1%} / {own['specificity']['value']:.1%}" if own else "–",
                )
            )
        for site, m in measures["one_class"].items():
            right = percent_text(m["right"][point])
            shares = ("–", right, "–") if m["label"] == LABELS[1] else ("–", "–", right)
            withheld = f"{result['withheld_by_site'][site]:.1%}"
            rows.append((result["name"], site, f"{m['n']} {m['label']}", *shares, "–", "–", withheld, "–"))
    columns = (
        "model", "site", "films", "accuracy", "sensitivity", "specificity", "AUC", "ECE", "withheld", "own fit",
    )  # fmt: skip
    note = (
        "one calibration and one threshold for all sites; own fit: sensitivity / specificity with those of the site's "
    )
    return Table("By site", columns, rows, (note + "own, cross-fitted by patient",))


def _pointing_table(record: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for result in record["results"]:
        for site, sizes in result["pointing"]["sites"].items():
            for size, m in sizes.items():
                rows.append(
                    (
                        result["name"],
                        site if size == "all" else f"{site}, {size}",
                        str(m["films"]),
                        *(percent_text(m[key]) if key in m else "–" for key in ("points", "mean_map_points")),
                        *(share_text(m[key]) if key in m else "–" for key in ("pixel_auc", "iou", "mean_map_iou")),
                        *(percent_text(m[key]) if key in m else "–" for key in ("touched", "evidence_outside")),
                        f"{m['boxes_cover']['value']:.1%}",
                    )
                )
    columns = (
        "model", "site", "films", "points into a box", "mean map", "pixel AUC", "IoU", "mean map's IoU", "boxes found",
        "evidence outside", "boxes cover",
    )  # fmt: skip
    sizes = "; ".join(f"{name}: boxes cover {low:.0%} to {min(high, 1):.0%}" for name, (low, high) in SIZES.items())
    notes = (
        "films with radiologists' boxes; mean map: one fixed map, the mean of all, its IoU at the threshold that suits "
        f"it best; boxes found: IoBB >= {TOUCHED:g}",
        sizes,
    )
    return Table("Heatmaps against boxes", columns, rows, notes)


def _normals_table(record: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            result["name"],
            site,
            str(m["films"]),
            percent_text(m["with_region"]),
            f"{m['regions_per_film']:.2f}",
            percent_text(m["with_region_if_all_were_shown"]),
        )
        for result in record["results"]
        for site, m in result["pointing"]["normals"].items()
    ]
    columns = ("model", "site", "normal films", "with a region", "regions a film", "if each film showed its own")
    return Table("Regions in films of normals", columns, rows, ("a region is shown where a film is called PNEUMONIA",))


def _other_table(record: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for result in record["results"]:
        told = result.get("not_chest")
        for kind, m in ({"all": told} | told["kinds"] if told else {}).items():
            area = f"{m['novelty_auc']:.4f}"
            rows.append((result["name"], kind, str(m["n"]), f"{m['withheld']:.1%}", f"{m['novel']:.1%}", area))
    columns = ("model", "pictures", "n", "withheld", "by novelty alone", "AUROC of novelty")
    note = "pictures that are no frontal chest films; AUROC against the films above, each site of the same weight"
    return Table("Other pictures", columns, rows, (note,))


def _robustness_table(result: Mapping[str, Any]) -> Table:
    rows = []
    for disturbance in DISTURBANCES:
        cells = [
            f"{found['strength']:g}: {found['auc_drop']:+.4f} {found['accuracy_drop'] * 100:+.1f}"
            for found in result["robustness"]
            if found["disturbance"] == disturbance.name
        ]
        rows.append((f"{disturbance.name} ({disturbance.unit})", *cells))
    columns = ("disturbance", "strength 1", "strength 2", "strength 3", "strength 4")
    note = "strength: what the AUC loses, and what the accuracy loses in percentage points; negative is a gain"
    return Table(f"{result['name']}: lost under a single disturbance", columns, rows, (note,))
