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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from pneumo_edge.atomic import replacing_file, write_text
from pneumo_edge.command_line import progress, say
from pneumo_edge.errors import RunError
from pneumo_edge.preprocess import Pixels
from pneumo_train.augment import augment
from pneumo_train.calibrate import Labels
from pneumo_train.measure import weighted_auc
from pneumo_train.run import write_rows

LABEL_SMOOTHING = 0.1
WEIGHT_DECAY = 1e-2
GRADIENT_NORM = 5.0
AVERAGED_SHARE = 1 / 6
"""The averaged weights reach back over this share of all steps, and at most over 200 steps."""
WARMUP_STEPS = 200
PREDICT_BATCH = 64

HISTORY = (
    "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "perturbed_loss", "perturbed_accuracy",
    "perturbed_auc", "learning_rate", "seconds", "films_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class FitData:
    """What the loop reads. Films are uint8 (N, S, S), labels int64 (N,)."""

    films: Pixels
    """All films of the data set, a memory map; training films are taken from it by position."""
    train: npt.NDArray[np.int64]
    """Positions of the training films."""
    labels: Labels
    """Of all films."""
    validation: Pixels
    perturbed: Pixels
    """The validation films under the site perturbation."""
    validation_labels: Labels


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast."""

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    patience: int
    """Epochs without a better perturbed AUC after which training stops."""


def fit(
    run: Path,
    settings: FitSettings,
    data: FitData,
    build: Callable[[], keras.Model],
    *,
    resume: bool,
) -> list[dict[str, Any]]:
    """Trains, and leaves the best model in `run/model.keras` and the history in `run/history.csv`.

    Best means the largest AUC on the perturbed validation films. The weights that are judged and kept are averages
    over training steps (exponential), unless batch-norm learns too.

    Args:
        run: The run's folder.
        settings: How long and how fast.
        data: What it learns from and is chosen by.
        build: Makes the model with the weights to start from; not called where a checkpoint is taken up.
        resume: Go on from `run/checkpoint` if there is one.

    Returns:
        The history, one record an epoch.

    Raises:
        RunError: The checkpoint cannot be read, or training diverged.
    """
    checkpoint = run / "checkpoint"
    steps = math.ceil(len(data.train) / settings.batch_size)
    history: list[dict[str, Any]] = []
    if resume and (checkpoint / "history.json").is_file():
        try:
            history = json.loads((checkpoint / "history.json").read_text(encoding="utf-8"))
            model = keras.saving.load_model(checkpoint / _state_name(history))
            stored = model.optimizer
            # Compiled anew, since a .keras file does not keep which weights are left out of the decay.
            _compile(model, settings, steps)
            model.optimizer.build(model.trainable_variables)
            for variable, value in zip(model.optimizer.variables, stored.variables, strict=True):
                variable.assign(value)
        except Exception as error:
            raise RunError(f"{checkpoint} cannot be read ({error}): delete it to start this run anew") from error
        say(f"going on after epoch {len(history)} of {settings.epochs}")
    else:
        keras.utils.set_random_seed(settings.seed)
        model = build()
        _compile(model, settings, steps)
    if len(history) < settings.epochs and not _exhausted(history, settings.patience):
        each_epoch = _EachEpoch(run, settings, data, history)
        try:
            model.fit(
                _Batches(data, settings, epochs_done=len(history)),
                initial_epoch=len(history),
                epochs=settings.epochs,
                shuffle=False,  # the batches come shuffled already, by seed and epoch
                callbacks=[each_epoch],
                verbose=0,
            )
        finally:
            each_epoch.on_train_end()
    write_rows(run / "history.csv", HISTORY, history)
    with replacing_file(run / "model.keras") as kept:
        shutil.copyfile(checkpoint / _best_name(history), kept)
    return history


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
    model.compile(
        optimizer,
        keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING),
        metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)],
    )


def _batch_norm_learns(model: keras.Model) -> bool:
    return any(isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in model.layers)


def _exhausted(history: list[dict[str, Any]], patience: int) -> bool:
    scores = [record["perturbed_auc"] for record in history]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


class _Batches(keras.utils.PyDataset):  # type: ignore[misc] # keras has no types
    """Augmented training films in an order that depends on seed and epoch alone: a resumed run sees the same."""

    def __init__(self, data: FitData, settings: FitSettings, epochs_done: int) -> None:
        super().__init__(workers=2, max_queue_size=4)
        self._data, self._settings, self._epoch = data, settings, epochs_done
        labels = data.labels[data.train]
        # Both classes weigh the same in the sum; the mean weight is 1.
        self._class_weight = len(labels) / (2 * np.bincount(labels, minlength=2))
        self._order = self._shuffled()

    def _shuffled(self) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self._settings.seed, self._epoch]).permutation(self._data.train)

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._order = self._shuffled()

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._settings.batch_size)

    def __getitem__(self, batch: int) -> tuple[npt.NDArray[np.float32], ...]:
        size = self._settings.batch_size
        chosen = self._order[batch * size : (batch + 1) * size]
        rngs = (np.random.default_rng([self._settings.seed, self._epoch, int(i)]) for i in chosen)
        films = np.stack([augment(self._data.films[i], rng) for i, rng in zip(chosen, rngs, strict=True)])
        labels = self._data.labels[chosen]
        return (
            films[..., np.newaxis].astype(np.float32),
            labels[:, np.newaxis].astype(np.float32),
            self._class_weight[labels].astype(np.float32),
        )


class _EachEpoch(keras.callbacks.Callback):  # type: ignore[misc] # keras has no types
    """Judges, keeps the best, checkpoints and reports after every epoch."""

    def __init__(self, run: Path, settings: FitSettings, data: FitData, history: list[dict[str, Any]]) -> None:
        super().__init__()
        self._run, self._settings, self._data, self._history = run, settings, data, history
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
        record: dict[str, Any] = {"epoch": epoch + 1, "loss": float(logs["loss"]), "accuracy": float(logs["accuracy"])}
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
                # A model around the same layers, never compiled: what is kept needs no optimiser.
                keras.Model(self.model.input, self.model.output, name=self.model.name).save(temporary)
        if average is not None:
            average.on_test_end()
        state = checkpoint / _state_name(self._history)
        with replacing_file(state) as temporary:
            self.model.save(temporary)
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
        labels = self._data.validation_labels
        for name, films in (("val", self._data.validation), ("perturbed", self._data.perturbed)):
            scores = logits(self.model, films)
            found[f"{name}_loss"] = float(np.mean(np.logaddexp(0, np.where(labels == 1, -scores, scores))))
            found[f"{name}_accuracy"] = float(np.mean((scores >= 0) == (labels == 1)))
            found[f"{name}_auc"] = float(weighted_auc(labels, scores, np.ones((1, len(labels))))[0])
        return found


def logits(model: keras.Model, films: Pixels) -> npt.NDArray[np.float32]:
    """Returns the logits (N,) float32 of films uint8 (N, S, S), in batches."""
    parts = [
        model.predict_on_batch(films[i : i + PREDICT_BATCH, ..., np.newaxis].astype(np.float32))[:, 0]
        for i in range(0, len(films), PREDICT_BATCH)
    ]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])
