"""From a folder of films to a finished run: the steps in the order in which they happen."""

from __future__ import annotations

import datetime
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumo_edge.atomic import write_json
from pneumo_edge.bundle import LABELS, Calibration
from pneumo_edge.command_line import progress, say
from pneumo_edge.errors import DataError, MissingExtraError, RunError, UsageError
from pneumo_edge.preprocess import Pixels
from pneumo_train.backbones import build_model, check_architecture, find_backbone, freeze
from pneumo_train.calibrate import Floats, choose_thresholds, fit_calibration, probabilities
from pneumo_train.films import KAGGLE_PATIENT, FilmFile, index_films, index_hash, labels_of, prepare
from pneumo_train.measure import measure
from pneumo_train.perturb import perturb_all
from pneumo_train.phantom import draw_phantoms
from pneumo_train.pretrained import check_weights, load_weights
from pneumo_train.run import (
    FORMAT_VERSION,
    Config,
    Films,
    RunFilms,
    load_films,
    model_path,
    read_config,
    read_metrics,
    read_rows,
    write_config,
    write_rows,
)
from pneumo_train.split import TEST, TRAIN, VALIDATION, read_split, split_films, write_split
from pneumo_train.surroundings import TRAINS, check_keras, check_path

if TYPE_CHECKING:
    import keras

BALANCES = ("weights", "sampling")
"""How the rarer class gets as much say as the other: heavier films, or more of them in an epoch."""

PATIENCE = 4
PHANTOMS = 600
KAGGLE_SET = "paultimothymooney/chest-xray-pneumonia"


