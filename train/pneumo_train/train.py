"""From a folder of films to a finished run: the steps in the order in which they happen."""

from __future__ import annotations

import datetime
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumo_edge.bundle import LABELS, Calibration
from pneumo_edge.calibrate.platt import Floats, choose_thresholds, fit_calibration, probabilities
from pneumo_edge.command_line import progress, say
from pneumo_edge.errors import DataError, MissingExtraError, RunError, UsageError
from pneumo_edge.preprocess import Pixels
from pneumo_edge.versions import installed_versions
from pneumo_train.backbones import build_model, check_architecture, find_backbone, freeze
from pneumo_train.films import FilmFile, index_hash, prepare
from pneumo_train.perturb import perturb_all
from pneumo_train.phantom import draw_phantoms
from pneumo_train.pointing import ONE_PLACE, choose_region_threshold, measure_pointing
from pneumo_train.pretrained import check_weights, load_weights
from pneumo_train.run import FORMAT_VERSION, Config, Films, Run, write_config, write_remarks
from pneumo_train.sites import SHARES, describe_sites, measure_mean_of_sites, measure_sites, probe_sites, site_weights
from pneumo_train.sources import KAGGLE_PATIENT, absolute, gather
from pneumo_train.split import (
    LEFT_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    describe_doubtful,
    describe_left_aside,
    split_films,
    write_split,
)
from pneumo_train.surroundings import TRAINS, check_keras, check_path, load_keras

if TYPE_CHECKING:
    import keras

BALANCES = ("weights", "sampling")
"""Ways to balance the classes: films of the rarer class weigh more, or are shown more often in an epoch."""

PATIENCE = 4
PHANTOMS = 600
KAGGLE_SET = "paultimothymooney/chest-xray-pneumonia"
KERMANY = "chest-xray-pneumonia (Kermany et al., Cell 2018)"


