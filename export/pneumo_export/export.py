"""From a run to a bundle: the steps in the order in which they happen."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_edge.atomic import replacing_folder, write_json, write_text
from pneumo_edge.bundle import (
    FORMAT_VERSION,
    LABELS,
    Calibration,
    Description,
    InputContract,
    Interval,
    ModelFile,
    OperatingPoint,
    Provenance,
    Reference,
    Site,
    from_json,
    write_description,
)
from pneumo_edge.command_line import say
from pneumo_edge.errors import RunError, UsageError
from pneumo_edge.preprocess import Pixels
from pneumo_export.card import model_card
from pneumo_export.gate import SIZE_SHARE, Gate, accuracy_failures, too_few
from pneumo_export.quantise import Block, onnx_quantiser, tflite_quantiser
from pneumo_export.repair import JudgedFile, layers_of, repair
from pneumo_export.standard import standard_failures
from pneumo_train.perturb import perturb_all
from pneumo_train.run import Config, Films, Run, RunFilms
from pneumo_train.split import TEST, TRAIN, VALIDATION
from pneumo_train.surroundings import load_keras
from pneumo_train.train import versions

NOVELTY_FILMS = 1000
"""Training films of a site, at most, that the statistics of novelty are fitted on, each as it is and perturbed."""

ENOUGH_FOR_NOVELTY = 200
"""Training films that a site must have for statistics of its own."""

DEFAULT_POINT = "balanced"


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    bundle: Path | None
    """None where no file passed the gate."""
    refused: Path | None
    """Folder with the files that did not pass; None where all did."""
    parity: dict[str, Any]


def export_run(
    folder: Path,
    output: Path,
    *,
    data: Sequence[str] = (),
    int8: bool = True,
    formats: tuple[str, ...] = ("onnx", "tflite"),
    max_drop: float = 0.5,
    calibration_films: int = 256,
    force: bool = False,
    elsewhere: Mapping[str, Any] | None = None,
) -> Exported:
    """Converts, quantises, judges and packs.

    Args:
        folder: Folder of a finished run.
        output: Bundle folder to make.
        data: Places of the data sets, in the order of the run; by default where they were at training.
        int8: Make int8 files too.
        formats: "onnx", "tflite" or both.
        max_drop: See `pneumo_export.gate.Gate.max_drop`.
        calibration_films: Training films that give the ranges of int8, half of each class.
        force: Replace a bundle that is there.
        elsewhere: `sites.json` of pneumo-bench sites, for the card.

    Raises:
        RunError, UsageError, MissingExtraError: The message is one sentence, and nothing is written.
    """
    run = Run(folder, data)
    config, metrics = run.config, run.metrics
    if output.exists() and not force:
        raise UsageError(f"{output} exists already: replace it with --force, or give another --output")
    _ = run.model_path
    load_keras()
    from pneumo_export.graph import quantisable_blocks
    from pneumo_train.inference import outputs_of

    say("reading the films")
    films = run.films
    check_apart(films, folder)
    train, validation = films.part(TRAIN), films.part(VALIDATION)
    chosen = calibration_choice(train, calibration_films, config.seed) if int8 else []
    warning = too_few(validation.labels, metrics["validation"]["auc"])
    if warning:
        say(f"warning: {warning}")
    if int8 and len(chosen) < calibration_films - 1:
        say(f"warning: only {len(chosen)} training films, half of each class, set the int8 ranges")

    say("building the graph")
    model = _build(run, train)
    perturbed = perturb_all(validation.pixels, validation.paths)
    answers = outputs_of(run.explained_model, np.concatenate([validation.pixels, perturbed]), "judging Keras")
    gate = Gate(
        validation,
        perturbed,
        answers["logit"][:, 0],
        answers["heatmap"],
        Calibration(**metrics["calibration"]),
        metrics["operating_points"][DEFAULT_POINT]["threshold"],
        config.head,
        config.size,
        max_drop,
    )
    blocks = quantisable_blocks(model, config.backbone)
    files: dict[str, bytes] = {}
    records: dict[str, Any] = {}
    for form in formats:
        made = _make(form, model, blocks if int8 else [], train.pixels[chosen], gate)
        if form == "onnx":
            for file in made.values():
                file.record["failures"] += standard_failures(file.content, validation.pixels[0])
        files |= {name: file.content for name, file in made.items()}
        records |= {name: file.record for name, file in made.items()}
    refused = [name for name, record in records.items() if record["failures"]]
    parity = {
        "format_version": 1,
        "data": _describe_data(run),
        "verdict": "refused" if refused else "passed",
        "run": folder.name,
        "data_hash": config.data_hash,
        "warning": warning,
        "validation_films": len(validation.labels),
        "max_drop": max_drop,
        "threshold": gate.threshold,
        "calibration_films": [train.paths[i] for i in chosen],
        "versions": versions(),
        "files": records,
    }
    try:
        return _write(output, run, parity, files, refused, elsewhere)
    except OSError as error:
        # A full disk names no file.
        reason = f"{error.strerror or error}: nothing was exported, make room or give another --output"
        raise OSError(error.errno, reason, str(output)) from error


def _describe_data(run: Run) -> str:
    """Names the data set and the size of its films: a copy scaled down is not what it was copied from."""
    films, name = run.films, run.config.data_name
    readable = [f for f, part in zip(films.files, films.split, strict=True) if part in {TRAIN, VALIDATION, TEST}]
    sizes = []
    for film in readable[:: max(1, len(readable) // 200)]:
        with contextlib.suppress(OSError), Image.open(films.path_of(film)) as picture:
            sizes.append(picture.size)
    if not sizes:
        return name
    width, height = np.median(sizes, axis=0).astype(int)
    return f"{name}, films of {width} x {height} pixels in the median"


def _build(run: Run, train: Films) -> Any:
    """Returns the Keras model as it will run on devices."""
    from pneumo_export.graph import deployed, feature_model, fit_novelty, fold
    from pneumo_train.inference import outputs_of

    config, reference = run.config, run.model
    shapes = [tuple(tensor.shape[1:]) for tensor in (*reference.inputs, *reference.outputs)]
    if shapes != [(config.size, config.size, 1), (1,)]:
        raise RunError(f"{run.model_path} has other inputs or outputs than config.json says: train the run again")
    plain = fold(reference, config.backbone)
    features = feature_model(plain, config.backbone)
    # A Gaussian for each site: one around all of them would hold whatever lies between children and adults.
    novelty = []
    for members in _kinds(train.sites):
        some = np.sort(np.random.default_rng(config.seed).permutation(members)[:NOVELTY_FILMS])
        films = train.pixels[some]
        # Another scanner's exposure is no other kind of picture: perturbed films belong to what is known.
        films = np.concatenate([films, perturb_all(films, [train.paths[i] for i in some])])
        novelty.append(fit_novelty(outputs_of(features, films, "running Keras")["features"]))
    return deployed(plain, config.backbone, novelty)


def _kinds(sites: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    """Returns the positions of the films of each site; sites with too few films for themselves stand together."""
    counts = Counter(sites)
    large = [site for site, count in counts.items() if count >= ENOUGH_FOR_NOVELTY]
    kinds = [np.flatnonzero(np.array(sites) == site) for site in large]
    rest = np.flatnonzero(~np.isin(sites, large))
    return [*kinds, rest] if len(rest) else kinds


def check_apart(films: RunFilms, run: Path) -> None:
    """Checks that no film of training, which novelty and the ranges of int8 come from, will be judged.

    Raises:
        RunError: A film, a copy of it, or another film of its patient stands in validation; or it, or a copy, in test.
    """
    # Test folders may count their patients anew: there the same name need not be the same patient.
    judged: dict[tuple[str, str], str] = {}
    for part, whats in ((TEST, ("path", "bytes")), (VALIDATION, ("path", "bytes", "patient"))):
        for i in films.positions(part):
            judged |= {(what, identity): part for what, identity in _identities(films, i).items() if what in whats}
    for i in films.positions(TRAIN):
        for identity in _identities(films, i).items():
            if identity in judged:
                raise RunError(
                    f"{films.files[i].path} is in the training split of {run} and its {identity[0]} in "
                    f"{judged[identity]} too: films that set the int8 ranges must not be judged, so train it again"
                )


def _identities(films: RunFilms, i: int) -> dict[str, str]:
    file = films.files[i]
    patient = f"{'' if file.patient_known else file.site}:{file.patient}"
    return {"path": f"{file.source}:{file.path}", "bytes": films.prepared.sha256[i], "patient": patient}


def calibration_choice(train: Films, count: int, seed: int) -> list[int]:
    """Chooses training films for the ranges of int8, in a fixed order: half of each class, fewer of both if need be."""
    rng = np.random.default_rng(seed)
    of_class = [rng.permutation(np.flatnonzero(train.labels == label)) for label in range(len(LABELS))]
    each = min(count // 2, *map(len, of_class))
    return sorted(int(i) for mine in of_class for i in mine[:each])


def _make(form: str, model: Any, blocks: Sequence[Block], films: Pixels, gate: Gate) -> dict[str, JudgedFile]:
    """Makes and judges the files of one format.

    Args:
        form: "onnx" or "tflite".
        model: The graph from `_build`.
        blocks: Blocks to quantise; empty for no int8 file.
        films: Calibration films.
        gate: The gate of this export.

    Returns:
        File name -> file; fp32 comes before int8.
    """
    from pneumo_export.convert import to_onnx, to_tflite

    convert, quantiser = {"onnx": (to_onnx, onnx_quantiser), "tflite": (to_tflite, tflite_quantiser)}[form]
    plain, small = f"model.{form}", f"model.int8.{form}"
    say(f"converting to {form}")
    content = convert(model)
    record, fp32 = gate.judge_file(plain, "fp32", content, None, len(content))
    made = {plain: JudgedFile(content, record)}
    if not blocks:
        return made
    say(f"quantising {form} with {len(films)} training films")
    quantise = quantiser(content, films)

    def judge_file(quantised: bytes) -> dict[str, Any]:
        return gate.judge_file(small, "int8", quantised, fp32, len(content))[0]

    first = quantise(layers_of(blocks))
    file = JudgedFile(first, judge_file(first))
    if accuracy_failures(file.record, gate.max_drop):
        say(f"{small} fails: {'; '.join(file.record['failures'])}")
        file, report = repair(
            small,
            file,
            blocks,
            films,
            gate.open(plain, content),
            quantise,
            lambda quantised: gate.open(small, quantised),
            judge_file,
            max_drop=gate.max_drop,
            max_bytes=SIZE_SHARE[gate.head] * len(content),
        )
        file.record["repair"] = report
    return made | {small: file}


def _write(
    output: Path,
    run: Run,
    parity: dict[str, Any],
    files: dict[str, bytes],
    refused: list[str],
    elsewhere: Mapping[str, Any] | None,
) -> Exported:
    passed = {name: content for name, content in files.items() if name not in refused}
    aside = output.with_name(f"{output.name}-refused")
    if refused:
        with replacing_folder(aside) as folder:
            for name in refused:
                (folder / name).write_bytes(files[name])
            write_json(folder / "parity.json", parity)
    elif aside.exists():
        # Of an earlier export that this one replaces.
        shutil.rmtree(aside)
    if passed:
        description = _describe(run, parity, passed)
        with replacing_folder(output) as folder:
            for name, content in passed.items():
                (folder / name).write_bytes(content)
            write_description(folder, description)
            write_json(folder / "parity.json", parity)
            write_text(folder / "MODEL_CARD.md", model_card(description, run.config, run.metrics, parity, elsewhere))
    return Exported(output if passed else None, aside if refused else None, parity)


def _sites(config: Config, metrics: dict[str, Any]) -> tuple[Site, ...]:
    """Returns whom the model knows: the sites whose films it has learned from."""
    sites: tuple[Site, ...] = from_json(
        tuple[Site, ...],
        [
            {"name": name, "source": config.sources[name], "licence": config.licences.get(name, "")}
            # How much a site weighed in training is for the report.
            | {key: value for key, value in known.items() if key != "weighing"}
            | ({"ages": _stated(*config.ages[name])} if known["ages"] is None and name in config.ages else {})
            for name, known in metrics["sites"].items()
            if name != config.left_out
        ],
    )
    return sites


def _stated(low: float, high: float) -> dict[str, float | None]:
    """Returns ages that the user has stated of a site, as `pneumo_edge.bundle.Ages` holds them."""
    return {"low": low, "median": None, "high": high, "known": 0}


def _describe(run: Run, parity: dict[str, Any], files: dict[str, bytes]) -> Description:
    config, metrics = run.config, run.metrics
    return Description(
        format_version=FORMAT_VERSION,
        name=f"{config.backbone}-{config.head}-{config.size}",
        backbone=config.backbone,
        head=config.head,
        input=InputContract("image", "uint8", config.size, 1),
        labels=LABELS,
        calibration=Calibration(**metrics["calibration"]),
        operating_points={
            name: OperatingPoint(point["threshold"], Interval(**point["sensitivity"]), Interval(**point["specificity"]))
            for name, point in metrics["operating_points"].items()
        },
        default_operating_point=DEFAULT_POINT,
        provenance=Provenance(
            data=parity["data"],
            films=metrics["films"],
            weights=config.started_from,
            trained=config.trained,
            versions=config.versions | parity["versions"],
            sites=_sites(config, metrics),
            licence="; ".join(f"films of {site}: {terms}" for site, terms in config.licences.items()),
        ),
        files={
            name: ModelFile(
                parity["files"][name]["precision"],
                len(content),
                parity["files"][name]["sha256"],
                parity["files"][name]["novelty_limit"],
                region_threshold=parity["files"][name]["region_threshold"],
                reference=from_json(Reference | None, parity["files"][name]["reference"]),
            )
            for name, content in files.items()
        },
    )