def start_run(
    run: Path,
    *,
    data: str,
    backbone: str,
    head: str,
    weights: str,
    size: int | None,
    epochs: int | None,
    batch_size: int,
    learning_rate: float | None,
    seed: int,
    limit: int | None,
    balance: str = "weights",
    teachers: Sequence[Path] = (),
    mixed_precision: bool = False,
    patient_rule: str = KAGGLE_PATIENT,
    test: bool = False,
) -> None:
    """Finds the films, cuts the validation set, trains and writes the run.

    Args:
        run: Folder to make; must not exist.
        data: Folder in the Kaggle layout, or "kaggle", or "phantom".
        backbone, head, weights, size: See `pneumo_train.backbones`; size None is the backbone's default.
        epochs, batch_size, learning_rate, seed: Of the training; None is the backbone's default.
        limit: About so many films of training and validation together; None for all.
        balance: How the rarer class gets as much say: "weights" or "sampling".
        teachers: Finished runs whose models give the targets in place of the labels.
        mixed_precision: Multiply in bfloat16, which has the range of float32, so that no loss has to be scaled.
        patient_rule: Regular expression that finds the patient in a file name.
        test: Refuse data without a test split: `measure_test` is to follow.

    Raises:
        DataError, UsageError, MissingExtraError: One sentence each; no run folder is left behind.
    """
    side = find_backbone(backbone).default_size if size is None else size
    entry = check_architecture(backbone, head, side)
    check_weights(weights)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise UsageError(f"--learning-rate {learning_rate} teaches nothing: give a small positive one, such as 3e-4")
    if balance not in BALANCES:
        raise UsageError(f"there is no balance {balance!r}: choose {' or '.join(BALANCES)}")
    check_path(data, "--data")
    check_path(run, "--output")
    check_path(weights, "--weights")
    for teacher in teachers:
        check_path(teacher, "--teacher")
    if run.exists():
        raise UsageError(f"{run} exists already: go on with --resume {run}, or give another --output")
    _need_training_packages()
    folder, name = _locate(data, run.parent)
    root, files = index_films(folder, patient_rule)
    if test and {f.label for f in files if f.folder == TEST} != {0, 1}:
        raise DataError(f"{root} has no test split with both classes: leave out --test")
    # Built before the films are decoded, which may take long, and before anything is written.
    precision = "mixed_bfloat16" if mixed_precision else "float32"
    model, started_from = _build(backbone, head, side, weights, seed, precision)
    prepared = prepare(root, files, side)
    for message in prepared.errors.values():
        say(f"skipped: {message}")
    split = split_films(files, prepared, limit=limit)
    _check_teachers(teachers, files, split)
    counts = Counter(split)
    say(f"{root}: {len(files)} films: " + ", ".join(f"{n} {part}" for part, n in sorted(counts.items())))
    config = Config(
        format_version=FORMAT_VERSION,
        data=str(root.resolve()),
        data_name=name,
        data_hash=index_hash(files, prepared.sha256),
        patient_rule=patient_rule,
        backbone=backbone,
        head=head,
        size=side,
        weights=weights,
        started_from=started_from,
        epochs=entry.default_epochs if epochs is None else epochs,
        batch_size=batch_size,
        learning_rate=entry.learning_rate if learning_rate is None else learning_rate,
        seed=seed,
        balance=balance,
        teachers=tuple(str(teacher) for teacher in teachers),
        precision=precision,
        limit=limit,
        versions=versions(),
        trained=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    run.mkdir(parents=True)
    write_split(run / "split.csv", files, split)
    write_config(run, config)
    _train_and_report(run, config, lambda: model, resume=False)


def resume_run(run: Path) -> None:
    """Goes on with a run that was interrupted; does nothing to a finished one.

    Raises:
        RunError: The folder is no run, or its films are gone.
    """
    check_path(run, "--resume")
    config = read_config(run)
    check_path(config.data, "the films")
    _need_training_packages()
    if (run / "metrics.json").is_file():
        if not (run / "report.html").is_file():
            _report(run)
        say(f"{run} is finished already")
        return
    _train_and_report(
        run,
        config,
        lambda: _build(config.backbone, config.head, config.size, config.weights, config.seed, config.precision)[0],
        resume=True,
    )


def measure_test(run: Path) -> None:
    """Measures the test split of a finished run, and counts how often that has been done.

    Raises:
        RunError: The run is not finished, or its data set has no test split.
    """
    from pneumo_train.batches import logits
    from pneumo_train.report import write_report

    config, metrics = read_config(run), read_metrics(run)
    films = load_films(run, config)
    test = films.part(TEST)
    if set(test.labels.tolist()) != {0, 1}:
        raise RunError(f"{films.root} has no test split with both classes: --test has nothing to measure")
    scores = logits(_load(run), test.pixels)
    calibration = Calibration(**metrics["calibration"])
    probability = probabilities(scores, calibration)
    thresholds = {name: point["threshold"] for name, point in metrics["operating_points"].items()}
    times = (metrics["test"] or {"measured": 0})["measured"] + 1
    metrics["test"] = {"measured": times} | measure(test.labels, probability, test.patients, thresholds)
    predictions = [row for row in read_rows(run / "predictions.csv") if row["split"] != TEST]
    predictions += _prediction_rows(TEST, test, scores, probability)
    write_rows(run / "predictions.csv", PREDICTIONS, predictions)
    write_json(run / "metrics.json", metrics)
    write_report(run)


PREDICTIONS = ("split", "path", "label", "logit", "probability")


def _build(backbone: str, head: str, size: int, weights: str, seed: int, precision: str) -> tuple[keras.Model, str]:
    import keras

    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    try:
        model = build_model(backbone, head, size)
    finally:
        keras.config.set_dtype_policy("float32")
    report = load_weights(model, backbone, weights)
    freeze(model, backbone, report.loaded)
    say(f"weights: {report.summary()}")
    return model, report.summary()


def _check_teachers(teachers: Sequence[Path], files: Sequence[FilmFile], split: Sequence[str]) -> None:
    """Refuses a teacher that is not finished, or that has learned from films by which the student will be judged."""
    judging = {film.path for film, part in zip(files, split, strict=True) if part in {VALIDATION, TEST}}
    for teacher in teachers:
        read_metrics(teacher)
        model_path(teacher)
        learned = {film.path for film, part in zip(*read_split(teacher / "split.csv"), strict=True) if part == TRAIN}
        if learned & judging:
            raise UsageError(
                f"{teacher} has learned from {len(learned & judging)} of the films that this run would be judged by: "
                "give a teacher that was trained on the same data with the same --limit and --patient-regex"
            )


def _load(run: Path) -> keras.Model:
    import keras

    path = model_path(run)
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise RunError(f"{path} cannot be loaded ({type(error).__name__}): train {run} again") from error


def _train_and_report(run: Path, config: Config, build: Callable[[], keras.Model], *, resume: bool) -> None:
    from pneumo_train.batches import FitData
    from pneumo_train.fit import FitSettings, fit

    films = load_films(run, config)
    validation = films.part(VALIDATION)
    perturbed = perturb_all(validation.pixels, validation.paths)
    data = FitData(
        films=films.prepared.pixels,
        train=films.positions(TRAIN),
        labels=labels_of(films.files),
        validation=validation.pixels,
        perturbed=perturbed,
        validation_labels=validation.labels,
    )
    settings = FitSettings(
        config.epochs, config.batch_size, config.learning_rate, config.seed, PATIENCE, config.balance
    )
    teachers = [_load(Path(teacher)) for teacher in config.teachers]
    fit(run, settings, data, build, resume=resume, teachers=teachers)
    _evaluate(run, films, validation, perturbed)
    _report(run)


def _report(run: Path) -> None:
    from pneumo_train.report import write_report

    write_report(run)
    shutil.rmtree(run / "checkpoint", ignore_errors=True)


def _evaluate(run: Path, films: RunFilms, validation: Films, perturbed: Pixels) -> None:
    """Calibrates, chooses the operating points, and measures validation; writes predictions.csv and metrics.json."""
    from pneumo_train.batches import logits

    model = _load(run)
    clean, disturbed = logits(model, validation.pixels), logits(model, perturbed)
    labels = np.concatenate([validation.labels] * 2)
    pooled = np.concatenate([clean, disturbed])
    calibration = fit_calibration(labels, pooled)
    thresholds = choose_thresholds(labels, probabilities(pooled, calibration))
    p_clean, p_disturbed = probabilities(clean, calibration), probabilities(disturbed, calibration)
    pooled_measure = measure(labels, np.concatenate([p_clean, p_disturbed]), validation.patients * 2, thresholds)
    write_rows(
        run / "predictions.csv",
        PREDICTIONS,
        [
            *_prediction_rows(VALIDATION, validation, clean, p_clean),
            *_prediction_rows(f"{VALIDATION}_perturbed", validation, disturbed, p_disturbed),
        ],
    )
    write_json(
        run / "metrics.json",
        {
            "films": dict(Counter(f"{s}/{LABELS[f.label]}" for s, f in zip(films.split, films.files, strict=True))),
            "calibration": asdict(calibration),
            "operating_points": {
                name: {
                    "threshold": threshold,
                    **{
                        share: {k: pooled_measure["operating_points"][name][share][k] for k in ("value", "low", "high")}
                        for share in ("sensitivity", "specificity")
                    },
                }
                for name, threshold in thresholds.items()
            },
            "validation": measure(validation.labels, p_clean, validation.patients, thresholds),
            "validation_perturbed": measure(validation.labels, p_disturbed, validation.patients, thresholds),
            "test": None,
        },
    )


def _prediction_rows(part: str, films: Films, scores: Floats, probability: Floats) -> list[dict[str, Any]]:
    return [
        {"split": part, "path": path, "label": LABELS[label], "logit": f"{s:.6g}", "probability": f"{p:.6g}"}
        for path, label, s, p in zip(films.paths, films.labels, scores, probability, strict=True)
    ]


def _locate(data: str, runs: Path) -> tuple[Path, str]:
    """Returns the folder of the data and what reports call it."""
    if data == "phantom":
        folder = runs / "phantoms"
        with progress("drawing phantoms", PHANTOMS) as show:
            draw_phantoms(folder, films=PHANTOMS, progress=lambda done, _: show(done))
        say(f"phantoms: {folder}: synthetic drawings, no patients, never a substitute for real films")
        return folder, "phantoms (synthetic drawings, no real films)"
    if data == "kaggle":
        return _download(), "chest-xray-pneumonia (Kermany et al., Cell 2018)"
    return Path(data), Path(data).resolve().name


def _download() -> Path:
    try:
        import kagglehub
        import requests
    except ImportError:
        raise MissingExtraError("kagglehub", "train", "--data kaggle") from None
    say(f"downloading {KAGGLE_SET} with kagglehub")
    try:
        # kagglehub sets no time limit: where nobody answers it would wait for ever.
        requests.head("https://api.kaggle.com", timeout=10)
        return Path(kagglehub.dataset_download(KAGGLE_SET))
    except (requests.ConnectionError, requests.Timeout) as error:
        raise DataError(
            f"{KAGGLE_SET} could not be downloaded, since Kaggle does not answer: "
            "check the network, or download it by hand and give its folder to --data"
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{KAGGLE_SET} could not be downloaded ({reason[:200]}): "
            "check the network, or download it by hand and give its folder to --data"
        ) from error


def _need_training_packages() -> None:
    for module, package in (("keras", "tensorflow"), ("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise MissingExtraError(package, "train", "training")
    check_keras(TRAINS, "training")


def versions() -> dict[str, str]:
    """Returns package -> version of what shapes a model."""
    found = {}
    for package in ("pneumo", "keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
