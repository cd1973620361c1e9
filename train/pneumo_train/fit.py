"""The training loop: read it top to bottom.

Keras 3 only, so that TensorFlow, JAX or PyTorch can do the work. After every epoch the whole state (weights, optimiser,
averaged weights) and the best model so far are written to `checkpoint/`, and last of all `history.json`, which names
them: a run killed at any moment goes on from the last epoch that stands there.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pneumo_edge.atomic import replacing_file, write_text
from pneumo_edge.calibrate.measure import mean_auc
from pneumo_edge.command_line import progress, say
from pneumo_edge.errors import RunError
from pneumo_train.backbones import LOCAL_LOGIT
from pneumo_train.batches import (
    VIEWS,
    Batches,
    FeatureViews,
    FitData,
    predict,
    progressive_sizes,
    soft_targets,
    split_at_learning,
)
from pneumo_train.learner import arranged
from pneumo_train.run import load_model, write_rows

WEIGHT_DECAY = 1e-2
GRADIENT_NORM = 5.0
AVERAGED_SHARE = 1 / 6
"""The averaged weights reach back over this share of all steps, and at most over 200 steps."""
WARMUP_STEPS = 200

HISTORY = (
    "epoch", "loss", "map_loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "perturbed_loss",
    "perturbed_accuracy", "perturbed_auc", "learning_rate", "seconds", "films_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast."""

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    patience: int
    """Epochs without a better perturbed AUC after which training stops."""
    balance: str = "weights"
    """One of `pneumo_train.train.BALANCES`."""


def fit(
    run: Path,
    settings: FitSettings,
    data: FitData,
    build: Callable[[], keras.Model],
    *,
    resume: bool,
    teachers: Sequence[keras.Model] = (),
) -> list[dict[str, Any]]:
    """Trains, and leaves the best model in `run/model.keras` and the history in `run/history.csv`.

    Best means the largest AUC on the perturbed validation films, in the mean over sites. The weights that are judged
    and kept are averages over training steps (exponential), unless batch-norm learns too. Where the first layers are
    frozen and there are more epochs than views, those layers are computed once for each view
    (`pneumo_train.batches.FeatureViews`). Elsewhere training begins with smaller films
    (`pneumo_train.batches.progressive_sizes`). A model with a map of local evidence learns from boxes too, where some
    training film has one.

    Args:
        run: The run's folder.
        settings: How long and how fast.
        data: What it learns from and is chosen by.
        build: Makes the model with the weights to start from; not called where a checkpoint is taken up.
        resume: Go on from `run/checkpoint` if there is one.
        teachers: Models like the one that learns, whose answers are its targets in place of the labels.

    Returns:
        The history, one record an epoch.

    Raises:
        RunError: The checkpoint cannot be read, or training diverged.
    """
    checkpoint = run / "checkpoint"
    steps = math.ceil(len(data.train) / settings.batch_size)
    history: list[dict[str, Any]] = []
    if resume and (checkpoint / "history.json").is_file():
        model, history = _take_up(checkpoint, settings, steps)
        say(f"going on after epoch {len(history)} of {settings.epochs}")
    else:
        keras.utils.set_random_seed(settings.seed)
        model = build()
        _compile(model, settings, steps)
    if teachers:
        # Built here: the threads that make batches would do it twice at once.
        soft_targets(teachers, data.validation[:1])
    sizes = progressive_sizes(model, settings.epochs)
    while len(history) < settings.epochs and not _exhausted(history, settings.patience):
        # Before the frozen layers are cut off: Keras copies what stands behind the cut, and a layer knows one output.
        taught = _with_map(model) if data.knows_where and _has_map(model) else model
        learner, features = _without_frozen(taught, run / "features", settings, data, teachers)
        until = settings.epochs
        side = sizes[len(history)]
        # What the frozen layers make of a film is kept of films of the model's size alone.
        map_side = None if taught is model else _map_side(model, side if features is None else model.input.shape[1])
        if features is None:
            learner = arranged(learner, any_side=len(set(sizes)) > 1)
            until = next((e for e in range(len(history), until) if sizes[e] != side), until)
        # One optimiser for both: their weights that learn are the same, and the whole model is checkpointed.
        _compile_learner(learner, model.optimizer)
        each_epoch = _EachEpoch(run, settings, data, history, model, features)
        batches = Batches(
            data,
            batch_size=settings.batch_size,
            seed=settings.seed,
            balance=settings.balance,
            side=side,
            map_side=map_side,
            teachers=teachers,
            features=features,
        )
        try:
            learner.fit(
                batches.stream(range(len(history), until)),
                steps_per_epoch=batches.steps,
                shuffle=False,  # the batches come shuffled already, by seed and epoch
                initial_epoch=len(history),
                epochs=until,
                callbacks=[each_epoch],
                verbose=0,
            )
        finally:
            each_epoch.on_train_end()
        if until < settings.epochs:
            # One call of Keras' fit() takes films of one size, and leaves averaged weights behind.
            model, history = _take_up(checkpoint, settings, steps)
    write_rows(run / "history.csv", HISTORY, history)
    with replacing_file(run / "model.keras") as kept:
        shutil.copyfile(checkpoint / _best_name(history), kept)
    shutil.rmtree(run / "features", ignore_errors=True)
    return history