def start_run(
    folder: Path,
    *,
    data: Sequence[str],
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
    leave_out: str | None = None,
    labels: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    licences: Mapping[str, str] | None = None,
    ages: Mapping[str, tuple[float, float]] | None = None,
    test: bool = False,
) -> None:
    """Finds the films, cuts the validation set, trains and writes the run.

    Args:
        folder: Folder of the run, to make; must not exist.
        data: Folders in the Kaggle layout or manifests, each with SITE= in front or not; "kaggle"; "phantom".
        backbone, head, weights, size: See `pneumo_train.backbones`; size None is the backbone's default.
        epochs, batch_size, learning_rate, seed: Settings of the training loop; None is the backbone's default.
        limit: About how many films to use for training and validation together; None for all.
        balance: One of `BALANCES`.
        teachers: Finished runs whose models' predictions replace the labels.
        mixed_precision: Multiply in bfloat16. It has the range of float32, so that the loss needs no scaling.
        patient_rule: Regular expression that finds the patient in a file name.
        leave_out: Site whose films are only measured at the end.
        labels: Other names of classes: name -> NORMAL or PNEUMONIA.
        sources, licences: Site -> origin of its films, and their terms of use.
        ages: Site -> ages of the youngest and oldest patient in years, where the films do not state them.
        test: Measure the test split at the end; data without one are refused at once.

    Raises:
        DataError, UsageError, MissingExtraError: The message is one sentence, and no run folder is left behind.
    """
    side = find_backbone(backbone).default_size if size is None else size
    entry = check_architecture(backbone, head, side)
    check_weights(weights)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise UsageError(f"--learning-rate {learning_rate} teaches nothing: give a small positive one, such as 3e-4")
    if balance not in BALANCES:
        raise UsageError(f"there is no balance {balance!r}: choose {' or '.join(BALANCES)}")
    for each in data:
        check_path(absolute(each), "--data")
    check_path(folder, "--output")
    check_path(weights, "--weights")
    for teacher in teachers:
        check_path(teacher, "--teacher")
    if folder.exists():
        raise UsageError(f"{folder} exists already: go on with --resume {folder}, or give another --output")
    _need_training_packages()
    places, described = _locate(data, folder.parent)
    gathered = gather(
        places, patient_rule=patient_rule, labels=labels, sources=described | dict(sources or {}), licences=licences
    )
    files, roots = gathered.films, gathered.roots
    where = ", ".join(str(root) for root in roots)
    remarks = list(gathered.remarks)
    for remark in remarks:
        say(remark)
    if test and {f.label for f in files if f.folder == TEST} != {0, 1}:
        raise DataError(f"{where} has no test split with both classes: leave out --test")
    for option, site in (("--leave-out", leave_out), *(("--ages", site) for site in ages or {})):
        if site is not None and site not in {f.site for f in files}:
            known = ", ".join(dict.fromkeys(f.site for f in files))
            raise DataError(f"{option} names the site {site!r}, and no film is of it: there are {known}")
    taught_by = [Run(teacher) for teacher in teachers]
    for teacher_run in taught_by:
        _ = teacher_run.metrics, teacher_run.model_path  # that it is finished
    load_keras()
    # Built before the films are decoded, which may take long, and before anything is written.
    precision = "mixed_bfloat16" if mixed_precision else "float32"
    model, started_from = _build(backbone, head, side, weights, seed, precision)
    prepared = prepare(roots, files, side)
    for message in prepared.errors.values():
        say(f"skipped: {message}")
    split = split_films(files, prepared, leave_out=leave_out, limit=limit)
    _check_teachers(taught_by, files, split)
    said = [
        *describe_left_aside(files, split, prepared.sha256),
        *describe_doubtful(files, split, prepared.remarks),
        *_describe_weights(files, split),
    ]
    for remark in said:
        say(remark)
    remarks += said
    config = Config(
        format_version=FORMAT_VERSION,
        data=tuple(absolute(place) for place in places),
        sources=gathered.sources,
        licences=gathered.licences,
        ages=dict(ages or {}),
        labels=dict(labels or {}),
        left_out=leave_out,
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
    folder.mkdir(parents=True)
    write_split(folder / "split.csv", files, split)
    write_remarks(folder, remarks, roots)
    write_config(folder, config)
    # From here on as a run that is taken up again: what it reads is what it was told.
    run = Run(folder)
    _train(run, lambda: model, resume=False)
    _finish(run, test=test)


def resume_run(folder: Path, *, test: bool = False) -> None:
    """Goes on with a run that was interrupted; of a finished one, measures the test split or does nothing.

    Args:
        folder: Folder of the run.
        test: Measure the test split at the end.

    Raises:
        RunError: The folder is no run, its films are gone, or it has no test split to measure.
    """
    check_path(folder, "--resume")
    run = Run(folder)
    config = run.config
    for data in config.data:
        check_path(data, "the films")
    _need_training_packages()
    load_keras()
    if run.is_finished:
        say(f"{folder} is finished already")
    else:
        _train(
            run,
            lambda: _build(config.backbone, config.head, config.size, config.weights, config.seed, config.precision)[0],
            resume=True,
        )
    if test or not (folder / "report.html").is_file():
        _finish(run, test=test)


def _finish(run: Run, *, test: bool) -> None:
    """Measures the test split where that is asked for, and writes the report."""
    from pneumo_train.report import write_report

    if test:
        _measure_test(run)
    write_report(run)
    shutil.rmtree(run.folder / "checkpoint", ignore_errors=True)


def _measure_test(run: Run) -> None:
    """Measures the test split of a finished run, and counts how often that has been done.

    Raises:
        RunError: The data set has no test split, or the run was judged by an earlier version.
    """
    metrics, test = run.metrics, run.films.part(TEST)
    if set(test.labels.tolist()) != {0, 1}:
        raise RunError(f"the films of {run.folder} have no test split with both classes: --test has nothing to measure")
    if "pointing" not in metrics["validation"]:
        raise RunError(
            f"{run.folder} was judged by an earlier pneumo: delete its metrics.json and judge it anew with --resume"
        )
    scores, maps = _logits_and_maps(run, test.pixels)
    calibration = Calibration(**metrics["calibration"])
    thresholds = {name: point["threshold"] for name, point in metrics["operating_points"].items()}
    region = metrics["validation"]["pointing"]["region_threshold"]
    times = (metrics["test"] or {"measured": 0})["measured"] + 1
    measured = {"measured": times} | _judge(test, scores, maps, calibration, thresholds, region)
    predictions = [row for row in run.predictions if row["split"] != TEST]
    predictions += _prediction_rows(TEST, test, scores, probabilities(scores, calibration))
    run.write_measures(predictions, metrics | {"test": measured})


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


def _describe_weights(files: Sequence[FilmFile], split: Sequence[str]) -> list[str]:
    """Returns a sentence for each site: its films in each split, and what classes and site weigh in training."""
    from pneumo_train.batches import film_weights

    learned = [film for film, part in zip(files, split, strict=True) if part == TRAIN]
    weights = film_weights(learned)
    said = []
    for site in dict.fromkeys(film.site for film in files):
        parts = Counter(part for part, film in zip(split, files, strict=True) if film.site == site)
        counted = ", ".join(f"{n} {part}" for part, n in sorted(parts.items()))
        text = f"{site}: {sum(parts.values())} films: {counted}"
        here = [i for i, film in enumerate(learned) if film.site == site]
        if here:
            ill = np.array([learned[i].label for i in here])
            weight = float(weights[here].sum())
            text += (
                f"; in training {ill.mean():.0%} {LABELS[1]}, weighed {weights[here] @ ill / weight:.0%}; "
                f"the site weighs {weight / len(learned):.0%}"
            )
            if len(set(ill.tolist())) == 1:
                said.append(text)
                text = (
                    f"{site} has training films of one class alone: the site cannot be weighed so that it says nothing "
                    "about the class"
                )
        said.append(text)
    return said


def _check_teachers(teachers: Sequence[Run], files: Sequence[FilmFile], split: Sequence[str]) -> None:
    """Refuses a teacher that has learned from films by which the student will be judged."""
    judges = {VALIDATION, TEST, LEFT_OUT}
    judging = {(film.site, film.path) for film, part in zip(files, split, strict=True) if part in judges}
    for teacher in teachers:
        seen = zip(*teacher.split, strict=True)
        learned = {(film.site, film.path) for film, part in seen if part == TRAIN}
        if learned & judging:
            raise UsageError(
                f"{teacher.folder} has learned from {len(learned & judging)} of the films by which this run would be "
                "judged: give a teacher that was trained on the same data with the same --limit and --patient-regex"
            )


def _train(run: Run, build: Callable[[], keras.Model], *, resume: bool) -> None:
    """Trains and judges the model."""
    from pneumo_train.batches import FitData
    from pneumo_train.fit import FitSettings, fit

    config, films = run.config, run.films
    validation = films.part(VALIDATION)
    perturbed = perturb_all(validation.pixels, validation.paths)
    data = FitData(
        films=films.prepared.pixels,
        train=films.positions(TRAIN),
        files=films.files,
        validation=validation.pixels,
        perturbed=perturbed,
        validation_labels=validation.labels,
        validation_sites=validation.sites,
    )
    settings = FitSettings(
        config.epochs, config.batch_size, config.learning_rate, config.seed, PATIENCE, config.balance
    )
    teachers = [Run(Path(teacher)).model for teacher in config.teachers]
    # The model is written when all epochs are done: a run that has one is judged anew, and not trained again.
    if not (resume and (run.folder / "model.keras").is_file()):
        fit(run.folder, settings, data, build, resume=resume, teachers=teachers)
    _evaluate(run, validation, perturbed)


def _evaluate(run: Run, validation: Films, perturbed: Pixels) -> None:
    """Calibrates, chooses the operating points, and measures; writes predictions.csv and metrics.json."""
    films = run.films
    clean, maps = _logits_and_maps(run, validation.pixels)
    disturbed, disturbed_maps = _logits_and_maps(run, perturbed)
    labels = np.concatenate([validation.labels] * 2)
    pooled = np.concatenate([clean, disturbed])
    # Each site has the same say, however many films it has.
    weights = np.concatenate([site_weights(validation.sites)] * 2)
    calibration = fit_calibration(labels, pooled, weights)
    thresholds = choose_thresholds(labels, probabilities(pooled, calibration), weights)
    region = None
    if run.config.head == "local":
        region = choose_region_threshold(maps, [film.boxes for film in validation.files], validation.labels)
    both = Films(validation.files * 2, np.concatenate([validation.pixels, perturbed]), labels)
    pooled_measure = measure_mean_of_sites(both, probabilities(pooled, calibration), thresholds)
    p_clean, p_disturbed = probabilities(clean, calibration), probabilities(disturbed, calibration)
    rows = [
        *_prediction_rows(VALIDATION, validation, clean, p_clean),
        *_prediction_rows(f"{VALIDATION}_perturbed", validation, disturbed, p_disturbed),
    ]
    left_out, elsewhere = films.part(LEFT_OUT), None
    if left_out.files:
        scores, left_out_maps = _logits_and_maps(run, left_out.pixels)
        rows += _prediction_rows(LEFT_OUT, left_out, scores, probabilities(scores, calibration))
        elsewhere = _judge(left_out, scores, left_out_maps, calibration, thresholds, region)
    probe = probe_sites(
        films.part(TRAIN).files,
        validation.files,
        validation.labels,
        validation.patients,
        lambda: _features(run.model, validation.pixels),
    )
    measured = _judge(validation, clean, maps, calibration, thresholds, region)
    if (share := measured["pointing"]["one_place"]) is not None and share > ONE_PLACE:
        say(
            f"warning: in {share:.0%} of the validation films with pneumonia the strongest place of the heatmap is the "
            "same one: it does not point at the disease; train with another --seed"
        )
    run.write_measures(
        rows,
        {
            "films": dict(Counter(f"{s}/{LABELS[f.label]}" for s, f in zip(films.split, films.files, strict=True))),
            "sites": describe_sites(films),
            "calibration": asdict(calibration),
            "operating_points": {
                name: {
                    "threshold": threshold,
                    **{share: pooled_measure["operating_points"][name][share] for share in SHARES},
                }
                for name, threshold in thresholds.items()
            },
            "validation": measured | {"site_probe": probe},
            "validation_perturbed": _judge(validation, disturbed, disturbed_maps, calibration, thresholds, region),
            "left_out": elsewhere,
            "test": None,
        },
    )


def _logits_and_maps(run: Run, pixels: Pixels) -> tuple[Floats, Floats]:
    """Returns logits (N,) and heatmaps (N, h, w) of films uint8 (N, S, S)."""
    from pneumo_train.inference import outputs_of

    found = outputs_of(run.explained_model, pixels)
    return found["logit"][:, 0], found["heatmap"]


def _features(model: keras.Model, pixels: Pixels) -> Floats:
    """Returns (N, F): what the body of a network knows of each film, averaged over places."""
    import keras

    from pneumo_train.backbones import FEATURES
    from pneumo_train.inference import outputs_of

    features = keras.ops.mean(model.get_layer(FEATURES).output, axis=(1, 2))
    return outputs_of(keras.Model(model.input, {"features": features}), pixels)["features"]


def _judge(
    films: Films,
    scores: Floats,
    maps: Floats,
    calibration: Calibration,
    thresholds: Mapping[str, float],
    region: float | None,
) -> dict[str, Any]:
    """Measures verdicts and heatmaps of films: what `metrics.json` holds of a split."""
    called = probabilities(scores, calibration) >= thresholds["balanced"]
    boxes = [film.boxes for film in films.files]
    return measure_sites(films, scores, calibration, dict(thresholds)) | {
        "pointing": measure_pointing(maps, boxes, films.labels, called, films.patients, films.sites, region)
    }


def _prediction_rows(part: str, films: Films, scores: Floats, probability: Floats) -> list[dict[str, Any]]:
    return [
        {
            "split": part,
            "site": film.site,
            "path": film.path,
            "label": LABELS[film.label],
            "logit": f"{s:.6g}",
            "probability": f"{p:.6g}",
        }
        for film, s, p in zip(films.files, scores, probability, strict=True)
    ]


def _locate(data: Sequence[str], runs: Path) -> tuple[list[str], dict[str, str]]:
    """Returns the data sets as `gather` takes them, and what is known of those that pneumo brings itself."""
    places, described = [], {}
    for text in data:
        if text == "phantom":
            folder = runs / "phantoms"
            with progress("drawing phantoms", PHANTOMS) as show:
                draw_phantoms(folder, films=PHANTOMS, several_sites=True, progress=lambda done, _: show(done))
            say(f"phantoms: {folder}: synthetic drawings, no patients, never a substitute for real films")
            places.append(str(folder))
        elif text == "kaggle":
            places.append(f"kermany={_download()}")
            described["kermany"] = KERMANY
        else:
            places.append(text)
    return places, described


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
    return installed_versions(("pneumo", "keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy", "pillow"))
