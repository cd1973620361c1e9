"""From a run to a bundle: the steps in the order in which they happen."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pneumo_edge.atomic import replacing_folder, write_json, write_text
from pneumo_edge.backends import open_backend
from pneumo_edge.bundle import (
    ENGINE_OF_SUFFIX,
    FORMAT_VERSION,
    LABELS,
    Calibration,
    Description,
    InputContract,
    Interval,
    ModelFile,
    OperatingPoint,
    Provenance,
    write_description,
)
from pneumo_edge.classifier import usable_cores
from pneumo_edge.command_line import say
from pneumo_edge.errors import RunError, UsageError
from pneumo_edge.preprocess import Pixels
from pneumo_export.card import model_card
from pneumo_export.gate import Candidate, Judged, judge, run_backend, too_few
from pneumo_export.quantise import float_share
from pneumo_train.perturb import perturb_all
from pneumo_train.run import Config, Films, RunFilms, load_films, model_path, read_config, read_metrics
from pneumo_train.split import TEST, TRAIN, VALIDATION
from pneumo_train.train import versions

NOVELTY_FILMS = 1000
"""Training films, at most, that the statistics of novelty are fitted on, each as it is and perturbed."""

DEFAULT_POINT = "balanced"

KAGGLE_NAME = r"person\d+_(bacteria|virus)_\d+(_\d+)?\.jpeg|(NORMAL2-)?IM-\d+-\d+(-\d+)?\.jpeg"


@dataclass(frozen=True)
class Exported:
    """What an export left behind."""

    bundle: Path | None
    """None where no file passed the gate."""
    refused: Path | None
    """Folder with the files that did not pass; None where all did."""
    parity: dict[str, Any]


def export_run(
    run: Path,
    output: Path,
    *,
    data: Path | None = None,
    int8: bool = True,
    formats: tuple[str, ...] = ("onnx", "tflite"),
    max_drop: float = 0.5,
    calibration_films: int = 256,
    force: bool = False,
) -> Exported:
    """Converts, quantises, judges and packs.

    Args:
        run: Folder of a finished run.
        output: Bundle folder to make.
        data: Where the films are now; where they were at training by default.
        int8: Make int8 files too.
        formats: "onnx", "tflite" or both.
        max_drop: See `pneumo_export.gate.judge`.
        calibration_films: Training films that give the ranges of int8, half of each class.
        force: Replace a bundle that is there.

    Raises:
        RunError, UsageError, MissingExtraError: One sentence each; nothing is written.
    """
    from pneumo_train.fit import logits

    config, metrics = read_config(run), read_metrics(run)
    if output.exists() and not force:
        raise UsageError(f"{output} exists already: replace it with --force, or give another --output")
    path = model_path(run)
    films = load_films(run, config, data)
    train, validation = films.part(TRAIN), films.part(VALIDATION)
    warning = too_few(validation.labels)
    if warning:
        say(f"warning: {warning}")

    say("building the graph")
    reference, model = _build(path, config, train)
    judged_films = np.concatenate([validation.pixels, perturb_all(validation.pixels, validation.paths)])
    keras_logits = logits(reference, judged_films)

    chosen = _calibration_choice(train, calibration_films, config.seed)
    files = _convert(model, config.backbone, train.pixels[chosen], formats, int8)

    calibration = Calibration(**metrics["calibration"])
    threshold = metrics["operating_points"][DEFAULT_POINT]["threshold"]
    records: dict[str, Any] = {}
    for name, (precision, content) in files.items():
        engine = ENGINE_OF_SUFFIX[Path(name).suffix]
        backend = open_backend(engine, content, config.size, usable_cores(), name)
        outputs = run_backend(backend, judged_films, name)
        found = Judged(outputs.logit, outputs.novelty)
        float_name = f"model{Path(name).suffix}"
        if precision == "fp32":
            fp32 = found
        records[name] = judge(
            Candidate(precision, len(content), float_share(content, name)),
            found,
            keras_logits,
            fp32,
            len(files[float_name][1]),
            validation.labels,
            calibration,
            threshold,
            config.head,
            max_drop,
        ) | {"sha256": hashlib.sha256(content).hexdigest()}
    refused = [name for name, record in records.items() if record["failures"]]
    parity = {
        "format_version": 1,
        "data": _describe_data(films, config),
        "verdict": "refused" if refused else "passed",
        "run": run.name,
        "data_hash": config.data_hash,
        "warning": warning,
        "validation_films": len(validation.labels),
        "max_drop": max_drop,
        "threshold": threshold,
        "calibration_films": [train.paths[i] for i in chosen] if int8 else [],
        "versions": versions(),
        "files": records,
    }
    return _write(output, config, metrics, parity, files, refused)


def _describe_data(films: RunFilms, config: Config) -> str:
    """Names the data set and the size of its films: a copy scaled down is not what it was copied from."""
    readable = [f for f, part in zip(films.files, films.split, strict=True) if part in {TRAIN, VALIDATION, TEST}]
    sizes = []
    for film in readable[:: max(1, len(readable) // 200)]:
        with contextlib.suppress(OSError), Image.open(films.root / film.path) as picture:
            sizes.append(picture.size)
    name = config.data_name
    if "phantom" not in name and all(re.match(KAGGLE_NAME, film.path.split("/")[-1]) for film in readable):
        name = "chest-xray-pneumonia (Kermany et al., Cell 2018, CC BY 4.0)"
    if not sizes:
        return name
    width, height = np.median(sizes, axis=0).astype(int)
    return f"{name}, films of {width} x {height} pixels in the median"


def _build(path: Path, config: Config, train: Films) -> tuple[Any, Any]:
    """Returns the Keras model as trained, and the same as it will run on devices."""
    import keras

    from pneumo_export.graph import deployed, feature_model, fit_novelty, fold, outputs_of

    try:
        reference = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise RunError(f"{path} cannot be loaded ({type(error).__name__}): train the run again") from error
    if reference.input.shape[1:] != (config.size, config.size, 1):
        raise RunError(f"{path} takes {reference.input.shape[1:]}, config.json says {config.size}: train the run again")
    plain = fold(reference, config.backbone)
    some = np.sort(np.random.default_rng(config.seed).permutation(len(train.labels))[:NOVELTY_FILMS])
    films = train.pixels[some]
    # Another scanner's exposure is no other kind of picture: perturbed films belong to what is known.
    films = np.concatenate([films, perturb_all(films, [train.paths[i] for i in some])])
    novelty = fit_novelty(outputs_of(feature_model(plain, config.backbone), films)["features"])
    return reference, deployed(plain, config.backbone, novelty)


def _calibration_choice(train: Films, count: int, seed: int) -> list[int]:
    """Chooses training films for the ranges of int8, half of each class, in a fixed order."""
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in range(len(LABELS)):
        mine = rng.permutation(np.flatnonzero(train.labels == label))
        chosen += mine[: count // 2].tolist()
    return sorted(chosen)


def _convert(
    model: Any, backbone: str, films: Pixels, formats: tuple[str, ...], int8: bool
) -> dict[str, tuple[str, bytes]]:
    """Returns file name -> precision and bytes; fp32 comes before int8 of its format."""
    from pneumo_export.convert import to_onnx, to_tflite
    from pneumo_export.graph import quantisable_layers
    from pneumo_export.quantise import quantise_onnx, quantise_tflite

    layers = quantisable_layers(model, backbone)
    files: dict[str, tuple[str, bytes]] = {}
    for name, convert, quantise in (("onnx", to_onnx, quantise_onnx), ("tflite", to_tflite, quantise_tflite)):
        if name not in formats:
            continue
        say(f"converting to {name}")
        content = convert(model)
        files[f"model.{name}"] = ("fp32", content)
        if int8:
            say(f"quantising {name} with {len(films)} training films")
            files[f"model.int8.{name}"] = ("int8", quantise(content, films, layers))
    return files


def _write(
    output: Path,
    config: Config,
    metrics: dict[str, Any],
    parity: dict[str, Any],
    files: dict[str, tuple[str, bytes]],
    refused: list[str],
) -> Exported:
    passed = {name: content for name, (_, content) in files.items() if name not in refused}
    aside = output.with_name(f"{output.name}-refused")
    if refused:
        with replacing_folder(aside) as folder:
            for name in refused:
                (folder / name).write_bytes(files[name][1])
            write_json(folder / "parity.json", parity)
    elif aside.exists():
        # Of an earlier export that this one replaces.
        shutil.rmtree(aside)
    if passed:
        description = _describe(config, metrics, parity, passed)
        with replacing_folder(output) as folder:
            for name, content in passed.items():
                (folder / name).write_bytes(content)
            write_description(folder, description)
            write_json(folder / "parity.json", parity)
            write_text(folder / "MODEL_CARD.md", model_card(description, config, metrics, parity))
    return Exported(output if passed else None, aside if refused else None, parity)


def _describe(config: Config, metrics: dict[str, Any], parity: dict[str, Any], files: dict[str, bytes]) -> Description:
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
        ),
        files={
            name: ModelFile(
                parity["files"][name]["precision"],
                len(content),
                parity["files"][name]["sha256"],
                parity["files"][name]["novelty_limit"],
            )
            for name, content in files.items()
        },
    )