def _take_up(checkpoint: Path, settings: FitSettings, steps: int) -> tuple[keras.Model, list[dict[str, Any]]]:
    """Reads the state after the last epoch that stands in the history."""
    try:
        history = json.loads((checkpoint / "history.json").read_text(encoding="utf-8"))
        model = load_model(checkpoint / _state_name(history), compiled=True)
        stored = model.optimizer
        # Compiled anew, since a .keras file does not keep which weights are left out of the decay.
        _compile(model, settings, steps)
        model.optimizer.build(model.trainable_variables)
        for variable, value in zip(model.optimizer.variables, stored.variables, strict=True):
            variable.assign(value)
    except Exception as error:
        raise RunError(f"{checkpoint} cannot be read ({error}): delete it to start this run anew") from error
    return model, history


def _without_frozen(
    model: keras.Model, folder: Path, settings: FitSettings, data: FitData, teachers: Sequence[keras.Model]
) -> tuple[keras.Model, FeatureViews | None]:
    """Returns what is left to train where the frozen layers can be computed beforehand, else the model itself."""
    parts = split_at_learning(model) if settings.epochs > VIEWS else None
    if parts is None:
        return model, None
    front, tail = parts
    features = FeatureViews(folder, front, data, settings.seed, teachers)
    if not features.fits_on_disk():
        return model, None
    features.prepare()
    return tail, features


def _to_keep(model: keras.Model) -> keras.Model:
    """Returns the model uncompiled, since what is kept needs no optimiser, and in float32, since it must not round."""
    uncompiled = keras.Model(model.input, model.output, name=model.name)

    def in_float32(layer: keras.layers.Layer | keras.Operation) -> keras.layers.Layer | keras.Operation:
        # An operation, such as a maximum, computes in what it is given.
        precision = {"dtype": "float32"} if isinstance(layer, keras.layers.Layer) else {}
        return layer.__class__.from_config(layer.get_config() | precision)

    copy = keras.models.clone_model(uncompiled, clone_function=in_float32)
    copy.set_weights(model.get_weights())
    return copy


def _state_name(history: list[dict[str, Any]]) -> str:
    return f"epoch-{len(history)}.keras"


def _best_name(history: list[dict[str, Any]]) -> str:
    return f"best-{1 + int(np.argmax([record['perturbed_auc'] for record in history]))}.keras"


def _compile(model: keras.Model, settings: FitSettings, steps: int) -> None:
    total = steps * settings.epochs
    warmup = min(WARMUP_STEPS, total // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total - warmup), warmup_target=settings.learning_rate, warmup_steps=warmup
    )
    if warmup == 0:
        rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, max(1, total))
    optimizer = keras.optimizers.AdamW(
        rate,
        weight_decay=WEIGHT_DECAY,
        global_clipnorm=GRADIENT_NORM,
        # Averaged weights with moving statistics that belong to others can answer one constant class: batch-norm that
        # learns and averaging exclude each other.
        use_ema=not _batch_norm_learns(model),
        ema_momentum=min(0.995, 1 - 1 / max(1.0, AVERAGED_SHARE * total)),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, _loss(), metrics=[accuracy])


def _has_map(model: keras.Model) -> bool:
    return LOCAL_LOGIT in [layer.name for layer in model.layers]


