"""The training loop on a net of a few weights: it learns, keeps the best, and can be killed at any moment.

Runs are compared with runs of this very processor, step for step on the same films: nothing but the order in which
threads add can differ, 1e-7 in nine steps of 69 weights. What is asserted of learning itself has no such narrow margin.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from pneumo_edge.calibrate.measure import weighted_auc
from pneumo_edge.errors import RunError
from pneumo_train.films import Box, FilmFile

if TYPE_CHECKING:
    import keras

    from pneumo_train.batches import FitData
    from pneumo_train.fit import FitSettings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs the train extra")

SIZE = 32
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def fit() -> Any:
    """The module; it imports Keras."""
    from pneumo_train import fit

    return fit


def films(n: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Noise with a wide light band in every film of class 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4 == 0
    pixels = rng.normal(90, 25, (n, SIZE, SIZE))
    pixels[labels, 8:24] += 90
    return np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="module")
def data(fit: Any) -> FitData:
    """Forty films, a quarter of class 1: 24 to learn from (not the first), 16 to validate."""
    pixels, labels = films(40, 0)
    validation, validation_labels = films(16, 1)
    made: FitData = fit.FitData(
        films=pixels,
        train=np.arange(16, 40),
        files=[FilmFile(f"{i}.png", int(label), f"p{i}", "train", "here") for i, label in enumerate(labels)],
        validation=validation,
        perturbed=np.asarray(255 - (255 - validation.astype(int)) * 0.8, np.uint8),
        validation_labels=validation_labels,
        validation_sites=["here"] * len(validation),
    )
    return made


@pytest.fixture
def settings(fit: Any) -> FitSettings:
    made: FitSettings = fit.FitSettings(epochs=3, batch_size=8, learning_rate=0.05, seed=5, patience=99)
    return made


@pytest.fixture
def traced(fit: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with each call of the measure of a step: is it in a graph that TensorFlow traces?"""
    calls: list[bool] = []
    accuracy = fit.accuracy

    @functools.wraps(accuracy)
    def recorded(target: Any, logit: Any) -> Any:
        import tensorflow as tf

        calls.append(tf.inside_function())
        return accuracy(target, logit)

    monkeypatch.setattr(fit, "accuracy", recorded)
    return calls


def build(norm: bool = False) -> keras.Model:
    """A net of 69 weights, with what real ones have: dropout, a layer that is frozen, batch-norm on demand."""
    from keras import Model, layers

    image = layers.Input((SIZE, SIZE, 1), name="image")
    x = layers.Rescaling(1 / 127, -1.0)(image)
    x = layers.AveragePooling2D(8)(x)
    frozen = layers.Conv2D(2, 1, trainable=False, name="frozen")
    x = frozen(x)
    if norm:
        x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.Conv2D(8, 1, activation="relu")(x)
    x = layers.GlobalMaxPooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return Model(image, layers.Dense(1, name="logit")(x), name="tiny")


def never() -> keras.Model:
    raise AssertionError("a model was built though there is a checkpoint")


def weights_of(path: Path) -> list[Floats]:
    import keras

    return [np.asarray(w) for w in keras.saving.load_model(path).get_weights()]


def same(a: list[Floats], b: list[Floats], tolerance: float = 1e-5) -> bool:
    return all(np.allclose(x, y, atol=tolerance) for x, y in zip(a, b, strict=True))


Epochs = dict[int, dict[int, Floats]]


def seen(monkeypatch: pytest.MonkeyPatch, fit: Any) -> Epochs:
    """Records which films the loop reads: epoch, as the data set counts them -> batch -> augmented films."""
    epochs: Epochs = {}
    original = fit.Batches.make

    def recorded(self: Any, epoch: int, chosen: npt.NDArray[np.int64], *sides: Any) -> tuple[Floats, ...]:
        found: tuple[Floats, ...] = original(self, epoch, chosen, *sides)
        batch = next(i for i in range(3) if np.array_equal(self.order(epoch)[8 * i : 8 * i + 8], chosen))
        epochs.setdefault(epoch, {})[batch] = found[0]
        return found

    monkeypatch.setattr(fit.Batches, "make", recorded)
    return epochs


def trained_on(epochs: Epochs) -> list[Floats]:
    """The films of each epoch in order."""
    return [np.concatenate([epochs[number][i] for i in range(3)]) for number in sorted(epochs)]


