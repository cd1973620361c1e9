"""The training loop: `fit` reads from top to bottom.

Keras 3 only, so that TensorFlow, JAX or PyTorch can do the work. After every epoch the whole state (weights, optimiser,
averaged weights) and the best model so far are written to `checkpoint/`, and last of all `history.json`, which names
them: a run killed at any moment goes on from the last epoch that stands there.

The steps of one epoch are left to Keras's own `fit`. Steps by `train_on_batch` would be traced twice for each size of
film, since the last batch of an epoch is smaller, and would wait for the loss after each step.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pneumo_edge.atomic import replacing_file, write_text
from pneumo_edge.calibrate.measure import mean_auc
from pneumo_edge.command_line import progress, say
from pneumo_edge.errors import RunError, one_line
from pneumo_train.backbones import LOCAL_LOGIT
from pneumo_train.batches import Batches, FitData, progressive_sizes, soft_targets
from pneumo_train.inference import outputs_of
from pneumo_train.rewrite import rewritten
from pneumo_train.run import load_model, write_rows

WEIGHT_DECAY = 1e-2
GRADIENT_NORM = 5.0
AVERAGED_SHARE = 1 / 6
"""The averaged weights reach back over this share of all steps, and at most over 200 steps."""
WARMUP_STEPS = 200
MAP_WEIGHTS = (10.0, 1.0)
"""Weight of the map's loss, cross-entropy in nats of a cell in the mean, where that of the film weighs 1: in the first
half of the epochs, and from then on. With equal weights from the start a network may gather what it knows of the whole
film in one cell in a corner, since among a hundred cells that costs next to nothing; with the larger one to the end it
learns less of the films without boxes (docs/experiments.md)."""

HISTORY = (
    "epoch", "loss", "map_loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "perturbed_loss",
    "perturbed_accuracy", "perturbed_auc", "learning_rate", "seconds", "films_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class FitSettings:
    """Settings of the training loop."""

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
    and kept are averages over training steps (exponential), unless batch-norm learns too. Training begins with smaller
    films (`pneumo_train.batches.progressive_sizes`). A model with a map of local evidence learns from boxes too, where
    some training film has one.

    Args:
        run: The run's folder.
        settings: Settings of the training loop.
        data: Films to train on and films to validate on.
        build: Makes the model with the weights to start from; not called where a checkpoint is taken up.
        resume: Go on from `run/checkpoint` if there is one.
        teachers: Models whose predictions replace the labels.

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
    taught = _with_map(model) if data.knows_where and _has_map(model) else model
    learner = rewritten(taught, any_side=len(set(sizes)) > 1)
    batches = Batches(
        data, batch_size=settings.batch_size, seed=settings.seed, balance=settings.balance, teachers=teachers
    )
    kept = _to_keep(model)
    compiled_for: tuple[int, float | None] | None = None
    while len(history) < settings.epochs and not _exhausted(history, settings.patience):
        epoch, start = len(history), time.monotonic()
        side = sizes[epoch]
        map_weight = None if taught is model else MAP_WEIGHTS[epoch >= settings.epochs // 2]
        if (side, map_weight) != compiled_for:
            # One optimiser for both: their weights that learn are the same, and the whole model is checkpointed.
            # Compiled for each size, since a graph for any size is slower, and for each weight, which is part of it.
            _compile_learner(learner, model.optimizer, map_weight)
            compiled_for = (side, map_weight)
        _seed_dropout(model, settings.seed, epoch)
        map_side = None if map_weight is None else _map_side(model, side)
        with progress(f"epoch {epoch + 1} of {settings.epochs}", batches.steps) as show:
            found = learner.fit(
                batches.of_epoch(epoch, side, map_side),
                steps_per_epoch=batches.steps,
                shuffle=False,  # the batches come shuffled already, by seed and epoch
                callbacks=[_Shown(show)],
                verbose=0,
            ).history
        film = "logit_" if "logit_loss" in found else ""
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": float(found[f"{film}loss"][0]),
            "map_loss": float(found[f"{LOCAL_LOGIT}_loss"][0]) if film else "",
            "accuracy": float(found[f"{film}accuracy"][0]),
        }
        with _averaged_weights(learner):
            record |= _judge(learner, data)
            if not np.isfinite([record[name] for name in ("loss", "val_loss", "perturbed_loss")]).all():
                raise RunError(f"training diverged in epoch {epoch + 1}: start again with a smaller --learning-rate")
            seconds = time.monotonic() - start
            record |= {
                "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
                "seconds": round(seconds, 1),
                "films_per_second": round(len(data.train) / seconds, 1),
            }
            history.append(record)
            if _best_epoch(history) == epoch + 1:
                kept.set_weights(model.get_weights())
                with replacing_file(checkpoint / _best_name(history)) as temporary:
                    kept.save(temporary)
        _write_checkpoint(checkpoint, model, history)
        write_rows(run / "history.csv", HISTORY, history)
        left = (settings.epochs - epoch - 1) * (time.monotonic() - start)
        say(
            f"epoch {epoch + 1}/{settings.epochs}: loss {record['loss']:.3f}, "
            f"validation AUC {record['val_auc']:.4f}, perturbed {record['perturbed_auc']:.4f}, "
            f"{record['films_per_second']:.1f} films/s, about {left / 60:.0f} min left"
        )
    write_rows(run / "history.csv", HISTORY, history)
    with replacing_file(run / "model.keras") as temporary:
        shutil.copyfile(checkpoint / _best_name(history), temporary)
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
        raise RunError(f"{checkpoint} cannot be read ({one_line(error)}): delete it to start this run anew") from error
    return model, history


def _write_checkpoint(checkpoint: Path, model: keras.Model, history: list[dict[str, Any]]) -> None:
    """Writes the state after an epoch; the best model lies there already."""
    state = checkpoint / _state_name(history)
    with replacing_file(state) as temporary:
        model.save(temporary)
    # With this rename the epoch is done; what no history names any more can go.
    write_text(checkpoint / "history.json", json.dumps(history))
    for stale in checkpoint.iterdir():
        if stale.name not in {state.name, _best_name(history), "history.json"}:
            stale.unlink()


def _to_keep(model: keras.Model) -> keras.Model:
    """Returns a copy without its weights: uncompiled, since what is kept needs no optimiser, and in float32, since it
    must not round."""
    uncompiled = keras.Model(model.input, model.output, name=model.name)

    def in_float32(layer: keras.layers.Layer | keras.Operation) -> keras.layers.Layer | keras.Operation:
        # An operation, such as a maximum, computes in what it is given.
        precision = {"dtype": "float32"} if isinstance(layer, keras.layers.Layer) else {}
        return layer.__class__.from_config(layer.get_config() | precision)

    return keras.models.clone_model(uncompiled, clone_function=in_float32)


def _state_name(history: list[dict[str, Any]]) -> str:
    return f"epoch-{len(history)}.keras"


def _best_epoch(history: list[dict[str, Any]]) -> int:
    return 1 + int(np.argmax([record["perturbed_auc"] for record in history]))


def _best_name(history: list[dict[str, Any]]) -> str:
    return f"best-{_best_epoch(history)}.keras"


def _compile(model: keras.Model, settings: FitSettings, steps: int) -> None:
    total = steps * settings.epochs
    warmup = min(WARMUP_STEPS, total // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total - warmup), warmup_target=settings.learning_rate, warmup_steps=warmup
    )
    if warmup == 0:
        rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, max(1, total))
    optimizer = AveragingAdamW(
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


@keras.saving.register_keras_serializable(package="pneumo")
class AveragingAdamW(keras.optimizers.AdamW):  # type: ignore[misc] # keras has no types
    """AdamW whose averaged weights stay apart. Keras would put them in place of the weights when `fit` ends."""

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Leaves the weights as they are."""