def _map_side(model: keras.Model, side: int) -> int:
    """Returns how many cells a film of that side has in the model's map of local evidence."""
    return int(side * model.get_layer(LOCAL_LOGIT).output.shape[1] // model.input.shape[1])


def _with_map(model: keras.Model) -> keras.Model:
    """Returns the same model with its map of local evidence as a second output."""
    outputs = {"logit": model.output, LOCAL_LOGIT: model.get_layer(LOCAL_LOGIT).output}
    return keras.Model(model.input, outputs, name=model.name)


def _compile_learner(learner: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    if isinstance(learner.output, dict):
        # Both losses are cross-entropies in nats, of the film and of a cell in the mean: they weigh the same. More for
        # the map was not better (docs/experiments.md).
        losses = {name: _loss() for name in learner.output}
        learner.compile(optimizer, losses, metrics={"logit": [accuracy]})
    else:
        learner.compile(optimizer, _loss(), metrics=[accuracy])


def _loss() -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable(package="pneumo")  # type: ignore[untyped-decorator] # keras has no types
def accuracy(target: keras.KerasTensor, logit: keras.KerasTensor) -> keras.KerasTensor:
    """Share of films whose logit falls on the side of their target, which may be smoothed or a teacher's."""
    return keras.ops.mean(keras.ops.cast(keras.ops.equal(target > 0.5, logit > 0), "float32"), axis=-1)


def _batch_norm_learns(model: keras.Model) -> bool:
    return any(isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in model.layers)


def _exhausted(history: list[dict[str, Any]], patience: int) -> bool:
    scores = [record["perturbed_auc"] for record in history]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


class _EachEpoch(keras.callbacks.Callback):  # type: ignore[misc] # keras has no types
    """Judges, keeps the best, checkpoints and reports after every epoch."""

    def __init__(
        self,
        run: Path,
        settings: FitSettings,
        data: FitData,
        history: list[dict[str, Any]],
        whole: keras.Model,
        features: FeatureViews | None,
    ) -> None:
        """Takes what `fit` has; `whole` is the model to keep, of which `self.model` may be the part that learns."""
        super().__init__()
        self._run, self._settings, self._data, self._history, self._whole = run, settings, data, history, whole
        side = features.of if features else lambda films: films[..., np.newaxis]
        self._inputs = {"val": side(data.validation), "perturbed": side(data.perturbed)}
        self._open = ExitStack()
        self._show: Callable[[int], None] = lambda _: None
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._start = time.monotonic()
        # Dropout draws from a state that a .keras file does not keep: set by seed and epoch, as the order of the films.
        state = np.random.default_rng([self._settings.seed, epoch]).integers(0, 2**32, 2, np.uint32)
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                layer.seed_generator.state.assign(state)
        name = f"epoch {epoch + 1} of {self._settings.epochs}"
        self._show = self._open.enter_context(progress(name, self.params["steps"]))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._show(batch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._open.close()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._open.close()
        seconds = time.monotonic() - self._start
        logs = logs or {}
        film = "logit_" if "logit_loss" in logs else ""
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": float(logs[f"{film}loss"]),
            "map_loss": float(logs[f"{LOCAL_LOGIT}_loss"]) if film else "",
            "accuracy": float(logs[f"{film}accuracy"]),
        }
        average = None
        if self.model.optimizer.use_ema:
            average = keras.callbacks.SwapEMAWeights()
            average.set_model(self.model)
            average.on_test_begin()
        record |= self._judge()
        losses = [record[name] for name in ("loss", "val_loss", "perturbed_loss")]
        if not np.isfinite(losses).all():
            raise RunError(f"training diverged in epoch {epoch + 1}: start again with a smaller --learning-rate")
        record |= {
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            "seconds": round(seconds, 1),
            "films_per_second": round(len(self._data.train) / seconds, 1),
        }
        self._history.append(record)
        checkpoint = self._run / "checkpoint"
        best = checkpoint / _best_name(self._history)
        if best.name == f"best-{epoch + 1}.keras":
            with replacing_file(best) as temporary:
                _to_keep(self._whole).save(temporary)
        if average is not None:
            average.on_test_end()
        state = checkpoint / _state_name(self._history)
        with replacing_file(state) as temporary:
            self._whole.save(temporary)
        # With this rename the epoch is done; what no history names any more can go.
        write_text(checkpoint / "history.json", json.dumps(self._history))
        for stale in checkpoint.iterdir():
            if stale.name not in {state.name, best.name, "history.json"}:
                stale.unlink()
        write_rows(self._run / "history.csv", HISTORY, self._history)
        if _exhausted(self._history, self._settings.patience):
            self.model.stop_training = True
        left = (self._settings.epochs - epoch - 1) * (time.monotonic() - self._start)
        say(
            f"epoch {epoch + 1}/{self._settings.epochs}: loss {record['loss']:.3f}, "
            f"validation AUC {record['val_auc']:.4f}, perturbed {record['perturbed_auc']:.4f}, "
            f"{record['films_per_second']:.1f} films/s, about {left / 60:.0f} min left"
        )

    def _judge(self) -> dict[str, float]:
        found = {}
        labels, sites = self._data.validation_labels, np.array(self._data.validation_sites)
        for name, inputs in self._inputs.items():
            scores = predict(self.model, inputs)[:, 0]
            found[f"{name}_loss"] = float(np.mean(np.logaddexp(0, np.where(labels == 1, -scores, scores))))
            found[f"{name}_accuracy"] = float(np.mean((scores >= 0) == (labels == 1)))
            found[f"{name}_auc"] = mean_auc(labels, scores, sites)
        return found