def interrupt(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, when: Callable[..., bool]) -> None:
    """Lets a function raise KeyboardInterrupt, once `when` says so."""
    original = getattr(where, name)

    def stopped(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(where, name, stopped)


def interrupt_in_second_epoch(monkeypatch: pytest.MonkeyPatch, fit: Any) -> None:
    """Lets the run be stopped after the first step of its second epoch."""

    @contextmanager
    def stopped(name: str, _: int) -> Iterator[Callable[[int], None]]:
        def show(_: int) -> None:
            if name.startswith("epoch 2 "):
                raise KeyboardInterrupt

        yield show

    monkeypatch.setattr(fit, "progress", stopped)


class Whole(NamedTuple):
    """A run that nothing interrupted."""

    run: Path
    history: list[dict[str, Any]]
    films: list[Floats]


@pytest.fixture(scope="module")
def whole(fit: Any, data: FitData, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Three epochs, under a decay of weights so strong that a bias would show it."""
    run = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "WEIGHT_DECAY", 2.0)
        epochs = seen(patch, fit)
        settings = fit.FitSettings(epochs=3, batch_size=8, learning_rate=0.05, seed=5, patience=99)
        history = fit.fit(run, settings, data, build, resume=False)
        return Whole(run, history, trained_on(epochs))


# ------------------------------------------------------------------------------------------------------- learning


def test_an_easy_problem_is_learned(
    fit: Any, data: FitData, settings: FitSettings, tmp_path: Path, traced: list[bool]
) -> None:
    settings = replace(settings, epochs=12)
    history = fit.fit(tmp_path, settings, data, build, resume=False)
    assert sum(traced) == 1
    assert [record["epoch"] for record in history] == list(range(1, 13))
    losses = [record["loss"] for record in history]
    assert np.mean(losses[-4:]) < 0.93 * np.mean(losses[:4])
    assert history[-1]["val_auc"] > 0.95
    assert history[-1]["perturbed_auc"] > 0.95
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert history[-1]["learning_rate"] < 0.05 * settings.learning_rate < history[3]["learning_rate"]
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[0].split(",") == list(fit.HISTORY) == list(history[0])
    assert len(rows) == 13
    assert float(rows[-1].split(",")[1]) == history[-1]["loss"]


def test_the_measures_of_an_epoch_are_those_of_its_averaged_weights(fit: Any, data: FitData, whole: Whole) -> None:
    import keras

    from pneumo_train.inference import logits

    best = max(whole.history, key=lambda record: record["perturbed_auc"])
    model = keras.saving.load_model(whole.run / "model.keras")
    assert getattr(model, "optimizer", None) is None  # what is kept needs no optimiser and no code of ours
    for name, pixels in (("val", data.validation), ("perturbed", data.perturbed)):
        scores = logits(model, pixels)
        assert scores.dtype == np.float32
        y = data.validation_labels
        p = 1 / (1 + np.exp(-scores.astype(float)))
        assert best[f"{name}_loss"] == pytest.approx(-np.mean(np.where(y == 1, np.log(p), np.log(1 - p))), abs=1e-5)
        assert best[f"{name}_accuracy"] == np.mean((p >= 0.5) == (y == 1))
        assert best[f"{name}_auc"] == weighted_auc(y, scores, np.ones((1, len(y))))[0]


# --------------------------------------------------------------------------------------------- what is kept, when


def scripted(fit: Any, monkeypatch: pytest.MonkeyPatch, areas: list[float]) -> list[list[Floats]]:
    """Lets the perturbed AUC be what the script says; returns the weights that were judged, epoch by epoch."""
    judged: list[list[Floats]] = []

    def judge(model: keras.Model, _: FitData) -> dict[str, float]:
        judged.append([np.array(w) for w in model.get_weights()])
        return dict.fromkeys(fit.HISTORY[4:10], 0.5) | {"perturbed_auc": areas[len(judged) - 1]}

    monkeypatch.setattr(fit, "_judge", judge)
    return judged


def test_the_best_model_has_the_largest_perturbed_area(
    fit: Any, data: FitData, settings: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = scripted(fit, monkeypatch, [0.6, 0.9, 0.7, 0.9])
    history = fit.fit(tmp_path, replace(settings, epochs=4), data, build, resume=False)
    assert [record["perturbed_auc"] for record in history] == [0.6, 0.9, 0.7, 0.9]
    kept = weights_of(tmp_path / "model.keras")
    assert [same(kept, weights, 1e-7) for weights in judged] == [False, True, False, False]  # the first of equals
    # What is judged is an average over steps, not where training stands.
    assert not same(judged[3], weights_of(tmp_path / "checkpoint" / "epoch-4.keras"), 1e-4)
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == [
        "best-2.keras", "epoch-4.keras", "history.json",
    ]  # fmt: skip


def test_training_stops_when_nothing_has_got_better_for_long(
    fit: Any, data: FitData, settings: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = scripted(fit, monkeypatch, [0.6, 0.9, 0.7, 0.8, 0.95])
    settings = replace(settings, epochs=5, patience=2)
    assert len(fit.fit(tmp_path, settings, data, build, resume=False)) == 4
    assert len(fit.fit(tmp_path, settings, data, never, resume=True)) == 4  # nor does a resumed run go on
    assert len(judged) == 4


def test_batch_norm_that_learns_and_averaging_exclude_each_other(
    fit: Any, data: FitData, settings: FitSettings, tmp_path: Path
) -> None:
    fit.fit(tmp_path, replace(settings, epochs=1), data, lambda: build(norm=True), resume=False)
    kept, stands = (weights_of(tmp_path / name) for name in ("model.keras", "checkpoint/epoch-1.keras"))
    assert same(kept, stands, 0)


def test_what_is_kept_of_mixed_precision_computes_in_float32(
    fit: Any, data: FitData, settings: FitSettings, tmp_path: Path
) -> None:
    import keras

    def mixed() -> keras.Model:
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            return build()
        finally:
            keras.config.set_dtype_policy("float32")

    with pytest.MonkeyPatch.context() as patch:
        saved: list[keras.Model] = []
        real = fit._to_keep

        def recorded(model: keras.Model) -> keras.Model:
            saved.append(model)
            return real(model)

        patch.setattr(fit, "_to_keep", recorded)
        fit.fit(tmp_path, replace(settings, epochs=1), data, mixed, resume=False)
    kept = keras.saving.load_model(tmp_path / "model.keras")
    assert {layer.compute_dtype for layer in kept.layers} == {"float32"}
    assert not kept.get_layer("frozen").trainable
    pixels = data.validation[..., None].astype(np.float32)
    exact, rounded = kept.predict_on_batch(pixels), saved[0].predict_on_batch(pixels)
    assert not np.array_equal(exact, rounded)  # else nothing was mixed
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_training_that_diverges_is_a_sentence(fit: Any, data: FitData, settings: FitSettings, tmp_path: Path) -> None:
    with (
        np.errstate(all="ignore"),
        pytest.raises(RunError, match="diverged in epoch 1: start again with a smaller --learning-rate"),
    ):
        fit.fit(tmp_path, replace(settings, learning_rate=1e30), data, build, resume=False)
    assert not (tmp_path / "model.keras").exists()


def test_the_model_loads_where_nothing_of_ours_is_imported(whole: Whole) -> None:
    code = (
        "import sys, keras, numpy; model = keras.saving.load_model(sys.argv[1])\n"
        "print(model.predict_on_batch(numpy.zeros((2, 32, 32, 1), 'float32')).shape)\n"
        "assert not any(name.startswith('pneumo') for name in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(whole.run / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 1)"


# ------------------------------------------------------------------------------------------------------------ boxes


@pytest.fixture(scope="module")
def tiny_backbone() -> Iterator[None]:
    """A backbone of a few weights that the head `local` fits on; its first layer is frozen where it is loaded."""
    from keras import layers

    from pneumo_train.backbones import BACKBONES

    def build(image: keras.KerasTensor) -> keras.KerasTensor:
        x = layers.AveragePooling2D(4)(image)
        x = layers.Conv2D(6, 3, 4, padding="same", activation="relu", name="tiny_fine")(x)
        return layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="tiny_top")(x)

    entry = replace(
        BACKBONES["mobilenetv2"], name="tiny", build=build, frozen_layers="tiny_fine", fine_layer="tiny_fine"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", entry)
        yield


MAP_SIZE = 128


@pytest.fixture(scope="module")
def boxed(fit: Any) -> FitData:
    """64 films to learn from, half of class 1: a light square at any place, in a box; and eight to validate."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(90, 10, (72, MAP_SIZE, MAP_SIZE))
    files = []
    for i, film in enumerate(pixels):
        boxes: tuple[Box, ...] = ()
        if i % 2:
            x, y = rng.integers(0, MAP_SIZE - 48, 2)
            film[y : y + 48, x : x + 48] += 90
            boxes = (Box(*(float(side) / MAP_SIZE for side in (x, y, x + 48, y + 48))),)
        files.append(FilmFile(f"{i}.png", i % 2, f"p{i}", "train", "here", boxes=boxes if i < 64 else ()))
    drawn = np.clip(pixels, 0, 255).astype(np.uint8)
    made: FitData = fit.FitData(
        drawn, np.arange(64), files, drawn[64:], drawn[64:], np.arange(64, 72) % 2, ["here"] * 8
    )
    return made


def local(frozen: bool = False) -> keras.Model:
    from pneumo_train.backbones import build_model, freeze

    model = build_model("tiny", "local", MAP_SIZE)
    freeze(model, "tiny", ["tiny_fine"] if frozen else [])
    return model


def maps_of(run: Path, films: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The map of local evidence of each film, as the kept model gives it."""
    import keras

    model = keras.saving.load_model(run / "model.keras")
    seen = keras.Model(model.input, model.get_layer("local_logit").output)
    return np.asarray(seen.predict_on_batch(films[..., None].astype(np.float32)), np.float64)[..., 0]


def pointing(maps: npt.NDArray[np.float64], data: FitData) -> float:
    """Mean over films with boxes of the AUC of a cell's logit for lying in the box."""
    from pneumo_train.augment import Movement, box_coverage

    areas = []
    for i in range(1, 64, 2):
        inside = box_coverage(data.files[i].boxes, Movement(0, 1, 1, (0, 0), False), maps.shape[1]) > 0.5
        areas.append(weighted_auc(inside.ravel().astype(int), maps[i].ravel(), np.ones((1, inside.size)))[0])
    return float(np.mean(areas))


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("frozen", [False, True], ids=["all layers learn", "the first layer is frozen"])
def test_boxes_teach_the_map(
    fit: Any,
    boxed: FitData,
    settings: FitSettings,
    tmp_path: Path,
    frozen: bool,
    monkeypatch: pytest.MonkeyPatch,
    traced: list[bool],
) -> None:
    from pneumo_train import batches

    sides = []
    real = batches.Batches.make

    def make(*arguments: Any) -> Any:
        found: Any = real(*arguments)
        sides.append((found[0].shape[1], found[1]["local_logit"].shape[1]))
        return found

    weights = []
    compile_learner = fit._compile_learner

    def compiled(learner: keras.Model, optimizer: Any, map_weight: float) -> None:
        weights.append(map_weight)
        compile_learner(learner, optimizer, map_weight)

    monkeypatch.setattr(batches.Batches, "make", make)
    monkeypatch.setattr(fit, "_compile_learner", compiled)
    settings = replace(settings, epochs=12, learning_rate=0.02)
    history = fit.fit(tmp_path, settings, boxed, lambda: local(frozen), resume=False)
    assert set(sides) == {(96, 6), (128, 8)}  # small films first, and a map that is as small
    assert tuple(weights) == fit.MAP_WEIGHTS
    assert sum(traced) == 2  # once for each weight
    assert history[-1]["map_loss"] < 0.7 * history[0]["map_loss"]
    assert pointing(maps_of(tmp_path, boxed.films), boxed) > 0.85
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert float(rows[1].split(",")[2]) == history[0]["map_loss"]


@pytest.mark.usefixtures("tiny_backbone")
def test_without_any_box_the_map_is_taught_by_the_film_alone(
    fit: Any, boxed: FitData, settings: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []
    real = fit._compile_learner

    def compiled(learner: keras.Model, *arguments: Any) -> None:
        outputs.append(learner.output)
        real(learner, *arguments)

    monkeypatch.setattr(fit, "_compile_learner", compiled)
    plain = replace(boxed, files=[replace(film, boxes=()) for film in boxed.files])
    history = fit.fit(tmp_path, replace(settings, epochs=2), plain, local, resume=False)
    assert not any(isinstance(output, dict) for output in outputs)
    assert [record["map_loss"] for record in history] == ["", ""]
    assert (tmp_path / "history.csv").read_text().splitlines()[1].split(",")[2] == ""
    assert maps_of(tmp_path, plain.films[:2]).shape == (2, 8, 8)


@pytest.mark.usefixtures("tiny_backbone")
def test_a_resumed_run_with_boxes_is_the_run_that_was_not_interrupted(
    fit: Any, boxed: FitData, settings: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, learning_rate=0.02)
    expected = fit.fit(tmp_path / "whole", settings, boxed, local, resume=False)
    with monkeypatch.context() as patch:
        interrupt_in_second_epoch(patch, fit)
        with pytest.raises(KeyboardInterrupt):
            fit.fit(tmp_path / "killed", settings, boxed, local, resume=False)
    history = fit.fit(tmp_path / "killed", settings, boxed, never, resume=True)
    for record, other in zip(history, expected, strict=True):
        for name in set(fit.HISTORY) - {"seconds", "films_per_second"}:
            assert record[name] == pytest.approx(other[name], abs=1e-4), name
    assert same(weights_of(tmp_path / "killed" / "model.keras"), weights_of(tmp_path / "whole" / "model.keras"), 1e-4)


# ----------------------------------------------------------------------------------------------------- interruption


def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    fit: Any,
    data: FitData,
    settings: FitSettings,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "WEIGHT_DECAY", 2.0)
    with monkeypatch.context() as patch:
        interrupt_in_second_epoch(patch, fit)
        with pytest.raises(KeyboardInterrupt):
            fit.fit(tmp_path, settings, data, build, resume=False)
    first = json.loads((tmp_path / "checkpoint" / "history.json").read_text())
    assert len(first) == 1
    assert not (tmp_path / "model.keras").exists()

    epochs = seen(monkeypatch, fit)
    history = fit.fit(tmp_path, settings, data, never, resume=True)
    assert history[0] == first[0]
    assert len(whole.films) == 3
    for ours, theirs in zip(trained_on(epochs), whole.films[1:], strict=True):
        assert np.array_equal(ours, theirs)
    for record, expected in zip(history, whole.history, strict=True):
        for name in set(fit.HISTORY) - {"seconds", "films_per_second"}:
            assert record[name] == pytest.approx(expected[name], abs=1e-4), name
    # The same films, order, dropout, schedule, averages and decay: the same weights, but for the order of sums.
    for name in ("model.keras", "checkpoint/epoch-3.keras"):
        assert same(weights_of(tmp_path / name), weights_of(whole.run / name)), name


def test_killed_before_an_epoch_counts_it_is_done_again(
    fit: Any,
    data: FitData,
    settings: FitSettings,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "WEIGHT_DECAY", 2.0)
    with monkeypatch.context() as patch:  # all of epoch 2 is on the disk, but no history says so
        interrupt(patch, fit, "write_text", lambda _, text: len(json.loads(text)) == 2)
        with pytest.raises(KeyboardInterrupt):
            fit.fit(tmp_path, settings, data, build, resume=False)
    checkpoint = tmp_path / "checkpoint"
    assert (checkpoint / "epoch-2.keras").is_file()
    assert len(json.loads((checkpoint / "history.json").read_text())) == 1
    (checkpoint / ".epoch-2.1.tmp.keras").write_bytes(b"half written")  # as kill -9 leaves it

    with monkeypatch.context() as patch:  # all epochs are done, but nothing lies where the run keeps it
        interrupt(patch, fit, "write_rows", lambda *arguments: len(arguments[2]) == 3)
        with pytest.raises(KeyboardInterrupt):
            fit.fit(tmp_path, settings, data, never, resume=True)
    assert not (tmp_path / "model.keras").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3

    epochs = seen(monkeypatch, fit)
    history = fit.fit(tmp_path, settings, data, never, resume=True)
    assert not epochs  # nothing is left to train
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 4
    assert [r["perturbed_auc"] for r in history] == pytest.approx([r["perturbed_auc"] for r in whole.history])
    assert same(weights_of(tmp_path / "model.keras"), weights_of(whole.run / "model.keras"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "history.csv", "model.keras"]
    assert len(list(checkpoint.iterdir())) == 3


def test_killed_before_the_first_epoch_ends_it_starts_anew(
    fit: Any,
    data: FitData,
    settings: FitSettings,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "WEIGHT_DECAY", 2.0)
    (tmp_path / "checkpoint").mkdir()
    history = fit.fit(tmp_path, replace(settings, epochs=3), data, build, resume=True)
    assert [r["loss"] for r in history] == pytest.approx([r["loss"] for r in whole.history], abs=1e-4)


@pytest.mark.parametrize("damage", ["history.json", "epoch-1.keras"])
def test_a_damaged_checkpoint_is_a_sentence(
    fit: Any, data: FitData, settings: FitSettings, tmp_path: Path, damage: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "history.json").write_text(json.dumps([{"epoch": 1, "perturbed_auc": 0.5}]))
    (checkpoint / damage).write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"checkpoint cannot be read .*: delete it to start this run anew"):
        fit.fit(tmp_path, settings, data, build, resume=True)