def _has_map(model: keras.Model) -> bool:
    return LOCAL_LOGIT in [layer.name for layer in model.layers]


def _map_side(model: keras.Model, side: int) -> int:
    """Returns how many cells a film of that side has in the model's map of local evidence."""
    return int(side * model.get_layer(LOCAL_LOGIT).output.shape[1] // model.input.shape[1])


def _with_map(model: keras.Model) -> keras.Model:
    """Returns the same model with its map of local evidence as a second output."""
    outputs = {"logit": model.output, LOCAL_LOGIT: model.get_layer(LOCAL_LOGIT).output}
    return keras.Model(model.input, outputs, name=model.name)


def _compile_learner(learner: keras.Model, optimizer: keras.optimizers.Optimizer, map_weight: float | None) -> None:
    """Compiles what learns; `map_weight` is that of its map of local evidence, None where no box teaches it.

    The variables of optimiser, losses and measures are made here. Keras would make them in the first step, and
    TensorFlow traces a step that has made variables a second time, which takes many seconds for a real network.
    """
    if map_weight is not None:
        losses = {name: _loss() for name in learner.output}
        weights = {"logit": 1.0, LOCAL_LOGIT: map_weight}
        learner.compile(optimizer, losses, loss_weights=weights, metrics={"logit": [accuracy]})
    else:
        learner.compile(optimizer, _loss(), metrics=[accuracy])
    optimizer.build(learner.trainable_variables)
    nothing = keras.tree.map_structure(
        lambda output: keras.ops.zeros([size or 1 for size in output.shape]), learner.output
    )
    learner.compute_loss(y=nothing, y_pred=nothing)
    learner.compute_metrics(None, nothing, nothing)


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


def _seed_dropout(model: keras.Model, seed: int, epoch: int) -> None:
    """Sets what dropout draws from, which a .keras file does not keep, by seed and epoch."""
    state = np.random.default_rng([seed, epoch]).integers(0, 2**32, 2, np.uint32)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            layer.seed_generator.state.assign(state)


class _Shown(keras.callbacks.Callback):  # type: ignore[misc] # keras has no types
    """Shows the number of steps done."""

    def __init__(self, show: Callable[[int], None]) -> None:
        super().__init__()
        self._show = show

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._show(batch + 1)


@contextmanager
def _averaged_weights(model: keras.Model) -> Iterator[None]:
    """Lets a model have the averages of its weights meanwhile, if it keeps them."""
    if not model.optimizer.use_ema:
        yield
        return
    average = keras.callbacks.SwapEMAWeights()
    average.set_model(model)
    average.on_test_begin()
    yield
    average.on_test_end()


def _judge(model: keras.Model, data: FitData) -> dict[str, float]:
    """Returns loss, accuracy and AUC on the validation films, as they are and perturbed."""
    found = {}
    labels, sites = data.validation_labels, np.array(data.validation_sites)
    for name, films in (("val", data.validation), ("perturbed", data.perturbed)):
        scores = outputs_of(model, films)["logit"][:, 0]
        found[f"{name}_loss"] = float(np.mean(np.logaddexp(0, np.where(labels == 1, -scores, scores))))
        found[f"{name}_accuracy"] = float(np.mean((scores >= 0) == (labels == 1)))
        found[f"{name}_auc"] = mean_auc(labels, scores, sites)
    return found
